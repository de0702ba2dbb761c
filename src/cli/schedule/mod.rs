//! `dualweave schedule`: a published timetable, or one that is searched for, with costs that are plain numbers.
//!
//! Costs are decimals in a unit of the user's own. They are scaled by a power of ten to whole numbers, so that everything
//! that is computed from them is exact, and scaled back for printing.

pub(super) mod costs;
pub(super) mod decimal;
mod report;

use std::path::PathBuf;

use clap::ValueEnum;

use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::interop::torch::of_timetable;
use crate::ir::{Layout, Placement, Problem, Timetable};
use crate::job::training::ScheduleKind;
use crate::passes::pipeline::search::{Found, Limits, Origin, search};
use crate::passes::pipeline::{
    MAX_CHUNKS, MAX_RANKS, MAX_STAGES_PER_RANK, generate, precondition, replay, tight_bound,
};
use crate::units::Nanos;
use crate::view::chart::Axis;
use costs::{Costs, HALVES, Stages};
use decimal::Decimal;

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The schedule.
    #[arg(long, value_enum)]
    kind: ScheduleKind,
    /// Pipeline ranks.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pp: u32,
    /// Micro-batches of a step, over both directions.
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    micro_batches: u32,
    /// Cost of a forward of a stage; where the placement is `auto`'s to choose, of all stages of a rank together.
    #[arg(long, value_name = "COST", default_value = "1", allow_negative_numbers = true)]
    f: Decimal,
    /// Cost of a backward for the input.
    #[arg(long, value_name = "COST", default_value = "1", allow_negative_numbers = true)]
    i: Decimal,
    /// Cost of a weight gradient; a full backward costs i + w.
    #[arg(long, value_name = "COST", default_value = "1", allow_negative_numbers = true)]
    w: Decimal,
    /// Cost of a forward overlapped with a full backward [default: the sum of both].
    #[arg(long, value_name = "COST", allow_negative_numbers = true)]
    fb: Option<Decimal>,
    /// Time from rank to rank.
    #[arg(long, value_name = "COST", default_value = "0", allow_negative_numbers = true)]
    comm: Decimal,
    /// Costs of each stage, in place of --f, --i and --w: a file of the line `stage,f,i,w` and one for each stage, from 0.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["f", "i", "w"])]
    costs: Option<PathBuf>,
    /// Activations that a rank may hold, one number for all or one for each. A chunk counts one from the start of its F to the
    /// end of its I, and half from there to the end of its W.
    #[arg(long, value_name = "N,..", value_delimiter = ',', allow_negative_numbers = true)]
    memory: Vec<u64>,
    /// Where stages live; each published schedule has its own. `auto` tries all that there are costs for: with P stages linear
    /// and bidirectional, with 2P v and loop, with more loop; with equal stages all of them, a rank's costs divided among its
    /// stages.
    #[arg(long, value_enum, default_value = "auto")]
    placement: PlacementChoice,
    /// Stages of each rank, of `interleaved` and of loops over equal stages; all else fixes it [default: 2].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    stages_per_rank: Option<u32>,
    /// What to print.
    #[arg(long, value_enum, default_value = "chart")]
    format: Format,
}

/// A placement, or the best.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PlacementChoice {
    Linear,
    Loop,
    V,
    Bidirectional,
    Auto,
}

impl PlacementChoice {
    fn allows(self, placement: Placement) -> bool {
        match self {
            Self::Linear => placement == Placement::Linear,
            Self::Loop => placement == Placement::Loop,
            Self::V => placement == Placement::V,
            Self::Bidirectional => placement == Placement::Bidirectional,
            Self::Auto => true,
        }
    }
}

/// What to print.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Drawn against time, with makespan and bound; as wide as the terminal, 100 columns when piped.
    Chart,
    /// One line per rank, in the rank's own counting, as DeepSeek's code has it: `F0.3`, `FB0.7:1.3`.
    Tokens,
    /// One line per rank, by stage and micro-batch, as PyTorch has it: `3F7`, `(0F3;7B1)OVERLAP_F_B`.
    Stage,
    /// A file for `torch.distributed.pipelining`: PyTorch adds sends and receives when it loads it.
    TorchCsv,
    /// One object: times, memory and the token list of each rank.
    Json,
}

