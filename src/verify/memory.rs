//! Rule `memory`: everything that a rank holds at the same time fits its memory.
//!
//! That is: parameters, gradients and optimizer state of its stages, all slots of all its rings, and the exchange buffer
//! of the chunk program that runs, of which there is one at a time.

use crate::plan::Plan;
use crate::units::Bytes;

use super::buffers::ring_name;
use super::report::{Report, Rule, Violation};

/// Parts that a message names.
const NAMED: usize = 3;

/// Checks all ranks.
pub fn check(plan: &Plan, report: &mut Report) {
    for number in 0..plan.layout.ranks {
        let parts = parts(plan, number);
        let total: u128 = parts.iter().map(|part| part.1).sum();
        let memory = u128::from(plan.machine.memory.0);
        if total > memory {
            report.add(Rule::Memory, || {
                let mut parts = parts;
                // Stable: equal parts stay in the order of the plan.
                parts.sort_by(|a, b| b.1.cmp(&a.1));
                let named = |(name, bytes): &(String, u128)| format!("{name} {}", show(*bytes));
                let largest: Vec<String> = parts.iter().take(NAMED).map(named).collect();
                let message = format!(
                    "needs {total} bytes, {} more than the {memory} bytes that it has; most of it is {}",
                    show(total - memory),
                    largest.join(", ")
                );
                Violation::rank(Rule::Memory, number, "memory", message)
            });
        }
    }
}

/// Everything that a rank holds, by name.
fn parts(plan: &Plan, number: u32) -> Vec<(String, u128)> {
    let mut parts = Vec::new();
    let mut exchange = 0;
    for stage in plan.layout.stages_of(number) {
        let held = &plan.stages[stage as usize];
        for (what, bytes) in
            [("parameters", held.parameters), ("gradients", held.gradients), ("optimizer state", held.optimizer)]
        {
            parts.push((format!("{what} of stage {stage}"), u128::from(bytes.0)));
        }
        exchange = exchange.max(u128::from(held.exchange_buffer.0));
    }
    for ring in &plan.ranks[number as usize].rings {
        parts.push((ring_name(ring.of), u128::from(ring.slots) * u128::from(ring.bytes.0)));
    }
    parts.push(("exchange buffer".to_owned(), exchange));
    parts
}

/// Bytes for people; past 2^64 as the largest number that there is.
fn show(bytes: u128) -> Bytes {
    Bytes(u64::try_from(bytes).unwrap_or(u64::MAX))
}
