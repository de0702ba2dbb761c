//! Memory-bounded list scheduling: time runs forward, and whenever a rank is free a rule says what it starts.
//!
//! Micro-batches have nominal start times, one period apart, and what is due first goes first. A short period lets forwards
//! run ahead as in GPipe; a long one finishes old micro-batches first as 1F1B does; caps on the chunks in flight stand
//! between. Weight gradients fill what is left.
//!
//! Memory never locks up. A forward starts only if afterwards every lane of its rank with a later stage still has, or has
//! room for, one chunk, beside what any backward needs to run: so a chunk of the last stage can always run to its end, then one of the stage
//! before, and so on to the first. Where two directions share ranks with little room, a rule may ask instead that all that is in flight be
//! able to end, one micro-batch after the other.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::model::{Guard, Lane, Model, Orders, Step};

/// No time that is known yet.
const NEVER: u64 = u64::MAX;

/// How the list scheduler chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Per lane, the nominal start of its first F.
    pub forward: Vec<u64>,
    /// Per lane, the nominal start of its first I.
    pub backward: Vec<u64>,
    /// From the nominal start of a chunk to that of the next.
    pub period: u64,
    /// How memory is kept from locking up: one of the model's.
    pub guard: Guard,
    /// Per lane: if its stage is the first, no F starts before.
    pub release: Vec<u64>,
    /// Per lane, the most chunks between the start of F and the end of I; at least 1.
    pub caps: Vec<u32>,
    /// When a backward runs whole.
    pub whole: Whole,
    /// Whether F and B are overlapped where that is shorter.
    pub pairing: Pairing,
    /// Per rank, the most backwards whose W may be due before a W goes first.
    pub behind: Vec<u32>,
    /// Per rank: a W goes in a gap if it is over at most this long after the next F or I is known to come. Where none is known: always.
    pub slack: Vec<u64>,
    /// Per rank: it waits at most so long for what is due earlier than what it could start.
    pub patience: Vec<u64>,
    /// Per rank, by place in its order: exceptions to the rule. What is beyond the end has none.
    pub exceptions: Vec<Vec<Exception>>,
}

/// An exception to a rule, where it can be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Exception {
    #[default]
    None,
    /// F, or wait for one that is known to come.
    Forward,
    /// A backward, or wait for one that is known to come.
    Backward,
    /// W.
    Weight,
    /// Wait for what is known to come next.
    Wait,
    /// A backward the other way: whole if the rule says split.
    Otherwise,
}

impl Exception {
    /// All that are exceptions.
    pub const ALL: [Self; 5] = [Self::Forward, Self::Backward, Self::Weight, Self::Wait, Self::Otherwise];
}

/// When a backward runs as B rather than as I and W.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    Always,
    Never,
    /// As long as the rank has forwards to run, save the first backwards, for which other ranks wait.
    WhileForwards,
}

/// Whether F and B are overlapped where that is shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairing {
    Never,
    /// If both can start.
    Ready,
    /// Also if the other of the two is known to come within so long.
    Within(u64),
}

/// The orders that a rule makes. `None` only if ranks wait for each other for ever, which the reservation excludes.
pub(super) fn dispatch(model: &Model, rule: &Rule) -> Option<Orders> {
    let mut run = Run::new(model, rule);
    for rank in 0..model.of_rank.len() {
        run.events.push(Reverse((0, rank)));
    }
    while let Some(Reverse((now, rank))) = run.events.pop() {
        if now >= run.free[rank] {
            run.turn(rank, now);
        }
    }
    let done = |lane: &LaneState| lane.pending == 0;
    let all = model.lanes.iter().zip(&run.lanes).all(|(lane, state)| state.i == lane.count && done(state));
    all.then_some(run.orders)
}

/// How far a lane has come.
#[derive(Clone, Copy, Default)]
struct LaneState {
    f: usize,
    i: usize,
    /// I whose W has not run.
    pending: usize,
}

struct Run<'a> {
    model: &'a Model,
    rule: &'a Rule,
    lanes: Vec<LaneState>,
    /// Per chunk.
    end_f: Vec<u64>,
    end_i: Vec<u64>,
    /// Per rank.
    free: Vec<u64>,
    held: Vec<u64>,
    asleep: Vec<bool>,
    pending: Vec<u32>,
    orders: Orders,
    events: BinaryHeap<Reverse<(u64, usize)>>,
}

