//! The schedule `auto`: which placement, which cut into stages, what stages compute again, and which timetable.
//!
//! Every placement that the job leaves open is looked at: with stages of about equal cost, and with another cut where a layer more here
//! and one less there takes work from the fullest rank; layers in their plain form, a short search. Where memory makes the timetable longer,
//! also with stages that compute more again than the job asks for (`again`). The best few are compiled in full and
//! searched for long. Published timetables of the same chunk programs are always candidates, and published schedules compiled by themselves. Of the plans that fit in memory the one whose
//! simulated step is the shortest is taken; if none fits, the one that needs least.

mod again;
mod cut;
mod room;

pub(super) use room::held;

use super::place::arena::{AT_LAST, AT_LENGTH, BRIEFLY};
use super::{
    Chunks, Compiled, Scheduled, Wanted, assemble, compile_as, inside_chunks, inside_chunks_as, pipeline, tighten,
};
use crate::error::{Error, Result};
use crate::ir::{Memory, Placement, Problem, Timetable};
use crate::job::Job;
use crate::job::sms::CommunicationSms;
use crate::job::training::{PairOrder, ScheduleKind};
use crate::passes::pipeline::search::{Found, Limits, Objective, search, search_from};
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

/// How many where memory makes the step longer: what stages compute again can be chosen in many ways that are nearly as good.
const TIGHT_FINALISTS: usize = 6;

/// Near: not longer by more than one part in so many.
const NEAR: u64 = 50;

/// Far: longer by more than one part in so many. A longer search and rewritten layers do not make up for it: a fifth was seen.
const FAR: u64 = 4;

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
    let placed: Vec<(Placement, Job)> = entries
        .iter()
        .filter(|entry| entry.wanted == Wanted::default())
        .map(|entry| (entry.chunks.lowered.layout.placement, entry.job.clone()))
        .collect();
    // What one entry found may be the best that fits for another.
    let known: Vec<Timetable> = entries.iter().map(|entry| entry.tried.timetable.clone()).collect();
    let mut best: Option<Tried> = None;
    for entry in finalists(entries) {
        for tried in entry.in_full(&known)? {
            if best.as_ref().is_none_or(|best| tried.is_better_than(best)) {
                best = Some(tried);
            }
        }
    }
    let mut seen = Vec::new();
    for (placement, job) in placed {
        if !seen.contains(&placement) {
            seen.push(placement);
            best = published(&job, placement, best)?;
        }
    }
    match (best, refused) {
        (Some(mut best), _) => {
            tighten(&mut best.compiled.plan, AT_LAST);
            Ok(best.compiled)
        }
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::new("there is no placement to try")),
    }
}

/// The best so far, or a published schedule of the placement where that is better compiled by itself: where its plan does not fit with
/// rewritten layers, it is made with programs of less workspace. Those that are far from the best in their plain form, or cannot fit, are
/// passed over.
fn published(job: &Job, placement: Placement, mut best: Option<Tried>) -> Result<Option<Tried>> {
    for kind in ScheduleKind::PUBLISHED.into_iter().filter(|kind| kind.placement() == Some(placement)) {
        let mut job = job.clone();
        job.training.schedule = kind;
        // A schedule may have preconditions.
        let Ok(simple) = compile_as(&plain(&job), &Wanted::default()) else { continue };
        let timetable = pipeline::generate(kind, &simple.plan.layout)?;
        let (simple, memory) = Tried::new(simple, timetable.clone(), BRIEFLY)?;
        let limit = simple.compiled.plan.machine.memory;
        let could_fit = memory.iter().all(|rank| rank.need.least() <= limit);
        let far = |best: &Tried| best.lacks == Bytes::ZERO && simple.step > best.step + Nanos(best.step.0 / FAR);
        if !could_fit || best.as_ref().is_some_and(far) {
            continue;
        }
        let mut compiled = compile_as(&job, &Wanted::default())?;
        compiled.plan.origin.schedule = ScheduleKind::Auto.name().to_owned();
        let (tried, _) = Tried::new(compiled, timetable, AT_LENGTH)?;
        if best.as_ref().is_none_or(|best| tried.is_better_than(best)) {
            best = Some(tried);
        }
    }
    Ok(best)
}

