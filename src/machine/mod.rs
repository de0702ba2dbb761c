//! The machine model: how long an op takes with the SMs that it gets.
//!
//! A kernel takes `max(FLOPs / (rate(dtype, shape) · SMs / all), bytes / bandwidth) + launch`; an exchange takes
//! `latency + bytes / (efficiency · min(link, SMs · per-SM rate))`, the slower of its two hops; `network` has the levels above nodes. Every constant is a data sheet's or a
//! measured value, with its source. `interference` says how much longer an op takes while another runs beside it, `measured` what a
//! profile puts in place of the model's times.
//!
//! Rates are what a card keeps up: a training step lasts for seconds, and in long runs of products a Hopper card is held back by its
//! 700 W. The first milliseconds after a pause are 15 % faster (`docs/measurements/h200_ops.csv` has both).

mod curve;
pub mod demand;
mod interference;
mod link;
mod measured;
pub mod network;

use curve::at;
pub use interference::Interference;
pub use link::{EXCHANGE_EFFICIENCY, LinkModel, NETWORK_COPY, NETWORK_PER_SM_GB_S, NVLINK_COPY, NVLINK_PER_SM_GB_S};
use measured::scaled;
pub use measured::{Factors, Measured};
pub use network::{Hop, PodModel};

use serde::{Deserialize, Serialize};

use crate::ir::{Kernel, Rate, Work};
use crate::job::Cluster;
use crate::job::model::Dtype;
use crate::units::{Bytes, Nanos};

/// bf16 products reach `peak · BF16_GEMM_EFFICIENCY · depth / (depth + BF16_GEMM_DEPTH)`: 699 of 989 TFLOP/s at the limit. Least squares
/// of the logarithms over cuBLAS's 60 products of `docs/measurements/h200_ops.csv` (results and both gradients, inner dimensions from 512
/// to 32 768), held; 1.7 % off in the mean square, 7 % at most.
pub const BF16_GEMM_EFFICIENCY: f64 = 699.0 / 989.0;
/// See [`BF16_GEMM_EFFICIENCY`]: the inner dimension at which half of the limit is reached. A tile's fill and its write are paid once,
/// and long inner dimensions spread them.
pub const BF16_GEMM_DEPTH: f64 = 120.0;
/// The same for FP8 with scales for 1 × 128 values and blocks of 128 × 128: 1168 of 1979 TFLOP/s at the limit. From 19 products of the
/// same table, 1.7 % off in the mean square. DeepGEMM's published grouped products on H800 (README of February 2025: 1292.5 at depth
/// 7168, 1096 at 2048) are short runs: 15 and 8 % above this, as the table's `burst` is.
pub const FP8_GEMM_EFFICIENCY: f64 = 1168.0 / 1979.0;
/// See [`FP8_GEMM_EFFICIENCY`].
pub const FP8_GEMM_DEPTH: f64 = 305.0;
/// Fused causal attention reaches `bf16 peak · ATTENTION_FORWARD_EFFICIENCY · length / (length + ATTENTION_FORWARD_LENGTH)`: PyTorch's
/// cuDNN attention, heads of 128, the same table: 490, 522 and 565 TFLOP/s over 4096, 8192 and 16 384 tokens, held. 2.9 % off at most;
/// MLA's heads of 192 and 128 are 8 % faster.
pub const ATTENTION_FORWARD_EFFICIENCY: f64 = 595.0 / 989.0;
/// See [`ATTENTION_FORWARD_EFFICIENCY`]: the length at which half of the limit is reached.
pub const ATTENTION_FORWARD_LENGTH: f64 = 880.0;
/// The same, backward, with 2.5 times the forward's FLOPs: 420, 467 and 524 TFLOP/s (405 with MLA's heads), which is what forward and backward
/// together take less the forward. Together they are 5.4 % off at most (`tests/machine.rs`).
pub const ATTENTION_BACKWARD_EFFICIENCY: f64 = 571.0 / 989.0;
/// See [`ATTENTION_BACKWARD_EFFICIENCY`].
pub const ATTENTION_BACKWARD_LENGTH: f64 = 1475.0;
/// Share of the data sheet's memory bandwidth that a pass over memory gets: large copies on H200, the same table (0.845 of 4.8 TB/s);
/// adds 0.89 there and on H100 (`docs/measurements/README.md`), rows in random order 0.74.
pub const HBM_EFFICIENCY: f64 = 0.845;
/// fp32 products run at a sixteenth of the bf16 tensor rate (H100 data sheet: 67 TFLOP/s on plain cores against 989).
pub const FP32_SHARE: f64 = 67.0 / 989.0;
/// Gap between two kernels of one stream: 2.0 µs, the median over components of (span - sum of kernels) / kernels in
/// DeepSeek's published training trace.
pub const LAUNCH: Nanos = Nanos(2_000);

