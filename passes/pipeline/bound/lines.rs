//! The pipeline as the bounds see it: lines of steps, with the least that each can take.
//!
//! A *line* is the way that micro-batches of one direction go: F of the first stage to the last, then I of the last stage to
//! the first. W is not a step; nothing reads what it makes.
//!
//! **Micro-batches of a line are interchangeable**, so a bound may number them on each step in the order in which they come,
//! and the `k`-th on a step reads what the `k`-th on the step before made. For, take any timetable: each micro-batch is on a
//! step a least time after it was on the step before, so the `k`-th smallest of the later times is that much after the
//! `k`-th smallest of the earlier ones. To give the `k`-th action of each step to micro-batch `k` changes no time, and no
//! memory, as chunks of a stage hold the same.

use crate::ir::{ChunkId, Problem};
use crate::units::Nanos;

/// The lines of a problem.
pub(in crate::passes::pipeline) struct Lines {
    /// One, or two when bidirectional.
    pub lines: Vec<Line>,
    /// Per rank, the chunks that it runs: line and stage.
    pub on_rank: Vec<Vec<(usize, usize)>>,
}

/// Micro-batches that go the same way.
pub(in crate::passes::pipeline) struct Line {
    /// How many.
    pub count: usize,
    /// F of stages 0, 1, …, then I of the last stage, …, 0.
    pub steps: Vec<Step>,
    /// Per stage.
    pub chunks: Vec<Chunk>,
}

/// F or I of a stage.
pub(in crate::passes::pipeline) struct Step {
    /// Where it runs.
    pub rank: usize,
    /// Of which stage.
    pub stage: usize,
    /// The message from the step before.
    pub hop: Nanos,
    /// The least that an action takes which has it.
    pub least: Nanos,
    /// The nearest steps before it on its rank, at most [`NEAR`].
    pub before: Vec<usize>,
    /// The nearest steps behind it on its rank, at most [`NEAR`].
    pub behind: Vec<usize>,
}

/// What a chunk takes of its rank's time and memory.
pub(in crate::passes::pipeline) struct Chunk {
    /// With what overlapping saves taken off the backward.
    pub shares: Shares,
    /// With what overlapping saves taken off F.
    pub shares_off_forward: Shares,
    /// The least from the start of the action that has I to the end of W.
    pub backward: Nanos,
    /// F starts only when I of the micro-batch that is so many before it has ended.
    pub slots: Option<usize>,
    /// F starts only when W of the micro-batch that is so many before it has ended.
    pub slots_for_weights: Option<usize>,
}

/// Shares of F, I and W in their rank's time: an action takes at least the shares of what it has, whether B is whole or split
/// and F overlapped or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::passes::pipeline) struct Shares {
    pub f: Nanos,
    pub i: Nanos,
    pub w: Nanos,
}

/// So many steps of a rank are taken into account at a step on each side. Ranks with many stages would take long otherwise.
const NEAR: usize = 8;

impl Lines {
    /// Reads them from a problem, which has a micro-batch and a stage.
    pub fn new(problem: &Problem) -> Self {
        let layout = &problem.layout;
        let ups = (0..layout.micro_batches).filter(|&m| layout.direction(m) == 1).count();
        let downs = layout.micro_batches as usize - ups;
        let samples = [(0, downs), (layout.micro_batches - 1, ups)];
        let samples: Vec<(u32, usize)> = samples.into_iter().filter(|&(_, count)| count > 0).collect();
        let mut on_rank = vec![Vec::new(); layout.ranks as usize];
        for (line, &(sample, _)) in samples.iter().enumerate() {
            for stage in 0..layout.stages {
                on_rank[layout.rank_of(ChunkId::new(stage, sample)) as usize].push((line, stage as usize));
            }
        }
        let lines = samples.iter().map(|&(sample, count)| Line::new(problem, &on_rank, sample, count)).collect();
        Self { lines, on_rank }
    }
}

