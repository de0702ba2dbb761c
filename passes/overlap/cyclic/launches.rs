//! Branch and bound over launch orders where ops slow each other.
//!
//! As in [`super::search()`], a node has fixed for some pairs of an engine's ops by how many repetitions one comes behind the other.
//! Here durations depend on what runs beside, so a node's period is not known before every pair is fixed; then the order is run
//! ([`CyclicProblem::slowed_period`]). Until then it is bounded: a cycle of the precedence graph over D repetitions, with all its ops
//! slowed, is at most as long as D periods and what its ops can save in so long for having nothing beside them (`overlap::shop` says how
//! much that is).

use super::search::nearest;
use super::{CyclicOp, CyclicProblem, CyclicSchedule, Edge, Limits, period};
use crate::ir::Phase;
use crate::units::Nanos;

/// The launch order with the shortest period, each op running as soon as its stream and what it reads allow; `start` if there is no
/// shorter one, or none is found within the limits. If everything was looked at, its period is the bound.
pub fn best_launches(problem: &CyclicProblem, start: CyclicSchedule, limits: Limits) -> CyclicSchedule {
    if start.proved() || !problem.tied(!problem.sides_are_apart()) {
        return start;
    }
    let sides = [[false, false], [true, false], [false, true], [true, true]];
    let stretched = sides.map(|sides| {
        let durations = problem.least_stretched(sides);
        let ops = problem.ops.iter().zip(durations).map(|(op, duration)| CyclicOp { duration, ..*op }).collect();
        CyclicProblem { ops, needs: problem.needs.clone(), weight_delay: problem.weight_delay, beside: Vec::new() }
    });
    let pairs = same_engine_pairs(problem);
    let mut search = Launches { problem, stretched, sides, best: start, nodes: limits.nodes, complete: true };
    let anchored = !problem.sides_are_apart();
    search.descend(&mut Vec::new(), &pairs, anchored);
    let Launches { best, complete, nodes, .. } = search;
    let bound = if complete { best.period } else { best.bound };
    CyclicSchedule { bound, nodes: best.nodes + limits.nodes - nodes, ..best }
}

/// Pairs of ops that share an engine.
fn same_engine_pairs(problem: &CyclicProblem) -> Vec<(usize, usize)> {
    let ops = &problem.ops;
    let pairs = (0..ops.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
    pairs.filter(|&(i, j)| ops[i].engine == ops[j].engine).collect()
}

struct Launches<'a> {
    problem: &'a CyclicProblem,
    /// With computations, exchanges, neither or both as long as beside the other engine all the time.
    stretched: [CyclicProblem; 4],
    sides: [[bool; 2]; 4],
    best: CyclicSchedule,
    /// That may still be looked at.
    nodes: u64,
    complete: bool,
}

/// That j comes k repetitions behind i.
type Fixed = (usize, usize, i64);

impl Launches<'_> {
    /// `open`: pairs that are not fixed. `anchored`: the repetitions of the two sides are counted against each other.
    fn descend(&mut self, fixed: &mut Vec<Fixed>, open: &[(usize, usize)], anchored: bool) {
        if self.best.proved() {
            return;
        }
        if self.nodes == 0 {
            self.complete = false;
            return;
        }
        self.nodes -= 1;
        // What no choice is left for is fixed; of the others the one with the fewest choices is branched on.
        let depth = fixed.len();
        let mut open = open.to_vec();
        let mut branch: Option<(usize, Vec<i64>)> = None;
        let mut anchored = anchored;
        let mut again = true;
        while again {
            again = false;
            branch = None;
            let mut at = 0;
            while at < open.len() {
                let (i, j) = open[at];
                let choices = self.choices(fixed, (i, j), anchored);
                match choices.as_slice() {
                    [] => {
                        fixed.truncate(depth);
                        return;
                    }
                    // Until the sides are anchored to each other the one choice between them stands for all.
                    [k] if anchored || !self.sides_differ(i, j) => {
                        fixed.push((i, j, *k));
                        open.swap_remove(at);
                        again = true;
                        continue;
                    }
                    _ => {}
                }
                if branch.as_ref().is_none_or(|(_, fewest)| choices.len() < fewest.len()) {
                    branch = Some((at, choices));
                }
                at += 1;
            }
        }
        match branch {
            None => self.try_order(fixed),
            Some((at, choices)) => {
                let (i, j) = open.swap_remove(at);
                anchored |= self.sides_differ(i, j);
                for k in choices {
                    fixed.push((i, j, k));
                    self.descend(fixed, &open, anchored);
                    fixed.pop();
                }
            }
        }
        fixed.truncate(depth);
    }

    fn sides_differ(&self, i: usize, j: usize) -> bool {
        let forward = |op: usize| self.problem.ops[op].phase == Phase::F;
        forward(i) != forward(j)
    }

    /// By how many repetitions j may come behind i, in what is not ruled out.
    fn choices(&self, fixed: &[Fixed], (i, j): (usize, usize), anchored: bool) -> Vec<i64> {
        if !anchored && self.sides_differ(i, j) {
            return vec![0];
        }
        let edges = edges(self.problem, fixed);
        let ops = self.problem.ops.len();
        let (Some(to_j), Some(to_i)) = (nearest(ops, &edges, i, j), nearest(ops, &edges, j, i)) else {
            return Vec::new();
        };
        let mut with = fixed.to_vec();
        let mut possible = |k: i64| {
            with.truncate(fixed.len());
            with.push((i, j, k));
            self.may_be_better(&with)
        };
        (-to_i..=1 + to_j).filter(|&k| possible(k)).collect()
    }

    /// Whether the bound of what is fixed is below the best period by more than rounding.
    fn may_be_better(&self, fixed: &[Fixed]) -> bool {
        let target = self.best.period.saturating_sub(self.best.rounding + Nanos(1));
        let saved = self.problem.saved(target);
        self.sides.iter().zip(&self.stretched).all(|(sides, stretched)| {
            let mut allowed = target;
            for (stretched, saved) in sides.iter().zip(saved) {
                if *stretched {
                    allowed += saved;
                }
            }
            let edges = edges(stretched, fixed);
            period(stretched.ops.len(), &edges, Nanos::ZERO).is_some_and(|timing| timing.period <= allowed)
        })
    }

    fn try_order(&mut self, fixed: &[Fixed]) {
        let edges = edges(self.problem, fixed);
        let Some(timing) = period(self.problem.ops.len(), &edges, Nanos(1)) else { return };
        let first = timing.starts.iter().copied().min().unwrap_or(0);
        let starts = timing.starts.iter().map(|&start| Nanos((start - first) as u64)).collect();
        let candidate = CyclicSchedule { starts, unslowed: timing.period, ..self.best.clone() };
        let period = self.problem.slowed_period(&candidate);
        if period < self.best.period {
            self.best = CyclicSchedule { period, ..candidate };
        }
    }
}

/// Edges of the needs and of the pairs that are fixed.
fn edges(problem: &CyclicProblem, fixed: &[Fixed]) -> Vec<Edge> {
    let mut edges = problem.edges();
    for &(i, j, k) in fixed {
        edges.extend(problem.ordered(i, j, k));
    }
    edges
}
