//! What each op of a unit launches. The arithmetic is that of [`crate::runtime::host::unit`], op by op, but for one thing: the weight of
//! a routed row is multiplied in where the expert works on it (`w · silu(gate) · up`), not where its result comes back. So results need
//! not be kept for the gradient of the weights, and what comes back is a plain sum.
//!
//! Values are bf16, what products read FP8 where the policy says so ([`product`]), sums and gradients of parameters fp32. Gradients of gains, biases of experts and loads of experts are added up in I,
//! those of matrices in W.

mod attention;
mod ends;
mod expert_biases;
mod experts;
mod gate;
mod latent;
mod layer;
mod mlp;
mod mtp;
mod multi_head;
mod passage;
mod product;

pub use ends::{EmbeddingUnit, HeadUnit};
pub use layer::LayerUnit;
pub use mtp::MtpUnit;

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

/// Hidden states between units, or their gradients: the model's, and each MTP module's so far. Each is tokens × hidden.
pub type States = Vec<Slice<Bf16>>;

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
    /// A multi-token-prediction module.
    Mtp(Box<MtpUnit>),
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
            Unit::Mtp(module) => {
                let of = (&*name, module, shape.has_experts(unit));
                Self::Mtp(Box::new(MtpUnit::new(shape, of, (sizes, forms, number), store, packer)?))
            }
        })
    }

    /// The decoder layer, if it has one.
    pub fn layer(&self) -> Option<&LayerUnit> {
        match self {
            Self::Layer(layer) => Some(layer),
            Self::Mtp(module) => Some(module.layer()),
            Self::Embedding(_) | Self::Head(_) => None,
        }
    }

    /// What of the attention's work the backward does again.
    pub fn attention_again(&self, context: &Context) -> Result<()> {
        match self {
            Self::Layer(layer) => layer.attention_again(context),
            Self::Mtp(module) => module.attention_again(context),
            Self::Embedding(_) | Self::Head(_) => Ok(()),
        }
    }

    /// Where its input lies; the embedding has none.
    pub fn input(&self, blocks: &Blocks) -> States {
        match self {
            Self::Embedding(_) => States::new(),
            Self::Layer(layer) => vec![blocks.at(layer.input())],
            Self::Mtp(module) => module.input().map(|spot| blocks.at(spot)).collect(),
            Self::Head(head) => head.input().map(|spot| blocks.at(spot)).collect(),
        }
    }

    /// Where the gradient of its output is put; the head has none.
    pub fn output_gradient(&self, blocks: &Blocks) -> States {
        match self {
            Self::Embedding(embedding) => vec![blocks.at(embedding.output_gradient())],
            Self::Layer(layer) => vec![blocks.at(layer.output_gradient())],
            Self::Mtp(module) => module.output_gradient().map(|spot| blocks.at(spot)).collect(),
            Self::Head(_) => States::new(),
        }
    }
}

/// What this runtime cannot run.
pub fn absent(what: &str) -> Error {
    Error::new(format!("the CUDA runtime has no {what} yet")).help("`--backend host` runs such models, slowly")
}

impl Context<'_> {
    /// The hidden states of a message.
    pub fn states(&self, message: Slice<Bf16>) -> States {
        let len = self.tokens * self.shape.hidden();
        (0..message.len() / len).map(|number| message.part(number * len..(number + 1) * len)).collect()
    }

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
