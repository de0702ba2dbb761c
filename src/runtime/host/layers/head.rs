//! The output head: norm, logits, cross-entropy. The gradient of the logits is made in F, in place of the logits, so they are
//! not kept.

use super::linear;
use super::rmsnorm::{self, RmsNorm};
use crate::runtime::host::parameters::Tensor;
use crate::runtime::host::{Matrix, Real, Shape};

/// What the gradient needs.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    norm: rmsnorm::Saved<T>,
    input: linear::Saved<T>,
    d_logits: Matrix<T>,
}

/// What the weight gradient needs.
#[derive(Clone, Debug)]
pub struct ForWeights<T> {
    norm: rmsnorm::ForWeights<T>,
    matrix: linear::ForWeights<T>,
}

/// The sum over the rows of `x` of the cross-entropy of their targets. What is saved is for the gradient of `scale` times that
/// sum: one over the tokens of the step, for its mean. `matrix`: vocabulary × hidden, the embedding's if they are tied.
pub fn forward<T: Real>(
    shape: &Shape,
    norm: &RmsNorm<T>,
    matrix: &Tensor<T>,
    x: Matrix<T>,
    (targets, scale): (&[u32], f64),
) -> (f64, Saved<T>) {
    let (normed, norm) = norm.forward(shape.norm_epsilon, shape.policy.stream(), x);
    // Logits keep the accumulator's precision.
    let formats = crate::runtime::host::precision::ProductFormats { results: None, ..shape.policy.head() };
    let (mut logits, input) = linear::forward(formats, matrix, &normed);
    let targets = targets.iter().enumerate();
    let loss = targets.map(|(row, &target)| cross_entropy(logits.row_mut(row), target as usize, T::of(scale))).sum();
    (loss, Saved { norm, input, d_logits: logits })
}

/// The gradient of `x`.
pub fn input_gradient<T: Real>(
    shape: &Shape,
    norm: &RmsNorm<T>,
    matrix: &Tensor<T>,
    saved: Saved<T>,
) -> (Matrix<T>, ForWeights<T>) {
    let (d_normed, matrix) = linear::input_gradient(shape.policy.head(), matrix, saved.input, &saved.d_logits);
    let (dx, norm) = norm.input_gradient(shape.policy.stream(), saved.norm, &d_normed);
    (dx, ForWeights { norm, matrix })
}

/// Adds to the gradients of the norm and of the matrix.
pub fn accumulate<T: Real>(shape: &Shape, norm: &mut RmsNorm<T>, matrix: &mut Tensor<T>, needed: &ForWeights<T>) {
    norm.accumulate(shape.policy.gradients(), &needed.norm);
    linear::accumulate(shape.policy.head(), matrix, &needed.matrix);
}

/// `-ln softmax(logits)[target]`; leaves `scale · (softmax - one-hot)` in place of the logits.
fn cross_entropy<T: Real>(logits: &mut [T], target: usize, scale: T) -> f64 {
    let largest = logits.iter().copied().fold(logits[0], T::max);
    let log_sum = largest + logits.iter().map(|&logit| (logit - largest).exp()).sum::<T>().ln();
    let loss = log_sum - logits[target];
    logits.iter_mut().for_each(|logit| *logit = (*logit - log_sum).exp() * scale);
    logits[target] -= scale;
    loss.to_f64()
}
