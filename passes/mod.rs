//! The passes, in the order in which they run. Each is a function of what the one before it made, the machine and its
//! options; none reads a file, prints, or knows the command line.
//!
//! [`lower`] → [`split`] → [`overlap`] → [`pipeline`] → [`place`] → [`emit`]. [`unit_work`] is an analysis that the first
//! two read, [`solver`] what searches put integer programs to. [`compile`] runs them all.

pub mod auto;
pub mod emit;
pub mod lower;
pub mod overlap;
pub mod pipeline;
pub mod place;
pub mod rewrite;
pub mod search;
pub mod solver;
pub mod split;
pub mod unit_work;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::ir::{ChunkId, Hops, Layout, Problem, Recompute, Stage, Timetable};
use crate::job::Job;
use crate::job::sms::CommunicationSms;
use crate::job::training::{PairOrder, ScheduleKind};
use crate::machine::Machine;
use crate::plan::{Certificate, Pair, Plan, PlanStage};
use crate::sim;
use crate::units::{Bytes, Nanos};
use overlap::{Budget, Pairs, StageForms};
use place::arena::{self, AT_LENGTH};
use rewrite::choose::{Asked, Choice};
use split::Kind;

/// A compiled job: the plan, and what the compiler tells a person about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// The plan.
    pub plan: Plan,
    /// One per stage.
    pub loads: Vec<StageLoad>,
    /// SMs that communication gets; where each exchange may have its own number, the one that they began with.
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

/// How often programs are made again, each time without the one with the largest workspace, until the plan fits in memory.
const TIGHTER: u32 = 4;

/// Runs every pass on a checked job.
///
/// The schedule `Auto` chooses the placement and the cut into stages as well: see [`auto`].
///
/// Rewritten layers may hold more at a time, since their weight gradients wait longer. Where the plan does not fit with them, but
/// does without, programs with less workspace are looked for; if that does not help, the plan is made without.
///
/// # Errors
/// If the schedule's preconditions do not hold, or the model cannot be cut into so many stages.
pub fn compile(job: &Job) -> Result<Compiled> {
    match job.training.schedule {
        ScheduleKind::Auto => auto::compile(job),
        _ => compile_as(job, &Wanted::default()),
    }
}

/// The same for a published schedule, with chunks as they are wanted.
fn compile_as(job: &Job, wanted: &Wanted) -> Result<Compiled> {
    let compiled = across_ranks(job, inside_chunks_as(job, wanted)?)?;
    let rewrites = job.training.overlap == PairOrder::Search && !rewrite::none_allowed(job);
    if !rewrites || fits(&compiled.plan)? {
        return Ok(compiled);
    }
    let mut without = job.clone();
    without.training.without_rewrites = vec![rewrite::ALL.to_owned()];
    let plain = across_ranks(&without, inside_chunks_as(&without, wanted)?)?;
    if !fits(&plain.plan)? {
        return Ok(compiled);
    }
    let mut fullest = compiled;
    for _ in 0..TIGHTER {
        let most = fullest.plan.programs.iter().map(|program| program.workspace).max().unwrap_or_default();
        let less = Wanted { workspace: Some(most.saturating_sub(Bytes(1))), ..wanted.clone() };
        fullest = across_ranks(job, inside_chunks_as(job, &less)?)?;
        if fits(&fullest.plan)? {
            let better = fullest.plan.timetable.makespan < plain.plan.timetable.makespan;
            return Ok(if better { fullest } else { plain });
        }
    }
    Ok(plain)
}

/// Whether every rank has room for what it needs.
fn fits(plan: &Plan) -> Result<bool> {
    let simulation = sim::simulate(plan)?;
    Ok(sim::memory::memory(plan, &simulation).iter().all(|rank| rank.need.total() <= plan.machine.memory))
}

/// A job whose chunk programs are made: what [`inside_chunks`] gives to [`across_ranks`].
#[derive(Clone, Debug)]
pub struct Chunks {
    machine: Machine,
    lowered: lower::Lowered,
    split: Vec<split::SplitStage>,
    overlapped: overlap::Overlapped,
    budget: Budget,
}

/// How many numbers of SMs, of those whose plain programs give the shortest timetables, are also tried with rewritten layers.
const WORTH_REWRITING: usize = 2;

/// The first half: `lower`, `split`, `rewrite` and `overlap`. Its time does not depend on the number of micro-batches. Where the
/// job leaves the SMs of communication to the compiler, several numbers are tried, the best of them with rewritten layers, and
/// the one is kept with which the timetable is shortest, messages between ranks not counted.
///
/// # Errors
/// As [`compile`].
pub fn inside_chunks(job: &Job) -> Result<Chunks> {
    inside_chunks_as(job, &Wanted::default())
}

/// What chunks are made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Programs that need no more than this where there are such.
    workspace: Option<Bytes>,
    /// The model cut behind the units that these count; `None`: into stages of about equal cost.
    cut: Option<Vec<usize>>,
    /// What each stage computes again; `None`: what the job says.
    recompute: Option<Vec<Recompute>>,
}

