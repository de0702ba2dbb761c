//! `dualweave import --format torch-csv`: a schedule of PyTorch, read, checked and improved.
//!
//! PyTorch's schedules have no costs and no model: these are plain numbers, as for `dualweave schedule`.

use std::path::PathBuf;

use serde::Serialize;

use super::{Args, reports};
use crate::cli::schedule::costs::{self, Costs, Stages};
use crate::cli::schedule::decimal::Decimal;
use crate::cli::{Verdict, output};
use crate::error::{Error, Result};
use crate::interop::torch::{self, Cell, Compute, File, Owners, Schedule, Work};
use crate::ir::{Layout, Memory, PairCost, Placement, Problem, StageMemory, Timetable, Workspace};
use crate::passes::pipeline::lower_bound;
use crate::passes::pipeline::search::{Limits, search_from};
use crate::units::Nanos;
use crate::view::chart::Axis;
use crate::view::table;

/// What only this format has.
#[derive(clap::Args)]
#[group(skip)]
#[command(next_help_heading = "With --format torch-csv")]
pub struct Options {
    /// Pipeline ranks: rows of the file.
    #[arg(long, value_name = "P", required_if_eq("format", "torch-csv"), value_parser = clap::value_parser!(u32).range(1..))]
    pp: Option<u32>,
    /// Micro-batches of a step.
    #[arg(long, value_name = "M", required_if_eq("format", "torch-csv"), value_parser = clap::value_parser!(u32).range(1..))]
    micro_batches: Option<u32>,
    /// Costs of each stage: a file of the line `stage,f,i,w` and one for each stage, from 0. By default all are 1.
    #[arg(long, value_name = "FILE")]
    costs: Option<PathBuf>,
    /// Cost of a forward overlapped with a full backward [default: the sum of both, as in PyTorch without a function for it].
    #[arg(long, value_name = "COST", allow_negative_numbers = true)]
    fb: Option<Decimal>,
    /// Time from rank to rank [default: 0].
    #[arg(long, value_name = "COST", allow_negative_numbers = true)]
    comm: Option<Decimal>,
    /// Search for a shorter schedule, in which no rank holds more chunks than in this one; `-o` writes it in the same format.
    #[arg(long)]
    improve: bool,
    /// Write it with sends and receives, and what FSDP does; without, PyTorch adds them when it loads the file.
    #[arg(long, requires = "output")]
    with_communication: bool,
}

impl Options {
    /// The first of these that is given, for formats that have none of them.
    pub fn given(&self) -> Option<&'static str> {
        let Self { pp, micro_batches, costs, fb, comm, improve, with_communication } = self;
        let given = [
            (pp.is_some(), "--pp"),
            (micro_batches.is_some(), "--micro-batches"),
            (costs.is_some(), "--costs"),
            (fb.is_some(), "--fb"),
            (comm.is_some(), "--comm"),
            (*improve, "--improve"),
            (*with_communication, "--with-communication"),
        ];
        given.into_iter().find_map(|(given, name)| given.then_some(name))
    }
}

