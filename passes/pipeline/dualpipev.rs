//! DualPipeV (DeepSeek): DualPipe folded in the middle. Phase 0 goes down the ranks, phase 1 comes back up; the steps are
//! DualPipe's, of a pipeline that turns around after P ranks.

use super::dualpipe::eight_steps;
use crate::error::{Error, Result};
use crate::ir::{Action, ChunkId, Layout};

/// Actions of `rank`.
pub(super) fn rank(layout: &Layout, rank: u32) -> Vec<Action> {
    let stages = layout.stages_of(rank);
    eight_steps(layout.ranks, rank, layout.micro_batches, |phase, counter| ChunkId::new(stages[phase], counter))
}

/// M at least 2P.
pub(super) fn precondition(ranks: u32, micro_batches: u32) -> Result<()> {
    let least = 2 * ranks;
    if micro_batches < least {
        let message = format!(
            "dualpipev with {ranks} ranks needs at least {least} micro-batches, not {micro_batches}: use {least}"
        );
        return Err(Error::new(message).field("training.micro_batches"));
    }
    Ok(())
}
