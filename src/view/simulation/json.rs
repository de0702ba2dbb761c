//! The JSON of `dualweave simulate --json`. Keys come in the order of the fields here; times are nanoseconds, memory is
//! bytes, shares go from 0 to 1.

use serde::Serialize;

use super::Simulated;
use crate::ir::{Phase, ProgramKind};
use crate::sim::jitter::Disturbed;
use crate::sim::memory::Need;
use crate::sim::{Activity, Cause, Rates, Reason, Relief};

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    cluster: &'a str,
    schedule: &'a str,
    gpus: u64,
    micro_batches: u32,
    tokens_per_step: u64,
    step_ns: u64,
    pipeline_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    disturbed: Option<DisturbedJson>,
    timetable_makespan_ns: u64,
    timetable_lower_bound_ns: u64,
    tokens_per_s: Option<f64>,
    tokens_per_s_per_gpu: Option<f64>,
    mfu: Option<f64>,
    mfu_peak_flop_per_s: f64,
    gpu_hours_per_trillion_tokens: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usd_per_trillion_tokens: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mwh_per_trillion_tokens: Option<f64>,
    busy_share: Option<f64>,
    exposed_share: Option<f64>,
    bubble_share: Option<f64>,
    memory_limit_bytes: u64,
    fits: bool,
    fullest_rank: usize,
    programs: Vec<Program>,
    ranks: Vec<Rank>,
}

/// Disturbed steps.
#[derive(Serialize)]
pub(crate) struct DisturbedJson {
    samples: u32,
    seed: u64,
    mean_ns: u64,
    deviation_ns: u64,
    median_ns: u64,
    p95_ns: u64,
    p99_ns: u64,
    slowdown_share: f64,
    pipelines: u64,
    peers: u64,
    drawn: u64,
}

impl DisturbedJson {
    pub(crate) fn new(of: &Disturbed) -> Self {
        Self {
            samples: of.samples,
            seed: of.seed,
            mean_ns: of.mean.0,
            deviation_ns: of.deviation.0,
            median_ns: of.median.0,
            p95_ns: of.p95.0,
            p99_ns: of.p99.0,
            slowdown_share: of.slowdown(of.mean),
            pipelines: of.pipelines,
            peers: of.peers,
            drawn: of.drawn,
        }
    }
}

#[derive(Serialize)]
struct Program {
    kind: ProgramKind,
    total_ns: u64,
    busy_ns: u64,
    communication_ns: u64,
    exposed_ns: u64,
    ops: Vec<Op>,
}

#[derive(Serialize)]
struct Op {
    component: crate::ir::Component,
    phase: Phase,
    unit: u32,
    sms: u32,
    start_ns: u64,
    end_ns: u64,
}

#[derive(Serialize)]
struct Rank {
    rank: usize,
    stages: Vec<u32>,
    start_ns: u64,
    end_ns: u64,
    busy_ns: u64,
    communication_ns: u64,
    exposed_ns: u64,
    bubble_ns: u64,
    waits: Vec<Wait>,
    memory: Memory,
    items: Vec<Item>,
}

