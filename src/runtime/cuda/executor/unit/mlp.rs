//! A SwiGLU MLP that sees every token: the dense one, or the shared expert.

use super::gate::RowWeights;
use super::product::{Input, Product};
use super::{Context, Sizes};
use crate::error::Result;
use crate::runtime::cuda::executor::blocks::{Block, Packer, Spot};
use crate::runtime::cuda::executor::store::Store;
use crate::runtime::cuda::ops::quantise::Groups;
use crate::runtime::cuda::ops::{Rows, swiglu};
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::precision::MlpFormats;

/// Parameters, and where values lie.
pub struct Mlp {
    gate_up: Product,
    down: Product,
    /// What its rows are multiplied with.
    weights: Option<RowWeights>,
    /// tokens × 2 · width.
    inner: Spot<Bf16>,
    /// tokens × width.
    active: Input,
    d_active: Spot<Bf16>,
    d_inner: Spot<Bf16>,
}

impl Mlp {
    /// `name` is what stands in front of its tensors; `weights`: of its rows, if they are weighed.
    pub fn new(
        formats: MlpFormats,
        (name, weights): (&str, Option<RowWeights>),
        sizes: Sizes,
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let of = |part: &str| format!("{name}.{part}");
        let tokens = sizes.tokens;
        let gate_up = Product::of_tokens(formats.gate_up, &of("gate_up.weight"), tokens, store, packer)?;
        let down = Product::of_tokens(formats.down, &of("down.weight"), tokens, store, packer)?;
        let (width, inner) = (down.inputs, tokens * down.inputs);
        Ok(Self {
            gate_up,
            down,
            weights,
            inner: packer.take(Block::UntilI, 2 * inner),
            active: Input::new(packer, Some(formats.down), (tokens, width), Block::Forward, packer.recompute().swiglu),
            d_active: packer.take(Block::Backward, inner),
            d_inner: packer.take(Block::FromI, 2 * inner),
        })
    }

    /// `y = down(weight · silu(gate(x)) · up(x))`, or with `add` `y +=` that. `x` is complete.
    pub fn forward(&self, context: &Context, x: &Input, y: Slice<Bf16>, add: bool) -> Result<()> {
        self.again(context, x)?;
        self.down.forward(context, &self.active, Groups::one(context.tokens), y, add)
    }

    /// The same without the last product: what the backward reads.
    pub fn again(&self, context: &Context, x: &Input) -> Result<()> {
        let (inner, all) = (context.blocks.at(self.inner), Groups::one(context.tokens));
        self.gate_up.forward(context, x, all, inner, false)?;
        self.active_again(context)
    }

    /// What the last product reads, from what is between the products.
    pub fn active_again(&self, context: &Context) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (inner, active, all) = (blocks.at(self.inner), self.active.values(blocks), Groups::one(context.tokens));
        let weights = self.weights.map_or(Slice::none(), |weights| blocks.at(weights.values));
        swiglu::forward(stream, sms, inner, weights, active, self.down.inputs, Rows::exactly(context.tokens))?;
        self.active.complete(context, all)
    }

    /// From the gradient of `y` to that of `x`.
    pub fn input_gradient(&self, context: &Context, dy: Slice<Bf16>, dx: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (inner, d_active, d_inner) = (blocks.at(self.inner), blocks.at(self.d_active), blocks.at(self.d_inner));
        let all = Groups::one(context.tokens);
        self.down.input_gradient(context, dy, all, d_active, false)?;
        let of = |which: fn(RowWeights) -> Spot<f32>| self.weights.map_or(Slice::none(), |of| blocks.at(which(of)));
        let (weights, d_weights) = (of(|of| of.values), of(|of| of.gradients));
        let (width, rows) = (self.down.inputs, Rows::exactly(context.tokens));
        swiglu::input_gradient(stream, sms, inner, weights, d_active, d_inner, d_weights, width, rows)?;
        self.gate_up.input_gradient(context, d_inner, all, dx, false)
    }

    /// Adds to the gradients of the matrices.
    pub fn accumulate(&self, context: &Context, x: &Input, dy: Slice<Bf16>) -> Result<()> {
        let all = Groups::one(context.tokens);
        self.down.accumulate(context, &self.active, dy, all)?;
        self.gate_up.accumulate(context, x, context.blocks.at(self.d_inner), all)
    }
}
