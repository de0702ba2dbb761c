//! `dualweave export`: write a plan in another tool's form.

use std::path::PathBuf;

use clap::ValueEnum;

use super::import::torch_csv::whole;
use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::interop::torch::of_timetable;
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
    /// With `torch-csv`: write sends and receives too, and what FSDP does. Without, PyTorch adds them when it loads the file.
    #[arg(long)]
    with_communication: bool,
}

/// Forms that a plan can be written in.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The timetable, a line per rank, as DeepSeek's DualPipe code counts: `F0.3` is the fourth forward of local phase 0.
    Tokens,
    /// The timetable, a line per rank, by stage and micro-batch, as PyTorch writes it: `3F7`.
    Stage,
    /// A schedule for `torch.distributed.pipelining`: a row for each rank, a cell for each action.
    TorchCsv,
    /// The simulated step as a trace for ui.perfetto.dev and chrome://tracing.
    Perfetto,
}

/// Runs it.
pub fn run(args: Args) -> Result<Verdict> {
    output::keep_apart(&args.plan, &args.output)?;
    if args.with_communication && args.format != Format::TorchCsv {
        return Err(Error::new("`--with-communication` is for `--format torch-csv`"));
    }
    let plan = Plan::from_ron(&args.plan.display().to_string(), &output::read(&args.plan)?)?;
    match args.format {
        Format::Tokens => output::write(&args.output, &timetable(&plan)?.local_tokens())?,
        Format::Stage => output::write(&args.output, &timetable(&plan)?.stage_tokens())?,
        Format::TorchCsv => {
            let schedule = of_timetable(&timetable(&plan)?)?;
            let schedule = match args.with_communication {
                true => whole(&schedule, plan.layout.micro_batches)?,
                false => schedule,
            };
            output::write(&args.output, &schedule.to_string())?;
        }
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
