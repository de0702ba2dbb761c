//! Losses and gradients against other implementations: Hugging Face's of Llama, Qwen2-MoE, Qwen3-MoE and DeepSeek-V3, and
//! PyTorch's AdamW (`data/runtime/transformers_values.py`).

#[path = "host_runtime/shapes.rs"]
mod shapes;

use std::collections::BTreeMap;

use dualweave::job::Model as JobModel;
use dualweave::job::model::{Attention, Layers, Mla, Moe, MultiHead};
use dualweave::runtime::host::adamw::{AdamW, State, square_sum};
use dualweave::runtime::host::batch::Batch;
use dualweave::runtime::host::parameters::{Parameters, Role, Tensor};
use dualweave::runtime::host::precision::Policy;
use dualweave::runtime::host::rate::Rate;
use dualweave::runtime::host::reference::Model;
use dualweave::runtime::host::shape::{RoutingRule, Scoring};
use dualweave::runtime::host::{Matrix, Shape};
use serde::Deserialize;

/// Both sides compute in double precision.
const TOLERANCE: f64 = 1e-9;

#[derive(Deserialize)]
struct Published {
    models: BTreeMap<String, Values>,
    /// After each step: a weight of six entries, then a gain of six.
    adamw: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Values {
    /// Of the model, and of its MTP module.
    losses: Vec<f64>,
    /// By tensor: product with a known vector, and norm.
    gradients: BTreeMap<String, (f64, f64)>,
}

fn published() -> Published {
    serde_json::from_str(include_str!("data/runtime/transformers.json")).expect("published values")
}

/// The tokens of `transformers_values.py`.
fn batch(shape: &Shape) -> Batch {
    let token = |sequence: u32, place: u32| (7 * place * place + 5 * place + 3 * sequence) % shape.model.vocabulary;
    let places = (shape.sequence + shape.losses()) as u32;
    let sequence = |sequence| (0..places).map(|place| token(sequence, place)).collect();
    Batch::new(shape, (0..2).map(sequence).collect()).expect("tokens of the vocabulary")
}

fn close(what: &str, ours: f64, theirs: f64) {
    assert!((ours - theirs).abs() <= TOLERANCE * theirs.abs().max(1e-3), "{what}: {ours:e}, published {theirs:e}");
}

fn compare(name: &str, shape: &Shape) {
    let theirs = published().models.remove(name).expect("the model");
    let (model, batch) = (shapes::model(shape), batch(shape));
    let mut gradients = Model::zeros(shape);
    let losses = model.accumulate(shape, &batch, batch.tokens(), &mut gradients);
    assert_eq!(losses.len(), theirs.losses.len());
    losses.iter().zip(theirs.losses).for_each(|(sum, mean)| close("loss", sum / batch.tokens() as f64, mean));
    let ours: Vec<_> = gradients.tensors("").into_iter().filter(|(_, tensor)| tensor.role != Role::Balance).collect();
    assert!(ours.iter().map(|(name, _)| name).all(|name| theirs.gradients.contains_key(name)));
    assert_eq!(ours.len(), theirs.gradients.len());
    for (name, gradient) in ours {
        let values = gradient.values.values();
        let probe = shapes::noise(&format!("{name}.probe"), values.len());
        let (product, norm) = theirs.gradients[&name];
        close(&name, values.iter().zip(probe).map(|(a, b)| a * b).sum(), product);
        close(&name, values.iter().map(|a| a * a).sum::<f64>().sqrt(), norm);
    }
}

#[test]
fn llama() {
    let attention = Attention::Gqa(shapes::heads(4, Some(2)));
    compare("llama", &shapes::shape(shapes::base(attention), shapes::SOFTMAX));
}

#[test]
fn qwen2_moe() {
    let attention = Attention::Mha(MultiHead { qkv_bias: true, ..shapes::heads(3, None) });
    let moe = Moe { shared_width: 6, shared_gate: true, layers: Layers::From(1), ..shapes::experts() };
    let model = JobModel { layers: 3, moe: Some(moe), ..shapes::base(attention) };
    compare("qwen2-moe", &shapes::shape(model, RoutingRule { normalised: false, ..shapes::SOFTMAX }));
}

#[test]
fn qwen3_moe() {
    let attention = Attention::Gqa(MultiHead { qk_norm: true, ..shapes::heads(4, Some(2)) });
    let moe = Moe { layers: Layers::From(1), ..shapes::experts() };
    let model = JobModel { layers: 3, moe: Some(moe), ..shapes::base(attention) };
    compare("qwen3-moe", &shapes::shape(model, shapes::SOFTMAX));
}

#[test]
fn deepseek_v3() {
    let attention = Mla { heads: 2, q_rank: Some(7), kv_rank: 6, nope_dim: 4, rope_dim: 4, value_dim: 5 };
    let moe = Moe {
        experts: 8,
        top_k: 3,
        shared_width: 5,
        groups: 4,
        topk_groups: 2,
        balance_bias: true,
        layers: Layers::From(1),
        ..shapes::experts()
    };
    let model = JobModel { layers: 3, moe: Some(moe), mtp_layers: 1, ..shapes::base(Attention::Mla(attention)) };
    let routing = RoutingRule { scoring: Scoring::Sigmoid, normalised: true, factor: 2.5 };
    compare("deepseek-v3", &shapes::shape(model, routing));
}

#[test]
fn adamw() {
    let optimizer = AdamW {
        learning_rate: Rate::constant(0.01),
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        ..AdamW::default()
    };
    let tensors = |suffix: &str| {
        let tensor = |role, name: &str| {
            let values = Matrix::new(1, 6, shapes::noise(&format!("{name}{suffix}"), 6));
            Tensor { role, values }
        };
        vec![tensor(Role::Weight, "weight"), tensor(Role::Gain, "gain")]
    };
    let mut parameters = tensors("");
    let mut state = State::new(&parameters);
    for (step, theirs) in published().adamw.iter().enumerate() {
        let gradients = tensors(&format!(".{step}"));
        let squares = square_sum(&gradients);
        optimizer.step(&Policy::EXACT, &mut parameters, &gradients, &mut state, squares);
        let ours = parameters.iter().flat_map(|tensor| tensor.values.values());
        ours.zip(theirs).for_each(|(&ours, &theirs)| close("AdamW", ours, theirs));
    }
}
