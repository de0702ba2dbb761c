//! The schedule `auto`: which placement, which cut into stages, what stages compute again, and which timetable.
//!
//! Every placement that the job leaves open is looked at: with stages of about equal cost, and with another cut where a layer more here
//! and one less there takes work from the fullest rank; layers in their plain form, a short search. Where memory makes the timetable longer,
//! also with stages that compute more again than the job asks for (`again`). The best few are compiled in full and
//! searched for long. Published timetables of the same chunk programs are always candidates. Of the plans that fit in memory the one whose
//! simulated step is the shortest is taken; if none fits, the one that needs least.

mod again;
mod cut;
mod room;

use super::place::arena::BRIEFLY;
use super::{Chunks, Compiled, Scheduled, Wanted, assemble, inside_chunks, inside_chunks_as, pipeline, tighten};
use crate::error::{Error, Result};
use crate::ir::Placement;
use crate::job::Job;
use crate::job::training::{PairOrder, ScheduleKind};
use crate::passes::pipeline::search::{Found, Limits, Objective, search};
use crate::passes::rewrite;
use crate::sim;
use crate::sim::memory::{Need, RankMemory};
use crate::units::{Bytes, Nanos};
use room::Room;

/// How often a search is repeated because its plan needs more beside its activations than was thought.
const ROUNDS: usize = 4;

/// Timings of an action that a first look at a placement and a cut may take.
const GLANCE: u64 = 1_000_000;

/// How many placements and cuts are compiled in full and searched for long, of those that are near the best at a glance.
const FINALISTS: usize = 3;

/// Near: not longer by more than one part in so many.
const NEAR: u64 = 50;

/// The best plan over all placements, as the module says.
///
/// # Errors
/// If no placement can be compiled: what the first one lacks.
pub fn compile(job: &Job) -> Result<Compiled> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut refused = None;
    for placement in placements(job) {
        let mut job = job.clone();
        job.training.placement = Some(placement);
        if placement != Placement::Loop {
            job.training.stages_per_rank = None;
        }
        match job.check().and_then(|()| Entry::of_cuts(&job)) {
            Ok(all) => entries.extend(all),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    entries.extend(with_more_again(&entries)?);
    // Stable: of equals the first.
    entries.sort_by_key(|entry| (entry.tried.lacks, entry.tried.step));
    let finalists = finalists(entries);
    let mut best: Option<Tried> = None;
    for entry in finalists {
        for tried in entry.in_full()? {
            if best.as_ref().is_none_or(|best| tried.is_better_than(best)) {
                best = Some(tried);
            }
        }
    }
    match (best, refused) {
        (Some(mut best), _) => {
            tighten(&mut best.compiled.plan);
            Ok(best.compiled)
        }
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::new("there is no placement to try")),
    }
}

/// Of the entries, the best first, those that are compiled in full: the first few, if they are near the best; and of those that lack memory
/// at a glance but would be shorter, the one that lacks least: a longer search may make it fit.
fn finalists(entries: Vec<Entry>) -> Vec<Entry> {
    let Some(best) = entries.first() else { return entries };
    let (lacks, step) = (best.tried.lacks, best.tried.step);
    let near = step + Nanos(step.0 / NEAR);
    let mut shorter = false;
    let chosen = entries.into_iter().enumerate().filter(|(at, entry)| {
        let tried = &entry.tried;
        let is_near = (tried.lacks, tried.step) <= (lacks, near) && *at < FINALISTS;
        let may_be_shorter = tried.lacks > lacks && tried.step < step && !std::mem::replace(&mut shorter, true);
        is_near || may_be_shorter
    });
    chosen.map(|(_, entry)| entry).collect()
}

