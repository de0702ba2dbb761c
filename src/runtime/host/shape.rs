//! What the arithmetic of a model depends on: the job's model, and what a job leaves open.

use super::precision::Policy;
use crate::ir::Unit;
use crate::job::model::{Attention, Layers, Model};
use crate::job::{Job, Training};
use crate::plan::Plan;

/// Everything that the arithmetic depends on, but for parameters and tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Dimensions.
    pub model: Model,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Number formats.
    pub policy: Policy,
    /// How routers choose.
    pub routing: RoutingRule,
    /// Added to the mean square in every norm.
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_base: f64,
    /// Weight of the MTP modules' mean loss beside the model's.
    pub mtp_weight: f64,
}

/// How routers score experts, and what weight the chosen ones get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoutingRule {
    /// From logits to scores.
    pub scoring: Scoring,
    /// The weights of a token are divided by their sum.
    pub normalised: bool,
    /// Factor of the weights after that.
    pub factor: f64,
}

/// From a router's logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Over all experts. Groups are ranked by their best expert (DeepSeek-V2).
    Softmax,
    /// Each for itself. Groups are ranked by the sum of their two best (DeepSeek-V3).
    Sigmoid,
}

impl Shape {
    /// The shape of a job.
    pub fn of(job: &Job) -> Self {
        Self::new(&job.model, job.training.sequence)
    }

    /// The shape of what a plan trains.
    pub fn of_plan(plan: &Plan) -> Self {
        Self::new(&plan.model, plan.origin.sequence)
    }

    /// With sequences of so many tokens. What models do not say: scores are sigmoids where the router has a balancing bias (DeepSeek-V3), a
    /// softmax elsewhere; weights sum to 1; norms add 1e-6; rotary frequencies have the base 10 000 (Su et al. 2021); MTP
    /// losses weigh 0.3 (DeepSeek-V3 report, section 4.2).
    pub fn new(model: &Model, sequence: u32) -> Self {
        let sigmoid = model.moe.as_ref().is_some_and(|moe| moe.balance_bias);
        Self {
            model: model.clone(),
            sequence: sequence as usize,
            policy: Policy::of(&model.precision),
            routing: RoutingRule {
                scoring: if sigmoid { Scoring::Sigmoid } else { Scoring::Softmax },
                normalised: true,
                factor: 1.0,
            },
            norm_epsilon: 1e-6,
            rope_base: 10_000.0,
            mtp_weight: 0.3,
        }
    }

    /// The shape of a job, made small enough for one CPU: the same kinds of layers, attention and router, fewer and narrower.
    /// Ratios (heads to key/value heads, groups to chosen groups) are kept as far as whole numbers allow.
    pub fn small(job: &Job) -> Self {
        let mut shape = Self::of(job);
        shape.sequence = shape.sequence.min(MOST.sequence);
        shape.model = shrunk(&job.model, &job.training);
        shape
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        self.model.hidden as usize
    }

    /// Losses: the model's, and one for each MTP module.
    pub fn losses(&self) -> usize {
        1 + self.model.mtp_layers as usize
    }

    /// Weight of each loss: MTP modules share theirs.
    pub fn loss_weights(&self) -> Vec<f64> {
        let modules = self.model.mtp_layers as usize;
        let mut weights = vec![self.mtp_weight / modules.max(1) as f64; modules + 1];
        weights[0] = 1.0;
        weights
    }

    /// The units of the model, in the order of their F.
    pub fn units(&self) -> Vec<Unit> {
        let layer = |layer| if self.model.is_moe(layer) { Unit::Moe(layer) } else { Unit::Dense(layer) };
        let layers = (0..self.model.layers).map(layer);
        let modules = (0..self.model.mtp_layers).map(Unit::Mtp);
        [Unit::Embedding].into_iter().chain(layers).chain(modules).chain([Unit::Head]).collect()
    }

