//! The JSON of `dualweave search`. Times are nanoseconds, memory is bytes, shares go from 0 to 1.

use serde::Serialize;

use super::{Besides, hours, rate};
use crate::job::Job;
use crate::passes::search::what_if::{Change, WhatIf};
use crate::passes::search::{Configuration, Decision, Found, Neighbour, Reason, Row};
use crate::sim::Prices;
use crate::view::simulation::DisturbedJson;

#[derive(Serialize)]
pub struct Report {
    model: String,
    cluster: String,
    gpus: u64,
    memory_limit_bytes: u64,
    tokens_per_step: u64,
    configurations: u64,
    looked_at: u64,
    compiled: u64,
    compiled_in_full: u64,
    bound_ns: u64,
    given: RowReport,
    front: Vec<RowReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    neighbours: Vec<NeighbourReport>,
}

#[derive(Serialize)]
struct RowReport {
    step_ns: u64,
    memory_bytes: u64,
    headroom_bytes: u64,
    bound_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disturbed: Option<DisturbedJson>,
    tokens_per_s_per_gpu: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    usd_per_trillion_tokens: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mwh_per_trillion_tokens: Option<f64>,
    configuration: ConfigurationReport,
}

#[derive(Serialize)]
struct ConfigurationReport {
    gpus: u64,
    pp: u32,
    ep: u32,
    dp: u32,
    tp: u32,
    micro_batch_size: u32,
    micro_batches: u32,
    schedule: &'static str,
    stages_per_rank: Option<u32>,
    recompute: Vec<&'static str>,
    dispatch: &'static str,
    combine: &'static str,
    communication_sms: u32,
}

#[derive(Serialize)]
struct NeighbourReport {
    decision: &'static str,
    to: String,
    /// `invalid`, `memory`, `bound`, `plan_memory`, `plan`, `full_plan` or `near`.
    reason: &'static str,
    /// By how much; of `near`, how much faster layers in their plain form are.
    #[serde(skip_serializing_if = "Option::is_none")]
    ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

pub(super) fn of_search(found: &Found, Besides { prices, disturbed }: &Besides) -> Report {
    let training = &found.job.training;
    let mut disturbed = disturbed.iter();
    let mut row = |of: &Row, gpus: u64| {
        let rate = rate(training.step_tokens(), of.outcome.step, gpus);
        RowReport {
            step_ns: of.outcome.step.0,
            memory_bytes: of.outcome.need.0,
            headroom_bytes: found.memory.saturating_sub(of.outcome.need).0,
            bound_ns: of.bound.map(|bound| bound.0),
            disturbed: disturbed.next().map(DisturbedJson::new),
            tokens_per_s_per_gpu: rate,
            usd_per_trillion_tokens: prices.usd(hours(rate)),
            mwh_per_trillion_tokens: prices.mwh(hours(rate)),
            configuration: configuration(&of.configuration),
        }
    };
    Report {
        model: found.job.model.name.clone(),
        cluster: found.job.cluster.name.clone(),
        gpus: found.gpus,
        memory_limit_bytes: found.memory.0,
        tokens_per_step: training.step_tokens(),
        configurations: found.configurations,
        looked_at: found.looked_at,
        compiled: found.compiled,
        compiled_in_full: found.compiled_in_full,
        bound_ns: found.bound.0,
        given: row(&found.given, found.given.configuration.gpus()),
        front: found.front.iter().map(|of| row(of, found.gpus)).collect(),
        neighbours: found.neighbours.iter().map(neighbour).collect(),
    }
}

fn configuration(of: &Configuration) -> ConfigurationReport {
    ConfigurationReport {
        gpus: of.gpus(),
        pp: of.pp,
        ep: of.ep,
        dp: of.dp,
        tp: of.tp,
        micro_batch_size: of.micro_batch_size,
        micro_batches: of.micro_batches,
        schedule: of.schedule.name(),
        stages_per_rank: of.stages_per_rank,
        recompute: of.recompute.names().collect(),
        dispatch: crate::passes::search::configuration::dtype(of.dispatch),
        combine: crate::passes::search::configuration::dtype(of.combine),
        communication_sms: of.sms,
    }
}

fn neighbour(of: &Neighbour) -> NeighbourReport {
    let (reason, ns, bytes, why) = match &of.reason {
        Reason::Invalid(why) => ("invalid", None, None, Some(why.clone())),
        Reason::Memory(over) => ("memory", None, Some(over.0), None),
        Reason::Bound(over) => ("bound", Some(over.0), None, None),
        Reason::PlanMemory(over) => ("plan_memory", None, Some(over.0), None),
        Reason::Plan(over) => ("plan", Some(over.0), None, None),
        Reason::FullPlan(over) => ("full_plan", Some(over.0), None, None),
        Reason::Near(less) => ("near", Some(less.0), None, None),
    };
    let decision: Decision = of.decision;
    NeighbourReport { decision: decision.name(), to: of.configuration.said(decision), reason, ns, bytes, why }
}

#[derive(Serialize)]
pub struct Changes {
    model: String,
    cluster: String,
    given: ChangeReport,
    changes: Vec<ChangeReport>,
}

#[derive(Serialize)]
struct ChangeReport {
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    step_ns: Option<u64>,
    memory_bytes: Option<u64>,
    tokens_per_s_per_gpu: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usd_per_trillion_tokens: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mwh_per_trillion_tokens: Option<f64>,
}

pub fn of_changes(job: &Job, told: &WhatIf, prices: &Prices) -> Changes {
    let gpus = u64::from(job.training.pp) * u64::from(job.training.dp) * u64::from(job.training.tp);
    let report = |change: &Change| {
        let outcome = change.outcome.as_ref().ok();
        let rate = outcome.map(|outcome| rate(change.tokens, outcome.step, gpus));
        ChangeReport {
            what: change.what.clone(),
            refused: change.outcome.as_ref().err().cloned(),
            step_ns: outcome.map(|outcome| outcome.step.0),
            memory_bytes: outcome.map(|outcome| outcome.need.0),
            tokens_per_s_per_gpu: rate,
            usd_per_trillion_tokens: rate.and_then(|rate| prices.usd(hours(rate))),
            mwh_per_trillion_tokens: rate.and_then(|rate| prices.mwh(hours(rate))),
        }
    };
    Changes {
        model: job.model.name.clone(),
        cluster: job.cluster.name.clone(),
        given: report(&told.given),
        changes: super::text::ranked(told, gpus).into_iter().map(report).collect(),
    }
}
