//! Rates of a simulated step: tokens, FLOPs, and what a long training run costs.

use super::Simulation;
use crate::plan::Plan;

/// Rates over one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Tokens that all GPUs together train on in a second.
    pub tokens_s: f64,
    /// The same, of one GPU.
    pub tokens_s_gpu: f64,
    /// Model FLOPs utilisation: FLOPs that the model needs (recomputation not counted) of what the GPUs could do in the
    /// time at their dense bf16 peak, whatever formats the model computes in. From 0 to 1, above where FP8 helps enough.
    pub mfu: f64,
    /// GPU hours that a trillion tokens take.
    pub gpu_hours_per_trillion_tokens: f64,
}

impl Rates {
    /// `None` if the plan takes no time, has no tokens, no GPUs, or no peak: there is no rate then.
    pub fn new(plan: &Plan, simulation: &Simulation) -> Option<Self> {
        let seconds = simulation.step.secs();
        let (tokens, gpus) = (plan.origin.tokens_per_step as f64, plan.origin.gpus as f64);
        let tokens_s = tokens / seconds;
        let tokens_s_gpu = tokens_s / gpus;
        let rates = Self {
            tokens_s,
            tokens_s_gpu,
            mfu: tokens_s_gpu * plan.origin.model_flops_per_token as f64 / plan.machine.bf16_flop_s,
            gpu_hours_per_trillion_tokens: 1e12 / tokens_s_gpu / 3600.0,
        };
        let all = [rates.tokens_s, rates.tokens_s_gpu, rates.mfu, rates.gpu_hours_per_trillion_tokens];
        all.iter().all(|rate| rate.is_finite()).then_some(rates)
    }
}