    /// Number of the decoder layer that an MTP module's is like: the model's last.
    pub fn mtp_layer(&self) -> u32 {
        self.model.layers.saturating_sub(1)
    }

    /// Whether the layer of `unit` has experts.
    pub fn has_experts(&self, unit: Unit) -> bool {
        match unit {
            Unit::Moe(_) => true,
            Unit::Mtp(_) => self.model.mtp_is_moe(),
            Unit::Embedding | Unit::Dense(_) | Unit::Head => false,
        }
    }
}

/// The largest dimensions of a small shape.
struct Most {
    sequence: usize,
    hidden: u32,
    vocabulary: u32,
    heads: u32,
    width: u32,
    experts: u32,
}

const MOST: Most = Most { sequence: 32, hidden: 64, vocabulary: 256, heads: 4, width: 32, experts: 16 };

/// As many layers stay as there are stages, or four.
fn shrunk(model: &Model, training: &Training) -> Model {
    let mut small = model.clone();
    small.hidden = model.hidden.min(MOST.hidden);
    small.vocabulary = model.vocabulary.min(MOST.vocabulary);
    small.layers = model.layers.min(training.stages().max(4));
    small.dense_width = model.dense_width.map(|width| width.min(2 * MOST.width));
    small.attention = shrunk_attention(&model.attention, small.layers);
    if let Some(moe) = &mut small.moe {
        // As many on each rank; and at least four in a group.
        moe.experts = moe.experts.min((MOST.experts / training.ep).max(1) * training.ep);
        let groups = moe.groups.min(moe.experts / 4).max(1);
        moe.groups = (1..=groups).rev().find(|&groups| moe.experts.is_multiple_of(groups)).unwrap_or(1);
        moe.topk_groups = moe.topk_groups.min(moe.groups.div_ceil(2)).max(1);
        moe.top_k = moe.top_k.min(moe.experts / moe.groups * moe.topk_groups).min(4);
        moe.width = moe.width.min(MOST.width);
        moe.shared_width = moe.shared_width.min(MOST.width);
        moe.layers = shrunk_layers(&moe.layers, small.layers);
    }
    if small.dense_width.is_some() && (0..small.layers).all(|layer| small.is_moe(layer)) {
        small.dense_width = None;
    }
    small
}

fn shrunk_attention(attention: &Attention, layers: u32) -> Attention {
    let mut small = attention.clone();
    match &mut small {
        Attention::Mha(dims) | Attention::Gqa(dims) => {
            let per_kv_head = dims.heads / dims.kv_heads().max(1);
            dims.heads = dims.heads.min(MOST.heads);
            dims.kv_heads = dims.kv_heads.map(|_| (dims.heads / per_kv_head.min(dims.heads)).max(1));
            while !dims.heads.is_multiple_of(dims.kv_heads()) {
                dims.heads -= 1;
            }
            dims.head_dim = dims.head_dim.min(16);
            if let Some(window) = &mut dims.window {
                window.size = window.size.min(8);
                window.layers = shrunk_layers(&window.layers, layers);
            }
        }
        Attention::Mla(dims) => {
            dims.heads = dims.heads.min(MOST.heads);
            dims.q_rank = dims.q_rank.map(|rank| rank.min(32));
            dims.kv_rank = dims.kv_rank.min(16);
            dims.nope_dim = dims.nope_dim.min(16);
            dims.rope_dim = dims.rope_dim.min(8);
            dims.value_dim = dims.value_dim.min(16);
        }
    }
    small
}

fn shrunk_layers(set: &Layers, layers: u32) -> Layers {
    match set {
        Layers::All => Layers::All,
        // At least one layer of the set stays.
        Layers::From(first) => Layers::From((*first).min(layers - 1)),
        Layers::Only(only) => {
            let kept: Vec<u32> = only.iter().copied().filter(|&layer| layer < layers).collect();
            Layers::Only(if kept.is_empty() { vec![layers - 1] } else { kept })
        }
    }
}