/// A GPU and its links, as numbers that give times. Part of every plan, so a plan is complete without its job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// For people.
    pub gpu: String,
    /// SMs of the GPU.
    pub sms: u32,
    /// Memory that a plan may use.
    pub memory: Bytes,
    /// Peak of dense bf16 products, FLOP/s.
    pub bf16_flop_s: f64,
    /// Sustained FLOP/s of bf16 products with long inner dimensions. See [`BF16_GEMM_DEPTH`].
    pub bf16_gemm_flop_s: f64,
    /// Peak of dense FP8 products, FLOP/s; zero where the GPU has none. See [`FP8_GEMM_EFFICIENCY`].
    pub fp8_flop_s: f64,
    /// Measured FLOP/s of FP8 products by inner dimension, in place of what follows from the peak: points, ascending;
    /// straight lines between, flat outside.
    pub fp8_gemm_flop_s: Vec<(u32, f64)>,
    /// Sustained FLOP/s of fused attention over long sequences, forward. See [`ATTENTION_FORWARD_LENGTH`].
    pub attention_forward_flop_s: f64,
    /// The same, backward. See [`ATTENTION_BACKWARD_LENGTH`].
    pub attention_backward_flop_s: f64,
    /// Measured points (SMs, share of the whole GPU's speed); empty: the share of the SMs.
    pub sm_share: Vec<(u32, f64)>,
    /// Memory bandwidth that passes get, bytes/s. See [`HBM_EFFICIENCY`].
    pub hbm_byte_s: f64,
    /// Time from the end of a kernel to the start of the next.
    pub launch: Nanos,
    /// GPUs of a node.
    pub gpus_per_node: u32,
    /// To the other GPUs of the node.
    pub nvlink: LinkModel,
    /// To other nodes.
    pub network: LinkModel,
    /// Whether the network is one of rails: see [`Cluster::rails`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rails: bool,
    /// Where nodes are in pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodModel>,
    /// What ops that run at the same time lose to each other.
    pub interference: Interference,
    /// What ops took on hardware, if that was measured.
    #[serde(default, skip_serializing_if = "Measured::is_empty")]
    pub measured: Measured,
}

impl Machine {
    /// The machine of a cluster. `memory_limit_gb` (10^9 bytes) replaces the GPU's memory where given.
    pub fn new(cluster: &Cluster, memory_limit_gb: Option<f64>) -> Self {
        let gpu = &cluster.gpu;
        let measured = &gpu.measured;
        let or = |measured: Option<f64>, model: f64| measured.unwrap_or(model) * 1e12;
        let network = LinkModel::new(&cluster.network, NETWORK_PER_SM_GB_S, NETWORK_COPY);
        let mut machine = Self {
            gpu: gpu.name.clone(),
            sms: gpu.sms,
            memory: Bytes((memory_limit_gb.unwrap_or(gpu.memory_gb) * 1e9) as u64),
            bf16_flop_s: gpu.bf16_tflops * 1e12,
            bf16_gemm_flop_s: or(measured.bf16_gemm_tflops, gpu.bf16_tflops * BF16_GEMM_EFFICIENCY),
            fp8_flop_s: gpu.fp8_tflops.unwrap_or(0.0) * 1e12,
            fp8_gemm_flop_s: measured.fp8_gemm_tflops.iter().map(|&(depth, tflops)| (depth, tflops * 1e12)).collect(),
            attention_forward_flop_s: or(
                measured.attention_forward_tflops,
                gpu.bf16_tflops * ATTENTION_FORWARD_EFFICIENCY,
            ),
            attention_backward_flop_s: or(
                measured.attention_backward_tflops,
                gpu.bf16_tflops * ATTENTION_BACKWARD_EFFICIENCY,
            ),
            sm_share: measured.sm_share.clone(),
            hbm_byte_s: gpu.hbm_gb_s * 1e9 * HBM_EFFICIENCY,
            launch: measured.launch_us.map_or(LAUNCH, |us| Nanos::from_secs(us / 1e6)),
            gpus_per_node: cluster.gpus_per_node,
            nvlink: LinkModel::new(&cluster.nvlink, NVLINK_PER_SM_GB_S, NVLINK_COPY),
            rails: cluster.rails,
            pods: PodModel::new(cluster, &network),
            network,
            interference: Interference::new(&measured.interference),
            measured: Measured::default(),
        };
        if let Some(profile) = &measured.profile {
            if profile.overlapped {
                machine.interference = Interference::NONE;
            }
            machine.measured = Measured::new(profile, &machine);
        }
        machine
    }

