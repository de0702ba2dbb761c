//! Integer linear programs, put to whichever solver the crate is built with: microlp, in pure Rust, or with the feature
//! `highs` [HiGHS](https://highs.dev), which proves much more. Passes pose a [`Model`] and read an [`Outcome`]; nothing else in
//! the crate knows a solver.
//!
//! Solvers compute in floats, and both hold rows and whole numbers only to a tolerance. So pose models with coefficients and
//! values of the order of 1, take an objective as known to [`ACCURACY`], and replay a solution in integers before you believe
//! it. Limits are counts of branch-and-bound nodes, threads and seeds are fixed: the same model has the same outcome everywhere.

use std::panic::{AssertUnwindSafe, catch_unwind};

use good_lp::variable::{ProblemVariables, UnsolvedProblem};
use good_lp::{Expression, Variable, variable};

/// How far rows may be missed, whole numbers be off, and an optimum be beaten, where coefficients and values are about 1.
pub const ACCURACY: f64 = 1e-6;

/// What the solvers are asked to keep: less than [`ACCURACY`], as misses add up along a row.
const TOLERANCE: f64 = 1e-9;

/// A variable of a [`Model`], for that model only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Var(usize);

/// A coefficient and its variable.
pub type Term = (f64, Var);

/// An integer linear program. All variables have bounds, so that it is never unbounded.
#[derive(Clone, Debug, Default)]
pub struct Model {
    variables: Vec<Domain>,
    rows: Vec<Row>,
}

#[derive(Clone, Copy, Debug)]
struct Domain {
    min: f64,
    max: f64,
    whole: bool,
}

/// Σ terms ≤ limit, or = limit.
#[derive(Clone, Debug)]
struct Row {
    terms: Vec<Term>,
    limit: f64,
    equal: bool,
}

/// How much may be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes of the solver's branch and bound.
    pub nodes: u64,
}

/// What a solver says of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Nothing is better, to [`ACCURACY`].
    Optimal(Values),
    /// The limit ended the search; there may be better.
    Feasible(Values),
    /// Nothing keeps all rows.
    Infeasible,
    /// The limit ended the search before it found anything, the model's numbers are no numbers, or the solver failed.
    Unknown,
}

/// A value for every variable.
#[derive(Clone, Debug, PartialEq)]
pub struct Values(Vec<f64>);

impl Values {
    /// The value of a variable; of a whole one, the nearest whole number.
    pub fn of(&self, var: Var) -> f64 {
        self.0[var.0]
    }

    /// Whether a binary variable is 1.
    pub fn is_one(&self, var: Var) -> bool {
        self.0[var.0] > 0.5
    }
}

impl Model {
    /// A real number within bounds.
    pub fn real(&mut self, min: f64, max: f64) -> Var {
        self.variable(Domain { min, max, whole: false })
    }

    /// A whole number within bounds.
    pub fn whole(&mut self, min: i32, max: i32) -> Var {
        self.variable(Domain { min: f64::from(min), max: f64::from(max), whole: true })
    }

    /// 0 or 1.
    pub fn binary(&mut self) -> Var {
        self.whole(0, 1)
    }

    fn variable(&mut self, domain: Domain) -> Var {
        self.variables.push(domain);
        Var(self.variables.len() - 1)
    }

    /// The sum of the terms is at most `limit`.
    pub fn at_most(&mut self, terms: impl IntoIterator<Item = Term>, limit: f64) {
        self.rows.push(Row { terms: terms.into_iter().collect(), limit, equal: false });
    }

    /// The sum of the terms is at least `limit`.
    pub fn at_least(&mut self, terms: impl IntoIterator<Item = Term>, limit: f64) {
        self.at_most(terms.into_iter().map(|(factor, var)| (-factor, var)), -limit);
    }

    /// The sum of the terms is `limit`.
    pub fn exactly(&mut self, terms: impl IntoIterator<Item = Term>, limit: f64) {
        self.rows.push(Row { terms: terms.into_iter().collect(), limit, equal: true });
    }

    /// The assignment with the least sum of `objective`.
    pub fn minimise(&self, objective: &[Term], limits: Limits) -> Outcome {
        if !self.is_sound(objective) {
            return Outcome::Unknown;
        }
        // microlp asserts what it believes of its own numbers. A solver that gives up is an answer; a crash is not.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.solve(objective, limits))).unwrap_or(Outcome::Unknown);
        match outcome {
            Outcome::Optimal(values) if self.keeps(&values) => Outcome::Optimal(self.rounded(values)),
            Outcome::Feasible(values) if self.keeps(&values) => Outcome::Feasible(self.rounded(values)),
            Outcome::Infeasible => Outcome::Infeasible,
            _ => Outcome::Unknown,
        }
    }

