//! Rule `memory`: what a rank holds fits its memory at every item.
//!
//! All the time: parameters, gradients and optimizer state of its stages, all slots of all its rings, and one exchange
//! buffer, the largest of its stages. Coming and going with the compute items, which run one after the other: what chunks
//! hold between their actions, and the workspace of a full backward.
//!
//! What an op hands to a weight gradient is not in the plan by op. So of a workspace only this is proved: that it is no
//! less than the mean share of any component, which some op hands over at one time.

use std::collections::BTreeMap;

use crate::ir::{Component, Held};
use crate::plan::{Plan, PlanStage, Task};
use crate::units::Bytes;

use super::buffers::ring_name;
use super::grammar;
use super::report::{Report, Rule, Violation};

const RULE: Rule = Rule::Memory;
/// Parts that a message names.
const NAMED: usize = 4;

/// Checks all programs and all ranks.
pub fn check(plan: &Plan, report: &mut Report) {
    workspaces(plan, report);
    let pairs: BTreeMap<(u32, u32), u32> = plan.pairs.iter().map(|pair| ((pair.f, pair.b), pair.program)).collect();
    let chunks: Vec<Chunk> = plan.stages.iter().map(|stage| Chunk::new(&stage.held)).collect();
    let memory = u128::from(plan.machine.memory.0);
    for number in 0..plan.layout.ranks {
        let mut parts = standing(plan, number);
        let peak = peak(plan, &chunks, &pairs, number);
        parts.push(("activations of its chunks".to_owned(), peak.activations));
        parts.push(("workspace of the backward".to_owned(), peak.workspace));
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
                match peak.item {
                    Some(item) => Violation::item(RULE, plan, number, item, message),
                    None => Violation::rank(RULE, number, "memory", message),
                }
            });
        }
    }
}

/// What a rank holds all the time, by name.
fn standing(plan: &Plan, number: u32) -> Vec<(String, u128)> {
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

/// The most that comes and goes, and the first item that it is there for.
#[derive(Clone, Copy, Default)]
struct Peak {
    item: Option<usize>,
    activations: u128,
    workspace: u128,
}

/// What one chunk of a stage holds, summed over components.
struct Chunk {
    f_to_i: u128,
    f_to_w: u128,
    i_to_w: u128,
}

impl Chunk {
    fn new(held: &Held) -> Self {
        let sum = |parts: &BTreeMap<Component, Bytes>| parts.values().map(|bytes| u128::from(bytes.0)).sum();
        Self { f_to_i: sum(&held.f_to_i), f_to_w: sum(&held.f_to_w), i_to_w: sum(&held.i_to_w) }
    }
}

/// Walks the compute items in their order. Where a plan frees what it never took, other rules have spoken.
fn peak(plan: &Plan, chunks: &[Chunk], pairs: &BTreeMap<(u32, u32), u32>, number: u32) -> Peak {
    let chunk = |stage: u32| &chunks[stage as usize];
    let stored = |stage: u32| chunk(stage).f_to_i + chunk(stage).f_to_w;
    let workspace = |program: Option<u32>| {
        let program = program.and_then(|program| plan.programs.get(program as usize));
        program.map_or(0, |program| u128::from(program.workspace.0))
    };
    let mut peak = Peak::default();
    let mut live = 0_u128;
    for (index, item) in plan.ranks[number as usize].items.iter().enumerate() {
        // Taken when the item starts, let go when it has ended, and needed in between.
        let (taken, freed, workspace) = match item.0 {
            Task::F(s, _) => (stored(s), 0, 0),
            Task::B(s, _) => (0, stored(s), workspace(plan.stages[s as usize].b)),
            Task::I(s, _) => (chunk(s).i_to_w, chunk(s).f_to_i, 0),
            Task::W(s, _) => (0, chunk(s).f_to_w + chunk(s).i_to_w, 0),
            Task::FB(f, b) => (stored(f.0), stored(b.0), workspace(pairs.get(&(f.0, b.0)).copied())),
            _ => continue,
        };
        live += taken;
        if peak.item.is_none() || live + workspace > peak.activations + peak.workspace {
            peak = Peak { item: Some(index), activations: live, workspace };
        }
        live = live.saturating_sub(freed);
    }
    peak
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
