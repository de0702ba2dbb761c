//! `dualweave search`: configurations of a job that are faster, and what single changes would give.

mod json;
mod text;

use std::io::IsTerminal as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::job::{self, Job, Overrides};
use crate::passes::search::what_if::what_if;
use crate::passes::search::{self, Asked, Decision, Found, Limits, Phase};
use crate::sim::Prices;
use crate::sim::jitter::{Disturbances, Disturbed, disturb};

/// Columns of a table that goes into a file or a pipe.
const PLAIN_WIDTH: usize = 150;

/// Arguments of `search`.
#[derive(clap::Args)]
pub struct Args {
    /// The job: a RON file with model, cluster and training. Its model, sequence and tokens of a step stay.
    job: PathBuf,
    /// GPUs, in whole nodes of the job's cluster; default: as many as the job uses.
    #[arg(long, value_name = "N", conflicts_with = "what_if", allow_negative_numbers = true)]
    gpus: Option<u64>,
    /// Decisions that stay as the job has them.
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', conflicts_with = "what_if")]
    keep: Vec<Decision>,
    /// Also compile the first N of what is found with the schedule `auto`. That takes as long as `compile --schedule auto` does, for each.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "what_if")]
    auto: usize,
    /// Say of each neighbour of the fastest configuration what speaks against it.
    #[arg(long, conflicts_with = "what_if")]
    explain: bool,
    /// Instead of searching, rank single changes to the job by what a plan made anew gives.
    #[arg(long)]
    what_if: bool,
    /// Where the plan of the fastest configuration goes.
    #[arg(short, long, value_name = "PLAN", conflicts_with = "what_if")]
    output: Option<PathBuf>,
    /// Where a job with the fastest configuration goes, for `compile` and for changes by hand.
    #[arg(long, value_name = "FILE", conflicts_with = "what_if")]
    write_job: Option<PathBuf>,
    /// Threads that work at the same time; default: one for each core. Results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print everything as JSON: nanoseconds, bytes, shares from 0 to 1.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    prices: Prices,
    #[command(flatten)]
    disturbances: Disturbances,
    #[command(flatten)]
    overrides: Overrides,
}

/// What is said about a search besides what it found.
struct Besides {
    prices: Prices,
    /// Disturbed steps of the job as it is, and of each row of the front; nothing if that was not asked.
    disturbed: Vec<Disturbed>,
}

/// Searches.
///
/// # Errors
/// If the job cannot be read, compiled, or nothing fits; or if what was found cannot be written.
pub fn run(args: &Args) -> Result<Verdict> {
    let written: Vec<&PathBuf> = args.output.iter().chain(&args.write_job).collect();
    for path in &written {
        output::keep_apart(&args.job, path)?;
    }
    if written.iter().filter(|path| output::is_stdout(path)).count() + usize::from(args.json) > 1 {
        return Err(Error::new("only one of plan, job and JSON can go to standard output")
            .help("name files with `-o` and `--write-job`"));
    }
    if let [plan, job] = written[..]
        && plan == job
    {
        return Err(Error::new("plan and job cannot both be written to one file").help("name another with `-o`"));
    }
    let loaded = job::load(&args.job, &args.overrides)?;
    for note in &loaded.notes {
        output::note(format!("note: {note}"));
    }
    let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = args.threads.map_or_else(cores, NonZeroUsize::get);
    if args.what_if && args.disturbances.any() {
        return Err(
            Error::new("single changes are compared undisturbed").help("leave `--what-if` or what disturbs steps out")
        );
    }
    if args.what_if {
        return changes(args, &loaded.job, threads);
    }
    let bar = progress_bar();
    let found = search::search(
        Asked {
            job: &loaded.job,
            gpus: args.gpus,
            keep: &args.keep,
            explain: args.explain,
            limits: Limits { auto: args.auto, ..Limits::default() },
            threads,
        },
        &|phase, done, all| {
            bar.set_message(match phase {
                Phase::Bounds => "bounds",
                Phase::Looks => "closer looks",
                Phase::Plain => "plans",
                Phase::Full => "plans in full",
            });
            bar.set_length(all);
            bar.set_position(done);
        },
    );
    bar.finish_and_clear();
    let found = found.map_err(|error| loaded.locate(error))?;
    write(args, &found)?;
    let rows = [&found.given].into_iter().chain(&found.front).filter(|_| args.disturbances.any());
    let disturbed = rows.map(|row| disturb(&row.compiled.plan, &args.disturbances, &[], threads));
    let besides = Besides { prices: args.prices, disturbed: disturbed.collect::<Result<_>>()? };
    let width = output::terminal_width().unwrap_or(PLAIN_WIDTH);
    let to_stdout = written.iter().any(|path| output::is_stdout(path));
    match args.json {
        true => output::print(&output::to_json(&json::of_search(&found, &besides))?)?,
        // What was written there is the data then.
        false if to_stdout => output::note(text::of_search(&found, &besides, width).trim_end()),
        false => output::print(&text::of_search(&found, &besides, width))?,
    }
    Ok(Verdict::Yes)
}

fn write(args: &Args, found: &Found) -> Result<()> {
    let Some(best) = found.front.first() else { return Ok(()) };
    if let Some(path) = &args.output {
        output::write(path, &best.compiled.plan.to_ron())?;
    }
    if let Some(path) = &args.write_job {
        let mut job = best.configuration.apply(&found.job);
        if best.configuration == found.given.configuration {
            // As it was compiled: its exchanges may have found their own SMs.
            job.training = found.job.training.clone();
        }
        output::write(path, &job.to_ron())?;
        if args.overrides.profile.is_some() {
            output::note("note: measured times are not part of a job: compile it with the same `--profile`");
        }
    }
    Ok(())
}

fn changes(args: &Args, job: &Job, threads: usize) -> Result<Verdict> {
    let bar = progress_bar();
    let told = what_if(job, threads, &|done, all| {
        bar.set_message("plans");
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let told = told?;
    let width = output::terminal_width().unwrap_or(PLAIN_WIDTH);
    output::print(&match args.json {
        true => output::to_json(&json::of_changes(job, &told, &args.prices))?,
        false => text::of_changes(job, &told, &args.prices, width),
    })?;
    Ok(Verdict::Yes)
}

/// On a terminal, a bar on standard error.
fn progress_bar() -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(1), target);
    match ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Tokens that a GPU trains on in a second; of no time, none.
fn rate(tokens: u64, step: crate::units::Nanos, gpus: u64) -> f64 {
    let gpu_seconds = step.secs() * gpus as f64;
    if gpu_seconds > 0.0 { tokens as f64 / gpu_seconds } else { 0.0 }
}

/// GPU hours of a trillion tokens at such a rate.
fn hours(rate: f64) -> f64 {
    1e12 / rate / 3600.0
}
