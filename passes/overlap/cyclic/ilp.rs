//! The same question as an integer linear program: which period is the shortest, in which mode?
//!
//! A mode gives all ops their durations: say, with another number of SMs for exchanges. In units of the period everything is linear
//! in the rate, its inverse. An op starts at r + m, with r in [0, 1] and m a whole number. Of two ops i, j of one engine a binary
//! says which has the smaller r; then d_i ≤ r_j - r_i (+ 1) ≤ 1 - d_j keeps them apart around the circle, where d are durations times
//! the rate. Each mode has a rate of its own, zero unless a binary chooses it; then d are sums over modes. It shares nothing with the branch and bound of
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
        /// The mode that it chose.
        mode: usize,
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

/// The shortest period up to `longest`. Modes differ in the durations of their ops only.
pub fn shortest(modes: &[CyclicProblem], longest: Nanos, limits: solver::Limits) -> Answer {
    let least = modes.iter().map(CyclicProblem::unslowed_bound).min().unwrap_or(Nanos::ZERO);
    let most_ops = modes.iter().map(|mode| mode.ops.len()).max().unwrap_or(0);
    if most_ops == 0 || most_ops > MOST_OPS || least == Nanos::ZERO {
        return Answer::Unknown;
    }
    if longest < least {
        return Answer::Impossible;
    }
    let Some(posed) = Posed::of(modes, longest, least) else { return Answer::Unknown };
    let rate: Vec<Term> = posed.modes.iter().map(|mode| (-1.0, mode.rate)).collect();
    let (values, proved) = match posed.model.minimise(&rate, limits) {
        Outcome::Optimal(values) => (values, true),
        Outcome::Feasible(values) => (values, false),
        Outcome::Infeasible => return Answer::Impossible,
        Outcome::Unknown => return Answer::Unknown,
    };
    let mode = posed.modes.iter().position(|mode| mode.chosen.is_none_or(|chosen| values.is_one(chosen)));
    let Some(mode) = mode else { return Answer::Unknown };
    let Some(timing) = posed.replay(&modes[mode], &values, least) else { return Answer::Unknown };
    let rate: f64 = posed.modes.iter().map(|mode| values.of(mode.rate)).sum();
    let shortest = longest.as_f64() / (rate + ACCURACY);
    let bound = if proved { Nanos(shortest.ceil() as u64).max(least).min(timing.period) } else { Nanos::ZERO };
    Answer::Found { mode, timing, bound }
}

/// Two ops of one engine, and whether the first lies behind the second in the circle.
type Pair = (usize, usize, Var);

/// A mode in the program.
struct Mode {
    /// Repetitions in `longest`, from 1; zero unless the mode is chosen.
    rate: Var,
    /// Whether it is; `None` if there is no other.
    chosen: Option<Var>,
}

struct Posed {
    model: Model,
    modes: Vec<Mode>,
    /// m of every op.
    repetition: Vec<Var>,
    pairs: Vec<Pair>,
}

impl Posed {
    /// `None` if an op may drift from the others without end.
    fn of(problems: &[CyclicProblem], longest: Nanos, least: Nanos) -> Option<Self> {
        // What all have in common.
        let problem = problems.first()?;
        let ops = &problem.ops;
        let edges = problem.edges();
        let mut model = Model::default();
        let most = longest.as_f64() / least.as_f64();
        let modes = choice(&mut model, problems.len(), most);
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
        // Of an op, in the chosen mode, as a share of the period.
        let duration = |op: usize, sign: f64| {
            let term = move |(problem, mode): (&CyclicProblem, &Mode)| {
                (sign * problem.ops[op].duration.as_f64() / longest.as_f64(), mode.rate)
            };
            problems.iter().zip(&modes).map(term).collect::<Vec<Term>>()
        };
        for edge in &edges {
            let (from, to) = (edge.from, edge.to);
            let apart = [(1.0, place[to]), (1.0, repetition[to]), (-1.0, place[from]), (-1.0, repetition[from])];
            let length = if edge.weight == 0 { Vec::new() } else { duration(from, -1.0) };
            model.at_least(apart.into_iter().chain(length), -edge.distance as f64);
        }
        let mut pairs: Vec<Pair> = Vec::new();
        for j in 0..ops.len() {
            for i in (0..j).filter(|&i| ops[i].engine == ops[j].engine) {
                let behind = model.binary();
                let apart = [(1.0, place[j]), (-1.0, place[i]), (1.0, behind)];
                model.at_least(apart.into_iter().chain(duration(i, -1.0)), 0.0);
                model.at_most(apart.into_iter().chain(duration(j, 1.0)), 1.0);
                pairs.push((i, j, behind));
            }
        }
        Some(Self { model, modes, repetition, pairs })
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

/// Rates of so many modes, of which one is chosen: that one's is from 1 to `most`, the others' are 0.
fn choice(model: &mut Model, modes: usize, most: f64) -> Vec<Mode> {
    if modes == 1 {
        return vec![Mode { rate: model.real(1.0, most), chosen: None }];
    }
    let mode = |_| {
        let (rate, chosen) = (model.real(0.0, most), model.binary());
        model.at_least([(1.0, rate), (-1.0, chosen)], 0.0);
        model.at_most([(1.0, rate), (-most, chosen)], 0.0);
        (rate, chosen)
    };
    let all: Vec<(Var, Var)> = (0..modes).map(mode).collect();
    model.at_least(all.iter().map(|&(_, chosen)| (1.0, chosen)), 1.0);
    model.at_most(all.iter().map(|&(_, chosen)| (1.0, chosen)), 1.0);
    all.into_iter().map(|(rate, chosen)| Mode { rate, chosen: Some(chosen) }).collect()
}
