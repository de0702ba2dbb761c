//! `dualweave show`: a plan's timetable as a chart, at simulated times.

use std::path::PathBuf;

use super::{Verdict, output};
use crate::error::Result;
use crate::plan::Plan;
use crate::sim::{Simulation, simulate};
use crate::units::Nanos;
use crate::view;
use crate::view::chart::{Bar, Row, render};

/// Width of a chart that no terminal limits.
const PIPED_WIDTH: usize = 100;
/// Digits that times on the chart have: more than a chart can show.
const DIGITS: u32 = 5;

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The plan, as `dualweave compile` writes it.
    plan: PathBuf,
    /// Columns of the chart, at least 40; as wide as the terminal by default, 100 when piped.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(40..))]
    width: Option<u16>,
}

/// Runs it.
pub(super) fn run(args: Args) -> Result<Verdict> {
    let plan = Plan::from_ron(&args.plan.display().to_string(), &output::read(&args.plan)?)?;
    let simulation = simulate(&plan)?;
    let width = args.width.map(usize::from).or_else(output::terminal_width).unwrap_or(PIPED_WIDTH);
    output::print(&chart(&plan, &simulation, width))?;
    Ok(Verdict::Yes)
}

/// The chart ends with the last action; what gradients and optimizer add is said, not drawn.
pub fn chart(plan: &Plan, simulation: &Simulation, width: usize) -> String {
    let origin = &plan.origin;
    let after = simulation.step.saturating_sub(simulation.pipeline);
    let mut title =
        format!("{} on {} · {} · {}", plan.model.name, origin.cluster, origin.schedule, simulation.pipeline);
    if after > Nanos::ZERO {
        title += &format!(", then {after} of gradients and optimizer");
    }
    let unit = unit(simulation.pipeline);
    let rounded = |time: Nanos| Nanos((time.0.saturating_add(unit / 2) / unit).saturating_mul(unit));
    let rows = (0..).zip(plan.ranks.iter().zip(&simulation.ranks)).map(|(rank, (list, timing))| {
        let actions = list.items.iter().zip(&timing.items).filter_map(|(item, span)| Some((item.0.action()?, span)));
        let bar = |(action, span): (_, &crate::sim::Span)| {
            Bar::new(&plan.layout, rank, action, rounded(span.start), rounded(span.end))
        };
        Row { label: format!("rank {rank}"), bars: actions.map(bar).collect() }
    });
    let rows: Vec<Row> = rows.collect();
    let again = match plan.recompute_differs() {
        true => format!("\nComputed again: {}\n", view::units::computed_again(plan)),
        false => String::new(),
    };
    format!("{title}\n\n{}{again}", render(&rows, rounded(simulation.pipeline), width))
}

/// The power of ten to which times are rounded, so that the axis has numbers that can be read.
fn unit(makespan: Nanos) -> u64 {
    let digits = makespan.0.checked_ilog10().map_or(1, |log| log + 1);
    10_u64.pow(digits.saturating_sub(DIGITS))
}
