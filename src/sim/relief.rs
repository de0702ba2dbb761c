//! Where a rank does not fit: what would have to be smaller, and by how much. Only what follows from the plan by
//! arithmetic; whether a smaller thing exists (another schedule, recomputation) is for the compiler to find.

use super::memory::{MemoryKind, RankMemory};
use crate::units::Bytes;

/// What would make a rank fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Relief {
    /// What the rank needs beyond the memory that a plan may use.
    pub over: Bytes,
    /// How far the peak is over. If zero, it is the message rings, which are never full at the same moment, or what is lost between
    /// blocks of the arena.
    pub over_at_peak: Bytes,
    /// Chunks whose activations are held at the peak, and how many would fit; `None` where the peak fits, or fewer chunks
    /// would not help.
    pub chunks: Option<(u32, u64)>,
    /// Kinds that take at least `over_at_peak`, largest first, with the share of each that would have to go, nothing else
    /// changed. Empty where the peak fits.
    pub kinds: Vec<(MemoryKind, f64)>,
}

impl Relief {
    /// `None` if the rank fits into `memory`.
    pub fn new(rank: &RankMemory, memory: Bytes) -> Option<Self> {
        let over = rank.need.total().saturating_sub(memory);
        if over == Bytes::ZERO {
            return None;
        }
        let over_at_peak = rank.peak.saturating_sub(memory);
        let fit = rank.chunks_that_fit(memory).filter(|&fit| fit > 0 && fit < u64::from(rank.chunks));
        let kinds = rank.kinds.iter().filter(|&&(_, bytes)| over_at_peak > Bytes::ZERO && bytes >= over_at_peak);
        Some(Self {
            over,
            over_at_peak,
            chunks: fit.filter(|_| over_at_peak > Bytes::ZERO).map(|fit| (rank.chunks, fit)),
            kinds: kinds.map(|&(kind, bytes)| (kind, over_at_peak.as_f64() / bytes.as_f64())).collect(),
        })
    }
}
