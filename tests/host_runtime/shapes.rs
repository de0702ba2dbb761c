//! Small models of every kind.

use dualweave::job::Model as JobModel;
use dualweave::job::model::{Attention, Layers, Mla, Moe, MultiHead, Precision, Window};
use dualweave::runtime::host::parameters::{Parameters, Role};
use dualweave::runtime::host::precision::Policy;
use dualweave::runtime::host::reference::Model;
use dualweave::runtime::host::shape::{RoutingRule, Scoring, Shape};

/// With the conventions of these tests.
pub fn shape(model: JobModel, routing: RoutingRule) -> Shape {
    Shape { model, sequence: 6, policy: Policy::EXACT, routing, norm_epsilon: 1e-6, rope_base: 100.0, mtp_weight: 0.3 }
}

/// Weights that sum to 1.
pub const SOFTMAX: RoutingRule = RoutingRule { scoring: Scoring::Softmax, normalised: true, factor: 1.0 };

/// Two dense layers.
pub fn base(attention: Attention) -> JobModel {
    JobModel {
        name: "small".into(),
        layers: 2,
        hidden: 12,
        vocabulary: 19,
        tied_embedding: false,
        attention,
        dense_width: Some(10),
        moe: None,
        mtp_layers: 0,
        precision: Precision::default(),
    }
}

/// Heads without additions.
pub fn heads(heads: u32, kv_heads: Option<u32>) -> MultiHead {
    MultiHead {
        heads,
        kv_heads,
        head_dim: 4,
        qkv_bias: false,
        output_bias: false,
        qk_norm: false,
        sinks: false,
        window: None,
    }
}

/// Experts without additions, in every layer.
pub fn experts() -> Moe {
    Moe {
        experts: 4,
        top_k: 2,
        width: 5,
        shared_width: 0,
        shared_gate: false,
        groups: 1,
        topk_groups: 1,
        router_bias: false,
        balance_bias: false,
        expert_bias: false,
        layers: Layers::All,
    }
}

/// No experts at all.
pub fn dense_multi_head() -> Shape {
    shape(base(Attention::Mha(heads(3, None))), SOFTMAX)
}

/// Biases everywhere, norms of q and k, sinks, a window on one layer, a gated shared expert; one layer is dense.
pub fn grouped_query() -> Shape {
    let attention = MultiHead {
        qkv_bias: true,
        output_bias: true,
        qk_norm: true,
        sinks: true,
        window: Some(Window { size: 3, layers: Layers::Only(vec![1]) }),
        ..heads(4, Some(2))
    };
    let moe = Moe {
        shared_width: 6,
        shared_gate: true,
        router_bias: true,
        expert_bias: true,
        layers: Layers::From(1),
        ..experts()
    };
    shape(JobModel { layers: 3, moe: Some(moe), ..base(Attention::Gqa(attention)) }, SOFTMAX)
}

/// As DeepSeek-V3: latent attention, groups, sigmoid scores, balancing bias, shared expert, and two modules.
pub fn latent() -> Shape {
    let attention = Mla { heads: 2, q_rank: Some(7), kv_rank: 6, nope_dim: 4, rope_dim: 4, value_dim: 5 };
    let moe = Moe {
        experts: 8,
        top_k: 3,
        shared_width: 6,
        groups: 4,
        topk_groups: 2,
        balance_bias: true,
        layers: Layers::From(1),
        ..experts()
    };
    let model = JobModel { layers: 3, moe: Some(moe), mtp_layers: 2, ..base(Attention::Mla(attention)) };
    shape(model, RoutingRule { scoring: Scoring::Sigmoid, normalised: true, factor: 2.5 })
}

/// As DeepSeek-V2-Lite: q straight from the stream, groups by softmax scores, weights that do not sum to 1; and a tied
/// embedding, with a module that reads it too.
pub fn latent_tied() -> Shape {
    let attention = Mla { heads: 2, q_rank: None, kv_rank: 6, nope_dim: 3, rope_dim: 2, value_dim: 4 };
    let moe = Moe { experts: 6, groups: 3, topk_groups: 2, ..experts() };
    let model = JobModel {
        dense_width: None,
        tied_embedding: true,
        moe: Some(moe),
        mtp_layers: 1,
        ..base(Attention::Mla(attention))
    };
    shape(model, RoutingRule { scoring: Scoring::Softmax, normalised: false, factor: 1.5 })
}

/// All of them.
#[allow(dead_code, reason = "not every test crate goes through all")]
pub fn all() -> Vec<Shape> {
    vec![dense_multi_head(), grouped_query(), latent(), latent_tied()]
}

/// Numbers between -1 and 1, by name.
pub fn noise(name: &str, count: usize) -> Vec<f64> {
    let offset = name.bytes().fold(0.0, |sum, byte| sum * 0.7 + f64::from(byte));
    (0..count).map(|index| (offset + 1.7 * index as f64 * (1.0 + 0.01 * index as f64)).sin()).collect()
}

/// Parameters far from initial values, so that every part of the arithmetic matters. `data/runtime` has the same formula.
pub fn model(shape: &Shape) -> Model<f64> {
    let mut model = Model::zeros(shape);
    for (name, tensor) in model.tensors_mut("") {
        let (mean, scale) = match tensor.role {
            Role::Weight => (0.0, 0.4),
            Role::Gain => (1.0, 0.3),
            Role::Bias => (0.0, 0.3),
            // Enough to change what is chosen.
            Role::Balance => (0.0, 0.1),
        };
        let noise = noise(&name, tensor.values.values().len());
        tensor.values.values_mut().iter_mut().zip(noise).for_each(|(value, noise)| *value = mean + scale * noise);
    }
    model
}

/// The same in single precision.
#[allow(dead_code, reason = "not every test crate needs it")]
pub fn single(shape: &Shape) -> Model<f32> {
    let mut model = Model::zeros(shape);
    let double = self::model(shape);
    for ((_, to), (_, from)) in model.tensors_mut("").into_iter().zip(double.tensors("")) {
        to.values = from.values.cast();
    }
    model
}
