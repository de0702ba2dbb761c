//! What a timetable's length hangs on.

use super::Objective;
use super::clock::Clock;
use super::model::{Model, Orders, Step};

/// The steps, as (rank, place), of which each starts when the one before it lets it, from the last step of the rank that
/// makes the timetable long back to time zero. `clock` has just run `orders`. Empty if nothing runs.
pub(super) fn critical_path(
    model: &Model,
    clock: &Clock,
    orders: &Orders,
    objective: Objective,
) -> Vec<(usize, usize)> {
    let mut path = Vec::new();
    let length = |rank: usize| match objective {
        Objective::Makespan => clock.free[rank],
        Objective::LongestSpan => clock.free[rank] - clock.starts[rank].first().unwrap_or(&0),
    };
    let Some(mut rank) = (0..orders.len()).rev().max_by_key(|&rank| length(rank)) else { return path };
    let Some(mut at) = orders[rank].len().checked_sub(1) else { return path };
    let places = Places::new(model, orders);
    loop {
        path.push((rank, at));
        let start = clock.starts[rank][at];
        if start == 0 {
            return path;
        }
        if at > 0 && clock.starts[rank][at - 1] + model.cost(orders[rank][at - 1]) == start {
            at -= 1;
            continue;
        }
        let (chunk_f, chunk_i) = places.chunks[rank][at];
        let step = orders[rank][at];
        let by_forward = step.forward().and_then(|lane| {
            let (before, hop) = model.lanes[lane].before?;
            let lets = clock.end_of_forward(model, before, chunk_f) + hop == start;
            lets.then(|| (model.lanes[before].rank, places.forward[before][chunk_f]))
        });
        let by_backward = || {
            step.backward().and_then(|lane| {
                let (after, hop) = model.lanes[lane].after?;
                let lets = clock.end_of_backward(model, after, chunk_i) + hop == start;
                lets.then(|| (model.lanes[after].rank, places.backward[after][chunk_i]))
            })
        };
        match by_forward.or_else(by_backward) {
            Some(from) => (rank, at) = from,
            // Not reached: a step starts when its rank is free or what it reads has come.
            None => return path,
        }
    }
}

/// Where in the orders chunks run.
struct Places {
    /// Per lane and chunk, the place of F.
    forward: Vec<Vec<usize>>,
    /// Per lane and chunk, the place of I.
    backward: Vec<Vec<usize>>,
    /// Per rank and step, which chunk of their lanes its F and its I are of.
    chunks: Vec<Vec<(usize, usize)>>,
}

impl Places {
    fn new(model: &Model, orders: &Orders) -> Self {
        let of_lanes = || model.lanes.iter().map(|lane| Vec::with_capacity(lane.count)).collect::<Vec<Vec<usize>>>();
        let (mut forward, mut backward) = (of_lanes(), of_lanes());
        let number = |places: &mut Vec<Vec<usize>>, lane: Option<usize>, at: usize| {
            lane.map_or(0, |lane| {
                places[lane].push(at);
                places[lane].len() - 1
            })
        };
        let mut of_rank = |steps: &Vec<Step>| {
            let chunks = |(at, step): (usize, &Step)| {
                (number(&mut forward, step.forward(), at), number(&mut backward, step.backward(), at))
            };
            steps.iter().enumerate().map(chunks).collect()
        };
        let chunks = orders.iter().map(&mut of_rank).collect();
        Self { forward, backward, chunks }
    }
}
