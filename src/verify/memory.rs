//! Rule `memory`: what a rank holds fits its memory: parameters, gradients and optimizer state of its stages, and its arena. That
//! all else has room in the arena is proved by `places` and `aliasing`.
//!
//! What an op hands to a weight gradient is not in the plan by op. So of a workspace only this is proved: that it is no
//! less than the mean share of any component, which some op hands over at one time.

use crate::ir::Component;
use crate::plan::{Plan, PlanStage};
use crate::units::Bytes;

use super::grammar;
use super::report::{Report, Rule, Violation};

const RULE: Rule = Rule::Memory;
/// Parts that a message names.
const NAMED: usize = 4;

/// Checks all programs and all ranks.
pub fn check(plan: &Plan, report: &mut Report) {
    workspaces(plan, report);
    let memory = u128::from(plan.machine.memory.0);
    for number in 0..plan.layout.ranks {
        let mut parts = parts(plan, number);
        let total: u128 = parts.iter().map(|part| part.1).sum();
        if total > memory {
            report.add(RULE, || {
                // Stable: equal parts stay in order.
                parts.sort_by_key(|part| std::cmp::Reverse(part.1));
                let named = |(name, bytes): &(String, u128)| format!("{name} {}", show(*bytes));
                let largest: Vec<String> = parts.iter().take(NAMED).map(named).collect();
                let message = format!(
                    "needs {total} bytes, {} more than the {memory} bytes that there are; most of it is {}",
                    show(total - memory),
                    largest.join(", ")
                );
                Violation::rank(RULE, number, "memory", message)
            });
        }
    }
}

/// What a rank holds, by name.
fn parts(plan: &Plan, number: u32) -> Vec<(String, u128)> {
    let mut parts = vec![("its arena".to_owned(), u128::from(plan.ranks[number as usize].arena.0))];
    for stage in plan.layout.stages_of(number) {
        let held = &plan.stages[stage as usize];
        for (what, bytes) in
            [("parameters", held.parameters), ("gradients", held.gradients), ("optimizer state", held.optimizer)]
        {
            parts.push((format!("{what} of stage {stage}"), u128::from(bytes.0)));
        }
    }
    parts
}

/// The workspace of every full backward is at least the mean share of each component of its stage.
fn workspaces(plan: &Plan, report: &mut Report) {
    let least: Vec<u64> = plan.stages.iter().map(least_workspace).collect();
    let backwards = (0..)
        .zip(&plan.stages)
        .filter_map(|(stage, held)| Some(([None, Some(stage), Some(stage)], held.b?, format!("B of stage {stage}"))));
    let pairs = plan.pairs.iter().map(|pair| {
        (
            [Some(pair.f), Some(pair.b), Some(pair.b)],
            pair.program,
            format!("F of stage {} beside B of stage {}", pair.f, pair.b),
        )
    });
    for (stages, program, purpose) in backwards.chain(pairs) {
        let [_, _, Some(backward)] = stages else { continue };
        let (least, given) = (least[backward as usize], plan.programs[program as usize].workspace.0);
        if given < least {
            report.add(RULE, || {
                let message = format!(
                    "has a workspace of {given} bytes, but one of its weight gradients alone is handed {least}"
                );
                let action = format!("program {program} ({purpose})");
                Violation::program(RULE, plan, program, Some(stages), action, message)
            });
        }
    }
}

/// The largest mean share: a component's bytes over the units that have one. The embedding is left out: what reaches its
/// weight gradient may be the message that the rank received.
fn least_workspace(stage: &PlanStage) -> u64 {
    let share = |(component, bytes): (&Component, &Bytes)| {
        let units = stage.units.iter().filter(|&&unit| grammar::hands_over(unit, *component)).count();
        if units == 0 { 0 } else { bytes.0.div_ceil(units as u64) }
    };
    stage.held.i_to_w.iter().map(share).max().unwrap_or(0)
}

/// Bytes for people; past 2^64 as the largest number that there is.
fn show(bytes: u128) -> Bytes {
    Bytes(u64::try_from(bytes).unwrap_or(u64::MAX))
}