    /// Whether every number is one, every variable belongs here, and its bounds leave it some value.
    fn is_sound(&self, objective: &[Term]) -> bool {
        let term = |&(factor, var): &Term| factor.is_finite() && var.0 < self.variables.len();
        let domain = |domain: &Domain| domain.min.is_finite() && domain.max.is_finite() && domain.min <= domain.max;
        !self.variables.is_empty()
            && self.variables.iter().all(domain)
            && self.rows.iter().all(|row| row.limit.is_finite() && row.terms.iter().all(term))
            && objective.iter().all(term)
    }

    /// Whether the values are within their bounds, whole where they should be, and keep every row.
    fn keeps(&self, values: &Values) -> bool {
        let domain = |(domain, value): (&Domain, &f64)| {
            let whole = !domain.whole || (value - value.round()).abs() <= ACCURACY;
            whole && (domain.min - ACCURACY..=domain.max + ACCURACY).contains(value)
        };
        let row = |row: &Row| {
            let sum: f64 = row.terms.iter().map(|&(factor, var)| factor * values.of(var)).sum();
            let size = row.terms.iter().map(|(factor, _)| factor.abs()).fold(row.limit.abs().max(1.0), f64::max);
            let over = (sum - row.limit) / size;
            over <= ACCURACY && (!row.equal || over >= -ACCURACY)
        };
        values.0.len() == self.variables.len()
            && self.variables.iter().zip(&values.0).all(domain)
            && self.rows.iter().all(row)
    }

    fn rounded(&self, values: Values) -> Values {
        let round = |(domain, value): (&Domain, f64)| if domain.whole { value.round() } else { value };
        Values(self.variables.iter().zip(values.0).map(round).collect())
    }

    /// In good_lp's terms: its variables in our order, the problem, and the rows.
    fn posed(&self, objective: &[Term]) -> (Vec<Variable>, UnsolvedProblem, Vec<good_lp::Constraint>) {
        let mut variables = ProblemVariables::new();
        let define = |domain: &Domain| {
            let definition = variable().min(domain.min).max(domain.max);
            variables.add(if domain.whole { definition.integer() } else { definition })
        };
        let named: Vec<Variable> = self.variables.iter().map(define).collect();
        let sum = |terms: &[Term]| -> Expression { terms.iter().map(|&(factor, var)| factor * named[var.0]).sum() };
        let row = |row: &Row| match row.equal {
            true => sum(&row.terms).eq(row.limit),
            false => sum(&row.terms).leq(row.limit),
        };
        let rows = self.rows.iter().map(row).collect();
        let problem = variables.minimise(sum(objective));
        (named, problem, rows)
    }

    #[cfg(not(feature = "highs"))]
    fn solve(&self, objective: &[Term], limits: Limits) -> Outcome {
        use good_lp::SolverModel as _;
        use microlp::{Error, SolveOptions, SolveOutcome, TerminationReason};

        let (_, problem, rows) = self.posed(objective);
        let mut model = problem.using(good_lp::microlp);
        for row in rows {
            model.add_constraint(row);
        }
        let mut options = SolveOptions::default();
        options.node_limit = Some(limits.nodes);
        options.int_tol = TOLERANCE;
        match model.as_inner().solve_with(options) {
            Ok(SolveOutcome::Solution(solution)) => {
                // In the order in which the variables were made.
                let values = Values(solution.iter().map(|(_, value)| value).collect());
                match solution.termination_reason() {
                    TerminationReason::ProvenOptimal => Outcome::Optimal(values),
                    _ => Outcome::Feasible(values),
                }
            }
            Err(Error::Infeasible) => Outcome::Infeasible,
            Ok(SolveOutcome::Interrupted(_)) | Err(_) => Outcome::Unknown,
        }
    }

