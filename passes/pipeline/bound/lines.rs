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

use crate::ir::{ChunkId, Memory, Problem, StageMemory};
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
    /// Per step, the least time from the start of the first to its start.
    pub reach: Vec<Nanos>,
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
    /// The least that a pair takes which has it.
    pub pair: Nanos,
    /// Steps between which memory stands: of an F the I that it waits for, of an I the F that wait for it.
    pub slots: Vec<Slots>,
}

/// F of micro-batch k starts only when I of micro-batch k - `count` has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::passes::pipeline) struct Slots {
    /// Of the two, the one that is not told by the place where this is kept.
    pub step: usize,
    pub count: usize,
}

/// What a chunk takes of its rank's time and memory.
pub(in crate::passes::pipeline) struct Chunk {
    /// With what overlapping saves taken off the backward.
    pub shares: Shares,
    /// With what overlapping saves taken off F.
    pub shares_off_forward: Shares,
    /// The least from the start of the action that has I to the end of W.
    pub backward: Nanos,
    /// The least that an action takes which has W.
    pub weights: Nanos,
    /// F outside of a pair.
    pub forward_alone: Nanos,
    /// I and W outside of a pair, in whichever way is shorter.
    pub backward_alone: Nanos,
    /// Stages whose W its F waits for, of a micro-batch that is so many before it.
    pub weights_before: Vec<(usize, usize)>,
    /// Stages whose F waits for its W, of a micro-batch that is so many behind it.
    pub forwards_behind: Vec<(usize, usize)>,
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
        let stage_of = |step: usize| step.min(2 * stages - 1 - step);
        let ranks: Vec<usize> = (0..problem.layout.stages)
            .map(|stage| problem.layout.rank_of(ChunkId::new(stage, sample)) as usize)
            .collect();
        let costs: Vec<Costs> = (0..stages).map(|stage| Costs::new(problem, &on_rank[ranks[stage]], stage)).collect();
        let mut steps_of = vec![Vec::new(); on_rank.len()];
        (0..2 * stages).for_each(|step| steps_of[ranks[stage_of(step)]].push(step));

