//! The steady state of a pair FB: one layer's forward beside another's backward, over and over.
//!
//! Each op runs once per period on its engine. An op of one repetition may need what another made some repetitions before
//! (`distance`). Wanted is the shortest period. It can never be below the load of the busiest engine, nor below the length
//! of a chain that must close within a repetition; [`search()`] starts from that bound and stops when it is met. With the
//! feature `highs` an integer program takes over where it runs out of nodes.

#[cfg(any(test, feature = "highs"))]
mod ilp;
mod improve;
mod launches;
mod layer;
mod period;
mod search;
mod slowed;
mod span;
#[cfg(test)]
mod tests;

pub use improve::improve;
pub use launches::best_launches;
pub use layer::middle_layer;
pub use period::{Edge, Timing, period};
pub use search::{Limits, search};
pub use span::{LayerSpan, best_span};

use crate::ir::{Component, Phase, Step, Stream, Tokens};
use crate::units::Nanos;

/// An op of the repeated layer pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CyclicOp {
    /// What it is.
    pub component: Component,
    /// F belongs to one micro-batch, I and W to the other.
    pub phase: Phase,
    /// Which part of the component's work.
    pub step: Step,
    /// On which tokens.
    pub tokens: Tokens,
    /// The engine that it occupies.
    pub engine: Stream,
    /// For how long.
    pub duration: Nanos,
}

/// That `to` reads what `from` made `distance` repetitions before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Index of the op that makes it.
    pub from: usize,
    /// Index of the op that reads it.
    pub to: usize,
    /// Repetitions between them.
    pub distance: i64,
}

/// A repeated layer pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CyclicProblem {
    /// Its ops.
    pub ops: Vec<CyclicOp>,
    /// What they read of each other.
    pub needs: Vec<Need>,
    /// Repetitions by which a weight gradient may fall behind its input gradient, and what is computed again may run ahead of
    /// its reader: what is read is kept so long.
    pub weight_delay: i64,
    /// By op and other op, of the other engine: the duration of the one with the other beside it all the time. Empty if
    /// nothing slows anything.
    pub beside: Vec<Vec<Nanos>>,
}

/// A schedule of the repeated pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CyclicSchedule {
    /// Time from one repetition to the next, rounded up to a nanosecond.
    pub period: Nanos,
    /// No schedule has a shorter period, as far as was proved.
    pub bound: Nanos,
    /// Start of each op in repetition 0; in repetition n it is n periods later. The earliest is 0.
    pub starts: Vec<Nanos>,
    /// Partial schedules that were looked at.
    pub nodes: u64,
    /// What `starts` repeat after, for the launch order: the period, or, where ops slow each other, what it would be if they
    /// did not; `period` is then the mean of several repetitions.
    pub unslowed: Nanos,
    /// By how much the period may be off: where ops slow each other they are rounded whenever what is beside them changes.
    pub rounding: Nanos,
}

impl CyclicSchedule {
    /// Whether the period is the shortest possible, but for rounding.
    pub fn proved(&self) -> bool {
        self.period <= self.bound + self.rounding
    }
}

impl CyclicProblem {
    /// A layer pair from the durations of its components. F: attention, dispatch, MLP, combine, and the next layer's
    /// attention after this one's combine. Backwards: combine, MLP, dispatch, attention, and the next (lower) layer's
    /// combine after this one's attention; weight gradients after the input gradient of their component. Components of no
    /// duration are left out.
    pub fn layer_pair(duration: impl Fn(Component, Phase) -> Nanos) -> Self {
        use Component::{Attention, Combine, Dispatch, Mlp};
        let chains = [(Phase::F, [Attention, Dispatch, Mlp, Combine]), (Phase::I, [Combine, Mlp, Dispatch, Attention])];
        let mut problem = Self { ops: Vec::new(), needs: Vec::new(), weight_delay: 2, beside: Vec::new() };
        for (phase, components) in chains {
            let first = problem.ops.len();
            for component in components {
                problem.add(component, phase, duration(component, phase));
            }
            let end = problem.ops.len();
            for at in first..end {
                let (to, distance) = if at + 1 < end { (at + 1, 0) } else { (first, 1) };
                problem.needs.push(Need { from: at, to, distance });
            }
        }
        for component in [Mlp, Attention] {
            let input = problem.ops.iter().position(|op| op.component == component && op.phase == Phase::I);
            let weight = problem.ops.len();
            problem.add(component, Phase::W, duration(component, Phase::W));
            if let (Some(from), true) = (input, problem.ops.len() > weight) {
                problem.needs.push(Need { from, to: weight, distance: 0 });
            }
        }
        problem
    }

