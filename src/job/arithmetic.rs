//! Counting: weight matrices, parameters and training FLOPs of a model, from its hyper-parameters alone.
//!
//! Times and bytes per GPU are not here: `passes::split` spreads these shapes over GPUs.

use super::model::{Attention, Mla, Model, Moe, MultiHead};

/// One weight matrix: `outputs × inputs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Length of the inner dimension.
    pub inputs: u64,
    /// Length of the result.
    pub outputs: u64,
    /// Whether a bias of `outputs` is added.
    pub bias: bool,
    /// How tensor parallelism cuts it.
    pub cut: Cut,
}

/// How tensor parallelism cuts a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Each GPU makes part of the outputs.
    Outputs,
    /// Each GPU reads part of the inputs.
    Inputs,
    /// Every GPU has the whole matrix, and applies it to its part of the tokens.
    Whole,
}

impl Linear {
    fn new(inputs: u64, outputs: u64, bias: bool, cut: Cut) -> Self {
        Self { inputs, outputs, bias, cut }
    }

    /// Entries of the matrix.
    pub fn weights(&self) -> u64 {
        self.inputs * self.outputs
    }

    /// Matrix and bias.
    pub fn parameters(&self) -> u64 {
        self.weights() + if self.bias { self.outputs } else { 0 }
    }
}

/// The attention of one layer, as shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Projections before the core that are kept when `Recompute::mla_up` is on: q, k, v of MHA and GQA; the
    /// down-projections of MLA (and its direct q projection).
    pub down: Vec<Linear>,
    /// MLA's up-projections to q and to k, v; empty for MHA and GQA.
    pub up: Vec<Linear>,
    /// Output projection.
    pub output: Linear,
    /// Weights of norms inside the attention (q and k norms, MLA's latent norms).
    pub inner_norms: u64,
    /// Learned sink logits.
    pub sinks: u64,
    /// Query heads.
    pub heads: u64,
    /// Key/value heads whose k and v the core reads.
    pub kv_heads: u64,
    /// Width of a head's q and k.
    pub qk_dim: u64,
    /// Width of a head's v.
    pub value_dim: u64,
}

impl AttentionShape {
    /// All projections in order of application.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.down.iter().chain(&self.up).chain(std::iter::once(&self.output))
    }

    /// Parameters, the norm in front not counted.
    pub fn parameters(&self) -> u64 {
        self.linears().map(Linear::parameters).sum::<u64>() + self.inner_norms + self.sinks
    }
}

/// A SwiGLU MLP as shapes: the fused gate and up projection, and the down projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwigluShape {
    /// hidden → 2 · width.
    pub gate_up: Linear,
    /// width → hidden.
    pub down: Linear,
}

impl SwigluShape {
    /// Parameters of one such MLP.
    pub fn parameters(&self) -> u64 {
        self.gate_up.parameters() + self.down.parameters()
    }

    /// Matrix entries of one such MLP.
    pub fn weights(&self) -> u64 {
        self.gate_up.weights() + self.down.weights()
    }

    /// Width of the activation between the two.
    pub fn width(&self) -> u64 {
        self.down.inputs
    }
}

/// Parameters of a model, by part. MTP modules are counted apart, in `mtp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParameterCount {
    /// Token embedding.
    pub embedding: u64,
    /// Output head; zero if tied to the embedding.
    pub head: u64,
    /// Attention of all layers, its inner norms included.
    pub attention: u64,
    /// Norms in front of attention and MLP, and the final one.
    pub norms: u64,
    /// Dense MLPs.
    pub dense: u64,
    /// Routers, with their biases and the shared experts' gates.
    pub routers: u64,
    /// All routed experts.
    pub routed: u64,
    /// Routed experts that one token uses.
    pub routed_active: u64,
    /// Shared experts.
    pub shared: u64,
    /// MTP modules: projection, norms and layer; embedding and head are the model's own.
    pub mtp: u64,
}

impl ParameterCount {
    /// Parameters of the model, without MTP modules.
    pub fn total(&self) -> u64 {
        self.active() - self.routed_active + self.routed
    }

    /// Parameters that one token meets, embedding and head included, without MTP modules.
    pub fn active(&self) -> u64 {
        self.embedding
            + self.head
            + self.attention
            + self.norms
            + self.dense
            + self.routers
            + self.routed_active
            + self.shared
    }
}

/// FLOPs that training on one token takes, forward and backward; recomputation not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingFlops {
    /// The model itself: three times its forward pass.
    pub model: u64,
    /// Its MTP modules, each with its run of the output head.
    pub mtp: u64,
}

