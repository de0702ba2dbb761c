//! GPipe (Huang et al. 2019): all forwards, then all backwards, micro-batches in order.

use crate::ir::{Action, ChunkId, Layout};

/// Actions of `rank`.
pub(super) fn rank(layout: &Layout, rank: u32) -> Vec<Action> {
    let chunks = || (0..layout.micro_batches).map(|m| ChunkId::new(rank, m));
    chunks().map(Action::F).chain(chunks().map(Action::B)).collect()
}
