//! Little's law: how many micro-batches are between their F and their I on a rank, and for how long, against how many can be.

use super::heads::Heads;
use super::lines::{Lines, Step};
use super::tails::Tails;
use crate::ir::Problem;
use crate::units::Nanos;

/// No makespan is below it, if on each rank at most `alone` forwards, and as many backwards, are alone, and all makespans are at
/// least `proved`.
///
/// What chunks weigh × the time for which they do fits under the most that they may weigh together. Pairs make the ways of both
/// micro-batches that they have longer, so a rank that saves time by pairs makes the others more crowded.
pub(super) fn bound(
    problem: &Problem,
    lines: &Lines,
    heads: &Heads,
    tails: &Tails,
    alone: &[usize],
    proved: Nanos,
) -> Nanos {
    let crowd = Crowd { problem, lines, heads, tails, alone, proved };
    let by_memory = |rank| problem.memory.as_ref().map(|_| crowd.by_memory(rank));
    let ranks = (0..lines.on_rank.len()).step_by(lines.on_rank.len().div_ceil(RANKS));
    let ranks = ranks.flat_map(|rank| [by_memory(rank), crowd.by_pairs(rank)]);
    ranks.flatten().max().unwrap_or(Nanos::ZERO)
}

/// So many ranks are looked at, spread evenly: each looks at all others.
const RANKS: usize = 64;

struct Crowd<'a> {
    problem: &'a Problem,
    lines: &'a Lines,
    heads: &'a Heads,
    tails: &'a Tails,
    alone: &'a [usize],
    proved: Nanos,
}

/// What weighs on a rank, in one unit.
struct Weights {
    /// Per stage, of a chunk: for as long as it is counted.
    between: Vec<u128>,
    /// Per stage: from the end of I to the end of W.
    waiting: Vec<u128>,
    /// Chunks are counted from the start of F to the end of I; else from the end of F to the start of the action that has I.
    with_ends: bool,
}

