//! Stages that compute more again, where memory makes the timetable longer than it would be.
//!
//! Levels go from what the job computes again to whole layers, in each step by what frees most bytes for the time that it adds. Programs are
//! made for all stages on each level; a timetable with stages on different levels takes each stage's from its own. Stages of
//! the ranks that are fullest are put one level up as long as the timetable gets shorter, as a short search sees it.

use std::cmp::Ordering;

use super::room::{Room, held};
use crate::error::Result;
use crate::ir::{Memory, PairCost, Placement, Problem, Recompute, Workspace};
use crate::job::Job;
use crate::passes::pipeline::search::{Limits, search};
use crate::passes::{Chunks, Wanted, inside_chunks_as, pipeline, split};
use crate::units::Nanos;

/// Each by itself: what a level can have more than the one before.
const PARTS: [Recompute; 4] = [
    Recompute { norms: true, ..Recompute::NOTHING },
    Recompute { mla_up: true, ..Recompute::NOTHING },
    Recompute { swiglu: true, ..Recompute::NOTHING },
    Recompute { layer: true, ..Recompute::NOTHING },
];

/// Of how many ranks stages are put a level up at once: all, a half, and so on, of the fullest.
const SHARES: [u32; 3] = [1, 2, 4];

/// A timetable is longer for its memory if it is by more than one part in so many: less than that, a short search misses anyway.
const LONGER: u64 = 200;

/// What all stages compute again, and the programs for it.
pub struct Level {
    /// What it is.
    pub recompute: Recompute,
    /// The programs.
    pub chunks: Chunks,
    problem: Problem,
    /// `None` if a rank has no room for anything.
    room: Option<Memory>,
}

impl Level {
    fn new(job: &Job, recompute: Recompute, chunks: Chunks) -> Self {
        let (problem, room) = (chunks.problem(job), Room::new(job, &chunks).memory(&chunks));
        Self { recompute, chunks, problem, room }
    }
}

/// The levels of a job with these programs, what it says itself first; nothing, if memory makes no timetable longer than `within`, or if
/// not one micro-batch has room on the highest.
///
/// # Errors
/// If a pipeline problem cannot be searched, or programs cannot be made.
pub fn levels(
    job: &Job,
    wanted: &Wanted,
    chunks: &Chunks,
    within: Option<Nanos>,
    limits: &Limits,
) -> Result<Vec<Level>> {
    let mut problem = chunks.problem(job);
    if let Some(within) = within {
        let free = makespan(&problem, limits)?;
        if free + Nanos(free.0 / LONGER) >= within {
            return Ok(Vec::new());
        }
    }
    let all = recomputes(job, chunks);
    problem.memory = Room::new(job, chunks).memory(chunks);
    let (Some(memory), Some(last)) = (&mut problem.memory, all.last()) else { return Ok(Vec::new()) };
    memory.stages = split_as(job, chunks, *last).iter().map(|stage| held(&stage.chunk.held)).collect();
    memory.workspace = Workspace::default();
    if search(&problem, &super::WHETHER_ANY_FITS).is_err() {
        return Ok(Vec::new());
    }
    let mut levels = vec![Level::new(job, all[0], chunks.clone())];
    for &recompute in &all[1..] {
        let wanted = Wanted { recompute: Some(vec![recompute; problem.stages.len()]), ..wanted.clone() };
        levels.push(Level::new(job, recompute, inside_chunks_as(job, &wanted)?));
    }
    Ok(levels)
}

/// Levels of the stages, not the same on all, with which timetables are short: from each level on, all steps of going up as long as that
/// finds shorter ones. Short searches err, so it is not the last step alone.
pub fn mixed(levels: &[Level], room: Option<&Room>, limits: &Limits) -> Vec<Vec<usize>> {
    let Some(first) = levels.first() else { return Vec::new() };
    // What plans were seen to need beside their chunks is in it, if there were any.
    let seen = room.and_then(|room| room.memory(&first.chunks));
    let Some(memory) = seen.or_else(|| first.room.clone()) else { return Vec::new() };
    let mut all: Vec<Vec<usize>> = Vec::new();
    for level in 0..levels.len() - 1 {
        for chosen in climb(levels, &memory, level, limits) {
            if chosen.iter().any(|level| *level != chosen[0]) && !all.contains(&chosen) {
                all.push(chosen);
            }
        }
    }
    all
}

/// The steps of going up from a level, with some stages at a time, as long as a timetable gets shorter.
fn climb(levels: &[Level], memory: &Memory, from: usize, limits: &Limits) -> Vec<Vec<usize>> {
    let problem = &levels[0].problem;
    let mut chosen = vec![from; problem.stages.len()];
    let mut steps = Vec::new();
    let mut sets = sets(problem, memory);
    sets.retain(|set| set.len() < chosen.len());
    let mut best = Nanos(u64::MAX);
    loop {
        let mut next: Option<Vec<usize>> = None;
        for stages in &sets {
            let raised = raised(&chosen, stages, levels.len() - 1);
            let problem = with(levels, &memory.limits, &raised);
            if raised == chosen || pipeline::lower_bound(&problem) >= best {
                continue;
            }
            // Where not one micro-batch fits there is nothing to find.
            let Ok(time) = makespan(&problem, limits) else { continue };
            if time < best {
                (best, next) = (time, Some(raised));
            }
        }
        match next {
            Some(next) => {
                steps.push(next.clone());
                chosen = next;
            }
            None => return steps,
        }
    }
}

