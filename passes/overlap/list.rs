//! List scheduling on two engines.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::ir::{Op, ProgramOp, Stream};
use crate::machine::Machine;
use crate::units::Nanos;

/// A launch order of `ops` (whose `needs` point to earlier entries): whenever an engine is free, of the ops that are ready
/// the one with the longest path to the end starts; ties go to the earlier entry.
pub fn order(ops: &[Op], machine: &Machine, comm_sms: u32) -> Vec<usize> {
    let stream = |op: &Op| if op.work.is_exchange() { Stream::Comm } else { Stream::Compute };
    let overlaps = ops.iter().any(|op| op.work.is_exchange()) && ops.iter().any(|op| !op.work.is_exchange());
    let compute_sms = if overlaps { machine.sms - comm_sms } else { machine.sms };
    let sms = |op: &Op| if op.work.is_exchange() { comm_sms } else { compute_sms };
    let durations: Vec<Nanos> = ops.iter().map(|op| machine.duration(&op.work, sms(op))).collect();

    // Longest path from the start of each op to the end of all.
    let mut path = durations.clone();
    for at in (0..ops.len()).rev() {
        for &need in &ops[at].needs {
            let through = durations[need as usize] + path[at];
            path[need as usize] = path[need as usize].max(through);
        }
    }

    let mut waiting: Vec<usize> = ops.iter().map(|op| op.needs.len()).collect();
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); ops.len()];
    for (at, op) in ops.iter().enumerate() {
        op.needs.iter().for_each(|&need| readers[need as usize].push(at));
    }
    let mut ready_at = vec![Nanos::ZERO; ops.len()];
    let mut engines = [Engine::default(), Engine::default()];
    for at in (0..ops.len()).filter(|&at| waiting[at] == 0) {
        engines[stream(&ops[at]) as usize].pending.insert((Nanos::ZERO, at));
    }
    let mut order: Vec<usize> = Vec::with_capacity(ops.len());
    while let Some((start, _, at)) = engines.iter_mut().filter_map(|engine| engine.next(&path)).min() {
        let end = start + durations[at];
        engines[stream(&ops[at]) as usize].run(at, ready_at[at], path[at], end);
        order.push(at);
        for &reader in &readers[at] {
            ready_at[reader] = ready_at[reader].max(end);
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                engines[stream(&ops[reader]) as usize].pending.insert((ready_at[reader], reader));
            }
        }
    }
    order
}

/// An engine and the ops that could run on it.
#[derive(Default)]
struct Engine {
    /// When its last op ends.
    free: Nanos,
    /// Ready at some moment, possibly after `free`.
    pending: BTreeSet<(Nanos, usize)>,
    /// Ready when the engine is free, the longest path first.
    available: BTreeSet<(Reverse<Nanos>, usize)>,
}

impl Engine {
    /// The op that it would start next, as (start, longest path first, op).
    fn next(&mut self, path: &[Nanos]) -> Option<(Nanos, Reverse<Nanos>, usize)> {
        while let Some(&(ready, at)) = self.pending.first().filter(|(ready, _)| *ready <= self.free) {
            self.pending.remove(&(ready, at));
            self.available.insert((Reverse(path[at]), at));
        }
        if let Some(&(path, at)) = self.available.first() {
            return Some((self.free, path, at));
        }
        // Idle until the first becomes ready; an op of the other engine may still bring one that is ready sooner.
        let &(start, _) = self.pending.first()?;
        let together = self.pending.iter().take_while(|(ready, _)| *ready == start);
        together.map(|&(_, at)| (start, Reverse(path[at]), at)).min()
    }

    fn run(&mut self, at: usize, ready: Nanos, path: Nanos, end: Nanos) {
        self.available.remove(&(Reverse(path), at));
        self.pending.remove(&(ready, at));
        self.free = end;
    }
}

/// The program of a launch order: waits only where the streams do not give the order by themselves. Each exchange gets its
/// number of `sms`; a computation gets what the largest exchange that may run beside it leaves, else all.
pub fn launch(ops: &[Op], order: &[usize], sms: &[u32], all_sms: u32) -> Vec<ProgramOp> {
    let mut place = vec![0usize; ops.len()];
    for (position, &at) in order.iter().enumerate() {
        place[at] = position;
    }
    let mut program: Vec<ProgramOp> = Vec::with_capacity(order.len());
    // Per stream: of the other one, the position after the last op that has certainly ended.
    let mut known = [0usize; 2];
    for &at in order {
        let op = &ops[at];
        let exchange = op.work.is_exchange();
        let mine = usize::from(exchange);
        let crossing =
            op.needs.iter().map(|&need| need as usize).filter(|&need| ops[need].work.is_exchange() != exchange);
        let wait = crossing.map(|need| place[need]).max().filter(|&need| need >= known[mine]);
        known[mine] = wait.map_or(known[mine], |need| need + 1);
        program.push(ProgramOp {
            component: op.component,
            phase: op.phase,
            unit: op.unit,
            step: op.step,
            tokens: op.tokens,
            work: op.work.clone(),
            sms: if exchange { sms[at] } else { all_sms },
            waits: wait.map(|need| need as u32).into_iter().collect(),
        });
    }
    for (before, after) in beside(&program) {
        let exchange = if program[before].stream() == Stream::Comm { before } else { after };
        let computation = before + after - exchange;
        program[computation].sms = program[computation].sms.min(all_sms - program[exchange].sms);
    }
    program
}

/// Pairs of a computation and an exchange that may run at the same time, as positions in the program, the one that is
/// launched first in front.
pub fn beside(program: &[ProgramOp]) -> Vec<(usize, usize)> {
    // Per op: of the other stream, the position after the last op that has certainly ended when it starts.
    let mut known = [0usize; 2];
    let mut seen: Vec<usize> = Vec::with_capacity(program.len());
    for op in program {
        let known = &mut known[op.stream() as usize];
        *known = op.waits.iter().map(|&wait| wait as usize + 1).fold(*known, usize::max);
        seen.push(*known);
    }
    let positions = |stream: Stream| (0..program.len()).filter(move |&position| program[position].stream() == stream);
    let exchanges: Vec<usize> = positions(Stream::Comm).collect();
    let mut pairs = Vec::new();
    for position in positions(Stream::Compute) {
        // Those that may not have ended when this op starts, as long as they need not wait for it: what exchanges have seen
        // only grows along their stream.
        let open = exchanges.partition_point(|&exchange| exchange < seen[position]);
        let beside = exchanges[open..].iter().take_while(|&&exchange| seen[exchange] <= position);
        pairs.extend(beside.map(|&exchange| (position.min(exchange), position.max(exchange))));
    }
    pairs.sort_unstable();
    pairs
}
