//! One operation of a chunk: a component in one phase of one unit, and the work it does.

use serde::{Deserialize, Serialize};

use super::Phase;
use crate::job::model::Dtype;
use crate::units::{Bytes, Flops};

/// What a layer splits into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

/// An operation: node of a [`super::Chunk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// What it is.
    pub component: Component,
    /// Which part of training it belongs to.
    pub phase: Phase,
    /// Which unit of the stage, from 0.
    pub unit: u32,
    /// What it does.
    pub work: Work,
    /// Ops of the same chunk (by index) whose results it reads.
    pub needs: Vec<u32>,
    /// Of a W op: bytes that I hands to it (its share of `held.i_to_w`); else zero.
    pub handed: Bytes,
}

/// What an operation occupies and for how much.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    },
}

impl Work {
    /// FLOPs of all kernels.
    pub fn flops(&self) -> Flops {
        match self {
            Self::Compute(kernels) => kernels.iter().map(|kernel| kernel.flops).sum(),
            Self::Exchange { .. } => Flops::ZERO,
        }
    }

    /// Whether it runs on the communication stream.
    pub fn is_exchange(&self) -> bool {
        matches!(self, Self::Exchange { .. })
    }
}

/// A kernel, or several alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
pub enum Rate {
    /// Matrix product; `depth` is the length of its inner dimension.
    Gemm {
        /// Format of its inputs.
        dtype: Dtype,
        /// Inner dimension.
        depth: u32,
    },
    /// Fused attention, forward.
    AttentionForward,
    /// Fused attention, backward.
    AttentionBackward,
    /// Element-wise: memory bandwidth.
    Memory,
}