/// Of the entries, the best first, those that are compiled in full: the first few, if they are near the best; and, since a longer search and
/// other programs may find more, one of each of these that could be shorter: of those that lack memory, but have room for a micro-batch, the
/// one that lacks least; of those that fit, where memory makes the step longer, the first that is not far from the best and whose
/// bound is not near the best's.
fn finalists(entries: Vec<Entry>) -> Vec<Entry> {
    let Some(best) = entries.first() else { return entries };
    let (lacks, step) = (best.tried.lacks, best.tried.step);
    let (near, far) = (step + Nanos(step.0 / NEAR), step + Nanos(step.0 / FAR));
    let bound = |entry: &Entry| entry.tried.compiled.plan.timetable.lower_bound;
    let much_less = bound(best).saturating_sub(Nanos(bound(best).0 / NEAR));
    let (mut lacking, mut tight) = (false, false);
    let mut seen: Vec<(Placement, Wanted)> = Vec::new();
    let mut chosen = Vec::new();
    for entry in entries {
        // The same after a longer search.
        let what = (entry.chunks.lowered.layout.placement, entry.wanted.clone());
        if seen.contains(&what) {
            continue;
        }
        let tried = &entry.tried;
        let most = if entry.limits == AT_A_GLANCE { FINALISTS } else { TIGHT_FINALISTS };
        let is_near = (tried.lacks, tried.step) <= (lacks, near) && seen.len() < most;
        let could_fit = tried.lacks > lacks && entry.room.is_some() && tried.step < step;
        let could_be_shorter = (tried.lacks, entry.limits == AT_A_GLANCE) == (lacks, false)
            && tried.step <= far
            && bound(&entry) < much_less;
        seen.push(what);
        if is_near
            || could_fit && !std::mem::replace(&mut lacking, true)
            || could_be_shorter && !std::mem::replace(&mut tight, true)
        {
            chosen.push(entry);
        }
    }
    chosen
}

