//! Launch orders of chunk programs: those that people wrote by hand, and the search for better ones.

use std::collections::BTreeSet;

use super::arrangement::{Arrangement, TimeTable, improve};
use super::cyclic::{self, CyclicProblem};
use super::{Budget, list};
use crate::ir::{Component, Op, Phase, ProgramKind, ProgramOp};
use crate::job::training::PairOrder;
use crate::machine::Machine;
use crate::units::Nanos;

/// How many starting points the local search begins from: the shortest.
const WORTH_IMPROVING: usize = 3;

/// How hard to look for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// The best starting point, to see whether more is worth it.
    Glance,
    /// With local search.
    Search,
}

/// Launch order of one layer pair; ops that a model does not have are passed over. The streams follow from the components.
///
/// `DeepSeek`: as in DeepSeek-V3's published training trace. `Megatron`: as in Megatron-LM's combined 1F1B. `Serial` and
/// `Search` have none: the one runs everything one after the other, the other finds its own.
pub fn launch_order(order: PairOrder) -> &'static [(Component, Phase)] {
    use Component::{Attention, Combine, Dispatch, Mlp};
    use Phase::{F, I, W};
    match order {
        PairOrder::DeepSeek => &[
            (Combine, I),
            (Attention, F),
            (Mlp, I),
            (Dispatch, F),
            (Dispatch, I),
            (Mlp, W),
            (Mlp, F),
            (Attention, I),
            (Attention, W),
            (Combine, F),
        ],
        PairOrder::Megatron => &[
            (Combine, I),
            (Attention, F),
            (Mlp, I),
            (Dispatch, F),
            (Mlp, W),
            (Dispatch, I),
            (Mlp, F),
            (Combine, F),
            (Attention, I),
            (Attention, W),
        ],
        PairOrder::Serial | PairOrder::Search => &[],
    }
}

/// The program of `ops` (whose `needs` point to earlier entries) in the order that is asked for. Only pairs have hand-made
/// orders; every other program, and `Search`, gets the shortest that is found. Exchanges get `budget.sms`, or, where each may
/// have its own number, what the search finds for them.
pub fn arrange(
    kind: ProgramKind,
    ops: &[Op],
    machine: &Machine,
    budget: &Budget,
    order: PairOrder,
    effort: Effort,
) -> Vec<ProgramOp> {
    let table = TimeTable::new(ops, machine, budget);
    let new = |order: Vec<usize>| Arrangement::new(ops, order, budget.sms);
    let hand_made = |order: PairOrder| new(by_key(ops, &template_keys(ops, launch_order(order))));
    match (kind, order) {
        (ProgramKind::FB, PairOrder::Serial) => {
            hand_made(PairOrder::DeepSeek).one_after_the_other().launch(ops, &table)
        }
        (ProgramKind::FB, PairOrder::DeepSeek | PairOrder::Megatron) => hand_made(order).launch(ops, &table),
        _ => {
            let listed = new(list::order(ops, machine, budget.sms));
            let mut candidates = vec![listed.clone(), listed.one_after_the_other()];
            if kind == ProgramKind::FB {
                let deepseek = hand_made(PairOrder::DeepSeek);
                candidates.push(deepseek.clone().one_after_the_other());
                candidates.extend([deepseek, hand_made(PairOrder::Megatron)]);
                candidates.extend(steady_order(ops, machine, budget.sms).map(new));
            }
            // Of equals the first: the list schedule.
            candidates.sort_by_cached_key(|candidate| candidate.length(&table));
            if effort == Effort::Glance {
                candidates.truncate(1);
                return candidates.pop().map_or_else(Vec::new, |best| best.launch(ops, &table));
            }
            candidates.truncate(WORTH_IMPROVING);
            let improved = candidates.into_iter().map(|candidate| improve(candidate, &table));
            let best = improved.min_by_key(|(time, _)| *time);
            best.map_or_else(Vec::new, |(_, arrangement)| arrangement.launch(ops, &table))
        }
    }
}

