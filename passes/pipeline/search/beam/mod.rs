//! Beam search: many partial timetables are continued side by side, action by action, and only the most promising are kept.
//!
//! What may come next is as in the exact search (Giffler and Thompson 1960): of all that could start now the action that could end first,
//! or one of its rank that starts before that end. Where a pair may come of it, the rank may also wait; where a forward takes one of the
//! last places in memory, it may be held back until its rank has done something else. W is left for gaps, and for when memory is full.
//!
//! Partial timetables with as many F, I and W done are compared by how late each rank will be at least: its work, the time until something
//! comes, what its chunks need of memory, and the ways of the micro-batches that it has still to run. Beside a timetable that is known,
//! what is left is taken to be as long as there; and that timetable is always among those that are kept.
//!
//! `node` is a partial timetable, `moves` what may come next in it, `guide` how promising it is; here is what is kept of them, level by level.

mod guide;
mod known;
mod moves;
mod node;

pub(super) use known::{Known, known};

use std::collections::BTreeMap;

use super::model::{Model, Orders, Step};
use node::{FAR, NEVER, PER_LANE, hash};

/// Partial timetables that have done the same that are kept, at most.
const ALIKE: u32 = 4;

/// Candidates for a level are cut down to what is kept once there are so many times more.
const CROWD: usize = 8;

/// How candidates are made and compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taste {
    /// What the latest rank counts, in quarters of all ranks together.
    pub latest: u64,
    /// Where room is short, a forward is held back if it leaves no room for so many more.
    pub spare: u64,
    /// Beside a known timetable: ranks count that are so many times the longest chunk's work from being the last.
    pub near: u64,
}

/// What is worth trying. No one is the best everywhere.
pub(super) fn tastes(model: &Model) -> [Taste; 4] {
    let tight = model.of_rank.iter().enumerate().any(|(rank, held)| is_tight(model, rank, held));
    let latest = if tight { [4, 8, 16, 2] } else { [4, 2, 8, 16] };
    let spare = if tight { [2, 0, 2, 0] } else { [0; 4] };
    std::array::from_fn(|at| Taste { latest: latest[at], spare: spare[at], near: [1, 4][at % 2] })
}

/// Whether a rank has several lanes and no room for all that they hold: then a forward may be too early.
fn is_tight(model: &Model, rank: usize, held: &[usize]) -> bool {
    let of = |&at: &usize| u128::from(model.lanes[at].held.activation) * model.lanes[at].count as u128;
    held.len() > 1 && held.iter().map(of).sum::<u128>() > u128::from(model.limits[rank])
}

/// The orders of the best timetable that a beam of so many finds, beside one that is known, if it is; `None` if all lock up.
pub(super) fn beam(model: &Model, width: usize, taste: Taste, known: Option<&Known>) -> Option<Orders> {
    Beam::new(model, width, taste, known).run()
}

/// What a beam of one costs, in timings of an action; about, as measured.
pub(super) fn cost(model: &Model) -> u64 {
    let evaluation = 12 + 2 * model.lanes.len() + model.chunks / 32;
    3 * model.steps() * evaluation as u64
}

/// A continuation of a partial timetable.
#[derive(Clone, Copy)]
struct Child {
    guide: u128,
    /// Of what is done, and of when ranks are free.
    done: u64,
    times: u64,
    /// Level of the parent, and its place there.
    level: usize,
    parent: u32,
    /// Steps of the known timetable that it consists of, if of nothing else; else 0.
    known: u32,
    next: Next,
}

/// What comes next on a rank.
#[derive(Clone, Copy)]
struct Next {
    step: Step,
    what: What,
    rank: usize,
    start: u64,
    end: u64,
}

/// What is done about a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Start,
    /// It does not start before its rank has done something else.
    HoldBack,
    /// Its rank does nothing until the step could have ended.
    Wait,
}

