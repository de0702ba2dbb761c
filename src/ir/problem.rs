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
    /// Time of a message between stages; see [`Problem::hop`].
    pub hops: Hops,
    /// What chunks hold on their ranks. `None`: nobody counts it.
    pub memory: Option<Memory>,
}

/// What chunks hold on their ranks and how much a rank may hold, in one unit for all: bytes, or numbers of activations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// One per stage.
    pub stages: Vec<StageMemory>,
    /// What actions need beside it while they run.
    pub workspace: Workspace,
    /// One per rank: the most that its chunks and what runs may hold at any time.
    pub limits: Vec<u64>,
}

/// What actions need while they run, over what their rank holds by then: with the activation of an F, and with what an I [adds](StageMemory::added).
/// Where nothing is said it is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// By stage, of an I that runs by itself and of a B.
    pub stages: Vec<BackwardWorkspace>,
    /// Of pairs, by (stage of F, stage of B).
    pub pairs: BTreeMap<(u32, u32), u64>,
}

/// What the backwards of a stage need while they run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackwardWorkspace {
    /// An I by itself: where it takes what it leaves before it frees anything.
    pub input: u64,
    /// A whole backward by itself.
    pub whole: u64,
}

impl Workspace {
    /// Of an action.
    pub fn of(&self, action: Action) -> u64 {
        let stage = |chunk: ChunkId| self.stages.get(chunk.stage as usize).copied().unwrap_or_default();
        match action {
            Action::F(_) | Action::W(_) => 0,
            Action::I(chunk) => stage(chunk).input,
            Action::B(chunk) => stage(chunk).whole,
            Action::FB(f, b) => self.pairs.get(&(f.stage, b.stage)).copied().unwrap_or_default(),
        }
    }
}

/// What one chunk of a stage holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageMemory {
    /// From the start of F to the end of I, or of the B or FB that has it.
    pub activation: u64,
    /// From the end of I to the end of W: what W still reads. Where it is more than `activation`, because I leaves more than it frees,
    /// it is held from the start of I. A whole backward holds `activation`, and its [`Workspace`].
    pub for_weights: u64,
}

impl StageMemory {
    /// What an I that runs by itself adds to what its chunk holds, when it starts.
    pub fn added(self) -> u64 {
        self.for_weights.saturating_sub(self.activation)
    }

    /// What an I that runs by itself frees, when it ends.
    pub fn freed(self) -> u64 {
        self.activation.saturating_sub(self.for_weights)
    }
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

/// Time of a message, an activation or a gradient, between the ranks of neighbouring stages.
#[derive(Clone, Debug, PartialEq)]
pub enum Hops {
    /// The same everywhere.
    Uniform(Nanos),
    /// By boundary (s: between stages s and s+1) and direction of the micro-batch.
    Boundaries(Vec<[Nanos; 2]>),
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

impl Memory {
    /// The most that the chunks of a rank hold at once, which runs these actions, with what the actions need while they run.
    pub fn peak(&self, actions: &[Action]) -> u64 {
        let of = |chunk: ChunkId| self.stages[chunk.stage as usize];
        let (mut held, mut peak) = (0, 0);
        for action in actions {
            held += match *action {
                Action::F(chunk) | Action::FB(chunk, _) => of(chunk).activation,
                Action::I(chunk) => of(chunk).added(),
                Action::B(_) | Action::W(_) => 0,
            };
            peak = peak.max(held + self.workspace.of(*action));
            held -= match *action {
                Action::I(chunk) => of(chunk).freed(),
                Action::W(chunk) => of(chunk).for_weights,
                Action::B(chunk) | Action::FB(_, chunk) => of(chunk).activation,
                Action::F(_) => 0,
            };
        }
        peak
    }
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

    /// Time of a message between stages `boundary` and `boundary` + 1, for a micro-batch: zero where one rank has both.
    pub fn hop(&self, boundary: u32, micro_batch: u32) -> Nanos {
        let rank = |stage| self.layout.rank_of(ChunkId { stage, micro_batch });
        if rank(boundary) == rank(boundary + 1) {
            return Nanos::ZERO;
        }
        match &self.hops {
            Hops::Uniform(hop) => *hop,
            Hops::Boundaries(hops) => hops[boundary as usize][self.layout.direction(micro_batch) as usize],
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