fn inside_chunks_as(job: &Job, wanted: &Wanted) -> Result<Chunks> {
    let training = &job.training;
    let machine = Machine::new(&job.cluster, training.memory_limit_gb);
    pipeline::precondition(training.schedule, training.pp, training.stages_per_rank(), training.micro_batches)?;
    let numbers = match training.communication_sms {
        CommunicationSms::Fixed(sms) => vec![sms],
        CommunicationSms::Best | CommunicationSms::Each => overlap::budget::promising(job, &machine),
    };
    let offered = match training.communication_sms {
        CommunicationSms::Each => overlap::budget::offered(job),
        CommunicationSms::Fixed(_) | CommunicationSms::Best => Vec::new(),
    };
    let plain = |sms: u32| inside_chunks_with(job, &machine, Budget::fixed(sms), wanted, &BTreeMap::new());
    let tried = shortest_first(training.schedule, numbers.into_iter().map(plain).collect::<Result<_>>()?)?;
    let mut rewritten = Vec::new();
    for chunks in tried.into_iter().take(WORTH_REWRITING) {
        let forms = forms(job, &machine, &chunks)?;
        if forms.is_empty() && offered.is_empty() {
            rewritten.push(chunks);
        } else {
            let budget = Budget { sms: chunks.budget.sms, offered: offered.clone() };
            rewritten.push(inside_chunks_with(job, &machine, budget, wanted, &forms)?);
        }
    }
    match shortest_first(training.schedule, rewritten)?.into_iter().next() {
        Some(best) => Ok(best),
        None => plain(2),
    }
}

/// What `rewrite` makes of each kind of layer with experts, with the SMs that were chosen for its plain form. Nothing if the
/// order is not searched for, or no rule may be used.
fn forms(job: &Job, machine: &Machine, plain: &Chunks) -> Result<BTreeMap<Kind, Vec<Choice>>> {
    let training = &job.training;
    let mut forms = BTreeMap::new();
    if training.overlap != PairOrder::Search || rewrite::none_allowed(job) {
        return Ok(forms);
    }
    let stages = &plain.lowered.stages;
    let kinds: BTreeSet<Kind> = stages.iter().flat_map(|stage| split::kinds(job, stage)).collect();
    for kind in kinds {
        let of_kind = |stage: &Stage| split::kinds(job, stage).filter(|other| *other == kind).count();
        let layers = stages.iter().map(of_kind).max().unwrap_or(1) as u32;
        let (unit, recompute) = kind;
        let asked = Asked { job, machine, comm_sms: plain.budget.sms, unit, recompute, layers };
        let choices = asked.choose(&rewrite::options(job))?.choices;
        if !choices.is_empty() {
            forms.insert(kind, choices);
        }
    }
    Ok(forms)
}

/// With these SMs for exchanges; each program may have the form of its units that is the best for it.
fn inside_chunks_with(
    job: &Job,
    machine: &Machine,
    budget: Budget,
    wanted: &Wanted,
    rewritten: &BTreeMap<Kind, Vec<Choice>>,
) -> Result<Chunks> {
    let mut lowered = match &wanted.cut {
        Some(ends) => lower::cut(job, ends),
        None => lower::lower(job, machine, budget.sms)?,
    };
    for (stage, recompute) in lowered.stages.iter_mut().zip(wanted.recompute.iter().flatten()) {
        stage.recompute = *recompute;
    }
    let mut split = split::split(job, &lowered);
    let options = overlap::Options {
        budget: budget.clone(),
        workspace: wanted.workspace,
        order: job.training.overlap,
        pairs: match job.training.schedule {
            ScheduleKind::DualPipe | ScheduleKind::DualPipeV => Pairs::OfTwoStages,
            // With one micro-batch there is no second one to run beside it.
            ScheduleKind::Auto if job.training.micro_batches > 1 => Pairs::All,
            _ => Pairs::None,
        },
    };
    let mut forms: Vec<StageForms> = split.iter().map(|stage| StageForms::plain(stage.chunk.clone())).collect();
    let choices = rewritten.values().map(Vec::len).max().unwrap_or(0);
    for choice in 0..choices {
        let form = |kind: Kind| Some(&rewritten.get(&kind)?.get(choice)?.form);
        for ((stage, forms), other) in split.iter_mut().zip(&mut forms).zip(split::split_as(job, &lowered, &form)) {
            // Whichever form a program takes, its exchanges have room.
            stage.chunk.exchange_buffer = stage.chunk.exchange_buffer.max(other.chunk.exchange_buffer);
            forms.rewritten.push(other.chunk);
        }
    }
    let overlapped = overlap::overlap(&forms, &lowered.layout, machine, options);
    Ok(Chunks { machine: machine.clone(), lowered, split, overlapped, budget })
}

/// A search that only compares programs.
const QUICK: pipeline::search::Limits = pipeline::search::Limits {
    timings: 0,
    beams: 0,
    nodes: 0,
    objective: pipeline::search::Objective::Makespan,
    proves: false,
};

