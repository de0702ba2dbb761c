//! What each stage weighs on one GPU: parameters, gradients, optimizer state, and the work of synchronising them.

use crate::ir::{Kernel, Rate, Unit, Work};
use crate::job::Job;
use crate::machine::Machine;
use crate::machine::network::{part, rings_crossing};
use crate::passes::lower::Lowered;
use crate::passes::overlap::Overlapped;
use crate::passes::split::SplitStage;
use crate::passes::unit_work::embedding_parameters;
use crate::plan::PlanStage;
use crate::units::{Bytes, Flops};

/// The stages of a plan, with the programs that they run by themselves.
pub fn stages(
    job: &Job,
    machine: &Machine,
    lowered: &Lowered,
    split: &[SplitStage],
    overlapped: &Overlapped,
) -> Vec<PlanStage> {
    let mut stages = without_programs(job, machine, lowered, split);
    for (stage, programs) in stages.iter_mut().zip(&overlapped.stages) {
        stage.f = Some(programs.f);
        stage.b = Some(programs.b);
        stage.i = Some(programs.i);
        stage.w = Some(programs.w);
    }
    stages
}

/// The stages of a plan whose programs are not made yet.
///
/// A second copy of the embedding is counted where an MTP module (which embeds the next token) or a tied head stands on
/// ranks that do not hold the embedding; its gradient's exchange is part of the stage's reduction.
pub fn without_programs(job: &Job, machine: &Machine, lowered: &Lowered, split: &[SplitStage]) -> Vec<PlanStage> {
    let precision = &job.model.precision;
    lowered
        .stages
        .iter()
        .zip(split)
        .enumerate()
        .map(|(number, (stage, split))| {
            let shared = (split.parameters.shared + copied_embedding(job, lowered, number))
                .saturating_sub(shared_embedding(job, &stage.units));
            let groups = Groups::new(job, machine, &lowered.layout.holders(number as u32));
            let sharded = job.training.sharded_optimizer;
            let shares = [(shared, groups.shared), (split.parameters.expert, groups.expert)];
            let owned: u64 = shares
                .iter()
                .map(|(parameters, replicas)| match sharded {
                    true => parameters.div_ceil(replicas.all()),
                    false => *parameters,
                })
                .sum();
            let parameters = shared + split.parameters.expert;
            let state = precision.master.bytes(1) + 2 * precision.moments.bytes(1);
            let chunk = &split.chunk;
            PlanStage {
                units: stage.units.clone(),
                recompute: stage.recompute,
                parameters: Bytes(precision.weights.bytes(parameters)),
                gradients: Bytes(precision.gradients.bytes(parameters)),
                optimizer: Bytes(owned.saturating_mul(state)),
                held: chunk.held.clone(),
                input: chunk.input,
                output: chunk.output,
                exchange_buffer: chunk.exchange_buffer,
                reduce: exchange(&shares, |values| precision.gradients.bytes(values), !sharded),
                update: update(job, owned, state),
                gather: match sharded {
                    true => exchange(&shares, |values| precision.weights.bytes(values), false),
                    false => Work::over_nvlink(Bytes::ZERO),
                },
                f: None,
                b: None,
                i: None,
                w: None,
            }
        })
        .collect()
}

/// Parameters of the embedding's second copy on a stage; see [`stages`].
fn copied_embedding(job: &Job, lowered: &Lowered, number: usize) -> u64 {
    let layout = &lowered.layout;
    let units = &lowered.stages[number].units;
    let has_mtp = units.iter().any(|unit| matches!(unit, Unit::Mtp(_)));
    let with_embedding = layout.holders(number as u32).iter().all(|&rank| layout.stages_of(rank).contains(&0));
    // A tied head's matrix is counted with the head, and serves a module beside it too.
    let has_table = job.model.tied_embedding && units.contains(&Unit::Head);
    if has_mtp && !with_embedding && !has_table { embedding_parameters(job) } else { 0 }
}

/// Parameters of a tied head's matrix on the stage of the embedding itself, where they are counted already. On another
/// stage of the same rank they are a copy, so that each stage's gradients are complete by themselves.
fn shared_embedding(job: &Job, units: &[Unit]) -> u64 {
    let both = units.contains(&Unit::Embedding) && units.contains(&Unit::Head);
    if job.model.tied_embedding && both { embedding_parameters(job) } else { 0 }
}

/// The GPUs that hold the same parameters.
#[derive(Clone, Copy)]
struct Replicas {
    /// Of them on one node.
    local: u64,
    /// Nodes (and pipeline ranks) that they are spread over.
    groups: u64,
    /// Of what a GPU sends to other nodes, the part that leaves its pod.
    crossing: f64,
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
    /// peers; nodes are filled in that order. `holders`: the pipeline ranks that hold the stage, one or two.
    fn new(job: &Job, machine: &Machine, holders: &[u32]) -> Self {
        let training = &job.training;
        let (dp, tp, ep) = (u64::from(training.dp), u64::from(training.tp), u64::from(training.ep));
        let node = u64::from(job.cluster.gpus_per_node);
        let copies = holders.len() as u64;
        let same_node = match holders {
            [a, b] => machine.ranks_share_node(dp * tp, *a, *b),
            _ => true,
        };
        let spread = |all: u64, apart: u64| {
            // `apart`: distance between two GPUs with the same parameters.
            let local = (node / apart).clamp(1, all);
            let crossing = match (machine.pods, holders.first(), holders.last()) {
                (Some(pods), Some(&one), Some(&other)) => {
                    rings_crossing(pods.gpus, dp * tp, apart.max(node), (one, other))
                }
                _ => 0.0,
            };
            match same_node {
                // One rank; or two on one node, so each is within it.
                true => Replicas { local: local * copies, groups: all.div_ceil(local), crossing },
                false => Replicas { local, groups: all.div_ceil(local) * copies, crossing },
            }
        };
        Self { shared: spread(dp, tp), expert: spread((dp * tp / ep).max(1), ep) }
    }
}

/// Bytes that one GPU sends to reduce-scatter (or, twice that, all-reduce; or gather) parameters over their replicas:
/// first within a node over NVLink, then the node's share over the network, around rings of GPUs that have the same place in their nodes.
fn exchange(shares: &[(u64, Replicas)], bytes: impl Fn(u64) -> u64, twice: bool) -> Work {
    let (mut nvlink, mut network, mut uplink) = (Bytes::ZERO, Bytes::ZERO, Bytes::ZERO);
    let times = if twice { 2 } else { 1 };
    for &(parameters, replicas) in shares {
        let Replicas { local, groups, crossing } = replicas;
        nvlink += Bytes(bytes(parameters) / local * (local - 1) * times);
        let to_nodes = Bytes(bytes(parameters.div_ceil(local)) / groups * (groups - 1) * times);
        network += to_nodes;
        uplink += part(to_nodes, crossing);
    }
    Work::Exchange { nvlink, network, uplink }
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
