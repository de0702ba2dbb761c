//! Training straight through: all micro-batches of a step one after the other, no pipeline, all experts in one place. What a
//! plan computes is compared with this.

use super::adamw::{AdamW, State, square_sum};
use super::batch::Batch;
use super::layers::{embedding, head, mtp};
use super::parameters::{Tensor, initialise, parameters};
use super::unit::layer::{self, Layer, all_experts};
use super::unit::{Head, MtpModule, ends};
use super::{Matrix, Real, Shape};

parameters! {
    /// A whole model: its parameters, or their gradients. Tensors have the names that they have in their units.
    pub struct Model {
        /// Vocabulary × hidden.
        pub embedding: Tensor<T>,
        /// Decoder layers.
        pub layers: Vec<Layer<T>>,
        /// Multi-token-prediction modules.
        pub mtp: Vec<MtpModule<T>>,
        /// Output head.
        pub head: Head<T>,
    }
}

/// What F leaves for I.
struct Saved<T> {
    layers: Vec<layer::Saved<T>>,
    mtp: Vec<(mtp::Saved<T>, layer::Saved<T>)>,
    head: Vec<head::Saved<T>>,
}

/// What I leaves for W.
struct ForWeights<T> {
    embedding: ends::EmbeddingForWeights<T>,
    /// Last layer first; so are modules.
    layers: Vec<layer::ForWeights<T>>,
    mtp: Vec<(ends::InputForWeights<T>, layer::ForWeights<T>)>,
    head: Vec<head::ForWeights<T>>,
}

impl<T: Real> Model<T> {
    /// All zero: gradients in front of a step.
    pub fn zeros(shape: &Shape) -> Self {
        let layer = |number| Layer::new(shape, shape.model.is_moe(number), all_experts(shape));
        Self {
            embedding: embedding::table(shape),
            layers: (0..shape.model.layers).map(layer).collect(),
            mtp: (0..shape.model.mtp_layers).map(|_| MtpModule::new(shape, all_experts(shape))).collect(),
            head: Head::new(shape),
        }
    }

    /// Parameters in front of the first step.
    pub fn initial(shape: &Shape, seed: u64) -> Self {
        let mut model = Self::zeros(shape);
        initialise(&mut model, "", seed, shape.policy.master());
        model
    }

    /// Adds the gradients of one micro-batch of a step of `step_tokens`; returns its losses, summed over its tokens: the
    /// model's, and each MTP module's.
    pub fn accumulate(&self, shape: &Shape, batch: &Batch, step_tokens: usize, gradients: &mut Self) -> Vec<f64> {
        let (losses, saved) = self.forward(shape, batch, step_tokens);
        let needed = self.input_gradient(shape, batch, saved);
        gradients.weight_gradient(shape, &needed);
        losses
    }

    /// F of all units.
    fn forward(&self, shape: &Shape, batch: &Batch, step_tokens: usize) -> (Vec<f64>, Saved<T>) {
        let mut x = ends::embedding_forward(shape, &self.embedding, batch);
        let mut layers = Vec::with_capacity(self.layers.len());
        for (number, layer) in (0..).zip(&self.layers) {
            let (y, saved) = layer.forward(shape, number, x);
            layers.push(saved);
            x = y;
        }
        // The hidden state of the model, and of each module.
        let mut states = vec![x.clone()];
        let mut modules = Vec::with_capacity(self.mtp.len());
        for (number, module) in (0..).zip(&self.mtp) {
            let (input, saved_input) = module.input_forward(shape, number, &self.embedding, batch, x);
            let (y, saved) = module.layer.forward(shape, shape.mtp_layer(), input);
            modules.push((saved_input, saved));
            states.push(y.clone());
            x = y;
        }
        let (losses, head) = self.head.forward(shape, Some(&self.embedding), batch, step_tokens, states);
        (losses, Saved { layers, mtp: modules, head })
    }