/// A timetable and what it is of.
struct Answer {
    problem: Problem,
    timetable: Timetable,
    /// Where the search has it from.
    origin: Option<Origin>,
    /// No timetable over this placement has a shorter makespan.
    bound: Nanos,
    axis: Axis,
    /// See [`Costs::parts`].
    parts: u32,
}

/// Runs it.
pub(super) fn run(args: Args) -> Result<Verdict> {
    output::print(&printed(&args)?)?;
    Ok(Verdict::Yes)
}

/// What the command prints.
///
/// # Errors
/// If the file of costs cannot be read, or there is no such timetable.
pub fn printed(args: &Args) -> Result<String> {
    let answer = match args.kind.placement() {
        Some(placement) => published(args, placement)?,
        None => searched(args)?,
    };
    Ok(match args.format {
        Format::Tokens => answer.timetable.local_tokens(),
        Format::Stage => answer.timetable.stage_tokens(),
        Format::TorchCsv => of_timetable(&answer.timetable)?.to_string(),
        Format::Chart => report::chart(args, &answer)?,
        Format::Json => report::json(args, &answer)?,
    })
}

/// The schedule that is asked for, which has this placement.
fn published(args: &Args, placement: Placement) -> Result<Answer> {
    let kind = args.kind;
    let per_rank = match (kind, args.stages_per_rank) {
        (ScheduleKind::Interleaved, given) => given.unwrap_or(2),
        (_, None) => 1,
        (kind, Some(_)) => {
            return Err(Error::new(format!("{kind} fixes the stages of a rank, so --stages-per-rank says nothing"))
                .help("leave it out, or use --kind interleaved"));
        }
    };
    if !args.placement.allows(placement) {
        return Err(Error::new(format!("{kind} lays its stages out as `{placement}`"))
            .help("leave --placement out, or use --kind auto"));
    }
    let costs = read_costs(args, Stages::Equal)?;
    let per_rank = match &costs.stages {
        Stages::Listed(list) => {
            let (lines, ranks) = (list.len() as u64, u64::from(args.pp));
            let given = lines.checked_div(ranks).unwrap_or(0);
            let loops = kind == ScheduleKind::Interleaved && args.stages_per_rank.is_none();
            let per_rank = if loops { given } else { u64::from(Layout::new(placement, 1, per_rank, 1).stages) };
            if lines != per_rank * ranks {
                return Err(Error::new(format!(
                    "costs of {lines} stages, but {kind} over {ranks} ranks has {}",
                    per_rank * ranks
                ))
                .help("give a line for each stage"));
            }
            // At most the lines of a file.
            per_rank as u32
        }
        _ => per_rank,
    };
    precondition(kind, args.pp, per_rank, args.micro_batches)?;
    let layout = Layout::new(placement, args.pp, per_rank, args.micro_batches);
    let places = costs.places(&[]);
    let mut problem = costs.problem(layout, places)?;
    let timetable = generate(kind, &layout)?;
    if !args.memory.is_empty() {
        let memory = costs::memory(&args.memory, &layout, 1)?;
        let peaks: Vec<u64> = timetable.ranks.iter().map(|actions| memory.peak(actions)).collect();
        let short = (0..).zip(peaks.iter().zip(&memory.limits)).find(|(_, (peak, limit))| peak > limit);
        if let Some((rank, (peak, limit))) = short {
            let most = peaks.iter().max().unwrap_or(peak).div_ceil(HALVES);
            let (peak, limit) = (*peak as f64 / HALVES as f64, limit / HALVES);
            return Err(Error::new(format!("{kind} holds {peak} activations on rank {rank}, which may hold {limit}"))
                .help(format!("use --memory {most}, or let --kind auto find what fits")));
        }
        problem.memory = Some(memory);
    }
    let bound = tight_bound(&problem);
    Ok(Answer { problem, timetable, origin: None, bound, axis: Axis { places, unit: "" }, parts: 1 })
}

