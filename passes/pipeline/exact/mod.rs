//! The shortest timetable of a small problem, by branch and bound.
//!
//! Timetables are built action by action, each as soon as it can start ([`state`]). What may come next is cut down to what some
//! shortest timetable must have ([`moves`]); partial timetables that are nowhere earlier than one seen before are left out
//! ([`seen`]); and so are those whose rest cannot be short enough, by the bounds of [`bound`](super::bound) for that rest.
//!
//! It is meant for some hundreds of actions. Larger problems run into the limit, and then only the bound counts.

mod moves;
mod seen;
mod state;

use super::bound::{Known, Lines, tight_bound};
use super::replay;
use crate::ir::{Memory, Problem, Timetable, Workspace};
use crate::units::Nanos;
use moves::{Rules, What};
use seen::Seen;
use state::State;

/// What [`exact`] has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exact {
    /// No timetable is shorter than what was given, or memory lets none through at all.
    NoneShorter,
    /// This one is shorter than what was given, and none is shorter than it.
    Optimal(Timetable),
    /// The limit ended the search.
    Open {
        /// The shortest that it has seen, if that is shorter than what was given.
        found: Option<Timetable>,
        /// No timetable is shorter than this.
        bound: Nanos,
    },
}

/// If the limit ends the search, as many nodes again go into so many smaller questions: whether there is a timetable halfway between
/// what is proved and what is found.
const QUESTIONS: u64 = 8;

/// Looks for timetables that keep the problem's memory limits and are shorter than `below`; without a timetable at hand, that
/// is `Nanos(u64::MAX)`. It looks at `nodes` partial timetables at most.
///
/// Where an F, I, B or pair takes no time at all, it may stay open; it does where a chunk holds more after I than before, or backwards need
/// memory while they run, since what may be left out of the search then may not.
pub fn exact(problem: &Problem, below: Nanos, nodes: u64) -> Exact {
    if problem.layout.micro_batches == 0 || problem.layout.stages == 0 {
        return Exact::NoneShorter;
    }
    let grows =
        |memory: &Memory| memory.workspace != Workspace::default() || memory.stages.iter().any(|held| held.added() > 0);
    if problem.memory.as_ref().is_some_and(grows) {
        return Exact::Open { found: None, bound: tight_bound(problem) };
    }
    let mut least = below.min(everything(problem) + Nanos(1));
    let mut bound = tight_bound(problem);
    let mut best = match search(problem, least, bound, nodes.div_ceil(2)) {
        Exact::Open { found, .. } => found,
        closed => return closed,
    };
    // The least makespan that is found or was asked for, or that could not be proved to be too short.
    least = best.as_ref().map_or(least, |found| makespan(problem, found));
    for _ in 0..QUESTIONS {
        let middle = bound + Nanos(least.saturating_sub(bound).0 / 2);
        if middle <= bound {
            break;
        }
        match search(problem, middle, bound, nodes / 2 / QUESTIONS) {
            Exact::NoneShorter => bound = middle,
            Exact::Optimal(found) => return Exact::Optimal(found),
            Exact::Open { found: None, .. } => least = middle,
            Exact::Open { found: Some(found), .. } => {
                least = makespan(problem, &found);
                best = Some(found);
            }
        }
    }
    Exact::Open { found: best, bound }
}

/// Of a timetable that the search has made.
fn makespan(problem: &Problem, timetable: &Timetable) -> Nanos {
    replay(problem, timetable).map_or(Nanos(u64::MAX), |replay| replay.makespan)
}

/// All costs and messages, one after another. If memory allows a timetable, it allows one that is no longer: the same order with
/// every action split into F, I and W.
fn everything(problem: &Problem) -> Nanos {
    let layout = &problem.layout;
    let stages = problem.stages.iter().map(|cost| (cost.f + cost.i + cost.w) * u64::from(layout.micro_batches));
    let hop = |boundary, micro_batch| problem.hop(boundary, micro_batch) * 2;
    let hops = (0..layout.micro_batches).flat_map(|m| (1..layout.stages).map(move |stage| hop(stage - 1, m)));
    stages.sum::<Nanos>() + hops.sum::<Nanos>()
}

/// One search, for timetables that are shorter than `below`. None is shorter than `bound`.
fn search(problem: &Problem, below: Nanos, bound: Nanos, nodes: u64) -> Exact {
    if bound >= below {
        return Exact::NoneShorter;
    }
    let lines = Lines::new(problem);
    let Some(known) = Known::within(problem, &lines, below.saturating_sub(Nanos(1)), bound) else {
        return Exact::NoneShorter;
    };
    let state = State::new(problem, lines, known);
    let mut search = Search { problem, rules: Rules::new(&state), state, best: below, found: None, bound, nodes };
    match (search.run(), search.found) {
        (true, None) => Exact::NoneShorter,
        (true, Some(found)) => Exact::Optimal(found),
        (false, found) => Exact::Open { found, bound },
    }
}

/// A search under way.
struct Search<'a> {
    problem: &'a Problem,
    rules: Rules,
    state: State<'a>,
    /// Only what is shorter counts.
    best: Nanos,
    found: Option<Timetable>,
    /// Nothing is shorter.
    bound: Nanos,
    /// Partial timetables left to look at.
    nodes: u64,
}

impl Search<'_> {
    /// Depth first. Whether it came to its end.
    fn run(&mut self) -> bool {
        let mut seen = Seen::default();
        // Per partial timetable on the way here, the moves that have not been tried.
        let mut untried = vec![self.rules.moves(&self.state)];
        while let Some(moves) = untried.last_mut() {
            let Some(next) = moves.pop() else {
                untried.pop();
                self.state.undo();
                continue;
            };
            if self.nodes == 0 {
                return false;
            }
            self.nodes -= 1;
            self.state.apply(next);
            // One that has waited is nowhere earlier than it was before, which has been seen.
            let new = next.what == What::Wait || seen.is_new(&self.state);
            if !new || self.state.bound(self.best) >= self.best {
                self.state.undo();
            } else if self.state.is_whole() {
                if !self.take() {
                    return true;
                }
                self.state.undo();
            } else {
                untried.push(self.rules.moves(&self.state));
            }
        }
        true
    }

    /// Takes the whole timetable, if it is shorter. Whether there may be shorter ones still.
    fn take(&mut self) -> bool {
        let makespan = self.state.makespan();
        if makespan >= self.best {
            return true;
        }
        (self.best, self.found) = (makespan, Some(self.state.timetable()));
        if makespan <= self.bound {
            return false;
        }
        let shorter = makespan.saturating_sub(Nanos(1));
        match Known::within(self.problem, &self.state.lines, shorter, self.bound) {
            Some(known) => self.state.restrict(known),
            None => return false,
        }
        true
    }
}