impl TrainingFlops {
    /// Both.
    pub fn total(&self) -> u64 {
        self.model.saturating_add(self.mtp)
    }
}

impl Model {
    /// Whether `layer` has experts.
    pub fn is_moe(&self, layer: u32) -> bool {
        self.moe.as_ref().is_some_and(|moe| moe.layers.contains(layer))
    }

    /// The shapes of a layer's attention.
    pub fn attention_shape(&self) -> AttentionShape {
        match &self.attention {
            Attention::Mha(dims) | Attention::Gqa(dims) => self.multi_head_shape(dims),
            Attention::Mla(dims) => self.latent_shape(dims),
        }
    }

    fn multi_head_shape(&self, dims: &MultiHead) -> AttentionShape {
        let hidden = u64::from(self.hidden);
        let (heads, kv_heads, width) = (u64::from(dims.heads), u64::from(dims.kv_heads()), u64::from(dims.head_dim));
        let qkv = (heads + 2 * kv_heads) * width;
        AttentionShape {
            down: vec![Linear::new(hidden, qkv, dims.qkv_bias, Cut::Outputs)],
            up: Vec::new(),
            output: Linear::new(heads * width, hidden, dims.output_bias, Cut::Inputs),
            inner_norms: if dims.qk_norm { 2 * width } else { 0 },
            sinks: if dims.sinks { heads } else { 0 },
            heads,
            kv_heads,
            qk_dim: width,
            value_dim: width,
        }
    }

    fn latent_shape(&self, dims: &Mla) -> AttentionShape {
        let hidden = u64::from(self.hidden);
        let heads = u64::from(dims.heads);
        let (kv_rank, rope) = (u64::from(dims.kv_rank), u64::from(dims.rope_dim));
        let (nope, value) = (u64::from(dims.nope_dim), u64::from(dims.value_dim));
        let qk_dim = nope + rope;
        let kv_down = Linear::new(hidden, kv_rank + rope, false, Cut::Whole);
        let kv_up = Linear::new(kv_rank, heads * (nope + value), false, Cut::Outputs);
        let (down, up, q_norm) = match dims.q_rank.map(u64::from) {
            Some(rank) => {
                let q_down = Linear::new(hidden, rank, false, Cut::Whole);
                let q_up = Linear::new(rank, heads * qk_dim, false, Cut::Outputs);
                (vec![q_down, kv_down], vec![q_up, kv_up], rank)
            }
            None => (vec![Linear::new(hidden, heads * qk_dim, false, Cut::Outputs), kv_down], vec![kv_up], 0),
        };
        AttentionShape {
            down,
            up,
            output: Linear::new(heads * value, hidden, false, Cut::Inputs),
            inner_norms: q_norm + kv_rank,
            sinks: 0,
            heads,
            kv_heads: heads,
            qk_dim,
            value_dim: value,
        }
    }

    /// The shapes of a SwiGLU MLP of this width.
    pub fn swiglu_shape(&self, width: u64, bias: bool) -> SwigluShape {
        let hidden = u64::from(self.hidden);
        SwigluShape {
            gate_up: Linear::new(hidden, 2 * width, bias, Cut::Outputs),
            down: Linear::new(width, hidden, bias, Cut::Inputs),
        }
    }

    /// The dense MLP of the layers that have no experts. Zero width if there is none.
    pub fn dense_shape(&self) -> SwigluShape {
        self.swiglu_shape(self.dense_width.map_or(0, u64::from), false)
    }

    /// One routed expert.
    pub fn expert_shape(&self, moe: &Moe) -> SwigluShape {
        self.swiglu_shape(u64::from(moe.width), moe.expert_bias)
    }

    /// All shared experts together, as one MLP.
    pub fn shared_shape(&self, moe: &Moe) -> SwigluShape {
        self.swiglu_shape(u64::from(moe.shared_width), false)
    }

    /// Router, its biases, and the shared expert's gate.
    pub fn router_parameters(&self, moe: &Moe) -> u64 {
        let (hidden, experts) = (u64::from(self.hidden), u64::from(moe.experts));
        hidden * experts
            + if moe.router_bias { experts } else { 0 }
            + if moe.balance_bias { experts } else { 0 }
            + if moe.shared_gate { hidden } else { 0 }
    }

