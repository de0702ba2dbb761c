//! Dispatch and combine, as one rank sees them for its own tokens: what it sends, and what it makes of what comes back. What
//! a rank with experts receives from several ranks it puts together with [`permutation::merge`], and takes apart again with
//! [`permutation::divide`].
//!
//! Values are rounded to the payload's format here, where they leave or arrive; each row has scales of its own, so it is the
//! same on either end.

use std::ops::Range;

use crate::runtime::host::layers::permutation::{self, ExpertRows};
use crate::runtime::host::layers::router::Routing;
use crate::runtime::host::precision::{Format, SENT, Tiles, round, rounded};
use crate::runtime::host::{Matrix, Real, Shape};

/// F of dispatch: the tokens for each expert of a range.
pub fn dispatch<T: Real>(
    shape: &Shape,
    tokens: &Matrix<T>,
    routing: &Routing<T>,
    experts: Range<u32>,
) -> ExpertRows<T> {
    permutation::dispatch(&rounded(tokens, shape.policy.dispatch(), Tiles::Rows, SENT), routing, experts)
}

/// I of dispatch: the gradient of the tokens, from those of all experts' rows.
pub fn dispatch_input_gradient<T: Real>(shape: &Shape, rows: ExpertRows<T>, routing: &Routing<T>) -> Matrix<T> {
    let rows = all_rounded(rows, shape.policy.combine());
    let mut sum = permutation::collect(&rows, routing);
    round(&mut sum, shape.policy.stream(), Tiles::Rows);
    sum
}

/// What the gradient of combine needs: the rows that came back.
#[derive(Clone, Debug)]
pub struct CombineSaved<T>(ExpertRows<T>);

/// F of combine: the residual stream, with the weighted results of the experts and that of the shared expert.
pub fn combine<T: Real>(
    shape: &Shape,
    rows: ExpertRows<T>,
    routing: &Routing<T>,
    shared: Option<&Matrix<T>>,
    residual: Matrix<T>,
) -> (Matrix<T>, CombineSaved<T>) {
    let rows = all_rounded(rows, shape.policy.combine());
    let mut stream = residual;
    stream.add(&permutation::combine(&rows, routing));
    if let Some(shared) = shared {
        stream.add(shared);
    }
    round(&mut stream, shape.policy.stream(), Tiles::Rows);
    (stream, CombineSaved(rows))
}

/// I of combine: the gradients of the rows of each expert of a range. Those of the residual stream and of the shared expert's
/// result are `dy` itself. The gradient travels as it is, in dispatch's format, and is multiplied by the weight where it
/// arrives.
pub fn combine_input_gradient<T: Real>(
    shape: &Shape,
    routing: &Routing<T>,
    dy: &Matrix<T>,
    experts: Range<u32>,
) -> ExpertRows<T> {
    permutation::spread(&rounded(dy, shape.policy.dispatch(), Tiles::Rows, SENT), routing, experts)
}

/// I of combine, too: the gradient of the weights, which stays with the tokens.
pub fn combine_routing_gradient<T: Real>(saved: &CombineSaved<T>, routing: &Routing<T>, dy: &Matrix<T>) -> Matrix<T> {
    permutation::weight_gradient(dy, &saved.0, routing)
}

fn all_rounded<T: Real>(mut rows: ExpertRows<T>, format: Format) -> ExpertRows<T> {
    rows.values_mut().for_each(|rows| round(rows, format, Tiles::Rows));
    rows
}
