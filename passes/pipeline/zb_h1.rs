//! ZB-H1 (Qi et al. 2023): 1F1B whose backward is split; each rank holds W back as long as 1F1B's memory allows, so that it
//! fills the bubble at the end. PyTorch's interleaved zero bubble with one stage per rank (and as given by
//! `ScheduleInterleavedZeroBubble`, should a rank hold more).

use super::one_f_one_b::Turn;
use crate::ir::{Action, Layout};

/// Actions of `rank`.
pub(super) fn rank(layout: &Layout, rank: u32) -> Vec<Action> {
    let turn = Turn::new(layout, rank);
    let warm_up = turn.forwards_before_last_stage() + u64::from(layout.ranks - 1 - rank);
    turn.alternate(warm_up, Some(u64::from(rank)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Placement, Timetable};

    /// PyTorch has no file of the one-stage case; the rule is the same for more stages.
    #[test]
    fn agrees_with_pytorch_on_two_stages_per_rank() {
        let layout = Layout::new(Placement::Loop, 2, 2, 4);
        let ranks = (0..2).map(|r| rank(&layout, r)).collect();
        let ours = Timetable { layout, ranks }.stage_tokens();
        let file = include_str!("../../tests/data/torch-csv/izb_pp2_stages4_m4.compute_only.csv");
        for (ours, theirs) in ours.lines().zip(file.lines()) {
            let theirs: Vec<&str> = theirs.split(',').map(str::trim).filter(|cell| !cell.is_empty()).collect();
            assert_eq!(ours, theirs.join(" "));
        }
        assert_eq!(ours.lines().count(), file.lines().count());
    }
}
