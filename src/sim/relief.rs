//! Where a rank does not fit: what would have to be smaller, and by how much. Only what follows from the plan by
//! arithmetic; whether a smaller thing exists (another schedule, recomputation) is for the compiler to find.

use super::memory::{MemoryKind, RankMemory};
use crate::units::Bytes;

/// What would make a rank fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Relief {
    /// What the rank needs beyond the memory that a plan may use.
    pub over: Bytes,
    /// Chunks whose activations are held at the peak, and how many would fit; `None` where fewer would not help.
    pub chunks: Option<(u32, u64)>,
    /// Kinds that take at least `over`, largest first, with the share of each that would have to go, nothing else changed.
    pub kinds: Vec<(MemoryKind, f64)>,
}

impl Relief {
    /// `None` if the rank fits into `memory`.
    pub fn new(rank: &RankMemory, memory: Bytes) -> Option<Self> {
        let over = rank.peak.saturating_sub(memory);
        if over == Bytes::ZERO {
            return None;
        }
        let fit = rank.chunks_that_fit(memory).filter(|&fit| fit > 0 && fit < u64::from(rank.chunks));
        let kinds = rank.kinds.iter().filter(|&&(_, bytes)| bytes >= over);
        Some(Self {
            over,
            chunks: fit.map(|fit| (rank.chunks, fit)),
            kinds: kinds.map(|&(kind, bytes)| (kind, over.as_f64() / bytes.as_f64())).collect(),
        })
    }
}