/// With stages that compute more again, where memory is short and that promises a shorter step: for each placement, of the cut with which a
/// timetable could be shortest if memory were no question.
fn with_more_again(entries: &[Entry]) -> Result<Vec<Entry>> {
    let fitting = entries.iter().filter(|entry| entry.tried.lacks == Bytes::ZERO);
    let shortest = fitting.map(|entry| entry.tried.step).min();
    let bound = |entry: &Entry| pipeline::lower_bound(&entry.chunks.problem(&entry.job));
    let mut bounded: Vec<(Nanos, &Entry)> = entries.iter().map(|entry| (bound(entry), entry)).collect();
    bounded.retain(|(bound, _)| shortest.is_none_or(|shortest| *bound < shortest));
    bounded.sort_by_key(|(bound, _)| *bound);
    let (mut more, mut seen) = (Vec::new(), Vec::new());
    for (_, entry) in bounded {
        let placement = entry.chunks.lowered.layout.placement;
        if !seen.contains(&placement) {
            seen.push(placement);
            more.extend(entry.with_more_again()?);
        }
    }
    Ok(more)
}

/// A placement, a cut into stages and what they compute again, with the best plan at a glance: layers in their plain form, a short search.
struct Entry {
    job: Job,
    wanted: Wanted,
    chunks: Chunks,
    tried: Tried,
    room: Room,
}

/// A search at a glance.
const AT_A_GLANCE: Limits = Limits { timings: GLANCE, nodes: 0, objective: Objective::Makespan };

impl Entry {
    /// With the job's placement: stages of about equal cost, and another cut where that promises more.
    fn of_cuts(job: &Job) -> Result<Vec<Self>> {
        let even = inside_chunks(&plain(job))?;
        let other = cut::better(&plain(job), &even);
        let mut entries = vec![Self::new(job, Wanted::default(), even)?];
        if other.is_some() {
            let wanted = Wanted { cut: other, ..Wanted::default() };
            let chunks = inside_chunks_as(&plain(job), &wanted)?;
            entries.push(Self::new(job, wanted, chunks)?);
        }
        Ok(entries)
    }

    fn new(job: &Job, wanted: Wanted, chunks: Chunks) -> Result<Self> {
        let (tried, room) = within_memory(&plain(job), chunks.clone(), AT_A_GLANCE)?;
        Ok(Self { job: job.clone(), wanted, chunks, tried, room })
    }

    /// With stages that compute more again, where memory is short and that promises a shorter step.
    fn with_more_again(&self) -> Result<Option<Self>> {
        let job = plain(&self.job);
        let fits = self.tried.lacks == Bytes::ZERO;
        let makespan = fits.then(|| self.tried.makespan());
        let Some(recompute) = again::better(&job, &self.chunks, &self.room, makespan, &AT_A_GLANCE)? else {
            return Ok(None);
        };
        let wanted = Wanted { recompute: Some(recompute), ..self.wanted.clone() };
        let chunks = inside_chunks_as(&job, &wanted)?;
        Self::new(&self.job, wanted, chunks).map(Some)
    }

    /// The plans after a long search: with layers as they are rewritten, and, since those may hold more at a time, with plain ones.
    fn in_full(self) -> Result<Vec<Tried>> {
        let Self { job, wanted, chunks, tried, .. } = self;
        let limits = |chunks: &Chunks| Limits::for_problem(&chunks.problem(&job));
        let mut plans = vec![tried];
        if job.training.overlap == PairOrder::Search && !rewrite::none_allowed(&job) {
            let rewritten = inside_chunks_as(&job, &wanted)?;
            let limits = limits(&rewritten);
            let (tried, _) = within_memory(&job, rewritten, limits)?;
            let fits = tried.lacks == Bytes::ZERO;
            plans.push(tried);
            if fits {
                return Ok(plans);
            }
        }
        let limits = limits(&chunks);
        plans.push(within_memory(&job, chunks, limits)?.0);
        Ok(plans)
    }
}

/// The job with layers in their plain form.
fn plain(job: &Job) -> Job {
    let mut plain = job.clone();
    plain.training.without_rewrites = vec![rewrite::ALL.to_owned()];
    plain
}

/// The placements that a job leaves to the compiler, or the one that it names. A single rank has no use for any but a line, and a
/// single micro-batch none for a second direction.
pub fn placements(job: &Job) -> Vec<Placement> {
    let training = &job.training;
    match (training.placement(), training.stages_per_rank) {
        (Some(placement), _) => vec![placement],
        (None, Some(_)) => vec![Placement::Loop],
        (None, None) if training.pp == 1 => vec![Placement::Linear],
        (None, None) if training.micro_batches == 1 => vec![Placement::Linear, Placement::V, Placement::Loop],
        (None, None) => vec![Placement::Linear, Placement::V, Placement::Bidirectional, Placement::Loop],
    }
}

