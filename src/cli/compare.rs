//! `dualweave compare`: one job under every schedule, side by side.

use std::path::PathBuf;

use serde::Serialize;

use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::ir::Placement;
use crate::job::training::ScheduleKind;
use crate::job::{self, Job, Overrides};
use crate::passes;
use crate::sim::memory::memory;
use crate::sim::{Prices, Rates, simulate};
use crate::units::{Bytes, Nanos};
use crate::view::numbers::{count, grouped, percent, rate};
use crate::view::table;

/// Columns of a table that goes into a file or a pipe.
const PLAIN_WIDTH: usize = 140;

/// What the columns are, where their names do not say it, each line with the column that it is for.
const LEGEND: [(&str, &str); 6] = [
    (
        "step",
        "step, bubble and exposed communication: simulated; bubble and exposed in % of rank time, mean over ranks.",
    ),
    ("act", "act: chunks whose activations a rank holds at its peak, and their bytes; of the rank that holds most."),
    ("copies", "copies: of the parameters."),
    (
        "lost",
        "lost: share of the arena (memory but for parameters, gradients, optimizer) between its blocks, on the worst rank.",
    ),
    ("gap", "gap: of the timetable over what none with the same chunk programs and placement is below."),
    ("step", "◀: the fastest that fits."),
];

/// Arguments of `compare`.
#[derive(clap::Args)]
pub struct Args {
    /// The job: a RON file with model, cluster and training; its own schedule is one of those compared.
    job: PathBuf,
    /// Print both tables as JSON: nanoseconds, bytes, shares from 0 to 1.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    prices: Prices,
    #[command(flatten)]
    overrides: Overrides,
}

/// Compiles and simulates the job under each schedule: on equal devices (the job's pipeline ranks), and on equal stages (the
/// job's stages; schedules that hold two stages per rank then need half the ranks). The second is how DualPipe's authors
/// compare it with DualPipeV. `auto` chooses its stages itself, so it is in the first table only.
///
/// # Errors
/// If the job cannot be read or does not make sense. A schedule that cannot run it is a row that says why.
pub fn run(args: Args) -> Result<Verdict> {
    let loaded = job::load(&args.job, &args.overrides)?;
    for note in &loaded.notes {
        output::note(format!("note: {note}"));
    }
    let job = &loaded.job;
    let (ranks, stages) = (job.training.pp, job.training.stages());
    let row = |job: Result<Job>, kind| row(job, kind, &args.prices);
    let published = ScheduleKind::PUBLISHED.into_iter();
    let devices: Vec<Row> =
        published.chain([ScheduleKind::Auto]).map(|kind| row(variant(job, kind, Some(ranks)), kind)).collect();
    let same_stages = ScheduleKind::PUBLISHED.map(|kind| row(variant(job, kind, ranks_for(kind, stages, job)), kind));
    if args.json {
        output::print(&output::to_json(&Tables { equal_devices: &devices, equal_stages: &same_stages })?)?;
        return Ok(Verdict::Yes);
    }
    let width = output::terminal_width().unwrap_or(PLAIN_WIDTH);
    let ([devices, same_stages], left_out) = tables([&devices, &same_stages], width);
    let shown = LEGEND.iter().filter(|(column, _)| !left_out.contains(column));
    let mut legend: String = shown.map(|(_, line)| format!("{line}\n")).collect();
    if !left_out.is_empty() {
        legend += &format!("Left out for want of room: {}. `--json` has all.\n", left_out.join(", "));
    }
    output::print(&format!(
        "{} on {}, {}\n\nEqual devices: {}\n{devices}\nEqual stages: {}\n{same_stages}\n{legend}",
        job.model.name,
        job.cluster.name,
        count(job.training.micro_batches.into(), "micro-batch"),
        count(ranks.into(), "pipeline rank"),
        count(stages.into(), "stage"),
    ))?;
    Ok(Verdict::Yes)
}

/// Ranks that hold `stages` stages under `kind`, if they divide.
fn ranks_for(kind: ScheduleKind, stages: u32, job: &Job) -> Option<u32> {
    let per_rank = match kind.placement() {
        Some(Placement::Linear | Placement::Bidirectional) | None => 1,
        Some(Placement::V) => 2,
        Some(Placement::Loop) => job.training.stages_per_rank.unwrap_or(2),
    };
    stages.is_multiple_of(per_rank).then(|| stages / per_rank)
}

