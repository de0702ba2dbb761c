//! The input of a multi-token-prediction module (DeepSeek-V3 report, section 2.2): a norm of the hidden state, a norm of the
//! embedding of a later token, and a projection of both together.

use super::linear::{self, Linear};
use super::rmsnorm::{self, RmsNorm};
use crate::runtime::host::parameters::parameters;
use crate::runtime::host::{Matrix, Real, Shape};

parameters! {
    /// Norms and projection.
    pub struct Mtp {
        /// Of the hidden state.
        pub hidden_norm: RmsNorm<T>,
        /// Of the embedding.
        pub embedding_norm: RmsNorm<T>,
        /// From both, hidden state first.
        pub projection: Linear<T>,
    }
}

/// What the gradient needs.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    hidden_norm: rmsnorm::Saved<T>,
    embedding_norm: rmsnorm::Saved<T>,
    projection: linear::Saved<T>,
}

/// What the weight gradient needs.
#[derive(Clone, Debug)]
pub struct ForWeights<T> {
    hidden_norm: rmsnorm::ForWeights<T>,
    embedding_norm: rmsnorm::ForWeights<T>,
    projection: linear::ForWeights<T>,
}

/// Gradients of the inputs.
pub struct Gradients<T> {
    /// Of the hidden state.
    pub hidden: Matrix<T>,
    /// Of the embedding's rows.
    pub embedding: Matrix<T>,
}

impl<T: Real> Mtp<T> {
    /// All zero.
    pub fn new(shape: &Shape) -> Self {
        let hidden = shape.hidden();
        Self {
            hidden_norm: RmsNorm::new(hidden),
            embedding_norm: RmsNorm::new(hidden),
            projection: Linear::new(2 * hidden, hidden, false),
        }
    }

    /// Both inputs and the result: tokens × hidden.
    pub fn forward(&self, shape: &Shape, hidden: Matrix<T>, embedding: Matrix<T>) -> (Matrix<T>, Saved<T>) {
        let (epsilon, stream) = (shape.norm_epsilon, shape.policy.stream());
        let (hidden, hidden_norm) = self.hidden_norm.forward(epsilon, stream, hidden);
        let (embedding, embedding_norm) = self.embedding_norm.forward(epsilon, stream, embedding);
        let both = Matrix::beside(&[&hidden, &embedding]);
        let (y, projection) = self.projection.forward(shape.policy.products(), &both);
        (y, Saved { hidden_norm, embedding_norm, projection })
    }

    /// From the gradient of the result to those of the inputs.
    pub fn input_gradient(&self, shape: &Shape, saved: Saved<T>, dy: &Matrix<T>) -> (Gradients<T>, ForWeights<T>) {
        let stream = shape.policy.stream();
        let (both, projection) = self.projection.input_gradient(shape.policy.products(), saved.projection, dy);
        let width = shape.hidden();
        let (hidden, hidden_norm) =
            self.hidden_norm.input_gradient(stream, saved.hidden_norm, &both.columns_of(0..width));
        let (embedding, embedding_norm) =
            self.embedding_norm.input_gradient(stream, saved.embedding_norm, &both.columns_of(width..2 * width));
        (Gradients { hidden, embedding }, ForWeights { hidden_norm, embedding_norm, projection })
    }

    /// Adds to the gradients, which `self` has the place of.
    pub fn accumulate(&mut self, shape: &Shape, needed: &ForWeights<T>) {
        let formats = shape.policy.products();
        self.hidden_norm.accumulate(formats.gradients, &needed.hidden_norm);
        self.embedding_norm.accumulate(formats.gradients, &needed.embedding_norm);
        self.projection.accumulate(formats, &needed.projection);
    }
}
