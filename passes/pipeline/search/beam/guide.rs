//! How promising a partial timetable is.

use super::Beam;
use super::known::Known;
use super::node::{NEVER, PER_LANE};

impl Beam<'_> {
    /// How late ranks will be at least: the less the better.
    pub(super) fn guide(&mut self, node: &[u64]) -> u128 {
        let model = self.model;
        let (counts, ends, ranks) = (self.counts(), self.ends(), model.of_rank.len());
        let [forward, backward] = &mut self.coming;
        self.room.fill(0);
        for round in 0..2 {
            for (at, lane) in model.lanes.iter().enumerate() {
                let next = node[counts + PER_LANE * at];
                let mut start = node[lane.rank].max(self.room[lane.rank]);
                if let Some((before, hop)) = lane.before
                    && next < lane.count as u64
                {
                    let earlier = &model.lanes[before];
                    let end = node[ends + earlier.base + next as usize];
                    start = start.max(if end == NEVER { forward[before] + earlier.f } else { end } + hop);
                }
                forward[at] = start;
            }
            for (at, lane) in model.lanes.iter().enumerate().rev() {
                let (f, next) = (node[counts + PER_LANE * at], node[counts + PER_LANE * at + 1]);
                let mut start = node[lane.rank];
                if next < lane.count as u64 {
                    if next == f {
                        start = start.max(forward[at] + lane.f);
                    }
                    if let Some((after, hop)) = lane.after {
                        let later = &model.lanes[after];
                        let end = node[ends + model.chunks + later.base + next as usize];
                        start = start.max(if end == NEVER { backward[after] + later.i } else { end } + hop);
                    }
                }
                backward[at] = start;
            }
            if round == 1 {
                break;
            }
            // Where memory is full, the next forward waits for the next backward.
            let mut full = false;
            for (rank, held) in model.of_rank.iter().enumerate() {
                let least = held.iter().map(|&at| model.lanes[at].held.activation).min().unwrap_or(0);
                if node[ranks + rank] + least <= model.limits[rank] {
                    continue;
                }
                let freed = held.iter().filter_map(|&at| {
                    let lane = &model.lanes[at];
                    let [f, i, pending] = [0, 1, 2].map(|part| node[counts + PER_LANE * at + part]);
                    match (pending > 0, i < f) {
                        (true, _) => Some(node[rank] + lane.w),
                        (false, true) => Some(backward[at] + lane.work() - lane.f),
                        (false, false) => None,
                    }
                });
                self.room[rank] = freed.min().unwrap_or(0);
                full = true;
            }
            if !full {
                break;
            }
        }
        let (mut latest, mut sum) = (0, 0);
        for (rank, held) in model.of_rank.iter().enumerate() {
            let (mut work, mut waits, mut first) = (0, 0, NEVER);
            let (mut forwards, mut backwards, mut late, mut memory) = (0, 0, 0, 0);
            for &at in held {
                let lane = &model.lanes[at];
                let [f, i, pending] = [0, 1, 2].map(|part| node[counts + PER_LANE * at + part]);
                let (f, i) = (lane.count as u64 - f, lane.count as u64 - i);
                work += f * lane.f + i * (lane.work() - lane.f);
                waits += pending * lane.w;
                if let Some(Known { tails: [forwards, backwards], .. }) = self.known {
                    if f > 0 {
                        late = late.max(forward[at] + forwards[lane.base + lane.count - f as usize]);
                        first = first.min(forward[at]);
                    }
                    if i > 0 {
                        late = late.max(backward[at] + backwards[lane.base + lane.count - i as usize]);
                        first = first.min(backward[at]);
                    }
                    continue;
                }
                if f > 0 {
                    memory += f * self.alone[at];
                    late = late.max(forward[at] + f * lane.f + self.round[at] + self.home[at] - lane.i);
                    first = first.min(forward[at]);
                }
                if i > 0 {
                    late = late.max(backward[at] + (i - 1) * lane.i + self.home[at]);
                    first = first.min(backward[at]);
                }
                forwards += f;
                backwards += i;
            }
            work -= (forwards.min(backwards) * self.saving[rank]).min(work);
            let free = node[rank];
            let idle = if first == NEVER { 0 } else { first - free };
            let floor = self.known.map_or(0, |known| known.makespan.saturating_sub(self.longest * self.taste.near));
            let lateness = floor.max(late).max(free + work + idle.max(waits)).max(free + memory);
            latest = latest.max(lateness);
            sum += u128::from(lateness);
        }
        u128::from(latest) * u128::from(self.taste.latest) * ranks as u128 / 4 + sum
    }
}