/// The job under another schedule. Fewer or more ranks occupy fewer or more GPUs; data parallelism stays.
fn variant(job: &Job, kind: ScheduleKind, ranks: Option<u32>) -> Result<Job> {
    let Some(ranks) = ranks else {
        return Err(Error::new(format!("{} stages cannot be spread evenly", job.training.stages())));
    };
    let mut job = job.clone();
    job.training.schedule = kind;
    job.training.placement = None;
    job.training.pp = ranks;
    if !matches!(kind, ScheduleKind::Interleaved) {
        job.training.stages_per_rank = None;
    }
    job.check()?;
    Ok(job)
}

#[derive(Serialize)]
struct Tables<'a> {
    equal_devices: &'a [Row],
    equal_stages: &'a [Row],
}

/// One schedule: what it gives, or why it cannot run.
#[derive(Serialize)]
struct Row {
    schedule: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Result(Numbers),
    Refused(String),
}

#[derive(Serialize)]
struct Numbers {
    ranks: u32,
    gpus: u64,
    step_ns: u64,
    timetable_makespan_ns: u64,
    timetable_lower_bound_ns: u64,
    placement: Placement,
    bubble_share: f64,
    exposed_communication_share: f64,
    peak_activation_chunks: u32,
    peak_activation_bytes: u64,
    parameter_copies: usize,
    peak_memory_bytes: u64,
    arena_bytes: u64,
    arena_fragmentation_share: f64,
    fits: bool,
    tokens_per_s_per_gpu: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usd_per_trillion_tokens: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mwh_per_trillion_tokens: Option<f64>,
}

fn row(job: Result<Job>, kind: ScheduleKind, prices: &Prices) -> Row {
    let outcome = match job.and_then(|job| numbers(&job, prices)) {
        Ok(numbers) => Outcome::Result(numbers),
        Err(error) => Outcome::Refused(match error.help_text() {
            Some(help) => format!("{error} ({help})"),
            None => error.to_string(),
        }),
    };
    Row { schedule: kind.name(), outcome }
}

fn numbers(job: &Job, prices: &Prices) -> Result<Numbers> {
    let plan = passes::compile(job)?.plan;
    let simulation = simulate(&plan)?;
    let memory = memory(&plan, &simulation);
    let ranks = simulation.ranks.len() as f64;
    let share = |times: Nanos| times.as_f64() / (simulation.step.as_f64() * ranks);
    let most = memory.iter().max_by_key(|rank| rank.activations());
    let rates = Rates::new(&plan, &simulation);
    let hours = rates.map(|rates| rates.gpu_hours_per_trillion_tokens);
    Ok(Numbers {
        ranks: plan.layout.ranks,
        gpus: plan.origin.gpus,
        step_ns: simulation.step.0,
        timetable_makespan_ns: plan.timetable.makespan.0,
        timetable_lower_bound_ns: plan.timetable.lower_bound.0,
        placement: plan.layout.placement,
        bubble_share: share(simulation.ranks.iter().map(|rank| rank.bubble).sum()),
        exposed_communication_share: share(simulation.ranks.iter().map(|rank| rank.exposed).sum()),
        peak_activation_chunks: most.map_or(0, |rank| rank.chunks),
        peak_activation_bytes: most.map_or(0, |rank| rank.activations().0),
        parameter_copies: plan.layout.holders(0).len(),
        peak_memory_bytes: memory.iter().map(|rank| rank.need.total()).max().unwrap_or_default().0,
        arena_bytes: memory.iter().map(|rank| rank.need.arena).max().unwrap_or_default().0,
        arena_fragmentation_share: memory.iter().map(|rank| rank.need.fragmentation()).fold(0.0, f64::max),
        fits: memory.iter().all(|rank| rank.need.total() <= plan.machine.memory),
        tokens_per_s_per_gpu: rates.map(|rates| rates.tokens_s_gpu),
        usd_per_trillion_tokens: hours.and_then(|hours| prices.usd(hours)),
        mwh_per_trillion_tokens: hours.and_then(|hours| prices.mwh(hours)),
    })
}