/// A schedule in numbers. Times are in the user's unit.
#[derive(Serialize)]
struct Report {
    makespan: serde_json::Number,
    bubble_per_rank: Vec<serde_json::Number>,
    /// Most chunks that a rank holds at once, each from its F to its W or full backward.
    peak_activations_per_rank: Vec<u64>,
    actions: usize,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Whole {
    pp: u32,
    stages: u32,
    micro_batches: u32,
    /// If it has a name.
    placement: Option<String>,
    communication: bool,
    /// No schedule over the same placement and memory is shorter; only where that is known.
    lower_bound: Option<serde_json::Number>,
    read: Report,
    improved: Option<Report>,
}

/// Runs it.
pub(super) fn run(args: &Args) -> Result<Verdict> {
    let options = &args.torch;
    let Some((pp, micro_batches)) = options.pp.zip(options.micro_batches) else {
        return Err(Error::new("a schedule of PyTorch needs --pp and --micro-batches"));
    };
    let name = args.file.display().to_string();
    let File { schedule, owners } = torch::read(&name, &output::read(&args.file)?, pp, micro_batches)?;
    let model = Model::new(options, (pp, micro_batches), &schedule, &owners)?;
    let (better, bound) = match (&model.searched, options.improve) {
        (Ok((problem, timetable)), true) => {
            let found = search_from(problem, &Limits::for_problem(problem), std::slice::from_ref(timetable))?;
            (Some(torch::of_timetable(&found.timetable)?), Some(found.bound))
        }
        (Ok((problem, _)), false) => (None, Some(lower_bound(problem))),
        (Err(error), true) => {
            let why = Error::new(format!("this schedule cannot be searched from: {}", error.message()));
            return Err(match error.help_text() {
                Some(help) => why.help(help),
                None => why,
            });
        }
        (Err(_), false) => (None, None),
    };

    if reports(args) {
        output::print(&report(args, &model, &schedule, better.as_ref(), bound)?)?;
    }
    if let Some(path) = &args.output {
        let chosen = better.as_ref().unwrap_or(&schedule);
        let text = match options.with_communication {
            true => whole(chosen, micro_batches)?.to_string(),
            false => chosen.compute_only().to_string(),
        };
        output::write(path, &text)?;
    }
    Ok(Verdict::Yes)
}

/// With communication.
pub(in crate::cli) fn whole(schedule: &Schedule, micro_batches: u32) -> Result<Schedule> {
    torch::with_communication(schedule, micro_batches).map_err(|fault| Error::new(fault.message))
}

/// Costs, and what can be searched.
struct Model<'a> {
    owners: &'a Owners,
    pp: u32,
    micro_batches: u32,
    /// By stage. Its layout says only how many stages there are.
    problem: Problem,
    hop: Nanos,
    axis: Axis,
    /// The problem and the timetable of the file, or why there are none.
    searched: Result<(Problem, Timetable)>,
}

impl<'a> Model<'a> {
    fn new(
        options: &Options,
        (pp, micro_batches): (u32, u32),
        schedule: &Schedule,
        owners: &'a Owners,
    ) -> Result<Self> {
        let stages = owners.stages();
        let one = || Decimal { digits: 1, places: 0 };
        let listed = match &options.costs {
            Some(path) => costs::read(path)?,
            None => vec![[one(), one(), one()]; stages as usize],
        };
        if listed.len() != stages as usize {
            return Err(Error::new(format!("costs of {} stages, but the schedule has {stages}", listed.len()))
                .help("give a line for each stage"));
        }
        if options.fb.is_some_and(|cost| cost.digits == 0) {
            return Err(Error::new("--fb must be above 0").help("only --comm, and costs of W, may be 0"));
        }
        let hop = options.comm.unwrap_or(Decimal { digits: 0, places: 0 });
        let costs = Costs { stages: Stages::Listed(listed), pair: options.fb, hop };
        let places = costs.places(&[]);
        let problem = costs.problem(Layout::new(Placement::Loop, 1, stages, micro_batches), places)?;
        let half = |cell: &Cell| matches!(cell, Cell::Pair(_, Work { compute: Compute::I, .. }));
        if let (Some(cell), PairCost::Uniform(_)) =
            (schedule.rows.iter().flatten().flatten().find(|&cell| half(cell)), &problem.pair)
        {
            return Err(Error::new(format!(
                "`{cell}` overlaps a forward with half of a backward, which --fb says nothing of"
            ))
            .help("leave --fb out"));
        }
        let searched = torch::timetable(schedule, owners, micro_batches).and_then(|timetable| {
            let mut problem = costs.problem(timetable.layout, places)?;
            // As PyTorch keeps it: what a chunk holds is there until its last backward.
            let stage = StageMemory { activation: 1, for_weights: 1 };
            let limits = schedule.rows.iter().map(|row| held(row)).collect();
            let memory = Memory { stages: vec![stage; stages as usize], workspace: Workspace::default(), limits };
            problem.memory = Some(memory);
            Ok((problem, timetable))
        });
        let hop = Nanos(u64::try_from(hop.scaled(places)).unwrap_or(u64::MAX));
        let axis = Axis { places, unit: "" };
        Ok(Self { owners, pp, micro_batches, problem, hop, axis, searched })
    }

