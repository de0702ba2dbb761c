//! The passes, in the order in which they run. Each is a function of what the one before it made, the machine and its
//! options; none reads a file, prints, or knows the command line.
//!
//! [`lower`] → [`split`] → [`overlap`] → [`pipeline`] → [`place`] → [`emit`]. [`unit_work`] is an analysis that the first
//! two read. [`compile`] runs them all.

pub mod emit;
pub mod lower;
pub mod overlap;
pub mod pipeline;
pub mod place;
pub mod rewrite;
pub mod split;
pub mod unit_work;

use crate::error::Result;
use crate::ir::{ChunkId, Hops, Layout, Stage};
use crate::job::Job;
use crate::job::training::ScheduleKind;
use crate::machine::Machine;
use crate::plan::{Certificate, Plan, PlanStage};
use crate::units::Nanos;

/// A compiled job: the plan, and what the compiler tells a person about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// The plan.
    pub plan: Plan,
    /// One per stage.
    pub loads: Vec<StageLoad>,
    /// SMs that communication gets.
    pub communication_sms: u32,
    /// How much longer than its bound a pair's program takes, at most, and over all pairs together: shares of the bound.
    /// `None` without pairs.
    pub pair_gap: Option<(f64, f64)>,
}

/// Work of one chunk of a stage, F, I and W together.
#[derive(Clone, Debug, PartialEq)]
pub struct StageLoad {
    /// Its units.
    pub stage: Stage,
    /// Time of its computation, on the SMs that communication leaves.
    pub computation: Nanos,
    /// Time of its dispatch and combine, on the SMs that they get.
    pub communication: Nanos,
}

/// Runs every pass on a checked job.
///
/// # Errors
/// If the schedule's preconditions do not hold, or the model cannot be cut into so many stages.
pub fn compile(job: &Job) -> Result<Compiled> {
    across_ranks(job, inside_chunks(job)?)
}

/// A job whose chunk programs are made: what [`inside_chunks`] gives to [`across_ranks`].
#[derive(Clone, Debug)]
pub struct Chunks {
    machine: Machine,
    lowered: lower::Lowered,
    split: Vec<split::SplitStage>,
    overlapped: overlap::Overlapped,
}

/// The first half: `lower`, `split` and `overlap`. Its time does not depend on the number of micro-batches.
///
/// # Errors
/// As [`compile`].
pub fn inside_chunks(job: &Job) -> Result<Chunks> {
    let training = &job.training;
    let machine = Machine::new(&job.cluster, training.memory_limit_gb);
    pipeline::precondition(training.schedule, training.pp, training.stages_per_rank(), training.micro_batches)?;

    let lowered = lower::lower(job, &machine)?;
    let split = split::split(job, &lowered);
    let options = overlap::Options {
        communication_sms: training.communication_sms,
        order: training.overlap,
        pairs: matches!(training.schedule, ScheduleKind::DualPipe | ScheduleKind::DualPipeV),
    };
    let overlapped = overlap::overlap(&split, &lowered.layout, &machine, options);
    Ok(Chunks { machine, lowered, split, overlapped })
}

/// The second half: `pipeline`, `place` and `emit`. Its time grows with stages × micro-batches.
///
/// # Errors
/// As [`compile`].
pub fn across_ranks(job: &Job, chunks: Chunks) -> Result<Compiled> {
    let training = &job.training;
    let Chunks { machine, lowered, split, overlapped } = chunks;
    let stages = emit::stages(job, &machine, &lowered, &split, &overlapped);
    let problem = overlapped.problem(lowered.layout, hops(job, &machine, &lowered.layout, &stages));
    let timetable = pipeline::generate(training.schedule, &lowered.layout)?;
    let replay = pipeline::replay(&problem, &timetable)?;
    let certificate = Certificate { makespan: replay.makespan, lower_bound: pipeline::lower_bound(&problem) };

    let gather = training.sharded_optimizer;
    let input = place::Input { problem: &problem, timetable: &timetable, replay: &replay, stages: &stages, gather };
    let ranks = place::place(input);
    let loads = lowered.stages.into_iter().zip(&split).map(|(stage, split)| {
        let (computation, communication) = split::loads(&split.chunk, &machine, training.communication_sms);
        StageLoad { stage, computation, communication }
    });
    let loads = loads.collect();
    let pair_gap = overlapped.pair_gap();
    let plan = emit::emit(job, &machine, &timetable, stages, overlapped, certificate, ranks);
    Ok(Compiled { plan, loads, communication_sms: training.communication_sms, pair_gap })
}

/// Times of the messages between neighbouring stages, as `sim` will see them.
fn hops(job: &Job, machine: &Machine, layout: &Layout, stages: &[PlanStage]) -> Hops {
    let gpus = u64::from(job.training.dp) * u64::from(job.training.tp);
    let hop = |boundary: u32, micro_batch: u32| {
        let rank = |stage| layout.rank_of(ChunkId::new(stage, micro_batch));
        let same_node = machine.ranks_share_node(gpus, rank(boundary), rank(boundary + 1));
        machine.transfer(stages[boundary as usize].output, same_node)
    };
    // The first micro-batch travels in direction 0, the last in direction 1 if there is one.
    let last = layout.micro_batches.saturating_sub(1);
    Hops::Boundaries((0..layout.stages.saturating_sub(1)).map(|s| [hop(s, 0), hop(s, last)]).collect())
}
