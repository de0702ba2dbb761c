//! The machine model: how long an op takes with the SMs that it gets.
//!
//! A kernel takes `max(FLOPs / (rate(dtype, shape) · SMs / all), bytes / bandwidth) + launch`; an exchange takes
//! `latency + bytes / min(link, SMs · per-SM rate)`, the slower of its two hops. Every constant is a data sheet's or a
//! measured value, with its source. `interference` says how much longer an op takes while another runs beside it, `measured` what a
//! profile puts in place of the model's times.

mod curve;
pub mod demand;
mod interference;
mod link;
mod measured;

use curve::at;
pub use interference::Interference;
pub use link::{LinkModel, NETWORK_COPY, NETWORK_PER_SM_GB_S, NVLINK_COPY, NVLINK_PER_SM_GB_S};
pub use measured::Measured;
use measured::scaled;

use serde::{Deserialize, Serialize};

use crate::ir::{Kernel, Rate, Work};
use crate::job::Cluster;
use crate::job::model::Dtype;
use crate::units::{Bytes, Nanos};

/// Share of the peak that long bf16 products reach: 827 of 989 TFLOP/s, cuBLAS, 8192×7168×4096, one H100, measured.
pub const BF16_GEMM_EFFICIENCY: f64 = 827.0 / 989.0;
/// FP8 products reach `peak · FP8_GEMM_EFFICIENCY · depth / (depth + FP8_GEMM_DEPTH)`. Both numbers follow from
/// DeepGEMM's published grouped products on H800 (README of February 2025, contiguous layout, means over 4 and 8 groups):
/// 1292.5 TFLOP/s at depth 7168 and 1096 at depth 2048, of 1979.
pub const FP8_GEMM_EFFICIENCY: f64 = 0.7022;
/// See [`FP8_GEMM_EFFICIENCY`]: the depth at which half of the limit is reached; block scales and the pipeline's fill are
/// paid once per tile, and long inner dimensions spread them.
pub const FP8_GEMM_DEPTH: f64 = 549.0;
/// Share of the bf16 peak of fused attention forward: 587 TFLOP/s, PyTorch's cuDNN attention, H100, qk 192 / v 128,
/// 128 heads, 4096 causal, measured.
pub const ATTENTION_FORWARD_EFFICIENCY: f64 = 587.0 / 989.0;
/// The same, backward: 427 TFLOP/s.
pub const ATTENTION_BACKWARD_EFFICIENCY: f64 = 427.0 / 989.0;
/// fp32 products run at a sixteenth of the bf16 tensor rate (H100 data sheet: 67 TFLOP/s on plain cores against 989).
pub const FP32_SHARE: f64 = 67.0 / 989.0;
/// Gap between two kernels of one stream: 2.0 µs, the median over components of (span - sum of kernels) / kernels in
/// DeepSeek's published training trace.
pub const LAUNCH: Nanos = Nanos(2_000);

/// A GPU and its links, as numbers that give times. Part of every plan, so a plan is complete without its job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Sustained FLOP/s of long bf16 products.
    pub bf16_gemm_flop_s: f64,
    /// Peak of dense FP8 products, FLOP/s; zero where the GPU has none. See [`FP8_GEMM_EFFICIENCY`].
    pub fp8_flop_s: f64,
    /// Measured FLOP/s of FP8 products by inner dimension, in place of what follows from the peak: points, ascending;
    /// straight lines between, flat outside.
    pub fp8_gemm_flop_s: Vec<(u32, f64)>,
    /// Sustained FLOP/s of fused attention, forward.
    pub attention_forward_flop_s: f64,
    /// Sustained FLOP/s of fused attention, backward.
    pub attention_backward_flop_s: f64,
    /// Measured points (SMs, share of the whole GPU's speed); empty: the share of the SMs.
    pub sm_share: Vec<(u32, f64)>,
    /// Memory bandwidth, bytes/s.
    pub hbm_byte_s: f64,
    /// Time from the end of a kernel to the start of the next.
    pub launch: Nanos,
    /// GPUs of a node.
    pub gpus_per_node: u32,
    /// To the other GPUs of the node.
    pub nvlink: LinkModel,
    /// To other nodes.
    pub network: LinkModel,
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
            hbm_byte_s: gpu.hbm_gb_s * 1e9,
            launch: measured.launch_us.map_or(LAUNCH, |us| Nanos::from_secs(us / 1e6)),
            gpus_per_node: cluster.gpus_per_node,
            nvlink: LinkModel::new(&cluster.nvlink, NVLINK_PER_SM_GB_S, NVLINK_COPY),
            network: LinkModel::new(&cluster.network, NETWORK_PER_SM_GB_S, NETWORK_COPY),
            interference: Interference::new(&measured.interference),
            measured: Measured::default(),
        };
        if let Some(profile) = &measured.profile {
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
            Work::Exchange { nvlink, network } => {
                self.nvlink.duration(*nvlink, sms).max(self.network.duration(*network, sms))
            }
            Work::Copy { nvlink } => self.transfer(*nvlink, true),
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
                None => {
                    let depth = f64::from(depth);
                    self.fp8_flop_s * FP8_GEMM_EFFICIENCY * depth / (depth + FP8_GEMM_DEPTH)
                }
            },
            Rate::Gemm { dtype: Dtype::Bf16, .. } => self.bf16_gemm_flop_s,
            Rate::Gemm { dtype: Dtype::Fp32, .. } => self.bf16_flop_s * FP32_SHARE,
            Rate::AttentionForward => self.attention_forward_flop_s,
            Rate::AttentionBackward => self.attention_backward_flop_s,
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

    /// How long a contiguous transfer between neighbouring pipeline ranks takes. It goes by copy engine or network card,
    /// without SMs: over NVLink where both ranks share a node.
    pub fn transfer(&self, bytes: Bytes, same_node: bool) -> Nanos {
        let link = if same_node { &self.nvlink } else { &self.network };
        link.duration_at(bytes, link.copy_byte_s)
    }

    /// Whether neighbours of two pipeline ranks reach each other over NVLink. Rank r with all its peers occupies the GPUs
    /// from r · `gpus_per_rank` to (r+1) · `gpus_per_rank`, and talks peer by peer: GPU i of one rank to GPU i of the other.
    /// The ranks share a node if each of these pairs does.
    ///
    /// Two different ranks never straddle a node boundary at the same i unless they are whole nodes apart, so all pairs
    /// share a node exactly if everything from the first GPU of the lower rank to the last GPU of the higher one does.
    pub fn ranks_share_node(&self, gpus_per_rank: u64, r: u32, q: u32) -> bool {
        if r == q {
            return true;
        }
        let (gpus, node) = (u128::from(gpus_per_rank.max(1)), u128::from(self.gpus_per_node.max(1)));
        let first = u128::from(r.min(q)) * gpus;
        let last = (u128::from(r.max(q)) + 1) * gpus - 1;
        first / node == last / node
    }
}