/// Those with which the schedule's timetable is shorter come first; of equals, as they were.
fn shortest_first(schedule: ScheduleKind, tried: Vec<Chunks>) -> Result<Vec<Chunks>> {
    if tried.len() < 2 {
        return Ok(tried);
    }
    let timed = tried.into_iter().map(|chunks| Ok((chunks.makespan(schedule)?, chunks)));
    let mut timed = timed.collect::<Result<Vec<_>>>()?;
    timed.sort_by_key(|(time, _)| *time);
    Ok(timed.into_iter().map(|(_, chunks)| chunks).collect())
}

impl Chunks {
    /// The pipeline problem that the chunk programs pose; memory is left out.
    fn problem(&self, job: &Job) -> Problem {
        let stages = emit::stages(job, &self.machine, &self.lowered, &self.split, &self.overlapped);
        let layout = self.lowered.layout;
        self.overlapped.problem(layout, hops(job, &self.machine, &layout, &stages))
    }

    /// How long the schedule's timetable takes with these programs, if messages take no time; of `Auto` one that is found quickly.
    fn makespan(&self, schedule: ScheduleKind) -> Result<Nanos> {
        let problem = self.overlapped.problem(self.lowered.layout, Hops::Uniform(Nanos::ZERO));
        let timetable = match schedule {
            ScheduleKind::Auto => pipeline::search::search(&problem, &QUICK)?.timetable,
            _ => pipeline::generate(schedule, &self.lowered.layout)?,
        };
        Ok(pipeline::replay(&problem, &timetable)?.makespan)
    }
}

/// The second half: `pipeline`, `place` and `emit`. Its time grows with stages × micro-batches.
///
/// # Errors
/// As [`compile`].
pub fn across_ranks(job: &Job, chunks: Chunks) -> Result<Compiled> {
    let timetable = pipeline::generate(job.training.schedule, &chunks.lowered.layout)?;
    let problem = chunks.problem(job);
    let bound = pipeline::lower_bound(&problem);
    assemble(job, chunks, &problem, Scheduled { timetable, bound }, AT_LENGTH)
}

/// A timetable of which it is proved that none is shorter than `bound`.
#[derive(Clone)]
struct Scheduled {
    timetable: Timetable,
    bound: Nanos,
}

/// The plan of a timetable: `place` and `emit`. `work` limits the search for places in the arenas.
fn assemble(job: &Job, chunks: Chunks, problem: &Problem, scheduled: Scheduled, work: u64) -> Result<Compiled> {
    let Scheduled { timetable, bound } = scheduled;
    let Chunks { machine, lowered, split, overlapped, budget } = chunks;
    let stages = emit::stages(job, &machine, &lowered, &split, &overlapped);
    let replay = pipeline::replay(problem, &timetable)?;
    let certificate = Certificate { makespan: replay.makespan, lower_bound: bound };

    let gather = job.training.sharded_optimizer;
    let pairs: Vec<Pair> = overlapped.pairs.iter().map(|(&(f, b), &program)| Pair { f, b, program }).collect();
    let ranks = place::place(place::Input {
        problem,
        timetable: &timetable,
        replay: &replay,
        stages: &stages,
        pairs: &pairs,
        programs: &overlapped.programs,
        gather,
        work,
    });
    let loads = lowered.stages.into_iter().zip(&split).map(|(stage, split)| {
        let (computation, communication) = split::loads(&split.chunk, &machine, budget.sms);
        StageLoad { stage, computation, communication }
    });
    let loads = loads.collect();
    let pair_gap = overlapped.pair_gap();
    let plan = emit::emit(job, &machine, &timetable, stages, overlapped, certificate, ranks);
    Ok(Compiled { plan, loads, communication_sms: budget.sms, pair_gap })
}

/// Looks longer for places in the arenas of a plan, and seals it again. No arena gets larger.
fn tighten(plan: &mut Plan, work: u64) {
    let blocks = arena::Blocks::new(&plan.stages, &plan.pairs, &plan.programs);
    arena::lay_out(&mut plan.ranks, &plan.layout, &blocks, work);
    plan.seal();
}

/// Times of the messages between neighbouring stages, as `sim` will see them.
fn hops(job: &Job, machine: &Machine, layout: &Layout, stages: &[PlanStage]) -> Hops {
    let gpus = u64::from(job.training.dp) * u64::from(job.training.tp);
    let hop = |boundary: u32, micro_batch: u32| {
        let rank = |stage| layout.rank_of(ChunkId::new(stage, micro_batch));
        let hop = machine.hop(gpus, rank(boundary), rank(boundary + 1));
        machine.transfer(stages[boundary as usize].output, hop)
    };
    // The first micro-batch travels in direction 0, the last in direction 1 if there is one.
    let last = layout.micro_batches.saturating_sub(1);
    Hops::Boundaries((0..layout.stages.saturating_sub(1)).map(|s| [hop(s, 0), hop(s, last)]).collect())
}
