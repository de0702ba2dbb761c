//! Runs a timetable against its costs: every action as soon as its rank is free and what it reads is there.
//!
//! Only data dependencies and order are replayed. Transfers take the problem's hop and do not contend; buffers are not limited.

use crate::error::{Error, Result};
use crate::ir::{Action, ChunkId, Layout, Phase, Problem, Timetable};
use crate::units::Nanos;

/// When everything runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Per rank, for each action of the timetable in its order.
    pub spans: Vec<Vec<Span>>,
    /// From zero to the end of the last action.
    pub makespan: Nanos,
    /// Per rank, the most chunks held at once.
    peak_activations: Vec<u32>,
}

/// From when to when an action runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Start.
    pub start: Nanos,
    /// End.
    pub end: Nanos,
}

impl Replay {
    /// The longest that a rank takes from the start of its first action to the end of its last.
    pub fn longest_span(&self) -> Nanos {
        let span = |rank: &Vec<Span>| Some(rank.last()?.end.saturating_sub(rank.first()?.start));
        self.spans.iter().filter_map(span).max().unwrap_or(Nanos::ZERO)
    }

    /// Per rank, the part of the makespan in which it runs nothing.
    pub fn bubble_per_rank(&self) -> Vec<Nanos> {
        let busy = |rank: &Vec<Span>| rank.iter().map(|span| span.end.saturating_sub(span.start)).sum();
        self.spans.iter().map(|rank| self.makespan.saturating_sub(busy(rank))).collect()
    }

    /// Per rank, the most chunks that are held at once: each from the start of its F to the end of its last use, which is
    /// its W, or its B or FB if the backward is not split.
    pub fn peak_activations_per_rank(&self) -> &[u32] {
        &self.peak_activations
    }
}

/// The times of a timetable. Linear in the number of actions.
///
/// F(s, m) reads what F(s-1, m) made; I(s, m) reads what F(s, m) and I(s+1, m) made; W(s, m) reads what I(s, m) made. What
/// another rank made arrives a hop later. The parts of B and FB all start and end with the action.
///
/// # Errors
/// If `timetable` is not of the problem's layout, runs a chunk elsewhere than the layout says, lacks or repeats a part of
/// a chunk, or has ranks that wait for each other.
pub fn replay(problem: &Problem, timetable: &Timetable) -> Result<Replay> {
    check(problem, timetable)?;
    let layout = &problem.layout;
    let mut run = Run::new(problem, timetable);
    // Ranks that may be able to go on.
    let mut ready: Vec<u32> = (0..layout.ranks).rev().collect();
    while let Some(rank) = ready.pop() {
        run.advance(rank, &mut ready);
    }
    run.check_all_ended()?;
    let peak_activations = timetable.ranks.iter().map(|actions| peak(actions)).collect();
    Ok(Replay { makespan: run.free.into_iter().max().unwrap_or(Nanos::ZERO), spans: run.spans, peak_activations })
}

/// A replay under way.
struct Run<'a> {
    problem: &'a Problem,
    timetable: &'a Timetable,
    /// Per rank, the spans of the actions so far.
    spans: Vec<Vec<Span>>,
    /// Per rank, the end of its latest action.
    free: Vec<Nanos>,
    /// F and I of every chunk, in that order; nothing waits for the end of a W.
    parts: [Vec<Part>; 2],
}

/// Whether a part of a chunk has run.
#[derive(Clone, Copy)]
enum Part {
    Pending,
    /// Not yet, and this rank can go no further without. One rank at most reads from another.
    Awaited(u32),
    /// Yes, and it ended then.
    Ended(Nanos),
}

impl<'a> Run<'a> {
    fn new(problem: &'a Problem, timetable: &'a Timetable) -> Self {
        let ranks = timetable.ranks.len();
        let chunks = problem.layout.stages as usize * problem.layout.micro_batches as usize;
        Self {
            problem,
            timetable,
            spans: timetable.ranks.iter().map(|actions| Vec::with_capacity(actions.len())).collect(),
            free: vec![Nanos::ZERO; ranks],
            parts: [vec![Part::Pending; chunks], vec![Part::Pending; chunks]],
        }
    }

