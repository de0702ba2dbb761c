//! A timetable that is known, beside which a beam is compared.

use crate::passes::pipeline::search::clock::Clock;
use crate::passes::pipeline::search::model::{Model, Orders, Step};

/// A timetable that is known.
pub struct Known {
    /// Its steps in the order in which they start, with their ranks.
    pub(super) steps: Vec<(usize, Step)>,
    /// Per chunk, how long everything goes on from the start of the step that has its F, and its I.
    pub(super) tails: [Vec<u64>; 2],
    pub(super) makespan: u64,
}

/// The timetable of orders that `clock` has just run.
pub fn known(model: &Model, clock: &Clock, orders: &Orders) -> Known {
    let mut steps: Vec<(u64, usize, usize)> = Vec::new();
    for (rank, starts) in clock.starts.iter().enumerate() {
        steps.extend(starts.iter().enumerate().map(|(at, &start)| (start, at, rank)));
    }
    steps.sort_unstable();
    let mut tails = [vec![0; model.chunks], vec![0; model.chunks]];
    let mut of_rank = vec![0; orders.len()];
    let mut next: Vec<[usize; 2]> = model.lanes.iter().map(|lane| [lane.count; 2]).collect();
    for &(_, at, rank) in steps.iter().rev() {
        let step = orders[rank][at];
        let mut tail: u64 = of_rank[rank];
        if let Some(f) = step.forward() {
            next[f][0] -= 1;
            let chunk = next[f][0];
            tail = tail.max(match model.lanes[f].after {
                Some((after, hop)) => hop + tails[0][model.lanes[after].base + chunk],
                None => tails[1][model.lanes[f].base + chunk],
            });
        }
        if let Some(b) = step.backward() {
            next[b][1] -= 1;
            let chunk = next[b][1];
            if let Some((before, hop)) = model.lanes[b].before {
                tail = tail.max(hop + tails[1][model.lanes[before].base + chunk]);
            }
        }
        tail += model.cost(step);
        of_rank[rank] = tail;
        if let Some(f) = step.forward() {
            tails[0][model.lanes[f].base + next[f][0]] = tail;
        }
        if let Some(b) = step.backward() {
            tails[1][model.lanes[b].base + next[b][1]] = tail;
        }
    }
    let makespan = clock.free.iter().copied().max().unwrap_or(0);
    let steps = steps.iter().map(|&(_, at, rank)| (rank, orders[rank][at])).collect();
    Known { steps, tails, makespan }
}
