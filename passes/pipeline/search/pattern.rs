//! Patterns: what every rank repeats, and the orders of any number of micro-batches that come of it.
//!
//! A pattern runs the same number of chunks of every lane in each repetition, and goes on for ever in both directions. The orders of so
//! many micro-batches are what is left of it when every chunk that does not exist is left out: the ways in and out of the steady state come
//! by themselves, and no rank ever holds more than in it.

use super::draw::Draw;
use super::model::{Model, Orders, Step};
use super::moves::{Moves, change};
use super::unroll::Loop;

/// What all ranks repeat.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// Chunks of each lane in a repetition.
    chunks: usize,
    bodies: Vec<Body>,
}

/// What a rank repeats.
#[derive(Clone, Debug)]
struct Body {
    steps: Vec<Step>,
    /// Per lane of the rank: the chunk of its first F, and of its first I, in the repetition that is counted as the first. Chunks from
    /// below 0 on, and beyond the last, do not exist.
    first: Vec<[i64; 2]>,
}

impl Pattern {
    /// What a loop of these orders repeats.
    pub fn of_loop(model: &Model, orders: &Orders, part: &Loop) -> Self {
        let body = |(rank, steps): (usize, &Vec<Step>)| {
            let (from, to) = part.range(rank);
            let mut body = Body { steps: steps[..to].to_vec(), first: vec![[0; 2]; model.of_rank[rank].len()] };
            body.advance(model, from);
            body.steps.truncate(to - from);
            body
        };
        Self { chunks: part.chunks, bodies: orders.iter().enumerate().map(body).collect() }
    }

    /// One chunk of each lane in a repetition: each rank's steps, with the chunks of their F and of their I.
    pub fn of_one(model: &Model, ranks: Vec<Vec<(Step, [i64; 2])>>) -> Self {
        let body = |(rank, steps): (usize, Vec<(Step, [i64; 2])>)| {
            let mut first = vec![[0; 2]; model.of_rank[rank].len()];
            for &(step, [forward, backward]) in &steps {
                if let Some(lane) = step.forward() {
                    first[model.place(lane)][0] = forward;
                }
                if let Some(lane) = step.backward() {
                    first[model.place(lane)][1] = backward;
                }
            }
            Body { steps: steps.into_iter().map(|(step, _)| step).collect(), first }
        };
        Self { chunks: 1, bodies: ranks.into_iter().enumerate().map(body).collect() }
    }

    /// Chunks of each lane in a repetition.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// The same, with so many repetitions as one: they may become different from each other.
    pub fn times(&self, times: usize) -> Self {
        let body = |body: &Body| Body { steps: body.steps.repeat(times), first: body.first.clone() };
        Self { chunks: self.chunks * times, bodies: self.bodies.iter().map(body).collect() }
    }

    /// The orders of the model's micro-batches.
    pub fn orders(&self, model: &Model) -> Orders {
        (0..self.bodies.len()).map(|rank| self.bodies[rank].orders(model, rank, self.chunks).0).collect()
    }
}

impl Body {
    /// Goes on by so many steps, without going round.
    fn advance(&mut self, model: &Model, steps: usize) {
        for step in self.steps.drain(..steps) {
            if let Some(lane) = step.forward() {
                self.first[model.place(lane)][0] += 1;
            }
            if let Some(lane) = step.backward() {
                self.first[model.place(lane)][1] += 1;
            }
        }
    }

    /// Begins the repetition so many steps later. It stays the same pattern.
    fn rotate(&mut self, model: &Model, steps: usize) {
        let again = self.steps[..steps].to_vec();
        self.advance(model, steps);
        self.steps.extend(again);
    }