    fn cost(&self, cell: Cell) -> Nanos {
        let of = |work: Work| {
            let stage = &self.problem.stages[work.chunk.stage as usize];
            match work.compute {
                Compute::F => stage.f,
                Compute::B => stage.b,
                Compute::I => stage.i,
                Compute::W => stage.w,
            }
        };
        match (cell, &self.problem.pair) {
            (Cell::Pair(..), PairCost::Uniform(pair)) => *pair,
            _ => cell.works().map(of).sum(),
        }
    }

    /// Makespan, and by rank what it waits.
    fn times(&self, schedule: &Schedule) -> Result<(Nanos, Vec<Nanos>)> {
        let times = torch::time(schedule, self.owners, &|cell| self.cost(cell), self.hop);
        let times = times.map_err(|fault| Error::new(fault.message))?;
        let busy = |spans: &Vec<(Nanos, Nanos)>| spans.iter().map(|&(start, end)| end.saturating_sub(start)).sum();
        let bubbles = times.spans.iter().map(|spans| times.makespan.saturating_sub(busy(spans))).collect();
        Ok((times.makespan, bubbles))
    }
}

/// The most chunks that a rank holds at once.
fn held(row: &[Option<Cell>]) -> u64 {
    let (mut now, mut most) = (0_u64, 0);
    for work in row.iter().flatten().flat_map(Cell::works) {
        match work.compute {
            Compute::F => now += 1,
            // As many as were made: the file is whole.
            Compute::B | Compute::W => now -= 1,
            Compute::I => {}
        }
        most = most.max(now);
    }
    most
}

fn report(
    args: &Args,
    model: &Model,
    schedule: &Schedule,
    better: Option<&Schedule>,
    bound: Option<Nanos>,
) -> Result<String> {
    let axis = model.axis;
    let placement = model.searched.as_ref().ok().map(|(problem, _)| problem.layout.placement.to_string());
    if args.json {
        let report = |schedule: &Schedule| -> Result<Report> {
            let (makespan, bubbles) = model.times(schedule)?;
            Ok(Report {
                makespan: axis.json(makespan),
                bubble_per_rank: bubbles.into_iter().map(|bubble| axis.json(bubble)).collect(),
                peak_activations_per_rank: schedule.rows.iter().map(|row| held(row)).collect(),
                actions: schedule.actions(),
            })
        };
        return output::to_json(&Whole {
            pp: model.pp,
            stages: model.owners.stages(),
            micro_batches: model.micro_batches,
            placement,
            communication: schedule.communicates(),
            lower_bound: bound.map(|bound| axis.json(bound)),
            read: report(schedule)?,
            improved: better.map(report).transpose()?,
        });
    }
    let form = if schedule.communicates() { "with communication" } else { "compute-only" };
    let mut text = format!(
        "{}: {} stages on {} ranks ({}), {} micro-batches, {} actions, {form}\n\
         Every chunk is computed once, on one rank, with what it reads there; no rank waits for ever.\n",
        args.file.display(),
        model.owners.stages(),
        model.pp,
        placement.as_deref().unwrap_or("laid out in a way of its own"),
        model.micro_batches,
        schedule.actions(),
    );
    let mut rows = table::new(&["", "makespan", "largest bubble", "activations held"], output::talk_width());
    for (name, schedule) in [("as read", Some(schedule)), ("improved", better)] {
        let Some(schedule) = schedule else { continue };
        let (makespan, bubbles) = model.times(schedule)?;
        let largest = bubbles.into_iter().max().unwrap_or(Nanos::ZERO);
        rows.add_row([
            name.to_owned(),
            axis.number(makespan),
            format!("{} ({:.1} %)", axis.number(largest), 100.0 * largest.as_f64() / makespan.as_f64()),
            schedule.rows.iter().map(|row| held(row)).max().unwrap_or_default().to_string(),
        ]);
    }
    table::finish(&mut rows, &[1, 2, 3]);
    text += &format!("{rows}\n");
    if let Some(bound) = bound {
        text += &format!("No schedule over these stages and in this memory is shorter than {}.\n", axis.number(bound));
    }
    Ok(text)
}
