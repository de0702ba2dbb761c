//! Branch and bound over the order of ops on each engine.
//!
//! Two ops i and j of one engine never overlap exactly if for some whole number k: j starts at least d_i after i of k
//! repetitions before, and i at least d_j after j of 1-k repetitions before. A node of the search has fixed k for some pairs;
//! its shortest period is a bound for all below it. It is a solution if no pair overlaps; else a pair that does is split by k.

#[cfg(feature = "highs")]
use super::ilp::{self, Answer};
use super::{CyclicProblem, CyclicSchedule, Edge, period};
#[cfg(feature = "highs")]
use crate::passes::solver;
use crate::units::Nanos;

/// How much may be looked at. A count, so that the answer is the same on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Partial schedules.
    pub nodes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nodes: 20_000 }
    }
}

/// What the solver may look at where the search has run out of nodes.
#[cfg(feature = "highs")]
const SOLVER: solver::Limits = solver::Limits { nodes: 20_000 };

/// The schedule with the shortest period if nothing slowed anything, or the best one found within the limits; at least as good as `start` if that is a
/// launch order that the needs allow. `None` if there is no schedule at all.
pub fn search(problem: &CyclicProblem, start: &[&[usize]], limits: Limits) -> Option<CyclicSchedule> {
    let mut run = Search { problem, best: None, nodes: 0, limits, bound: problem.unslowed_bound(), complete: true };
    for order in start {
        run.try_order(order);
    }
    let mut edges = problem.edges();
    let anchored = !problem.sides_are_apart();
    if problem.tied(anchored) {
        run.descend(&mut edges, anchored);
    } else {
        run.complete = false;
    }
    #[cfg(feature = "highs")]
    run.ask_the_solver();
    let (period, starts) = run.best?;
    // If everything was looked at, what was found is the best there is.
    let bound = if run.complete { period } else { run.bound };
    Some(CyclicSchedule { period, bound, starts, nodes: run.nodes, unslowed: period, rounding: Nanos::ZERO })
}

struct Search<'a> {
    problem: &'a CyclicProblem,
    best: Option<(Nanos, Vec<Nanos>)>,
    nodes: u64,
    limits: Limits,
    bound: Nanos,
    /// Nothing was cut off by the limits.
    complete: bool,
}

/// Two ops of one engine that overlap.
struct Conflict {
    i: usize,
    j: usize,
}

