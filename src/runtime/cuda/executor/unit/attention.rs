//! The attention of a layer, of whichever kind the model has.

use super::latent::Latent;
use super::multi_head::MultiHead;
use super::product::Input;
use super::{Context, Sizes};
use crate::error::Result;
use crate::job::model;
use crate::runtime::cuda::executor::blocks::Packer;
use crate::runtime::cuda::executor::store::Store;
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// Projections, core, and where their values lie.
pub enum Attention {
    /// Multi-head or grouped-query.
    MultiHead(Box<MultiHead>),
    /// Multi-head latent.
    Latent(Box<Latent>),
}

impl Attention {
    /// `name` is what stands in front of its tensors, `number` that of the layer.
    pub fn new(
        shape: &Shape,
        (name, number): (&str, u32),
        sizes: Sizes,
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        Ok(match &shape.model.attention {
            model::Attention::Mha(dims) | model::Attention::Gqa(dims) => {
                Self::MultiHead(Box::new(MultiHead::new(shape, dims, (name, number), sizes, store, packer)?))
            }
            model::Attention::Mla(dims) => {
                Self::Latent(Box::new(Latent::new(shape, dims, name, sizes, store, packer)?))
            }
        })
    }

    /// Adds to `y`, the stream. `normed`: tokens × hidden, complete.
    pub fn forward(&self, context: &Context, normed: &Input, y: Slice<Bf16>) -> Result<()> {
        match self {
            Self::MultiHead(attention) => attention.forward(context, normed, y),
            Self::Latent(attention) => attention.forward(context, normed, y),
        }
    }

    /// What of the projections' results the job computes again, from what is kept: MLA's q, k and v.
    pub fn up_again(&self, context: &Context) -> Result<()> {
        match self {
            Self::MultiHead(_) => Ok(()),
            Self::Latent(attention) => attention.up_again(context),
        }
    }

    /// From the gradient of what it added to that of `normed`.
    pub fn input_gradient(&self, context: &Context, dy: Slice<Bf16>, d_normed: Slice<Bf16>) -> Result<()> {
        match self {
            Self::MultiHead(attention) => attention.input_gradient(context, dy, d_normed),
            Self::Latent(attention) => attention.input_gradient(context, dy, d_normed),
        }
    }

    /// Adds to the gradients of its matrices.
    pub fn accumulate(&self, context: &Context, normed: &Input, dy: Slice<Bf16>) -> Result<()> {
        match self {
            Self::MultiHead(attention) => attention.accumulate(context, normed, dy),
            Self::Latent(attention) => attention.accumulate(context, normed, dy),
        }
    }
}
