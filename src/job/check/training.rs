//! Rules about the training run, which all concern the model and the cluster too.

use super::bounds::{count, measure, nearest, suggest};
use crate::error::{Error, Result};
use crate::ir::Placement;
use crate::job::model::{Attention, Dtype};
use crate::job::training::Training;
use crate::job::{Cluster, Job, Model};

/// Most pipeline ranks.
const MOST_RANKS: u64 = 4096;
/// Most chunks of one direction of a step: stages or ranks × micro-batches.
const MOST_CHUNKS: u64 = 1 << 22;
/// Most tokens of a micro-batch.
const MOST_TOKENS: u64 = 1 << 24;
/// Most FLOPs of a micro-batch, forward and backward, over the whole model: an eighth of what 63 bits hold.
const MOST_FLOPS: f64 = (1_u64 << 60) as f64;

/// GPUs that the run uses.
pub(super) fn gpus(training: &Training) -> u64 {
    u64::from(training.pp).saturating_mul(u64::from(training.dp)).saturating_mul(u64::from(training.tp))
}

/// Checks every rule about the training run of a job whose model and cluster are checked.
pub(super) fn check(job: &Job) -> Result<()> {
    let Job { model, cluster, training } = job;
    counts(training)?;
    schedule(training)?;
    stages(training, model)?;
    tensor_parallel(training, model, cluster)?;
    gpu_count(training, cluster)?;
    expert_parallel(training, model)?;
    imbalance(training, model)?;
    resources(training, cluster)?;
    precision(model, cluster)?;
    arithmetic(training, model)
}

fn counts(training: &Training) -> Result<()> {
    count("training.pp", training.pp.into(), 1, MOST_RANKS)?;
    count("training.tp", training.tp.into(), 1, 1024)?;
    count("training.dp", training.dp.into(), 1, 1 << 20)?;
    count("training.ep", training.ep.into(), 1, 1 << 16)?;
    count("training.micro_batches", training.micro_batches.into(), 1, 1 << 20)?;
    count("training.micro_batch_size", training.micro_batch_size.into(), 1, 1 << 16)?;
    count("training.sequence", training.sequence.into(), 1, MOST_TOKENS)?;
    let tokens = training.micro_batch_tokens();
    if tokens > MOST_TOKENS {
        return Err(Error::new(format!("a micro-batch has {tokens} tokens (micro_batch_size × sequence)"))
            .help(format!("at most {MOST_TOKENS} are allowed: make `micro_batch_size` smaller"))
            .field("training.micro_batch_size"));
    }
    Ok(())
}

fn schedule(training: &Training) -> Result<()> {
    let (kind, own) = (training.schedule, training.schedule.placement());
    match (training.placement, own) {
        (Some(placement), Some(own)) if placement != own => {
            return Err(Error::new(format!("{kind} lays its stages {own}, not {placement}"))
                .help("remove `placement`: the schedule sets it")
                .field("training.placement"));
        }
        _ => {}
    }
    match training.stages_per_rank {
        Some(_) if !matches!(training.placement(), Some(Placement::Loop) | None) => {
            return Err(Error::new(format!("{kind} sets itself how many stages a rank holds"))
                .help("remove `stages_per_rank`, or choose the interleaved schedule")
                .field("training.stages_per_rank"));
        }
        Some(stages) => count("training.stages_per_rank", stages.into(), 1, MOST_RANKS)?,
        None => {}
    }
    Ok(())
}

/// Every stage needs something to do, and the timetable must stay of a size that can be handled.
fn stages(training: &Training, model: &Model) -> Result<()> {
    let per_rank = u64::from(training.stages_per_rank());
    let stages = u64::from(training.pp) * per_rank;
    // Embedding, layers, head, and MTP modules.
    let units = u64::from(model.layers) + 2 + u64::from(model.mtp_layers);
    if stages > units {
        return Err(Error::new(format!(
            "the pipeline has {stages} stages, but the model can be cut into at most {units} (layers, embedding, head, MTP)"
        ))
        .help(match units / per_rank {
            0 => "make `stages_per_rank` smaller".to_owned(),
            most => format!("{} holds {per_rank} a rank: make `pp` at most {most}", training.schedule),
        })
        .field("training.pp"));
    }
    let chunks = stages * u64::from(training.micro_batches);
    if chunks > MOST_CHUNKS {
        return Err(Error::new(format!("a step has {chunks} chunks (stages × micro-batches)"))
            .help(format!("at most {MOST_CHUNKS} are allowed: make `micro_batches` at most {}", MOST_CHUNKS / stages))
            .field("training.micro_batches"));
    }
    Ok(())
}

