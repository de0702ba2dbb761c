//! A SwiGLU MLP that sees every token: the dense one, or the shared expert.

use super::{Context, Sizes};
use crate::error::Result;
use crate::runtime::cuda::executor::blocks::{Block, Packer, Spot};
use crate::runtime::cuda::executor::store::{Matrix, Store};
use crate::runtime::cuda::executor::unit::absent;
use crate::runtime::cuda::ops::{Rows, swiglu};
use crate::runtime::cuda::{Bf16, Slice};

/// Parameters, and where values lie.
pub struct Mlp {
    gate_up: Matrix,
    down: Matrix,
    /// tokens × 2 · width.
    inner: Spot<Bf16>,
    /// tokens × width.
    active: Spot<Bf16>,
    d_active: Spot<Bf16>,
    d_inner: Spot<Bf16>,
}

impl Mlp {
    /// `name` is what stands in front of its tensors.
    pub fn new(name: &str, sizes: Sizes, store: &Store, packer: &mut Packer) -> Result<Self> {
        let of = |part: &str| format!("{name}.{part}");
        if store.vector_if_any(&of("gate_up.bias")).is_some() || store.vector_if_any(&of("down.bias")).is_some() {
            return Err(absent("MLPs with biases"));
        }
        let (gate_up, down) = (store.matrix(&of("gate_up.weight"))?, store.matrix(&of("down.weight"))?);
        let inner = sizes.tokens * down.inputs;
        Ok(Self {
            gate_up,
            down,
            inner: packer.take(Block::UntilI, 2 * inner),
            active: packer.take(Block::UntilW, inner),
            d_active: packer.take(Block::Backward, inner),
            d_inner: packer.take(Block::FromI, 2 * inner),
        })
    }

    /// `y = down(silu(gate(x)) · up(x))`, or with `add` `y +=` that.
    pub fn forward(&self, context: &Context, x: Slice<Bf16>, y: Slice<Bf16>, add: bool) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (inner, active) = (blocks.at(self.inner), blocks.at(self.active));
        context.product(x, self.gate_up, inner, false)?;
        swiglu::forward(stream, sms, inner, Slice::none(), active, self.down.inputs, Rows::exactly(context.tokens))?;
        context.product(active, self.down, y, add)
    }

    /// From the gradient of `y` to that of `x`.
    pub fn input_gradient(&self, context: &Context, dy: Slice<Bf16>, dx: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (inner, d_active, d_inner) = (blocks.at(self.inner), blocks.at(self.d_active), blocks.at(self.d_inner));
        context.product_input(dy, self.down, d_active, false)?;
        let (none, rows) = (Slice::none(), Rows::exactly(context.tokens));
        swiglu::input_gradient(stream, sms, inner, none, d_active, d_inner, none, self.down.inputs, rows)?;
        context.product_input(d_inner, self.gate_up, dx, false)
    }

    /// Adds to the gradients of the matrices.
    pub fn accumulate(&self, context: &Context, x: Slice<Bf16>, dy: Slice<Bf16>) -> Result<()> {
        context.product_weight(context.blocks.at(self.active), dy, self.down)?;
        context.product_weight(x, context.blocks.at(self.d_inner), self.gate_up)
    }
}
