//! 1F1B (PipeDream-flush; Narayanan et al. 2021), and the order that it shares with its descendants: warm-up forwards, one
//! forward and one backward in turn, then the backwards that are left.
//!
//! The descendants differ in how long the warm-up is, how many stages a rank takes turns with, and whether the backward is
//! split. The rules are those of PyTorch's `_get_1f1b_rank_ops`.

use crate::ir::{Action, ChunkId, Layout};

/// Actions of `rank`.
pub(super) fn rank(layout: &Layout, rank: u32) -> Vec<Action> {
    let turn = Turn::new(layout, rank);
    turn.alternate(u64::from(layout.ranks - 1 - rank), None)
}

/// The order in which a rank takes its chunks: a round of micro-batches on its first stage, the same on its second, …,
/// then the next round. Backwards go the other way over the stages.
pub(super) struct Turn {
    /// Stages of the rank, ascending.
    stages: Vec<u32>,
    /// Micro-batches of a round; divides `micro_batches` unless there is only one stage.
    round: u64,
    micro_batches: u64,
}

impl Turn {
    /// Rounds have as many micro-batches as there are ranks, or a little more, so that all are equal.
    pub(super) fn new(layout: &Layout, rank: u32) -> Self {
        let round = round(layout.ranks, layout.micro_batches);
        Self { stages: layout.stages_of(rank), round: u64::from(round), micro_batches: u64::from(layout.micro_batches) }
    }

    /// Forwards of the first round on all of the rank's stages but its last.
    pub(super) fn forwards_before_last_stage(&self) -> u64 {
        (self.stages.len() as u64 - 1) * self.round
    }

    /// `warm_up` forwards; then forward and backward in turn; then the rest of the backwards.
    ///
    /// With `weights_behind` the backward is split: W of the oldest chunk follows an I as soon as that many more are
    /// outstanding, and what is left at the end runs then.
    pub(super) fn alternate(&self, warm_up: u64, weights_behind: Option<u64>) -> Vec<Action> {
        let total = self.stages.len() as u64 * self.micro_batches;
        let warm_up = warm_up.min(total);
        let mut actions: Vec<Action> = (0..warm_up).map(|k| Action::F(self.forward(k))).collect();
        for k in 0..total {
            if warm_up + k < total {
                actions.push(Action::F(self.forward(warm_up + k)));
            }
            match weights_behind {
                None => actions.push(Action::B(self.backward(k))),
                Some(behind) => {
                    actions.push(Action::I(self.backward(k)));
                    if k >= behind {
                        actions.push(Action::W(self.backward(k - behind)));
                    }
                }
            }
        }
        if let Some(behind) = weights_behind {
            actions.extend((total.saturating_sub(behind)..total).map(|k| Action::W(self.backward(k))));
        }
        actions
    }

    /// The chunk of the `k`-th forward.
    fn forward(&self, k: u64) -> ChunkId {
        let stages = self.stages.len() as u64;
        self.chunk(k, k / self.round % stages)
    }

    /// The chunk of the `k`-th backward.
    fn backward(&self, k: u64) -> ChunkId {
        let stages = self.stages.len() as u64;
        self.chunk(k, stages - 1 - k / self.round % stages)
    }

    fn chunk(&self, k: u64, local_stage: u64) -> ChunkId {
        let before = k / (self.round * self.stages.len() as u64) * self.round;
        // Below `micro_batches`, a u32.
        ChunkId::new(self.stages[local_stage as usize], (before + k % self.round) as u32)
    }
}

/// Micro-batches of one round.
pub(super) fn round(ranks: u32, micro_batches: u32) -> u32 {
    micro_batches / rounds(ranks, micro_batches)
}

/// Rounds that the micro-batches make: as many as have at least one micro-batch per rank, and at least one.
pub(super) fn rounds(ranks: u32, micro_batches: u32) -> u32 {
    (micro_batches / ranks).max(1)
}
