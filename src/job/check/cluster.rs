//! Rules about the cluster.

use super::bounds::{count, measure};
use crate::error::{Error, Result};
use crate::job::Cluster;
use crate::job::cluster::Link;

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
        measure("cluster.gpu.memory_gb", gpu.memory_gb, 0.001, 1e6, "GB")?;
        measure("cluster.gpu.bf16_tflops", gpu.bf16_tflops, 0.001, 1e6, "TFLOP/s")?;
        if let Some(rate) = gpu.fp8_tflops {
            measure("cluster.gpu.fp8_tflops", rate, 0.001, 1e6, "TFLOP/s, or leave it out if the GPU has no FP8")?;
        }
        measure("cluster.gpu.hbm_gb_s", gpu.hbm_gb_s, 0.001, 1e6, "GB/s")?;
        link("cluster.nvlink", &self.nvlink, gpu.sms)?;
        link("cluster.network", &self.network, gpu.sms)
    }
}

/// Checks a link of a GPU with `sms` SMs.
fn link(field: &str, link: &Link, sms: u32) -> Result<()> {
    measure(&format!("{field}.gb_s"), link.gb_s, 0.001, 1e6, "GB/s")?;
    measure(&format!("{field}.latency_us"), link.latency_us, 0.0, 1e6, "µs")?;
    if let Some(rate) = link.per_sm_gb_s {
        measure(&format!("{field}.per_sm_gb_s"), rate, 0.001, 1e6, "GB/s")?;
    }
    let field = format!("{field}.measured");
    let refuse = |message: String, help: &str| Err(Error::new(message).help(help).field(&field));
    let mut before = (0, 0.0);
    for &(at, rate) in &link.measured {
        let point = format!("the point ({at}, {rate}) of `{field}`");
        if at == 0 || at > sms {
            return refuse(
                format!("{point} is not for 1 to {sms} SMs"),
                "leave it out: the GPU has no such number of SMs",
            );
        }
        if !(0.001..=1e6).contains(&rate) {
            return refuse(format!("{point} has no sensible rate"), "give 0.001 to 1000000 GB/s");
        }
        if at <= before.0 {
            return refuse(
                format!("{point} comes after one for {} SMs", before.0),
                "order the points by SMs, each once",
            );
        }
        if rate < before.1 {
            return refuse(
                format!("{point} is slower than {} SMs with {} GB/s", before.0, before.1),
                "leave out points that more SMs make slower: they are noise, and no plan would use them",
            );
        }
        before = (at, rate);
    }
    Ok(())
}
