//! The model: the hyper-parameters that shape its arithmetic, and the precision of each of its components.

use serde::{Deserialize, Serialize};

/// A decoder-only transformer, dense or mixture-of-experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// For people: shown in reports, otherwise unused.
    pub name: String,
    /// Decoder layers, MTP modules not counted.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Rows of the embedding and of the output head.
    pub vocabulary: u32,
    /// The head's matrix is the embedding's.
    #[serde(default)]
    pub tied_embedding: bool,
    /// Attention of every layer.
    pub attention: Attention,
    /// SwiGLU width of the dense MLPs; `None` if every layer is MoE.
    #[serde(default)]
    pub dense_width: Option<u32>,
    /// The mixture of experts; `None` for a dense model.
    #[serde(default)]
    pub moe: Option<Moe>,
    /// Multi-token-prediction modules after the last layer (DeepSeek-V3: 1). Each is a projection from two hidden states
    /// to one and a whole decoder layer, and runs the output head once more.
    #[serde(default)]
    pub mtp_layers: u32,
    /// Number formats, by component. Default: DeepSeek-V3's.
    #[serde(default)]
    pub precision: Precision,
}

/// The kind of attention and its dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Attention {
    /// Multi-head: as many key/value heads as query heads.
    Mha(MultiHead),
    /// Grouped-query: fewer key/value heads; `kv_heads` must be given and divide `heads`.
    Gqa(MultiHead),
    /// Multi-head latent attention (DeepSeek-V2).
    Mla(Mla),
}

/// Dimensions of multi-head and grouped-query attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MultiHead {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; required for `Gqa`, absent for `Mha`.
    #[serde(default)]
    pub kv_heads: Option<u32>,
    /// Width of a head (need not be hidden / heads).
    pub head_dim: u32,
    /// Biases on the q, k, v projections.
    #[serde(default)]
    pub qkv_bias: bool,
    /// Bias on the output projection.
    #[serde(default)]
    pub output_bias: bool,
    /// RMSNorm over each q and k head (Qwen3).
    #[serde(default)]
    pub qk_norm: bool,
    /// One learned sink logit per head (gpt-oss).
    #[serde(default)]
    pub sinks: bool,
    /// Some layers attend only to the last `size` tokens.
    #[serde(default)]
    pub window: Option<Window>,
}

impl MultiHead {
    /// Key/value heads, whichever way they were given.
    pub fn kv_heads(&self) -> u32 {
        self.kv_heads.unwrap_or(self.heads)
    }
}

/// Sliding-window attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Tokens that a query sees, itself included.
    pub size: u32,
    /// Layers that have the window; the others attend to everything before.
    pub layers: Layers,
}

/// Dimensions of multi-head latent attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Mla {
    /// Heads.
    pub heads: u32,
    /// Rank of the query's down-projection; `None`: a direct q projection.
    #[serde(default)]
    pub q_rank: Option<u32>,
    /// Rank of the shared key/value down-projection.
    pub kv_rank: u32,
    /// Width of a head's q and k without position.
    pub nope_dim: u32,
    /// Width of a head's q and k with rotary position (k's is shared by the heads).
    pub rope_dim: u32,
    /// Width of a head's v.
    pub value_dim: u32,
}

/// The mixture of experts of a MoE layer. Experts are SwiGLU: three matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Moe {
    /// Routed experts of a layer.
    pub experts: u32,
    /// Routed experts that a token goes to.
    pub top_k: u32,
    /// SwiGLU width of a routed expert.
    pub width: u32,
    /// SwiGLU width of all shared experts together; 0: none.
    #[serde(default)]
    pub shared_width: u32,
    /// The shared expert's output is scaled by a learned gate (Qwen2-MoE).
    #[serde(default)]
    pub shared_gate: bool,
    /// Groups that the routed experts are divided into.
    #[serde(default = "one")]
    pub groups: u32,
    /// Groups that a token's experts may come from; equal to `groups`: unrestricted.
    #[serde(default = "one")]
    pub topk_groups: u32,
    /// The router has a bias (gpt-oss).
    #[serde(default)]
    pub router_bias: bool,
    /// The router has a balancing bias per expert, set without gradients (DeepSeek-V3); counted as parameters.
    #[serde(default)]
    pub balance_bias: bool,
    /// The experts' matrices have biases (gpt-oss).
    #[serde(default)]
    pub expert_bias: bool,
    /// Which layers are MoE; the others are dense.
    #[serde(default)]
    pub layers: Layers,
}

impl Moe {
    /// The most tokens that one of `ep` GPUs can get over the mean, (token, expert) pairs counted: all tokens go to its experts, each to as many
    /// as there are. That is `ep`, or less where a token has more experts than a GPU.
    pub fn most_imbalance(&self, ep: u32) -> f64 {
        let (ep, top_k) = (f64::from(ep.max(1)), f64::from(self.top_k.max(1)));
        ep.min(f64::from(self.experts) / top_k).max(1.0)
    }
}

/// A set of layers, counted from 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Layers {
    /// Every layer.
    #[default]
    All,
    /// Layer `n` and all after it.
    From(u32),
    /// Just these, ascending.
    Only(Vec<u32>),
}

impl Layers {
    /// Whether `layer` belongs to the set.
    pub fn contains(&self, layer: u32) -> bool {
        match self {
            Self::All => true,
            Self::From(first) => layer >= *first,
            Self::Only(layers) => layers.contains(&layer),
        }
    }
}

/// A number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Dtype {
    /// 8-bit e4m3 with one fp32 scale per 128 values (DeepSeek-V3, section 3.3).
    Fp8,
    /// bfloat16.
    Bf16,
    /// IEEE single.
    Fp32,
}

impl Dtype {
    /// Bytes that `values` numbers take, scales included, rounded up.
    pub fn bytes(self, values: u64) -> u64 {
        match self {
            Self::Fp8 => values.saturating_add(values.div_ceil(128).saturating_mul(4)),
            Self::Bf16 => values.saturating_mul(2),
            Self::Fp32 => values.saturating_mul(4),
        }
    }
}

/// Number formats by component. The default is DeepSeek-V3's (technical report, section 3.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Precision {
    /// The matrix products of attention projections and MLPs, all three of F, I and W, and their saved inputs.
    pub products: Dtype,
    /// Embedding, norms and the residual stream.
    pub embedding: Dtype,
    /// The output head's product.
    pub head: Dtype,
    /// The router's product.
    pub router: Dtype,
    /// The attention core: scores, softmax, weighted sum, and the q, k, v, o that it saves.
    pub attention_core: Dtype,
    /// Payload of dispatch forward, and of combine backward (which sends output gradients the same way).
    pub dispatch: Dtype,
    /// Payload of combine forward, and of dispatch backward.
    pub combine: Dtype,
    /// Weights that the products read. The optimizer keeps `master` besides.
    pub weights: Dtype,
    /// Master weights of the optimizer.
    pub master: Dtype,
    /// Accumulated gradients.
    pub gradients: Dtype,
    /// Each of AdamW's two moments.
    pub moments: Dtype,
}

impl Default for Precision {
    fn default() -> Self {
        Self {
            products: Dtype::Fp8,
            embedding: Dtype::Bf16,
            head: Dtype::Bf16,
            router: Dtype::Fp32,
            attention_core: Dtype::Bf16,
            dispatch: Dtype::Fp8,
            combine: Dtype::Bf16,
            weights: Dtype::Bf16,
            master: Dtype::Fp32,
            gradients: Dtype::Fp32,
            moments: Dtype::Bf16,
        }
    }
}

fn one() -> u32 {
    1
}
