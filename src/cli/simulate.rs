//! `dualweave simulate`: run a plan against the machine model and report on it.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;

use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::interop::measured::Measured;
use crate::plan::Plan;
use crate::sim::jitter::{Disturbances, Disturbed, disturb, slow_rank};
use crate::sim::memory::{RankMemory, memory};
use crate::sim::{Prices, Simulation, simulate};
use crate::view::figure;
use crate::view::report::{self, Planned};
use crate::view::simulation::{Simulated, rank_text, to_json, to_text};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The plan, as `dualweave compile` writes it.
    plan: PathBuf,
    /// Report on one pipeline rank, in more detail.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    rank: Option<u32>,
    /// Print everything as JSON: nanoseconds, bytes, shares from 0 to 1.
    #[arg(long)]
    json: bool,
    /// Write a page to look at: timeline, memory, what is inside chunks. One HTML file that needs no network.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// With `--report`: put another plan beside it. Can be given several times.
    #[arg(long, value_name = "PLAN", requires = "report")]
    against: Vec<PathBuf>,
    /// With `--report`: put a step that ran beside it, from `dualweave fidelity --trace` or `dualweave run --trace`.
    #[arg(long, value_name = "TRACE", requires = "report")]
    measured: Option<PathBuf>,
    /// Write the timeline as a figure for a paper, as wide as a column.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    prices: Prices,
    #[command(flatten)]
    disturbances: Disturbances,
    /// The computation of a pipeline rank, of all its GPUs, takes so many times as long: `3=1.2`. Can be given several times.
    #[arg(long, value_name = "RANK=FACTOR", value_parser = slow_rank, group = "disturbances",
          help_heading = "Disturbed steps")]
    slow_rank: Vec<(u32, f64)>,
}

/// A plan that was read, and all that was found.
struct Read {
    name: String,
    plan: Plan,
    simulation: Simulation,
    memory: Vec<RankMemory>,
    prices: Prices,
    disturbed: Option<Disturbed>,
}

impl Read {
    fn new(path: &Path, prices: Prices) -> Result<Self> {
        let plan = Plan::from_ron(&path.display().to_string(), &output::read(path)?)?;
        let simulation = simulate(&plan)?;
        let memory = memory(&plan, &simulation);
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, plan, simulation, memory, prices, disturbed: None })
    }

    fn simulated(&self) -> Simulated<'_> {
        Simulated {
            plan: &self.plan,
            simulation: &self.simulation,
            memory: &self.memory,
            prices: self.prices,
            disturbed: self.disturbed.as_ref(),
        }
    }

    fn planned(&self) -> Planned<'_> {
        Planned { name: &self.name, simulated: self.simulated(), measured: None }
    }
}

/// Runs it. A plan that does not fit is reported, and still simulated: proving is the business of `verify`.
pub fn run(args: Args) -> Result<Verdict> {
    let inputs = || std::iter::once(&args.plan).chain(&args.against).chain(&args.measured);
    let outputs = [&args.report, &args.svg];
    for written in outputs.into_iter().flatten() {
        inputs().try_for_each(|input| output::keep_apart(input, written))?;
    }
    let places = outputs.map(|path| path.as_ref().and_then(|path| std::path::absolute(path).ok()));
    if places[0].is_some() && places[0] == places[1] {
        return Err(Error::new("`--report` and `--svg` cannot go to one file"));
    }
    let to_stdout = outputs.into_iter().flatten().any(|path| output::is_stdout(path));
    if to_stdout && (args.json || args.rank.is_some()) {
        return Err(Error::new("standard output cannot take two things").help("name a file in place of `-`"));
    }
    let mut read = Read::new(&args.plan, args.prices)?;
    if args.disturbances.any() || !args.slow_rank.is_empty() {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        read.disturbed = Some(disturb(&read.plan, &args.disturbances, &args.slow_rank, threads)?);
    }
    let only = args.rank.map(|rank| rank as usize);
    if let Some(rank) = only.filter(|&rank| rank >= read.plan.ranks.len()) {
        let help = format!("ranks are counted from 0 to {}", read.plan.ranks.len().saturating_sub(1));
        return Err(Error::new(format!("there is no rank {rank}: the plan has {}", read.plan.ranks.len())).help(help));
    }
    if let Some(path) = &args.report {
        let others = args.against.iter().map(|path| Read::new(path, args.prices)).collect::<Result<Vec<_>>>()?;
        let measured = args.measured.as_deref().map(|path| measured(path, &read)).transpose()?;
        let mut plans = vec![Planned { measured: measured.as_ref(), ..read.planned() }];
        plans.extend(others.iter().map(Read::planned));
        write(path, |out| report::write(&plans, out))?;
    }
    if let Some(path) = &args.svg {
        write(path, |out| figure::write(&read.simulated(), out))?;
    }
    if to_stdout {
        return Ok(Verdict::Yes);
    }
    let (simulated, width) = (read.simulated(), output::report_width());
    let text = match (args.json, only) {
        (true, only) => {
            let json = to_json(&simulated, only);
            json.map_err(|error| Error::new(format!("the report cannot be written as JSON: {error}")))? + "\n"
        }
        (false, Some(rank)) => rank_text(&simulated, rank, width),
        (false, None) => to_text(&simulated, width),
    };
    output::print(&text)?;
    Ok(Verdict::Yes)
}

fn measured(path: &Path, read: &Read) -> Result<Measured> {
    Measured::read(&path.display().to_string(), &output::read(path)?, &read.plan, &read.simulation)
}

fn write(path: &Path, pieces: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    output::write_with(path, pieces)?;
    if !output::is_stdout(path) {
        output::note(format!("Wrote {}.", path.display()));
    }
    Ok(())
}
