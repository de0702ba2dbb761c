//! Analysis: what one unit of the model does on one GPU — its ops in F, I and W, the memory that a micro-batch holds in
//! it, and its parameters. `lower` balances stages with it, `split` builds chunks from it. [`pieces`] has the same for finer
//! ops of a layer.
//!
//! Conventions: `t` tokens of a micro-batch; with tensor parallelism each GPU keeps t/tp of them between the layers
//! (sequence parallelism), and experts are never cut by it. Loads of experts are the fullest GPU's (`imbalance`); where they are even, every
//! GPU gets the mean.

mod attention;
mod ends;
mod exchange;
mod imbalance;
mod kernels;
mod mlp;
pub mod pieces;
mod router;
pub mod routing;

pub(crate) use ends::embedding_parameters;

use std::collections::BTreeMap;

use crate::ir::{Component, Held, Recompute, Unit, Work};
use crate::job::Job;
use crate::job::model::{Dtype, Moe};
use crate::units::Bytes;

/// What a unit does and holds on one GPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitWork {
    /// Forward, in order.
    pub f: Vec<UnitOp>,
    /// Where the whole layer is computed again: what of the forward the backward repeats, in order, before `i`. The first op reads the
    /// layer's input.
    pub again: Vec<UnitOp>,
    /// Backward for the input, in order. With tensor parallelism also what only W needs of other GPUs.
    pub i: Vec<UnitOp>,
    /// Weight gradients.
    pub w: Vec<UnitOp>,
    /// Memory that one micro-batch holds.
    pub held: Held,
    /// Largest exchange buffer, sent and received together.
    pub exchange_buffer: Bytes,
    /// Parameters on this GPU.
    pub parameters: UnitParameters,
}

impl UnitWork {
    /// What the backward for the input does, in order.
    pub fn backward(&self) -> impl Iterator<Item = &UnitOp> {
        self.again.iter().chain(&self.i)
    }
}

/// An op of a unit; it reads the one before it.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitOp {
    /// What it is.
    pub component: Component,
    /// What it does.
    pub work: Work,
}

/// Parameters of a unit on one GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitParameters {
    /// Those that every data-parallel replica has.
    pub shared: u64,
    /// Routed experts: spread over the expert-parallel GPUs.
    pub expert: u64,
}

/// The numbers of a job that every unit needs.
pub(crate) struct Sizes {
    /// Tokens of a micro-batch.
    pub tokens: u64,
    /// Of them on one GPU between layers: tokens / tp.
    pub local_tokens: u64,
    /// Tensor-parallel GPUs.
    pub tp: u64,
    /// Width of the residual stream.
    pub hidden: u64,
}

impl Sizes {
    /// Of a job's micro-batch.
    pub fn new(job: &Job) -> Self {
        Self::of_tokens(job, job.training.micro_batch_tokens())
    }

    /// With another number of tokens.
    fn of_tokens(job: &Job, tokens: u64) -> Self {
        let tp = u64::from(job.training.tp);
        Self { tokens, local_tokens: tokens.div_ceil(tp), tp, hidden: u64::from(job.model.hidden) }
    }
}

/// The work of `unit` in `job`, where layers compute `recompute` again.
pub fn unit_work(job: &Job, unit: Unit, recompute: Recompute) -> UnitWork {
    match Layer::of(job, unit) {
        Some(layer) => layer_work(job, &layer, recompute),
        None if unit == Unit::Head => ends::head(job),
        None => ends::embedding(job),
    }
}

/// A decoder layer, or the layer of an MTP module.
pub(crate) struct Layer<'a> {
    /// Sets the attention window. A module's is as the last layer's.
    pub number: u32,
    /// Its experts, if it has some.
    pub moe: Option<&'a Moe>,
    /// Whether it has an MTP module's projection in front.
    pub mtp: bool,
}

impl<'a> Layer<'a> {
    /// `None` for the ends of the model.
    fn of(job: &'a Job, unit: Unit) -> Option<Self> {
        let moe = job.model.moe.as_ref();
        match unit {
            Unit::Embedding | Unit::Head => None,
            Unit::Dense(number) => Some(Self { number, moe: None, mtp: false }),
            Unit::Moe(number) => Some(Self { number, moe, mtp: false }),
            Unit::Mtp(_) => Some(Self {
                number: job.model.layers.saturating_sub(1),
                moe: moe.filter(|_| job.model.mtp_is_moe()),
                mtp: true,
            }),
        }
    }
}

