//! Tails: how long everything goes on, at least, from the start of a step.

use super::block::Block;
use super::lines::{Line, Lines};
use crate::units::Nanos;

/// Least times of one line. Micro-batches are counted from the last: 0 is the one that comes last to a step.
pub(in crate::passes::pipeline) struct Tails {
    count: usize,
    /// Per step and micro-batch, from the start of the action that has it to the end of everything.
    starts: Vec<Nanos>,
    /// Per stage and micro-batch, from the end of W to the end of everything.
    weights: Vec<Nanos>,
}

impl Tails {
    /// From the start of the action that has `step`, of the `q`-th micro-batch from the last.
    pub fn start(&self, step: usize, q: usize) -> Nanos {
        self.starts[step * self.count + q]
    }

    /// From the end of the `q`-th W of a stage from the last.
    pub fn weights_end(&self, stage: usize, q: usize) -> Nanos {
        self.weights[stage * self.count + q]
    }

    /// Computes them: [`Heads`](super::heads::Heads) with time turned round. Linear in steps × micro-batches.
    ///
    /// Behind a step come, each at least so long: the next step with its message; W behind I; the F that waits for the
    /// memory which it leaves; and one machine's time for everything that comes behind it on the rank, which is: the same step
    /// of later micro-batches, later steps of this one, their W, and all steps of a micro-batch that waits for the memory.
    pub fn new(lines: &Lines, at: usize) -> Self {
        let line = &lines.lines[at];
        let mut tails = Self {
            count: line.count,
            starts: vec![Nanos::ZERO; line.steps.len() * line.count],
            weights: vec![Nanos::ZERO; line.stages() * line.count],
        };
        let mut blocks = vec![Block::new(Nanos::ZERO); line.steps.len()];
        for q in 0..line.count {
            for (at, step) in line.steps.iter().enumerate().rev() {
                let chunk = &line.chunks[step.stage];
                let mut block = blocks[at];
                let mut tail = Nanos::ZERO;
                if let Some(next) = line.steps.get(at + 1) {
                    tail = next.hop + tails.start(at + 1, q);
                }
                if q > 0 {
                    tails.add(&mut block, line, at, q - 1);
                }
                for &behind in step.behind.iter().rev() {
                    tails.add(&mut block, line, behind, q);
                    tails.add_weights(&mut block, line, behind, q);
                }
                if at >= line.stages() {
                    if let Some(waits) = chunk.slots_for_weights.and_then(|slots| q.checked_sub(slots)) {
                        tails.weights[step.stage * line.count + q] = tails.start(step.stage, waits);
                    }
                    tails.add_weights(&mut block, line, at, q);
                    let weights_lag = chunk.backward.saturating_sub(step.least);
                    tail = tail.max(weights_lag + tails.weights_end(step.stage, q));
                    if let Some(waits) = chunk.slots.and_then(|slots| q.checked_sub(slots)) {
                        tail = tail.max(tails.start(step.stage, waits));
                        let within = step.before.iter().filter(|&&before| before >= step.stage);
                        within.for_each(|&before| tails.add(&mut block, line, before, waits));
                    }
                }
                blocks[at] = block;
                tails.starts[at * line.count + q] = step.least + tail.max(block.end());
            }
        }
        tails
    }

    fn add(&self, block: &mut Block, line: &Line, step: usize, q: usize) {
        let shares = &line.chunks[line.steps[step].stage].shares;
        let share = if step < line.stages() { shares.f } else { shares.i };
        block.add(self.start(step, q).saturating_sub(line.steps[step].least), share);
    }

    /// W of the stage whose I is `step`, if it is an I.
    fn add_weights(&self, block: &mut Block, line: &Line, step: usize, q: usize) {
        let stage = line.steps[step].stage;
        if step >= line.stages() {
            block.add(self.weights_end(stage, q), line.chunks[stage].shares.w);
        }
    }
}