    /// Runs actions of `rank` until one must wait; ranks that waited for what ran become ready.
    fn advance(&mut self, rank: u32, ready: &mut Vec<u32>) {
        let timetable = self.timetable;
        let at = rank as usize;
        for &action in &timetable.ranks[at][self.spans[at].len()..] {
            let mut start = self.free[at];
            for (phase, chunk, hop) in reads(self.problem, action).into_iter().flatten() {
                match self.part(phase, chunk) {
                    Part::Ended(end) => start = start.max(*end + hop),
                    part => {
                        *part = Part::Awaited(rank);
                        return;
                    }
                }
            }
            let end = start + self.problem.cost(action);
            self.spans[at].push(Span { start, end });
            self.free[at] = end;
            for (phase, chunk) in action.parts().filter(|(phase, _)| *phase != Phase::W) {
                if let Part::Awaited(reader) = std::mem::replace(self.part(phase, chunk), Part::Ended(end)) {
                    ready.push(reader);
                }
            }
        }
    }

    fn part(&mut self, phase: Phase, chunk: ChunkId) -> &mut Part {
        &mut self.parts[usize::from(phase != Phase::F)][index(&self.problem.layout, chunk)]
    }

    /// The action at which `rank` stands and the part that it waits for.
    fn waits_at(&mut self, rank: u32) -> Option<(Action, (Phase, ChunkId))> {
        let action = *self.timetable.ranks[rank as usize].get(self.spans[rank as usize].len())?;
        let missing = reads(self.problem, action)
            .into_iter()
            .flatten()
            .map(|(phase, chunk, _)| (phase, chunk))
            .find(|&(phase, chunk)| !matches!(self.part(phase, chunk), Part::Ended(_)))?;
        Some((action, missing))
    }

    /// If a rank has not come to its end, follows who waits for whom until it comes round.
    fn check_all_ended(&mut self) -> Result<()> {
        let ranks = self.problem.layout.ranks;
        let Some(mut rank) = (0..ranks).find(|&rank| self.waits_at(rank).is_some()) else { return Ok(()) };
        // After as many steps as there are ranks, the walk is on the cycle.
        for _ in 0..ranks {
            rank = self.waits_at(rank).map_or(rank, |(_, (_, chunk))| self.problem.layout.rank_of(chunk));
        }
        let first = rank;
        let mut waits = Vec::new();
        while let Some((action, (phase, chunk))) = self.waits_at(rank) {
            waits.push(format!("rank {rank} waits at {action} for {}", name(phase, chunk)));
            rank = self.problem.layout.rank_of(chunk);
            if rank == first {
                break;
            }
        }
        let more = match waits.len().saturating_sub(4) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        waits.truncate(4);
        Err(Error::new(format!("the timetable never ends: {}{more}", waits.join(", "))))
    }
}

/// What an action reads: the part that makes it, of which chunk, and how long it takes to come from there. W within B and
/// FB reads what I made there.
fn reads(problem: &Problem, action: Action) -> [Option<(Phase, ChunkId, Nanos)>; 3] {
    let activation = |c: ChunkId| {
        let before = c.stage.checked_sub(1)?;
        Some((Phase::F, ChunkId::new(before, c.micro_batch), problem.hop(before, c.micro_batch)))
    };
    let gradient = |c: ChunkId| {
        let after = c.stage + 1;
        let made = || (Phase::I, ChunkId::new(after, c.micro_batch), problem.hop(c.stage, c.micro_batch));
        (after < problem.layout.stages).then(made)
    };
    let own = |phase, c: ChunkId| Some((phase, c, Nanos::ZERO));
    match action {
        Action::F(c) => [activation(c), None, None],
        Action::B(c) | Action::I(c) => [own(Phase::F, c), gradient(c), None],
        Action::W(c) => [own(Phase::I, c), None, None],
        Action::FB(f, b) => [activation(f), own(Phase::F, b), gradient(b)],
    }
}