/// The best F, or I, that could start now or is known to come.
#[derive(Clone, Copy)]
struct Candidate {
    due: u64,
    lane: usize,
    arrival: u64,
}

enum Decision {
    Run(Step),
    /// Until then, or until something comes.
    Wait(u64),
}

impl<'a> Run<'a> {
    fn new(model: &'a Model, rule: &'a Rule) -> Self {
        let ranks = model.of_rank.len();
        Self {
            model,
            rule,
            lanes: vec![LaneState::default(); model.lanes.len()],
            end_f: vec![NEVER; model.chunks],
            end_i: vec![NEVER; model.chunks],
            free: vec![0; ranks],
            held: vec![0; ranks],
            asleep: vec![false; ranks],
            pending: vec![0; ranks],
            orders: vec![Vec::new(); ranks],
            events: BinaryHeap::new(),
        }
    }

    /// `rank` is free at `now`: it starts a step or waits.
    fn turn(&mut self, rank: usize, now: u64) {
        match self.decide(rank, now) {
            Decision::Run(step) => self.start(rank, now, step),
            Decision::Wait(until) => {
                self.asleep[rank] = true;
                if until != NEVER {
                    self.events.push(Reverse((until, rank)));
                }
            }
        }
    }

    fn start(&mut self, rank: usize, now: u64, step: Step) {
        let end = now + self.model.cost(step);
        let (more, less) = self.model.holds(step);
        self.asleep[rank] = false;
        self.free[rank] = end;
        // Whatever the step frees is free when the rank decides next.
        self.held[rank] = self.held[rank] + more - less;
        self.orders[rank].push(step);
        self.events.push(Reverse((end, rank)));
        if let Some(f) = step.forward() {
            let lane = &self.model.lanes[f];
            let state = &mut self.lanes[f];
            self.end_f[lane.base + state.f] = end;
            state.f += 1;
            self.tell(lane.after, end);
        }
        if let Some(b) = step.backward() {
            let lane = &self.model.lanes[b];
            let state = &mut self.lanes[b];
            self.end_i[lane.base + state.i] = end;
            state.i += 1;
            if let Step::I(_) = step {
                state.pending += 1;
                self.pending[rank] += 1;
            }
            self.tell(lane.before, end);
        }
        if let Step::W(l) = step {
            self.lanes[l as usize].pending -= 1;
            self.pending[rank] -= 1;
        }
        if self.rule.guard == Guard::Banker {
            // What is free here may be what a forward elsewhere waits for.
            let asleep = (0..self.asleep.len()).filter(|&rank| self.asleep[rank]);
            self.events.extend(asleep.map(|rank| Reverse((end, rank))));
        }
    }

    /// A rank that waits learns when something will come. (The hop is the same for the reader.)
    fn tell(&mut self, reader: Option<(usize, u64)>, end: u64) {
        if let Some((lane, hop)) = reader {
            let rank = self.model.lanes[lane].rank;
            if self.asleep[rank] {
                self.events.push(Reverse((end + hop, rank)));
            }
        }
    }

