//! The verifier, on plans written by hand: each passes, and each way to break one is found by the rule that it breaks.

#[path = "common/plan_by_hand.rs"]
mod plan_by_hand;
#[path = "common/plan_edit.rs"]
mod plan_edit;
#[path = "common/plan_run.rs"]
mod plan_run;
#[path = "host_runtime/shapes.rs"]
#[allow(dead_code, reason = "other tests have more kinds of models")]
mod shapes;

#[path = "verify/arena.rs"]
mod arena;
#[path = "verify/between_ranks.rs"]
mod between_ranks;
#[path = "verify/command.rs"]
mod command;
#[path = "verify/compiled.rs"]
mod compiled;
#[path = "verify/finer_ops.rs"]
mod finer_ops;
#[path = "verify/in_programs.rs"]
mod in_programs;
#[path = "verify/mutated.rs"]
mod mutated;
#[path = "verify/on_a_rank.rs"]
mod on_a_rank;
#[path = "verify/well_formed.rs"]
mod well_formed;

use dualweave::plan::Plan;
use dualweave::verify::{Rule, verify};

/// The plan has exactly these violations, in these words.
#[track_caller]
fn finds(plan: &Plan, expected: &[&str]) {
    let found: Vec<String> = verify(plan).violations.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected);
}

#[test]
fn plans_by_hand_are_safe() {
    for plan in plan_by_hand::all() {
        let report = verify(&plan);
        assert!(report.is_safe(), "{}: {:#?}", plan.layout.placement, report.violations);
        assert_eq!(report.checked.rules, Rule::ALL.len());
        assert_eq!(report.total(), 0);
    }
}

#[test]
fn plans_by_hand_survive_their_file() {
    for plan in plan_by_hand::all() {
        let again = Plan::from_ron("plan.ron", &plan.to_ron()).unwrap();
        assert_eq!(again, plan);
        assert_eq!(again.digest, again.digest_now());
    }
}
