//! Stages that compute more again, where memory makes the timetable longer than it would be.
//!
//! Levels go from what the job computes again to whole layers, in each step by what frees most bytes for the time that it adds. Stages of
//! the ranks that are fullest, or all of them, are put one level up as long as the timetable gets shorter, as a short search sees it: with the programs that
//! there are, and what is computed again added to their backwards. The winner is compiled with programs of its own.

use std::cmp::Ordering;

use super::room::{Room, held};
use crate::error::Result;
use crate::ir::{Memory, PairCost, Placement, Problem, Recompute, StageMemory};
use crate::job::Job;
use crate::passes::pipeline::search::{Limits, search};
use crate::passes::{Chunks, pipeline, split};
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

/// What each stage should compute again, for a shorter timetable than that of so long a makespan; `None` if that is not to be had. Without
/// a timetable that fits, any that does is shorter.
///
/// # Errors
/// If the pipeline problem cannot be searched.
pub fn better(
    job: &Job,
    chunks: &Chunks,
    room: &Room,
    within: Option<Nanos>,
    limits: &Limits,
) -> Result<Option<Vec<Recompute>>> {
    let problem = chunks.problem(job);
    let within = within.unwrap_or(Nanos(u64::MAX));
    let free = makespan(&problem, limits)?;
    if free + Nanos(free.0 / LONGER) >= within {
        return Ok(None);
    }
    let levels = levels(job, chunks);
    // Where the plan that was tried needs much beside its chunks, another may need less.
    let rooms = [room.memory(chunks), Room::new(job, chunks).memory(chunks)];
    for memory in rooms.into_iter().flatten() {
        let chosen = shortest(&problem, &memory, &levels, within, limits);
        if let Some(chosen) = chosen {
            return Ok(Some(chosen.into_iter().map(|level| levels[level].recompute).collect()));
        }
    }
    Ok(None)
}

/// The level of each stage that gives a timetable shorter than `best`, as far as going up finds one.
fn shortest(
    problem: &Problem,
    memory: &Memory,
    levels: &[Level],
    mut best: Nanos,
    limits: &Limits,
) -> Option<Vec<usize>> {
    let mut chosen = vec![0; problem.stages.len()];
    let mut found = false;
    let sets = sets(problem, memory);
    loop {
        let mut next: Option<Vec<usize>> = None;
        let mut candidates = sets.iter().map(|stages| raised(&chosen, stages, levels.len() - 1)).collect::<Vec<_>>();
        if !found {
            // The same for all may be what is needed.
            candidates.extend((1..levels.len()).map(|level| vec![level; chosen.len()]));
        }
        for raised in candidates {
            let problem = with(problem, memory, levels, &raised);
            if raised == chosen || pipeline::lower_bound(&problem) >= best {
                continue;
            }
            // Where not one micro-batch fits there is nothing to find.
            let Ok(time) = makespan(&problem, limits) else { continue };
            if time < best {
                (best, next) = (time, Some(raised));
            }
        }
        let Some(next) = next else { break };
        (chosen, found) = (next, true);
    }
    found.then_some(chosen)
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

/// What is computed again, and what that makes of each stage.
struct Level {
    recompute: Recompute,
    /// What a chunk holds.
    held: Vec<StageMemory>,
    /// Time of the backward for the input, one op after the other.
    backward: Vec<Nanos>,
}

impl Level {
    fn new(job: &Job, chunks: &Chunks, recompute: Recompute) -> Self {
        let mut lowered = chunks.lowered.clone();
        lowered.stages.iter_mut().for_each(|stage| stage.recompute = recompute);
        let stages = split::split(job, &lowered);
        let time = |stage: &split::SplitStage| {
            let machine = &chunks.machine;
            let ops = stage.chunk.i.iter();
            ops.map(|op| machine.duration(&op.work, machine.sms_of(&op.work, chunks.budget.sms))).sum()
        };
        Self {
            recompute,
            held: stages.iter().map(|stage| held(&stage.chunk.held)).collect(),
            backward: stages.iter().map(time).collect(),
        }
    }

    /// Bytes freed and time added over another level, all stages together.
    fn over(&self, other: &Self) -> (u64, u64) {
        let bytes = |level: &Self| level.held.iter().map(|held| held.activation).sum::<u64>();
        let time = |level: &Self| level.backward.iter().copied().sum::<Nanos>();
        (bytes(other).saturating_sub(bytes(self)), time(self).saturating_sub(time(other)).0)
    }
}

/// From what the job computes again on, each level by that part over the one before which frees most bytes for its time.
fn levels(job: &Job, chunks: &Chunks) -> Vec<Level> {
    let mut levels = vec![Level::new(job, chunks, job.training.recompute)];
    loop {
        let last = &levels[levels.len() - 1];
        let next = PARTS.into_iter().map(|part| Level::new(job, chunks, last.recompute.and(part)));
        let freeing = next.filter(|next| next.over(last).0 > 0);
        match freeing.reduce(|best, next| if better_worth(next.over(last), best.over(last)) { next } else { best }) {
            Some(next) => levels.push(next),
            None => return levels,
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

/// The problem with stages at these levels.
fn with(problem: &Problem, memory: &Memory, levels: &[Level], chosen: &[usize]) -> Problem {
    let mut problem = problem.clone();
    let added = |stage: usize| levels[chosen[stage]].backward[stage].saturating_sub(levels[0].backward[stage]);
    for (stage, cost) in problem.stages.iter_mut().enumerate() {
        cost.i += added(stage);
        cost.b += added(stage);
    }
    if let PairCost::Table(pairs) = &mut problem.pair {
        pairs.iter_mut().for_each(|(&(_, b), time)| *time += added(b as usize));
    }
    let stages = chosen.iter().enumerate().map(|(stage, &level)| levels[level].held[stage]).collect();
    problem.memory = Some(Memory { stages, limits: memory.limits.clone() });
    problem
}
