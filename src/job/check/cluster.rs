//! Rules about the cluster.

use std::ops::RangeInclusive;

use super::bounds::{count, measure};
use crate::error::{Error, Result};
use crate::job::Cluster;
use crate::job::cluster::{Link, MeasuredGpu, MeasuredInterference, Pods};

impl Cluster {
    /// Checks the rules that concern the cluster alone.
    ///
    /// # Errors
    /// At the first that is broken, naming the field.
    pub fn check(&self) -> Result<()> {
        let gpu = &self.gpu;
        count("cluster.gpus_per_node", self.gpus_per_node.into(), 1, 1024)?;
        count("cluster.nodes", self.nodes.into(), 1, 1 << 20)?;
        count("cluster.gpu.sms", gpu.sms.into(), 4, 4096)?;
        count("cluster.gpu.sm_step", gpu.sm_step.into(), 1, u64::from(gpu.sms) / 2)?;
        measure("cluster.gpu.memory_gb", gpu.memory_gb, 0.001, 1e6, "GB")?;
        measure("cluster.gpu.bf16_tflops", gpu.bf16_tflops, 0.001, 1e6, "TFLOP/s")?;
        if let Some(rate) = gpu.fp8_tflops {
            measure("cluster.gpu.fp8_tflops", rate, 0.001, 1e6, "TFLOP/s, or leave it out if the GPU has no FP8")?;
        }
        measure("cluster.gpu.hbm_gb_s", gpu.hbm_gb_s, 0.001, 1e6, "GB/s")?;
        measured(&gpu.measured, gpu.sms)?;
        link("cluster.nvlink", &self.nvlink, gpu.sms)?;
        link("cluster.network", &self.network, gpu.sms)?;
        if let Some(Pods { nodes, oversubscription }) = self.pods {
            count("cluster.pods.nodes", nodes.into(), 1, 1 << 20)?;
            let unit = "times as much within a pod as between pods";
            measure("cluster.pods.oversubscription", oversubscription, 1.0, 1e3, unit)?;
        }
        Ok(())
    }
}

/// Checks a link of a GPU with `sms` SMs.
fn link(field: &str, link: &Link, sms: u32) -> Result<()> {
    measure(&format!("{field}.gb_s"), link.gb_s, 0.001, 1e6, "GB/s")?;
    measure(&format!("{field}.latency_us"), link.latency_us, 0.0, 1e6, "µs")?;
    if let Some(rate) = link.per_sm_gb_s {
        measure(&format!("{field}.per_sm_gb_s"), rate, 0.001, 1e6, "GB/s")?;
    }
    if let Some(rate) = link.copy_gb_s {
        measure(&format!("{field}.copy_gb_s"), rate, 0.001, 1e6, "GB/s")?;
    }
    curve(&format!("{field}.measured"), &link.measured, sms, 0.001..=1e6, "0.001 to 1000000 GB/s")
}

/// Checks what was measured of the kernels of a GPU with `sms` SMs.
fn measured(measured: &MeasuredGpu, sms: u32) -> Result<()> {
    let field = |name: &str| format!("cluster.gpu.measured.{name}");
    for (name, rate) in [
        ("bf16_gemm_tflops", measured.bf16_gemm_tflops),
        ("attention_forward_tflops", measured.attention_forward_tflops),
        ("attention_backward_tflops", measured.attention_backward_tflops),
    ] {
        rate.map_or(Ok(()), |rate| measure(&field(name), rate, 0.001, 1e6, "TFLOP/s"))?;
    }
    if let Some(launch) = measured.launch_us {
        measure(&field("launch_us"), launch, 0.0, 1e6, "µs")?;
    }
    interference(&measured.interference)?;
    let name = field("fp8_gemm_tflops");
    let mut before = 0;
    for &(depth, rate) in &measured.fp8_gemm_tflops {
        measure(&name, rate, 0.001, 1e6, "TFLOP/s")?;
        if depth <= before {
            let message = format!(
                "the point ({depth}, {rate}) of `{name}` does not come after one for a smaller inner dimension"
            );
            return Err(Error::new(message).help("order the points by inner dimension, from 1, each once").field(name));
        }
        before = depth;
    }
    curve(&field("sm_share"), &measured.sm_share, sms, 0.001..=1.0, "0.001 to 1, the share of the whole GPU's speed")
}

/// Checks what ops that run at the same time lose to each other.
fn interference(measured: &MeasuredInterference) -> Result<()> {
    let field = |name: &str| format!("cluster.gpu.measured.interference.{name}");
    for (name, factor) in [("hbm", measured.hbm), ("tensor", measured.tensor)] {
        factor.map_or(Ok(()), |factor| measure(&field(name), factor, 0.0, 10.0, "times as much; 0: none"))?;
    }
    for (name, share) in
        [("sms", measured.sms), ("sms_hbm", measured.sms_hbm), ("link", measured.link), ("copy_hbm", measured.copy_hbm)]
    {
        share.map_or(Ok(()), |share| measure(&field(name), share, 0.0, 0.99, "of the whole that is lost; 0: none"))?;
    }
    Ok(())
}

/// Checks points (SMs, value): SMs ascending from 1 to those of the GPU, values in range and not falling.
fn curve(field: &str, points: &[(u32, f64)], sms: u32, range: RangeInclusive<f64>, sensible: &str) -> Result<()> {
    let refuse = |message: String, help: &str| Err(Error::new(message).help(help).field(field));
    let mut before = (0, 0.0);
    for &(at, rate) in points {
        let point = format!("the point ({at}, {rate}) of `{field}`");
        if at == 0 || at > sms {
            return refuse(
                format!("{point} is not for 1 to {sms} SMs"),
                "leave it out: the GPU has no such number of SMs",
            );
        }
        if !range.contains(&rate) {
            return refuse(format!("{point} has no sensible value"), &format!("give {sensible}"));
        }
        if at <= before.0 {
            return refuse(
                format!("{point} comes after one for {} SMs", before.0),
                "order the points by SMs, each once",
            );
        }
        if rate < before.1 {
            return refuse(
                format!("{point} is slower than {} SMs with {}", before.0, before.1),
                "leave out points that more SMs make slower: they are noise, and no plan would use them",
            );
        }
        before = (at, rate);
    }
    Ok(())
}
