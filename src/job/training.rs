//! The training run: how model and data are spread over the cluster, and by which schedule.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::sms::CommunicationSms;
pub use crate::ir::Recompute;

use crate::ir::Placement;

/// How the model is trained. One optimizer step is meant throughout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Pipeline ranks.
    pub pp: u32,
    /// GPUs that share one set of routed experts; divides dp × tp.
    #[serde(default = "one")]
    pub ep: u32,
    /// GPUs that share one layer's attention and dense MLP (with sequence parallelism between them).
    #[serde(default = "one")]
    pub tp: u32,
    /// Replicas of a pipeline that see different data. pp × dp × tp is the number of GPUs.
    #[serde(default = "one")]
    pub dp: u32,
    /// Micro-batches of one replica in one step.
    pub micro_batches: u32,
    /// Sequences of a micro-batch.
    #[serde(default = "one")]
    pub micro_batch_size: u32,
    /// Tokens of a sequence.
    pub sequence: u32,
    /// The pipeline schedule.
    pub schedule: ScheduleKind,
    /// Stages that a rank holds, for `Interleaved`, and for `Auto` on a loop; fixed by the placement for the others.
    #[serde(default)]
    pub stages_per_rank: Option<u32>,
    /// Where stages live. Each published schedule has its own, so this can only confirm it; `Auto` chooses, unless it is given.
    #[serde(default)]
    pub placement: Option<Placement>,
    /// What is computed again in the backward pass instead of being stored.
    #[serde(default)]
    pub recompute: Recompute,
    /// How the ops of an overlapped pair are ordered.
    #[serde(default)]
    pub overlap: PairOrder,
    /// SMs that dispatch and combine get.
    #[serde(default)]
    pub communication_sms: CommunicationSms,
    /// Rewrite rules that the compiler must not use, by name; `all` for all of them. `dualweave overlap` says which were used.
    #[serde(default)]
    pub without_rewrites: Vec<String>,
    /// Exchanges may send FP8 where `precision` asks for more. That changes what is computed, if only by rounding.
    #[serde(default)]
    pub fp8_exchanges: bool,
    /// Tokens of the fullest GPU of an expert-parallel group over the mean of its GPUs, in every layer: 1, experts are evenly loaded. Of
    /// a batch it is the largest number of (token, expert) pairs on a GPU over the mean number. Times and memory of a plan are those of that
    /// GPU, for which the others wait; what is computed does not depend on it.
    #[serde(default = "balanced", skip_serializing_if = "is_balanced")]
    pub imbalance: f64,
    /// Memory of a GPU that the plan may use, in GB; default: all of it.
    #[serde(default)]
    pub memory_limit_gb: Option<f64>,
    /// Optimizer state is divided among the data-parallel replicas (ZeRO-1).
    #[serde(default = "yes")]
    pub sharded_optimizer: bool,
}

impl Training {
    /// Where stages live: as the schedule has it, or as is asked for. `None` if that is the compiler's to choose.
    pub fn placement(&self) -> Option<Placement> {
        self.schedule.placement().or(self.placement)
    }

    /// Stages that each rank holds for one direction of the pipeline; as on a line if their placement is still to be chosen.
    pub fn stages_per_rank(&self) -> u32 {
        match self.placement().unwrap_or(Placement::Linear) {
            Placement::Linear | Placement::Bidirectional => 1,
            Placement::V => 2,
            Placement::Loop => self.stages_per_rank.unwrap_or(2),
        }
    }

    /// Stages that the model is cut into.
    pub fn stages(&self) -> u32 {
        self.pp.saturating_mul(self.stages_per_rank())
    }

    /// Tokens of a micro-batch of one replica.
    pub fn micro_batch_tokens(&self) -> u64 {
        u64::from(self.micro_batch_size) * u64::from(self.sequence)
    }

    /// Tokens that one step trains on, over all replicas.
    pub fn step_tokens(&self) -> u64 {
        self.micro_batch_tokens().saturating_mul(u64::from(self.micro_batches)).saturating_mul(u64::from(self.dp))
    }
}

/// Pipeline schedules. `passes::pipeline` has a generator for each published one, and a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ScheduleKind {
    /// All forwards, then all backwards (Huang et al. 2019).
    #[value(name = "gpipe")]
    GPipe,
    /// One forward, one backward (PipeDream-flush, Narayanan et al. 2021).
    #[value(name = "1f1b")]
    OneFOneB,
    /// 1F1B over several stages per rank (Narayanan et al. 2021).
    #[value(name = "interleaved", alias = "interleaved-1f1b")]
    Interleaved,
    /// Zero-bubble with 1F1B's memory (Qi et al. 2023); PyTorch's ZB1P.
    #[value(name = "zb-h1", aliases = ["zbh1", "zb1p"])]
    ZbH1,
    /// Zero-bubble on a V (Qi et al. 2024).
    #[value(name = "zb-v", alias = "zbv")]
    ZbV,
    /// Two directions at once, F overlapped with B (DeepSeek-V3).
    #[value(name = "dualpipe")]
    DualPipe,
    /// DualPipe folded to a V, without the second copy of the parameters.
    #[value(name = "dualpipev")]
    DualPipeV,
    /// The shortest that the compiler finds within the memory, F overlapped with B where that helps.
    #[value(name = "auto")]
    Auto,
}

impl ScheduleKind {
    /// Every published kind, in the order in which tables list them.
    pub const PUBLISHED: [Self; 7] =
        [Self::GPipe, Self::OneFOneB, Self::Interleaved, Self::ZbH1, Self::ZbV, Self::DualPipe, Self::DualPipeV];

    /// Where this schedule's stages live; `None` if it can do with any placement.
    pub fn placement(self) -> Option<Placement> {
        match self {
            Self::GPipe | Self::OneFOneB | Self::ZbH1 => Some(Placement::Linear),
            Self::Interleaved => Some(Placement::Loop),
            Self::ZbV | Self::DualPipeV => Some(Placement::V),
            Self::DualPipe => Some(Placement::Bidirectional),
            Self::Auto => None,
        }
    }

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::GPipe => "gpipe",
            Self::OneFOneB => "1f1b",
            Self::Interleaved => "interleaved",
            Self::ZbH1 => "zb-h1",
            Self::ZbV => "zb-v",
            Self::DualPipe => "dualpipe",
            Self::DualPipeV => "dualpipev",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How the ops of an overlapped pair FB are ordered.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum PairOrder {
    /// The best that the compiler finds; never worse than the others.
    #[default]
    #[value(name = "search")]
    Search,
    /// DeepSeek-V3's hand-made order.
    #[value(name = "deepseek")]
    DeepSeek,
    /// Megatron-LM's hand-made order.
    #[value(name = "megatron")]
    Megatron,
    /// One op after the other.
    #[value(name = "serial")]
    Serial,
}

impl PairOrder {
    /// Every order, in the order in which tables list them.
    pub const ALL: [Self; 4] = [Self::Serial, Self::DeepSeek, Self::Megatron, Self::Search];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::DeepSeek => "deepseek",
            Self::Megatron => "megatron",
            Self::Serial => "serial",
        }
    }
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

/// The imbalance where experts are evenly loaded.
pub(crate) fn balanced() -> f64 {
    1.0
}

/// Whether experts are evenly loaded. As serde asks it.
pub(crate) fn is_balanced(imbalance: &f64) -> bool {
    *imbalance == balanced()
}