/// A plan, and what speaks for it.
struct Tried {
    compiled: Compiled,
    /// By how much the rank that needs most memory has too little of it; zero if all fit.
    lacks: Bytes,
    /// Simulated.
    step: Nanos,
}

impl Tried {
    /// Where it decides whether the plan fits, places in the arenas are looked for at length.
    fn new(mut compiled: Compiled) -> Result<(Self, Vec<RankMemory>)> {
        let simulation = sim::simulate(&compiled.plan)?;
        let limit = compiled.plan.machine.memory;
        let fit = |memory: &[RankMemory], bytes: fn(Need) -> Bytes| memory.iter().all(|rank| bytes(rank.need) <= limit);
        let mut memory = sim::memory::memory(&compiled.plan, &simulation);
        if !fit(&memory, Need::total) && fit(&memory, Need::least) {
            tighten(&mut compiled.plan);
            memory = sim::memory::memory(&compiled.plan, &simulation);
        }
        let lacks = memory.iter().map(|rank| rank.need.total().saturating_sub(limit)).max().unwrap_or_default();
        Ok((Self { compiled, lacks, step: simulation.step }, memory))
    }

    /// Of the timetable.
    fn makespan(&self) -> Nanos {
        self.compiled.plan.timetable.makespan
    }

    fn is_better_than(&self, other: &Self) -> bool {
        (self.lacks, self.step) < (other.lacks, other.step)
    }
}

/// The best plan with these chunk programs: of the timetable that the search finds within memory, or of a published one. What a plan
/// needs beside its activations is known when it is made, so a search may be repeated with less room; gives the room after the last.
fn within_memory(job: &Job, chunks: Chunks, limits: Limits) -> Result<(Tried, Room)> {
    let mut problem = chunks.problem(job);
    let layout = chunks.lowered.layout;
    let mut best: Option<Tried> = None;
    let keep = |tried: Tried, best: &mut Option<Tried>| {
        if best.as_ref().is_none_or(|best| tried.is_better_than(best)) {
            *best = Some(tried);
        }
    };
    let bound = pipeline::lower_bound(&problem);
    for kind in ScheduleKind::PUBLISHED.into_iter().filter(|kind| kind.placement() == Some(layout.placement)) {
        if let Ok(timetable) = pipeline::generate(kind, &layout) {
            let published = Scheduled { timetable, bound };
            keep(Tried::new(assemble(job, chunks.clone(), &problem, published, BRIEFLY)?)?.0, &mut best);
        }
    }
    let mut room = Room::new(job, &chunks);
    for _ in 0..ROUNDS {
        problem.memory = room.memory(&chunks);
        let found = match search(&problem, &limits) {
            Ok(found) => found,
            // Nothing fits, whatever the order: then the shortest. A plan says what it lacks.
            Err(_) if problem.memory.is_some() => {
                problem.memory = None;
                search(&problem, &limits)?
            }
            Err(error) => return Err(error),
        };
        let Found { timetable, bound, .. } = found;
        // With less room it only gets longer, and a step is longer than its timetable.
        let makespan = pipeline::replay(&problem, &timetable)?.makespan;
        if best.as_ref().is_some_and(|best| best.lacks == Bytes::ZERO && best.step <= makespan) {
            break;
        }
        let scheduled = Scheduled { timetable: timetable.clone(), bound };
        let (tried, memory) = Tried::new(assemble(job, chunks.clone(), &problem, scheduled, BRIEFLY)?)?;
        let over = tried.lacks == Bytes::ZERO || problem.memory.is_none();
        room.correct(&timetable, &memory, chunks.machine.memory);
        keep(tried, &mut best);
        if over {
            break;
        }
    }
    let best = best.ok_or_else(|| Error::new("no timetable was searched for"))?;
    Ok((best, room))
}