    #[cfg(feature = "highs")]
    fn solve(&self, objective: &[Term], limits: Limits) -> Outcome {
        use good_lp::solvers::SolutionStatus;
        use good_lp::{ResolutionError, Solution as _, SolverModel as _};

        let (named, problem, rows) = self.posed(objective);
        let mut model = problem
            .using(good_lp::highs)
            .set_threads(1)
            .set_option("parallel", "off")
            .set_option("random_seed", 0)
            .set_option("mip_max_nodes", i32::try_from(limits.nodes).unwrap_or(i32::MAX))
            .set_option("mip_rel_gap", 0.0)
            .set_option("mip_abs_gap", TOLERANCE)
            .set_option("mip_feasibility_tolerance", TOLERANCE)
            .set_option("primal_feasibility_tolerance", TOLERANCE)
            .set_option("dual_feasibility_tolerance", TOLERANCE);
        for row in rows {
            model.add_constraint(row);
        }
        match model.solve() {
            Ok(solution) => {
                let values = Values(named.iter().map(|&var| solution.value(var)).collect());
                match solution.status() {
                    // The gap that it may leave is the tolerance asked for.
                    SolutionStatus::Optimal | SolutionStatus::GapLimit => Outcome::Optimal(values),
                    SolutionStatus::TimeLimit => Outcome::Feasible(values),
                }
            }
            Err(ResolutionError::Infeasible) => Outcome::Infeasible,
            Err(_) => Outcome::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { nodes: 1000 };

    /// Weights and values of a knapsack whose relaxation is not whole.
    const THINGS: [(f64, f64); 6] = [(5.0, 8.0), (4.0, 7.0), (3.0, 4.0), (6.0, 9.0), (2.0, 3.0), (7.0, 11.0)];

    fn knapsack(room: f64) -> (Model, Vec<Var>, Vec<Term>) {
        let mut model = Model::default();
        let packed: Vec<Var> = THINGS.iter().map(|_| model.binary()).collect();
        model.at_most(THINGS.iter().zip(&packed).map(|((weight, _), &var)| (*weight, var)), room);
        let objective = THINGS.iter().zip(&packed).map(|((_, value), &var)| (-value, var)).collect();
        (model, packed, objective)
    }

    #[test]
    fn the_best_of_all_subsets() {
        for room in 0..=27 {
            let (model, packed, objective) = knapsack(f64::from(room));
            let Outcome::Optimal(values) = model.minimise(&objective, LIMITS) else { panic!("room {room}") };
            let value = |chosen: &dyn Fn(usize) -> bool, of: fn(&(f64, f64)) -> f64| -> f64 {
                THINGS.iter().enumerate().filter(|(at, _)| chosen(*at)).map(|(_, thing)| of(thing)).sum()
            };
            let best = (0..64u32)
                .map(|set| (value(&|at| set >> at & 1 == 1, |t| t.0), value(&|at| set >> at & 1 == 1, |t| t.1)))
                .filter(|(weight, _)| *weight <= f64::from(room))
                .fold(0.0, |best: f64, (_, value)| best.max(value));
            assert_eq!(value(&|at| values.is_one(packed[at]), |t| t.1), best, "room {room}");
        }
    }

    #[test]
    fn infeasible_is_said() {
        let (mut model, packed, objective) = knapsack(3.0);
        model.at_least(packed.iter().map(|&var| (1.0, var)), 2.0);
        assert_eq!(model.minimise(&objective, LIMITS), Outcome::Infeasible);
        let mut model = Model::default();
        let half = model.whole(0, 3);
        model.exactly([(2.0, half)], 3.0);
        assert_eq!(model.minimise(&[(1.0, half)], LIMITS), Outcome::Infeasible);
    }

    #[test]
    fn what_is_no_program_is_not_solved() {
        let (model, packed, _) = knapsack(9.0);
        assert_eq!(model.minimise(&[(f64::NAN, packed[0])], LIMITS), Outcome::Unknown);
        assert_eq!(model.minimise(&[(1.0, Var(99))], LIMITS), Outcome::Unknown);
        assert_eq!(Model::default().minimise(&[], LIMITS), Outcome::Unknown);
        let mut crossed = model.clone();
        crossed.real(1.0, 0.0);
        assert_eq!(crossed.minimise(&[], LIMITS), Outcome::Unknown);
        let mut endless = model;
        endless.real(0.0, f64::INFINITY);
        assert_eq!(endless.minimise(&[], LIMITS), Outcome::Unknown);
    }

    /// Whole numbers with only even sums, of which one is odd: every node but the deepest looks possible.
    #[test]
    fn a_limit_of_nodes_ends_the_search() {
        let mut model = Model::default();
        let vars: Vec<Var> = (0..30).map(|_| model.binary()).collect();
        let (odd, sum) = (model.binary(), |vars: &[Var]| vars.iter().map(|&var| (2.0, var)).collect::<Vec<_>>());
        model.exactly(sum(&vars).into_iter().chain([(1.0, odd)]), 31.0);
        model.at_most([(1.0, odd)], 0.0);
        let outcome = model.minimise(&[(1.0, vars[0])], Limits { nodes: 10 });
        // HiGHS sees it without branching.
        let expected = if cfg!(feature = "highs") { Outcome::Infeasible } else { Outcome::Unknown };
        assert_eq!(outcome, expected);
    }
}