/// Where memory makes the step longer: what a longer search finds, and with stages that compute more again. Of every placement and cut whose
/// bound leaves room for it, the lowest bound first: with which cut that works out is not known before.
fn with_more_again(entries: &[Entry]) -> Result<Vec<Entry>> {
    let fitting = entries.iter().filter(|entry| entry.tried.lacks == Bytes::ZERO);
    let mut shortest = fitting.map(|entry| entry.tried.step).min();
    let bound = |entry: &Entry| pipeline::lower_bound(&entry.chunks.problem(&entry.job));
    let mut bounded: Vec<(Nanos, &Entry)> = entries.iter().map(|entry| (bound(entry), entry)).collect();
    bounded.sort_by_key(|(bound, _)| *bound);
    let mut more = Vec::new();
    let mut known: Vec<Timetable> = entries.iter().map(|entry| entry.tried.timetable.clone()).collect();
    for (bound, entry) in bounded {
        if shortest.is_none_or(|shortest| bound < shortest) {
            entry.add_more_again(&mut shortest, &mut known, &mut more)?;
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
    /// Of the search for it.
    limits: Limits,
    /// `None` if not one micro-batch has room.
    room: Option<Room>,
}

/// A search at a glance.
const AT_A_GLANCE: Limits =
    Limits { timings: GLANCE, beams: 0, nodes: 0, objective: Objective::Makespan, proves: false };

/// A search that only says whether anything fits.
const WHETHER_ANY_FITS: Limits = Limits { timings: 0, ..AT_A_GLANCE };

/// A long search. Nobody asks how much shorter a timetable could be.
fn long_search(problem: &Problem) -> Limits {
    Limits { proves: false, beams: 0, ..Limits::for_problem(problem) }
}

impl Entry {
    /// With the job's placement: stages of about equal cost, and another cut where that promises more.
    fn of_cuts(job: &Job) -> Result<Vec<Self>> {
        let even = inside_chunks(&plain(job))?;
        let other = cut::better(&plain(job), &even);
        let mut entries = vec![Self::new(job, Wanted::default(), even, AT_A_GLANCE, &[])?];
        if other.is_some() {
            let wanted = Wanted { cut: other, ..Wanted::default() };
            let chunks = inside_chunks_as(&plain(job), &wanted)?;
            entries.push(Self::new(job, wanted, chunks, AT_A_GLANCE, &[])?);
        }
        Ok(entries)
    }

    fn new(job: &Job, wanted: Wanted, chunks: Chunks, limits: Limits, known: &[Timetable]) -> Result<Self> {
        let (tried, room) = within_memory(&plain(job), chunks.clone(), limits, known, BRIEFLY)?;
        Ok(Self { job: job.clone(), wanted, chunks, tried, limits, room })
    }

    /// Where memory makes the step longer than the `shortest` so far: what a longer search finds, with stages that compute again what the job
    /// says or more; the same on all, or what is good by a look at the timetable alone.
    fn add_more_again(
        &self,
        shortest: &mut Option<Nanos>,
        known: &mut Vec<Timetable>,
        more: &mut Vec<Self>,
    ) -> Result<()> {
        let job = plain(&self.with_its_sms());
        let levels = again::levels(&job, &self.wanted, &self.chunks, *shortest, &AT_A_GLANCE)?;
        let mixed = again::mixed(&levels, self.room.as_ref(), &AT_A_GLANCE);
        let stages = self.chunks.lowered.stages.len();
        let wanted = |recompute| Wanted { recompute: Some(recompute), ..self.wanted.clone() };
        let mut candidates = Vec::new();
        for chosen in mixed {
            let wanted = wanted(chosen.into_iter().map(|level| levels[level].recompute).collect());
            let chunks = inside_chunks_as(&job, &wanted)?;
            candidates.push((wanted, chunks));
        }
        let uniform = levels.into_iter().enumerate().map(|(at, level)| match at {
            0 => (self.wanted.clone(), level.chunks),
            _ => (wanted(vec![level.recompute; stages]), level.chunks),
        });
        candidates.extend(uniform);
        for (wanted, chunks) in candidates {
            let mut problem = chunks.problem(&job);
            problem.memory = Room::new(&job, &chunks).memory(&chunks);
            let fits_nowhere = || problem.memory.is_none() || search(&problem, &WHETHER_ANY_FITS).is_err();
            if shortest.is_some_and(|shortest| pipeline::lower_bound(&problem) >= shortest || fits_nowhere()) {
                continue;
            }
            let limits = long_search(&problem);
            let entry = Self::new(&self.job, wanted, chunks, limits, known)?;
            known.push(entry.tried.timetable.clone());
            if entry.tried.lacks == Bytes::ZERO {
                *shortest = Some(shortest.map_or(entry.tried.step, |shortest| shortest.min(entry.tried.step)));
            }
            more.push(entry);
        }
        Ok(())
    }

    /// The job, with the SMs for exchanges that were chosen for the entry's programs, unless each exchange has its own number.
    fn with_its_sms(&self) -> Job {
        let mut job = self.job.clone();
        if job.training.communication_sms == CommunicationSms::Best {
            job.training.communication_sms = CommunicationSms::Fixed(self.chunks.budget.sms);
        }
        job
    }

    /// The plans after a long search: with layers as they are rewritten, and, since those may hold more at a time, with plain ones.
    fn in_full(self, known: &[Timetable]) -> Result<Vec<Tried>> {
        let Self { job, wanted, chunks, tried, limits: before, .. } = self;
        let limits = |chunks: &Chunks| long_search(&chunks.problem(&job));
        let mut plans = vec![tried];
        if job.training.overlap == PairOrder::Search && !rewrite::none_allowed(&job) {
            let rewritten = inside_chunks_as(&job, &wanted)?;
            let limits = limits(&rewritten);
            let (tried, _) = within_memory(&job, rewritten, limits, known, AT_LENGTH)?;
            let fits = tried.lacks == Bytes::ZERO;
            plans.push(tried);
            if fits {
                return Ok(plans);
            }
        }
        let limits = limits(&chunks);
        if before == limits {
            let plan = &mut plans[0];
            let (tightened, _) = Tried::new(plan.compiled.clone(), plan.timetable.clone(), AT_LENGTH)?;
            *plan = tightened;
        } else {
            plans.push(within_memory(&job, chunks, limits, known, AT_LENGTH)?.0);
        }
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
    timetable: Timetable,
    /// By how much the rank that needs most memory has too little of it; zero if all fit.
    lacks: Bytes,
    /// Simulated.
    step: Nanos,
}

impl Tried {
    /// With work for places in the arenas of [`AT_LENGTH`] they are looked for at length where that decides whether the plan fits.
    fn new(mut compiled: Compiled, timetable: Timetable, work: u64) -> Result<(Self, Vec<RankMemory>)> {
        let simulation = sim::simulate(&compiled.plan)?;
        let limit = compiled.plan.machine.memory;
        let fit = |memory: &[RankMemory], bytes: fn(Need) -> Bytes| memory.iter().all(|rank| bytes(rank.need) <= limit);
        let mut memory = sim::memory::memory(&compiled.plan, &simulation);
        if work > BRIEFLY && !fit(&memory, Need::total) && fit(&memory, Need::least) {
            tighten(&mut compiled.plan, work);
            memory = sim::memory::memory(&compiled.plan, &simulation);
        }
        let lacks = memory.iter().map(|rank| rank.need.total().saturating_sub(limit)).max().unwrap_or_default();
        Ok((Self { compiled, timetable, lacks, step: simulation.step }, memory))
    }

    fn is_better_than(&self, other: &Self) -> bool {
        (self.lacks, self.step) < (other.lacks, other.step)
    }
}

/// The best plan with these chunk programs: of the timetable that the search finds within memory, or of a published one. What a plan
/// needs beside its chunks is known when it is made, so a search may be repeated with less room; gives the room after the last, if
/// there is any. `known` are timetables that may be good; `work` is what may be done for places in the arenas, see [`Tried::new`].
fn within_memory(
    job: &Job,
    chunks: Chunks,
    limits: Limits,
    known: &[Timetable],
    work: u64,
) -> Result<(Tried, Option<Room>)> {
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
            let published = Scheduled { timetable: timetable.clone(), bound };
            let compiled = assemble(job, chunks.clone(), &problem, published, BRIEFLY)?;
            keep(Tried::new(compiled, timetable, work)?.0, &mut best);
        }
    }
    let mut room = Room::new(job, &chunks);
    let mut possible = true;
    let mut known = known.to_vec();
    for round in 0..ROUNDS {
        problem.memory = room.memory(&chunks);
        if round == 0 && limits != AT_A_GLANCE {
            known.extend(with_less_memory(&problem, &known));
        }
        let found = match search_from(&problem, &limits, &known) {
            Ok(found) => found,
            // Nothing fits, whatever the order: then the shortest. A plan says what it lacks.
            Err(_) if problem.memory.is_some() => {
                problem.memory = None;
                search(&problem, &limits)?
            }
            Err(error) => return Err(error),
        };
        possible &= round > 0 || problem.memory.is_some();
        let Found { timetable, bound, .. } = found;
        // With less room it only gets longer, and a step is longer than its timetable.
        let makespan = pipeline::replay(&problem, &timetable)?.makespan;
        if best.as_ref().is_some_and(|best| best.lacks == Bytes::ZERO && best.step <= makespan) {
            break;
        }
        let scheduled = Scheduled { timetable: timetable.clone(), bound };
        let compiled = assemble(job, chunks.clone(), &problem, scheduled, BRIEFLY)?;
        let (tried, memory) = Tried::new(compiled, timetable.clone(), work)?;
        let over = tried.lacks == Bytes::ZERO || problem.memory.is_none();
        room.correct(&timetable, &memory, chunks.machine.memory);
        keep(tried, &mut best);
        if over {
            break;
        }
    }
    let best = best.ok_or_else(|| Error::new("no timetable was searched for"))?;
    Ok((best, possible.then_some(room)))
}

/// Less memory, in sixteenths, with which timetables are looked for at a glance: those fit as well, and what fills memory first may be longer.
const LESS: [u64; 3] = [15, 14, 12];

/// Timetables for less memory than there is; none where memory is no question.
fn with_less_memory(problem: &Problem, known: &[Timetable]) -> Vec<Timetable> {
    let Some(memory) = &problem.memory else { return Vec::new() };
    let mut less = problem.clone();
    let found = LESS.into_iter().filter_map(|sixteenths| {
        let limits = memory.limits.iter().map(|limit| limit / 16 * sixteenths).collect();
        less.memory = Some(Memory { limits, ..memory.clone() });
        // What does not fit is not to be had.
        search_from(&less, &AT_A_GLANCE, known).ok().map(|found| found.timetable)
    });
    found.collect()
}
