//! The same question as an integer linear program: is there a schedule with this period?
//!
//! For a given period T everything is linear. An op starts at r + T·m, with r in [0, T) and m a whole number. Of two ops i, j
//! of one engine a binary says which has the smaller r; then d_i ≤ r_j - r_i (+ T) ≤ T - d_j keeps them apart around the
//! circle. It shares nothing with the branch and bound of [`super::search()`]: a second opinion, for tests. Where the answer is
//! no it can take microlp minutes, and microlp cannot be given a limit of work, so no plan waits for it.

use good_lp::{Expression, ProblemVariables, Solution as _, SolverModel as _, Variable, constraint, microlp, variable};

use super::{CyclicProblem, CyclicSchedule};
use crate::ir::Phase;
use crate::units::Nanos;

/// Most ops that the solver is asked about: its time grows exponentially with the pairs of one engine.
pub const MOST_OPS: usize = 10;

/// Repetitions that an op may lie behind the first. Enough for a layer pair: the chain of each side closes within one
/// repetition, so its ops are at most two apart, weight gradients at most `weight_delay` = 2 and one more behind those; and each
/// side can be counted from its own first op.
const MOST_REPETITIONS: f64 = 6.0;

/// What the solver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is one; to be checked, as solvers round.
    Possible(CyclicSchedule),
    /// There is none.
    Impossible,
    /// It cannot say: too many ops, or trouble with numbers.
    Unknown,
}

/// Whether ops can repeat every `period`.
pub fn possible(problem: &CyclicProblem, period: Nanos) -> Answer {
    let ops = &problem.ops;
    if ops.is_empty() || ops.len() > MOST_OPS || period == Nanos::ZERO {
        return Answer::Unknown;
    }
    // In units of the period, so that all numbers are of one size.
    let length = |op: usize| ops[op].duration.as_f64() / period.as_f64();
    if (0..ops.len()).any(|op| length(op) > 1.0) {
        return Answer::Impossible;
    }
    let mut variables = ProblemVariables::new();
    let place: Vec<Variable> = ops.iter().map(|_| variables.add(variable().min(0.0).max(1.0))).collect();
    let repetition: Vec<Variable> =
        ops.iter().map(|_| variables.add(variable().integer().min(0.0).max(MOST_REPETITIONS))).collect();
    let mut pairs: Vec<(usize, usize, Variable)> = Vec::new();
    for j in 0..ops.len() {
        for i in (0..j).filter(|&i| ops[i].engine == ops[j].engine) {
            pairs.push((i, j, variables.add(variable().binary())));
        }
    }
    // Of all schedules the one with the smallest repetitions.
    let objective: Expression = repetition.iter().copied().sum();
    let mut model = variables.minimise(objective).using(microlp);
    for &(i, j, wraps) in &pairs {
        model = model.with(constraint!(place[j] - place[i] + wraps >= length(i)));
        model = model.with(constraint!(place[j] - place[i] + wraps <= 1.0 - length(j)));
    }
    for need in &problem.needs {
        let (from, to) = (need.from, need.to);
        let start = |op: usize| place[op] + repetition[op];
        model = model.with(constraint!(start(to) - start(from) >= length(from) - need.distance as f64));
        if ops[to].phase == Phase::W {
            model = model.with(constraint!(start(to) - start(from) <= problem.weight_delay as f64));
        }
    }
    // Any op may be taken to start the circle.
    model = model.with(constraint!(place[0] == 0.0));
    match model.solve() {
        Ok(solution) => {
            let start =
                |op: usize| (solution.value(place[op]) + solution.value(repetition[op]).round()) * period.as_f64();
            let starts = (0..ops.len()).map(|op| Nanos(start(op).round().max(0.0) as u64)).collect();
            Answer::Possible(CyclicSchedule {
                period,
                bound: problem.bound(),
                starts,
                nodes: 0,
                unslowed: period,
                rounding: Nanos::ZERO,
            })
        }
        Err(good_lp::ResolutionError::Infeasible) => Answer::Impossible,
        Err(_) => Answer::Unknown,
    }
}
