//! Heads: before when no step of a micro-batch can have ended.

use super::block::Block;
use super::lines::{Line, Lines};
use crate::units::Nanos;

/// How far a timetable is known.
pub(in crate::passes::pipeline) struct Progress {
    /// Per line and step, micro-batches that have done it.
    pub steps: Vec<Vec<usize>>,
    /// Per line and stage, micro-batches whose W is done.
    pub weights: Vec<Vec<usize>>,
    /// Per rank, the end of its latest action.
    pub free: Vec<Nanos>,
}

impl Progress {
    /// Nothing is done.
    pub fn none(lines: &Lines) -> Self {
        Self {
            steps: lines.lines.iter().map(|line| vec![0; line.steps.len()]).collect(),
            weights: lines.lines.iter().map(|line| vec![0; line.stages()]).collect(),
            free: vec![Nanos::ZERO; lines.on_rank.len()],
        }
    }
}

/// Least times of one line.
pub(in crate::passes::pipeline) struct Heads {
    count: usize,
    /// Per step and micro-batch, in the order in which they come: the end of the action that has it.
    ends: Vec<Nanos>,
    /// Per stage and micro-batch, in the order in which they are done: the end of W.
    weights: Vec<Nanos>,
}

impl Heads {
    /// For a line of which nothing is known yet.
    pub fn new(line: &Line) -> Self {
        Self {
            count: line.count,
            ends: vec![Nanos::ZERO; line.steps.len() * line.count],
            weights: vec![Nanos::ZERO; line.stages() * line.count],
        }
    }

    /// The end of the `k`-th action that has `step`.
    pub fn end(&self, step: usize, k: usize) -> Nanos {
        self.ends[step * self.count + k]
    }

    /// The same of the `k`-th W of a stage.
    pub fn weights_end(&self, stage: usize, k: usize) -> Nanos {
        self.weights[stage * self.count + k]
    }

    /// Sets the end of the `k`-th action that has `step`, which is known.
    pub fn set(&mut self, step: usize, k: usize, end: Nanos) {
        self.ends[step * self.count + k] = end;
    }

    /// Computes all times that are not known, for the line `at`. Linear in steps × micro-batches.
    ///
    /// A step ends no earlier than `least` after each of these: the step before with its message; what must have left the
    /// rank's memory; the rank's latest action; and one machine's time for everything that comes before it on the rank, which
    /// is: the same step of earlier micro-batches, earlier steps of this one, and all steps of a micro-batch that must
    /// have left the memory.
    pub fn fill(&mut self, lines: &Lines, at: usize, progress: &Progress) {
        let line = &lines.lines[at];
        let (done, weights_done) = (&progress.steps[at], &progress.weights[at]);
        let mut blocks: Vec<Block> = line.steps.iter().map(|step| Block::new(progress.free[step.rank])).collect();
        let from = done.iter().chain(weights_done).copied().min().unwrap_or(0);
        for k in from..line.count {
            for (at, step) in line.steps.iter().enumerate() {
                let fills_weights = at >= line.stages() && k >= weights_done[step.stage];
                if k < done[at] {
                    if fills_weights {
                        self.fill_weights(line, step.stage, k, progress.free[step.rank]);
                    }
                    continue;
                }
                let chunk = &line.chunks[step.stage];
                let mut block = blocks[at];
                let mut start = progress.free[step.rank];
                if k > done[at] {
                    self.add(&mut block, line, at, k - 1);
                }
                for &before in step.before.iter().rev().filter(|&&before| k >= done[before]) {
                    self.add(&mut block, line, before, k);
                }
                if at > 0 {
                    start = start.max(self.end(at - 1, k) + step.hop);
                }
                if at < line.stages() {
                    let input = line.input(at);
                    if let Some(freed) = chunk.slots.and_then(|slots| k.checked_sub(slots)) {
                        start = start.max(self.end(input, freed));
                        let within = step.behind.iter().filter(|&&step| step <= input && freed >= done[step]);
                        within.for_each(|&step| self.add(&mut block, line, step, freed));
                    }
                    if let Some(freed) = chunk.slots_for_weights.and_then(|slots| k.checked_sub(slots))
                        && freed >= weights_done[at]
                    {
                        start = start.max(self.weights_end(at, freed));
                        block.add(self.weights_release(line, at, freed), chunk.shares.w);
                    }
                }
                blocks[at] = block;
                let end = start.max(block.end()) + step.least;
                self.set(at, k, end);
                if fills_weights {
                    self.fill_weights(line, step.stage, k, progress.free[step.rank]);
                }
            }
        }
    }

    /// Sets the end of the `k`-th W of a stage: before it, as many I have ended, and the W that come before it.
    fn fill_weights(&mut self, line: &Line, stage: usize, k: usize, free: Nanos) {
        let (input, share) = (line.input(stage), line.chunks[stage].shares.w);
        let begins = self.end(input, k).saturating_sub(line.steps[input].least);
        let before = k.checked_sub(1).map_or(free, |before| self.weights_end(stage, before).max(free));
        self.weights[stage * self.count + k] = (begins + line.chunks[stage].backward).max(before + share);
    }

    fn add(&self, block: &mut Block, line: &Line, step: usize, k: usize) {
        let shares = &line.chunks[line.steps[step].stage].shares;
        let share = if step < line.stages() { shares.f } else { shares.i };
        block.add(self.end(step, k).saturating_sub(line.steps[step].least), share);
    }

    /// The least time at which the share of W begins: behind the share of I, if both are in one action.
    pub fn weights_release(&self, line: &Line, stage: usize, k: usize) -> Nanos {
        let input = line.input(stage);
        self.end(input, k).saturating_sub(line.steps[input].least) + line.chunks[stage].shares.i
    }
}
