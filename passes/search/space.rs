//! What there is to choose from, as a product of three: how the GPUs are split, with which schedule; what a layer does and keeps; and how many
//! SMs its exchanges get.

use std::collections::BTreeSet;

use super::configuration::{Configuration, Decision};
use crate::ir::Recompute;
use crate::job::Job;
use crate::job::model::{Attention, Dtype};
use crate::job::training::ScheduleKind;
use crate::passes::overlap::budget;
use crate::passes::{pipeline, unit_work};

/// Largest micro-batch, in sequences, that is tried where the job does not have a larger one.
const MOST_SEQUENCES: u32 = 16;

/// Stages that a rank takes turns with, where the schedule leaves that open.
pub const TURNS: [u32; 3] = [2, 3, 4];

/// What a search looks through.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    /// GPUs that there are. A configuration uses more than half of them: else two of it would fit.
    pub gpus: u64,
    /// Sequences of a step.
    pub sequences: u64,
    /// How GPUs are split.
    pub splits: Vec<Split>,
    /// What a layer does and keeps.
    pub settings: Vec<Setting>,
    /// Numbers of SMs.
    pub sms: Vec<u32>,
}

/// GPUs in pipelines, and a pipeline's micro-batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Pipeline ranks.
    pub pp: u32,
    /// Tensor parallelism.
    pub tp: u32,
    /// Replicas.
    pub dp: u32,
    /// Sequences of a micro-batch.
    pub micro_batch_size: u32,
    /// Micro-batches of a replica.
    pub micro_batches: u32,
    /// Schedules that there are for these numbers, with the stages of a rank where they are open.
    pub schedules: Vec<(ScheduleKind, Option<u32>)>,
}

/// All that the work of a layer on one GPU depends on, SMs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// Tensor parallelism.
    pub tp: u32,
    /// Sequences of a micro-batch.
    pub micro_batch_size: u32,
    /// Expert parallelism.
    pub ep: u32,
    /// What is computed again.
    pub recompute: Recompute,
    /// What dispatch sends.
    pub dispatch: Dtype,
    /// What combine sends.
    pub combine: Dtype,
}

impl Setting {
    /// Of a configuration.
    pub fn of(of: &Configuration) -> Self {
        let Configuration { tp, micro_batch_size, ep, recompute, dispatch, combine, .. } = *of;
        Self { tp, micro_batch_size, ep, recompute, dispatch, combine }
    }

    /// The job with this work for its layers; how GPUs are split stays.
    pub fn apply(&self, job: &Job) -> Job {
        let mut job = job.clone();
        let training = &mut job.training;
        (training.tp, training.ep, training.micro_batch_size) = (self.tp, self.ep, self.micro_batch_size);
        training.recompute = self.recompute;
        (job.model.precision.dispatch, job.model.precision.combine) = (self.dispatch, self.combine);
        job.limit_imbalance();
        job
    }
}

impl Space {
    /// Of a job on `gpus` GPUs. What `keep` names is as in `own`, the job's configuration.
    pub fn new(job: &Job, gpus: u64, own: &Configuration, keep: &[Decision]) -> Self {
        let mut space = Self::all(job, gpus);
        let kept = |decision: Decision| keep.contains(&decision);
        let setting = Setting::of(own);
        space.settings.retain(|other| {
            (!kept(Decision::Tp) || other.tp == setting.tp)
                && (!kept(Decision::Ep) || other.ep == setting.ep)
                && (!kept(Decision::MicroBatchSize) || other.micro_batch_size == setting.micro_batch_size)
                && (!kept(Decision::Recompute) || other.recompute == setting.recompute)
                && (!kept(Decision::Payload) || (other.dispatch, other.combine) == (setting.dispatch, setting.combine))
        });
        for split in &mut space.splits {
            let schedule = (own.schedule, own.stages_per_rank);
            split.schedules.retain(|other| !kept(Decision::Schedule) || *other == schedule);
        }
        space.splits.retain(|split| {
            !split.schedules.is_empty()
                && (!kept(Decision::Pp) || split.pp == own.pp)
                && (!kept(Decision::Dp) || split.dp == own.dp)
                && space.settings.iter().any(|setting| split.takes(setting))
        });
        space.settings.retain(|setting| space.splits.iter().any(|split| split.takes(setting)));
        if kept(Decision::Sms) {
            space.sms = vec![own.sms];
        }
        space
    }