/// A column of the tables: its name, and what it shows of a result.
type Column = (&'static str, fn(&Numbers) -> String);

const COLUMNS: [Column; 14] = [
    ("stages", |numbers| numbers.placement.to_string()),
    ("ranks", |numbers| numbers.ranks.to_string()),
    ("GPUs", |numbers| grouped(numbers.gpus)),
    ("step", |numbers| Nanos(numbers.step_ns).to_string()),
    ("gap", |numbers| percent(gap(numbers), 1.0)),
    ("bubble", |numbers| percent(numbers.bubble_share, 1.0)),
    ("exposed", |numbers| percent(numbers.exposed_communication_share, 1.0)),
    ("act", |numbers| format!("{} = {}", numbers.peak_activation_chunks, Bytes(numbers.peak_activation_bytes))),
    ("copies", |numbers| numbers.parameter_copies.to_string()),
    ("lost", |numbers| percent(numbers.arena_fragmentation_share, 1.0)),
    ("memory", |numbers| Bytes(numbers.peak_memory_bytes).to_string()),
    ("fits", |numbers| if numbers.fits { "yes".to_owned() } else { "no".to_owned() }),
    (USD, |numbers| numbers.usd_per_trillion_tokens.map_or_else(String::new, rate)),
    (MWH, |numbers| numbers.mwh_per_trillion_tokens.map_or_else(String::new, rate)),
];

/// Columns that are there if prices are given: of a trillion tokens.
const USD: &str = "USD/T";
const MWH: &str = "MWh/T";

/// How much longer the timetable is than the bound on any of the same programs and placement.
fn gap(numbers: &Numbers) -> f64 {
    numbers.timetable_makespan_ns as f64 / (numbers.timetable_lower_bound_ns as f64).max(1.0) - 1.0
}

/// Columns that narrow terminals do without, the first of them first.
const EXPENDABLE: [&str; 8] = ["ranks", "lost", "copies", "GPUs", "stages", "act", "exposed", "gap"];

/// Both tables with as many columns as `width` has room for, and the names of those that it has not.
fn tables(tables: [&[Row]; 2], width: usize) -> ([String; 2], &'static [&'static str]) {
    let mut without = 0;
    loop {
        let left_out = &EXPENDABLE[..without];
        let texts = tables.map(|rows| text(rows, left_out, width));
        let fit = texts.iter().flat_map(|text| text.lines().next()).all(|line| line.chars().count() <= width);
        if fit || without == EXPENDABLE.len() {
            return (texts, left_out);
        }
        without += 1;
    }
}

fn text(rows: &[Row], left_out: &[&str], width: usize) -> String {
    let any = |of: fn(&Numbers) -> Option<f64>| {
        rows.iter().any(|row| matches!(&row.outcome, Outcome::Result(numbers) if of(numbers).is_some()))
    };
    let (usd, mwh) = (any(|numbers| numbers.usd_per_trillion_tokens), any(|numbers| numbers.mwh_per_trillion_tokens));
    let is_shown = |name: &str| !left_out.contains(&name) && (usd || name != USD) && (mwh || name != MWH);
    let columns = || COLUMNS.iter().filter(|(name, _)| is_shown(name));
    let names: Vec<&str> =
        ["schedule"].into_iter().chain(columns().map(|&(name, _)| name)).chain(["tokens/s/GPU"]).collect();
    let fastest = rows.iter().filter_map(|row| match &row.outcome {
        Outcome::Result(numbers) if numbers.fits => numbers.tokens_per_s_per_gpu,
        _ => None,
    });
    let fastest = fastest.fold(0.0, f64::max);
    let mut table = table::new(&names, width);
    let mut refused = String::new();
    for row in rows {
        let numbers = match &row.outcome {
            Outcome::Result(numbers) => numbers,
            Outcome::Refused(reason) => {
                // Some reasons name the schedule themselves.
                match reason.strip_prefix(row.schedule) {
                    Some(rest) if rest.starts_with(' ') => refused.push_str(&format!("  {reason}\n")),
                    _ => refused.push_str(&format!("  {}: {reason}\n", row.schedule)),
                }
                continue;
            }
        };
        let rate = numbers.tokens_per_s_per_gpu;
        let mark = if numbers.fits && rate.is_some_and(|rate| rate >= fastest) { " ◀" } else { "" };
        let cells = columns().map(|(_, cell)| cell(numbers));
        let rate = rate.map_or("–".to_owned(), |rate| format!("{}{mark}", grouped(rate.round() as u64)));
        table.add_row([row.schedule.to_owned()].into_iter().chain(cells).chain([rate]).collect::<Vec<String>>());
    }
    let numbers: Vec<usize> = (1..names.len()).filter(|&column| names[column] != "fits").collect();
    table::finish(&mut table, &numbers);
    format!("{table}\n{refused}")
}
