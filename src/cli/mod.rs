//! The command line: one file per subcommand. Here: parsing, exit codes, and how errors are shown.
//!
//! stdout is data, stderr is talk. Exit codes: 0 done, 1 the check said no, 2 bad usage, bad input or a failed write.

mod compare;
mod compile;
mod export;
mod output;
mod schedule;
mod show;
mod simulate;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Result;

/// A schedule compiler for training mixture-of-experts models.
#[derive(Parser)]
#[command(name = "dualweave", version, about, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile a job (model, cluster, training run) to an execution plan.
    Compile(compile::Args),
    /// Prove that a plan is safe to run; says what is wrong otherwise.
    Verify(verify::Args),
    /// Run a plan against the machine model: time, bubbles, memory.
    Simulate(simulate::Args),
    /// Draw a plan's timetable as a chart.
    Show(show::Args),
    /// Compile a job under every schedule and put them side by side.
    Compare(compare::Args),
    /// Write a plan in another tool's form.
    Export(export::Args),
    /// Make a timetable from plain numbers, without a model.
    Schedule(schedule::Args),
}

/// What a command concluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Done; for a check: yes.
    Yes,
    /// The check said no.
    No,
}

/// Runs the command line; the whole of `main`.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version come this way too, with code 0; bad usage is 2.
            let printed = error.print();
            return if printed.is_err() { ExitCode::from(2) } else { ExitCode::from(error.exit_code() as u8) };
        }
    };
    match run(cli.command) {
        Ok(Verdict::Yes) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::from(1),
        Err(error) => {
            output::report(error);
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<Verdict> {
    match command {
        Command::Compile(args) => compile::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Show(args) => show::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Export(args) => export::run(args),
        Command::Schedule(args) => schedule::run(args),
    }
}