    fn all(job: &Job, gpus: u64) -> Self {
        let training = &job.training;
        let sequences =
            u64::from(training.micro_batches) * u64::from(training.micro_batch_size) * u64::from(training.dp);
        let tps = tensor_parallel(job);
        let sizes: BTreeSet<u32> = powers_of_two(MOST_SEQUENCES).chain([training.micro_batch_size]).collect();
        let sizes: Vec<u32> = sizes.into_iter().filter(|&size| sequences.is_multiple_of(u64::from(size))).collect();
        let sms = budget::offered(job);
        let mut splits = Vec::new();
        let units = unit_work::units(job).len() as u64;
        let most_ranks = units.min(u64::from(pipeline::MAX_RANKS)) as u32;
        for &tp in &tps {
            for &micro_batch_size in &sizes {
                let batches = sequences / u64::from(micro_batch_size);
                for dp in divisors(batches) {
                    let micro_batches = batches / u64::from(dp);
                    for pp in 1..=most_ranks {
                        let used = u64::from(pp) * u64::from(tp) * u64::from(dp);
                        if used > gpus || 2 * used <= gpus {
                            continue;
                        }
                        let Ok(micro_batches) = u32::try_from(micro_batches) else { continue };
                        let schedules = schedules(pp, micro_batches, units);
                        if !schedules.is_empty() {
                            splits.push(Split { pp, tp, dp, micro_batch_size, micro_batches, schedules });
                        }
                    }
                }
            }
        }
        let mut settings = Vec::new();
        for &tp in &tps {
            for &micro_batch_size in &sizes {
                for ep in expert_parallel(job) {
                    for &recompute in &recomputes(job) {
                        for &(dispatch, combine) in &payloads(job, ep) {
                            settings.push(Setting { tp, micro_batch_size, ep, recompute, dispatch, combine });
                        }
                    }
                }
            }
        }
        Self { gpus, sequences, splits, settings, sms }
    }

    /// How many configurations it has.
    pub fn count(&self) -> u64 {
        let of = |setting: &Setting| -> u64 {
            let splits = self.splits.iter().filter(|split| split.takes(setting));
            splits.map(|split| split.schedules.len() as u64).sum()
        };
        self.settings.iter().map(of).sum::<u64>() * self.sms.len() as u64
    }

    /// Whether it has a configuration.
    pub fn contains(&self, of: &Configuration) -> bool {
        let setting = Setting::of(of);
        let split = |split: &Split| {
            split.is_of(of) && split.takes(&setting) && split.schedules.contains(&(of.schedule, of.stages_per_rank))
        };
        self.sms.contains(&of.sms) && self.settings.contains(&setting) && self.splits.iter().any(split)
    }
}

impl Split {
    /// Whether layers can do this work in it.
    pub fn takes(&self, setting: &Setting) -> bool {
        (self.tp, self.micro_batch_size) == (setting.tp, setting.micro_batch_size)
            && (u64::from(self.dp) * u64::from(self.tp)).is_multiple_of(u64::from(setting.ep))
    }

    fn is_of(&self, of: &Configuration) -> bool {
        (self.pp, self.tp, self.dp) == (of.pp, of.tp, of.dp)
            && (self.micro_batch_size, self.micro_batches) == (of.micro_batch_size, of.micro_batches)
    }

    /// A configuration of it. The setting must be one that it [takes](Self::takes).
    pub fn with(&self, schedule: (ScheduleKind, Option<u32>), setting: &Setting, sms: u32) -> Configuration {
        let Setting { tp, micro_batch_size, ep, recompute, dispatch, combine } = *setting;
        Configuration {
            pp: self.pp,
            tp,
            ep,
            dp: self.dp,
            micro_batch_size,
            micro_batches: self.micro_batches,
            schedule: schedule.0,
            stages_per_rank: schedule.1,
            recompute,
            dispatch,
            combine,
            sms,
        }
    }
}

