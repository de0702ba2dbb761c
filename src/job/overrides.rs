//! Flags that replace fields of a job's `training` part, so that one file serves many runs.

use std::path::PathBuf;

use super::Training;
use super::sms::CommunicationSms;
use super::training::{PairOrder, Recompute, ScheduleKind};
use crate::ir::Placement;

/// What the command line says about the training run; it wins over the job file.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Training (each replaces the job file's)")]
pub struct Overrides {
    /// Pipeline ranks.
    #[arg(long, value_name = "RANKS", allow_negative_numbers = true)]
    pub pp: Option<u32>,
    /// GPUs that share one set of routed experts; divides dp × tp and the number of experts.
    #[arg(long, value_name = "GPUS", allow_negative_numbers = true)]
    pub ep: Option<u32>,
    /// GPUs that share one layer's attention and dense MLP.
    #[arg(long, value_name = "GPUS", allow_negative_numbers = true)]
    pub tp: Option<u32>,
    /// Replicas of a pipeline that see different data.
    #[arg(long, value_name = "REPLICAS", allow_negative_numbers = true)]
    pub dp: Option<u32>,
    /// Micro-batches of one replica in one step.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub micro_batches: Option<u32>,
    /// Sequences of a micro-batch.
    #[arg(long, value_name = "SEQUENCES", allow_negative_numbers = true)]
    pub micro_batch_size: Option<u32>,
    /// Tokens of a sequence.
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    pub sequence: Option<u32>,
    /// The pipeline schedule.
    #[arg(long, value_enum)]
    pub schedule: Option<ScheduleKind>,
    /// Stages that a rank holds (interleaved only).
    #[arg(long, value_name = "STAGES", allow_negative_numbers = true)]
    pub stages_per_rank: Option<u32>,
    /// Where stages live; can only confirm the schedule's own.
    #[arg(long, value_enum)]
    pub placement: Option<Placement>,
    /// What is computed again in the backward pass: a list of `norms`, `mla-up`, `swiglu`, `layer`; or `none`.
    #[arg(long, value_name = "LIST", value_parser = recompute)]
    pub recompute: Option<Recompute>,
    /// How the ops of an overlapped pair are ordered.
    #[arg(long, value_enum)]
    pub overlap: Option<PairOrder>,
    /// SMs that dispatch and combine get.
    #[arg(long, value_name = "N|best|each", allow_negative_numbers = true)]
    pub communication_sms: Option<CommunicationSms>,
    /// Rewrite rules that the compiler must not use: a list of names, or `all`.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub without_rewrites: Option<Vec<String>>,
    /// Whether exchanges may send FP8 where the model's precision asks for more.
    #[arg(long, value_name = "true|false", hide_possible_values = true)]
    pub fp8_exchanges: Option<bool>,
    /// Tokens of the fullest GPU of an expert-parallel group over the mean: from 1, even loads, to ep.
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    pub imbalance: Option<f64>,
    /// Memory of a GPU that the plan may use, in GB (10^9 bytes).
    #[arg(long, value_name = "GB", allow_negative_numbers = true)]
    pub memory_limit_gb: Option<f64>,
    /// Whether optimizer state is divided among the replicas (ZeRO-1).
    #[arg(long, value_name = "true|false", hide_possible_values = true)]
    pub sharded_optimizer: Option<bool>,
    /// Times of ops that `dualweave tune` has measured, in place of the machine model's.
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub profile: Option<PathBuf>,
}

impl Overrides {
    /// Puts every given value in place of the file's.
    pub fn apply(&self, training: &mut Training) {
        fn set<T: Copy>(field: &mut T, given: Option<T>) {
            if let Some(given) = given {
                *field = given;
            }
        }
        set(&mut training.pp, self.pp);
        set(&mut training.ep, self.ep);
        set(&mut training.tp, self.tp);
        set(&mut training.dp, self.dp);
        set(&mut training.micro_batches, self.micro_batches);
        set(&mut training.micro_batch_size, self.micro_batch_size);
        set(&mut training.sequence, self.sequence);
        set(&mut training.schedule, self.schedule);
        set(&mut training.recompute, self.recompute);
        set(&mut training.overlap, self.overlap);
        set(&mut training.communication_sms, self.communication_sms);
        set(&mut training.sharded_optimizer, self.sharded_optimizer);
        set(&mut training.fp8_exchanges, self.fp8_exchanges);
        set(&mut training.imbalance, self.imbalance);
        if let Some(rules) = &self.without_rewrites {
            training.without_rewrites.clone_from(rules);
        }
        training.stages_per_rank = self.stages_per_rank.or(training.stages_per_rank);
        training.placement = self.placement.or(training.placement);
        training.memory_limit_gb = self.memory_limit_gb.or(training.memory_limit_gb);
    }

