//! The gate of a shared expert (Qwen2-MoE): each token's weight of its result. As with routed experts, it is multiplied in in front of the
//! last product, so what that makes need not be kept. It is found with the routing, and kept as that is.

use super::{Context, Sizes};
use crate::error::Result;
use crate::runtime::cuda::executor::blocks::{Block, Packer, Spot};
use crate::runtime::cuda::executor::store::{Store, Vector};
use crate::runtime::cuda::ops::gate;
use crate::runtime::cuda::{Bf16, Slice};

/// Weights of an MLP's rows.
#[derive(Clone, Copy)]
pub struct RowWeights {
    /// One for each row.
    pub values: Spot<f32>,
    /// Their gradients.
    pub gradients: Spot<f32>,
}

/// Parameters, and where values lie.
pub struct Gate {
    vector: Vector,
    weights: RowWeights,
    d_logits: Spot<f32>,
    scratch: Spot<f32>,
}

impl Gate {
    /// `name` is that of its matrix, which has one row.
    pub fn new(name: &str, sizes: Sizes, store: &Store, packer: &mut Packer) -> Result<Self> {
        let (vector, tokens) = (store.vector(name)?, sizes.tokens);
        Ok(Self {
            vector,
            weights: RowWeights {
                values: packer.take_once(Block::UntilI, tokens),
                gradients: packer.take(Block::Backward, tokens),
            },
            d_logits: packer.take(Block::FromI, tokens),
            scratch: packer.take(Block::Weights, gate::gradient_scratch(tokens, vector.values.len())),
        })
    }

    /// What the shared expert's rows are multiplied with.
    pub fn weights(&self) -> RowWeights {
        self.weights
    }

    /// F: the weights of all tokens.
    pub fn forward(&self, context: &Context, tokens: Slice<Bf16>) -> Result<()> {
        let weights = context.blocks.at(self.weights.values);
        gate::forward(context.stream, context.sms, tokens, self.vector.values, weights)
    }

    /// I, behind that of the shared expert: adds to the gradient of the tokens.
    pub fn input_gradient(&self, context: &Context, d_tokens: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let RowWeights { values, gradients } = self.weights;
        let weights = (blocks.at(values), blocks.at(gradients));
        gate::input_gradient(stream, sms, weights, self.vector.values, blocks.at(self.d_logits), d_tokens)
    }

    /// W.
    pub fn accumulate(&self, context: &Context, tokens: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (d_logits, scratch) = (blocks.at(self.d_logits), blocks.at(self.scratch));
        gate::gradient(stream, sms, tokens, d_logits, self.vector.gradient, scratch)
    }
}
