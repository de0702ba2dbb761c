//! The shortest time for a few layers of a pair, from the first start to the last end.

use super::super::shop::{self, Ordered, Shop};
use super::{CyclicProblem, CyclicSchedule, Limits};
use crate::ir::Stream;
use crate::sim::{StreamOps, run_streams};
use crate::units::Nanos;

/// A few layers in an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpan {
    /// From the first start to the last end.
    pub span: Nanos,
    /// No order takes less, as far as was proved.
    pub bound: Nanos,
    /// What is launched, in this order: layer and op.
    pub launches: Vec<(u64, usize)>,
    /// By how much the span may be off: see [`CyclicSchedule::rounding`].
    pub rounding: Nanos,
    /// Partial orders that were looked at.
    pub nodes: u64,
}

impl LayerSpan {
    /// Whether no order takes less, but for rounding.
    pub fn proved(&self) -> bool {
        self.span <= self.bound + self.rounding
    }
}

/// The shortest span of `layers` layers that is found within the limits: at least as short as in the order of each of the schedules
/// in `start`. `None` without schedules.
pub fn best_span(problem: &CyclicProblem, layers: u64, start: &[&CyclicSchedule], limits: Limits) -> Option<LayerSpan> {
    let unrolled = Unrolled::new(problem, layers);
    let count = problem.ops.len();
    let order = |schedule: &&CyclicSchedule| -> Vec<usize> {
        problem.launches(schedule, layers).into_iter().map(|(layer, op)| layer as usize * count + op).collect()
    };
    let timed = start.iter().map(order).map(|order| (unrolled.time(&order), order));
    let (span, order) = timed.min_by_key(|(span, _)| *span)?;
    let rounding = if problem.is_slowed() { Nanos(unrolled.ops.len() as u64) } else { Nanos::ZERO };
    let bound = problem.span_bound(layers);
    let found = match span <= bound + rounding {
        true => Ordered { span, order, complete: false, nodes: 0 },
        false => {
            let time = |order: &[usize]| unrolled.time(order);
            shop::shortest(&unrolled.shop(), (span, order), rounding, limits.nodes, time)
        }
    };
    Some(LayerSpan {
        span: found.span,
        bound: if found.complete { found.span } else { bound },
        launches: found.order.into_iter().map(|at| unrolled.ops[at]).collect(),
        rounding,
        nodes: found.nodes,
    })
}

/// How long launches, of layer and op, take, each running as soon as its stream and what it reads allow.
#[cfg(test)]
pub(super) fn time(problem: &CyclicProblem, launches: &[(u64, usize)]) -> Nanos {
    let layers = launches.iter().map(|launch| launch.0 + 1).max().unwrap_or(0);
    let count = problem.ops.len();
    let order: Vec<usize> = launches.iter().map(|&(layer, op)| layer as usize * count + op).collect();
    Unrolled::new(problem, layers).time(&order)
}

/// The ops of some layers, layer by layer.
struct Unrolled<'a> {
    problem: &'a CyclicProblem,
    /// Layer and op.
    ops: Vec<(u64, usize)>,
    /// For each the ops whose end it waits for.
    needs: Vec<Vec<usize>>,
    /// Pairs that start in this order.
    in_order: Vec<(usize, usize)>,
}

impl<'a> Unrolled<'a> {
    fn new(problem: &'a CyclicProblem, layers: u64) -> Self {
        let count = problem.ops.len();
        let ops: Vec<(u64, usize)> = (0..layers).flat_map(|layer| (0..count).map(move |op| (layer, op))).collect();
        let mut needs = vec![Vec::new(); ops.len()];
        let mut in_order = Vec::new();
        let edges = problem.edges();
        for (at, &(layer, op)) in ops.iter().enumerate() {
            for edge in edges.iter().filter(|edge| edge.to == op) {
                let from = layer as i64 - edge.distance;
                if !(0..layers as i64).contains(&from) {
                    continue;
                }
                let from = from as usize * count + edge.from;
                match edge.weight {
                    // How far a weight gradient may fall behind; both are computations.
                    0 => in_order.push((from, at)),
                    _ => needs[at].push(from),
                }
            }
        }
        Self { problem, ops, needs, in_order }
    }

    fn shop(&self) -> Shop {
        let op = |&(_, op): &(u64, usize)| &self.problem.ops[op];
        Shop {
            engines: self.ops.iter().map(|at| op(at).engine).collect(),
            durations: self.ops.iter().map(|at| op(at).duration).collect(),
            needs: self.needs.clone(),
            in_order: self.in_order.clone(),
            lost: self.problem.lost(),
        }
    }

    /// How long the layers take in a launch order.
    fn time(&self, order: &[usize]) -> Nanos {
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, &op)| place[op] = at as u32);
        let waits = order.iter().map(|&op| self.needs[op].iter().map(|&need| place[need]).collect()).collect();
        let spans = run_streams(&Launched { unrolled: self, order, waits });
        spans.into_iter().map(|span| span.end).max().unwrap_or_default()
    }
}

/// Ops in launch order.
struct Launched<'a> {
    unrolled: &'a Unrolled<'a>,
    order: &'a [usize],
    waits: Vec<Vec<u32>>,
}

impl Launched<'_> {
    fn op(&self, at: usize) -> usize {
        self.unrolled.ops[self.order[at]].1
    }
}

impl StreamOps for Launched<'_> {
    fn count(&self) -> usize {
        self.order.len()
    }

    fn stream(&self, op: usize) -> Stream {
        self.unrolled.problem.ops[self.op(op)].engine
    }

    fn waits(&self, op: usize) -> &[u32] {
        &self.waits[op]
    }

    fn alone(&self, op: usize) -> Nanos {
        self.unrolled.problem.ops[self.op(op)].duration
    }

    fn beside(&self, op: usize, other: usize) -> Nanos {
        self.unrolled.problem.beside(self.op(op), self.op(other))
    }
}