impl Line {
    /// The line of micro-batch `sample`.
    fn new(problem: &Problem, on_rank: &[Vec<(usize, usize)>], sample: u32, count: usize) -> Self {
        let stages = problem.layout.stages as usize;
        let rank = |stage: usize| problem.layout.rank_of(ChunkId::new(stage as u32, sample)) as usize;
        let costs: Vec<Costs> = (0..stages).map(|stage| Costs::new(problem, &on_rank[rank(stage)], stage)).collect();
        let stage_of = |step: usize| step.min(2 * stages - 1 - step);
        let step = |at: usize| {
            let stage = stage_of(at);
            let on_its_rank = |other: &usize| rank(stage_of(*other)) == rank(stage);
            let hop = match at {
                0 => Nanos::ZERO,
                _ if at == stages => Nanos::ZERO,
                _ if at < stages => problem.hop(stage as u32 - 1, sample),
                _ => problem.hop(stage as u32, sample),
            };
            Step {
                rank: rank(stage),
                stage,
                hop,
                least: if at < stages { costs[stage].forward } else { costs[stage].input },
                before: (0..at).rev().filter(on_its_rank).take(NEAR).collect(),
                behind: (at + 1..2 * stages).filter(on_its_rank).take(NEAR).collect(),
            }
        };
        let chunk = |stage: usize| {
            // The micro-batch holds its chunks of earlier stages on the rank, too, when it comes to this one.
            let held = (0..=stage).filter(|&other| rank(other) == rank(stage));
            let (slots, slots_for_weights) = slots(problem, rank(stage), held, stage);
            let Costs { shares, shares_off_forward, backward, .. } = costs[stage];
            Chunk { shares, shares_off_forward, backward, slots, slots_for_weights }
        };
        Self { count, steps: (0..2 * stages).map(step).collect(), chunks: (0..stages).map(chunk).collect() }
    }

    /// Stages of the line.
    pub fn stages(&self) -> usize {
        self.chunks.len()
    }

    /// The step that is I of a stage; F of the stage is the step of its number.
    pub fn input(&self, stage: usize) -> usize {
        self.steps.len() - 1 - stage
    }
}

/// The least that actions of a stage take on a rank.
#[derive(Clone, Copy)]
struct Costs {
    /// Actions that have F.
    forward: Nanos,
    /// Actions that have I.
    input: Nanos,
    /// I and W, from the start of the action that has I.
    backward: Nanos,
    shares: Shares,
    shares_off_forward: Shares,
}

impl Costs {
    fn new(problem: &Problem, on_rank: &[(usize, usize)], stage: usize) -> Self {
        let least = |values: &mut dyn Iterator<Item = Nanos>| values.min().unwrap_or(Nanos(u64::MAX));
        let beside = || on_rank.iter().map(|&(_, other)| other);
        let pair = |f: usize, b: usize| problem.pair_cost(f as u32, b as u32);
        let forward = |f: usize| problem.stages[f].f.min(least(&mut beside().map(|b| pair(f, b))));
        let apart = |b: usize| problem.stages[b].b.min(problem.stages[b].i + problem.stages[b].w);
        let backward = |b: usize| apart(b).min(least(&mut beside().map(|f| pair(f, b))));

        let cost = &problem.stages[stage];
        let input = cost.i.min(cost.b).min(least(&mut beside().map(|f| pair(f, stage))));
        let beside_forward = least(&mut beside().map(|f| pair(f, stage).saturating_sub(forward(f))));
        let beside_backward = least(&mut beside().map(|b| pair(stage, b).saturating_sub(backward(b))));
        Self {
            forward: forward(stage),
            input,
            backward: backward(stage),
            shares: Shares::new(forward(stage), apart(stage).min(beside_forward), input),
            shares_off_forward: Shares::new(cost.f.min(beside_backward), backward(stage), input),
        }
    }
}

impl Shares {
    fn new(f: Nanos, both: Nanos, input: Nanos) -> Self {
        let i = input.min(both);
        Self { f, i, w: both.saturating_sub(i) }
    }
}

/// How far F of a stage may be ahead of its I and of its W, by memory alone. `held`: the stages whose chunks a micro-batch
/// holds on the rank when F of `stage` starts.
///
/// When F of micro-batch k starts, k + 1 of them have come, and those whose I has not ended hold all of `held`: at most
/// limit / Σ activation can. Even if only this one does, those that wait for their W hold `for_weights` each.
fn slots(
    problem: &Problem,
    rank: usize,
    held: impl Iterator<Item = usize>,
    stage: usize,
) -> (Option<usize>, Option<usize>) {
    let Some(memory) = &problem.memory else { return (None, None) };
    let limit = memory.limits[rank];
    let activations = held.fold(0_u64, |sum, stage| sum.saturating_add(memory.stages[stage].activation));
    let for_weights = memory.stages[stage].for_weights.min(memory.stages[stage].activation);
    let slots = |of: u64, each: u64| of.checked_div(each).and_then(|slots| usize::try_from(slots).ok());
    // Where not even one chunk fits there is no timetable, and nothing to bound.
    let Some(rest) = limit.checked_sub(activations) else { return (None, None) };
    (slots(limit, activations), slots(rest, for_weights).map(|slots| slots.saturating_add(1)))
}
