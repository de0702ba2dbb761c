//! The same question as an integer linear program: which period is the shortest?
//!
//! In units of the period everything is linear in the rate, its inverse. An op starts at r + m, with r in [0, 1] and m a whole
//! number. Of two ops i, j of one engine a binary says which has the smaller r; then d_i ≤ r_j - r_i (+ 1) ≤ 1 - d_j keeps them
//! apart around the circle, where d are durations times the rate. It shares nothing with the branch and bound of
//! [`super::search()`]: a second opinion in tests, and with the feature `highs` what is asked where that has run out of nodes.
//! Without the feature no plan depends on it: microlp proves much less in as many nodes.

use super::search::nearest;
use super::{CyclicProblem, Timing, period};
use crate::ir::Phase;
use crate::passes::solver::{self, ACCURACY, Model, Outcome, Term, Values, Var};
use crate::units::Nanos;

/// Most ops that the solver is asked about: its time grows exponentially with the pairs of one engine.
pub const MOST_OPS: usize = if cfg!(feature = "highs") { 24 } else { 10 };

/// What the solver says of periods up to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is a schedule, timed in whole nanoseconds from the orders that the solver chose.
    Found {
        /// With the shortest period that those orders have.
        timing: Timing,
        /// No period is shorter, to a part in a million; zero if that was not proved.
        bound: Nanos,
    },
    /// There is none.
    Impossible,
    /// It cannot say: too many ops, the limit, or trouble with numbers.
    Unknown,
}

/// The shortest period up to `longest`.
pub fn shortest(problem: &CyclicProblem, longest: Nanos, limits: solver::Limits) -> Answer {
    let least = problem.unslowed_bound();
    if problem.ops.is_empty() || problem.ops.len() > MOST_OPS || least == Nanos::ZERO {
        return Answer::Unknown;
    }
    if longest < least {
        return Answer::Impossible;
    }
    let Some(posed) = Posed::of(problem, longest, least) else { return Answer::Unknown };
    let (values, proved) = match posed.model.minimise(&[(-1.0, posed.rate)], limits) {
        Outcome::Optimal(values) => (values, true),
        Outcome::Feasible(values) => (values, false),
        Outcome::Infeasible => return Answer::Impossible,
        Outcome::Unknown => return Answer::Unknown,
    };
    let Some(timing) = posed.replay(problem, &values, least) else { return Answer::Unknown };
    let shortest = longest.as_f64() / (values.of(posed.rate) + ACCURACY);
    let bound = if proved { Nanos(shortest.ceil() as u64).max(least).min(timing.period) } else { Nanos::ZERO };
    Answer::Found { timing, bound }
}

/// Two ops of one engine, and whether the first lies behind the second in the circle.
type Pair = (usize, usize, Var);

struct Posed {
    model: Model,
    /// Repetitions in `longest`: from 1.
    rate: Var,
    /// m of every op.
    repetition: Vec<Var>,
    pairs: Vec<Pair>,
}

impl Posed {
    /// `None` if an op may drift from the others without end.
    fn of(problem: &CyclicProblem, longest: Nanos, least: Nanos) -> Option<Self> {
        let ops = &problem.ops;
        let edges = problem.edges();
        let mut model = Model::default();
        let rate = model.real(1.0, longest.as_f64() / least.as_f64());
        // The circle starts with the first op.
        let place: Vec<Var> = (0..ops.len()).map(|op| model.real(0.0, if op == 0 { 0.0 } else { 1.0 })).collect();
        let mut repetition = Vec::new();
        for op in 0..ops.len() {
            // Repetitions are counted from an op that this one is tied to: of each side its own, if the sides are apart.
            let same = |other: &usize| (ops[*other].phase == Phase::F) == (ops[op].phase == Phase::F);
            let anchor = if problem.sides_are_apart() { (0..ops.len()).find(same)? } else { 0 };
            // A path over D repetitions keeps its end from starting more than D periods before its start.
            let (to, back) = (nearest(ops.len(), &edges, anchor, op)?, nearest(ops.len(), &edges, op, anchor)?);
            let (to, back) = if op == anchor { (0, 0) } else { (to, back) };
            repetition.push(model.whole(i32::try_from(-to).ok()?, i32::try_from(back).ok()?));
        }
        let share = |weight: f64| weight / longest.as_f64();
        for edge in &edges {
            let (from, to) = (edge.from, edge.to);
            let apart = [(1.0, place[to]), (1.0, repetition[to]), (-1.0, place[from]), (-1.0, repetition[from])];
            let length: Term = (-share(edge.weight as f64), rate);
            model.at_least(apart.into_iter().chain([length]), -edge.distance as f64);
        }
        let mut pairs: Vec<Pair> = Vec::new();
        for j in 0..ops.len() {
            for i in (0..j).filter(|&i| ops[i].engine == ops[j].engine) {
                let behind = model.binary();
                let apart = [(1.0, place[j]), (-1.0, place[i]), (1.0, behind)];
                model.at_least(apart.into_iter().chain([(-share(ops[i].duration.as_f64()), rate)]), 0.0);
                model.at_most(apart.into_iter().chain([(share(ops[j].duration.as_f64()), rate)]), 1.0);
                pairs.push((i, j, behind));
            }
        }
        Some(Self { model, rate, repetition, pairs })
    }

    /// The orders of a solution, timed exactly.
    fn replay(&self, problem: &CyclicProblem, values: &Values, least: Nanos) -> Option<Timing> {
        let mut edges = problem.edges();
        let repetition = |op: usize| values.of(self.repetition[op]) as i64;
        for &(i, j, behind) in &self.pairs {
            let k = repetition(i) - repetition(j) + i64::from(values.is_one(behind));
            edges.extend(problem.ordered(i, j, k));
        }
        period(problem.ops.len(), &edges, least)
    }
}
