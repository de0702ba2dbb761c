//! From few micro-batches to many: the part of orders that repeats, repeated more often.
//!
//! Cut every rank's order at a time t: what has started is closed under "reads from". Let two such cuts differ by the same
//! number p of F, I and W on every lane. What stands between them may then be run again, and again: a step of a repetition
//! reads what stands in the same repetition or before it, as the step did that it repeats, because at the start of each
//! repetition every lane has come p chunks further than at the start of the one before. For the same reason a rank holds no
//! more than it did.

use std::collections::BTreeMap;

use super::clock::Clock;
use super::model::{Model, Orders};

/// A part of orders that may be repeated.
#[derive(Clone, Debug)]
pub(super) struct Loop {
    /// Per rank, the place of its first step.
    from: Vec<usize>,
    /// Per rank, the place behind its last step.
    to: Vec<usize>,
    /// Chunks of each lane that it runs.
    pub chunks: usize,
    /// Time from one cut to the other.
    time: u64,
}

impl Loop {
    /// Its steps on a rank: from the first to behind the last.
    pub fn range(&self, rank: usize) -> (usize, usize) {
        (self.from[rank], self.to[rank])
    }
}

/// Orders cut where a forward of the first lane starts.
struct Cut {
    /// Which forward.
    number: usize,
    /// When.
    time: u64,
    /// Per rank, the place of the first step behind the cut.
    places: Vec<usize>,
}

/// The loops of orders that `clock` has just run: for each number of chunks the one that takes the least time, and of those
/// the first; the fastest per chunk come first.
pub(super) fn loops(model: &Model, clock: &Clock, orders: &Orders) -> Vec<Loop> {
    // States at the starts of the first lane's forwards, relative to how many there were.
    let mut seen: BTreeMap<Vec<i64>, Vec<Cut>> = BTreeMap::new();
    let mut best: BTreeMap<usize, Loop> = BTreeMap::new();
    let Some(first) = model.lanes.first() else { return Vec::new() };
    let mut cut = vec![0; orders.len()];
    let mut state = vec![[0_i64; 3]; model.lanes.len()];
    let entries = orders[first.rank].iter().zip(&clock.starts[first.rank]);
    let entries = entries.filter(|(step, _)| step.forward() == Some(0)).map(|(_, &start)| start);
    for (number, time) in entries.enumerate() {
        for (rank, place) in cut.iter_mut().enumerate() {
            while clock.starts[rank].get(*place).is_some_and(|&start| start < time) {
                let step = orders[rank][*place];
                if let Some(lane) = step.forward() {
                    state[lane][0] += 1;
                }
                if let Some(lane) = step.backward() {
                    state[lane][1] += 1;
                }
                if let Some(lane) = step.weights() {
                    state[lane][2] += 1;
                }
                *place += 1;
            }
        }
        let relative = state.iter().flatten().map(|count| count - number as i64).collect();
        let before = seen.entry(relative).or_default();
        for earlier in before.iter() {
            let chunks = number - earlier.number;
            let time = time - earlier.time;
            if best.get(&chunks).is_none_or(|best| time < best.time) {
                best.insert(chunks, Loop { from: earlier.places.clone(), to: cut.clone(), chunks, time });
            }
        }
        before.push(Cut { number, time, places: cut.clone() });
    }
    let mut loops: Vec<Loop> = best.into_values().collect();
    loops.sort_by(|a, b| {
        let per_chunk = |one: &Loop, other: &Loop| u128::from(one.time) * other.chunks as u128;
        per_chunk(a, b).cmp(&per_chunk(b, a)).then(a.chunks.cmp(&b.chunks))
    });
    loops
}

/// The orders with a loop run so many times more.
pub(super) fn unroll(orders: &Orders, part: &Loop, times: usize) -> Orders {
    let rank = |(steps, (&from, &to)): (&Vec<_>, (&usize, &usize))| {
        let mut all = Vec::with_capacity(steps.len() + times * (to - from));
        all.extend_from_slice(&steps[..to]);
        for _ in 0..times {
            all.extend_from_slice(&steps[from..to]);
        }
        all.extend_from_slice(&steps[to..]);
        all
    };
    orders.iter().zip(part.from.iter().zip(&part.to)).map(rank).collect()
}
