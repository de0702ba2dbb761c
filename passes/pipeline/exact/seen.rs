//! Partial timetables that make others needless.

use std::collections::BTreeMap;

use crate::units::Nanos;

use super::state::State;

/// What was done, and by what times.
///
/// Of two partial timetables in which the same was done, one that is nowhere later makes the other needless: whatever continues
/// the other continues this one, and ends no later.
#[derive(Default)]
pub(super) struct Seen(BTreeMap<Vec<u32>, Vec<Vec<Nanos>>>);

impl Seen {
    /// Remembers a partial timetable, unless one that was seen before makes it needless.
    pub fn is_new(&mut self, state: &State) -> bool {
        let times = times(state);
        let others = self.0.entry(done(state)).or_default();
        let no_later = |a: &[Nanos], b: &[Nanos]| a.iter().zip(b).all(|(a, b)| a <= b);
        if others.iter().any(|other| no_later(other, &times)) {
            return false;
        }
        others.retain(|other| !no_later(&times, other));
        others.push(times);
        true
    }
}

/// How often every part of every class was done.
fn done(state: &State) -> Vec<u32> {
    let counts = state.progress.steps.iter().chain(&state.progress.weights).flatten();
    counts.map(|&count| count as u32).collect()
}

/// When ranks are free, and when what they have not read arrives.
fn times(state: &State) -> Vec<Nanos> {
    let mut times = state.progress.free.clone();
    for (at, (line, done)) in state.lines.lines.iter().zip(&state.progress.steps).enumerate() {
        for (step, to) in line.steps.iter().enumerate().skip(1) {
            if line.steps[step - 1].rank != to.rank {
                let free = state.progress.free[to.rank];
                times.extend((done[step]..done[step - 1]).map(|k| free.max(state.heads.end(at, step - 1, k) + to.hop)));
            }
        }
    }
    times
}