        let step = |at: usize| {
            let stage = stage_of(at);
            let hop = match at {
                0 => Nanos::ZERO,
                _ if at == stages => Nanos::ZERO,
                _ if at < stages => problem.hop(stage as u32 - 1, sample),
                _ => problem.hop(stage as u32, sample),
            };
            let (cost, on_its_rank) = (&costs[stage], &steps_of[ranks[stage]]);
            let (before, from) = on_its_rank.split_at(on_its_rank.partition_point(|&other| other < at));
            Step {
                rank: ranks[stage],
                stage,
                hop,
                least: if at < stages { cost.forward } else { cost.input },
                pair: if at < stages { cost.forward_pair } else { cost.backward_pair },
                before: before.iter().rev().copied().take(NEAR).collect(),
                behind: from.iter().skip(1).copied().take(NEAR).collect(),
                slots: Vec::new(),
            }
        };
        let steps: Vec<Step> = (0..2 * stages).map(step).collect();
        let reach = steps.iter().scan(Nanos::ZERO, |end, step| {
            let start = *end + step.hop;
            *end = start + step.least;
            Some(start)
        });
        let reach = reach.collect();
        let chunks = costs.iter().map(|cost| Chunk {
            shares: cost.shares,
            shares_off_forward: cost.shares_off_forward,
            backward: cost.backward,
            weights: cost.weights,
            forward_alone: cost.forward_alone,
            backward_alone: cost.backward_alone,
            weights_before: Vec::new(),
            forwards_behind: Vec::new(),
        });
        let mut line = Self { count, steps, reach, chunks: chunks.collect() };
        if let Some(memory) = &problem.memory {
            for (rank, steps) in steps_of.iter().enumerate() {
                // The first half are F.
                line.set_slots(memory, memory.limits[rank], &steps[..steps.len() / 2]);
            }
        }
        line
    }

    /// How far F may be ahead of I and of W, by memory alone. `on_rank`: the line's stages on a rank, ascending.
    ///
    /// Let F of stage s start for micro-batch k, and j be the first micro-batch whose I of stage t ≥ s has not ended. Then j, …, k
    /// hold their chunks of s and of the stages before it. And j holds one more of each stage from there to t, or must once: it has
    /// come to t or must come there, and nothing of j, …, k goes before. So (k + 1 - j) Σ before + Σ from there ≤ limit.
    ///
    /// If t < s, then j, …, k - 1 hold their chunks of t and of the stages before it, and k those up to s.
    ///
    /// With W it is simpler. Even if k is the only one whose I has not ended, those that wait for their W hold `for_weights` each.
    fn set_slots(&mut self, memory: &Memory, limit: u64, on_rank: &[usize]) {
        let mut before = 0_u64;
        for (at, &stage) in on_rank.iter().enumerate() {
            let mut until_there = 0_u64;
            let rest = limit.checked_sub(before.saturating_add(memory.stages[stage].activation));
            for (nth, &until) in on_rank[..at].iter().enumerate() {
                until_there = until_there.saturating_add(memory.stages[until].activation);
                if nth + NEAR >= at
                    && let Some(count) = rest.and_then(|rest| rest.checked_div(until_there))
                {
                    self.add_slots(stage, until, whole(count).saturating_add(1));
                }
            }
            before = before.saturating_add(memory.stages[stage].activation);
            let mut from_there = 0_u64;
            for (nth, &until) in on_rank[at..].iter().take(NEAR).enumerate() {
                if nth > 0 {
                    from_there = from_there.saturating_add(memory.stages[until].activation);
                }
                let count = limit.checked_sub(from_there).and_then(|rest| rest.checked_div(before));
                // Where not even one fits there is no timetable, and nothing to bound.
                let Some(count) = count.map(whole).filter(|&count| count > 0) else { continue };
                self.add_slots(stage, until, count);
            }
            for &until in on_rank[..=at].iter().rev().take(NEAR) {
                let StageMemory { activation, for_weights } = memory.stages[until];
                let waiting = rest.and_then(|rest| rest.checked_div(for_weights.min(activation)));
                let Some(waiting) = waiting.map(|waiting| whole(waiting).saturating_add(1)) else { continue };
                self.chunks[stage].weights_before.push((until, waiting));
                self.chunks[until].forwards_behind.push((stage, waiting));
            }
        }
    }

    /// F of a stage waits for I of the stage `until`.
    fn add_slots(&mut self, stage: usize, until: usize, count: usize) {
        let input = self.input(until);
        self.steps[stage].slots.push(Slots { step: input, count });
        self.steps[input].slots.push(Slots { step: stage, count });
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

/// As a count of micro-batches, which are never more than fit into a `usize`.
fn whole(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// The least that actions of a stage take on a rank.
struct Costs {
    /// Actions that have F.
    forward: Nanos,
    /// Actions that have I.
    input: Nanos,
    /// I and W, from the start of the action that has I.
    backward: Nanos,
    /// Actions that have W.
    weights: Nanos,
    /// F, in no pair.
    forward_alone: Nanos,
    /// I and W, in no pair.
    backward_alone: Nanos,
    /// Pairs that have F.
    forward_pair: Nanos,
    /// Pairs that have the backward.
    backward_pair: Nanos,
    shares: Shares,
    shares_off_forward: Shares,
}

impl Costs {
    fn new(problem: &Problem, on_rank: &[(usize, usize)], stage: usize) -> Self {
        let beside = || on_rank.iter().map(|&(_, other)| other);
        let least = |of: &dyn Fn(usize) -> Nanos| beside().map(of).min().unwrap_or(Nanos(u64::MAX));
        let pair = |f: usize, b: usize| problem.pair_cost(f as u32, b as u32);
        let apart = |b: usize| problem.stages[b].b.min(problem.stages[b].i + problem.stages[b].w);
        // Of any F and backward of the rank, the least in or out of a pair with this stage's.
        let forward = |f: usize| problem.stages[f].f.min(pair(f, stage));
        let backward = |b: usize| apart(b).min(pair(stage, b));

        let cost = &problem.stages[stage];
        let (forward_pair, backward_pair) = (least(&|b| pair(stage, b)), least(&|f| pair(f, stage)));
        let input = cost.i.min(cost.b).min(backward_pair);
        let both = apart(stage).min(least(&|f| pair(f, stage).saturating_sub(forward(f))));
        let f_off = cost.f.min(least(&|b| pair(stage, b).saturating_sub(backward(b))));
        Self {
            forward: cost.f.min(forward_pair),
            input,
            backward: apart(stage).min(backward_pair),
            weights: cost.w.min(cost.b).min(backward_pair),
            forward_alone: cost.f,
            backward_alone: apart(stage),
            forward_pair,
            backward_pair,
            shares: Shares::new(cost.f.min(forward_pair), both, input),
            shares_off_forward: Shares::new(f_off, apart(stage).min(backward_pair), input),
        }
    }
}

impl Shares {
    fn new(f: Nanos, both: Nanos, input: Nanos) -> Self {
        let i = input.min(both);
        Self { f, i, w: both.saturating_sub(i) }
    }
}
