//! The ends of the model: embedding and head.

use super::{Context, Sizes};
use crate::error::Result;
use crate::runtime::cuda::executor::blocks::{Block, Packer, Spot};
use crate::runtime::cuda::executor::store::{Matrix, Store, Vector};
use crate::runtime::cuda::ops::{embedding, loss, norm};
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// The token embedding.
pub struct EmbeddingUnit {
    table: Vector,
    dy: Spot<Bf16>,
}

impl EmbeddingUnit {
    /// With the table in `store`.
    pub fn new(shape: &Shape, sizes: Sizes, store: &Store, packer: &mut Packer) -> Result<Self> {
        Ok(Self { table: store.table()?, dy: packer.take(Block::FromI, sizes.tokens * shape.hidden()) })
    }

    /// Where the gradient of its output is put.
    pub fn output_gradient(&self) -> Spot<Bf16> {
        self.dy
    }

    /// F: the rows of the tokens.
    pub fn forward(&self, context: &Context, tokens: Slice<u32>, y: Slice<Bf16>) -> Result<()> {
        let hidden = context.shape.hidden();
        embedding::forward(context.stream, context.sms, self.table.values, tokens, y, hidden)
    }

    /// W.
    pub fn accumulate(&self, context: &Context, tokens: Slice<u32>) -> Result<()> {
        let (dy, hidden) = (context.blocks.at(self.dy), context.shape.hidden());
        embedding::gradient(context.stream, context.sms, dy, tokens, self.table.gradient, hidden)
    }
}

/// The output head: norm, logits, cross-entropy. The gradient of the logits is made in F.
pub struct HeadUnit {
    norm: Vector,
    matrix: Matrix,
    x: Spot<Bf16>,
    normed: Spot<Bf16>,
    /// tokens × vocabulary.
    logits: Spot<f32>,
    losses: Spot<f32>,
    d_logits: Spot<Bf16>,
    d_normed: Spot<Bf16>,
    gain_scratch: Spot<f32>,
}

impl HeadUnit {
    /// `name` is what stands in front of its tensors.
    pub fn new(shape: &Shape, name: &str, sizes: Sizes, store: &Store, packer: &mut Packer) -> Result<Self> {
        let (tokens, hidden, vocabulary) = (sizes.tokens, shape.hidden(), shape.model.vocabulary as usize);
        Ok(Self {
            norm: store.vector(&format!("{name}.norms.0.gain"))?,
            matrix: if shape.model.tied_embedding { store.tied()? } else { store.matrix(&format!("{name}.matrix"))? },
            x: packer.take_once(Block::UntilI, tokens * hidden),
            normed: packer.take_once(Block::UntilW, tokens * hidden),
            logits: packer.take_once(Block::Forward, tokens * vocabulary),
            losses: packer.take_once(Block::Forward, tokens),
            d_logits: packer.take_once(Block::UntilW, tokens * vocabulary),
            d_normed: packer.take(Block::Backward, tokens * hidden),
            gain_scratch: packer.take(Block::Backward, norm::gain_gradient_scratch(tokens, hidden)),
        })
    }

    /// Where its input lies.
    pub fn input(&self) -> Spot<Bf16> {
        self.x
    }

    /// F: the sum of the losses of all tokens goes to `loss`. `scale`: of the gradient, one over the tokens of the step.
    pub fn forward(&self, context: &Context, targets: Slice<u32>, scale: f32, loss: Slice<f32>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (x, normed) = (blocks.at(self.x), blocks.at(self.normed));
        let (logits, losses) = (blocks.at(self.logits), blocks.at(self.losses));
        let gain = self.norm.values;
        norm::forward(stream, sms, (x, gain.len()), gain, normed, context.epsilon())?;
        context.product(normed, self.matrix, logits, false)?;
        loss::cross_entropy(stream, sms, logits, targets, scale, blocks.at(self.d_logits), losses)?;
        loss::sum(stream, losses, loss)
    }

    /// I: the gradient of its input.
    pub fn input_gradient(&self, context: &Context, dx: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (x, d_normed, scratch) = (blocks.at(self.x), blocks.at(self.d_normed), blocks.at(self.gain_scratch));
        context.product_input(blocks.at(self.d_logits), self.matrix, d_normed, false)?;
        let (gain, epsilon) = (self.norm, context.epsilon());
        let width = gain.values.len();
        norm::gain_gradient(stream, sms, (x, width), d_normed, gain.gradient, scratch, epsilon)?;
        norm::input_gradient(stream, sms, (x, width), gain.values, d_normed, (dx, width), None, epsilon)
    }

    /// W.
    pub fn accumulate(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        context.product_weight(blocks.at(self.normed), blocks.at(self.d_logits), self.matrix)
    }
}