    /// I of all units.
    fn input_gradient(&self, shape: &Shape, batch: &Batch, saved: Saved<T>) -> ForWeights<T> {
        let (mut gradients, head) = self.head.input_gradient(shape, Some(&self.embedding), saved.head);
        let mut dx = Matrix::default();
        let mut modules = Vec::with_capacity(self.mtp.len());
        for ((number, module), (saved_input, saved)) in (0..shape.model.mtp_layers).zip(&self.mtp).zip(saved.mtp).rev()
        {
            // Beside the head, the module behind reads a module's state.
            let dy = sum(gradients.pop(), dx);
            let (d_input, needed) = module.layer.input_gradient(shape, shape.mtp_layer(), saved, dy);
            let (d_hidden, needed_input) = module.input_gradient(shape, number, batch, saved_input, &d_input);
            modules.push((needed_input, needed));
            dx = d_hidden;
        }
        dx = sum(gradients.pop(), dx);
        let mut layers = Vec::with_capacity(self.layers.len());
        for ((number, layer), saved) in (0..shape.model.layers).zip(&self.layers).zip(saved.layers).rev() {
            let (d_input, needed) = layer.input_gradient(shape, number, saved, dx);
            layers.push(needed);
            dx = d_input;
        }
        ForWeights { embedding: ends::EmbeddingForWeights::new(batch, dx), layers, mtp: modules, head }
    }

    /// W of all units: adds to the gradients, which `self` has the place of.
    fn weight_gradient(&mut self, shape: &Shape, needed: &ForWeights<T>) {
        self.head.accumulate(shape, &needed.head, Some(&mut self.embedding));
        for (module, (input, layer)) in self.mtp.iter_mut().rev().zip(&needed.mtp) {
            module.layer.accumulate(shape, layer);
            module.accumulate_input(shape, input, &mut self.embedding);
        }
        for (layer, needed) in self.layers.iter_mut().rev().zip(&needed.layers) {
            layer.accumulate(shape, needed);
        }
        needed.embedding.accumulate(shape, &mut self.embedding);
    }
}

/// A state's gradient, from the head and from the module behind, if there is one.
fn sum<T: Real>(from_head: Option<Matrix<T>>, behind: Matrix<T>) -> Matrix<T> {
    match from_head {
        Some(mut gradient) if behind.rows() > 0 => {
            gradient.add(&behind);
            gradient
        }
        Some(gradient) => gradient,
        None => behind,
    }
}

/// A model in training.
pub struct Trainer<T> {
    /// Its shape.
    pub shape: Shape,
    /// How it is updated.
    pub optimizer: AdamW,
    /// Its parameters.
    pub model: Model<T>,
    /// The optimizer's state.
    pub state: State<T>,
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Mean cross-entropy over the tokens: of the model, and of each MTP module.
    pub losses: Vec<f64>,
    /// Norm of all gradients together, before they were clipped.
    pub gradient_norm: f64,
}

impl<T: Real> Trainer<T> {
    /// In front of the first step.
    pub fn new(shape: Shape, optimizer: AdamW, seed: u64) -> Self {
        let model = Model::initial(&shape, seed);
        let state = State::new(&model);
        Self { shape, optimizer, model, state }
    }

    /// The gradients of a step over all its micro-batches, and its mean losses.
    pub fn gradients(&self, batches: &[Batch]) -> (Vec<f64>, Model<T>) {
        let tokens = batches.iter().map(Batch::tokens).sum();
        let mut gradients = Model::zeros(&self.shape);
        let mut losses = vec![0.0; self.shape.losses()];
        for batch in batches {
            let sums = self.model.accumulate(&self.shape, batch, tokens, &mut gradients);
            losses.iter_mut().zip(sums).for_each(|(loss, sum)| *loss += sum / tokens as f64);
        }
        (losses, gradients)
    }

    /// One step.
    pub fn step(&mut self, batches: &[Batch]) -> Step {
        let (losses, gradients) = self.gradients(batches);
        let squares = square_sum(&gradients);
        self.optimizer.step(&self.shape.policy, &mut self.model, &gradients, &mut self.state, squares);
        Step { losses, gradient_norm: squares.sqrt() }
    }
}