    /// Parameters of the whole model.
    pub fn parameters(&self) -> ParameterCount {
        let hidden = u64::from(self.hidden);
        let mut count = ParameterCount {
            embedding: u64::from(self.vocabulary) * hidden,
            head: if self.tied_embedding { 0 } else { u64::from(self.vocabulary) * hidden },
            norms: hidden,
            ..ParameterCount::default()
        };
        for layer in 0..self.layers {
            self.count_layer(self.is_moe(layer), &mut count);
        }
        // A module's layer is like the model's last one; beside it stand two input norms, one final norm, one projection.
        let mut module = ParameterCount::default();
        self.count_layer(self.mtp_is_moe(), &mut module);
        count.mtp = u64::from(self.mtp_layers) * (module.total() + 3 * hidden + self.mtp_projection().parameters());
        count
    }

    /// Whether the layer of an MTP module has experts: as the model's last layer.
    pub fn mtp_is_moe(&self) -> bool {
        self.is_moe(self.layers.saturating_sub(1))
    }

    /// The projection in front of an MTP module: two hidden states to one.
    pub fn mtp_projection(&self) -> Linear {
        Linear::new(2 * u64::from(self.hidden), u64::from(self.hidden), false, Cut::Whole)
    }

    fn count_layer(&self, moe: bool, count: &mut ParameterCount) {
        count.attention += self.attention_shape().parameters();
        count.norms += 2 * u64::from(self.hidden);
        match &self.moe {
            Some(dims) if moe => {
                let expert = self.expert_shape(dims).parameters();
                count.routers += self.router_parameters(dims);
                count.routed += u64::from(dims.experts) * expert;
                count.routed_active += u64::from(dims.top_k) * expert;
                count.shared += self.shared_shape(dims).parameters();
            }
            _ => count.dense += self.dense_shape().parameters(),
        }
    }

    /// Keys that the last query of a sequence looks at in `layer`: all, or those in its window.
    pub fn attended_keys(&self, layer: u32, sequence: u64) -> u64 {
        let window = match &self.attention {
            Attention::Mha(dims) | Attention::Gqa(dims) => dims.window.as_ref(),
            Attention::Mla(_) => None,
        };
        match window {
            Some(window) if window.layers.contains(layer) => u64::from(window.size).min(sequence),
            _ => sequence,
        }
    }

    /// Query–key pairs of one sequence in `layer`: causal, within the window if it has one.
    pub fn attended_pairs(&self, layer: u32, sequence: u64) -> u64 {
        let seen = self.attended_keys(layer, sequence);
        // The first `seen` queries see 1, 2, … keys, the others `seen` each.
        seen * (seen + 1) / 2 + (sequence - seen) * seen
    }

    /// FLOPs of the attention core of `layer`, forward, for one sequence: scores and weighted sum, two per multiply-add.
    pub fn core_flops(&self, layer: u32, sequence: u64) -> u64 {
        let shape = self.attention_shape();
        let per_pair = 2 * shape.heads * (shape.qk_dim + shape.value_dim);
        self.attended_pairs(layer, sequence).saturating_mul(per_pair)
    }

    /// FLOPs of training on one token in sequences of `sequence`: 6 per weight of every product that the token meets
    /// (2 forward, 4 backward) and 3 times the causal attention core. The embedding is a look-up and counts nothing.
    pub fn training_flops(&self, sequence: u64) -> TrainingFlops {
        let core = |layer| self.core_flops(layer, sequence) / sequence.max(1);
        let head = u64::from(self.vocabulary) * u64::from(self.hidden);
        let mut model = 6 * head;
        for layer in 0..self.layers {
            model = model.saturating_add(6 * self.layer_weights(self.is_moe(layer)) + 3 * core(layer));
        }
        let last = self.layers.saturating_sub(1);
        let module =
            6 * (self.mtp_projection().weights() + self.layer_weights(self.mtp_is_moe()) + head) + 3 * core(last);
        TrainingFlops { model, mtp: u64::from(self.mtp_layers).saturating_mul(module) }
    }

    /// Matrix entries that one token meets in a layer.
    fn layer_weights(&self, moe: bool) -> u64 {
        let attention: u64 = self.attention_shape().linears().map(Linear::weights).sum();
        attention
            + match &self.moe {
                Some(dims) if moe => {
                    u64::from(dims.top_k) * self.expert_shape(dims).weights()
                        + self.shared_shape(dims).weights()
                        + u64::from(self.hidden) * u64::from(dims.experts)
                        + if dims.shared_gate { u64::from(self.hidden) } else { 0 }
                }
                _ => self.dense_shape().weights(),
            }
    }
}