    fn decide(&self, rank: usize, now: u64) -> Decision {
        let (model, rule) = (self.model, self.rule);
        let (mut f, mut b) = (None, None);
        let (mut coming_f, mut coming_b) = (None, None);
        for &at in &model.of_rank[rank] {
            let (lane, state) = (&model.lanes[at], self.lanes[at]);
            if let Some(arrival) = self.forward_arrival(rank, at) {
                let due = rule.forward[at] + rule.period * state.f as u64;
                let place = if arrival <= now { &mut f } else { &mut coming_f };
                keep(place, Candidate { due, lane: at, arrival });
            }
            if state.i < state.f {
                let arrival = match lane.after {
                    None => 0,
                    Some((after, hop)) => self.end_i[model.lanes[after].base + state.i].saturating_add(hop),
                };
                if arrival != NEVER {
                    let due = rule.backward[at] + rule.period * state.i as u64;
                    let place = if arrival <= now { &mut b } else { &mut coming_b };
                    keep(place, Candidate { due, lane: at, arrival });
                }
            }
        }
        let next = [coming_f, coming_b].into_iter().flatten().map(|c: Candidate| c.arrival).min().unwrap_or(NEVER);

        let exception = rule.exceptions[rank].get(self.orders[rank].len()).copied().unwrap_or_default();
        match exception {
            Exception::None | Exception::Otherwise => {}
            Exception::Forward => match (f, coming_f) {
                (Some(f), _) => return Decision::Run(Step::F(f.lane as u32)),
                (None, Some(f)) => return Decision::Wait(f.arrival),
                (None, None) => {}
            },
            Exception::Backward => match (b, coming_b) {
                (Some(b), _) => return Decision::Run(self.backward(rank, b.lane, self.whole(b.lane))),
                (None, Some(b)) => return Decision::Wait(b.arrival),
                (None, None) => {}
            },
            Exception::Weight => {
                if let Some(w) = self.weight(rank) {
                    return Decision::Run(w);
                }
            }
            Exception::Wait if next != NEVER => return Decision::Wait(next),
            Exception::Wait => {}
        }
        if let Some(decision) = self.pair(now, f, b, coming_f, coming_b) {
            return decision;
        }
        if self.pending[rank] > rule.behind[rank]
            && let Some(w) = self.weight(rank)
        {
            return Decision::Run(w);
        }
        let forward_first = match (f, b) {
            (Some(f), Some(b)) => f.due < b.due,
            (f, _) => f.is_some(),
        };
        if let Some(best) = if forward_first { f } else { b } {
            let sooner = |c: Candidate| c.due < best.due && c.arrival - now <= rule.patience[rank];
            if [coming_f, coming_b].into_iter().flatten().any(sooner) {
                return Decision::Wait(next);
            }
            return Decision::Run(match forward_first {
                true => Step::F(best.lane as u32),
                false => self.backward(rank, best.lane, self.whole(best.lane) != (exception == Exception::Otherwise)),
            });
        }
        match self.weight(rank) {
            Some(w) if next == NEVER || now + model.cost(w) <= next.saturating_add(rule.slack[rank]) => {
                Decision::Run(w)
            }
            _ => Decision::Wait(next),
        }
    }

    /// When the next F of a lane can start, as far as is known; `None` if it may not, for the cap or for memory.
    fn forward_arrival(&self, rank: usize, at: usize) -> Option<u64> {
        let (lane, state) = (&self.model.lanes[at], self.lanes[at]);
        if state.f == lane.count || state.f - state.i >= self.rule.caps[at] as usize || !self.has_room(rank, at) {
            return None;
        }
        match lane.before {
            Some((before, hop)) => {
                let end = self.end_f[self.model.lanes[before].base + state.f];
                (end != NEVER).then(|| end + hop)
            }
            None => Some(self.rule.release[at]),
        }
    }

    /// Whether a chunk more of lane `at` fits, and leaves the way to the end open.
    fn has_room(&self, rank: usize, at: usize) -> bool {
        let model = self.model;
        if self.rule.guard == Guard::Banker {
            let needs = self.held[rank] + model.lanes[at].held.activation + model.backwards[rank];
            let fits = needs <= model.limits[rank];
            return fits && self.all_can_end(at);
        }
        let lane = &model.lanes[at];
        let mut held = self.held[rank] + lane.held.activation;
        for &other in &model.of_rank[rank] {
            let (later, state) = (&model.lanes[other], self.lanes[other]);
            if later.stage > lane.stage && state.f < later.count {
                let holds =
                    (state.f - state.i) as u64 * later.held.activation + state.pending as u64 * later.held.for_weights;
                held += later.held.activation.saturating_sub(holds);
            }
        }
        held + model.backwards[rank] <= model.limits[rank]
    }

    /// Whether a rank has room for what a step needs.
    fn fits(&self, rank: usize, step: Step) -> bool {
        self.held[rank] + self.model.needs(step) <= self.model.limits[rank]
    }

    /// As [`all_can_end`], with a chunk more on lane `at`.
    fn all_can_end(&self, at: usize) -> bool {
        let model = self.model;
        let limits = model.limits.iter().zip(&model.backwards).map(|(limit, backwards)| limit - backwards);
        let state = |lane: usize| {
            let LaneState { f, i, .. } = self.lanes[lane];
            ((f + usize::from(lane == at)) as u64, i as u64)
        };
        all_can_end(&model.lanes, state, limits.collect())
    }

