//! The steady state where ops of the two engines slow each other.
//!
//! The search for an order ([`super::search()`]) counts each op at its time with nothing beside it, which no op is below. What an
//! order really gives is found by running it over many repetitions, and the bound counts what must be lost.

use super::super::shop;
use super::{CyclicOp, CyclicProblem, CyclicSchedule};
use crate::ir::{Phase, Stream};
use crate::sim::{Span, StreamOps, run_streams};
use crate::units::Nanos;

/// Repetitions that are run, and those of them that count: after the way in, before the way out.
const REPETITIONS: u64 = 36;
const COUNTED: std::ops::Range<u64> = 12..24;

impl CyclicProblem {
    /// Lets ops slow each other, all of an engine by the same share: the mean over its ops and over those of the other engine,
    /// by their time, of what `beside` says each takes beside each. With one share for all, what must be lost is known before
    /// any order is, and a schedule that loses no more is known to be the best; single pairs of ops differ by less than the
    /// machine model does from measurements.
    pub(super) fn slow_by_means(&mut self, beside: impl Fn(usize, usize) -> Nanos) {
        let ops = &self.ops;
        let on = |engine: Stream| (0..ops.len()).filter(move |&op| ops[op].engine == engine);
        let time = |op: usize| ops[op].duration.as_f64();
        let share = |mine: Stream, theirs: Stream| {
            let (mut lost, mut all) = (0.0, 0.0);
            for op in on(mine) {
                for other in on(theirs) {
                    let weight = time(op) * time(other);
                    lost += weight * (1.0 - time(op) / beside(op, other).as_f64().max(time(op)).max(1.0));
                    all += weight;
                }
            }
            if all > 0.0 { lost / all } else { 0.0 }
        };
        let shares = [share(Stream::Compute, Stream::Comm), share(Stream::Comm, Stream::Compute)];
        let slowed = |op: &CyclicOp| Nanos((op.duration.as_f64() / (1.0 - shares[op.engine as usize])).round() as u64);
        self.beside = self.ops.iter().map(|op| vec![slowed(op); self.ops.len()]).collect();
    }

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

    /// The problem in which ops of an engine, if it is among `[computation, communication]`, take as long as with the other's
    /// beside them all the time, and nothing is slowed beyond that.
    pub fn stretched(&self, engines: [bool; 2]) -> Self {
        let mut stretched = Self { beside: Vec::new(), ..self.clone() };
        for (index, op) in stretched.ops.iter_mut().enumerate().filter(|(_, op)| engines[op.engine as usize]) {
            let others = (0..self.ops.len()).filter(|&other| self.ops[other].engine != op.engine);
            op.duration = others.map(|other| self.beside(index, other)).max().unwrap_or(op.duration);
        }
        stretched
    }