    fn add(&mut self, component: Component, phase: Phase, duration: Nanos) {
        let exchange = matches!(component, Component::Dispatch | Component::Combine);
        let engine = if exchange { Stream::Comm } else { Stream::Compute };
        if duration > Nanos::ZERO {
            self.ops.push(CyclicOp { component, phase, step: Step::Main, tokens: Tokens::ALL, engine, duration });
        }
    }

    /// Time that an engine is occupied in each period.
    pub fn load(&self, engine: Stream) -> Nanos {
        self.ops.iter().filter(|op| op.engine == engine).map(|op| op.duration).sum()
    }

    /// Edges of the needs, and of the limit on how far weight gradients fall behind, and what is computed again runs ahead.
    fn edges(&self) -> Vec<Edge> {
        let mut edges: Vec<Edge> = Vec::new();
        for need in &self.needs {
            let weight = self.ops[need.from].duration.0 as i64;
            edges.push(Edge { from: need.from, to: need.to, weight, distance: need.distance });
            let loose = self.ops[need.to].phase == Phase::W || self.ops[need.from].step == Step::Again;
            if loose {
                edges.push(Edge { from: need.to, to: need.from, weight: 0, distance: self.weight_delay });
            }
        }
        edges
    }

    /// The two edges that keep i and j apart: j after i of k repetitions before, i after j of 1-k.
    fn ordered(&self, i: usize, j: usize, k: i64) -> [Edge; 2] {
        let weight = |op: usize| self.ops[op].duration.0 as i64;
        [
            Edge { from: i, to: j, weight: weight(i), distance: k },
            Edge { from: j, to: i, weight: weight(j), distance: 1 - k },
        ]
    }

    /// The ops of a launch order, by index; what the problem does not have is passed over.
    pub fn indices(&self, order: &[(Component, Phase)]) -> Vec<usize> {
        let find = |&(component, phase): &(Component, Phase)| {
            self.ops.iter().position(|op| (op.component, op.phase) == (component, phase))
        };
        order.iter().filter_map(find).collect()
    }

    /// Whether no op of F reads one of I or W, nor the other way round.
    fn sides_are_apart(&self) -> bool {
        let forward = |op: usize| self.ops[op].phase == Phase::F;
        self.needs.iter().all(|need| forward(need.from) == forward(need.to))
    }

    /// Whether every op is before and after every other by some chain of needs — of its own side only, unless `together`.
    /// Only then can no op drift from another without end.
    fn tied(&self, together: bool) -> bool {
        let same = |a: usize, b: usize| together || (self.ops[a].phase == Phase::F) == (self.ops[b].phase == Phase::F);
        let edges = self.edges();
        (0..self.ops.len()).all(|start| {
            let mut reached = vec![false; self.ops.len()];
            let mut open = vec![start];
            while let Some(op) = open.pop() {
                if !std::mem::replace(&mut reached[op], true) {
                    open.extend(edges.iter().filter(|edge| edge.from == op).map(|edge| edge.to));
                }
            }
            (0..self.ops.len()).all(|op| reached[op] || !same(start, op))
        })
    }

    /// A period that no schedule is below: the busiest engine's load, with what it loses to the other, and the longest chain
    /// per repetition.
    pub fn bound(&self) -> Nanos {
        self.unslowed_bound().max(self.load_bound()).max(self.slowed_chain_bound())
    }

    /// The same if nothing slowed anything.
    fn unslowed_bound(&self) -> Nanos {
        let load = self.load(Stream::Compute).max(self.load(Stream::Comm));
        let chains = period(self.ops.len(), &self.edges(), load).map_or(load, |timing| timing.period);
        load.max(chains)
    }

    /// The period when ops run in this order on each engine, repetition after repetition, as two streams run what is
    /// launched to them: `order` is a launch order of one repetition. `None` if it contradicts the needs.
    pub fn timing_of(&self, order: &[usize]) -> Option<Timing> {
        let mut edges = self.edges();
        for engine in [Stream::Compute, Stream::Comm] {
            let line: Vec<usize> = order.iter().copied().filter(|&op| self.ops[op].engine == engine).collect();
            for (at, &from) in line.iter().enumerate() {
                let (to, distance) = if at + 1 < line.len() { (line[at + 1], 0) } else { (line[0], 1) };
                edges.push(Edge { from, to, weight: self.ops[from].duration.0 as i64, distance });
            }
        }
        period(self.ops.len(), &edges, Nanos::ZERO)
    }
}
