//! What each op of a unit launches. The arithmetic is that of [`crate::runtime::host::unit`], op by op, but for one thing: the weight of
//! a routed row is multiplied in where the expert works on it (`w · silu(gate) · up`), not where its result comes back. So results need
//! not be kept for the gradient of the weights, and what comes back is a plain sum.
//!
//! Values are bf16, what products read FP8 where the policy says so ([`product`]), sums and gradients of parameters fp32. Gradients of gains, biases of norms and loads of experts are added up in I,
//! those of matrices in W.

mod attention;
mod ends;
mod experts;
mod latent;
mod layer;
mod mlp;
mod multi_head;
mod passage;
mod product;

pub use ends::{EmbeddingUnit, HeadUnit};
pub use layer::LayerUnit;

use std::ops::Range;

use super::blocks::{Blocks, Packer};
use super::forms::{Forms, Ways};
use super::store::{Matrix, Store};
use crate::error::{Error, Result};
use crate::ir::Unit;
use crate::runtime::cuda::exchange::Member;
use crate::runtime::cuda::product::{Output, Products};
use crate::runtime::cuda::watch::Watch;
use crate::runtime::cuda::{Bf16, Slice, Stream};
use crate::runtime::host::{Shape, unit};

/// What ops read besides their chunk.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Of the model.
    pub shape: &'a Shape,
    /// Matrix products, for the stream.
    pub products: &'a Products,
    /// What ops are launched on.
    pub stream: &'a Stream,
    /// SMs that the op may use.
    pub sms: u32,
    /// Of the chunk.
    pub blocks: &'a Blocks,
    /// Tokens of a micro-batch.
    pub tokens: usize,
}

/// What exchanges need.
pub struct Exchange<'a> {
    /// This GPU's place.
    pub member: &'a mut Member,
    /// Says when to give up.
    pub watch: &'a Watch,
    /// One GPU has all experts: dispatch and combine are part of their MLP.
    pub alone: bool,
}

/// Parts of a layer's tokens that an op works on.
pub struct Parts<'a> {
    /// Their numbers.
    pub range: Range<usize>,
    /// By part, how rows travel in the op's phase; those that are not there as the job says.
    pub ways: &'a [Ways],
}

/// A unit of a stage on one GPU: its parameters, and where its values lie.
pub enum UnitOps {
    /// The embedding.
    Embedding(EmbeddingUnit),
    /// A decoder layer.
    Layer(Box<LayerUnit>),
    /// The output head.
    Head(Box<HeadUnit>),
}

/// The sizes that places depend on.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Rows of routed tokens that a GPU has room for.
    pub capacity: usize,
    /// Experts that it has.
    pub local_experts: usize,
    /// First of them.
    pub first_expert: u32,
    /// GPUs that share the experts.
    pub places: usize,
    /// All of them, and those of a token.
    pub experts: usize,
    /// See [`Self::experts`].
    pub top_k: usize,
}

impl UnitOps {
    /// A unit, of this number in its stage, whose parameters are in `store`.
    ///
    /// # Errors
    /// If the model has something that this runtime has not.
    pub fn new(
        shape: &Shape,
        (unit, number): (Unit, usize),
        (sizes, forms): (Sizes, &Forms),
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        packer.next_unit(number);
        let name = unit::name(unit);
        Ok(match unit {
            Unit::Embedding => Self::Embedding(EmbeddingUnit::new(shape, sizes, store, packer)?),
            Unit::Dense(layer) | Unit::Moe(layer) => {
                let of = (&*name, layer, shape.has_experts(unit));
                let layer = LayerUnit::new(shape, of, (sizes, forms, number), store, packer)?;
                Self::Layer(Box::new(layer))
            }
            Unit::Head => Self::Head(Box::new(HeadUnit::new(shape, &name, sizes, store, packer)?)),
            Unit::Mtp(_) => return Err(absent("multi-token prediction")),
        })
    }

    /// Where its input lies; the embedding has none.
    pub fn input(&self, blocks: &Blocks) -> Option<Slice<Bf16>> {
        match self {
            Self::Embedding(_) => None,
            Self::Layer(layer) => Some(blocks.at(layer.input())),
            Self::Head(head) => Some(blocks.at(head.input())),
        }
    }

    /// Where the gradient of its output is put; the head has none.
    pub fn output_gradient(&self, blocks: &Blocks) -> Option<Slice<Bf16>> {
        match self {
            Self::Embedding(embedding) => Some(blocks.at(embedding.output_gradient())),
            Self::Layer(layer) => Some(blocks.at(layer.output_gradient())),
            Self::Head(_) => None,
        }
    }
}

/// What this runtime cannot run.
pub fn absent(what: &str) -> Error {
    Error::new(format!("the CUDA runtime has no {what} yet")).help("`--backend host` runs such models, slowly")
}

impl Context<'_> {
    /// `y = x Wᵀ`, or with `add` `y += x Wᵀ`.
    fn product<O: Output>(&self, x: Slice<Bf16>, matrix: Matrix, y: Slice<O>, add: bool) -> Result<()> {
        let rows = y.len() / matrix.outputs;
        let shape = (rows, matrix.inputs, matrix.outputs);
        self.products.forward(self.stream, self.sms, x, matrix.values, y, shape, add)
    }

    /// `dx = dy W`, or with `add` `dx += dy W`.
    fn product_input(&self, dy: Slice<Bf16>, matrix: Matrix, dx: Slice<Bf16>, add: bool) -> Result<()> {
        let rows = dy.len() / matrix.outputs;
        let shape = (rows, matrix.inputs, matrix.outputs);
        self.products.input_gradient(self.stream, self.sms, dy, matrix.values, dx, shape, add)
    }

    /// `dW += dyᵀ x`.
    fn product_weight(&self, x: Slice<Bf16>, dy: Slice<Bf16>, matrix: Matrix) -> Result<()> {
        let rows = dy.len() / matrix.outputs;
        let shape = (rows, matrix.inputs, matrix.outputs);
        self.products.weight_gradient(self.stream, self.sms, x, dy, matrix.gradient, shape)
    }

    /// What norms add to the mean square.
    fn epsilon(&self) -> f32 {
        self.shape.norm_epsilon as f32
    }
}
