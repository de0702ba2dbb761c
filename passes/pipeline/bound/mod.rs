//! What no timetable can beat.
//!
//! A bound over every timetable of the same placement and costs that keeps the memory limits: backwards whole or split, any
//! forward overlapped with any backward of its rank, W anywhere. It is proved, and no estimate of what can be reached.
//!
//! - [`lines`]: what is bounded: the ways of micro-batches, which are interchangeable, and the least that actions take.
//! - [`heads`], [`tails`]: the least time before and behind every step of every micro-batch.
//! - [`one_machine`]: a rank as one machine with heads and tails.
//! - [`trade`]: a rank's work, where what fills the ends of its time is not overlapped.
//! - [`crowd`]: Little's law: what chunks hold, and how long.
//! - [`turns`]: the orders that a rank can have, by dynamic programming.
//! - [`known`]: all of these on the supposition that a timetable is no longer than some makespan, which limits how many actions can be
//!   outside of pairs, which makes heads and tails longer, and so on; until nothing changes, or the supposition is refuted.

mod block;
mod crowd;
mod heads;
mod known;
mod lines;
mod one_machine;
mod pairs;
mod tails;
mod trade;
mod turns;

pub(super) use heads::{Alone, Heads, Progress};
pub(super) use known::{Known, chains};
pub(super) use lines::{Line, Lines};
pub(super) use one_machine::machines;
pub(super) use tails::Tails;

use crate::ir::Problem;
use crate::units::Nanos;
use known::Depth;
use trade::Trade;

/// A makespan that no timetable over the problem's placement is below. If memory lets no timetable through, it is any number.
///
/// About linear in the number of chunks.
pub fn lower_bound(problem: &Problem) -> Nanos {
    bounds(problem).best()
}

/// As [`lower_bound`], by one argument more: in what orders each rank can run its actions. That takes up to some seconds, however large
/// the problem is.
pub fn tight_bound(problem: &Problem) -> Nanos {
    let bound = lower_bound(problem);
    let chunks = u64::from(problem.layout.stages) * u64::from(problem.layout.micro_batches);
    if !(1..=REFUTED_CHUNKS).contains(&chunks) {
        return bound;
    }
    refute_from(problem, &Lines::new(problem), bound, true)
}

/// Lower bounds of the makespan, by the argument behind them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The way of a micro-batch, with all that must come before and behind it on its ranks, and with what it waits for where memory is
    /// full.
    pub way: Nanos,
    /// A rank that runs its actions one after the other, none before what it reads can be there.
    pub machine: Nanos,
    /// A rank's work, and its idle time at the ends.
    pub work: Nanos,
    /// What can be refuted beyond the others.
    pub refuted: Nanos,
}

impl Bounds {
    /// The largest.
    pub fn best(&self) -> Nanos {
        self.way.max(self.machine).max(self.work).max(self.refuted)
    }
}

/// The bounds of which [`lower_bound`] is the largest.
pub fn bounds(problem: &Problem) -> Bounds {
    let layout = &problem.layout;
    if layout.micro_batches == 0 || layout.stages == 0 {
        return Bounds::default();
    }
    let lines = Lines::new(problem);
    let known = Known::of_all(&lines);
    let progress = Progress::none(&lines, known.alone.clone());
    let mut bounds = Bounds {
        way: chains(&lines, &known.heads, &known.tails, &progress),
        machine: machines(&lines, &known.heads, &known.tails, &progress, Nanos(u64::MAX)),
        work: known.trades(problem, &lines).iter().map(Trade::bound).max().unwrap_or(Nanos::ZERO),
        refuted: Nanos::ZERO,
    };
    if u64::from(layout.stages) * u64::from(layout.micro_batches) <= REFUTED_CHUNKS {
        bounds.refuted = refute_from(problem, &lines, bounds.best(), false);
    }
    bounds
}

/// Nothing more is refuted of problems with more chunks: each question takes as long as the other bounds, and there are some.
const REFUTED_CHUNKS: u64 = 1 << 19;

/// The first step up from a bound is a part in so many, and twice as long each time.
const FIRST_STEP: u64 = 1024;

/// The search ends when it knows the least makespan that it cannot refute to a part in so many.
const ACCURACY: u64 = 2048;

/// The largest makespan found such that no timetable is below it, where none is below `bound`.
fn refute_from(problem: &Problem, lines: &Lines, bound: Nanos, by_orders: bool) -> Nanos {
    let depth = |known: Option<Known>| if by_orders { Depth::Orders(known) } else { Depth::Counts };
    let (mut proved, mut step) = (bound, Nanos((bound.0 / FIRST_STEP).max(1)));
    // Up to the first that is not refuted; `open` is at least that long.
    let mut open = proved + step;
    let mut known = depth(None);
    while open < Nanos(u64::MAX) {
        if let Some(open) = Known::from(problem, lines, open.saturating_sub(Nanos(1)), proved, &depth(None)) {
            known = depth(Some(open));
            break;
        }
        (proved, step) = (open, step * 2);
        open = proved + step;
    }
    while open.saturating_sub(proved).0 > bound.0 / ACCURACY + 1 {
        let middle = proved + Nanos(open.saturating_sub(proved).0 / 2);
        match Known::from(problem, lines, middle.saturating_sub(Nanos(1)), proved, &known) {
            None => proved = middle,
            Some(shorter) => (open, known) = (middle, depth(Some(shorter))),
        }
    }
    proved
}
