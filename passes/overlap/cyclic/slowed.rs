//! The steady state where ops of the two engines slow each other.
//!
//! The search for an order ([`super::search()`]) counts each op at its time with nothing beside it, which no op is below. What an
//! order really gives is found by running it over many repetitions, and the bound counts what must be lost.

use super::{CyclicProblem, CyclicSchedule};
use crate::ir::Stream;
use crate::sim::{Span, StreamOps, run_streams};
use crate::units::Nanos;

/// Repetitions that are run, and those of them that count: after the way in, before the way out.
const REPETITIONS: u64 = 36;
const COUNTED: std::ops::Range<u64> = 12..24;

impl CyclicProblem {
    /// Whether ops slow each other.
    pub fn is_slowed(&self) -> bool {
        let slower = |op: usize, other: usize| self.beside(op, other) > self.ops[op].duration;
        (0..self.ops.len()).any(|op| (0..self.ops.len()).any(|other| slower(op, other)))
    }

    /// How long `op` takes with `other` beside it all the time.
    pub fn beside(&self, op: usize, other: usize) -> Nanos {
        let alone = self.ops[op].duration;
        self.beside.get(op).and_then(|row| row.get(other)).map_or(alone, |beside| alone.max(*beside))
    }

    /// The mean period when ops are launched in the order of the schedule's starts, repetition after repetition, and slow each
    /// other; rounded up.
    pub fn slowed_period(&self, schedule: &CyclicSchedule) -> Nanos {
        let runs = self.run(schedule, REPETITIONS);
        let end = |repetition: u64| {
            runs.iter().filter(|run| run.repetition == repetition).map(|run| run.span.end).max().unwrap_or_default()
        };
        let counted = COUNTED.end - COUNTED.start;
        Nanos(end(COUNTED.end).saturating_sub(end(COUNTED.start)).0.div_ceil(counted))
    }

    /// Time from the first start to the last end of `repetitions` repetitions, ops launched in the order of the schedule's
    /// starts and run as soon as possible.
    pub fn span(&self, schedule: &CyclicSchedule, repetitions: u64) -> Nanos {
        self.run(schedule, repetitions).into_iter().map(|run| run.span.end).max().unwrap_or_default()
    }

    /// What runs in one period, from the start of the first op launched in it: ops (by index) with their times in it. One that
    /// goes on into the next period, or comes from the one before, is cut off there and comes twice.
    pub fn one_period(&self, schedule: &CyclicSchedule) -> Vec<(usize, Span)> {
        let runs = self.run(schedule, REPETITIONS);
        let first = runs.iter().find(|run| run.repetition == COUNTED.start).map_or(Nanos::ZERO, |run| run.span.start);
        let last = first + schedule.period;
        let inside = runs.into_iter().filter(|run| run.span.end > first && run.span.start < last).map(|run| {
            let span = Span { start: run.span.start.max(first) - first, end: run.span.end.min(last) - first };
            (run.op, span)
        });
        inside.collect()
    }

    /// Repetitions, in launch order, with their times.
    fn run(&self, schedule: &CyclicSchedule, repetitions: u64) -> Vec<Run> {
        let starts = schedule.starts.iter();
        let mut launches: Vec<(Nanos, u64, usize)> = (0..repetitions)
            .flat_map(|n| starts.clone().enumerate().map(move |(op, &start)| (start + schedule.unslowed * n, n, op)))
            .collect();
        launches.sort_unstable();
        let mut place = vec![vec![0_u32; self.ops.len()]; repetitions as usize];
        for (at, &(_, n, op)) in (0..).zip(&launches) {
            place[n as usize][op] = at;
        }
        let waits = launches.iter().map(|&(_, n, op)| {
            let needs = self.needs.iter().filter(|need| need.to == op);
            let made = needs.filter_map(|need| {
                let repetition = u64::try_from(n as i64 - need.distance).ok().filter(|&there| there < repetitions)?;
                Some(place[repetition as usize][need.from])
            });
            made.collect()
        });
        let unrolled = Unrolled { problem: self, waits: waits.collect(), ops: launches.iter().map(|l| l.2).collect() };
        let spans = run_streams(&unrolled);
        launches.into_iter().zip(spans).map(|((_, repetition, op), span)| Run { repetition, op, span }).collect()
    }

    /// Whether the engines' loads, not a chain of needs, bound the period.
    pub fn load_is_bound(&self) -> bool {
        self.load_bound() == self.bound()
    }

    /// A period that no order is below, from what both engines have to do: the busier one's load, and what it loses while the
    /// other's work is done beside it. Time lost is counted at the least share that any two ops lose.
    pub(super) fn load_bound(&self) -> Nanos {
        let (compute, comm) = (self.load(Stream::Compute).as_f64(), self.load(Stream::Comm).as_f64());
        let least = |engine: Stream| {
            let mut least = 1.0_f64;
            for op in (0..self.ops.len()).filter(|&op| self.ops[op].engine == engine) {
                for other in (0..self.ops.len()).filter(|&other| self.ops[other].engine != engine) {
                    least = least.min(1.0 - self.ops[op].duration.as_f64() / self.beside(op, other).as_f64().max(1.0));
                }
            }
            if least < 1.0 { least.max(0.0) } else { 0.0 }
        };
        // While both run, computation loses at least a share a of its speed, exchanges a share b: see `overlap::bound`.
        let (a, b) = (least(Stream::Compute), least(Stream::Comm));
        let bound = (compute + a * comm / (1.0 - b)).max(comm + b * compute / (1.0 - a));
        Nanos((bound * (1.0 - 1e-12)).ceil() as u64)
    }
}

/// An op of a repetition.
struct Run {
    repetition: u64,
    op: usize,
    span: Span,
}

/// Repetitions of the pair, in launch order.
struct Unrolled<'a> {
    problem: &'a CyclicProblem,
    ops: Vec<usize>,
    waits: Vec<Vec<u32>>,
}

impl StreamOps for Unrolled<'_> {
    fn count(&self) -> usize {
        self.ops.len()
    }

    fn stream(&self, op: usize) -> Stream {
        self.problem.ops[self.ops[op]].engine
    }

    fn waits(&self, op: usize) -> &[u32] {
        &self.waits[op]
    }

    fn alone(&self, op: usize) -> Nanos {
        self.problem.ops[self.ops[op]].duration
    }

    fn beside(&self, op: usize, other: usize) -> Nanos {
        self.problem.beside(self.ops[op], self.ops[other])
    }
}