/// How long a program takes in the list schedule, in series, or as DeepSeek does it, whichever is the shortest.
pub fn glance(kind: ProgramKind, ops: &[Op], machine: &Machine, budget: &Budget) -> Nanos {
    let table = TimeTable::new(ops, machine, budget);
    let new = |order: Vec<usize>| Arrangement::new(ops, order, budget.sms);
    let listed = new(list::order(ops, machine, budget.sms));
    let best = listed.length(&table).min(listed.one_after_the_other().length(&table));
    match kind {
        ProgramKind::FB => {
            let by_hand = by_key(ops, &template_keys(ops, launch_order(PairOrder::DeepSeek)));
            best.min(new(by_hand).length(&table))
        }
        _ => best,
    }
}

/// A launch order by keys: of the ops whose needs have been launched, the one with the smallest key.
pub(super) fn by_key<K: Ord + Copy>(ops: &[Op], keys: &[K]) -> Vec<usize> {
    let mut waiting: Vec<usize> = ops.iter().map(|op| op.needs.len()).collect();
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); ops.len()];
    for (at, op) in ops.iter().enumerate() {
        op.needs.iter().for_each(|&need| readers[need as usize].push(at));
    }
    let mut ready: BTreeSet<(K, usize)> =
        (0..ops.len()).filter(|&at| waiting[at] == 0).map(|at| (keys[at], at)).collect();
    let mut order = Vec::with_capacity(ops.len());
    while let Some((_, at)) = ready.pop_first() {
        order.push(at);
        for &reader in &readers[at] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.insert((keys[reader], reader));
            }
        }
    }
    order
}

/// For each op which layer pair it belongs to: units of the forward counted from the first, of the backward from the last.
fn pair_numbers(ops: &[Op]) -> Vec<u32> {
    let last = ops.iter().filter(|op| op.phase != Phase::F).map(|op| op.unit).max().unwrap_or(0);
    ops.iter().map(|op| if op.phase == Phase::F { op.unit } else { last - op.unit }).collect()
}

/// Keys by layer pair and place in a hand-made order. What the order does not know (embedding, head) goes first in F and I,
/// last in W.
fn template_keys(ops: &[Op], template: &[(Component, Phase)]) -> Vec<(u32, usize)> {
    let place = |op: &Op| {
        let known = template.iter().position(|&part| part == (op.component, op.phase));
        known.map_or(if op.phase == Phase::W { template.len() } else { 0 }, |place| place + 1)
    };
    pair_numbers(ops).into_iter().zip(ops).map(|(pair, op)| (pair, place(op))).collect()
}

/// The order of the best steady state of the program's most frequent layer pair, repeated.
fn steady_order(ops: &[Op], machine: &Machine, comm_sms: u32) -> Option<Vec<usize>> {
    let duration = |op: &Op| machine.duration(&op.work, machine.sms_of(&op.work, comm_sms));
    // The middle unit of each side that has experts stands for all.
    let middle = |phase: Phase| {
        let with_experts: Vec<u32> = ops
            .iter()
            .filter(|op| op.phase == phase && op.component == Component::Dispatch)
            .map(|op| op.unit)
            .collect();
        with_experts.get(with_experts.len() / 2).copied()
    };
    let (forward, backward) = (middle(Phase::F)?, middle(Phase::I)?);
    let problem = CyclicProblem::layer_pair(|component, phase| {
        let unit = if phase == Phase::F { forward } else { backward };
        let part = ops.iter().filter(|op| (op.component, op.phase, op.unit) == (component, phase, unit));
        part.map(duration).sum()
    });
    let hand_made = [PairOrder::DeepSeek, PairOrder::Megatron].map(|order| problem.indices(launch_order(order)));
    let starts = [hand_made[0].as_slice(), hand_made[1].as_slice()];
    let found = cyclic::search(&problem, &starts, cyclic::Limits::default())?;
    let keys: Vec<Nanos> = pair_numbers(ops)
        .into_iter()
        .zip(ops)
        .map(|(pair, op)| {
            let part = problem.ops.iter().position(|part| (part.component, part.phase) == (op.component, op.phase));
            found.period * u64::from(pair) + part.map_or(Nanos::ZERO, |part| found.starts[part])
        })
        .collect();
    Some(by_key(ops, &keys))
}
