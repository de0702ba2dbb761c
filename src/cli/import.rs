//! `dualweave import`: what other tools have made. One file per format.

mod kineto;
pub(super) mod torch_csv;

use std::path::PathBuf;

use clap::ValueEnum;

use super::{Verdict, output};
use crate::error::{Error, Result};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The file.
    file: PathBuf,
    /// What it is.
    #[arg(long, value_enum)]
    format: Format,
    /// Where to write what is made of it; `-` is standard output, in place of the report. Of a schedule: the schedule, the better one with
    /// --improve. Of a trace: the layer's durations, for `overlap --components`.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    torch: torch_csv::Options,
    #[command(flatten)]
    kineto: kineto::Options,
}

/// What can be read.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A schedule of `torch.distributed.pipelining`, compute-only or with communication.
    TorchCsv,
    /// A trace of PyTorch's profiler, packed by gzip or not: where the time of a GPU went.
    Kineto,
}

/// Runs it.
pub fn run(args: Args) -> Result<Verdict> {
    let (foreign, format) = match args.format {
        Format::TorchCsv => (args.kineto.given(), "kineto"),
        Format::Kineto => (args.torch.given(), "torch-csv"),
    };
    if let Some(foreign) = foreign {
        return Err(Error::new(format!("`{foreign}` is for `--format {format}`")).help("leave it out"));
    }
    if let Some(path) = &args.output {
        output::keep_apart(&args.file, path)?;
    }
    match args.format {
        Format::TorchCsv => torch_csv::run(&args),
        Format::Kineto => kineto::run(&args),
    }
}

/// Whether a report is printed: what goes to standard output takes its place.
fn reports(args: &Args) -> bool {
    !args.output.as_deref().is_some_and(output::is_stdout)
}
