//! Better launch orders where ops slow each other, by small changes.
//!
//! An order that is the best for fixed durations can be tight, and stall once durations stretch. Each op is tried at every
//! place of its repetition, of the one before and of the one after; the best change is taken as long as one helps.

use super::{CyclicProblem, CyclicSchedule};
use crate::units::Nanos;

/// How many changes are taken at most.
const MOST_CHANGES: usize = 20;

/// The schedule after changes, its period as [`CyclicProblem::slowed_period`] has it.
pub fn improve(problem: &CyclicProblem, schedule: CyclicSchedule) -> CyclicSchedule {
    let count = problem.ops.len() as i64;
    // Places of a repetition are even numbers, from 0 to 2·count; an op that moves stands between two others.
    let turn = 2 * count;
    let mut places = places(&schedule, turn);
    let mut best = schedule;
    for _ in 0..MOST_CHANGES {
        if best.proved() {
            break;
        }
        let mut found = None;
        for op in 0..places.len() {
            for to in (1 - turn..2 * turn).step_by(2) {
                let mut next = places.clone();
                next[op] = to;
                if !allowed(problem, &next, turn) {
                    continue;
                }
                let candidate = with_places(&best, &next, turn);
                let period = problem.slowed_period(&candidate);
                if period < best.period {
                    best = CyclicSchedule { period, ..candidate };
                    found = Some(next);
                }
            }
        }
        match found {
            Some(next) => places = renumbered(&next, turn),
            None => break,
        }
    }
    best
}

/// Each op's place in launch order, counted from the start of repetition 0.
fn places(schedule: &CyclicSchedule, turn: i64) -> Vec<i64> {
    let period = schedule.unslowed.0.max(1);
    let within: Vec<(u64, usize)> =
        schedule.starts.iter().enumerate().map(|(op, start)| (start.0 % period, op)).collect();
    let mut order = within.clone();
    order.sort_unstable();
    let mut places = vec![0; within.len()];
    for (at, &(_, op)) in (0..).zip(&order) {
        places[op] = 2 * at + turn * (schedule.starts[op].0 / period) as i64;
    }
    places
}

/// Even numbers again, in the same order.
fn renumbered(places: &[i64], turn: i64) -> Vec<i64> {
    let mut order: Vec<(i64, usize)> =
        places.iter().enumerate().map(|(op, place)| (place.rem_euclid(turn), op)).collect();
    order.sort_unstable();
    let mut renumbered = vec![0; places.len()];
    for (at, &(_, op)) in (0..).zip(&order) {
        renumbered[op] = 2 * at + turn * places[op].div_euclid(turn);
    }
    renumbered
}

/// Whether every op is launched after what it reads, and no weight gradient falls too far behind, nor what is computed again
/// runs too far ahead.
fn allowed(problem: &CyclicProblem, places: &[i64], turn: i64) -> bool {
    problem.edges().iter().all(|edge| match edge.weight {
        0 => places[edge.to] + turn * edge.distance >= places[edge.from],
        _ => places[edge.to] + turn * edge.distance > places[edge.from],
    })
}

/// A schedule that launches in the order of these places.
fn with_places(schedule: &CyclicSchedule, places: &[i64], turn: i64) -> CyclicSchedule {
    let first = places.iter().copied().min().unwrap_or(0).div_euclid(turn) * turn;
    let starts = places.iter().map(|place| Nanos((place - first) as u64)).collect();
    CyclicSchedule { starts, unslowed: Nanos(turn as u64), ..schedule.clone() }
}