    /// The flag that set a field of `training`, as it was given (`--pp 4`); `None` if none did.
    pub fn flag(&self, field: &str) -> Option<String> {
        // Part of a field (`recompute.norms`) is set by the flag of the whole.
        let field = field.split('.').next().unwrap_or(field);
        let number = |given: Option<u32>| given.map(|n| n.to_string());
        let value = match field {
            "pp" => number(self.pp),
            "ep" => number(self.ep),
            "tp" => number(self.tp),
            "dp" => number(self.dp),
            "micro_batches" => number(self.micro_batches),
            "micro_batch_size" => number(self.micro_batch_size),
            "sequence" => number(self.sequence),
            "schedule" => self.schedule.map(|schedule| schedule.to_string()),
            "stages_per_rank" => number(self.stages_per_rank),
            "placement" => self.placement.map(|placement| placement.to_string()),
            "recompute" => self.recompute.map(|recompute| recompute.to_string()),
            "overlap" => self.overlap.map(|order| order.name().to_owned()),
            "communication_sms" => self.communication_sms.map(|sms| sms.to_string()),
            "without_rewrites" => self.without_rewrites.as_ref().map(|rules| rules.join(",")),
            "fp8_exchanges" => self.fp8_exchanges.map(|yes| yes.to_string()),
            "imbalance" => self.imbalance.map(|factor| factor.to_string()),
            "memory_limit_gb" => self.memory_limit_gb.map(|gb| gb.to_string()),
            "sharded_optimizer" => self.sharded_optimizer.map(|yes| yes.to_string()),
            _ => None,
        }?;
        Some(format!("--{} {value}", field.replace('_', "-")))
    }
}

/// Reads the value of `--recompute`.
fn recompute(list: &str) -> Result<Recompute, String> {
    let mut recompute = Recompute::default();
    if list == "none" {
        return Ok(recompute);
    }
    for item in list.split(',') {
        match item.trim() {
            "norms" => recompute.norms = true,
            "mla-up" => recompute.mla_up = true,
            "swiglu" => recompute.swiglu = true,
            "layer" => recompute.layer = true,
            other => {
                return Err(format!(
                    "`{other}` is none of `norms`, `mla-up`, `swiglu`, `layer`; write `none` alone for nothing"
                ));
            }
        }
    }
    Ok(recompute)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        overrides: Overrides,
    }

    fn parse(line: &str) -> Result<Overrides, clap::Error> {
        Line::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).map(|line| line.overrides)
    }

    fn training() -> Training {
        ron::from_str("(pp: 2, micro_batches: 4, sequence: 128, schedule: DualPipe)").expect("a training part")
    }

    #[test]
    fn every_flag_replaces_its_field_and_says_so() {
        let flags = [
            ("--pp 8", "pp"),
            ("--ep 3", "ep"),
            ("--tp 2", "tp"),
            ("--dp 5", "dp"),
            ("--micro-batches 6", "micro_batches"),
            ("--micro-batch-size 7", "micro_batch_size"),
            ("--sequence 64", "sequence"),
            ("--schedule zb-h1", "schedule"),
            ("--stages-per-rank 3", "stages_per_rank"),
            ("--placement v", "placement"),
            ("--recompute norms,swiglu", "recompute"),
            ("--overlap megatron", "overlap"),
            ("--communication-sms 12", "communication_sms"),
            ("--without-rewrites two-hop,recompute", "without_rewrites"),
            ("--fp8-exchanges true", "fp8_exchanges"),
            ("--imbalance 1.5", "imbalance"),
            ("--memory-limit-gb 60.5", "memory_limit_gb"),
            ("--sharded-optimizer false", "sharded_optimizer"),
        ];
        for (line, field) in flags {
            let overrides = parse(line).unwrap_or_else(|error| panic!("{error}"));
            let (before, mut after) = (training(), training());
            overrides.apply(&mut after);
            assert_ne!(before, after, "{line} changes nothing");
            assert_eq!(overrides.flag(field).as_deref(), Some(line));
            let others = flags.iter().filter(|(_, other)| *other != field);
            assert!(others.clone().all(|(_, other)| overrides.flag(other).is_none()), "{line} claims another field");
        }
        // As many flags as fields: destructuring fails to compile when one is added.
        let Training {
            pp: _,
            ep: _,
            tp: _,
            dp: _,
            micro_batches: _,
            micro_batch_size: _,
            sequence: _,
            schedule: _,
            stages_per_rank: _,
            placement: _,
            recompute: _,
            overlap: _,
            communication_sms: _,
            without_rewrites: _,
            fp8_exchanges: _,
            imbalance: _,
            memory_limit_gb: _,
            sharded_optimizer: _,
        } = training();
        assert_eq!(flags.len(), 18);
    }

    #[test]
    fn a_recompute_list_is_exact() {
        assert_eq!(parse("--recompute none").expect("none").recompute, Some(Recompute::default()));
        let all = Recompute { norms: true, mla_up: true, swiglu: true, layer: true };
        assert_eq!(parse("--recompute swiglu,layer,norms,mla-up").expect("all").recompute, Some(all));
        for wrong in ["--recompute mla_up", "--recompute none,norms", "--recompute ,", "--sharded-optimizer yes"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
