//! As-soon-as-possible times of orders, on flat arrays that are used again: what the search weighs its orders by.

use super::Objective;
use super::model::{Model, Orders, Step};

/// No time yet.
const NEVER: u64 = u64::MAX;

/// The times of the latest orders that were run.
pub(super) struct Clock {
    /// Per chunk, the end of its F.
    end_f: Vec<u64>,
    /// Per chunk, the end of its I.
    end_i: Vec<u64>,
    /// Per lane, forwards so far.
    f: Vec<usize>,
    /// Per lane, backwards so far.
    i: Vec<usize>,
    /// Per rank, the end of its latest step.
    pub free: Vec<u64>,
    /// Per rank and step, its start.
    pub starts: Vec<Vec<u64>>,
    /// Per rank: it waits for another.
    waits: Vec<bool>,
    ready: Vec<usize>,
}

/// What orders are compared by, the most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    /// Makespan or longest span.
    pub first: u64,
    /// The other.
    pub second: u64,
    /// Sum of the ranks' last ends: tells apart what is equally long.
    pub ends: u64,
}

impl Clock {
    pub fn new(model: &Model) -> Self {
        let ranks = model.of_rank.len();
        Self {
            end_f: vec![NEVER; model.chunks],
            end_i: vec![NEVER; model.chunks],
            f: vec![0; model.lanes.len()],
            i: vec![0; model.lanes.len()],
            free: vec![0; ranks],
            starts: vec![Vec::new(); ranks],
            waits: vec![false; ranks],
            ready: Vec::new(),
        }
    }

    /// Runs orders that are [allowed](Model::allows); false if ranks wait for each other.
    pub fn run(&mut self, model: &Model, orders: &Orders) -> bool {
        self.end_f.fill(NEVER);
        self.end_i.fill(NEVER);
        self.f.fill(0);
        self.i.fill(0);
        self.free.fill(0);
        self.waits.fill(false);
        self.starts.iter_mut().for_each(Vec::clear);
        self.ready.clear();
        self.ready.extend((0..orders.len()).rev());
        while let Some(rank) = self.ready.pop() {
            self.advance(model, rank, &orders[rank]);
        }
        !self.waits.iter().any(|&waits| waits)
    }

    fn advance(&mut self, model: &Model, rank: usize, steps: &[Step]) {
        while let Some(&step) = steps.get(self.starts[rank].len()) {
            let (forward, backward) = (step.forward(), step.backward());
            let mut start = self.free[rank];
            let mut come = true;
            if let Some((lane, hop)) = forward.and_then(|f| model.lanes[f].before) {
                let end = self.end_f[model.lanes[lane].base + self.f[lane + 1]];
                come &= end != NEVER;
                start = start.max(end.saturating_add(hop));
            }
            if let Some((lane, hop)) = backward.and_then(|b| model.lanes[b].after) {
                let end = self.end_i[model.lanes[lane].base + self.i[lane - 1]];
                come &= end != NEVER;
                start = start.max(end.saturating_add(hop));
            }
            if !come {
                self.waits[rank] = true;
                return;
            }
            let end = start + model.cost(step);
            self.starts[rank].push(start);
            self.free[rank] = end;
            if let Some(f) = forward {
                let lane = &model.lanes[f];
                self.end_f[lane.base + self.f[f]] = end;
                self.f[f] += 1;
                self.wake(model, lane.after);
            }
            if let Some(b) = backward {
                let lane = &model.lanes[b];
                self.end_i[lane.base + self.i[b]] = end;
                self.i[b] += 1;
                self.wake(model, lane.before);
            }
        }
    }

    fn wake(&mut self, model: &Model, lane: Option<(usize, u64)>) {
        if let Some((lane, _)) = lane {
            let rank = model.lanes[lane].rank;
            if std::mem::replace(&mut self.waits[rank], false) {
                self.ready.push(rank);
            }
        }
    }

    /// Runs orders and scores them; `None` if ranks wait for each other.
    pub fn score(&mut self, model: &Model, orders: &Orders, objective: Objective) -> Option<Score> {
        if !self.run(model, orders) {
            return None;
        }
        let (makespan, span) = (self.makespan(), self.span());
        let (first, second) = match objective {
            Objective::Makespan => (makespan, span),
            Objective::LongestSpan => (span, makespan),
        };
        Some(Score { first, second, ends: self.free.iter().sum() })
    }

    /// From zero to the end of the last step.
    fn makespan(&self) -> u64 {
        self.free.iter().copied().max().unwrap_or(0)
    }

    /// The longest that a rank takes from its first start to its last end.
    fn span(&self) -> u64 {
        let span = |(end, starts): (&u64, &Vec<u64>)| end - starts.first().unwrap_or(end);
        self.free.iter().zip(&self.starts).map(span).max().unwrap_or(0)
    }

    /// When F of a lane's chunk ended.
    pub fn end_of_forward(&self, model: &Model, lane: usize, chunk: usize) -> u64 {
        self.end_f[model.lanes[lane].base + chunk]
    }

    /// When I of a lane's chunk ended.
    pub fn end_of_backward(&self, model: &Model, lane: usize, chunk: usize) -> u64 {
        self.end_i[model.lanes[lane].base + chunk]
    }
}