/// Partial timetables with the same number of parts done.
#[derive(Default)]
struct Level {
    /// Their numbers, see [`Beam::size`].
    nodes: Vec<u64>,
    /// Where each stands in [`Beam::trace`].
    traces: Vec<u32>,
    /// As of [`Child::known`].
    known: Vec<u32>,
}

struct Beam<'a> {
    model: &'a Model,
    width: usize,
    taste: Taste,
    known: Option<&'a Known>,
    /// The longest work for a chunk.
    longest: u64,
    /// Numbers of a partial timetable: when it is free and what it holds, per rank; F, I, W that wait, and what is held back, per lane;
    /// ends of F and of I per chunk.
    size: usize,
    /// Per lane, from the end of F to the end of its I, at least.
    round: Vec<u64>,
    /// Per lane, from the start of I to the end of the last W of its micro-batch.
    home: Vec<u64>,
    /// Per lane, memory × time of a chunk, as the time for which it is all of its rank's memory.
    alone: Vec<u64>,
    /// Per rank: chunks come later than they could, for others that need the room.
    tight: Vec<bool>,
    /// Per rank, the most that a pair saves.
    saving: Vec<u64>,
    /// Of every partial timetable that was kept, the one before it and its latest step.
    trace: Vec<(u32, Option<Step>)>,
    // For one partial timetable at a time.
    /// Per rank, when its memory has room.
    room: Vec<u64>,
    /// Per lane, when the next F, and the next I, can start.
    coming: [Vec<u64>; 2],
    moves: Vec<Next>,
    before: Vec<u64>,
}

impl<'a> Beam<'a> {
    fn new(model: &'a Model, width: usize, taste: Taste, known: Option<&'a Known>) -> Self {
        let (lanes, ranks) = (&model.lanes, model.of_rank.len());
        let mut round = vec![0; lanes.len()];
        let mut home = vec![0; lanes.len()];
        for (at, lane) in lanes.iter().enumerate().rev() {
            round[at] = lane.i;
            if let Some((after, hop)) = lane.after {
                round[at] += lanes[after].f + round[after] + 2 * hop;
            }
        }
        for (at, lane) in lanes.iter().enumerate() {
            let before = lane.before.map_or(0, |(before, hop)| home[before] + hop);
            home[at] = lane.i + before.max(lane.b.min(lane.i + lane.w) - lane.i.min(lane.b));
        }
        let alone = lanes.iter().enumerate().map(|(at, lane)| {
            let held = u128::from(lane.f + round[at]) * u128::from(lane.held.activation)
                + u128::from(lane.work() - lane.f) * u128::from(lane.held.for_weights.min(lane.held.activation));
            u64::try_from(held / u128::from(model.limits[lane.rank].max(1))).unwrap_or(FAR)
        });
        let alone = alone.collect();
        let tight = model.of_rank.iter().enumerate().map(|(rank, held)| is_tight(model, rank, held));
        let tight = tight.collect();
        let saving = |held: &Vec<usize>| {
            let pairs = held.iter().flat_map(|&f| held.iter().map(move |&b| model.saving(f, b)));
            pairs.max().unwrap_or(0)
        };
        Self {
            model,
            width,
            taste,
            known,
            longest: lanes.iter().map(|lane| lane.work()).max().unwrap_or(0),
            size: 2 * ranks + PER_LANE * lanes.len() + 2 * model.chunks,
            round,
            home,
            alone,
            tight,
            saving: model.of_rank.iter().map(saving).collect(),
            trace: Vec::new(),
            room: vec![0; ranks],
            coming: [vec![0; lanes.len()], vec![0; lanes.len()]],
            moves: Vec::new(),
            before: Vec::new(),
        }
    }

