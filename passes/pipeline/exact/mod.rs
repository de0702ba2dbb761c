//! The shortest timetable of a small problem, by branch and bound.

mod moves;
mod seen;
mod state;

use crate::ir::{Problem, Timetable};
use crate::units::Nanos;

use super::bound::lower_bound;
use moves::{Rules, What};
use seen::Seen;
use state::State;

/// What [`exact`] has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exact {
    /// No timetable is shorter than what was given.
    NoneShorter,
    /// This one is, and none is shorter than it.
    Optimal(Timetable),
    /// The limit ended the search.
    Open {
        /// The shortest that it has seen, if that is shorter than what was given.
        found: Option<Timetable>,
        /// No timetable is shorter than this.
        bound: Nanos,
    },
}

/// Looks for a timetable that keeps the problem's memory and is shorter than `below`. `nodes`: the most partial timetables that it
/// looks at.
pub fn exact(problem: &Problem, below: Nanos, nodes: u64) -> Exact {
    let bound = lower_bound(problem);
    if bound >= below {
        return Exact::NoneShorter;
    }
    let below = below.min(everything(problem) + Nanos(1));
    let state = State::new(problem);
    let mut search = Search { rules: Rules::new(&state), state, best: below, found: None, bound, nodes };
    let done = search.run();
    match (done, search.found) {
        (true, None) => Exact::NoneShorter,
        (true, Some(found)) => Exact::Optimal(found),
        (false, found) => Exact::Open { found, bound },
    }
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

/// A search under way.
struct Search<'a> {
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
            // One that has waited is worse than before, by itself.
            let new = next.what == What::Wait || seen.is_new(&self.state);
            if !new || self.state.bound(self.best) >= self.best {
                self.state.undo();
            } else if self.state.is_whole() {
                let makespan = self.state.makespan();
                if makespan < self.best {
                    (self.best, self.found) = (makespan, Some(self.state.timetable()));
                    if makespan <= self.bound {
                        return true;
                    }
                }
                self.state.undo();
            } else {
                untried.push(self.rules.moves(&self.state));
            }
        }
        true
    }
}