    /// F and B overlapped, if that is shorter and both are there, or will be soon.
    fn pair(
        &self,
        now: u64,
        f: Option<Candidate>,
        b: Option<Candidate>,
        coming_f: Option<Candidate>,
        coming_b: Option<Candidate>,
    ) -> Option<Decision> {
        let pair = |f: Candidate, b: Candidate| Step::Pair(f.lane as u32, b.lane as u32);
        let saves = |f: Candidate, b: Candidate| {
            self.model.saving(f.lane, b.lane) > 0 && self.fits(self.model.lanes[f.lane].rank, pair(f, b))
        };
        let within = match self.rule.pairing {
            Pairing::Never => return None,
            Pairing::Ready => 0,
            Pairing::Within(within) => within,
        };
        match (f, b) {
            (Some(f), Some(b)) => saves(f, b).then_some(Decision::Run(pair(f, b))),
            (Some(f), None) => {
                let b = coming_b?;
                (saves(f, b) && b.arrival - now <= within).then_some(Decision::Wait(b.arrival))
            }
            (None, Some(b)) => {
                let f = coming_f?;
                (saves(f, b) && f.arrival - now <= within).then_some(Decision::Wait(f.arrival))
            }
            (None, None) => None,
        }
    }

    /// The next backward of a lane, whole if that is wanted, or the other way where only that has room. Where neither has, a W frees
    /// some: once none waits, one of the two has.
    fn backward(&self, rank: usize, at: usize, whole: bool) -> Step {
        let mut ways = [Step::I(at as u32), Step::B(at as u32)];
        if whole {
            ways.reverse();
        }
        let fitting = ways.into_iter().find(|&step| self.fits(rank, step));
        fitting.or_else(|| self.weight(rank)).unwrap_or(ways[0])
    }

    /// Whether the rule wants the next backward of a lane whole.
    fn whole(&self, at: usize) -> bool {
        let (lane, state) = (&self.model.lanes[at], self.lanes[at]);
        match self.rule.whole {
            Whole::Always => true,
            Whole::Never => false,
            Whole::WhileForwards => {
                let mut lanes = self.model.of_rank[lane.rank].iter();
                state.i > 0 && lanes.any(|&at| self.lanes[at].f < self.model.lanes[at].count)
            }
        }
    }

    /// The weight gradient that is due first.
    fn weight(&self, rank: usize) -> Option<Step> {
        let due = |&&at: &&usize| {
            let state = self.lanes[at];
            self.rule.backward[at] + self.rule.period * (state.i - state.pending) as u64
        };
        let lanes = self.model.of_rank[rank].iter().filter(|&&at| self.lanes[at].pending > 0);
        lanes.min_by_key(due).map(|&at| Step::W(at as u32))
    }
}

/// Whether the micro-batches in flight could end one after the other, each with all that it needs: the banker's algorithm (Dijkstra 1965).
/// `state`: F and I of a lane that are done. `free`: per rank, the most that its chunks may hold. What only W still reads counts as free,
/// as W can run at any time.
pub(super) fn all_can_end(lanes: &[Lane], state: impl Fn(usize) -> (u64, u64), mut free: Vec<u64>) -> bool {
    for (at, lane) in lanes.iter().enumerate() {
        let (f, i) = state(at);
        let Some(rest) = free[lane.rank].checked_sub((f - i) * lane.held.activation) else { return false };
        free[lane.rank] = rest;
    }
    // Per direction, which has one lane on a rank: its first lane, and its oldest micro-batch that has not ended.
    let stages = lanes.iter().filter(|lane| lane.first == 0).count();
    let mut directions: Vec<(usize, u64)> = (0..lanes.len()).step_by(stages).map(|at| (at, state(at).1)).collect();
    loop {
        let mut ended = false;
        for (first, oldest) in &mut directions {
            let of_direction = *first..*first + stages;
            let mut missing = of_direction.clone().filter(|&at| state(at).0 <= *oldest);
            let can_end = missing.all(|at| free[lanes[at].rank] >= lanes[at].held.activation);
            if *oldest < state(*first).0 && can_end {
                for at in of_direction.filter(|&at| state(at).1 <= *oldest && state(at).0 > *oldest) {
                    free[lanes[at].rank] += lanes[at].held.activation;
                }
                *oldest += 1;
                ended = true;
            }
        }
        if !ended {
            return directions.iter().all(|&(first, oldest)| oldest == state(first).0);
        }
    }
}

/// Keeps what is due first; lanes come in order, and the first of equals stays.
fn keep(best: &mut Option<Candidate>, candidate: Candidate) {
    if best.is_none_or(|best| candidate.due < best.due) {
        *best = Some(candidate);
    }
}
