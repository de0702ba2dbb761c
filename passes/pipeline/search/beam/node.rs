//! A partial timetable: how its numbers lie, and how a step changes them.
//!
//! Per rank, when it is free and what it holds; per lane, four counts; per chunk, the ends of its F and of its I.

use super::{Beam, Next, What};
use crate::passes::pipeline::search::model::Step;

/// Numbers of a lane: F and I that are done, W that wait, and what is held back.
pub(super) const PER_LANE: usize = 4;

/// What is held back of a lane.
pub(super) const FORWARD: u64 = 1;
pub(super) const BACKWARD: u64 = 2;

/// No time that is known yet.
pub(super) const NEVER: u64 = u64::MAX;

/// Longer than any timetable.
pub(super) const FAR: u64 = 1 << 60;

impl Beam<'_> {
    /// Where the numbers of lanes begin.
    pub(super) fn counts(&self) -> usize {
        2 * self.model.of_rank.len()
    }

    /// Where the ends of chunks begin.
    pub(super) fn ends(&self) -> usize {
        self.counts() + PER_LANE * self.model.lanes.len()
    }

    /// Adds what comes next.
    pub(super) fn apply(&self, node: &mut [u64], next: Next) {
        let (model, ranks, counts, ends) = (self.model, self.model.of_rank.len(), self.counts(), self.ends());
        let step = next.step;
        if next.what == What::Wait {
            node[next.rank] = next.end;
            return;
        }
        if next.what == What::HoldBack {
            if let Some(f) = step.forward() {
                node[counts + PER_LANE * f + 3] |= FORWARD;
            }
            if let Some(b) = step.backward() {
                node[counts + PER_LANE * b + 3] |= BACKWARD;
            }
            return;
        }
        for &lane in &model.of_rank[next.rank] {
            node[counts + PER_LANE * lane + 3] = 0;
        }
        node[next.rank] = next.end;
        let (more, less) = model.holds(step);
        node[ranks + next.rank] = node[ranks + next.rank] + more - less;
        if let Some(f) = step.forward() {
            let count = &mut node[counts + PER_LANE * f];
            *count += 1;
            let place = ends + model.lanes[f].base + *count as usize - 1;
            node[place] = next.end;
        }
        if let Some(b) = step.backward() {
            let count = &mut node[counts + PER_LANE * b + 1];
            *count += 1;
            let place = ends + model.chunks + model.lanes[b].base + *count as usize - 1;
            node[place] = next.end;
            node[counts + PER_LANE * b + 2] += u64::from(matches!(step, Step::I(_)));
        }
        if let Step::W(l) = step {
            node[counts + PER_LANE * l as usize + 2] -= 1;
        }
    }

    /// Takes a step back that was started; `before` is what a partial timetable was before, but for ends.
    pub(super) fn undo(&self, node: &mut [u64], before: &[u64], step: Step) {
        node[..before.len()].copy_from_slice(before);
        let (counts, ends) = (self.counts(), self.ends());
        if let Some(f) = step.forward() {
            node[ends + self.model.lanes[f].base + before[counts + PER_LANE * f] as usize] = NEVER;
        }
        if let Some(b) = step.backward() {
            let next = before[counts + PER_LANE * b + 1] as usize;
            node[ends + self.model.chunks + self.model.lanes[b].base + next] = NEVER;
        }
    }
}

/// Of numbers, well mixed.
pub(super) fn hash(values: &[u64]) -> u64 {
    let mix = |value: u64| {
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value ^ (value >> 27)
    };
    let place = |at: u64| (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let sum = (0..).zip(values).fold(0_u64, |sum, (at, &value)| sum.wrapping_add(mix(place(at) ^ value)));
    mix(sum)
}
