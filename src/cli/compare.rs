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
use crate::sim::{Rates, simulate};
use crate::units::{Bytes, Nanos};
use crate::view::table;

/// Columns of a table that goes into a file or a pipe.
const PLAIN_WIDTH: usize = 140;

/// Arguments of `compare`.
#[derive(clap::Args)]
pub struct Args {
    /// The job: a RON file with model, cluster and training; its own schedule is one of those compared
    job: PathBuf,
    /// Print both tables as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Compiles and simulates the job under each schedule: on equal devices (the job's pipeline ranks), and on equal stages (the
/// job's stages; schedules that hold two stages per rank then need half the ranks). The second is how DualPipe's authors
/// compare it with DualPipeV.
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
    let devices = ScheduleKind::ALL.map(|kind| row(variant(job, kind, Some(ranks)), kind));
    let same_stages = ScheduleKind::ALL.map(|kind| row(variant(job, kind, ranks_for(kind, stages, job)), kind));
    if args.json {
        output::print(&output::to_json(&Tables { equal_devices: &devices, equal_stages: &same_stages })?)?;
        return Ok(Verdict::Yes);
    }
    let width = output::terminal_width().unwrap_or(PLAIN_WIDTH);
    output::print(&format!(
        "{} on {}, {} micro-batches\n\nEqual devices: {ranks} pipeline ranks\n{}\nEqual stages: {stages} stages\n{}\n{}\n",
        job.model.name,
        job.cluster.name,
        job.training.micro_batches,
        text(&devices, width),
        text(&same_stages, width),
        "step, bubble and exposed communication: simulated; bubble and exposed in % of rank time, mean over ranks.\n\
         act: most chunks whose activations a rank holds, and their bytes. copies: of the parameters."
    ))?;
    Ok(Verdict::Yes)
}

/// Ranks that hold `stages` stages under `kind`, if they divide.
fn ranks_for(kind: ScheduleKind, stages: u32, job: &Job) -> Option<u32> {
    let per_rank = match kind.placement() {
        Placement::Linear | Placement::Bidirectional => 1,
        Placement::V => 2,
        Placement::Loop => job.training.stages_per_rank.unwrap_or(2),
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
    if kind != ScheduleKind::Interleaved {
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
    bubble_share: f64,
    exposed_communication_share: f64,
    peak_activation_chunks: u32,
    peak_activation_bytes: u64,
    parameter_copies: usize,
    peak_memory_bytes: u64,
    fits: bool,
    tokens_per_s_per_gpu: Option<f64>,
}

fn row(job: Result<Job>, kind: ScheduleKind) -> Row {
    let outcome = match job.and_then(|job| numbers(&job)) {
        Ok(numbers) => Outcome::Result(numbers),
        Err(error) => Outcome::Refused(match error.help_text() {
            Some(help) => format!("{error} ({help})"),
            None => error.to_string(),
        }),
    };
    Row { schedule: kind.name(), outcome }
}

fn numbers(job: &Job) -> Result<Numbers> {
    let plan = passes::compile(job)?.plan;
    let simulation = simulate(&plan)?;
    let memory = memory(&plan, &simulation);
    let ranks = simulation.ranks.len() as f64;
    let share = |times: Nanos| times.as_f64() / (simulation.step.as_f64() * ranks);
    let most = memory.iter().max_by_key(|rank| rank.activations());
    Ok(Numbers {
        ranks: plan.layout.ranks,
        gpus: plan.origin.gpus,
        step_ns: simulation.step.0,
        timetable_makespan_ns: plan.timetable.makespan.0,
        timetable_lower_bound_ns: plan.timetable.lower_bound.0,
        bubble_share: share(simulation.ranks.iter().map(|rank| rank.bubble).sum()),
        exposed_communication_share: share(simulation.ranks.iter().map(|rank| rank.exposed).sum()),
        peak_activation_chunks: memory.iter().map(|rank| rank.chunks).max().unwrap_or(0),
        peak_activation_bytes: most.map_or(0, |rank| rank.activations().0),
        parameter_copies: plan.layout.holders(0).len(),
        peak_memory_bytes: memory.iter().map(|rank| rank.need.total()).max().unwrap_or_default().0,
        fits: memory.iter().all(|rank| rank.need.total() <= plan.machine.memory),
        tokens_per_s_per_gpu: Rates::new(&plan, &simulation).map(|rates| rates.tokens_s_gpu),
    })
}

fn text(rows: &[Row], width: usize) -> String {
    let columns =
        ["schedule", "ranks", "GPUs", "step", "bubble", "exposed", "act", "copies", "memory", "fits", "tokens/s/GPU"];
    let fastest = rows.iter().filter_map(|row| match &row.outcome {
        Outcome::Result(numbers) if numbers.fits => numbers.tokens_per_s_per_gpu,
        _ => None,
    });
    let fastest = fastest.fold(0.0, f64::max);
    let mut table = table::new(&columns, width);
    let mut refused = String::new();
    for row in rows {
        let numbers = match &row.outcome {
            Outcome::Result(numbers) => numbers,
            Outcome::Refused(reason) => {
                refused.push_str(&format!("  {}: {reason}\n", row.schedule));
                continue;
            }
        };
        let rate = numbers.tokens_per_s_per_gpu;
        let mark = if numbers.fits && rate.is_some_and(|rate| rate >= fastest) { " ◀" } else { "" };
        table.add_row(vec![
            row.schedule.to_owned(),
            numbers.ranks.to_string(),
            numbers.gpus.to_string(),
            Nanos(numbers.step_ns).to_string(),
            format!("{:.1} %", 100.0 * numbers.bubble_share),
            format!("{:.1} %", 100.0 * numbers.exposed_communication_share),
            format!("{} = {}", numbers.peak_activation_chunks, Bytes(numbers.peak_activation_bytes)),
            numbers.parameter_copies.to_string(),
            Bytes(numbers.peak_memory_bytes).to_string(),
            if numbers.fits { "yes".to_owned() } else { "no".to_owned() },
            rate.map_or("–".to_owned(), |rate| format!("{rate:.0}{mark}")),
        ]);
    }
    table::align_right(&mut table, &[1, 2, 3, 4, 5, 6, 7, 8, 10]);
    format!("{table}\n{refused}")
}