    /// The steps of a rank, and of each the step of the body that it repeats.
    fn orders(&self, model: &Model, rank: usize, chunks: usize) -> (Vec<Step>, Vec<u32>) {
        let chunks = chunks as i64;
        let lanes = &model.of_rank[rank];
        let count = |place: usize| model.lanes[lanes[place]].count as i64;
        let firsts = || self.first.iter().enumerate().flat_map(|(place, first)| first.map(|first| (place, first)));
        let from = firsts().map(|(_, first)| (-first).div_euclid(chunks)).min().unwrap_or(0);
        let to = firsts().map(|(place, first)| (count(place) - 1 - first).div_euclid(chunks)).max().unwrap_or(-1);
        let mut next: Vec<[i64; 2]> = self.first.iter().map(|first| first.map(|first| first + from * chunks)).collect();
        let mut pending = vec![0_usize; lanes.len()];
        let (mut steps, mut origins) = (Vec::new(), Vec::new());
        for _ in from..=to {
            for (at, &step) in (0..).zip(&self.steps) {
                let mut take = |lane: usize, part: usize| {
                    let place = model.place(lane);
                    next[place][part] += 1;
                    (1..=count(place)).contains(&next[place][part])
                };
                let forward = step.forward().is_some_and(|lane| take(lane, 0));
                let backward = step.backward().is_some_and(|lane| take(lane, 1));
                let mut add = |step| {
                    steps.push(step);
                    origins.push(at);
                };
                match step {
                    Step::F(_) if forward => add(step),
                    Step::B(_) if backward => add(step),
                    Step::I(lane) if backward => {
                        pending[model.place(lane as usize)] += 1;
                        add(step);
                    }
                    Step::W(lane) if pending[model.place(lane as usize)] > 0 => {
                        pending[model.place(lane as usize)] -= 1;
                        add(step);
                    }
                    Step::Pair(..) if forward && backward => add(step),
                    Step::Pair(lane, _) if forward => add(Step::F(lane)),
                    Step::Pair(_, lane) if backward => {
                        let costs = &model.lanes[lane as usize];
                        let [alone, whole] = costs.backward_needs();
                        match costs.b < costs.i + costs.w || alone > whole {
                            true => add(Step::B(lane)),
                            false => [Step::I(lane), Step::W(lane)].into_iter().for_each(add),
                        }
                    }
                    _ => {}
                }
            }
        }
        for (&lane, pending) in lanes.iter().zip(pending) {
            let last = self.steps.len().saturating_sub(1) as u32;
            steps.extend(std::iter::repeat_n(Step::W(lane as u32), pending));
            origins.extend(std::iter::repeat_n(last, pending));
        }
        (steps, origins)
    }
}

/// Changes of a pattern, all repetitions alike.
pub(super) struct PatternMoves {
    pattern: Pattern,
    /// Per rank and step of its orders, the step of its body.
    origins: Vec<Vec<u32>>,
    proposed: Option<(usize, Body, Vec<u32>)>,
    /// As it was when the orders were the best.
    pub best: Pattern,
}

impl PatternMoves {
    pub fn new(model: &Model, pattern: Pattern) -> Self {
        let origins = pattern.bodies.iter().enumerate().map(|(rank, body)| body.orders(model, rank, pattern.chunks).1);
        Self { origins: origins.collect(), best: pattern.clone(), pattern, proposed: None }
    }
}

impl Moves for PatternMoves {
    fn propose(
        &mut self,
        model: &Model,
        orders: &Orders,
        (rank, at): (usize, usize),
        draw: &mut Draw,
    ) -> Option<(usize, Vec<Step>)> {
        debug_assert_eq!(orders[rank].len(), self.origins[rank].len());
        let mut body = self.pattern.bodies[rank].clone();
        let at = *self.origins[rank].get(at)? as usize;
        if draw.below(8) == 0 {
            // One chunk more, or less, between F and I; or a lane a chunk ahead of the rank's others.
            let place = draw.below(body.first.len());
            let by = if draw.coin() { 1 } else { -1 };
            let parts = draw.one_of(&[[false, true], [true, false], [true, true]]);
            for (first, _) in body.first[place].iter_mut().zip(parts).filter(|(_, moves)| *moves) {
                *first += by;
            }
        } else {
            // The step comes into the middle, so that it can go both ways.
            let length = body.steps.len();
            body.rotate(model, (at + length - length / 2) % length);
            body.steps = change(model, &body.steps, length / 2, draw)?;
        }
        let (steps, origins) = body.orders(model, rank, self.pattern.chunks);
        self.proposed = Some((rank, body, origins));
        Some((rank, steps))
    }

