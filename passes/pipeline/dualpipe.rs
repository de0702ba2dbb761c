//! DualPipe (DeepSeek-V3): micro-batches enter at both ends, and in the middle of the run every forward of one direction is
//! overlapped with a backward of the other. Order and step counts are those of `deepseek-ai/DualPipe`.

use std::collections::VecDeque;

use crate::error::{Error, Result};
use crate::ir::{Action, ChunkId, Layout};

/// Actions of `rank`.
pub(super) fn rank(layout: &Layout, rank: u32) -> Vec<Action> {
    let (ranks, half) = (layout.ranks, layout.micro_batches / 2);
    // Local phase 0 is the direction that enters nearer to this rank.
    let stages = layout.stages_of(rank);
    let upper = rank >= ranks / 2;
    let chunk = |phase: usize, counter: u32| {
        let direction = u32::from((phase == 1) != upper);
        ChunkId::new(stages[phase], direction * half + counter)
    };
    eight_steps(ranks / 2, rank.min(ranks - 1 - rank), half, chunk)
}

/// P even, at least 2; M even, at least 2P.
pub(super) fn precondition(ranks: u32, micro_batches: u32) -> Result<()> {
    if !ranks.is_multiple_of(2) {
        let nearest = if ranks == 1 { "2".to_owned() } else { format!("{} or {}", ranks - 1, ranks + 1) };
        let message = format!("dualpipe needs an even number of ranks, at least 2, not {ranks}: use {nearest}");
        return Err(Error::new(message).field("training.pp"));
    }
    let least = 2 * ranks;
    if micro_batches < least || !micro_batches.is_multiple_of(2) {
        let nearest = match micro_batches {
            few if few < least => least.to_string(),
            odd => format!("{} or {}", odd - 1, odd + 1),
        };
        let message = format!(
            "dualpipe with {ranks} ranks needs an even number of micro-batches, at least {least}, not {micro_batches}: \
             use {nearest}"
        );
        return Err(Error::new(message).field("training.micro_batches"));
    }
    Ok(())
}

/// The eight steps of a rank that is `position` away from where its phase 0 enters, in a pipeline that turns around after
/// `depth` ranks, with `chunks` (at least 2 × `depth`) per phase. `chunk` names the chunk of (phase, counter).
pub(super) fn eight_steps(
    depth: u32,
    position: u32,
    chunks: u32,
    chunk: impl Fn(usize, u32) -> ChunkId,
) -> Vec<Action> {
    let beyond = depth - position - 1;
    let mut rank = Steps { chunk, f: [0; 2], b: [0; 2], weights: VecDeque::new(), actions: Vec::new() };

    // 1. Forwards fill the pipeline,
    for _ in 0..2 * beyond {
        rank.forward(0);
    }
    // 2. then of both phases in turn,
    for _ in 0..=position {
        rank.forward(0);
        rank.forward(1);
    }
    // 3. then the first backwards come, split so that the next rank waits only for the input gradient.
    for _ in 0..beyond {
        rank.input(1);
        rank.weight();
        rank.forward(1);
    }
    // 4. The main part: overlapped pairs, the two phases in turn.
    for k in 0..chunks - 2 * depth + position + 1 {
        if k == 0 && beyond == 0 {
            // The first backward of the turning rank follows directly on its own forward: nothing to overlap yet.
            rank.forward(0);
            rank.backward(1);
        } else {
            rank.pair(0, 1);
        }
        rank.pair(1, 0);
    }
    // 5. The forwards of phase 0 have run out.
    for _ in 0..beyond {
        rank.backward(1);
        rank.pair(1, 0);
    }
    // 6. All forwards have. The later half is split: its weight gradients fill the cool-down.
    let split = position + 1;
    for k in 0..=position {
        // In order of execution the backwards are numbered 2k (phase 1) and 2k + 1 (phase 0).
        for (number, phase) in [(2 * k, 1), (2 * k + 1, 0)] {
            if number >= split { rank.input(phase) } else { rank.backward(phase) }
        }
    }
    // 7. Input gradients as they come, a weight gradient before each,
    for _ in 0..beyond {
        rank.weight();
        rank.input(0);
    }
    // 8. and the weight gradients that are left.
    for _ in 0..=position {
        rank.weight();
    }
    rank.actions
}

/// A rank's list while it is made.
struct Steps<C> {
    chunk: C,
    /// Forwards so far, per phase.
    f: [u32; 2],
    /// Backwards so far, per phase.
    b: [u32; 2],
    /// Chunks whose W is due, oldest first.
    weights: VecDeque<ChunkId>,
    actions: Vec<Action>,
}

impl<C: Fn(usize, u32) -> ChunkId> Steps<C> {
    fn next_forward(&mut self, phase: usize) -> ChunkId {
        self.f[phase] += 1;
        (self.chunk)(phase, self.f[phase] - 1)
    }

    fn next_backward(&mut self, phase: usize) -> ChunkId {
        self.b[phase] += 1;
        (self.chunk)(phase, self.b[phase] - 1)
    }

    fn forward(&mut self, phase: usize) {
        let chunk = self.next_forward(phase);
        self.actions.push(Action::F(chunk));
    }

    fn backward(&mut self, phase: usize) {
        let chunk = self.next_backward(phase);
        self.actions.push(Action::B(chunk));
    }

    fn pair(&mut self, forward: usize, backward: usize) {
        let (f, b) = (self.next_forward(forward), self.next_backward(backward));
        self.actions.push(Action::FB(f, b));
    }

    fn input(&mut self, phase: usize) {
        let chunk = self.next_backward(phase);
        self.actions.push(Action::I(chunk));
        self.weights.push_back(chunk);
    }

    fn weight(&mut self) {
        self.actions.extend(self.weights.pop_front().map(Action::W));
    }
}
