//! Heads: before when no step of a micro-batch can have started or ended.

use super::block::Block;
use super::lines::{Line, Lines, Step};
use super::pairs::{Partners, Run};
use super::turns::Floors;
use crate::units::Nanos;

/// How far a timetable is known, and what is known of the rest.
pub(in crate::passes::pipeline) struct Progress {
    /// Per line and step, micro-batches that have done it.
    pub steps: Vec<Vec<usize>>,
    /// Per line and stage, micro-batches whose W is done.
    pub weights: Vec<Vec<usize>>,
    /// Per rank, the end of its latest action.
    pub free: Vec<Nanos>,
    /// Per rank, how many more may run alone.
    pub alone: Vec<Alone>,
}

/// At most so many actions of a rank are not in a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::passes::pipeline) struct Alone {
    /// F.
    pub forwards: usize,
    /// I or B.
    pub backwards: usize,
}

impl Alone {
    /// All may be alone.
    pub const ALL: Self = Self { forwards: usize::MAX, backwards: usize::MAX };

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            forwards: self.forwards.saturating_add(other.forwards),
            backwards: self.backwards.saturating_add(other.backwards),
        }
    }

    /// What is left, and no less than nothing.
    pub fn less(self, other: Self) -> Self {
        Self {
            forwards: self.forwards.saturating_sub(other.forwards),
            backwards: self.backwards.saturating_sub(other.backwards),
        }
    }
}

impl Progress {
    /// Nothing is done, and of each rank so many may be alone.
    pub fn none(lines: &Lines, alone: Vec<Alone>) -> Self {
        Self {
            steps: lines.lines.iter().map(|line| vec![0; line.steps.len()]).collect(),
            weights: lines.lines.iter().map(|line| vec![0; line.stages()]).collect(),
            free: vec![Nanos::ZERO; lines.on_rank.len()],
            alone,
        }
    }
}

/// Least times.
pub(in crate::passes::pipeline) struct Heads {
    lines: Vec<Times>,
    /// What is known besides.
    floors: Option<Floors>,
}

/// Those of one line. Micro-batches are counted in the order in which they come to a step.
struct Times {
    count: usize,
    /// Per step and micro-batch: the start of the action that has it.
    starts: Vec<Nanos>,
    /// The same: its end.
    ends: Vec<Nanos>,
    /// Per stage and micro-batch: the end of W.
    weights: Vec<Nanos>,
}

/// What comes before a step on its rank, as far as it is filled.
struct Before {
    block: Block,
    run: Run,
    partners: Partners,
}

impl Heads {
    /// Nothing is filled.
    pub fn new(lines: &Lines, floors: Option<Floors>) -> Self {
        let times = |line: &Line| Times {
            count: line.count,
            starts: vec![Nanos::ZERO; line.steps.len() * line.count],
            ends: vec![Nanos::ZERO; line.steps.len() * line.count],
            weights: vec![Nanos::ZERO; line.stages() * line.count],
        };
        Self { lines: lines.lines.iter().map(times).collect(), floors }
    }

    /// The start of the `k`-th action that has a step.
    pub fn start(&self, line: usize, step: usize, k: usize) -> Nanos {
        self.lines[line].starts[step * self.lines[line].count + k]
    }

    /// The end of the `k`-th action that has a step.
    pub fn end(&self, line: usize, step: usize, k: usize) -> Nanos {
        self.lines[line].ends[step * self.lines[line].count + k]
    }

    /// The end of the `k`-th W of a stage.
    fn weights_end(&self, line: usize, stage: usize, k: usize) -> Nanos {
        self.lines[line].weights[stage * self.lines[line].count + k]
    }

    /// The least time at which the share of the `k`-th W of a stage begins: behind the share of I, if both are in one action.
    pub fn weights_start(&self, lines: &Lines, at: usize, stage: usize, k: usize) -> Nanos {
        let line = &lines.lines[at];
        self.start(at, line.input(stage), k) + line.chunks[stage].shares.i
    }

    /// Sets the times of the `k`-th action that has a step.
    pub fn set(&mut self, line: usize, step: usize, k: usize, (start, end): (Nanos, Nanos)) {
        let times = &mut self.lines[line];
        times.starts[step * times.count + k] = start;
        times.ends[step * times.count + k] = end;
    }

    /// Computes all times that are not known. Linear in steps × micro-batches.
    pub fn fill(&mut self, lines: &Lines, progress: &Progress) {
        let before = |step: &Step| Before {
            block: Block::new(progress.free[step.rank]),
            run: Run::default(),
            partners: Partners::new(lines.on_rank[step.rank].len()),
        };
        let mut before: Vec<Vec<Before>> =
            lines.lines.iter().map(|line| line.steps.iter().map(before).collect()).collect();
        let from = progress.steps.iter().chain(&progress.weights).flatten().copied().min().unwrap_or(0);
        let to = lines.lines.iter().map(|line| line.count).max().unwrap_or(0);
        for k in from..to {
            for (at, line) in lines.lines.iter().enumerate().filter(|(_, line)| k < line.count) {
                for (step, before) in before[at].iter_mut().enumerate() {
                    if k >= progress.steps[at][step] {
                        let times = self.step(lines, progress, (at, step, k), before);
                        self.set(at, step, k, times);
                    }
                    let stage = line.steps[step].stage;
                    if step >= line.stages() && k >= progress.weights[at][stage] {
                        let end = self.weights(lines, progress, (at, stage, k));
                        self.lines[at].weights[stage * line.count + k] = end;
                    }
                }
            }
        }
    }

