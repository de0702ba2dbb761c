//! A configuration: everything about a training run that a search decides.

use std::fmt;

use crate::ir::{Placement, Recompute};
use crate::job::Job;
use crate::job::model::Dtype;
use crate::job::sms::CommunicationSms;
use crate::job::training::ScheduleKind;

/// What is decided. Model, cluster, sequence and the tokens of a step are the job's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Configuration {
    /// Pipeline ranks.
    pub pp: u32,
    /// GPUs that share a layer's attention and dense MLP.
    pub tp: u32,
    /// GPUs that share one set of routed experts.
    pub ep: u32,
    /// Replicas.
    pub dp: u32,
    /// Sequences of a micro-batch.
    pub micro_batch_size: u32,
    /// Micro-batches of one replica in one step.
    pub micro_batches: u32,
    /// The schedule, and with it where stages live.
    pub schedule: ScheduleKind,
    /// Stages that a rank holds, where the schedule leaves that open.
    pub stages_per_rank: Option<u32>,
    /// What is computed again.
    pub recompute: Recompute,
    /// What dispatch sends.
    pub dispatch: Dtype,
    /// What combine sends.
    pub combine: Dtype,
    /// SMs of dispatch and combine.
    pub sms: u32,
}

/// A decision of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Decision {
    /// Pipeline ranks.
    Pp,
    /// Tensor parallelism.
    Tp,
    /// Expert parallelism.
    Ep,
    /// Replicas, and with them micro-batches.
    Dp,
    /// Sequences of a micro-batch.
    MicroBatchSize,
    /// Schedule, placement, stages per rank.
    Schedule,
    /// What is computed again.
    Recompute,
    /// Formats of dispatch and combine.
    Payload,
    /// SMs of communication.
    Sms,
}

impl Decision {
    /// All of them, in the order in which reports have them.
    pub const ALL: [Self; 9] = [
        Self::Pp,
        Self::Ep,
        Self::Dp,
        Self::Tp,
        Self::MicroBatchSize,
        Self::Schedule,
        Self::Recompute,
        Self::Payload,
        Self::Sms,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pp => "pp",
            Self::Tp => "tp",
            Self::Ep => "ep",
            Self::Dp => "dp",
            Self::MicroBatchSize => "micro-batch size",
            Self::Schedule => "schedule",
            Self::Recompute => "recompute",
            Self::Payload => "payload",
            Self::Sms => "communication SMs",
        }
    }
}

impl Configuration {
    /// A job's, where exchanges have `sms` SMs.
    pub fn of(job: &Job, sms: u32) -> Self {
        let (training, precision) = (&job.training, &job.model.precision);
        Self {
            pp: training.pp,
            tp: training.tp,
            ep: training.ep,
            dp: training.dp,
            micro_batch_size: training.micro_batch_size,
            micro_batches: training.micro_batches,
            schedule: training.schedule,
            stages_per_rank: match training.placement() {
                Some(Placement::Loop) => Some(training.stages_per_rank()),
                _ => None,
            },
            recompute: training.recompute,
            dispatch: precision.dispatch,
            combine: precision.combine,
            sms,
        }
    }

    /// The job that trains so.
    pub fn apply(&self, job: &Job) -> Job {
        let mut job = job.clone();
        let training = &mut job.training;
        (training.pp, training.tp, training.ep, training.dp) = (self.pp, self.tp, self.ep, self.dp);
        (training.micro_batch_size, training.micro_batches) = (self.micro_batch_size, self.micro_batches);
        training.stages_per_rank = self.stages_per_rank;
        if self.schedule != ScheduleKind::Auto {
            training.placement = None;
        }
        training.schedule = self.schedule;
        training.recompute = self.recompute;
        training.communication_sms = CommunicationSms::Fixed(self.sms);
        (job.model.precision.dispatch, job.model.precision.combine) = (self.dispatch, self.combine);
        job.limit_imbalance();
        job
    }

    /// GPUs that it uses.
    pub fn gpus(&self) -> u64 {
        u64::from(self.pp) * u64::from(self.dp) * u64::from(self.tp)
    }

    /// A decision, in words.
    pub fn said(&self, decision: Decision) -> String {
        match decision {
            Decision::Pp => self.pp.to_string(),
            Decision::Tp => self.tp.to_string(),
            Decision::Ep => self.ep.to_string(),
            Decision::Dp => format!("{} × {}", self.dp, self.micro_batches),
            Decision::MicroBatchSize => self.micro_batch_size.to_string(),
            Decision::Schedule => match self.stages_per_rank {
                Some(stages) => format!("{} of {stages}", self.schedule),
                None => self.schedule.to_string(),
            },
            Decision::Recompute => self.recompute.to_string(),
            Decision::Payload => format!("{}/{}", dtype(self.dispatch), dtype(self.combine)),
            Decision::Sms => self.sms.to_string(),
        }
    }

    /// The decisions in which it differs from another one.
    pub fn differs<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Decision> + 'a {
        Decision::ALL.into_iter().filter(|decision| self.said(*decision) != other.said(*decision))
    }
}

/// The name of a format.
pub fn dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Fp8 => "fp8",
        Dtype::Bf16 => "bf16",
        Dtype::Fp32 => "fp32",
    }
}

/// `pp 16 ep 64 dp 128 tp 1 …`.
impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> =
            Decision::ALL.iter().map(|&decision| format!("{} {}", decision.name(), self.said(decision))).collect();
        f.write_str(&words.join(", "))
    }
}
