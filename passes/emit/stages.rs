//! What each stage weighs on one GPU: parameters, gradients, optimizer state, and the work of synchronising them.

use crate::ir::{Kernel, Layout, Rate, Unit, Work};
use crate::job::Job;
use crate::passes::lower::Lowered;
use crate::passes::overlap::Overlapped;
use crate::passes::split::SplitStage;
use crate::plan::PlanStage;
use crate::units::{Bytes, Flops};

/// The stages of a plan.
///
/// A second copy of the embedding is counted where an MTP module (which embeds the next token) or a tied head stands on
/// ranks that do not hold the embedding; its gradient's exchange is part of the stage's reduction.
pub fn stages(job: &Job, lowered: &Lowered, split: &[SplitStage], overlapped: &Overlapped) -> Vec<PlanStage> {
    let precision = &job.model.precision;
    lowered
        .stages
        .iter()
        .zip(split)
        .zip(&overlapped.stages)
        .enumerate()
        .map(|(number, ((stage, split), programs))| {
            let shared = split.parameters.shared + copied_embedding(job, lowered, number);
            let groups = Groups::new(job, &lowered.layout);
            let shares = [(shared, groups.shared), (split.parameters.expert, groups.expert)];
            let owned: u64 = shares
                .iter()
                .map(|(parameters, replicas)| match job.training.sharded_optimizer {
                    true => parameters.div_ceil(replicas.all()),
                    false => *parameters,
                })
                .sum();
            let parameters = shared + split.parameters.expert;
            let state = precision.master.bytes(1) + 2 * precision.moments.bytes(1);
            let chunk = &split.chunk;
            PlanStage {
                units: stage.units.clone(),
                parameters: Bytes(precision.weights.bytes(parameters)),
                gradients: Bytes(precision.gradients.bytes(parameters)),
                optimizer: Bytes(owned.saturating_mul(state)),
                held: chunk.held.clone(),
                input: chunk.input,
                output: chunk.output,
                exchange_buffer: chunk.exchange_buffer,
                reduce: exchange(&shares, |values| precision.gradients.bytes(values), !job.training.sharded_optimizer),
                update: update(job, owned, state),
                gather: match job.training.sharded_optimizer {
                    true => exchange(&shares, |values| precision.weights.bytes(values), false),
                    false => Work::Exchange { nvlink: Bytes::ZERO, network: Bytes::ZERO },
                },
                f: Some(programs.f),
                b: Some(programs.b),
                i: Some(programs.i),
                w: Some(programs.w),
            }
        })
        .collect()
}

/// Parameters of the embedding's second copy on a stage; see [`stages`].
fn copied_embedding(job: &Job, lowered: &Lowered, number: usize) -> u64 {
    let layout = &lowered.layout;
    let units = &lowered.stages[number].units;
    let has_mtp = units.iter().any(|unit| matches!(unit, Unit::Mtp(_)));
    let table = u64::from(job.model.vocabulary).div_ceil(u64::from(job.training.tp)) * u64::from(job.model.hidden);
    let with_embedding = layout.holders(number as u32).iter().all(|&rank| layout.stages_of(rank).contains(&0));
    // A tied head's matrix is counted with the head, and serves a module beside it too. Where the embedding itself is on
    // the rank, the head's own matrix is one too many; that is left as the safe side.
    let has_table = job.model.tied_embedding && units.contains(&Unit::Head);
    if has_mtp && !with_embedding && !has_table { table } else { 0 }
}

/// The GPUs that hold the same parameters.
#[derive(Clone, Copy)]
struct Replicas {
    /// Of them on one node.
    local: u64,
    /// Nodes (and pipeline ranks) that they are spread over.
    groups: u64,
}

impl Replicas {
    fn all(self) -> u64 {
        self.local * self.groups
    }
}

/// Replicas of the two kinds of parameters.
struct Groups {
    shared: Replicas,
    expert: Replicas,
}

impl Groups {
    /// A pipeline rank's dp × tp GPUs are numbered with tensor-parallel peers next to each other, then expert-parallel
    /// peers; nodes are filled in that order. The second copy of a bidirectional placement is on other nodes.
    fn new(job: &Job, layout: &Layout) -> Self {
        let training = &job.training;
        let (dp, tp, ep) = (u64::from(training.dp), u64::from(training.tp), u64::from(training.ep));
        let node = u64::from(job.cluster.gpus_per_node);
        let copies = layout.holders(0).len() as u64;
        let spread = |all: u64, apart: u64| {
            // `apart`: distance between two GPUs with the same parameters.
            let local = (node / apart).clamp(1, all);
            Replicas { local, groups: all.div_ceil(local) * copies }
        };
        Self { shared: spread(dp, tp), expert: spread((dp * tp / ep).max(1), ep) }
    }
}

/// Bytes that one GPU sends to reduce-scatter (or, twice that, all-reduce; or gather) parameters over their replicas:
/// first within a node over NVLink, then the node's share over the network.
fn exchange(shares: &[(u64, Replicas)], bytes: impl Fn(u64) -> u64, twice: bool) -> Work {
    let (mut nvlink, mut network) = (Bytes::ZERO, Bytes::ZERO);
    let times = if twice { 2 } else { 1 };
    for &(parameters, replicas) in shares {
        let Replicas { local, groups } = replicas;
        nvlink += Bytes(bytes(parameters) / local * (local - 1) * times);
        network += Bytes(bytes(parameters.div_ceil(local)) / groups * (groups - 1) * times);
    }
    Work::Exchange { nvlink, network }
}

/// One pass of AdamW over the parameters that this GPU owns: reads gradient, master and moments; writes master, moments and
/// weight.
fn update(job: &Job, owned: u64, state: u64) -> Work {
    let precision = &job.model.precision;
    let bytes = owned.saturating_mul(2 * state + precision.gradients.bytes(1) + precision.weights.bytes(1));
    Work::Compute(vec![Kernel {
        rate: Rate::Memory,
        flops: Flops(owned.saturating_mul(12)),
        bytes: Bytes(bytes),
        launches: 1,
    }])
}
