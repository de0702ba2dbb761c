//! A multi-token-prediction module (DeepSeek-V3 report, section 2.2): norms of the hidden state and of a later token's embedding, a
//! projection of both together, and a decoder layer. The hidden states that come in are handed on beside the one that it makes: the head reads
//! all of them.

use super::layer::LayerUnit;
use super::product::{Input, Product};
use super::{Context, Sizes, States};
use crate::error::Result;
use crate::runtime::cuda::executor::blocks::{Block, Packer, Spot};
use crate::runtime::cuda::executor::forms::Forms;
use crate::runtime::cuda::executor::store::{Store, Vector};
use crate::runtime::cuda::ops::quantise::Groups;
use crate::runtime::cuda::ops::{element, embedding, norm};
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// Parameters, and where values lie: each tokens × hidden, but for those of both inputs.
pub struct MtpUnit {
    number: usize,
    layer: LayerUnit,
    table: Vector,
    norms: [Vector; 2],
    projection: Product,
    /// The layer is computed again in the backward, and what the projection reads with it.
    again: bool,
    /// Hidden states that come in. The last one is read.
    states: Vec<Spot<Bf16>>,
    /// Of the later token.
    rows: Spot<Bf16>,
    /// One norm's result at a time.
    normed: Spot<Bf16>,
    /// tokens × 2 · hidden: hidden state first.
    both: Input,
    /// Of the states that are handed on.
    d_states: Vec<Spot<Bf16>>,
    /// Of what the projection makes.
    d_input: Spot<Bf16>,
    d_both: Spot<Bf16>,
    d_normed: Spot<Bf16>,
    d_rows: Spot<Bf16>,
    gain_scratch: Spot<f32>,
}

impl MtpUnit {
    /// `name` is what stands in front of its tensors, `number` that of the module.
    pub fn new(
        shape: &Shape,
        (name, number, with_experts): (&str, u32, bool),
        (sizes, forms, unit): (Sizes, &Forms, usize),
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let of = |part: &str| format!("{name}.{part}");
        let layer = (&*of("layer"), shape.mtp_layer(), with_experts);
        let layer = LayerUnit::new(shape, layer, (sizes, forms, unit), store, packer)?;
        let (tokens, hidden) = (sizes.tokens, shape.hidden());
        let (len, formats, number) = (tokens * hidden, shape.policy.products(), number as usize);
        Ok(Self {
            number,
            layer,
            table: store.table()?,
            norms: [store.vector(&of("input.hidden_norm.gain"))?, store.vector(&of("input.embedding_norm.gain"))?],
            projection: Product::of_tokens(formats, &of("input.projection.weight"), tokens, store, packer)?,
            again: packer.recompute().layer,
            states: (0..=number).map(|_| packer.take_once(Block::UntilI, len)).collect(),
            rows: packer.take_once(Block::UntilI, len),
            normed: packer.take(Block::Forward, len),
            both: Input::new(packer, Some(formats), (tokens, 2 * hidden), Block::Forward, false),
            d_states: (0..=number).map(|_| packer.take(Block::FromI, len)).collect(),
            d_input: packer.take(Block::FromI, len),
            d_both: packer.take(Block::Backward, 2 * len),
            d_normed: packer.take(Block::Backward, len),
            d_rows: packer.take(Block::FromI, len),
            gain_scratch: packer.take(Block::Backward, norm::gain_gradient_scratch(tokens, hidden)),
        })
    }

    /// Its decoder layer.
    pub fn layer(&self) -> &LayerUnit {
        &self.layer
    }

    /// How much further on the token stands whose embedding it reads.
    pub fn ahead(&self) -> usize {
        self.number + 1
    }

    /// Where the hidden states that it reads lie.
    pub fn input(&self) -> impl Iterator<Item = Spot<Bf16>> {
        self.states.iter().copied()
    }

