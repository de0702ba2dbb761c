//! A timetable as a chart, and as an object.

use serde::Serialize;

use super::costs::HALVES;
use super::{Answer, Args};
use crate::cli::output;
use crate::error::{Error, Result};
use crate::passes::pipeline::{Replay, replay};
use crate::units::Nanos;
use crate::view::chart::{Bar, Row, render_on};

/// Width of a chart that no terminal limits.
const PIPED_WIDTH: usize = 100;

/// Title, chart, and the numbers under it.
pub fn chart(args: &Args, answer: &Answer) -> Result<String> {
    let layout = &answer.problem.layout;
    let replay = replay(&answer.problem, &answer.timetable)?;
    let rows: Vec<Row> = (0..)
        .zip(answer.timetable.ranks.iter().zip(&replay.spans))
        .map(|(rank, (actions, spans))| Row {
            label: format!("rank {rank}"),
            bars: actions
                .iter()
                .zip(spans)
                .map(|(&action, span)| Bar::new(layout, rank, action, span.start, span.end))
                .collect(),
        })
        .collect();
    let width = output::terminal_width().unwrap_or(PIPED_WIDTH);
    let chart = render_on(&rows, replay.makespan, width, answer.axis);
    let kind = match answer.origin {
        Some(_) => format!("{} · {}", args.kind.name(), layout.placement),
        None => args.kind.name().to_owned(),
    };
    let title = format!("{kind} · {} ranks · {} micro-batches", args.pp, args.micro_batches);
    Ok(format!("{title}\n\n{chart}\n{}\n", summary(answer, &replay)))
}

/// The numbers that go under a chart.
fn summary(answer: &Answer, replay: &Replay) -> String {
    let bound = answer.bound;
    let bubble = replay.bubble_per_rank().into_iter().max().unwrap_or(Nanos::ZERO);
    let peak = replay.peak_activations_per_rank().iter().max().copied().unwrap_or(0);
    format!(
        "makespan {} · lower bound {} (gap {:.1} %) · largest bubble {} ({:.1} %) · peak activations {peak}",
        answer.axis.number(replay.makespan),
        answer.axis.number(bound),
        100.0 * gap(replay.makespan, bound),
        answer.axis.number(bubble),
        100.0 * bubble.as_f64() / replay.makespan.as_f64(),
    )
}

fn gap(makespan: Nanos, bound: Nanos) -> f64 {
    makespan.as_f64() / bound.as_f64() - 1.0
}

/// The object that `--format json` prints. Times are in the user's unit.
#[derive(Serialize)]
struct Report {
    kind: &'static str,
    placement: String,
    pp: u32,
    /// Stages that each rank holds, for one direction.
    stages_per_rank: u32,
    micro_batches: u32,
    /// Of `auto`: the published schedule, or the part of the search, that the timetable comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'static str>,
    makespan: serde_json::Number,
    longest_span: serde_json::Number,
    bubble_per_rank: Vec<serde_json::Number>,
    peak_activations_per_rank: Vec<u32>,
    /// With --memory: what is held as it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_per_rank: Option<Vec<f64>>,
    /// What --memory allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_per_rank: Option<Vec<f64>>,
    lower_bound: serde_json::Number,
    /// makespan / lower_bound - 1.
    gap: f64,
    /// Per rank, local tokens.
    actions: Vec<Vec<String>>,
}

/// The object, on one line.
pub fn json(args: &Args, answer: &Answer) -> Result<String> {
    let Answer { problem, timetable, origin, bound, axis, parts } = answer;
    let (bound, parts) = (*bound, *parts);
    let replay = replay(problem, timetable)?;
    let number = |time: Nanos| axis.json(time);
    let tokens =
        |(rank, actions): (u32, &Vec<_>)| actions.iter().map(|&action| timetable.local_token(rank, action)).collect();
    let report = Report {
        kind: args.kind.name(),
        placement: problem.layout.placement.to_string(),
        pp: args.pp,
        stages_per_rank: problem.layout.stages / problem.layout.ranks,
        micro_batches: args.micro_batches,
        origin: origin.map(|origin| origin.name()),
        makespan: number(replay.makespan),
        longest_span: number(replay.longest_span()),
        bubble_per_rank: replay.bubble_per_rank().into_iter().map(number).collect(),
        peak_activations_per_rank: replay.peak_activations_per_rank().to_vec(),
        peak_memory_per_rank: problem.memory.as_ref().map(|memory| {
            let peak = |actions: &Vec<_>| activations(memory.peak(actions), parts);
            timetable.ranks.iter().map(peak).collect()
        }),
        memory_per_rank: problem
            .memory
            .as_ref()
            .map(|memory| memory.limits.iter().map(|&limit| activations(limit, parts)).collect()),
        lower_bound: number(bound),
        gap: gap(replay.makespan, bound),
        actions: (0..).zip(&timetable.ranks).map(tokens).collect(),
    };
    let text = serde_json::to_string(&report).map_err(|error| Error::new(format!("no JSON can be made: {error}")))?;
    Ok(text + "\n")
}

/// Activations as --memory counts them, of stages of which `parts` make one that was given a cost.
fn activations(halves: u64, parts: u32) -> f64 {
    halves as f64 / (HALVES as f64 * f64::from(parts))
}