fn schedules(pp: u32, micro_batches: u32, units: u64) -> Vec<(ScheduleKind, Option<u32>)> {
    let mut found = Vec::new();
    for kind in ScheduleKind::PUBLISHED {
        let turns: &[Option<u32>] = match kind {
            ScheduleKind::Interleaved => &TURNS.map(Some),
            _ => &[None],
        };
        for &turns in turns {
            let per_rank = match kind {
                ScheduleKind::ZbV | ScheduleKind::DualPipeV => 2,
                _ => turns.unwrap_or(1),
            };
            let fits = u64::from(pp) * u64::from(per_rank) <= units;
            if fits && pipeline::precondition(kind, pp, per_rank, micro_batches).is_ok() {
                found.push((kind, turns));
            }
        }
    }
    found
}

/// Powers of two, and what the job has, that its layers can be cut by.
fn tensor_parallel(job: &Job) -> Vec<u32> {
    let candidates: BTreeSet<u32> = powers_of_two(job.cluster.gpus_per_node).chain([job.training.tp]).collect();
    let fits = |tp: &u32| {
        let mut job = job.clone();
        let training = &mut job.training;
        // Whatever else might be wrong with the job's split is not asked here.
        (training.tp, training.pp, training.dp, training.ep) = (*tp, 1, 1, 1);
        (training.schedule, training.stages_per_rank, training.placement) = (ScheduleKind::GPipe, None, None);
        training.micro_batches = 1;
        job.limit_imbalance();
        job.check().is_ok()
    };
    candidates.into_iter().filter(fits).collect()
}

fn expert_parallel(job: &Job) -> Vec<u32> {
    match &job.model.moe {
        Some(moe) => divisors(moe.experts.into()),
        None => vec![1],
    }
}

fn recomputes(job: &Job) -> Vec<Recompute> {
    let latent = matches!(job.model.attention, Attention::Mla(_));
    let mut all = Vec::new();
    for norms in [false, true] {
        for mla_up in if latent { &[false, true][..] } else { &[false][..] } {
            for swiglu in [false, true] {
                all.push(Recompute { norms, mla_up: *mla_up, swiglu, layer: false });
            }
        }
    }
    all.push(Recompute { layer: true, ..Recompute::NOTHING });
    if !all.contains(&job.training.recompute) {
        all.push(job.training.recompute);
    }
    all
}

/// Formats of dispatch and combine: the job's, bf16, and, where the job lets exchanges send it, FP8. Without exchanges only the job's.
fn payloads(job: &Job, ep: u32) -> Vec<(Dtype, Dtype)> {
    let precision = &job.model.precision;
    let own = (precision.dispatch, precision.combine);
    if ep == 1 {
        return vec![own];
    }
    let narrow = job.training.fp8_exchanges && job.cluster.gpu.fp8_tflops.is_some();
    let of = |own: Dtype| -> Vec<Dtype> {
        let all = [Dtype::Fp8, Dtype::Bf16, Dtype::Fp32];
        all.into_iter()
            .filter(|&dtype| dtype == own || dtype == Dtype::Bf16 && own == Dtype::Fp8 || dtype == Dtype::Fp8 && narrow)
            .collect()
    };
    let combines = of(own.1);
    of(own.0).into_iter().flat_map(|dispatch| combines.iter().map(move |&combine| (dispatch, combine))).collect()
}

fn powers_of_two(most: u32) -> impl Iterator<Item = u32> {
    (0..32).map(|exponent| 1_u32 << exponent).take_while(move |&power| power <= most)
}

/// Those that are 32-bit numbers, ascending.
fn divisors(of: u64) -> Vec<u32> {
    let mut found = BTreeSet::new();
    let mut low = 1;
    while low * low <= of {
        if of.is_multiple_of(low) {
            found.extend([low, of / low].into_iter().filter_map(|divisor| u32::try_from(divisor).ok()));
        }
        low += 1;
    }
    found.into_iter().collect()
}
