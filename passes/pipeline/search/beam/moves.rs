//! What may come next in a partial timetable.

use super::node::{BACKWARD, FORWARD, NEVER, PER_LANE};
use super::{Beam, Next, What};
use crate::passes::pipeline::search::dispatch::all_can_end;
use crate::passes::pipeline::search::model::{Guard, Step};

impl Beam<'_> {
    /// What may come next: on one rank.
    pub(super) fn all_moves(&self, node: &[u64], all: &mut Vec<Next>) {
        for rank in 0..self.model.of_rank.len() {
            self.moves_of(node, rank, all);
        }
        let Some(first) = all.iter().copied().min_by_key(|next| (next.end, next.rank, next.start)) else { return };
        all.retain(|next| next.rank == first.rank && next.start < first.end.max(first.start + 1));
        let rank = first.rank;
        let alone = matches!(first.step, Step::F(_) | Step::I(_) | Step::B(_));
        let for_pair = self.saving[rank] > 0 && self.may_pair(node, rank, first.step);
        if alone && for_pair && first.end > node[rank] {
            all.push(Next { what: What::Wait, ..first });
        }
        if let Step::F(lane) = first.step
            && self.tight[rank]
        {
            let held = node[self.model.of_rank.len() + rank];
            let more = (1 + self.taste.spare) * self.model.lanes[lane as usize].held.activation;
            if held + more > self.model.limits[rank] {
                all.push(Next { what: What::HoldBack, ..first });
            }
        }
    }

    /// Whether a pair may yet come of a step.
    fn may_pair(&self, node: &[u64], rank: usize, step: Step) -> bool {
        let counts = self.counts();
        let held = &self.model.of_rank[rank];
        match step {
            Step::F(_) => held.iter().any(|&at| node[counts + PER_LANE * at + 1] < node[counts + PER_LANE * at]),
            _ => held.iter().any(|&at| node[counts + PER_LANE * at] < self.model.lanes[at].count as u64),
        }
    }

    /// What a rank could start, and when.
    fn moves_of(&self, node: &[u64], rank: usize, all: &mut Vec<Next>) {
        let (model, counts, ends) = (self.model, self.counts(), self.ends());
        let free = node[rank];
        let (held, limit) = (node[model.of_rank.len() + rank], model.limits[rank]);
        let of_rank = &model.of_rank[rank];
        let [f_of, i_of, pending] = [0, 1, 2].map(|part| move |at: usize| node[counts + PER_LANE * at + part]);
        let mut soonest = NEVER;
        let mut full = false;
        let mut add = |step: Step, start: u64| {
            all.push(Next { step, what: What::Start, rank, start, end: start + model.cost(step) });
        };
        let forward = |at: usize| {
            let lane = &model.lanes[at];
            let next = f_of(at);
            if next == lane.count as u64 {
                return None;
            }
            let Some((before, hop)) = lane.before else { return Some(free) };
            let end = node[ends + model.lanes[before].base + next as usize];
            (end != NEVER).then(|| free.max(end + hop))
        };
        let held_back = |at: usize, part: u64| node[counts + PER_LANE * at + 3] & part > 0;
        for &at in of_rank {
            let lane = &model.lanes[at];
            if i_of(at) == f_of(at) {
                continue;
            }
            let start = match lane.after {
                None => free,
                Some((after, hop)) => {
                    let end = node[ends + model.chunks + model.lanes[after].base + i_of(at) as usize];
                    if end == NEVER {
                        continue;
                    }
                    free.max(end + hop)
                }
            };
            if held_back(at, BACKWARD) {
            } else if held + model.needs(Step::I(at as u32)) <= limit {
                soonest = soonest.min(start);
                add(Step::I(at as u32), start);
            } else {
                full = true;
            }
            if !held_back(at, BACKWARD) && lane.b < lane.i + lane.w && held + model.needs(Step::B(at as u32)) <= limit {
                soonest = soonest.min(start);
                add(Step::B(at as u32), start);
            }
            if self.saving[rank] == 0 {
                continue;
            }
            for &f in of_rank.iter().filter(|&&f| model.saving(f, at) > 0) {
                let step = Step::Pair(f as u32, at as u32);
                if held + model.needs(step) <= limit
                    && let Some(other) = forward(f)
                {
                    add(step, start.max(other));
                }
            }
        }
        for &at in of_rank {
            let Some(start) = forward(at) else { continue };
            if held_back(at, FORWARD) {
            } else if self.has_room(node, rank, at) {
                soonest = soonest.min(start);
                add(Step::F(at as u32), start);
            } else {
                full = true;
            }
        }
        // W fills gaps, and makes room.
        let waits = of_rank.iter().copied().filter(|&at| pending(at) > 0);
        if soonest > free || full {
            let gap = soonest.saturating_sub(free);
            let longest_that_fits = |&at: &usize| {
                let w = model.lanes[at].w;
                (w <= gap, if w <= gap { w } else { NEVER - w }, std::cmp::Reverse(at))
            };
            if let Some(at) = waits.max_by_key(longest_that_fits) {
                add(Step::W(at as u32), free);
            }
        }
    }

    /// When a step can start, if its inputs are there.
    pub(super) fn start(&self, node: &[u64], rank: usize, step: Step) -> Option<u64> {
        let (model, counts, ends) = (self.model, self.counts(), self.ends());
        let mut start = node[rank];
        if let Some(f) = step.forward()
            && let Some((before, hop)) = model.lanes[f].before
        {
            let next = node[counts + PER_LANE * f] as usize;
            let end = node[ends + model.lanes[before].base + next];
            start = start.max(Some(end).filter(|&end| end != NEVER)? + hop);
        }
        if let Some(b) = step.backward()
            && let Some((after, hop)) = model.lanes[b].after
        {
            let next = node[counts + PER_LANE * b + 1] as usize;
            let end = node[ends + model.chunks + model.lanes[after].base + next];
            start = start.max(Some(end).filter(|&end| end != NEVER)? + hop);
        }
        Some(start)
    }

    /// Whether F of a lane fits, and its micro-batch can come back.
    fn has_room(&self, node: &[u64], rank: usize, at: usize) -> bool {
        let (model, counts) = (self.model, self.counts());
        let lane = &model.lanes[at];
        let mut held = node[model.of_rank.len() + rank] + lane.held.activation;
        if model.guards.contains(&Guard::Banker) {
            return held + model.backwards[rank] <= model.limits[rank] && self.all_can_end(node, at);
        }
        for &other in &model.of_rank[rank] {
            let later = &model.lanes[other];
            let [f, i, pending] = [0, 1, 2].map(|part| node[counts + PER_LANE * other + part]);
            if later.stage > lane.stage && f < later.count as u64 {
                let holds = (f - i) * later.held.activation + pending * later.held.for_weights;
                held += later.held.activation.saturating_sub(holds);
            }
        }
        held + model.backwards[rank] <= model.limits[rank]
    }

    /// As in the list scheduler.
    fn all_can_end(&self, node: &[u64], at: usize) -> bool {
        let (lanes, counts) = (&self.model.lanes, self.counts());
        let mut limits = self.model.limits.clone();
        limits.iter_mut().zip(&self.model.backwards).for_each(|(limit, backwards)| *limit -= backwards);
        let state = |lane: usize| {
            let [f, i] = [0, 1].map(|part| node[counts + PER_LANE * lane + part]);
            (f + u64::from(lane == at), i)
        };
        all_can_end(lanes, state, limits)
    }
}