/// That the timetable is of the problem, and has each part of each chunk once, where it belongs.
fn check(problem: &Problem, timetable: &Timetable) -> Result<()> {
    let layout = &problem.layout;
    if timetable.layout != *layout {
        return Err(Error::new("the timetable is of another layout than the problem"));
    }
    if super::stages_per_rank(layout).is_none() {
        let (stages, placement, ranks) = (layout.stages, layout.placement, layout.ranks);
        return Err(Error::new(format!("{stages} stages cannot be laid out as `{placement}` over {ranks} ranks")));
    }
    if problem.stages.len() != layout.stages as usize {
        let (costs, stages) = (problem.stages.len(), layout.stages);
        return Err(Error::new(format!("the problem has costs of {costs} stages and a layout of {stages}")));
    }
    if timetable.ranks.len() != layout.ranks as usize {
        let (lists, ranks) = (timetable.ranks.len(), layout.ranks);
        return Err(Error::new(format!("the timetable has lists for {lists} ranks and a layout of {ranks}")));
    }
    let mut seen = vec![0_u8; layout.stages as usize * layout.micro_batches as usize];
    for (rank, actions) in (0..).zip(&timetable.ranks) {
        for (action, (phase, chunk)) in actions.iter().flat_map(|action| action.parts().map(move |part| (action, part)))
        {
            if chunk.stage >= layout.stages || chunk.micro_batch >= layout.micro_batches {
                let (stages, micro_batches) = (layout.stages, layout.micro_batches);
                return Err(Error::new(format!(
                    "rank {rank} runs {action}, but there are only {stages} stages and {micro_batches} micro-batches"
                )));
            }
            let home = layout.rank_of(chunk);
            if home != rank {
                return Err(Error::new(format!("rank {rank} runs {action}, which belongs on rank {home}")));
            }
            let seen = &mut seen[index(layout, chunk)];
            if *seen & bit(phase) != 0 {
                return Err(Error::new(format!("rank {rank} runs {} twice, again at {action}", name(phase, chunk))));
            }
            *seen |= bit(phase);
        }
    }
    for (at, seen) in seen.iter().enumerate() {
        if let Some(phase) = [Phase::F, Phase::I, Phase::W].into_iter().find(|&phase| seen & bit(phase) == 0) {
            let micro_batches = layout.micro_batches as usize;
            // Both are below a u32.
            let chunk = ChunkId::new((at / micro_batches) as u32, (at % micro_batches) as u32);
            let rank = layout.rank_of(chunk);
            return Err(Error::new(format!("rank {rank} never runs {}", name(phase, chunk))));
        }
    }
    Ok(())
}

/// Most chunks held at once. A rank runs one action at a time, so their order is enough.
fn peak(actions: &[Action]) -> u32 {
    let (mut held, mut peak) = (0_u32, 0);
    for action in actions {
        held += u32::from(action.forward().is_some());
        peak = peak.max(held);
        held = held.saturating_sub(u32::from(action.weight_gradient().is_some()));
    }
    peak
}

fn index(layout: &Layout, chunk: ChunkId) -> usize {
    chunk.stage as usize * layout.micro_batches as usize + chunk.micro_batch as usize
}

fn bit(phase: Phase) -> u8 {
    match phase {
        Phase::F => 1,
        Phase::I => 2,
        Phase::W => 4,
    }
}

/// A part of a chunk, stage-indexed as actions are: `3F7`.
fn name(phase: Phase, chunk: ChunkId) -> String {
    let letter = match phase {
        Phase::F => 'F',
        Phase::I => 'I',
        Phase::W => 'W',
    };
    format!("{}{letter}{}", chunk.stage, chunk.micro_batch)
}