/// The units of a model, in order: embedding, layers, MTP modules, head. The head stands last because it runs for the
/// model and for each module.
pub fn units(job: &Job) -> Vec<Unit> {
    let model = &job.model;
    let layer = |layer| if model.is_moe(layer) { Unit::Moe(layer) } else { Unit::Dense(layer) };
    let mut units = vec![Unit::Embedding];
    units.extend((0..model.layers).map(layer));
    units.extend((0..model.mtp_layers).map(Unit::Mtp));
    units.push(Unit::Head);
    units
}

/// Bytes that cross the boundary after `unit`, forward; the gradient that comes back is as large. After an MTP module
/// the hidden states of the model and of the modules so far travel together.
pub fn boundary(job: &Job, unit: Unit) -> Bytes {
    let sizes = Sizes::new(job);
    let states = match unit {
        Unit::Mtp(module) => u64::from(module) + 2,
        _ => 1,
    };
    Bytes(Dtype::Bf16.bytes(sizes.local_tokens * sizes.hidden).saturating_mul(states))
}

fn layer_work(job: &Job, layer: &Layer, recompute: Recompute) -> UnitWork {
    let within = recompute.within_layer();
    let attention = attention::attention(job, layer, within);
    let mlp = match layer.moe {
        Some(moe) => mlp::experts(job, moe, within),
        None => mlp::dense(job, within),
    };
    let again = match recompute.layer {
        true => [attention.f.as_slice(), &mlp::again(job, layer)].concat(),
        false => Vec::new(),
    };
    let mut rest = attention.rest;
    rest.add(mlp.rest);
    if recompute.layer {
        rest.held = made_again(&rest.held, layer_input(job, layer));
    }
    UnitWork {
        f: [attention.f, mlp.f].concat(),
        again,
        i: [mlp.i, attention.i].concat(),
        w: [mlp.w, attention.w].concat(),
        held: rest.held,
        exchange_buffer: rest.exchange_buffer,
        parameters: rest.parameters,
    }
}

/// What comes into a layer and is kept for attention: the stream; in an MTP module the hidden state and the next token's embedding.
fn layer_input(job: &Job, layer: &Layer) -> Bytes {
    let sizes = Sizes::new(job);
    Bytes(Dtype::Bf16.bytes(sizes.local_tokens * sizes.hidden)) * if layer.mtp { 2 } else { 1 }
}

/// What a layer holds that keeps only its `input` where it would keep `held`. All else exists from I on; it is counted until the end of W,
/// although what only I reads is free by then.
fn made_again(held: &Held, input: Bytes) -> Held {
    let mut again = Held { i_to_w: held.i_to_w.clone(), ..Held::default() };
    for (&component, &bytes) in held.f_to_i.iter().chain(&held.f_to_w) {
        *again.i_to_w.entry(component).or_default() += bytes;
    }
    let attention = again.i_to_w.entry(Component::Attention).or_default();
    *attention = attention.saturating_sub(input);
    again.f_to_i.insert(Component::Attention, input);
    again
}

/// A part of a layer: what [`UnitWork`] is for the whole.
pub(crate) struct Part {
    pub f: Vec<UnitOp>,
    pub i: Vec<UnitOp>,
    pub w: Vec<UnitOp>,
    pub rest: Rest,
}

/// Memory and parameters of a part.
#[derive(Default)]
pub(crate) struct Rest {
    pub held: Held,
    pub exchange_buffer: Bytes,
    pub parameters: UnitParameters,
}

impl Rest {
    fn add(&mut self, other: Self) {
        add_held(&mut self.held, &other.held);
        self.exchange_buffer = self.exchange_buffer.max(other.exchange_buffer);
        self.parameters.shared += other.parameters.shared;
        self.parameters.expert += other.parameters.expert;
    }
}

/// Adds what `from` holds to `to`.
pub fn add_held(to: &mut Held, from: &Held) {
    let add = |to: &mut BTreeMap<Component, Bytes>, from: &BTreeMap<Component, Bytes>| {
        for (&component, &bytes) in from {
            *to.entry(component).or_default() += bytes;
        }
    };
    add(&mut to.f_to_i, &from.f_to_i);
    add(&mut to.f_to_w, &from.f_to_w);
    add(&mut to.i_to_w, &from.i_to_w);
}