/// tp must divide everything that it shards, and a tp group must lie within a node.
fn tensor_parallel(training: &Training, model: &Model, cluster: &Cluster) -> Result<()> {
    let tp = u64::from(training.tp);
    let per_node = u64::from(cluster.gpus_per_node);
    let Some(broken) = sharding_fault(tp, training, model, per_node) else {
        return Ok(());
    };
    let fits = nearest(tp, per_node, |n| sharding_fault(n, training, model, per_node).is_none());
    Err(Error::new(format!("tp {tp} {broken}")).help(suggest("tp", fits)).field("training.tp"))
}

/// What is wrong with a tp, if something is.
fn sharding_fault(tp: u64, training: &Training, model: &Model, per_node: u64) -> Option<String> {
    let heads = match &model.attention {
        Attention::Mha(heads) | Attention::Gqa(heads) => heads.heads,
        Attention::Mla(mla) => mla.heads,
    };
    let shared = model.moe.as_ref().map_or(0, |moe| moe.shared_width);
    let sharded = [
        (per_node, "GPUs of a node"),
        (u64::from(heads), "attention heads"),
        (u64::from(model.dense_width.unwrap_or(0)), "columns of `dense_width`"),
        (u64::from(shared), "columns of `shared_width`"),
        (u64::from(model.vocabulary), "rows of the vocabulary"),
        (u64::from(training.sequence), "tokens of a sequence"),
    ];
    if tp > per_node {
        return Some(format!("is more than the {per_node} GPUs of a node"));
    }
    if let Some((whole, what)) = sharded.iter().find(|(whole, _)| !whole.is_multiple_of(tp)) {
        return Some(format!("does not divide the {whole} {what}"));
    }
    match &model.attention {
        Attention::Gqa(heads) => {
            // With more GPUs than key/value heads, each head is held by several.
            let kv = u64::from(heads.kv_heads());
            let fits = kv.is_multiple_of(tp) || tp.is_multiple_of(kv);
            (!fits).then(|| format!("neither divides the {kv} key/value heads nor is a multiple of them"))
        }
        _ => None,
    }
}

fn gpu_count(training: &Training, cluster: &Cluster) -> Result<()> {
    let (used, all) = (gpus(training), cluster.gpus());
    if used <= all {
        return Ok(());
    }
    let (pp, dp, tp) = (training.pp, training.dp, training.tp);
    let replica = u64::from(pp) * u64::from(tp);
    let error = Error::new(format!("pp {pp} × dp {dp} × tp {tp} is {used} GPUs, but the cluster has {all}"));
    Err(match all / replica {
        0 => error.help(format!("one replica alone takes {replica}: make `pp` or `tp` smaller")).field("training.pp"),
        most => error.help(format!("make `dp` at most {most}, or add nodes")).field("training.dp"),
    })
}

fn expert_parallel(training: &Training, model: &Model) -> Result<()> {
    let ep = u64::from(training.ep);
    let field = "training.ep";
    let Some(moe) = &model.moe else {
        if ep == 1 {
            return Ok(());
        }
        return Err(Error::new(format!("ep is {ep}, but the model has no experts")).help("remove `ep`").field(field));
    };
    let experts = u64::from(moe.experts);
    let peers = u64::from(training.dp) * u64::from(training.tp);
    let fits = |n: u64| experts.is_multiple_of(n) && peers.is_multiple_of(n);
    if fits(ep) {
        return Ok(());
    }
    let error = if experts.is_multiple_of(ep) {
        Error::new(format!("ep {ep} does not divide dp {} × tp {}", training.dp, training.tp))
    } else {
        Error::new(format!("ep {ep} does not divide the {experts} experts"))
    };
    Err(error.help(suggest("ep", nearest(ep, experts.min(peers), fits))).field(field))
}

/// No GPU can get more tokens than there are.
fn imbalance(training: &Training, model: &Model) -> Result<()> {
    let (factor, field) = (training.imbalance, "training.imbalance");
    let most = model.moe.as_ref().map_or(1.0, |moe| moe.most_imbalance(training.ep));
    if (1.0..=most).contains(&factor) {
        return Ok(());
    }
    let error = Error::new(format!("`imbalance` is {factor}, out of range")).field(field);
    Err(match (&model.moe, training.ep) {
        (None, _) => error.help("remove `imbalance`: the model has no experts"),
        (_, 1) => error.help("remove `imbalance`, or make `ep` more than 1: one GPU has all experts"),
        (_, ep) => {
            error.help(format!("give a number from 1, even loads, to {most}: one of {ep} GPUs gets all that it can"))
        }
    })
}

