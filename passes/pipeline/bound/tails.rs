//! Tails: how long everything goes on, at least, from the start or end of a step.

use super::block::Block;
use super::heads::Alone;
use super::lines::{Line, Lines, Step};
use super::pairs::{Partners, Run};
use super::turns::Floors;
use crate::units::Nanos;

/// Least times: [`Heads`](super::heads::Heads) with time turned round.
pub(in crate::passes::pipeline) struct Tails(Vec<Times>);

/// Those of one line. Micro-batches are counted from the last: 0 is the one that comes last to a step.
struct Times {
    count: usize,
    /// Per step and micro-batch: from the start of the action that has it.
    starts: Vec<Nanos>,
    /// The same: from its end.
    ends: Vec<Nanos>,
    /// The same: from the end of the step's share, with which the action begins if it is an I.
    shares: Vec<Nanos>,
    /// Per stage and micro-batch: from the end of W.
    weights: Vec<Nanos>,
}

/// What comes behind a step on its rank, as far as it is filled.
struct Behind {
    block: Block,
    run: Run,
    partners: Partners,
}

impl Tails {
    /// From the start of the action that has a step, of the `q`-th from the last.
    pub fn start(&self, line: usize, step: usize, q: usize) -> Nanos {
        self.0[line].starts[step * self.0[line].count + q]
    }

    /// From the end of the action that has a step.
    pub fn end(&self, line: usize, step: usize, q: usize) -> Nanos {
        self.0[line].ends[step * self.0[line].count + q]
    }

    /// From the end of the share of a step.
    pub fn share_end(&self, line: usize, step: usize, q: usize) -> Nanos {
        self.0[line].shares[step * self.0[line].count + q]
    }

    /// From the end of the `q`-th W of a stage from the last.
    pub fn weights_end(&self, line: usize, stage: usize, q: usize) -> Nanos {
        self.0[line].weights[stage * self.0[line].count + q]
    }

    /// Computes them, if on each rank so many may be alone, and so much is known. Linear in steps × micro-batches.
    pub fn new(lines: &Lines, alone: &[Alone], floors: Option<&Floors>) -> Self {
        let times = |line: &Line| Times {
            count: line.count,
            starts: vec![Nanos::ZERO; line.steps.len() * line.count],
            ends: vec![Nanos::ZERO; line.steps.len() * line.count],
            shares: vec![Nanos::ZERO; line.steps.len() * line.count],
            weights: vec![Nanos::ZERO; line.stages() * line.count],
        };
        let behind = |step: &Step| Behind {
            block: Block::new(Nanos::ZERO),
            run: Run::default(),
            partners: Partners::new(lines.on_rank[step.rank].len()),
        };
        let mut behind: Vec<Vec<Behind>> =
            lines.lines.iter().map(|line| line.steps.iter().map(behind).collect()).collect();
        let mut tails = Self(lines.lines.iter().map(times).collect());
        let to = lines.lines.iter().map(|line| line.count).max().unwrap_or(0);
        for q in 0..to {
            for (at, line) in lines.lines.iter().enumerate().filter(|(_, line)| q < line.count) {
                for step in (0..line.steps.len()).rev() {
                    let stage = line.steps[step].stage;
                    if step >= line.stages() {
                        let end = tails.weights(line, at, stage, q);
                        tails.0[at].weights[stage * line.count + q] = end;
                    }
                    let (mut start, mut end, mut share) =
                        tails.step(lines, alone, (at, step, q), &mut behind[at][step]);
                    if let Some(floors) = floors {
                        let floor = floors.of(lines, at, step, q);
                        (end, share) = (end.max(floor.1), share.max(floor.1));
                        start = start.max(floor.0).max(line.steps[step].least + share);
                    }
                    let times = &mut tails.0[at];
                    times.starts[step * line.count + q] = start;
                    times.ends[step * line.count + q] = end;
                    times.shares[step * line.count + q] = share;
                }
            }
        }
        tails
    }

