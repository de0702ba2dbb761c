//! The ends of the model, and the input of MTP modules: ops around the table and the head's matrix, which several units read.
//!
//! Such a matrix is passed in, and so is its gradient: a rank that has no such unit has a copy.

use std::ops::Range;

use super::layer::Layer;
use crate::runtime::host::batch::Batch;
use crate::runtime::host::layers::mtp::Mtp;
use crate::runtime::host::layers::rmsnorm::RmsNorm;
use crate::runtime::host::layers::{embedding, head, mtp};
use crate::runtime::host::parameters::{Tensor, parameters};
use crate::runtime::host::{Matrix, Real, Shape};

parameters! {
    /// A multi-token-prediction module. The norm behind it belongs to the head.
    pub struct MtpModule {
        /// From the hidden state before, and an embedding.
        pub input: Mtp<T>,
        /// As the model's last.
        pub layer: Layer<T>,
    }
}

parameters! {
    /// The output head.
    pub struct Head {
        /// One for the model, one for each MTP module.
        pub norms: Vec<RmsNorm<T>>,
        /// Vocabulary × hidden; absent where the embedding's is used.
        pub matrix: Option<Tensor<T>>,
    }
}

/// F of the embedding: tokens × hidden.
pub fn embedding_forward<T: Real>(shape: &Shape, table: &Tensor<T>, batch: &Batch) -> Matrix<T> {
    embedding::forward(table, shape.policy.stream(), &batch.ahead(0))
}

/// What the weight gradient of the embedding needs: the tokens, and the gradient that arrives.
pub struct EmbeddingForWeights<T>(embedding::ForWeights<T>);

impl<T: Real> EmbeddingForWeights<T> {
    /// Of the model's embedding.
    pub fn new(batch: &Batch, gradient: Matrix<T>) -> Self {
        Self(embedding::ForWeights { tokens: batch.ahead(0), gradient })
    }

    /// W of the embedding: adds to the gradient of the table.
    pub fn accumulate(&self, shape: &Shape, table: &mut Tensor<T>) {
        embedding::accumulate(table, shape.policy.gradients(), &self.0);
    }
}

/// What the weight gradient of a module's input needs.
pub struct InputForWeights<T> {
    input: mtp::ForWeights<T>,
    embedding: embedding::ForWeights<T>,
}

impl<T: Real> MtpModule<T> {
    /// All zero, with the routed experts of a range.
    pub fn new(shape: &Shape, experts: Range<u32>) -> Self {
        Self { input: Mtp::new(shape), layer: Layer::new(shape, shape.model.mtp_is_moe(), experts) }
    }

    /// F of the input of module `number`: from the hidden state of the model, or of the module before, to that which its
    /// layer reads.
    pub fn input_forward(
        &self,
        shape: &Shape,
        number: u32,
        table: &Tensor<T>,
        batch: &Batch,
        hidden: Matrix<T>,
    ) -> (Matrix<T>, mtp::Saved<T>) {
        let rows = embedding::forward(table, shape.policy.stream(), &batch.ahead(number as usize + 1));
        self.input.forward(shape, hidden, rows)
    }

    /// I of the input: the gradient of the hidden state.
    pub fn input_gradient(
        &self,
        shape: &Shape,
        number: u32,
        batch: &Batch,
        saved: mtp::Saved<T>,
        dy: &Matrix<T>,
    ) -> (Matrix<T>, InputForWeights<T>) {
        let (mtp::Gradients { hidden, embedding }, input) = self.input.input_gradient(shape, saved, dy);
        let tokens = batch.ahead(number as usize + 1);
        (hidden, InputForWeights { input, embedding: embedding::ForWeights { tokens, gradient: embedding } })
    }

    /// W of the input: adds to the gradients, which `self` has the place of, and to the table's.
    pub fn accumulate_input(&mut self, shape: &Shape, needed: &InputForWeights<T>, table: &mut Tensor<T>) {
        self.input.accumulate(shape, &needed.input);
        embedding::accumulate(table, shape.policy.gradients(), &needed.embedding);
    }
}

impl<T: Real> Head<T> {
    /// All zero.
    pub fn new(shape: &Shape) -> Self {
        Self {
            norms: (0..shape.losses()).map(|_| RmsNorm::new(shape.hidden())).collect(),
            matrix: (!shape.model.tied_embedding).then(|| embedding::table(shape)),
        }
    }

    /// F: of the model's hidden state and of each module's, the sum of the cross-entropies over the tokens. What is saved is
    /// for the gradient of the step's loss: the mean over `step_tokens`, modules weighted. `tied`: the embedding's table.
    ///
    /// # Panics
    /// If the head has no matrix, and none is given.
    pub fn forward(
        &self,
        shape: &Shape,
        tied: Option<&Tensor<T>>,
        batch: &Batch,
        step_tokens: usize,
        states: Vec<Matrix<T>>,
    ) -> (Vec<f64>, Vec<head::Saved<T>>) {
        let matrix = self.matrix_or(tied);
        let weights = shape.loss_weights();
        let runs = states.into_iter().zip(&self.norms).zip(weights).enumerate();
        runs.map(|(run, ((state, norm), weight))| {
            let scale = weight / step_tokens as f64;
            head::forward(shape, norm, matrix, state, (&batch.ahead(run + 1), scale))
        })
        .unzip()
    }

    /// I: the gradient of each hidden state.
    pub fn input_gradient(
        &self,
        shape: &Shape,
        tied: Option<&Tensor<T>>,
        saved: Vec<head::Saved<T>>,
    ) -> (Vec<Matrix<T>>, Vec<head::ForWeights<T>>) {
        let matrix = self.matrix_or(tied);
        saved.into_iter().zip(&self.norms).map(|(saved, norm)| head::input_gradient(shape, norm, matrix, saved)).unzip()
    }

    /// W: adds to the gradients, which `self` has the place of, or to the table's.
    pub fn accumulate(&mut self, shape: &Shape, needed: &[head::ForWeights<T>], tied: Option<&mut Tensor<T>>) {
        let matrix = self.matrix.as_mut().or(tied).expect(NO_MATRIX);
        for (norm, needed) in self.norms.iter_mut().zip(needed) {
            head::accumulate(shape, norm, matrix, needed);
        }
    }

    fn matrix_or<'a>(&'a self, tied: Option<&'a Tensor<T>>) -> &'a Tensor<T> {
        self.matrix.as_ref().or(tied).expect(NO_MATRIX)
    }
}

const NO_MATRIX: &str = "a head without a matrix is tied to the embedding, whose table is given";