    /// The durations of all ops when those of the engines among `[computation, communication]` lose all the time the least share
    /// that any op of theirs loses beside any other; with [`CyclicProblem::saved`] a bound for whatever runs beside what. In ns.
    pub(super) fn least_stretched(&self, engines: [bool; 2]) -> Vec<Nanos> {
        let Shared { a, b, .. } = self.shared();
        let stretched = |op: &CyclicOp| match engines[op.engine as usize] {
            true => Nanos((op.duration.as_f64() / (1.0 - [a, b][op.engine as usize])) as u64),
            false => op.duration,
        };
        self.ops.iter().map(stretched).collect()
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

    /// Some repetitions of a schedule in launch order: repetition and op.
    pub(super) fn launches(&self, schedule: &CyclicSchedule, repetitions: u64) -> Vec<(u64, usize)> {
        let starts = schedule.starts.iter();
        let mut launches: Vec<(Nanos, u64, usize)> = (0..repetitions)
            .flat_map(|n| starts.clone().enumerate().map(move |(op, &start)| (start + schedule.unslowed * n, n, op)))
            .collect();
        launches.sort_unstable();
        launches.into_iter().map(|(_, n, op)| (n, op)).collect()
    }

    /// A time that some repetitions are not below in any order, from what both engines have to do.
    pub fn span_bound(&self, repetitions: u64) -> Nanos {
        self.repeated(repetitions).load_bound()
    }

    /// The work of some repetitions as that of one; without needs.
    pub(super) fn repeated(&self, repetitions: u64) -> Self {
        let mut all = self.clone();
        all.needs.clear();
        all.ops.iter_mut().for_each(|op| op.duration = op.duration * repetitions);
        all.beside.iter_mut().flatten().for_each(|beside| *beside = *beside * repetitions);
        all
    }

    /// Repetitions, in launch order, with their times.
    fn run(&self, schedule: &CyclicSchedule, repetitions: u64) -> Vec<Run> {
        let launches = self.launches(schedule, repetitions);
        let mut place = vec![vec![0_u32; self.ops.len()]; repetitions as usize];
        for (at, &(n, op)) in (0..).zip(&launches) {
            place[n as usize][op] = at;
        }
        let waits = launches.iter().map(|&(n, op)| {
            let needs = self.needs.iter().filter(|need| need.to == op);
            let made = needs.filter_map(|need| {
                let repetition = u64::try_from(n as i64 - need.distance).ok().filter(|&there| there < repetitions)?;
                Some(place[repetition as usize][need.from])
            });
            made.collect()
        });
        let unrolled =
            Unrolled { problem: self, waits: waits.collect(), ops: launches.iter().map(|launch| launch.1).collect() };
        let spans = run_streams(&unrolled);
        launches.into_iter().zip(spans).map(|((repetition, op), span)| Run { repetition, op, span }).collect()
    }

    /// Whether the engines' loads, not a chain of needs, bound the period.
    pub fn load_is_bound(&self) -> bool {
        self.load_bound() == self.bound()
    }

    /// A period that no order is below, from what both engines have to do: the busier one's load, and what it loses while the
    /// other's work is done beside it. Time lost is counted at the least share that any two ops lose.
    pub(super) fn load_bound(&self) -> Nanos {
        let Shared { compute, comm, a, b } = self.shared();
        // While both run, computation loses at least a share a of its speed, exchanges a share b: see `overlap::bound`.
        let bound = (compute + a * comm / (1.0 - b)).max(comm + b * compute / (1.0 - a));
        Nanos((bound * (1.0 - 1e-12)).ceil() as u64)
    }

    /// A period that no order is below, from chains that must close within it, whose ops are slowed while the other engine
    /// runs.
    ///
    /// With both loads known, at a period T both engines run together for at least o = (computation + exchanges - T) / (1 - a - b),
    /// so exchanges leave computation alone for at most T - exchanges - b o, and likewise the other way round. A chain's
    /// computation c that is alone for u of its time takes at least (c - a u) / (1 - a).
    pub(super) fn slowed_chain_bound(&self) -> Nanos {
        let Shared { compute, comm, a, b } = self.shared();
        let chains = [Phase::F, Phase::I].map(|phase| self.longest_chain(phase));
        let possible = |period: f64| {
            let together = ((compute + comm - period) / (1.0 - a - b)).max(0.0);
            let alone = [period - comm - b * together, period - compute - a * together].map(|time| time.max(0.0));
            chains.iter().all(|[computation, exchange]| {
                let computation = computation.max((computation - a * alone[0]) / (1.0 - a));
                let exchange = exchange.max((exchange - b * alone[1]) / (1.0 - b));
                computation + exchange <= period * (1.0 + 1e-12)
            })
        };
        if a + b >= 1.0 {
            return Nanos::ZERO;
        }
        // What is possible with one period is possible with every longer one.
        let (mut below, mut enough) = (0, compute as u64 + comm as u64);
        while enough - below > 1 {
            let middle = below + (enough - below) / 2;
            match possible(middle as f64) {
                true => enough = middle,
                false => below = middle,
            }
        }
        Nanos(enough)
    }

    /// At a period, the most time that computations, and exchanges, can save for having nothing beside them: see [`super::launches`].
    pub(super) fn saved(&self, period: Nanos) -> [Nanos; 2] {
        let Shared { compute, comm, a, b } = self.shared();
        shop::saved([compute, comm], [a, b], period.as_f64()).map(Nanos)
    }

    /// The least shares of their speed that computations and exchanges lose beside each other.
    pub(super) fn lost(&self) -> [f64; 2] {
        let Shared { a, b, .. } = self.shared();
        [a, b]
    }

    /// Of the longest chain of needs through one layer of a side: time of its computations and of its exchanges. Nothing where
    /// the chain's last op is not read by the next layer's first.
    fn longest_chain(&self, phase: Phase) -> [f64; 2] {
        let side = |op: usize| self.ops[op].phase == phase;
        let mut paths: Vec<[f64; 2]> = Vec::with_capacity(self.ops.len());
        let mut first: Vec<usize> = Vec::with_capacity(self.ops.len());
        for (at, op) in self.ops.iter().enumerate() {
            // Ops read earlier ones of their side.
            let before =
                self.needs.iter().filter(|need| need.to == at && need.distance == 0 && need.from < at && side(at));
            let longest = before.map(|need| need.from).max_by(|one, other| {
                let length = |op: usize| paths[op][0] + paths[op][1];
                length(*one).total_cmp(&length(*other))
            });
            let mut path = longest.map_or([0.0; 2], |before| paths[before]);
            path[op.engine as usize] += op.duration.as_f64();
            paths.push(path);
            first.push(longest.map_or(at, |before| first[before]));
        }
        let closes = |last: usize| {
            let again = |need: &super::Need| need.from == last && need.to == first[last] && need.distance == 1;
            side(last) && self.needs.iter().any(again)
        };
        let closed = (0..self.ops.len()).filter(|&last| closes(last)).map(|last| paths[last]);
        closed.max_by(|one, other| (one[0] + one[1]).total_cmp(&(other[0] + other[1]))).unwrap_or([0.0; 2])
    }

    /// Loads of both engines, and the least share of its speed that an op of each loses beside one of the other.
    fn shared(&self) -> Shared {
        let least = |engine: Stream| {
            let mut least = 1.0_f64;
            for op in (0..self.ops.len()).filter(|&op| self.ops[op].engine == engine) {
                for other in (0..self.ops.len()).filter(|&other| self.ops[other].engine != engine) {
                    least = least.min(1.0 - self.ops[op].duration.as_f64() / self.beside(op, other).as_f64().max(1.0));
                }
            }
            if least < 1.0 { least.max(0.0) } else { 0.0 }
        };
        Shared {
            compute: self.load(Stream::Compute).as_f64(),
            comm: self.load(Stream::Comm).as_f64(),
            a: least(Stream::Compute),
            b: least(Stream::Comm),
        }
    }
}

/// What both engines have to do, in ns, and the shares of speed that computation (a) and exchanges (b) lose beside each other.
struct Shared {
    compute: f64,
    comm: f64,
    a: f64,
    b: f64,
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
