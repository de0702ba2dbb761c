//! A decoder layer: its parameters, and all its ops in a row where one place has all experts.

use std::collections::BTreeMap;
use std::ops::Range;

use super::attention::{self, AttentionGradient, AttentionOutput, Routed, RoutedGradient};
use super::exchange::{self, CombineSaved};
use super::mlp;
use crate::job::model::Moe;
use crate::runtime::host::layers::attention::Attention;
use crate::runtime::host::layers::rmsnorm::RmsNorm;
use crate::runtime::host::layers::router::{Router, Routing, RoutingGradient};
use crate::runtime::host::layers::swiglu::Swiglu;
use crate::runtime::host::parameters::{Parameters, Tensor, parameters};
use crate::runtime::host::{Matrix, Real, Shape};

parameters! {
    /// The parameters of a layer.
    pub struct Layer {
        /// In front of the attention.
        pub attention_norm: RmsNorm<T>,
        /// Projections.
        pub attention: Attention<T>,
        /// In front of the MLP; where there are experts, of the router.
        pub mlp_norm: RmsNorm<T>,
        /// Where there are experts.
        pub router: Option<Router<T>>,
        /// What comes last.
        pub mlp: Mlp<T>,
    }
}

/// The MLP of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Mlp<T> {
    /// One for all tokens.
    Dense(Swiglu<T>),
    /// Routed experts, and a shared one.
    Experts(Experts<T>),
}

parameters! {
    /// Those experts of a layer that one place has.
    pub struct Experts {
        /// Routed, by number.
        pub experts: BTreeMap<u32, Swiglu<T>>,
        /// Sees every token; all shared experts are one.
        pub shared: Option<Swiglu<T>>,
    }
}

impl<T> Parameters<T> for Mlp<T> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(String, &'a Tensor<T>)) {
        match self {
            Self::Dense(mlp) => mlp.each(name, visit),
            Self::Experts(experts) => experts.each(name, visit),
        }
    }

    fn each_mut<'a>(&'a mut self, name: &str, visit: &mut dyn FnMut(String, &'a mut Tensor<T>)) {
        match self {
            Self::Dense(mlp) => mlp.each_mut(name, visit),
            Self::Experts(experts) => experts.each_mut(name, visit),
        }
    }
}

/// What the gradient of a layer needs.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    attention: attention::Saved<T>,
    mlp: MlpSaved<T>,
}

#[derive(Clone, Debug)]
enum MlpSaved<T> {
    Dense(mlp::DenseSaved<T>),
    Experts {
        routing: Routing<T>,
        experts: mlp::ExpertsSaved<T>,
        shared: Option<mlp::SharedSaved<T>>,
        combine: CombineSaved<T>,
    },
}

/// What the weight gradients of a layer need.
#[derive(Clone, Debug)]
pub struct ForWeights<T> {
    attention: attention::ForWeights<T>,
    mlp: MlpForWeights<T>,
}

#[derive(Clone, Debug)]
enum MlpForWeights<T> {
    Dense(mlp::DenseForWeights<T>),
    Experts { experts: mlp::ExpertsForWeights<T>, shared: Option<mlp::SharedForWeights<T>> },
}

impl<T: Real> Layer<T> {
    /// All zero; a layer with or without experts, of which it has those of `held`.
    pub fn new(shape: &Shape, experts: bool, held: Range<u32>) -> Self {
        let model = &shape.model;
        let moe = model.moe.as_ref().filter(|_| experts);
        let mlp = match moe {
            Some(moe) => Mlp::Experts(Experts {
                experts: held.map(|expert| (expert, Swiglu::new(&model.expert_shape(moe)))).collect(),
                shared: (moe.shared_width > 0).then(|| Swiglu::new(&model.shared_shape(moe))),
            }),
            None => Mlp::Dense(Swiglu::new(&model.dense_shape())),
        };
        Self {
            attention_norm: RmsNorm::new(shape.hidden()),
            attention: Attention::new(shape),
            mlp_norm: RmsNorm::new(shape.hidden()),
            router: moe.map(|moe| Router::new(shape, moe)),
            mlp,
        }
    }

    /// All ops of F in a row. `number` is that of the layer.
    pub fn forward(&self, shape: &Shape, number: u32, x: Matrix<T>) -> (Matrix<T>, Saved<T>) {
        let (AttentionOutput { stream, routed }, attention) = self.attention_forward(shape, number, x);
        let Some(Routed { tokens, routing }) = routed else {
            let (y, mlp) = self.dense_forward(shape, stream);
            return (y, Saved { attention, mlp: MlpSaved::Dense(mlp) });
        };
        let rows = exchange::dispatch(shape, &tokens, &routing, all_experts(shape));
        let (rows, experts) = self.experts_forward(shape, rows);
        let (shared_output, shared) = self.shared_forward(shape, &tokens, &routing).unzip();
        let (y, combine) = exchange::combine(shape, rows, &routing, shared_output.as_ref(), stream);
        (y, Saved { attention, mlp: MlpSaved::Experts { routing, experts, shared, combine } })
    }

    /// All ops of I in a row.
    pub fn input_gradient(
        &self,
        shape: &Shape,
        number: u32,
        saved: Saved<T>,
        dy: Matrix<T>,
    ) -> (Matrix<T>, ForWeights<T>) {
        let (gradient, mlp) = match saved.mlp {
            MlpSaved::Dense(saved) => {
                let (stream, needed) = self.dense_input_gradient(shape, saved, dy);
                (AttentionGradient { stream, routed: None }, MlpForWeights::Dense(needed))
            }
            MlpSaved::Experts { routing, experts, shared, combine } => {
                let rows = exchange::combine_input_gradient(shape, &routing, &dy, all_experts(shape));
                let weights = exchange::combine_routing_gradient(&combine, &routing, &dy);
                let (rows, experts) = self.experts_input_gradient(shape, experts, &rows);
                let mut tokens = exchange::dispatch_input_gradient(shape, rows, &routing);
                let shared = shared.and_then(|saved| self.shared_input_gradient(shape, saved, &routing, &dy));
                let (shared_gradient, shared) = shared.unzip();
                let mut gate = None;
                if let Some(gradient) = shared_gradient {
                    tokens.add(&gradient.tokens);
                    gate = gradient.gate;
                }
                let routed = RoutedGradient { tokens, routing: RoutingGradient { weights, shared: gate } };
                (AttentionGradient { stream: dy, routed: Some(routed) }, MlpForWeights::Experts { experts, shared })
            }
        };
        let (dx, attention) = self.attention_input_gradient(shape, number, saved.attention, gradient);
        (dx, ForWeights { attention, mlp })
    }

    /// All ops of W: adds to the gradients, which `self` has the place of.
    pub fn accumulate(&mut self, shape: &Shape, needed: &ForWeights<T>) {
        match &needed.mlp {
            MlpForWeights::Dense(needed) => self.accumulate_dense(shape, needed),
            MlpForWeights::Experts { experts, shared } => {
                self.accumulate_experts(shape, experts);
                if let Some(shared) = shared {
                    self.accumulate_shared(shape, shared);
                }
            }
        }
        self.accumulate_attention(shape, &needed.attention);
    }
}

/// Numbers of all experts of a layer.
pub fn all_experts(shape: &Shape) -> Range<u32> {
    0..shape.model.moe.as_ref().map_or(0, |moe| moe.experts)
}

/// The experts that a shape with routed tokens has.
pub(super) fn moe(shape: &Shape) -> &Moe {
    shape.model.moe.as_ref().expect("a layer with a router belongs to a model with experts")
}
