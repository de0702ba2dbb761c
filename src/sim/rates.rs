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

/// What a GPU costs. What is not given is not told.
#[derive(Clone, Copy, Debug, Default, PartialEq, clap::Args)]
pub struct Prices {
    /// Price of a GPU hour, in USD: also tells what a trillion tokens cost.
    #[arg(long, value_name = "USD", value_parser = positive, allow_negative_numbers = true)]
    pub price: Option<f64>,
    /// Power of a GPU with its share of everything around it, in W: also tells the energy of a trillion tokens.
    #[arg(long, value_name = "W", value_parser = positive, allow_negative_numbers = true)]
    pub watts: Option<f64>,
}

impl Prices {
    /// USD of so many GPU hours.
    pub fn usd(&self, gpu_hours: f64) -> Option<f64> {
        self.price.map(|price| price * gpu_hours)
    }

    /// Energy of so many GPU hours, MWh.
    pub fn mwh(&self, gpu_hours: f64) -> Option<f64> {
        self.watts.map(|watts| watts * gpu_hours / 1e6)
    }
}

/// A price or a power: at most what no GPU comes near, so that costs are numbers.
fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    match number > 0.0 && number <= 1e6 {
        true => Ok(number),
        false => Err("expected a number above 0, at most 1000000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_follow_from_hours() {
        let prices = Prices { price: Some(2.0), watts: Some(700.0) };
        // DeepSeek-V3's report: 180 thousand H800 hours for a trillion tokens, at 2 USD an hour.
        assert_eq!(prices.usd(180e3), Some(360e3));
        assert_eq!(prices.mwh(180e3), Some(126.0));
        assert_eq!(Prices::default().usd(1.0), None);
        for wrong in ["0", "-1", "nan", "inf", "1e9", "two"] {
            assert!(positive(wrong).is_err(), "{wrong}");
        }
    }
}