    /// Where the gradients of the states that it hands on, and of its own, are put.
    pub fn output_gradient(&self) -> impl Iterator<Item = Spot<Bf16>> {
        self.d_states.iter().copied().chain([self.layer.output_gradient()])
    }

    /// F in front of the layer: what that reads, from the hidden state and the `tokens` that stand so far ahead. What comes in goes to `output`.
    pub fn input_forward(&self, context: &Context, tokens: Slice<u32>, output: &States) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        for (state, to) in self.states.iter().zip(output) {
            to.copy_from(stream, blocks.at(*state))?;
        }
        embedding::forward(stream, sms, self.table.values, tokens, blocks.at(self.rows), context.shape.hidden())?;
        self.join(context)?;
        let input = blocks.at(self.layer.input());
        self.projection.forward(context, &self.both, Groups::one(context.tokens), input, false)
    }

    /// What of the attention's work the backward does again, and what the projection has read.
    pub fn attention_again(&self, context: &Context) -> Result<()> {
        if self.again {
            self.join(context)?;
        }
        self.layer.attention_again(context)
    }

    /// What the projection reads.
    fn join(&self, context: &Context) -> Result<()> {
        let &Context { stream, sms, blocks, tokens, .. } = context;
        let (normed, both) = (blocks.at(self.normed), self.both.values(blocks));
        for (part, (x, gain)) in self.read(context).into_iter().zip(self.norms).enumerate() {
            let width = gain.values.len();
            norm::forward(stream, sms, (x, width), gain.values, normed, context.epsilon())?;
            let half = both.part(part * width..both.len());
            element::copy_columns(stream, sms, (normed, width), (half, 2 * width), tokens, width)?;
        }
        self.both.complete(context, Groups::one(tokens))
    }

    /// Where the layer's gradient of its input goes.
    pub fn layer_gradient(&self, context: &Context) -> Slice<Bf16> {
        context.blocks.at(self.d_input)
    }

    /// I behind the layer's: the gradients of the states that came in go to `before`.
    pub fn input_gradient(&self, context: &Context, before: &States) -> Result<()> {
        let &Context { stream, sms, blocks, tokens, .. } = context;
        let (d_both, dy, scratch) = (blocks.at(self.d_both), blocks.at(self.d_normed), blocks.at(self.gain_scratch));
        self.projection.input_gradient(context, blocks.at(self.d_input), Groups::one(tokens), d_both, false)?;
        for (to, passed) in before.iter().zip(&self.d_states).take(self.number) {
            to.copy_from(stream, blocks.at(*passed))?;
        }
        // The head, or a module behind, reads the hidden state too.
        let hidden = before.get(self.number).copied().unwrap_or(Slice::none());
        let to = [(hidden, Some(blocks.at(self.d_states[self.number]))), (blocks.at(self.d_rows), None)];
        for (part, ((x, gain), (dx, add))) in self.read(context).into_iter().zip(self.norms).zip(to).enumerate() {
            let (width, epsilon) = (gain.values.len(), context.epsilon());
            let half = d_both.part(part * width..d_both.len());
            element::copy_columns(stream, sms, (half, 2 * width), (dy, width), tokens, width)?;
            norm::gain_gradient(stream, sms, (x, width), dy, gain.gradient, scratch, epsilon)?;
            norm::input_gradient(stream, sms, (x, width), gain.values, dy, (dx, width), add, epsilon)?;
        }
        Ok(())
    }

    /// W in front of the layer's: adds to the gradients of the projection and of the table.
    pub fn accumulate_input(&self, context: &Context, tokens: Slice<u32>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let all = Groups::one(context.tokens);
        self.projection.accumulate(context, &self.both, blocks.at(self.d_input), all)?;
        embedding::gradient(stream, sms, blocks.at(self.d_rows), tokens, self.table.gradient, context.shape.hidden())
    }

    /// What the norms read.
    fn read(&self, context: &Context) -> [Slice<Bf16>; 2] {
        [self.states[self.number], self.rows].map(|spot| context.blocks.at(spot))
    }
}
