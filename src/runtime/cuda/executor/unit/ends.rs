//! The ends of the model: embedding and head.

use super::{Context, Sizes, States};
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

/// The output head: norm, logits, cross-entropy; once for the model, and once for each MTP module. The gradient of the logits is made in F.
pub struct HeadUnit {
    matrix: Matrix,
    runs: Vec<Run>,
    /// tokens × vocabulary; of one run at a time, as all that follows.
    logits: Spot<f32>,
    losses: Spot<f32>,
    d_normed: Spot<Bf16>,
    gain_scratch: Spot<f32>,
}

/// What each run has for itself.
struct Run {
    norm: Vector,
    /// Of its loss.
    weight: f32,
    x: Spot<Bf16>,
    normed: Spot<Bf16>,
    d_logits: Spot<Bf16>,
}

impl HeadUnit {
    /// `name` is what stands in front of its tensors.
    pub fn new(shape: &Shape, name: &str, sizes: Sizes, store: &Store, packer: &mut Packer) -> Result<Self> {
        let (tokens, hidden, vocabulary) = (sizes.tokens, shape.hidden(), shape.model.vocabulary as usize);
        let run = |(number, weight): (usize, f64)| {
            Ok(Run {
                norm: store.vector(&format!("{name}.norms.{number}.gain"))?,
                weight: weight as f32,
                x: packer.take_once(Block::UntilI, tokens * hidden),
                normed: packer.take_once(Block::UntilW, tokens * hidden),
                d_logits: packer.take_once(Block::UntilW, tokens * vocabulary),
            })
        };
        let runs = shape.loss_weights().into_iter().enumerate().map(run).collect::<Result<_>>()?;
        Ok(Self {
            matrix: if shape.model.tied_embedding { store.tied()? } else { store.matrix(&format!("{name}.matrix"))? },
            runs,
            logits: packer.take_once(Block::Forward, tokens * vocabulary),
            losses: packer.take_once(Block::Forward, tokens),
            d_normed: packer.take(Block::Backward, tokens * hidden),
            gain_scratch: packer.take(Block::Backward, norm::gain_gradient_scratch(tokens, hidden)),
        })
    }

    /// Where the hidden states that it reads lie.
    pub fn input(&self) -> impl Iterator<Item = Spot<Bf16>> {
        self.runs.iter().map(|run| run.x)
    }

    /// F: of each run, the sum of the losses of all tokens goes to `losses`. `targets`: by run. `scale`: of the gradient, one over the tokens of the
    /// step.
    pub fn forward(&self, context: &Context, targets: &[Slice<u32>], scale: f32, losses: Slice<f32>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (logits, of_tokens) = (blocks.at(self.logits), blocks.at(self.losses));
        for (number, (run, &targets)) in self.runs.iter().zip(targets).enumerate() {
            let (x, normed, gain) = (blocks.at(run.x), blocks.at(run.normed), run.norm.values);
            norm::forward(stream, sms, (x, gain.len()), gain, normed, context.epsilon())?;
            context.product(normed, self.matrix, logits, false)?;
            let scale = scale * run.weight;
            loss::cross_entropy(stream, sms, logits, targets, scale, blocks.at(run.d_logits), of_tokens)?;
            loss::sum(stream, of_tokens, losses.part(number..number + 1))?;
        }
        Ok(())
    }

    /// I: the gradient of each hidden state.
    pub fn input_gradient(&self, context: &Context, dx: &States) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (d_normed, scratch, epsilon) = (blocks.at(self.d_normed), blocks.at(self.gain_scratch), context.epsilon());
        for (run, &dx) in self.runs.iter().zip(dx) {
            let (x, gain) = (blocks.at(run.x), run.norm);
            let width = gain.values.len();
            context.product_input(blocks.at(run.d_logits), self.matrix, d_normed, false)?;
            norm::gain_gradient(stream, sms, (x, width), d_normed, gain.gradient, scratch, epsilon)?;
            norm::input_gradient(stream, sms, (x, width), gain.values, d_normed, (dx, width), None, epsilon)?;
        }
        Ok(())
    }

    /// W.
    pub fn accumulate(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        let run = |run: &Run| context.product_weight(blocks.at(run.normed), blocks.at(run.d_logits), self.matrix);
        self.runs.iter().try_for_each(run)
    }
}