    /// Level by level; the last one is chosen by makespan.
    fn run(mut self) -> Option<Orders> {
        let parts = 3 * self.model.chunks;
        let mut levels: [Level; 4] = Default::default();
        let mut waiting: [Vec<Child>; 4] = Default::default();
        let mut first = vec![0; self.size];
        first[self.ends()..].fill(NEVER);
        self.trace.push((0, None));
        levels[0] = Level { nodes: first, traces: vec![0], known: vec![1] };
        for done in 0..parts {
            if done > 0 {
                let mut children = std::mem::take(&mut waiting[done % 4]);
                let mut level = std::mem::take(&mut levels[done % 4]);
                level.nodes.clear();
                level.traces.clear();
                level.known.clear();
                self.keep(&mut children);
                for child in &children {
                    self.make(&levels, &mut level, child);
                }
                children.clear();
                waiting[done % 4] = children;
                levels[done % 4] = level;
            }
            let mut level = std::mem::take(&mut levels[done % 4]);
            // Those that have waited come behind the others.
            let mut at = 0;
            while at < level.traces.len() {
                self.extend(&mut level, at, done, &mut waiting);
                at += 1;
            }
            levels[done % 4] = level;
        }
        let best = waiting[parts % 4].iter().min_by_key(|child| (child.guide, child.done, child.times))?;
        let last = Some(best.next.step);
        let mut trace = levels[best.level % 4].traces[best.parent as usize];
        let mut steps: Vec<Step> = last.into_iter().collect();
        while trace != 0 {
            let (before, step) = self.trace[trace as usize];
            steps.extend(step);
            trace = before;
        }
        let mut orders = vec![Vec::new(); self.model.of_rank.len()];
        for step in steps.into_iter().rev() {
            if let Some(lane) = step.forward().or(step.backward()).or(step.weights()) {
                orders[self.model.lanes[lane].rank].push(step);
            }
        }
        Some(orders)
    }

    /// Leaves the most promising: few that have done the same, none twice.
    fn keep(&self, children: &mut Vec<Child>) {
        children.sort_unstable_by_key(|child| {
            (child.known == 0, child.guide, child.done, child.times, child.level, child.parent)
        });
        let mut alike: BTreeMap<u64, (u32, Vec<u64>)> = BTreeMap::new();
        let mut kept = 0;
        children.retain(|child| {
            if kept == self.width {
                return false;
            }
            let (count, times) = alike.entry(child.done).or_default();
            if *count == ALIKE || times.contains(&child.times) {
                return false;
            }
            *count += 1;
            times.push(child.times);
            kept += 1;
            true
        });
    }

    /// Makes a partial timetable of its parent.
    fn make(&mut self, levels: &[Level; 4], level: &mut Level, child: &Child) {
        let parent = &levels[child.level % 4];
        let from = child.parent as usize * self.size;
        let at = level.nodes.len();
        level.nodes.extend_from_slice(&parent.nodes[from..from + self.size]);
        level.traces.push(self.trace.len() as u32);
        level.known.push(child.known);
        self.trace.push((parent.traces[child.parent as usize], Some(child.next.step)));
        self.apply(&mut level.nodes[at..], child.next);
    }

