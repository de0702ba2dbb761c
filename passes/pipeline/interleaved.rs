//! Interleaved 1F1B (Narayanan et al. 2021) as PyTorch's `ScheduleInterleaved1F1B` has it: each rank takes turns with
//! several stages, and the micro-batches need not be a multiple of P.

use super::one_f_one_b::{Turn, rounds};
use crate::error::{Error, Result};
use crate::ir::{Action, Layout};

/// Actions of `rank`.
pub(super) fn rank(layout: &Layout, rank: u32) -> Vec<Action> {
    let turn = Turn::new(layout, rank);
    // Two more for each hop away from the last rank: one that goes down while one comes back.
    let warm_up = turn.forwards_before_last_stage() + 2 * u64::from(layout.ranks - 1 - rank);
    turn.alternate(warm_up, None)
}

/// The micro-batches must make equal rounds.
pub(super) fn precondition(ranks: u32, micro_batches: u32) -> Result<()> {
    let fits = |m: u32| m.is_multiple_of(rounds(ranks, m));
    if fits(micro_batches) {
        return Ok(());
    }
    // A multiple of `ranks` always fits, so both searches end.
    let below = (1..micro_batches).rev().find(|&m| fits(m));
    let above = (micro_batches + 1..).find(|&m| fits(m));
    let nearest: Vec<String> = below.into_iter().chain(above).map(|m| m.to_string()).collect();
    Err(Error::new(format!(
        "interleaved with {ranks} ranks needs a number of micro-batches that divides into {} equal rounds, not \
         {micro_batches}: use {}",
        rounds(ranks, micro_batches),
        nearest.join(" or ")
    ))
    .field("training.micro_batches"))
}
