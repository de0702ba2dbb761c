//! The command line: one file per subcommand. Here: parsing, exit codes, and how errors are shown.
//!
//! What `overlap`, `schedule` and `show` print is at hand as a text too.
//!
//! stdout is data, stderr is talk. Exit codes: 0 done, 1 the check said no, 2 bad usage, bad input or a failed write.

mod compare;
mod compile;
mod completions;
mod components;
mod diff;
mod doctor;
mod export;
mod fidelity;
mod import;
mod man;
mod measure;
mod output;
pub mod overlap;
mod run;
pub mod schedule;
mod search;
pub mod show;
mod simulate;
mod tune;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::error::Result;

/// What `dualweave --help` says after the commands.
const START_HERE: &str = "\
Start here:
  dualweave compile examples/tiny/job.ron -o plan.ron
  dualweave verify plan.ron
  dualweave simulate plan.ron
  dualweave run plan.ron

Exit codes: 0 done, 1 `verify`, `run --check`, `diff` or `doctor` said no, 2 bad usage or input, or a failed write.
Data goes to standard output, talk to standard error.";

/// A schedule compiler for training mixture-of-experts models.
#[derive(Parser)]
#[command(name = "dualweave", version, about, after_help = START_HERE, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile a job (model, cluster, training run) to an execution plan.
    Compile(compile::Args),
    /// Prove that a plan is safe to run, or say what is wrong with it.
    Verify(verify::Args),
    /// Run a plan against the machine model: time, bubbles, memory.
    Simulate(simulate::Args),
    /// Train a model as a plan says, on this computer's CPU or GPUs.
    Run(run::Args),
    /// Measure a job's ops on this computer's GPUs, or take them from a trace, for `compile --profile`.
    Tune(tune::Args),
    /// Run a plan on this computer's GPUs, and compare what everything takes with what the machine model says.
    Fidelity(fidelity::Args),
    /// Say what this computer has for running plans on GPUs.
    Doctor(doctor::Args),
    /// Draw a plan's timetable as a chart.
    Show(show::Args),
    /// Compile a job under every schedule and put them side by side.
    Compare(compare::Args),
    /// Look for faster configurations of a job: parallelism, micro-batches, schedule, recomputation, payloads, SMs.
    Search(search::Args),
    /// Say what changed between two plans; exit code 1 if anything did.
    Diff(diff::Args),
    /// Write a plan in another tool's form.
    Export(export::Args),
    /// Read, check and improve what another tool has made.
    Import(import::Args),
    /// Show what runs beside what in a pair of layers, against hand-made orders and the best possible
    Overlap(overlap::Args),
    /// Make a timetable from plain numbers, without a model.
    Schedule(schedule::Args),
    /// Print a script that completes `dualweave` in a shell.
    Completions(completions::Args),
    /// Print the manual page, or write those of all commands into a folder.
    Man(man::Args),
}

/// The command line as clap has it: what completions, manual pages and the guide are made from, and checked with.
pub fn command() -> clap::Command {
    Cli::command()
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
        Err(refused) => {
            // --help and --version come this way too, on stdout and with code 0; bad usage is 2.
            if let (Err(error), false) = (refused.print(), refused.use_stderr()) {
                output::report(output::unwritten(&error));
                return ExitCode::from(2);
            }
            return ExitCode::from(refused.exit_code() as u8);
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
        Command::Run(args) => run::run(args),
        Command::Tune(args) => tune::run(&args),
        Command::Fidelity(args) => fidelity::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Show(args) => show::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Search(args) => search::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Export(args) => export::run(args),
        Command::Import(args) => import::run(args),
        Command::Overlap(args) => overlap::run(args),
        Command::Schedule(args) => schedule::run(args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}
