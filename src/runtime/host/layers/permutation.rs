//! Moving tokens to their experts and back. An expert's rows are ordered by the rank that they come from, then by token; a
//! token's experts are added up in ascending order. So nothing depends on when a message arrives.

use std::collections::BTreeMap;
use std::ops::Range;

use super::router::Routing;
use crate::runtime::host::tensor::{add_to, dot};
use crate::runtime::host::{Matrix, Real};

/// By expert, one row for each token that it gets. Experts without tokens have a matrix without rows.
pub type ExpertRows<T> = BTreeMap<u32, Matrix<T>>;

/// The rows that go to each expert of a range.
pub fn dispatch<T: Real>(tokens: &Matrix<T>, routing: &Routing<T>, experts: Range<u32>) -> ExpertRows<T> {
    let mut rows: BTreeMap<u32, Vec<T>> = experts.map(|expert| (expert, Vec::new())).collect();
    for token in 0..tokens.rows() {
        for expert in routing.of_token(token) {
            if let Some(rows) = rows.get_mut(expert) {
                rows.extend_from_slice(tokens.row(token));
            }
        }
    }
    let width = tokens.columns();
    rows.into_iter().map(|(expert, rows)| (expert, Matrix::new(rows.len() / width, width, rows))).collect()
}

/// The gradient of [`dispatch`]: the rows of each token added up. `rows` has all experts that the tokens went to.
pub fn collect<T: Real>(rows: &ExpertRows<T>, routing: &Routing<T>) -> Matrix<T> {
    let width = rows.values().next().map_or(0, Matrix::columns);
    let mut sum = Matrix::zeros(routing.weights.rows(), width);
    visit(routing, |token, _, expert, row| add_to(sum.row_mut(token), rows[&expert].row(row), T::ONE));
    sum
}

/// The weighted sum of each token's rows.
pub fn combine<T: Real>(rows: &ExpertRows<T>, routing: &Routing<T>) -> Matrix<T> {
    let width = rows.values().next().map_or(0, Matrix::columns);
    let mut sum = Matrix::zeros(routing.weights.rows(), width);
    visit(routing, |token, slot, expert, row| {
        add_to(sum.row_mut(token), rows[&expert].row(row), routing.weights.row(token)[slot]);
    });
    sum
}

/// The gradients of [`combine`] by rows, for the experts of a range: each the token's gradient times its weight.
pub fn spread<T: Real>(dy: &Matrix<T>, routing: &Routing<T>, experts: Range<u32>) -> ExpertRows<T> {
    let mut rows = dispatch(dy, routing, experts);
    visit(routing, |token, slot, expert, row| {
        if let Some(rows) = rows.get_mut(&expert) {
            let weight = routing.weights.row(token)[slot];
            rows.row_mut(row).iter_mut().for_each(|value| *value *= weight);
        }
    });
    rows
}

/// The gradient of [`combine`] by weights: of each row, its product with the token's gradient.
pub fn weight_gradient<T: Real>(dy: &Matrix<T>, rows: &ExpertRows<T>, routing: &Routing<T>) -> Matrix<T> {
    let mut gradient = Matrix::zeros(routing.weights.rows(), routing.weights.columns());
    visit(routing, |token, slot, expert, row| {
        gradient.row_mut(token)[slot] = dot(dy.row(token), rows[&expert].row(row));
    });
    gradient
}

/// What several ranks send to the same experts, by rank, as one.
pub fn merge<T: Real>(by_rank: &[ExpertRows<T>]) -> ExpertRows<T> {
    let experts = by_rank.first().map(|rows| rows.keys().copied()).into_iter().flatten();
    let merged = |expert| Matrix::below(&by_rank.iter().map(|rows| &rows[&expert]).collect::<Vec<_>>());
    experts.map(|expert| (expert, merged(expert))).collect()
}

/// Undoes [`merge`]: what goes back to each rank, which had sent as many rows to each expert as `counts` says.
pub fn divide<T: Real>(rows: &ExpertRows<T>, counts: &[BTreeMap<u32, usize>]) -> Vec<ExpertRows<T>> {
    let mut next: BTreeMap<u32, usize> = BTreeMap::new();
    let mut take = |expert: u32, count: usize| {
        let first = next.entry(expert).or_default();
        let part = rows[&expert].rows_of(*first..*first + count);
        *first += count;
        (expert, part)
    };
    counts.iter().map(|counts| counts.iter().map(|(&expert, &count)| take(expert, count)).collect()).collect()
}

/// Rows of each expert.
pub fn counts<T: Real>(rows: &ExpertRows<T>) -> BTreeMap<u32, usize> {
    rows.iter().map(|(&expert, rows)| (expert, rows.rows())).collect()
}

/// Visits (token, place among its experts, expert, row among the expert's) by token.
fn visit<T: Real>(routing: &Routing<T>, mut each: impl FnMut(usize, usize, u32, usize)) {
    let mut next: BTreeMap<u32, usize> = BTreeMap::new();
    for token in 0..routing.weights.rows() {
        for (slot, &expert) in routing.of_token(token).iter().enumerate() {
            let row = next.entry(expert).or_default();
            each(token, slot, expert, *row);
            *row += 1;
        }
    }
}
