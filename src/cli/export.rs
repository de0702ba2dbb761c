//! `dualweave export`: write a plan in another tool's form.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{Verdict, output};
use crate::error::Result;
use crate::ir::Timetable;
use crate::plan::Plan;
use crate::sim::{check_references, simulate};
use crate::view::perfetto;

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The plan, as `dualweave compile` writes it.
    plan: PathBuf,
    /// What to write.
    #[arg(long, value_enum)]
    format: Format,
    /// Where it goes; `-` is standard output.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

/// Forms that a plan can be written in.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// The timetable, a line per rank, as DeepSeek's DualPipe code counts: `F0.3` is the fourth forward of local phase 0.
    Tokens,
    /// The timetable, a line per rank, by stage and micro-batch, as PyTorch writes it: `3F7`.
    Stage,
    /// The simulated step as a trace for ui.perfetto.dev and chrome://tracing.
    Perfetto,
}

/// Runs it.
pub fn run(args: Args) -> Result<Verdict> {
    output::keep_apart(&args.plan, &args.output)?;
    let plan = Plan::from_ron(&args.plan.display().to_string(), &output::read(&args.plan)?)?;
    match args.format {
        Format::Tokens => output::write(&args.output, &timetable(&plan)?.local_tokens())?,
        Format::Stage => output::write(&args.output, &timetable(&plan)?.stage_tokens())?,
        Format::Perfetto => {
            let simulation = simulate(&plan)?;
            output::write_with(&args.output, |out| perfetto::write(&plan, &simulation, out))?;
        }
    }
    Ok(Verdict::Yes)
}

/// The plan's actions without times.
fn timetable(plan: &Plan) -> Result<Timetable> {
    check_references(plan)?;
    let actions = |rank: &crate::plan::PlanRank| rank.items.iter().filter_map(|item| item.0.action()).collect();
    Ok(Timetable { layout: plan.layout, ranks: plan.ranks.iter().map(actions).collect() })
}