    /// SMs of `work` where exchanges have `communication_sms` and computation the others; a copy engine needs none.
    pub fn sms_of(&self, work: &Work, communication_sms: u32) -> u32 {
        match work {
            Work::Compute(_) => self.sms - communication_sms,
            Work::Exchange { .. } => communication_sms,
            Work::Copy { .. } => 0,
        }
    }

    /// How long `work` takes with `sms` SMs, with nothing beside it.
    pub fn duration(&self, work: &Work, sms: u32) -> Nanos {
        scaled(self.modelled(work, sms), self.measured.factor(work, sms))
    }

    /// The same, without what was measured.
    pub fn modelled(&self, work: &Work, sms: u32) -> Nanos {
        match work {
            Work::Compute(kernels) => kernels.iter().map(|kernel| self.kernel(kernel, sms)).sum(),
            Work::Exchange { nvlink, network, uplink } => {
                let links = self.nvlink.duration(*nvlink, sms).max(self.network.duration(*network, sms));
                links.max(self.over_uplinks(*uplink))
            }
            Work::Copy { nvlink } => self.transfer(*nvlink, Hop::Node),
        }
    }

    /// How long one kernel takes, its launches included.
    pub fn kernel(&self, kernel: &Kernel, sms: u32) -> Nanos {
        let traffic = kernel.bytes.as_f64() / self.hbm_byte_s;
        Nanos::from_secs(self.arithmetic_secs(kernel, sms).max(traffic)) + self.launch * u64::from(kernel.launches)
    }

    /// Seconds of a kernel's arithmetic; zero where only memory counts.
    fn arithmetic_secs(&self, kernel: &Kernel, sms: u32) -> f64 {
        match self.rate(kernel.rate) {
            Some(rate) => kernel.flops.as_f64() / (rate * self.share(sms)),
            None => 0.0,
        }
    }

    /// Sustained FLOP/s of the whole GPU; `None` where only memory counts.
    pub fn rate(&self, rate: Rate) -> Option<f64> {
        Some(match rate {
            Rate::Gemm { dtype: Dtype::Fp8, depth } => match self.fp8_gemm_flop_s.first() {
                Some(&(first, _)) => at(&self.fp8_gemm_flop_s, f64::from(depth.max(first))),
                None => saturating(self.fp8_flop_s * FP8_GEMM_EFFICIENCY, depth, FP8_GEMM_DEPTH),
            },
            Rate::Gemm { dtype: Dtype::Bf16, depth } => saturating(self.bf16_gemm_flop_s, depth, BF16_GEMM_DEPTH),
            Rate::Gemm { dtype: Dtype::Fp32, .. } => self.bf16_flop_s * FP32_SHARE,
            Rate::AttentionForward { length } => {
                saturating(self.attention_forward_flop_s, length, ATTENTION_FORWARD_LENGTH)
            }
            Rate::AttentionBackward { length } => {
                saturating(self.attention_backward_flop_s, length, ATTENTION_BACKWARD_LENGTH)
            }
            Rate::Memory => return None,
        })
    }

    /// Share of the whole GPU's speed that a kernel with `sms` SMs has.
    pub fn share(&self, sms: u32) -> f64 {
        match self.sm_share.is_empty() {
            true => f64::from(sms) / f64::from(self.sms),
            false => at(&self.sm_share, f64::from(sms)),
        }
    }
}

/// `limit` for long ones, half of it at `half`.
fn saturating(limit: f64, length: u32, half: f64) -> f64 {
    // An empty product has no rate; nothing divides by it but no FLOPs.
    let length = f64::from(length.max(1));
    limit * length / (length + half)
}
