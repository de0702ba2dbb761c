//! What follows when only so many actions of a rank may be outside of pairs.

use super::heads::{Heads, Progress};
use super::lines::Lines;
use super::tails::Tails;
use crate::units::Nanos;

/// When a rank can have pairs, in a timetable that is no longer than `within`: not before its first backward, and not so late that the
/// forward does not come to an end.
pub(super) struct Window {
    first_backward: Nanos,
    no_forward: Nanos,
    within: Nanos,
}

impl Window {
    /// That of `rank`.
    pub fn new(lines: &Lines, heads: &Heads, tails: &Tails, progress: &Progress, rank: usize, within: Nanos) -> Self {
        let classes = &lines.on_rank[rank];
        let first_backward = classes.iter().filter_map(|&(at, stage)| {
            let (line, input) = (&lines.lines[at], lines.lines[at].input(stage));
            let next = progress.steps[at][input];
            (next < line.count).then(|| heads.start(at, input, next))
        });
        let no_forward = classes.iter().map(|&(at, stage)| tails.end(at, stage, 0));
        Self {
            first_backward: first_backward.min().unwrap_or(Nanos(u64::MAX)),
            no_forward: no_forward.min().unwrap_or(Nanos::ZERO),
            within,
        }
    }

    /// Whether a forward is in no pair, if that would take `pair` at least, and `tail` is what comes behind it.
    pub fn forward_is_alone(&self, pair: Nanos, tail: Nanos) -> bool {
        self.first_backward + pair + tail > self.within
    }

    /// Whether a backward is in no pair, if that would take `pair` at least and cannot start before `head`.
    pub fn backward_is_alone(&self, pair: Nanos, head: Nanos) -> bool {
        head + pair + self.no_forward > self.within
    }
}

/// Actions with one step of which at most n are alone: of any of them that follow each other, all but n are pairs, one after the
/// other.
#[derive(Default)]
pub(super) struct Run(Nanos);

impl Run {
    /// One more action, of which `first` is the start of the n-th before it, and `pair` the least that a pair takes. Returns the
    /// end of the pairs; those that are alone take their time besides.
    pub fn extend(&mut self, first: Nanos, pair: Nanos) -> Nanos {
        self.0 = self.0.max(first) + pair;
        self.0
    }
}

/// The backwards that forwards of a rank are overlapped with, or the other way round, in the order in which they can be.
pub(super) struct Partners {
    /// Per class of the rank, how many are taken.
    taken: Vec<usize>,
    count: usize,
    latest: Nanos,
}

impl Partners {
    /// None yet, of so many classes.
    pub fn new(classes: usize) -> Self {
        Self { taken: vec![0; classes], count: 0, latest: Nanos::ZERO }
    }

    /// The least time of the `n`-th partner, if `next` gives that of a class, by how many are taken of it. Must be asked
    /// for growing `n`. Where there are not so many, none can be.
    pub fn nth(&mut self, n: usize, next: impl Fn(usize, usize) -> Option<Nanos>) -> Nanos {
        while self.count < n {
            let classes = self.taken.iter().enumerate();
            let least = classes.filter_map(|(class, &taken)| Some((next(class, taken)?, class))).min();
            let Some((time, class)) = least else { return Nanos(u64::MAX) };
            self.taken[class] += 1;
            self.count += 1;
            self.latest = self.latest.max(time);
        }
        self.latest
    }
}
