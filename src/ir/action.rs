//! What a pipeline rank does: forwards, backwards and their parts, each on one chunk.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One stage's work for one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkId {
    /// Stage of the model, from 0 at the embedding.
    pub stage: u32,
    /// Micro-batch of the step, from 0.
    pub micro_batch: u32,
}

impl ChunkId {
    /// Shorthand.
    pub fn new(stage: u32, micro_batch: u32) -> Self {
        Self { stage, micro_batch }
    }
}

/// The three parts of a chunk's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Phase {
    /// Forward.
    F,
    /// Backward for the input.
    I,
    /// Backward for the weights.
    W,
}

/// One entry of a rank's timetable. The letters are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Forward.
    F(ChunkId),
    /// Full backward: I and W in one.
    B(ChunkId),
    /// Backward for the input only.
    I(ChunkId),
    /// Deferred weight gradient.
    W(ChunkId),
    /// A forward overlapped with the full backward of another micro-batch.
    FB(ChunkId, ChunkId),
}

impl Action {
    /// The phases that this action completes, and of which chunk, in the order F, I, W.
    pub fn parts(self) -> impl Iterator<Item = (Phase, ChunkId)> {
        let (forward, input, weight) = match self {
            Self::F(c) => (Some(c), None, None),
            Self::I(c) => (None, Some(c), None),
            Self::W(c) => (None, None, Some(c)),
            Self::B(c) => (None, Some(c), Some(c)),
            Self::FB(f, b) => (Some(f), Some(b), Some(b)),
        };
        let part = |phase, chunk: Option<ChunkId>| chunk.map(|chunk| (phase, chunk));
        [part(Phase::F, forward), part(Phase::I, input), part(Phase::W, weight)].into_iter().flatten()
    }

    /// The chunk whose forward this action runs.
    pub fn forward(self) -> Option<ChunkId> {
        self.parts().find_map(|(phase, chunk)| (phase == Phase::F).then_some(chunk))
    }

    /// The chunk whose input gradient this action produces.
    pub fn input_gradient(self) -> Option<ChunkId> {
        self.parts().find_map(|(phase, chunk)| (phase == Phase::I).then_some(chunk))
    }

    /// The chunk whose weight gradient this action produces.
    pub fn weight_gradient(self) -> Option<ChunkId> {
        self.parts().find_map(|(phase, chunk)| (phase == Phase::W).then_some(chunk))
    }
}

/// Stage-indexed, as PyTorch writes it: `3F7`, `3I7`, `(0F3;7B1)OVERLAP_F_B`.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut one = |letter, c: &ChunkId| write!(f, "{}{letter}{}", c.stage, c.micro_batch);
        match self {
            Self::F(c) => one('F', c),
            Self::B(c) => one('B', c),
            Self::I(c) => one('I', c),
            Self::W(c) => one('W', c),
            Self::FB(a, b) => {
                write!(f, "({}F{};{}B{})OVERLAP_F_B", a.stage, a.micro_batch, b.stage, b.micro_batch)
            }
        }
    }
}