fn resources(training: &Training, cluster: &Cluster) -> Result<()> {
    let all = u64::from(cluster.gpu.sms);
    let fits = |n: u64| n >= 2 && n.is_multiple_of(2) && n < all;
    if let Some(sms) = training.communication_sms.fixed().map(u64::from).filter(|&sms| !fits(sms)) {
        let why = if sms < 2 {
            "dispatch and combine need at least 2".to_owned()
        } else if sms >= all {
            format!("the GPU has {all}, and computation needs some")
        } else {
            "they are used in pairs".to_owned()
        };
        return Err(Error::new(format!("`communication_sms` is {sms}: {why}"))
            .help(suggest("communication_sms", nearest(sms, all - 1, fits)))
            .field("training.communication_sms"));
    }
    if let Some(limit) = training.memory_limit_gb {
        measure("training.memory_limit_gb", limit, 0.001, cluster.gpu.memory_gb, "GB (the GPU's memory)")?;
    }
    Ok(())
}

/// FP8 in a model needs a GPU that has it.
fn precision(model: &Model, cluster: &Cluster) -> Result<()> {
    if cluster.gpu.fp8_tflops.is_some() {
        return Ok(());
    }
    let own = &model.precision;
    let formats = [
        ("products", own.products),
        ("embedding", own.embedding),
        ("head", own.head),
        ("router", own.router),
        ("attention_core", own.attention_core),
        ("dispatch", own.dispatch),
        ("combine", own.combine),
        ("weights", own.weights),
        ("master", own.master),
        ("gradients", own.gradients),
        ("moments", own.moments),
    ];
    let fp8: Vec<&str> = formats.iter().filter(|(_, dtype)| *dtype == Dtype::Fp8).map(|(name, _)| *name).collect();
    let Some(first) = fp8.first() else {
        return Ok(());
    };
    let instead: Vec<String> = fp8.iter().map(|name| format!("{name}: Bf16")).collect();
    let verb = if fp8.len() == 1 { "is" } else { "are" };
    Err(Error::new(format!(
        "{} {verb} in FP8, but the {} has none (no `fp8_tflops`)",
        fp8.join(" and "),
        cluster.gpu.name
    ))
    .help(format!(
        "add `precision: ({})` to the model (an imported one: `hf(config: \"..\", precision: ..)`), or give the GPU's \
                 `fp8_tflops`",
        instead.join(", ")
    ))
    .field(format!("model.precision.{first}")))
}

/// The work of a micro-batch must be countable: an estimate from above.
fn arithmetic(training: &Training, model: &Model) -> Result<()> {
    let hidden = f64::from(model.hidden);
    let (projections, scores) = match &model.attention {
        Attention::Mha(heads) | Attention::Gqa(heads) => {
            let width = f64::from(heads.heads) * f64::from(heads.head_dim);
            (4.0 * hidden * width, 2.0 * width)
        }
        Attention::Mla(mla) => {
            let rank = f64::from(mla.q_rank.unwrap_or(0)) + f64::from(mla.kv_rank);
            let head = f64::from(mla.nope_dim) + f64::from(mla.rope_dim) + f64::from(mla.value_dim);
            let width = f64::from(mla.heads) * head;
            (2.0 * (hidden + rank) * (width + rank), width)
        }
    };
    let moe = model.moe.as_ref().map_or(0.0, |moe| {
        let routed = f64::from(moe.top_k) * f64::from(moe.width) * training.imbalance;
        let width = routed + f64::from(moe.shared_width);
        hidden * (3.0 * width + f64::from(moe.experts))
    });
    let mlp = moe.max(3.0 * hidden * f64::from(model.dense_width.unwrap_or(0)));
    let modules = f64::from(model.mtp_layers);
    let head = hidden * f64::from(model.vocabulary) * (1.0 + modules);
    let layers = f64::from(model.layers) + modules;
    let token = layers * (projections + mlp + scores * f64::from(training.sequence)) + head;
    // A multiply-add is two FLOPs, the backward pass twice the forward, recomputation at most once the forward again.
    let flops = 8.0 * token * training.micro_batch_tokens() as f64;
    if flops > MOST_FLOPS {
        return Err(Error::new(format!("a micro-batch would take {flops:.1e} FLOPs, more than can be counted"))
            .help(format!("at most {MOST_FLOPS:.1e} are allowed: make `sequence` or `micro_batch_size` smaller"))
            .field("training.sequence"));
    }
    Ok(())
}