/// The levels with these stages one up.
fn raised(chosen: &[usize], stages: &[usize], highest: usize) -> Vec<usize> {
    let mut raised = chosen.to_vec();
    for &stage in stages {
        raised[stage] = (raised[stage] + 1).min(highest);
    }
    raised
}

fn makespan(problem: &Problem, limits: &Limits) -> Result<Nanos> {
    Ok(pipeline::replay(problem, &search(problem, limits)?.timetable)?.makespan)
}

/// The stages if all compute this again.
fn split_as(job: &Job, chunks: &Chunks, recompute: Recompute) -> Vec<split::SplitStage> {
    let mut lowered = chunks.lowered.clone();
    lowered.stages.iter_mut().for_each(|stage| stage.recompute = recompute);
    split::split(job, &lowered)
}

/// From what the job computes again on, each by that part over the one before which frees most bytes for its time.
fn recomputes(job: &Job, chunks: &Chunks) -> Vec<Recompute> {
    // What chunks hold, and the time of their backwards for the input, one op after the other; all stages together.
    let cost = |recompute: Recompute| -> (u64, Nanos) {
        let stages = split_as(job, chunks, recompute);
        let machine = &chunks.machine;
        let ops = stages.iter().flat_map(|stage| &stage.chunk.i);
        let time = ops.map(|op| machine.duration(&op.work, machine.sms_of(&op.work, chunks.budget.sms))).sum();
        (stages.iter().map(|stage| held(&stage.chunk.held).activation).sum(), time)
    };
    let mut all = vec![job.training.recompute];
    let mut now = cost(job.training.recompute);
    loop {
        let last = all[all.len() - 1];
        let next = PARTS.into_iter().map(|part| {
            let next = last.and(part);
            let (bytes, time) = cost(next);
            (next, (bytes, time), (now.0.saturating_sub(bytes), time.saturating_sub(now.1).0))
        });
        let freeing = next.filter(|(_, _, (bytes, _))| *bytes > 0);
        match freeing.reduce(|best, next| if better_worth(next.2, best.2) { next } else { best }) {
            Some((next, cost, _)) => {
                all.push(next);
                now = cost;
            }
            None => return all,
        }
    }
}

/// Whether one (bytes freed, time added) frees more for its time than another.
fn better_worth(one: (u64, u64), other: (u64, u64)) -> bool {
    let times = |bytes: u64, time: u64| u128::from(bytes) * u128::from(time);
    times(one.0, other.1).cmp(&times(other.0, one.1)) == Ordering::Greater
}

/// The stages that may go a level up together: of some of the fullest ranks all, or, where they hold several of one direction, the first
/// one, whose chunks wait the longest.
fn sets(problem: &Problem, memory: &Memory) -> Vec<Vec<usize>> {
    let layout = &problem.layout;
    // How full a rank is if the chunks of a stage wait for all stages behind it, there and back.
    let demand = |rank: u32| -> u128 {
        let stages = layout.stages_of(rank).into_iter();
        let waits =
            |stage: u32| u128::from(memory.stages[stage as usize].activation) * u128::from(layout.stages - stage);
        stages.map(waits).sum()
    };
    let limit = |rank: u32| u128::from(memory.limits[rank as usize]);
    let mut ranks: Vec<u32> = (0..layout.ranks).collect();
    ranks.sort_by(|&one, &other| (demand(other) * limit(one)).cmp(&(demand(one) * limit(other))));
    let mut sets: Vec<Vec<usize>> = Vec::new();
    for share in SHARES {
        let fullest = &ranks[..layout.ranks.div_ceil(share) as usize];
        let stages = |rank: &u32| layout.stages_of(*rank).into_iter().map(|stage| stage as usize);
        sets.push(fullest.iter().flat_map(stages).collect());
        if matches!(layout.placement, Placement::V | Placement::Loop) {
            sets.push(fullest.iter().filter_map(|rank| stages(rank).min()).collect());
        }
    }
    for set in &mut sets {
        set.sort_unstable();
        set.dedup();
    }
    sets.dedup();
    sets
}

/// The problem with stages at these levels. Forwards are the same on all.
fn with(levels: &[Level], limits: &[u64], chosen: &[usize]) -> Problem {
    let mut problem = levels[0].problem.clone();
    for (stage, (cost, &level)) in problem.stages.iter_mut().zip(chosen).enumerate() {
        *cost = levels[level].problem.stages[stage];
    }
    if let PairCost::Table(pairs) = &mut problem.pair {
        pairs.iter_mut().for_each(|(&(f, b), time)| *time = levels[chosen[b as usize]].problem.pair_cost(f, b));
    }
    let of = |stage: usize| levels[chosen[stage]].room.as_ref();
    let mut memory = levels[0].room.clone();
    if let Some(memory) = &mut memory {
        memory.limits = limits.to_vec();
        for stage in 0..chosen.len() {
            if let Some(of) = of(stage) {
                memory.stages[stage] = of.stages[stage];
                memory.workspace.stages[stage] = of.workspace.stages[stage];
            }
        }
        for (pair, bytes) in &mut memory.workspace.pairs {
            *bytes = of(pair.1 as usize).and_then(|of| of.workspace.pairs.get(pair)).copied().unwrap_or_default();
        }
    }
    problem.memory = memory;
    problem
}
