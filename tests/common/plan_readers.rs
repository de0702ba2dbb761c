//! All that the commands do with the text of a plan.

use dualweave::Error;
use dualweave::cli::show::chart;
use dualweave::ir::Timetable;
use dualweave::plan::{Plan, PlanRank};
use dualweave::sim::memory::memory;
use dualweave::sim::{Prices, check_references, simulate};
use dualweave::verify::verify;
use dualweave::view::report::Planned;
use dualweave::view::simulation::{Simulated, rank_text, to_json, to_text};
use dualweave::view::{figure, perfetto, report};

/// How far a text came.
pub enum Reached {
    /// It is no plan.
    Unread(Error),
    /// What it says cannot be simulated.
    Unsimulated(Error),
    /// It was simulated, though the verifier refuses it.
    Unsafe,
    /// Nothing is wrong with it.
    Safe,
}

/// Everything that the commands do with a plan.
pub fn everything(text: &str) -> Reached {
    let plan = match Plan::from_ron("plan.ron", text) {
        Ok(plan) => plan,
        Err(error) => return Reached::Unread(error),
    };
    let report = verify(&plan);
    let safe = report.is_safe();
    for violation in &report.violations {
        assert!(!violation.to_string().is_empty());
    }
    if check_references(&plan).is_ok() {
        let actions = |rank: &PlanRank| rank.items.iter().filter_map(|item| item.0.action()).collect();
        let timetable = Timetable { layout: plan.layout, ranks: plan.ranks.iter().map(actions).collect() };
        assert!(!timetable.local_tokens().is_empty() && !timetable.stage_tokens().is_empty());
    }
    let simulation = match simulate(&plan) {
        Ok(simulation) => simulation,
        Err(error) => {
            assert!(!safe, "what is safe can be simulated: {error}");
            return Reached::Unsimulated(error);
        }
    };
    let memory = memory(&plan, &simulation);
    let simulated =
        Simulated { plan: &plan, simulation: &simulation, memory: &memory, prices: Prices::default(), disturbed: None };
    for width in [1, 80] {
        assert!(!to_text(&simulated, width).is_empty());
        for rank in 0..plan.ranks.len() {
            assert!(!rank_text(&simulated, rank, width).is_empty());
        }
    }
    let json = to_json(&simulated, None).expect("a report");
    assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
    assert!(!chart(&plan, &simulation, 100).is_empty());
    let mut trace = Vec::new();
    perfetto::write(&plan, &simulation, &mut trace).expect("memory takes everything");
    assert!(serde_json::from_slice::<serde_json::Value>(&trace).is_ok());
    // Of some: these are long.
    if text.len().is_multiple_of(32) {
        let mut drawn = Vec::new();
        figure::write(&simulated, &mut drawn).expect("memory takes everything");
        report::write(&[Planned { name: "plan.ron", simulated, measured: None }], &mut drawn).expect("memory takes it");
        let drawn = String::from_utf8(drawn).expect("text");
        assert_eq!(drawn.matches("<script").count(), 2);
    }
    if safe { Reached::Safe } else { Reached::Unsafe }
}
