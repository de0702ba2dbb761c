//! ZB-V (Qi et al. 2024) as PyTorch's `ScheduleZBVZeroBubble` has it: two stages per rank on a V, backward split.
//!
//! The order is made for at least 2P-1 micro-batches; with fewer, the surplus ones are left out of it.

use crate::ir::{Action, ChunkId, Layout};

/// Actions of `rank`.
pub(super) fn rank(layout: &Layout, rank: u32) -> Vec<Action> {
    let (ranks, micro_batches) = (layout.ranks, layout.micro_batches.max(2 * layout.ranks - 1));
    let mut v = V {
        stages: [rank, 2 * ranks - 1 - rank],
        micro_batches: layout.micro_batches,
        f: [0; 2],
        i: [0; 2],
        w: [0; 2],
        actions: Vec::new(),
    };

    // Warm-up: fill the V down to its point and back up to this rank.
    for _ in 0..2 * (ranks - rank) - 1 {
        v.forward(0);
    }
    for _ in 0..rank {
        v.forward(1);
        v.forward(0);
    }
    for _ in 0..ranks - rank {
        v.forward(1);
        v.backward(1);
    }
    // Steady: one forward and one whole backward of each half in turn.
    while v.f[1] < v.f[0] || v.f[0] < micro_batches {
        if v.f[0] < micro_batches {
            v.forward(0);
        }
        v.backward(0);
        v.forward(1);
        v.backward(1);
    }
    // Cool-down: input gradients first, for others wait for them; weight gradients fill what is left.
    for _ in 0..rank {
        v.input(0);
        v.input(1);
    }
    for _ in 0..ranks - rank {
        v.input(0);
        v.weight(0);
    }
    while v.w[1] < v.i[1] {
        v.weight(1);
    }
    while v.w[0] < v.i[0] {
        v.weight(0);
    }
    v.actions
}

/// A rank's list while it is made, with counters per half of the V.
struct V {
    stages: [u32; 2],
    micro_batches: u32,
    f: [u32; 2],
    i: [u32; 2],
    w: [u32; 2],
    actions: Vec<Action>,
}

impl V {
    fn forward(&mut self, half: usize) {
        self.push(half, self.f[half], Action::F);
        self.f[half] += 1;
    }

    fn input(&mut self, half: usize) {
        self.push(half, self.i[half], Action::I);
        self.i[half] += 1;
    }

    fn weight(&mut self, half: usize) {
        self.push(half, self.w[half], Action::W);
        self.w[half] += 1;
    }

    fn backward(&mut self, half: usize) {
        self.input(half);
        self.weight(half);
    }

    fn push(&mut self, half: usize, micro_batch: u32, action: fn(ChunkId) -> Action) {
        if micro_batch < self.micro_batches {
            self.actions.push(action(ChunkId::new(self.stages[half], micro_batch)));
        }
    }
}
