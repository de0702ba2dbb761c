//! The cluster: GPUs, and the two kinds of link between them.

use serde::{Deserialize, Serialize};

use super::profile::Profile;

/// A set of equal nodes of equal GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// For people: shown in reports, otherwise unused.
    pub name: String,
    /// The GPU.
    pub gpu: Gpu,
    /// GPUs that share a node, and so NVLink.
    pub gpus_per_node: u32,
    /// Nodes.
    pub nodes: u32,
    /// Link of a GPU to the others of its node.
    pub nvlink: Link,
    /// Link of a GPU to GPUs of other nodes.
    pub network: Link,
    /// The network is one of rails: GPU i of every node hangs on switch i, and reaches others than the i-th of another node only by way
    /// of the i-th, over NVLink.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rails: bool,
    /// Groups of nodes that have less network between them than within; `None`: all nodes are one pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Pods>,
}

/// The level of a network above its nodes: node n is in pod n / `nodes`, and the last pod may be smaller.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Pods {
    /// Nodes of a pod.
    pub nodes: u32,
    /// What a pod's GPUs can send together, over what they can send together to other pods: of its link a GPU's share of the uplinks is one
    /// in so many.
    pub oversubscription: f64,
}

impl Cluster {
    /// GPUs of the whole cluster.
    pub fn gpus(&self) -> u64 {
        u64::from(self.gpus_per_node) * u64::from(self.nodes)
    }

    /// GPUs of a pod; `None` where all nodes are in one.
    pub fn gpus_per_pod(&self) -> Option<u64> {
        let pods = self.pods.filter(|pods| pods.nodes < self.nodes)?;
        Some(u64::from(self.gpus_per_node) * u64::from(pods.nodes))
    }
}

/// A GPU, by its data sheet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// For people: shown in reports, otherwise unused.
    pub name: String,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// What a kernel's number of SMs is a multiple of, where the compiler chooses it: 2 for kernels that work in pairs of
    /// channels, 8 where green contexts divide the GPU.
    #[serde(default = "two")]
    pub sm_step: u32,
    /// Memory, in GB (10^9 bytes).
    pub memory_gb: f64,
    /// Peak of dense bf16 products, in TFLOP/s.
    pub bf16_tflops: f64,
    /// Peak of dense FP8 products, in TFLOP/s; `None`: the GPU has none.
    #[serde(default)]
    pub fp8_tflops: Option<f64>,
    /// Memory bandwidth, in GB/s.
    pub hbm_gb_s: f64,
    /// What was measured on this GPU; replaces the machine model's own numbers one by one.
    #[serde(default)]
    pub measured: MeasuredGpu,
}

/// Measured speed of kernels on the whole GPU. What is left out is the machine model's: see `machine`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct MeasuredGpu {
    /// Long bf16 products, in TFLOP/s.
    pub bf16_gemm_tflops: Option<f64>,
    /// FP8 products: points (inner dimension, TFLOP/s), ascending; straight lines between, flat outside.
    pub fp8_gemm_tflops: Vec<(u32, f64)>,
    /// Fused attention forward, in TFLOP/s.
    pub attention_forward_tflops: Option<f64>,
    /// Fused attention backward, in TFLOP/s.
    pub attention_backward_tflops: Option<f64>,
    /// Points (SMs, share of the whole GPU's speed), ascending, for kernels that are told to use fewer SMs; straight lines
    /// between, from (0, 0), flat after the last. Default: the share of the SMs.
    pub sm_share: Vec<(u32, f64)>,
    /// Gap between two kernels of one stream, in microseconds.
    pub launch_us: Option<f64>,
    /// What computation and communication that run at the same time lose to each other.
    pub interference: MeasuredInterference,
    /// Times of ops (`--profile`), on top of all this.
    #[serde(skip)]
    pub profile: Option<Profile>,
}

/// What overlapped ops lose to each other, beyond sharing the SMs. `machine::Interference` says what each number means and
/// has it where it is left out; all zero: they lose nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct MeasuredInterference {
    /// HBM traffic that a kernel loses for each byte that an exchange beside it reads or writes.
    pub hbm: Option<f64>,
    /// Longer arithmetic of tensor-core kernels, for the share of HBM that an exchange beside them uses.
    pub tensor: Option<f64>,
    /// Share of an exchange's SMs that is lost beside computation that leaves HBM alone.
    pub sms: Option<f64>,
    /// The same beside computation that takes all of HBM.
    pub sms_hbm: Option<f64>,
    /// Share of NVLink's rate that SMs cannot reach beside computation.
    pub link: Option<f64>,
    /// Share of a copy engine's rate that is lost beside computation that takes all of HBM.
    pub copy_hbm: Option<f64>,
}

/// A link, as one GPU sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// What one GPU can send in one direction, in GB/s: the usable, not the nominal rate.
    pub gb_s: f64,
    /// Time of an empty message, in microseconds.
    pub latency_us: f64,
    /// What one SM can send, in GB/s, where the curve was not measured. Defaults: `machine::NVLINK_PER_SM_GB_S` and
    /// `machine::NETWORK_PER_SM_GB_S`.
    #[serde(default)]
    pub per_sm_gb_s: Option<f64>,
    /// Measured points `(SMs, GB/s)`, ascending; they replace `per_sm_gb_s`. Between points the curve is linear, from
    /// (0, 0) to the first, and flat after the last.
    #[serde(default)]
    pub measured: Vec<(u32, f64)>,
    /// What contiguous pieces get by copy engine (network: by the network card), without SMs, in GB/s. Default: what all SMs
    /// send, times `machine::NVLINK_COPY` or `machine::NETWORK_COPY`.
    #[serde(default)]
    pub copy_gb_s: Option<f64>,
}

fn two() -> u32 {
    2
}
