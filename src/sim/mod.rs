//! Runs a plan against the machine model, without running it: when every item starts and ends, what each rank was waiting
//! for, and (in [`memory`]) what it holds.
//!
//! Items start as soon as the order that the plan gives them allows; nothing else delays them. Not modelled: the time
//! in which the host launches, and several transfers that share one link.

pub mod jitter;
pub mod memory;

mod account;
mod meeting;
mod program;
mod rates;
mod references;
mod relief;
mod run;
mod streams;

pub(crate) use account::Covered;
pub use account::{Activity, Cause, Gap, Reason, Wait};
pub use meeting::{ItemId, Transfer, match_transfers};
pub use program::{ProgramTiming, time_program};
pub use rates::{Prices, Rates};
pub use references::check_references;
pub use relief::Relief;
pub use streams::{StreamOps, run_streams};

use crate::error::Result;
use crate::plan::{Plan, StreamId};
use crate::units::Nanos;

/// From one moment to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// When it starts.
    pub start: Nanos,
    /// When it has ended.
    pub end: Nanos,
}

impl Span {
    /// From start to end.
    pub fn duration(self) -> Nanos {
        self.end.saturating_sub(self.start)
    }
}

/// A plan with times.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulation {
    /// One optimizer step: from the first item's start, which is 0, to the end of the last.
    pub step: Nanos,
    /// From 0 to the end of the last chunk action: what the plan's timetable counts. Gradient synchronisation and
    /// optimizer come after it.
    pub pipeline: Nanos,
    /// One per program of the plan.
    pub programs: Vec<ProgramTiming>,
    /// Messages between ranks, by (sender, receiver).
    pub transfers: Vec<Transfer>,
    /// One per rank.
    pub ranks: Vec<RankTiming>,
}

/// What a rank does, with times. `busy` + `exposed` + `bubble` is the step.
#[derive(Clone, Debug, PartialEq)]
pub struct RankTiming {
    /// One per item of the rank's list. A rendezvous starts when all sides are there, not when the first waits.
    pub items: Vec<Span>,
    /// For each item, the program that it runs, if it runs one.
    pub programs: Vec<Option<u32>>,
    /// From the start of its first item to the end of its last.
    pub span: Span,
    /// Time in which a compute op runs.
    pub busy: Nanos,
    /// Time of all exchanges, transfers and collectives, summed over streams.
    pub communication: Nanos,
    /// Time in which communication runs, but no compute op.
    pub exposed: Nanos,
    /// Time in which nothing runs.
    pub bubble: Nanos,
    /// What the bubble was spent waiting for, longest first. Adds up to `bubble`.
    pub waits: Vec<Wait>,
    /// The bubble piece by piece, in order of time. Adds up to `bubble`.
    pub gaps: Vec<Gap>,
}

/// Simulates one optimizer step.
///
/// # Errors
/// If the plan refers to what it does not have, a message is never met, or the plan deadlocks. The message names the
/// rank and the item.
pub fn simulate(plan: &Plan) -> Result<Simulation> {
    check_references(plan)?;
    let transfers = match_transfers(plan)?;
    let meetings = meeting::meetings(plan, &transfers)?;
    let programs: Vec<ProgramTiming> = plan.programs.iter().map(|p| time_program(p, &plan.machine)).collect();
    let run_by = programs_of_items(plan)?;
    let run = run::run(plan, &run::Input { programs: &programs, program_of: &run_by, meetings: &meetings })?;

    let (mut step, mut pipeline) = (Nanos::ZERO, Nanos::ZERO);
    for (list, spans) in plan.ranks.iter().zip(&run.spans) {
        for (item, span) in list.items.iter().zip(spans) {
            step = step.max(span.end);
            if item.0.action().is_some() {
                pipeline = pipeline.max(span.end);
            }
        }
    }
    let ranks = account::account(plan, &programs, run_by, run, step);
    Ok(Simulation { step, pipeline, programs, transfers, ranks })
}

/// For each rank and item, the index of the program that it runs.
fn programs_of_items(plan: &Plan) -> Result<Vec<Vec<Option<u32>>>> {
    let programs = references::Programs::new(plan);
    let of_rank = |(rank, list): (usize, &crate::plan::PlanRank)| {
        let of_item = |(item, entry): (usize, &crate::plan::Item)| {
            programs.of(entry.0).map_err(|what| references::refuse(rank, item, entry.0, what))
        };
        list.items.iter().enumerate().map(of_item).collect()
    };
    plan.ranks.iter().enumerate().map(of_rank).collect()
}

/// Whether an item occupies the rank's compute stream.
fn computes(task: crate::plan::Task) -> bool {
    task.stream() == StreamId::Compute
}