impl Crowd<'_> {
    /// Chunks hold memory from F to I, and then what W reads till W.
    fn by_memory(&self, rank: usize) -> Nanos {
        let Some(memory) = &self.problem.memory else { return Nanos::ZERO };
        let between = memory.stages.iter().map(|stage| u128::from(stage.activation)).collect();
        let waiting = memory.stages.iter().map(|stage| u128::from(stage.for_weights.min(stage.activation))).collect();
        let weights = Weights { between, waiting, with_ends: true };
        self.rank(rank, u128::from(memory.limits[rank]), &weights)
    }

    /// A forward in a pair makes one more micro-batch that is behind its F, and one less that is before its backward. So no more
    /// are between the two than have run F alone, and than have yet to run the backward alone.
    fn by_pairs(&self, rank: usize) -> Option<Nanos> {
        let stages = self.problem.stages.len();
        let weights = Weights { between: vec![1; stages], waiting: vec![0; stages], with_ends: false };
        (self.pairs(rank) > 0).then(|| self.rank(rank, self.alone[rank] as u128, &weights))
    }

    /// The least pairs of a rank.
    fn pairs(&self, rank: usize) -> usize {
        let chunks: usize = self.lines.on_rank[rank].iter().map(|&(line, _)| self.lines.lines[line].count).sum();
        chunks.saturating_sub(self.alone[rank])
    }

    fn rank(&self, rank: usize, limit: u128, weights: &Weights) -> Nanos {
        let (lines, heads, tails) = (self.lines, self.heads, self.tails);
        // Weight × time of all chunks, and what comes and goes at the ends of the timetable.
        let mut area = 0_u128;
        let (mut comes, mut goes) = (Vec::new(), Vec::new());
        for &(at, stage) in &lines.on_rank[rank] {
            let line = &lines.lines[at];
            let (between, waiting) = (weights.between[stage], weights.waiting[stage]);
            let input = line.input(stage);
            let inside = line.reach[input].saturating_sub(line.reach[stage]);
            let way = if weights.with_ends {
                inside + line.steps[input].least
            } else {
                inside.saturating_sub(line.steps[stage].least)
            };
            let waits = line.chunks[stage].backward.saturating_sub(line.steps[input].least);
            area += (between * u128::from(way.0) + waiting * u128::from(waits.0)) * line.count as u128;
            let coming = |k| if weights.with_ends { heads.start(at, stage, k) } else { heads.end(at, stage, k) };
            let going = |q| if weights.with_ends { tails.end(at, input, q) } else { tails.start(at, input, q) };
            comes.extend((0..line.count).map(|k| (coming(k), between)));
            goes.extend((0..line.count).map(|q| (going(q), between - waiting)));
            goes.extend((0..line.count).map(|q| (tails.weights_end(at, stage, q), waiting)));
        }
        let (Some(before), Some(after)) = (ramp(comes, limit), ramp(goes, limit)) else { return Nanos::ZERO };
        for other in 0..lines.on_rank.len() {
            let pairs = self.pairs(other);
            if pairs > 0 {
                area += self.longer_by_pairs(rank, other, pairs, weights);
            }
        }
        // The two ends are apart, unless the makespan is below their sum.
        let missing = if before.until + after.until <= self.proved {
            before.missing + after.missing
        } else if before.until.max(after.until) <= self.proved {
            before.missing.max(after.missing)
        } else {
            0
        };
        let needs = (area + missing).checked_div(limit).unwrap_or(u128::MAX);
        Nanos(u64::try_from(needs).unwrap_or(u64::MAX))
    }

    /// What so many pairs on `other` add, at least, to weight × time on `rank`: those of the forwards, and of the backwards, that
    /// add least.
    fn longer_by_pairs(&self, rank: usize, other: usize, pairs: usize, weights: &Weights) -> u128 {
        // On the rank, of a micro-batch that is at a stage on its way down or home.
        let weight = |at: usize, until: usize| -> u128 {
            let counts = |stage: usize| stage < until || (weights.with_ends && stage == until);
            let on_way = self.lines.on_rank[rank].iter().filter(|&&(line, stage)| line == at && counts(stage));
            on_way.map(|&(_, stage)| weights.between[stage]).sum()
        };
        let longer = |step: &Step| u128::from(step.pair.saturating_sub(step.least).0);
        let (mut forwards, mut backwards) = (Vec::new(), Vec::new());
        for &(at, stage) in &self.lines.on_rank[other] {
            let line = &self.lines.lines[at];
            let (weight, input) = (weight(at, stage), &line.steps[line.input(stage)]);
            forwards.push((longer(&line.steps[stage]) * weight, line.count));
            // On its own rank, W is in the pair and need not wait.
            let waits =
                if rank == other { line.chunks[stage].backward.saturating_sub(input.least) } else { Nanos::ZERO };
            let waiting = weights.waiting[stage] * u128::from(waits.0);
            backwards.push(((longer(input) * weight).saturating_sub(waiting), line.count));
        }
        least(forwards, pairs) + least(backwards, pairs)
    }
}

/// The sum of the `take` smallest of values that there are so many of.
fn least(mut values: Vec<(u128, usize)>, mut take: usize) -> u128 {
    values.sort_unstable();
    let mut sum = 0;
    for (value, count) in values {
        let taken = count.min(take);
        sum += value * taken as u128;
        take -= taken;
    }
    sum
}

/// One end of the timetable.
struct Ramp {
    /// Limit × time that cannot be used.
    missing: u128,
    /// How long it is.
    until: Nanos,
}

/// `changes`: from when on how much more may be there. `None`: it never comes to the limit.
fn ramp(mut changes: Vec<(Nanos, u128)>, limit: u128) -> Option<Ramp> {
    changes.sort_unstable();
    let (mut missing, mut there, mut until) = (0, 0, Nanos::ZERO);
    for (time, more) in changes {
        missing += limit.saturating_sub(there) * u128::from(time.saturating_sub(until).0);
        until = time;
        there += more;
        if there >= limit {
            return Some(Ramp { missing, until });
        }
    }
    None
}
