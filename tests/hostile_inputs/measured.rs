//! Traces of runs on GPUs (`simulate --measured`).

use dualweave::interop::measured::Measured;
use dualweave::plan::Plan;
use dualweave::sim::memory::memory;
use dualweave::sim::{Prices, simulate};
use dualweave::view::report::{Planned, write};
use dualweave::view::simulation::Simulated;

use crate::edits::edited;
use crate::guard::{Answer, try_all};
use crate::measured_trace::trace;
use crate::plans::small;

#[test]
fn measured_traces() {
    let plan = Plan::from_ron("plan.ron", &small()).expect("a plan");
    let simulation = simulate(&plan).expect("times");
    let memory = memory(&plan, &simulation);
    // A line for each event: there are edits that move lines.
    let text = trace(&plan, &simulation).to_string().replace("},{", "},\n{");
    let tally = try_all(
        "measured traces",
        5_000,
        |dice| edited(&[text.clone().into_bytes()], dice),
        |bytes, _| match Measured::read("trace.json", &String::from_utf8_lossy(bytes), &plan, &simulation) {
            Err(error) => Answer::Refused(error),
            Ok(measured) => {
                let simulated = Simulated {
                    plan: &plan,
                    simulation: &simulation,
                    memory: &memory,
                    prices: Prices::default(),
                    disturbed: None,
                };
                let planned = Planned { name: "plan.ron", simulated, measured: Some(&measured) };
                write(&[planned], &mut Vec::new()).expect("memory takes it");
                Answer::Used
            }
        },
    );
    assert!(tally.refused > 500 && tally.used > 100, "{tally}");
}
