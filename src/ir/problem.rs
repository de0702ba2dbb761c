//! The pipeline problem: what every schedule generator, search and bound is asked.

use std::collections::BTreeMap;

use super::{Action, ChunkId, Layout};
use crate::units::Nanos;

/// Costs of a pipeline: enough to time any timetable.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Ranks, stages, micro-batches and who holds what.
    pub layout: Layout,
    /// One per stage.
    pub stages: Vec<StageCost>,
    /// Duration of an overlapped pair.
    pub pair: PairCost,
    /// Time for an activation or a gradient to reach another rank. Between stages of one rank it is zero.
    pub hop: Nanos,
}

/// What one chunk of a stage costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageCost {
    /// Forward.
    pub f: Nanos,
    /// Backward for the input.
    pub i: Nanos,
    /// Weight gradient, alone.
    pub w: Nanos,
    /// Full backward; may be less than I + W, where W hides communication.
    pub b: Nanos,
}

/// Duration of an overlapped pair FB.
#[derive(Clone, Debug, PartialEq)]
pub enum PairCost {
    /// F and B one after the other.
    Sum,
    /// The same for every pair.
    Uniform(Nanos),
    /// By (stage of F, stage of B); pairs that are missing cost the sum.
    Table(BTreeMap<(u32, u32), Nanos>),
}

impl Problem {
    /// Duration of an action.
    pub fn cost(&self, action: Action) -> Nanos {
        let of = |chunk: ChunkId| &self.stages[chunk.stage as usize];
        match action {
            Action::F(c) => of(c).f,
            Action::B(c) => of(c).b,
            Action::I(c) => of(c).i,
            Action::W(c) => of(c).w,
            Action::FB(f, b) => self.pair_cost(f.stage, b.stage),
        }
    }

    /// Duration of a pair of F on stage `f` and B on stage `b`.
    pub fn pair_cost(&self, f: u32, b: u32) -> Nanos {
        let sum = self.stages[f as usize].f + self.stages[b as usize].b;
        match &self.pair {
            PairCost::Sum => sum,
            PairCost::Uniform(cost) => *cost,
            PairCost::Table(table) => table.get(&(f, b)).copied().unwrap_or(sum),
        }
    }
}