    /// From the end of W. Behind it come the W of later micro-batches, and the F that waits for the memory which it leaves.
    fn weights(&self, line: &Line, at: usize, stage: usize, q: usize) -> Nanos {
        let chunk = &line.chunks[stage];
        let later = q.checked_sub(1).map(|later| self.weights_end(at, stage, later) + chunk.weights);
        let waits = |&(stage, slots): &(usize, usize)| q.checked_sub(slots).map(|waits| self.start(at, stage, waits));
        let waits = chunk.forwards_behind.iter().filter_map(waits);
        later.into_iter().chain(waits).max().unwrap_or(Nanos::ZERO)
    }

    /// From the start of a step, from its end, and from that of its share. Behind it come: the next step with its
    /// message; the F that waits for the memory which it leaves; the same step of later micro-batches; all that comes behind
    /// it on the rank, which is: the same step of later micro-batches, later steps of this one, their W, and all steps of a
    /// micro-batch that waits for the memory; and, if not all can be alone, pairs.
    fn step(
        &self,
        lines: &Lines,
        alone: &[Alone],
        (at, step, q): (usize, usize, usize),
        behind: &mut Behind,
    ) -> (Nanos, Nanos, Nanos) {
        let line = &lines.lines[at];
        let own = &line.steps[step];
        let mut end = line.steps.get(step + 1).map_or(Nanos::ZERO, |next| next.hop + self.start(at, step + 1, q));
        if q > 0 {
            end = end.max(self.start(at, step, q - 1));
            self.add(&mut behind.block, line, (at, step, q - 1));
        }
        for &later in own.behind.iter().rev() {
            self.add(&mut behind.block, line, (at, later, q));
            self.add_weights(&mut behind.block, line, (at, later, q));
        }
        let mut share = Nanos::ZERO;
        if step >= line.stages() {
            for slots in &own.slots {
                let Some(waits) = q.checked_sub(slots.count) else { continue };
                end = end.max(self.start(at, slots.step, waits));
                if slots.step == own.stage {
                    let within = own.before.iter().filter(|&&within| within >= slots.step);
                    within.for_each(|&within| self.add(&mut behind.block, line, (at, within, waits)));
                }
            }
            // Its own W may be in the same action.
            self.add_weights(&mut behind.block, line, (at, step, q));
            let lag = line.chunks[own.stage].backward.saturating_sub(own.least);
            share = behind.block.end().max(lag + self.weights_end(at, own.stage, q));
        } else {
            end = end.max(behind.block.end());
        }
        share = share.max(end);

        let alone = alone[own.rank];
        let mut start = own.least + share;
        if step >= line.stages() {
            let coming = (own.behind.len() + 1) * (q + 1);
            if coming > alone.backwards {
                let partner = |class: usize, taken: usize| {
                    let (at, stage) = lines.on_rank[own.rank][class];
                    // What is not filled yet goes on no shorter than what is.
                    let filled = taken.min(q.saturating_sub(1));
                    (taken < lines.lines[at].count).then(|| match q {
                        0 => Nanos::ZERO,
                        _ => self.end(at, stage, filled),
                    })
                };
                let partner = behind.partners.nth(coming - alone.backwards, partner);
                end = end.max(partner);
                share = share.max(end);
                // The first of the pairs has this step, or one behind it of this micro-batch or one that follows it.
                let pair = own.behind.iter().map(|&later| line.steps[later].pair).fold(own.pair, Nanos::min);
                start = start.max(own.least + share).max(partner + pair);
            }
        }
        let limit = if step < line.stages() { alone.forwards } else { alone.backwards };
        if let Some(last) = q.checked_sub(limit) {
            let last = if last == q { end } else { self.end(at, step, last) };
            start = start.max(behind.run.extend(last, own.pair) + own.least * limit as u64);
        }
        (start, end, share)
    }

    fn add(&self, block: &mut Block, line: &Line, (at, step, q): (usize, usize, usize)) {
        let shares = &line.chunks[line.steps[step].stage].shares;
        let share = if step < line.stages() { shares.f } else { shares.i };
        block.add(self.share_end(at, step, q), share);
    }

    /// W of the stage whose I is `step`, if it is an I.
    fn add_weights(&self, block: &mut Block, line: &Line, (at, step, q): (usize, usize, usize)) {
        let stage = line.steps[step].stage;
        if step >= line.stages() {
            block.add(self.weights_end(at, stage, q), line.chunks[stage].shares.w);
        }
    }
}