    fn take(&mut self) {
        if let Some((rank, body, origins)) = self.proposed.take() {
            self.pattern.bodies[rank] = body;
            self.origins[rank] = origins;
        }
    }

    fn is_best(&mut self) {
        self.best = self.pattern.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Hops, Layout, PairCost, Placement, Problem, StageCost};
    use crate::passes::pipeline::search::Objective;
    use crate::passes::pipeline::search::block::blocks;
    use crate::passes::pipeline::search::clock::Clock;
    use crate::units::Nanos;

    /// Stages that take 5, 6 and 4, the last one twice that.
    fn problem(placement: Placement, ranks: u32, micro_batches: u32) -> Problem {
        let layout = Layout::new(placement, ranks, 2, micro_batches);
        let cost = |stage| {
            let times = if stage + 1 == layout.stages { 2 } else { 1 };
            let [f, i, w] = [5, 6, 4].map(|cost| Nanos(cost * times));
            StageCost { f, i, w, b: i + w }
        };
        let stages = (0..layout.stages).map(cost).collect();
        Problem { layout, stages, pair: PairCost::Uniform(Nanos(12)), hops: Hops::Uniform(Nanos(1)), memory: None }
    }

    const PLACEMENTS: [Placement; 4] = [Placement::Linear, Placement::Loop, Placement::V, Placement::Bidirectional];

    /// Where memory sets no limit, every building block makes orders that have all parts of all chunks and come to their end; and what
    /// is the same pattern makes the same orders, but for W that are left behind the last repetition.
    #[test]
    fn building_blocks_make_whole_timetables() {
        for placement in PLACEMENTS {
            for (ranks, micro_batches) in [(1, 3), (3, 2), (4, 9)] {
                let model = Model::new(&problem(placement, ranks, micro_batches)).expect("a model");
                let mut clock = Clock::new(&model);
                let mut all = 0;
                let without_weights = |orders: &Orders| -> Orders {
                    let keep = |step: &Step| !matches!(step, Step::W(_));
                    orders.iter().map(|steps| steps.iter().copied().filter(keep).collect()).collect()
                };
                for pattern in blocks(&model) {
                    let orders = pattern.orders(&model);
                    assert!(orders.iter().enumerate().all(|(rank, steps)| model.allows(rank, steps)), "{pattern:?}");
                    assert!(clock.score(&model, &orders, Objective::Makespan).is_some(), "{pattern:?}");
                    assert_eq!(without_weights(&pattern.times(3).orders(&model)), without_weights(&orders));
                    let mut rotated = pattern.clone();
                    for body in &mut rotated.bodies {
                        let steps = body.steps.len() / 2;
                        body.rotate(&model, steps);
                    }
                    assert_eq!(without_weights(&rotated.orders(&model)), without_weights(&orders));
                    all += 1;
                }
                assert!(all > 0, "{placement}");
            }
        }
    }

    /// More micro-batches take a period each, whatever their number.
    #[test]
    fn a_pattern_repeats_for_any_number_of_micro_batches() {
        for placement in PLACEMENTS {
            let makespan = |pattern: &Pattern, micro_batches: u32| {
                let model = Model::new(&problem(placement, 4, micro_batches)).expect("a model");
                let mut clock = Clock::new(&model);
                clock.score(&model, &pattern.orders(&model), Objective::Makespan).expect("an end").first
            };
            let model = Model::new(&problem(placement, 4, 16)).expect("a model");
            for pattern in blocks(&model) {
                let [first, second, third] = [32, 48, 64].map(|micro_batches| makespan(&pattern, micro_batches));
                assert_eq!(second - first, third - second, "{pattern:?}");
            }
        }
    }
}