#[derive(Serialize)]
struct Wait {
    ns: u64,
    /// `item`, `transfers` or `end`; the keys that follow are those of an item.
    cause: &'static str,
    rank: Option<u32>,
    activity: Option<&'static str>,
    stages: Vec<u32>,
    reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Memory {
    peak_bytes: u64,
    peak_at_ns: u64,
    peak_item: Option<u32>,
    peak_kinds: Vec<Kind>,
    chunks_held: u32,
    need_bytes: u64,
    need: NeedJson,
    relief: Option<ReliefJson>,
}

#[derive(Serialize)]
struct Kind {
    kind: String,
    bytes: u64,
}

#[derive(Serialize)]
struct NeedJson {
    state_bytes: u64,
    arena_bytes: u64,
    arena_live_bytes: u64,
    arena_fragmentation_share: f64,
    activations_bytes: u64,
    messages_bytes: u64,
    exchange_bytes: u64,
}

#[derive(Serialize)]
struct ReliefJson {
    over_bytes: u64,
    over_at_peak_bytes: u64,
    chunks_held: Option<u32>,
    chunks_that_fit: Option<u64>,
    shrink: Vec<Shrink>,
}

#[derive(Serialize)]
struct Shrink {
    kind: String,
    by: f64,
}

#[derive(Serialize)]
struct Item {
    task: String,
    start_ns: u64,
    end_ns: u64,
}

/// All that was found, on one line; of one rank only, where one is named.
pub fn to_json(simulated: &Simulated, only: Option<usize>) -> serde_json::Result<String> {
    let Simulated { plan, simulation, memory, prices, disturbed } = simulated;
    let rates = Rates::new(plan, simulation);
    let report = Report {
        model: &plan.model.name,
        cluster: &plan.origin.cluster,
        schedule: &plan.origin.schedule,
        gpus: plan.origin.gpus,
        micro_batches: plan.layout.micro_batches,
        tokens_per_step: plan.origin.tokens_per_step,
        step_ns: simulation.step.0,
        pipeline_ns: simulation.pipeline.0,
        disturbed: disturbed.map(DisturbedJson::new),
        timetable_makespan_ns: plan.timetable.makespan.0,
        timetable_lower_bound_ns: plan.timetable.lower_bound.0,
        tokens_per_s: rates.map(|rates| rates.tokens_s),
        tokens_per_s_per_gpu: rates.map(|rates| rates.tokens_s_gpu),
        mfu: rates.map(|rates| rates.mfu),
        mfu_peak_flop_per_s: plan.machine.bf16_flop_s,
        gpu_hours_per_trillion_tokens: rates.map(|rates| rates.gpu_hours_per_trillion_tokens),
        usd_per_trillion_tokens: rates.and_then(|rates| prices.usd(rates.gpu_hours_per_trillion_tokens)),
        mwh_per_trillion_tokens: rates.and_then(|rates| prices.mwh(rates.gpu_hours_per_trillion_tokens)),
        busy_share: simulated.share(|rank| rank.busy),
        exposed_share: simulated.share(|rank| rank.exposed),
        bubble_share: simulated.share(|rank| rank.bubble),
        memory_limit_bytes: plan.machine.memory.0,
        fits: memory.iter().all(|rank| rank.need.total() <= plan.machine.memory),
        fullest_rank: simulated.fullest(),
        programs: (0..plan.programs.len()).map(|program| program_json(simulated, program)).collect(),
        ranks: (0..plan.ranks.len())
            .filter(|&rank| only.is_none_or(|only| only == rank))
            .map(|rank| rank_json(simulated, rank))
            .collect(),
    };
    serde_json::to_string(&report)
}

fn program_json(simulated: &Simulated, number: usize) -> Program {
    let (program, timing) = (&simulated.plan.programs[number], &simulated.simulation.programs[number]);
    let ops = program.ops.iter().zip(&timing.ops).map(|(op, span)| Op {
        component: op.component,
        phase: op.phase,
        unit: op.unit,
        sms: op.sms,
        start_ns: span.start.0,
        end_ns: span.end.0,
    });
    Program {
        kind: program.kind,
        total_ns: timing.total.0,
        busy_ns: timing.busy.0,
        communication_ns: timing.communication.0,
        exposed_ns: timing.exposed.0,
        ops: ops.collect(),
    }
}

fn rank_json(simulated: &Simulated, rank: usize) -> Rank {
    let timing = &simulated.simulation.ranks[rank];
    let items = simulated.plan.ranks[rank].items.iter().zip(&timing.items);
    Rank {
        rank,
        stages: simulated.plan.layout.stages_of(rank as u32),
        start_ns: timing.span.start.0,
        end_ns: timing.span.end.0,
        busy_ns: timing.busy.0,
        communication_ns: timing.communication.0,
        exposed_ns: timing.exposed.0,
        bubble_ns: timing.bubble.0,
        waits: timing.waits.iter().map(wait_json).collect(),
        memory: memory_json(simulated, rank),
        items: items
            .map(|(item, span)| Item { task: item.0.to_string(), start_ns: span.start.0, end_ns: span.end.0 })
            .collect(),
    }
}

fn wait_json(wait: &crate::sim::Wait) -> Wait {
    let other = |cause| Wait { ns: wait.time.0, cause, rank: None, activity: None, stages: vec![], reason: None };
    match wait.cause {
        Cause::End => other("end"),
        Cause::Transfers => other("transfers"),
        Cause::Item { rank, activity, reason } => {
            let (name, stages) = match activity {
                Activity::F(s) => ("F", vec![s]),
                Activity::B(s) => ("B", vec![s]),
                Activity::I(s) => ("I", vec![s]),
                Activity::W(s) => ("W", vec![s]),
                Activity::FB(f, b) => ("FB", vec![f, b]),
                Activity::Update(s) => ("Update", vec![s]),
            };
            let reason = match reason {
                Reason::Data => "data",
                Reason::Room => "room",
                Reason::Gradients => "gradients",
            };
            Wait { rank: Some(rank), activity: Some(name), stages, reason: Some(reason), ..other("item") }
        }
    }
}

fn memory_json(simulated: &Simulated, rank: usize) -> Memory {
    let memory = &simulated.memory[rank];
    let Need { state, arena, activations, messages, exchange } = memory.need;
    Memory {
        peak_bytes: memory.peak.0,
        peak_at_ns: memory.at.0,
        peak_item: memory.item,
        peak_kinds: memory.kinds.iter().map(|(kind, bytes)| Kind { kind: kind.to_string(), bytes: bytes.0 }).collect(),
        chunks_held: memory.chunks,
        need_bytes: memory.need.total().0,
        need: NeedJson {
            state_bytes: state.0,
            arena_bytes: arena.0,
            arena_live_bytes: memory.need.live().0,
            arena_fragmentation_share: memory.need.fragmentation(),
            activations_bytes: activations.0,
            messages_bytes: messages.0,
            exchange_bytes: exchange.0,
        },
        relief: Relief::new(memory, simulated.plan.machine.memory).map(|relief| ReliefJson {
            over_bytes: relief.over.0,
            over_at_peak_bytes: relief.over_at_peak.0,
            chunks_held: relief.chunks.map(|(held, _)| held),
            chunks_that_fit: relief.chunks.map(|(_, fit)| fit),
            shrink: relief.kinds.iter().map(|(kind, by)| Shrink { kind: kind.to_string(), by: *by }).collect(),
        }),
    }
}
