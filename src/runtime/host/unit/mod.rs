//! F, I and W of the units of a model, op by op as a plan names them: the arithmetic that an executor calls.
//!
//! | op | F | I | W |
//! |---|---|---|---|
//! | embedding | [`ends::embedding_forward`] | | [`ends::EmbeddingForWeights`] |
//! | attention | [`Layer::attention_forward`] | [`Layer::attention_input_gradient`] | [`Layer::accumulate_attention`] |
//! | dispatch | [`exchange::dispatch`] | [`exchange::dispatch_input_gradient`] | |
//! | MLP, dense | [`Layer::dense_forward`] | [`Layer::dense_input_gradient`] | [`Layer::accumulate_dense`] |
//! | MLP, experts | [`Layer::experts_forward`] | [`Layer::experts_input_gradient`] | [`Layer::accumulate_experts`] |
//! | MLP, shared expert | [`Layer::shared_forward`] | [`Layer::shared_input_gradient`] | [`Layer::accumulate_shared`] |
//! | combine | [`exchange::combine`] | [`exchange::combine_input_gradient`], [`exchange::combine_routing_gradient`] | |
//! | head | [`Head::forward`] | [`Head::input_gradient`] | [`Head::accumulate`] |
//!
//! The attention op of an MTP module is [`MtpModule::input_forward`] (and so on), then that of its layer. An op that adds to
//! gradients takes a value of the parameters' type that has them; W may run at any time after I, and in any order.
//! Ops that compute again, quantise or pack have nothing to do here: everything is kept, and exchanges round what they send.
//! An op computes the same whichever part of a micro-batch's tokens it gets, as long as attention gets whole sequences.

pub mod attention;
pub mod ends;
pub mod exchange;
pub mod layer;
pub mod mlp;

pub use ends::{Head, MtpModule};
pub use layer::{Layer, Mlp};

use std::ops::Range;

use super::layers::embedding;
use super::parameters::{Parameters, Tensor};
use super::{Real, Shape};
use crate::ir::Unit;

/// Parameters, or gradients, of a unit.
#[derive(Clone, Debug, PartialEq)]
pub enum UnitParameters<T> {
    /// The table: vocabulary × hidden.
    Embedding(Tensor<T>),
    /// A decoder layer.
    Layer(Layer<T>),
    /// A multi-token-prediction module.
    Mtp(MtpModule<T>),
    /// The output head.
    Head(Head<T>),
}

impl<T: Real> UnitParameters<T> {
    /// All zero, with the routed experts of `experts` only.
    pub fn new(shape: &Shape, unit: Unit, experts: Range<u32>) -> Self {
        match unit {
            Unit::Embedding => Self::Embedding(embedding::table(shape)),
            Unit::Dense(_) | Unit::Moe(_) => Self::Layer(Layer::new(shape, shape.has_experts(unit), experts)),
            Unit::Mtp(_) => Self::Mtp(MtpModule::new(shape, experts)),
            Unit::Head => Self::Head(Head::new(shape)),
        }
    }
}

/// What stands in front of the names of a unit's tensors.
pub fn name(unit: Unit) -> String {
    match unit {
        Unit::Embedding => "embedding".to_owned(),
        Unit::Dense(layer) | Unit::Moe(layer) => format!("layers.{layer}"),
        Unit::Mtp(module) => format!("mtp.{module}"),
        Unit::Head => "head".to_owned(),
    }
}

impl<T> Parameters<T> for UnitParameters<T> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(String, &'a Tensor<T>)) {
        match self {
            Self::Embedding(table) => table.each(name, visit),
            Self::Layer(layer) => layer.each(name, visit),
            Self::Mtp(module) => module.each(name, visit),
            Self::Head(head) => head.each(name, visit),
        }
    }

    fn each_mut<'a>(&'a mut self, name: &str, visit: &mut dyn FnMut(String, &'a mut Tensor<T>)) {
        match self {
            Self::Embedding(table) => table.each_mut(name, visit),
            Self::Layer(layer) => layer.each_mut(name, visit),
            Self::Mtp(module) => module.each_mut(name, visit),
            Self::Head(head) => head.each_mut(name, visit),
        }
    }
}