/// The shortest over the placements that there are costs for; of equals the first.
fn searched(args: &Args) -> Result<Answer> {
    let per_rank = args.stages_per_rank.unwrap_or(2);
    check_size(args, per_rank)?;
    // As for the other schedules, unless placements with fewer and more stages are to be compared.
    let of_numbers = if args.placement == PlacementChoice::Auto { Stages::PerRank } else { Stages::Equal };
    let costs = read_costs(args, of_numbers)?;
    let all = costs.placements(args.pp, per_rank)?;
    let wanted: Vec<(Placement, u32)> =
        all.into_iter().filter(|(placement, _)| args.placement.allows(*placement)).collect();
    if wanted.is_empty() {
        let message = "the file has costs of another number of stages than this placement has";
        return Err(
            Error::new(message).help("with P stages: linear or bidirectional; with 2P: v or loop; with more: loop")
        );
    }
    let places = costs.places(&wanted.iter().map(|&(_, per_rank)| per_rank).collect::<Vec<u32>>());
    let mut best: Option<((u64, u64), Answer)> = None;
    let mut refused = None;
    for (placement, per_rank) in wanted {
        let layout = Layout::new(placement, args.pp, per_rank, args.micro_batches);
        if u64::from(layout.stages) * u64::from(layout.micro_batches) > MAX_CHUNKS {
            let message = format!("{} stages and {} micro-batches are too many", layout.stages, layout.micro_batches);
            refused = Some(Error::new(message).help(format!("at most {MAX_CHUNKS} chunks are scheduled")));
            continue;
        }
        let mut problem = costs.problem(layout, places)?;
        if !args.memory.is_empty() {
            let memory = costs::memory(&args.memory, &layout, costs.parts(&layout))?;
            if let Err(error) = costs::check_room(&memory, &layout, costs.parts(&layout)) {
                // With another placement there may be room.
                refused = refused.or(Some(error));
                continue;
            }
            problem.memory = Some(memory);
        }
        let found = match search(&problem, &Limits::for_problem(&problem)) {
            Ok(found) => found,
            Err(error) => {
                refused = refused.or(Some(error));
                continue;
            }
        };
        let replay = replay(&problem, &found.timetable)?;
        let length = (replay.makespan.0, replay.longest_span().0);
        if best.as_ref().is_none_or(|(best, _)| length < *best) {
            let axis = Axis { places, unit: "" };
            let Found { timetable, origin, bound } = found;
            let parts = costs.parts(&layout);
            best = Some((length, Answer { problem, timetable, origin: Some(origin), bound, axis, parts }));
        }
    }
    match (best, refused) {
        (Some((_, answer)), _) => Ok(answer),
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::new("no placement is left to search")),
    }
}

/// The limits that the published schedules have too.
fn check_size(args: &Args, per_rank: u32) -> Result<()> {
    if !(1..=MAX_RANKS).contains(&args.pp) {
        let nearest = args.pp.clamp(1, MAX_RANKS);
        return Err(Error::new(format!("auto needs 1 to {MAX_RANKS} ranks, not {}: use {nearest}", args.pp)));
    }
    if args.micro_batches == 0 {
        return Err(Error::new("auto needs at least 1 micro-batch, not 0: use 1"));
    }
    if !(1..=MAX_STAGES_PER_RANK).contains(&per_rank) {
        let nearest = per_rank.clamp(1, MAX_STAGES_PER_RANK);
        let message = format!("auto needs 1 to {MAX_STAGES_PER_RANK} stages per rank, not {per_rank}: use {nearest}");
        return Err(Error::new(message));
    }
    Ok(())
}

fn read_costs(args: &Args, of_numbers: fn(costs::Parts) -> Stages) -> Result<Costs> {
    for (name, cost) in [("f", Some(args.f)), ("i", Some(args.i)), ("fb", args.fb)] {
        if cost.is_some_and(|cost| cost.digits == 0) {
            return Err(Error::new(format!("--{name} must be above 0")).help("only --w and --comm may be 0"));
        }
    }
    let stages = match &args.costs {
        Some(path) => Stages::Listed(costs::read(path)?),
        None => of_numbers([args.f, args.i, args.w]),
    };
    Ok(Costs { stages, pair: args.fb, hop: args.comm })
}
