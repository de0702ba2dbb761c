//! Beam search: many partial timetables are continued side by side, action by action, and only the most promising are kept.
//!
//! What may come next is as in the exact search (Giffler and Thompson 1960): of all that could start now the action that could end first,
//! or one of its rank that starts before that end. Where a pair may come of it, the rank may also wait; where a forward takes one of the
//! last places in memory, it may be held back until its rank has done something else. W is left for gaps, and for when memory is full.
//!
//! Partial timetables with as many F, I and W done are compared by how late each rank will be at least: its work, the time until something
//! comes, what its chunks need of memory, and the ways of the micro-batches that it has still to run. Beside a timetable that is known,
//! what is left is taken to be as long as there; and that timetable is always among those that are kept.

use std::collections::BTreeMap;

use super::clock::Clock;
use super::dispatch::all_can_end;
use super::model::{Guard, Model, Orders, Step};

/// Partial timetables that have done the same that are kept, at most.
const ALIKE: u32 = 4;

/// Candidates for a level are cut down to what is kept once there are so many times more.
const CROWD: usize = 8;

/// Numbers of a lane: F and I that are done, W that wait, and what is held back.
const PER_LANE: usize = 4;

/// What is held back of a lane.
const FORWARD: u64 = 1;
const BACKWARD: u64 = 2;

/// No time that is known yet.
const NEVER: u64 = u64::MAX;

/// Longer than any timetable.
const FAR: u64 = 1 << 60;

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

/// A timetable that is known.
pub(super) struct Known {
    /// Its steps in the order in which they start, with their ranks.
    steps: Vec<(usize, Step)>,
    /// Per chunk, how long everything goes on from the start of the step that has its F, and its I.
    tails: [Vec<u64>; 2],
    makespan: u64,
}