    /// Adds what may come next to the levels that it leads to.
    fn extend(&mut self, level: &mut Level, at: usize, done: usize, waiting: &mut [Vec<Child>; 4]) {
        let from = at * self.size;
        let mut moves = std::mem::take(&mut self.moves);
        moves.clear();
        self.all_moves(&level.nodes[from..from + self.size], &mut moves);
        let mut waits: Vec<Next> = Vec::new();
        let mut follows = 0;
        if level.known[at] > 0
            && let Some(&(rank, step)) = self.known.and_then(|all| all.steps.get(level.known[at] as usize - 1))
            && let Some(start) = self.start(&level.nodes[from..from + self.size], rank, step)
        {
            follows = level.known[at];
            moves.insert(0, Next { step, what: What::Start, rank, start, end: start + self.model.cost(step) });
        }
        let mut before = std::mem::take(&mut self.before);
        before.clear();
        before.extend_from_slice(&level.nodes[from..from + self.ends()]);
        for &next in &moves {
            if next.what != What::Start {
                waits.push(next);
                continue;
            }
            let parts = match next.step {
                Step::Pair(..) => 3,
                Step::B(_) => 2,
                _ => 1,
            };
            let node = &mut level.nodes[from..from + self.size];
            self.apply(node, next);
            let latest = node[..self.model.of_rank.len()].iter().copied().max();
            let guide = match done + parts == 3 * self.model.chunks {
                true => u128::from(latest.unwrap_or(0)),
                false => self.guide(node),
            };
            let child = Child {
                guide,
                done: hash(&node[self.counts()..self.ends()]),
                times: hash(&node[..self.model.of_rank.len()]),
                level: done,
                parent: at as u32,
                known: if follows > 0 { follows + 1 } else { 0 },
                next,
            };
            self.undo(node, &before, next.step);
            follows = 0;
            let list = &mut waiting[(done + parts) % 4];
            list.push(child);
            if list.len() > CROWD * ALIKE as usize * self.width {
                self.keep(list);
            }
        }
        (self.moves, self.before) = (moves, before);
        for next in waits {
            if level.traces.len() >= 3 * self.width {
                break;
            }
            let copy = level.nodes[from..from + self.size].to_vec();
            let to = level.nodes.len();
            level.nodes.extend_from_slice(&copy);
            level.traces.push(level.traces[at]);
            level.known.push(0);
            self.apply(&mut level.nodes[to..], next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Hops, Layout, Memory, PairCost, Placement, Problem, StageCost, StageMemory, Workspace};
    use crate::passes::pipeline::search::Objective;
    use crate::passes::pipeline::search::clock::Clock;
    use crate::units::Nanos;

    const PLACEMENTS: [Placement; 4] = [Placement::Linear, Placement::Loop, Placement::V, Placement::Bidirectional];

    /// Stages that take 5, 6 and 4, the last one twice that; `room` chunks of a stage per rank.
    fn problem(placement: Placement, ranks: u32, micro_batches: u32, pair: u64, room: u64) -> Problem {
        let layout = Layout::new(placement, ranks, 2, micro_batches);
        let cost = |stage| {
            let times = if stage + 1 == layout.stages { 2 } else { 1 };
            let [f, i, w] = [5, 6, 4].map(|cost| Nanos(cost * times));
            StageCost { f, i, w, b: i + w }
        };
        let stages: Vec<StageCost> = (0..layout.stages).map(cost).collect();
        let memory = Memory {
            stages: vec![StageMemory { activation: 2, for_weights: 1 }; stages.len()],
            workspace: Workspace::default(),
            limits: vec![2 * room; layout.ranks as usize],
        };
        Problem {
            layout,
            stages,
            pair: PairCost::Uniform(Nanos(pair)),
            hops: Hops::Uniform(Nanos(1)),
            memory: Some(memory),
        }
    }

    /// Whatever a beam finds is allowed and ends; and beside a timetable that is known it finds none that is longer.
    #[test]
    fn finds_whole_timetables_no_longer_than_one_that_is_known() {
        let mut found = 0;
        for placement in PLACEMENTS {
            for (ranks, micro_batches) in [(1, 3), (2, 4), (3, 7)] {
                for (pair, room) in [(15, 2), (12, 2), (12, 3), (15, 100), (12, 100)] {
                    let model = Model::new(&problem(placement, ranks, micro_batches, pair, room)).expect("a model");
                    let mut clock = Clock::new(&model);
                    for taste in tastes(&model) {
                        let Some(orders) = beam(&model, 8, taste, None) else { continue };
                        found += 1;
                        assert!(orders.iter().enumerate().all(|(rank, steps)| model.allows(rank, steps)), "{orders:?}");
                        let score = clock.score(&model, &orders, Objective::Makespan).expect("an end");
                        let known = known(&model, &clock, &orders);
                        let again = beam(&model, 4, taste, Some(&known)).expect("what is known");
                        let again = clock.score(&model, &again, Objective::Makespan).expect("an end");
                        assert!(
                            again.first <= score.first,
                            "{placement} {ranks} {micro_batches} {pair} {room} {taste:?}"
                        );
                    }
                }
            }
        }
        assert!(found > 200, "{found}");
    }
}
