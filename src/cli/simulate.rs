//! `dualweave simulate`: run a plan against the machine model and report on it.

use std::path::PathBuf;

use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::sim::memory::memory;
use crate::sim::{Prices, simulate};
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
    #[command(flatten)]
    prices: Prices,
}

/// Runs it. A plan that does not fit is reported, and still simulated: proving is the business of `verify`.
pub fn run(args: Args) -> Result<Verdict> {
    let plan = Plan::from_ron(&args.plan.display().to_string(), &output::read(&args.plan)?)?;
    let only = args.rank.map(|rank| rank as usize);
    if let Some(rank) = only.filter(|&rank| rank >= plan.ranks.len()) {
        let help = format!("ranks are counted from 0 to {}", plan.ranks.len().saturating_sub(1));
        return Err(Error::new(format!("there is no rank {rank}: the plan has {}", plan.ranks.len())).help(help));
    }
    let simulation = simulate(&plan)?;
    let memory = memory(&plan, &simulation);
    let simulated = Simulated { plan: &plan, simulation: &simulation, memory: &memory, prices: args.prices };
    let width = output::report_width();
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
