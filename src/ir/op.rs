//! One operation of a chunk: a component in one phase of one unit, and the work it does.

use serde::{Deserialize, Serialize};

use super::Phase;
use crate::job::model::Dtype;
use crate::units::{Bytes, Flops};

/// What a layer splits into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Component {
    /// Token embedding.
    Embedding,
    /// Norm, projections and attention core; in a MoE layer also the second norm and the router; in an MTP module also the
    /// projection in front.
    Attention,
    /// The all-to-all that takes tokens to their experts.
    Dispatch,
    /// Experts (routed and shared), or the dense MLP with its norm.
    Mlp,
    /// The all-to-all that brings expert outputs back.
    Combine,
    /// Final norm, output head and loss.
    Head,
}

/// Which part of a component's work in one phase an op does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Step {
    /// All of it, but for what other ops of the component do.
    #[default]
    Main,
    /// The shared expert's, where it is an op of its own: it reads what attention made, not what dispatch brought.
    Shared,
    /// What F computed and did not keep, computed again for I.
    Again,
    /// The payload of an exchange in a narrower format, in front of it.
    Quantise,
    /// The payload of an exchange laid out as contiguous pieces, in front of it.
    Pack,
}

/// Which of a micro-batch's tokens an op works on: part `part` of `parts` equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// From 0.
    pub part: u32,
    /// At least 1.
    pub parts: u32,
}

impl Tokens {
    /// All of them.
    pub const ALL: Self = Self { part: 0, parts: 1 };

    /// Whether these are all tokens.
    pub fn is_all(&self) -> bool {
        *self == Self::ALL
    }

    /// Whether some token is in both.
    pub fn meet(self, other: Self) -> bool {
        let (mine, theirs) = (u64::from(self.parts), u64::from(other.parts));
        u64::from(self.part) * theirs < (u64::from(other.part) + 1) * mine
            && u64::from(other.part) * mine < (u64::from(self.part) + 1) * theirs
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self::ALL
    }
}

/// An operation: node of a [`super::Chunk`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Op {
    /// What it is.
    pub component: Component,
    /// Which part of training it belongs to.
    pub phase: Phase,
    /// Which unit of the stage, from 0.
    pub unit: u32,
    /// Which part of the component's work.
    pub step: Step,
    /// On which tokens.
    pub tokens: Tokens,
    /// What it does.
    pub work: Work,
    /// Ops (by index) whose results it reads: of the same list, or, for an op of W, of I.
    pub needs: Vec<u32>,
    /// Of a W op: bytes that I hands to it (its share of `held.i_to_w`); else zero.
    pub handed: Bytes,
}

/// What an operation occupies and for how much.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub enum Work {
    /// Kernels on SMs, one after the other.
    Compute(Vec<Kernel>),
    /// An exchange among GPUs by a kernel that drives the links with its SMs. Bytes are what one GPU sends: over the
    /// network to other nodes, over NVLink within the node (forwarding of what came by network included).
    Exchange {
        /// Sent to GPUs of the same node.
        nvlink: Bytes,
        /// Sent to other nodes.
        network: Bytes,
        /// Of that, sent to other pods: the mean over the GPUs of the pod that sends or receives most, since a pod's GPUs share its uplinks.
        #[serde(default, skip_serializing_if = "Bytes::is_zero")]
        uplink: Bytes,
    },
    /// An exchange within the node, of contiguous pieces, by a copy engine: no SM takes part.
    Copy {
        /// Sent to GPUs of the same node.
        nvlink: Bytes,
    },
}

impl Work {
    /// An exchange within a node.
    pub fn over_nvlink(nvlink: Bytes) -> Self {
        Self::Exchange { nvlink, network: Bytes::ZERO, uplink: Bytes::ZERO }
    }

    /// FLOPs of all kernels.
    pub fn flops(&self) -> Flops {
        match self {
            Self::Compute(kernels) => kernels.iter().map(|kernel| kernel.flops).sum(),
            Self::Exchange { .. } | Self::Copy { .. } => Flops::ZERO,
        }
    }

    /// Whether it runs on the communication stream.
    pub fn is_exchange(&self) -> bool {
        matches!(self, Self::Exchange { .. } | Self::Copy { .. })
    }
}

/// A kernel, or several alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What sets its speed.
    pub rate: Rate,
    /// Arithmetic of one GPU.
    pub flops: Flops,
    /// HBM traffic of one GPU, read and written.
    pub bytes: Bytes,
    /// Launches.
    pub launches: u32,
}

/// What sets a kernel's speed. `machine` has the rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub enum Rate {
    /// Matrix product; `depth` is the length of its inner dimension.
    Gemm {
        /// Format of its inputs.
        dtype: Dtype,
        /// Inner dimension.
        depth: u32,
    },
    /// Fused attention, forward.
    AttentionForward {
        /// Keys that a query may look at, at most: tokens of a sequence, or of a window.
        length: u32,
    },
    /// Fused attention, backward.
    AttentionBackward {
        /// As forward.
        length: u32,
    },
    /// Element-wise: memory bandwidth.
    Memory,
}