    /// The least start and end of a step. It waits for the step before with its message; for what must have left the rank's
    /// memory; for the actions with the same step that come before; for its rank to have done all that comes before it there,
    /// which is: the same step of earlier micro-batches, earlier steps of this one, and all steps of one that must have left
    /// the memory; and, if not all can be alone, for pairs.
    fn step(
        &self,
        lines: &Lines,
        progress: &Progress,
        (at, step, k): (usize, usize, usize),
        before: &mut Before,
    ) -> (Nanos, Nanos) {
        let line = &lines.lines[at];
        let (done, own) = (&progress.steps[at], &line.steps[step]);
        let mut start = progress.free[own.rank];
        if step > 0 {
            start = start.max(self.end(at, step - 1, k) + own.hop);
        }
        if k > done[step] {
            start = start.max(self.end(at, step, k - 1));
            self.add(&mut before.block, line, (at, step, k - 1));
        }
        for &earlier in own.before.iter().rev().filter(|&&earlier| k >= done[earlier]) {
            self.add(&mut before.block, line, (at, earlier, k));
        }
        if step < line.stages() {
            for slots in &own.slots {
                let Some(freed) = k.checked_sub(slots.count) else { continue };
                start = start.max(self.end(at, slots.step, freed));
                if slots.step == line.input(step) {
                    let within = own.behind.iter().filter(|&&within| within <= slots.step && freed >= done[within]);
                    within.for_each(|&within| self.add(&mut before.block, line, (at, within, freed)));
                }
            }
            let chunk = &line.chunks[step];
            for &(stage, slots) in &chunk.weights_before {
                let Some(freed) = k.checked_sub(slots).filter(|&freed| freed >= progress.weights[at][stage]) else {
                    continue;
                };
                start = start.max(self.weights_end(at, stage, freed));
                before.block.add(self.weights_start(lines, at, stage, freed), line.chunks[stage].shares.w);
            }
        }
        start = start.max(before.block.end());

        let alone = progress.alone[own.rank];
        let mut end = start + own.least;
        if step < line.stages() {
            let coming = |&step: &usize| (k + 1).saturating_sub(done[step]);
            let coming: usize = own.before.iter().chain([&step]).map(coming).sum();
            if coming > alone.forwards {
                let partner = |class: usize, taken: usize| {
                    let (at, stage) = lines.on_rank[own.rank][class];
                    let input = lines.lines[at].input(stage);
                    let next = progress.steps[at][input] + taken;
                    // What is not filled yet is no earlier than what is.
                    let filled = next.min(k.saturating_sub(1));
                    (next < lines.lines[at].count).then(|| match k {
                        0 => Nanos::ZERO,
                        _ => self.start(at, input, filled),
                    })
                };
                let partner = before.partners.nth(coming - alone.forwards, partner);
                start = start.max(partner);
                // The last of the pairs has this step, or one before it of this micro-batch or one ahead of it.
                let pair = own.before.iter().map(|&earlier| line.steps[earlier].pair).fold(own.pair, Nanos::min);
                end = end.max(start + own.least).max(partner + pair);
            }
        }
        let limit = if step < line.stages() { alone.forwards } else { alone.backwards };
        if let Some(first) = k.checked_sub(limit).filter(|&first| first >= done[step]) {
            let first = if first == k { start } else { self.start(at, step, first) };
            end = end.max(before.run.extend(first, own.pair) + own.least * limit as u64);
        }
        if let Some(floors) = &self.floors {
            let floor = floors.of(lines, at, step, k);
            (start, end) = (start.max(floor.0), end.max(floor.1).max(floor.0 + own.least));
        }
        (start, end)
    }

    /// The least end of the `k`-th W: before it as many I have ended, and all W that come before it.
    fn weights(&self, lines: &Lines, progress: &Progress, (at, stage, k): (usize, usize, usize)) -> Nanos {
        let line = &lines.lines[at];
        let (input, chunk) = (line.input(stage), &line.chunks[stage]);
        let free = progress.free[line.steps[input].rank];
        let before = if k > progress.weights[at][stage] { self.weights_end(at, stage, k - 1).max(free) } else { free };
        (self.start(at, input, k) + chunk.backward).max(before + chunk.weights)
    }

    fn add(&self, block: &mut Block, line: &Line, (at, step, k): (usize, usize, usize)) {
        let shares = &line.chunks[line.steps[step].stage].shares;
        let share = if step < line.stages() { shares.f } else { shares.i };
        block.add(self.start(at, step, k), share);
    }
}