/// The timetable of orders that `clock` has just run.
pub(super) fn known(model: &Model, clock: &Clock, orders: &Orders) -> Known {
    let mut steps: Vec<(u64, usize, usize)> = Vec::new();
    for (rank, starts) in clock.starts.iter().enumerate() {
        steps.extend(starts.iter().enumerate().map(|(at, &start)| (start, at, rank)));
    }
    steps.sort_unstable();
    let mut tails = [vec![0; model.chunks], vec![0; model.chunks]];
    let mut of_rank = vec![0; orders.len()];
    let mut next: Vec<[usize; 2]> = model.lanes.iter().map(|lane| [lane.count; 2]).collect();
    for &(_, at, rank) in steps.iter().rev() {
        let step = orders[rank][at];
        let mut tail: u64 = of_rank[rank];
        if let Some(f) = step.forward() {
            next[f][0] -= 1;
            let chunk = next[f][0];
            tail = tail.max(match model.lanes[f].after {
                Some((after, hop)) => hop + tails[0][model.lanes[after].base + chunk],
                None => tails[1][model.lanes[f].base + chunk],
            });
        }
        if let Some(b) = step.backward() {
            next[b][1] -= 1;
            let chunk = next[b][1];
            if let Some((before, hop)) = model.lanes[b].before {
                tail = tail.max(hop + tails[1][model.lanes[before].base + chunk]);
            }
        }
        tail += model.cost(step);
        of_rank[rank] = tail;
        if let Some(f) = step.forward() {
            tails[0][model.lanes[f].base + next[f][0]] = tail;
        }
        if let Some(b) = step.backward() {
            tails[1][model.lanes[b].base + next[b][1]] = tail;
        }
    }
    let makespan = clock.free.iter().copied().max().unwrap_or(0);
    let steps = steps.iter().map(|&(_, at, rank)| (rank, orders[rank][at])).collect();
    Known { steps, tails, makespan }
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

    /// Where the numbers of lanes begin.
    fn counts(&self) -> usize {
        2 * self.model.of_rank.len()
    }

    /// Where the ends of chunks begin.
    fn ends(&self) -> usize {
        self.counts() + PER_LANE * self.model.lanes.len()
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

    /// Adds what comes next.
    fn apply(&self, node: &mut [u64], next: Next) {
        let (model, ranks, counts, ends) = (self.model, self.model.of_rank.len(), self.counts(), self.ends());
        let step = next.step;
        if next.what == What::Wait {
            node[next.rank] = next.end;
            return;
        }
        if next.what == What::HoldBack {
            if let Some(f) = step.forward() {
                node[counts + PER_LANE * f + 3] |= FORWARD;
            }
            if let Some(b) = step.backward() {
                node[counts + PER_LANE * b + 3] |= BACKWARD;
            }
            return;
        }
        for &lane in &model.of_rank[next.rank] {
            node[counts + PER_LANE * lane + 3] = 0;
        }
        node[next.rank] = next.end;
        let (more, less) = model.holds(step);
        node[ranks + next.rank] = node[ranks + next.rank] + more - less;
        if let Some(f) = step.forward() {
            let count = &mut node[counts + PER_LANE * f];
            *count += 1;
            let place = ends + model.lanes[f].base + *count as usize - 1;
            node[place] = next.end;
        }
        if let Some(b) = step.backward() {
            let count = &mut node[counts + PER_LANE * b + 1];
            *count += 1;
            let place = ends + model.chunks + model.lanes[b].base + *count as usize - 1;
            node[place] = next.end;
            node[counts + PER_LANE * b + 2] += u64::from(matches!(step, Step::I(_)));
        }
        if let Step::W(l) = step {
            node[counts + PER_LANE * l as usize + 2] -= 1;
        }
    }

    /// Takes a step back that was started; `before` is what a partial timetable was before, but for ends.
    fn undo(&self, node: &mut [u64], before: &[u64], step: Step) {
        node[..before.len()].copy_from_slice(before);
        let (counts, ends) = (self.counts(), self.ends());
        if let Some(f) = step.forward() {
            node[ends + self.model.lanes[f].base + before[counts + PER_LANE * f] as usize] = NEVER;
        }
        if let Some(b) = step.backward() {
            let next = before[counts + PER_LANE * b + 1] as usize;
            node[ends + self.model.chunks + self.model.lanes[b].base + next] = NEVER;
        }
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

    /// What may come next: on one rank.
    fn all_moves(&self, node: &[u64], all: &mut Vec<Next>) {
        for rank in 0..self.model.of_rank.len() {
            self.moves_of(node, rank, all);
        }
        let Some(first) = all.iter().copied().min_by_key(|next| (next.end, next.rank, next.start)) else { return };
        all.retain(|next| next.rank == first.rank && next.start < first.end.max(first.start + 1));
        let rank = first.rank;
        let alone = matches!(first.step, Step::F(_) | Step::I(_) | Step::B(_));
        let for_pair = self.saving[rank] > 0 && self.may_pair(node, rank, first.step);
        if alone && for_pair && first.end > node[rank] {
            all.push(Next { what: What::Wait, ..first });
        }
        if let Step::F(lane) = first.step
            && self.tight[rank]
        {
            let held = node[self.model.of_rank.len() + rank];
            let more = (1 + self.taste.spare) * self.model.lanes[lane as usize].held.activation;
            if held + more > self.model.limits[rank] {
                all.push(Next { what: What::HoldBack, ..first });
            }
        }
    }

    /// Whether a pair may yet come of a step.
    fn may_pair(&self, node: &[u64], rank: usize, step: Step) -> bool {
        let counts = self.counts();
        let held = &self.model.of_rank[rank];
        match step {
            Step::F(_) => held.iter().any(|&at| node[counts + PER_LANE * at + 1] < node[counts + PER_LANE * at]),
            _ => held.iter().any(|&at| node[counts + PER_LANE * at] < self.model.lanes[at].count as u64),
        }
    }

    /// What a rank could start, and when.
    fn moves_of(&self, node: &[u64], rank: usize, all: &mut Vec<Next>) {
        let (model, counts, ends) = (self.model, self.counts(), self.ends());
        let free = node[rank];
        let (held, limit) = (node[model.of_rank.len() + rank], model.limits[rank]);
        let of_rank = &model.of_rank[rank];
        let [f_of, i_of, pending] = [0, 1, 2].map(|part| move |at: usize| node[counts + PER_LANE * at + part]);
        let mut soonest = NEVER;
        let mut full = false;
        let mut add = |step: Step, start: u64| {
            all.push(Next { step, what: What::Start, rank, start, end: start + model.cost(step) });
        };
        let forward = |at: usize| {
            let lane = &model.lanes[at];
            let next = f_of(at);
            if next == lane.count as u64 {
                return None;
            }
            let Some((before, hop)) = lane.before else { return Some(free) };
            let end = node[ends + model.lanes[before].base + next as usize];
            (end != NEVER).then(|| free.max(end + hop))
        };
        let held_back = |at: usize, part: u64| node[counts + PER_LANE * at + 3] & part > 0;
        for &at in of_rank {
            let lane = &model.lanes[at];
            if i_of(at) == f_of(at) {
                continue;
            }
            let start = match lane.after {
                None => free,
                Some((after, hop)) => {
                    let end = node[ends + model.chunks + model.lanes[after].base + i_of(at) as usize];
                    if end == NEVER {
                        continue;
                    }
                    free.max(end + hop)
                }
            };
            if held_back(at, BACKWARD) {
            } else if held + model.needs(Step::I(at as u32)) <= limit {
                soonest = soonest.min(start);
                add(Step::I(at as u32), start);
            } else {
                full = true;
            }
            if !held_back(at, BACKWARD) && lane.b < lane.i + lane.w && held + model.needs(Step::B(at as u32)) <= limit {
                soonest = soonest.min(start);
                add(Step::B(at as u32), start);
            }
            if self.saving[rank] == 0 {
                continue;
            }
            for &f in of_rank.iter().filter(|&&f| model.saving(f, at) > 0) {
                let step = Step::Pair(f as u32, at as u32);
                if held + model.needs(step) <= limit
                    && let Some(other) = forward(f)
                {
                    add(step, start.max(other));
                }
            }
        }
        for &at in of_rank {
            let Some(start) = forward(at) else { continue };
            if held_back(at, FORWARD) {
            } else if self.has_room(node, rank, at) {
                soonest = soonest.min(start);
                add(Step::F(at as u32), start);
            } else {
                full = true;
            }
        }
        // W fills gaps, and makes room.
        let waits = of_rank.iter().copied().filter(|&at| pending(at) > 0);
        if soonest > free || full {
            let gap = soonest.saturating_sub(free);
            let longest_that_fits = |&at: &usize| {
                let w = model.lanes[at].w;
                (w <= gap, if w <= gap { w } else { NEVER - w }, std::cmp::Reverse(at))
            };
            if let Some(at) = waits.max_by_key(longest_that_fits) {
                add(Step::W(at as u32), free);
            }
        }
    }

    /// When a step can start, if its inputs are there.
    fn start(&self, node: &[u64], rank: usize, step: Step) -> Option<u64> {
        let (model, counts, ends) = (self.model, self.counts(), self.ends());
        let mut start = node[rank];
        if let Some(f) = step.forward()
            && let Some((before, hop)) = model.lanes[f].before
        {
            let next = node[counts + PER_LANE * f] as usize;
            let end = node[ends + model.lanes[before].base + next];
            start = start.max(Some(end).filter(|&end| end != NEVER)? + hop);
        }
        if let Some(b) = step.backward()
            && let Some((after, hop)) = model.lanes[b].after
        {
            let next = node[counts + PER_LANE * b + 1] as usize;
            let end = node[ends + model.chunks + model.lanes[after].base + next];
            start = start.max(Some(end).filter(|&end| end != NEVER)? + hop);
        }
        Some(start)
    }

    /// Whether F of a lane fits, and its micro-batch can come back.
    fn has_room(&self, node: &[u64], rank: usize, at: usize) -> bool {
        let (model, counts) = (self.model, self.counts());
        let lane = &model.lanes[at];
        let mut held = node[model.of_rank.len() + rank] + lane.held.activation;
        if model.guards.contains(&Guard::Banker) {
            return held + model.backwards[rank] <= model.limits[rank] && self.all_can_end(node, at);
        }
        {
            for &other in &model.of_rank[rank] {
                let later = &model.lanes[other];
                let [f, i, pending] = [0, 1, 2].map(|part| node[counts + PER_LANE * other + part]);
                if later.stage > lane.stage && f < later.count as u64 {
                    let holds = (f - i) * later.held.activation + pending * later.held.for_weights;
                    held += later.held.activation.saturating_sub(holds);
                }
            }
        }
        held + model.backwards[rank] <= model.limits[rank]
    }

    /// As in the list scheduler.
    fn all_can_end(&self, node: &[u64], at: usize) -> bool {
        let (lanes, counts) = (&self.model.lanes, self.counts());
        let mut limits = self.model.limits.clone();
        limits.iter_mut().zip(&self.model.backwards).for_each(|(limit, backwards)| *limit -= backwards);
        let state = |lane: usize| {
            let [f, i] = [0, 1].map(|part| node[counts + PER_LANE * lane + part]);
            (f + u64::from(lane == at), i)
        };
        all_can_end(lanes, state, limits)
    }

    /// How late ranks will be at least: the less the better.
    fn guide(&mut self, node: &[u64]) -> u128 {
        let model = self.model;
        let (counts, ends, ranks) = (self.counts(), self.ends(), model.of_rank.len());
        let [forward, backward] = &mut self.coming;
        self.room.fill(0);
        for round in 0..2 {
            for (at, lane) in model.lanes.iter().enumerate() {
                let next = node[counts + PER_LANE * at];
                let mut start = node[lane.rank].max(self.room[lane.rank]);
                if let Some((before, hop)) = lane.before
                    && next < lane.count as u64
                {
                    let earlier = &model.lanes[before];
                    let end = node[ends + earlier.base + next as usize];
                    start = start.max(if end == NEVER { forward[before] + earlier.f } else { end } + hop);
                }
                forward[at] = start;
            }
            for (at, lane) in model.lanes.iter().enumerate().rev() {
                let (f, next) = (node[counts + PER_LANE * at], node[counts + PER_LANE * at + 1]);
                let mut start = node[lane.rank];
                if next < lane.count as u64 {
                    if next == f {
                        start = start.max(forward[at] + lane.f);
                    }
                    if let Some((after, hop)) = lane.after {
                        let later = &model.lanes[after];
                        let end = node[ends + model.chunks + later.base + next as usize];
                        start = start.max(if end == NEVER { backward[after] + later.i } else { end } + hop);
                    }
                }
                backward[at] = start;
            }
            if round == 1 {
                break;
            }
            // Where memory is full, the next forward waits for the next backward.
            let mut full = false;
            for (rank, held) in model.of_rank.iter().enumerate() {
                let least = held.iter().map(|&at| model.lanes[at].held.activation).min().unwrap_or(0);
                if node[ranks + rank] + least <= model.limits[rank] {
                    continue;
                }
                let freed = held.iter().filter_map(|&at| {
                    let lane = &model.lanes[at];
                    let [f, i, pending] = [0, 1, 2].map(|part| node[counts + PER_LANE * at + part]);
                    match (pending > 0, i < f) {
                        (true, _) => Some(node[rank] + lane.w),
                        (false, true) => Some(backward[at] + lane.work() - lane.f),
                        (false, false) => None,
                    }
                });
                self.room[rank] = freed.min().unwrap_or(0);
                full = true;
            }
            if !full {
                break;
            }
        }
        let (mut latest, mut sum) = (0, 0);
        for (rank, held) in model.of_rank.iter().enumerate() {
            let (mut work, mut waits, mut first) = (0, 0, NEVER);
            let (mut forwards, mut backwards, mut late, mut memory) = (0, 0, 0, 0);
            for &at in held {
                let lane = &model.lanes[at];
                let [f, i, pending] = [0, 1, 2].map(|part| node[counts + PER_LANE * at + part]);
                let (f, i) = (lane.count as u64 - f, lane.count as u64 - i);
                work += f * lane.f + i * (lane.work() - lane.f);
                waits += pending * lane.w;
                if let Some(Known { tails: [forwards, backwards], .. }) = self.known {
                    if f > 0 {
                        late = late.max(forward[at] + forwards[lane.base + lane.count - f as usize]);
                        first = first.min(forward[at]);
                    }
                    if i > 0 {
                        late = late.max(backward[at] + backwards[lane.base + lane.count - i as usize]);
                        first = first.min(backward[at]);
                    }
                    continue;
                }
                if f > 0 {
                    memory += f * self.alone[at];
                    late = late.max(forward[at] + f * lane.f + self.round[at] + self.home[at] - lane.i);
                    first = first.min(forward[at]);
                }
                if i > 0 {
                    late = late.max(backward[at] + (i - 1) * lane.i + self.home[at]);
                    first = first.min(backward[at]);
                }
                forwards += f;
                backwards += i;
            }
            work -= (forwards.min(backwards) * self.saving[rank]).min(work);
            let free = node[rank];
            let idle = if first == NEVER { 0 } else { first - free };
            let floor = self.known.map_or(0, |known| known.makespan.saturating_sub(self.longest * self.taste.near));
            let lateness = floor.max(late).max(free + work + idle.max(waits)).max(free + memory);
            latest = latest.max(lateness);
            sum += u128::from(lateness);
        }
        u128::from(latest) * u128::from(self.taste.latest) * ranks as u128 / 4 + sum
    }
}

/// Of numbers, well mixed.
fn hash(values: &[u64]) -> u64 {
    let mix = |value: u64| {
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value ^ (value >> 27)
    };
    let place = |at: u64| (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let sum = (0..).zip(values).fold(0_u64, |sum, (at, &value)| sum.wrapping_add(mix(place(at) ^ value)));
    mix(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Hops, Layout, Memory, PairCost, Placement, Problem, StageCost, StageMemory, Workspace};
    use crate::passes::pipeline::search::Objective;
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