impl Search<'_> {
    fn try_order(&mut self, order: &[usize]) {
        let mut edges = self.problem.edges();
        for (at, &i) in order.iter().enumerate() {
            for &j in &order[at + 1..] {
                if self.problem.ops[i].engine == self.problem.ops[j].engine {
                    edges.extend(self.problem.ordered(i, j, 0));
                }
            }
        }
        if let Some(timing) = period(self.problem.ops.len(), &edges, self.bound) {
            self.keep(timing.period, &timing.starts);
        }
    }

    fn keep(&mut self, period: Nanos, starts: &[i64]) {
        if self.best.as_ref().is_none_or(|(best, _)| period < *best) {
            let first = starts.iter().copied().min().unwrap_or(0);
            self.best = Some((period, starts.iter().map(|&start| Nanos((start - first) as u64)).collect()));
        }
    }

    /// `anchored`: the two micro-batches' repetitions are already counted against each other.
    fn descend(&mut self, edges: &mut Vec<Edge>, anchored: bool) {
        let done = |best: &Option<(Nanos, Vec<Nanos>)>| best.as_ref().is_some_and(|(period, _)| *period <= self.bound);
        if done(&self.best) {
            return;
        }
        if self.nodes >= self.limits.nodes {
            self.complete = false;
            return;
        }
        self.nodes += 1;
        let Some(timing) = period(self.problem.ops.len(), edges, self.bound) else { return };
        if self.best.as_ref().is_some_and(|(best, _)| timing.period >= *best) {
            return;
        }
        let Some(conflict) = self.conflict(timing.period, &timing.starts) else {
            self.keep(timing.period, &timing.starts);
            return;
        };
        let mut branches = self.branches(edges, &conflict, anchored);
        // The most promising first; what is equal, in the order of k.
        branches.sort_unstable();
        let anchors = anchored || self.sides_differ(&conflict);
        for (_, k) in branches {
            let length = edges.len();
            edges.extend(self.problem.ordered(conflict.i, conflict.j, k));
            self.descend(edges, anchors);
            edges.truncate(length);
        }
    }

    /// The pair that overlaps most.
    fn conflict(&self, period: Nanos, starts: &[i64]) -> Option<Conflict> {
        let ops = &self.problem.ops;
        let period = period.0 as i64;
        let mut worst: Option<(i64, Conflict)> = None;
        for j in 0..ops.len() {
            for i in (0..j).filter(|&i| ops[i].engine == ops[j].engine) {
                let apart = starts[j] - starts[i];
                let within = apart.rem_euclid(period);
                let (length_i, length_j) = (ops[i].duration.0 as i64, ops[j].duration.0 as i64);
                // Before i has ended, or into the i of the next repetition.
                let overlap = (length_i - within).min(length_j).max((within + length_j - period).min(length_i));
                if overlap > 0 && worst.as_ref().is_none_or(|(most, _)| overlap > *most) {
                    worst = Some((overlap, Conflict { i, j }));
                }
            }
        }
        worst.map(|(_, conflict)| conflict)
    }

    /// The k that can still give something better, each with the period that it leads to.
    fn branches(&self, edges: &[Edge], conflict: &Conflict, anchored: bool) -> Vec<(Nanos, i64)> {
        let fixed = edges;
        let mut edges = edges.to_vec();
        let length = edges.len();
        let mut try_k = |k: i64| {
            edges.truncate(length);
            edges.extend(self.problem.ordered(conflict.i, conflict.j, k));
            let timing = period(self.problem.ops.len(), &edges, self.bound)?;
            let better = self.best.as_ref().is_none_or(|(best, _)| timing.period < *best);
            better.then_some((timing.period, k))
        };
        if !anchored && self.sides_differ(conflict) {
            // Counting one micro-batch's repetitions from another one changes every k between the two alike: any will do.
            return try_k(0).into_iter().collect();
        }
        // A path from i to j over D repetitions keeps j from starting more than D periods before i, whatever the period; so
        // k is at most 1 + D, and likewise at least -D for a path from j to i. Every op is tied to every other (see
        // `CyclicProblem::tied`), so there are both.
        let ops = self.problem.ops.len();
        let (to_j, to_i) = (nearest(ops, fixed, conflict.i, conflict.j), nearest(ops, fixed, conflict.j, conflict.i));
        match (to_j, to_i) {
            (Some(to_j), Some(to_i)) => (-to_i..=1 + to_j).filter_map(&mut try_k).collect(),
            _ => Vec::new(),
        }
    }

    /// Where the limits cut something off: whether an integer program finds a shorter period, or proves that there is none.
    #[cfg(feature = "highs")]
    fn ask_the_solver(&mut self) {
        let Some(longest) = self.best.as_ref().map(|(best, _)| *best).filter(|best| *best > self.bound) else { return };
        if self.complete {
            return;
        }
        let answer = ilp::shortest(std::slice::from_ref(self.problem), longest, SOLVER);
        if let Answer::Found { timing, bound, .. } = answer {
            self.keep(timing.period, &timing.starts);
            self.bound = self.bound.max(bound);
        }
    }

    fn sides_differ(&self, conflict: &Conflict) -> bool {
        let forward = |op: usize| self.problem.ops[op].phase == crate::ir::Phase::F;
        forward(conflict.i) != forward(conflict.j)
    }
}

/// The fewest repetitions on a path of edges; `None` if there is no path. Edges that can be kept at all have no cycle of
/// negative distance.
pub(super) fn nearest(ops: usize, edges: &[Edge], from: usize, to: usize) -> Option<i64> {
    let mut distance: Vec<Option<i64>> = vec![None; ops];
    distance[from] = Some(0);
    for _ in 0..ops {
        for edge in edges {
            if let Some(through) = distance[edge.from].map(|before| before + edge.distance) {
                let there = &mut distance[edge.to];
                *there = Some(there.map_or(through, |known| known.min(through)));
            }
        }
    }
    distance[to]
}
