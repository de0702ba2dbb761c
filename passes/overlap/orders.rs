//! Launch orders of chunk programs: those that people wrote by hand, and the search for better ones.

use std::collections::BTreeSet;

use super::cyclic::{self, CyclicProblem};
use super::list;
use crate::ir::{Component, Op, Phase, ProgramKind, ProgramOp, Work};
use crate::job::training::PairOrder;
use crate::machine::Machine;
use crate::units::{Bytes, Nanos};

/// How many arrangements the local search may look at, times the number of ops, from each start: long programs take no
/// longer than short ones.
const LOCAL_SEARCH: usize = 100_000;

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
/// orders; every other program, and `Search`, gets the shortest that is found.
pub fn arrange(kind: ProgramKind, ops: &[Op], machine: &Machine, comm_sms: u32, order: PairOrder) -> Vec<ProgramOp> {
    let duration = |op: &Op, sms: u32| machine.duration(&op.work, sms);
    let times: Vec<Times> = ops
        .iter()
        .map(|op| match op.work.is_exchange() {
            true => Times { alone: duration(op, comm_sms), beside: duration(op, comm_sms) },
            false => Times { alone: duration(op, machine.sms), beside: duration(op, machine.sms - comm_sms) },
        })
        .collect();
    let setting = Setting { ops, times: &times, comm_sms, all_sms: machine.sms };
    let hand_made = |order: PairOrder| Arrangement::new(ops, by_key(ops, &template_keys(ops, launch_order(order))));
    match (kind, order) {
        (ProgramKind::FB, PairOrder::Serial) => hand_made(PairOrder::DeepSeek).one_after_the_other().launch(setting),
        (ProgramKind::FB, PairOrder::DeepSeek | PairOrder::Megatron) => hand_made(order).launch(setting),
        _ => {
            let listed = Arrangement::new(ops, list::order(ops, machine, comm_sms));
            let mut candidates = vec![listed.clone(), listed.one_after_the_other()];
            if kind == ProgramKind::FB {
                let deepseek = hand_made(PairOrder::DeepSeek);
                candidates.push(deepseek.clone().one_after_the_other());
                candidates.extend([deepseek, hand_made(PairOrder::Megatron)]);
                candidates.extend(steady_order(ops, machine, comm_sms).map(|order| Arrangement::new(ops, order)));
            }
            let improved = candidates.into_iter().map(|candidate| improve(candidate, setting));
            // Of equals the first: the list schedule.
            let best = improved.min_by_key(|(time, _)| *time);
            best.map_or_else(Vec::new, |(_, arrangement)| arrangement.launch(setting))
        }
    }
}

/// What is arranged, and on what it is launched.
#[derive(Clone, Copy)]
struct Setting<'a> {
    ops: &'a [Op],
    times: &'a [Times],
    comm_sms: u32,
    all_sms: u32,
}

/// How long an op takes.
#[derive(Clone, Copy)]
struct Times {
    /// With all SMs that it may have.
    alone: Nanos,
    /// With those that communication leaves.
    beside: Nanos,
}

/// Ops in a launch order, with needs beyond their own: two ops that are kept apart do not share the SMs. The ops' work is
/// left out, since arrangements are copied by the thousand; only whether it is an exchange is kept.
#[derive(Clone)]
struct Arrangement {
    ops: Vec<Op>,
    order: Vec<usize>,
}

impl Arrangement {
    fn new(ops: &[Op], order: Vec<usize>) -> Self {
        let without_work = |op: &Op| Op {
            work: match op.work {
                Work::Compute(_) => Work::Compute(Vec::new()),
                Work::Exchange { .. } => Work::Exchange { nvlink: Bytes::ZERO, network: Bytes::ZERO },
                Work::Copy { .. } => Work::Copy { nvlink: Bytes::ZERO },
            },
            needs: op.needs.clone(),
            ..*op
        };
        Self { ops: ops.iter().map(without_work).collect(), order }
    }

    /// The same order, each op after the end of the one before it.
    fn one_after_the_other(mut self) -> Self {
        for pair in self.order.windows(2) {
            self.ops[pair[1]].needs.push(pair[0] as u32);
        }
        self
    }

    /// The program, work left out.
    fn outline(&self, setting: Setting) -> Vec<ProgramOp> {
        list::launch(&self.ops, &self.order, setting.comm_sms, setting.all_sms)
    }

    fn launch(&self, setting: Setting) -> Vec<ProgramOp> {
        let mut program = self.outline(setting);
        for (op, &at) in program.iter_mut().zip(&self.order) {
            op.work = setting.ops[at].work.clone();
        }
        program
    }

    /// How long the program takes: as `sim` times it, from the table of times.
    fn length(&self, setting: Setting) -> Nanos {
        let mut free = [Nanos::ZERO; 2];
        let mut ends: Vec<Nanos> = Vec::with_capacity(self.order.len());
        for (op, &at) in self.outline(setting).iter().zip(&self.order) {
            let time = if op.sms == setting.all_sms { setting.times[at].alone } else { setting.times[at].beside };
            let stream = &mut free[op.stream() as usize];
            let start = op.waits.iter().map(|&wait| ends[wait as usize]).fold(*stream, Nanos::max);
            *stream = start + time;
            ends.push(*stream);
        }
        free[0].max(free[1])
    }

    /// The steps that can be taken from here.
    fn steps(&self, setting: Setting) -> Vec<Step> {
        let mut steps = Vec::new();
        for exchange in [false, true] {
            let line = || self.order.iter().copied().filter(|&op| self.ops[op].work.is_exchange() == exchange);
            steps.extend(line().zip(line().skip(1)).map(|(one, other)| Step::Swap(one, other)));
        }
        let beside = list::beside(&self.outline(setting));
        steps.extend(beside.into_iter().map(|(before, after)| Step::Part(self.order[before], self.order[after])));
        steps
    }

    fn take(&self, step: Step) -> Self {
        let mut next = self.clone();
        match step {
            Step::Swap(one, other) => {
                let mut keys = vec![0; self.ops.len()];
                for (place, &op) in self.order.iter().enumerate() {
                    keys[op] = place;
                }
                keys.swap(one, other);
                next.order = by_key(&self.ops, &keys);
            }
            Step::Part(before, after) => next.ops[after].needs.push(before as u32),
        }
        next
    }
}

/// A small change of an arrangement.
#[derive(Clone, Copy)]
enum Step {
    /// Neighbours of a stream, exchanged.
    Swap(usize, usize),
    /// A computation and an exchange that could run at the same time, kept apart as they are launched.
    Part(usize, usize),
}

/// Takes the best step as long as there is one that shortens the program.
fn improve(mut arrangement: Arrangement, setting: Setting) -> (Nanos, Arrangement) {
    let mut best = arrangement.length(setting);
    let mut tries = LOCAL_SEARCH / arrangement.ops.len().max(1);
    while tries > 0 {
        let mut found = None;
        for step in arrangement.steps(setting).into_iter().take(tries) {
            tries -= 1;
            let next = arrangement.take(step);
            let time = next.length(setting);
            if time < best {
                (best, found) = (time, Some(next));
            }
        }
        match found {
            Some(next) => arrangement = next,
            None => break,
        }
    }
    (best, arrangement)
}

/// A launch order by keys: of the ops whose needs have been launched, the one with the smallest key.
fn by_key<K: Ord + Copy>(ops: &[Op], keys: &[K]) -> Vec<usize> {
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
    let duration = |op: &Op| {
        let sms = if op.work.is_exchange() { comm_sms } else { machine.sms - comm_sms };
        machine.duration(&op.work, sms)
    };
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
