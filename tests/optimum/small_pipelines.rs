//! Small pipeline problems, and their optima by trying everything.

use std::collections::BTreeMap;

use dualweave::ir::{
    Action, ChunkId, Hops, Layout, Memory, PairCost, Phase, Placement, Problem, StageCost, StageMemory, Workspace,
};
use dualweave::units::Nanos;

/// Placement, ranks, stages per rank, micro-batches: small enough to be searched in well under a second each.
pub const SHAPES: [(Placement, u32, u32, u32); 13] = [
    (Placement::Linear, 1, 1, 1),
    (Placement::Linear, 1, 1, 3),
    (Placement::Linear, 2, 1, 1),
    (Placement::Linear, 2, 1, 2),
    (Placement::Linear, 2, 1, 3),
    (Placement::Linear, 3, 1, 1),
    (Placement::Linear, 3, 1, 2),
    (Placement::Loop, 1, 2, 2),
    (Placement::Loop, 2, 2, 1),
    (Placement::V, 1, 2, 2),
    (Placement::V, 2, 2, 1),
    (Placement::Bidirectional, 2, 1, 2),
    (Placement::Bidirectional, 2, 1, 3),
];

/// Small enough to be searched by [`Search::optimum_by_states`].
pub const LARGER_SHAPES: [(Placement, u32, u32, u32); 6] = [
    (Placement::Linear, 2, 1, 4),
    (Placement::Linear, 3, 1, 3),
    (Placement::V, 2, 2, 2),
    (Placement::Loop, 2, 2, 2),
    (Placement::Bidirectional, 2, 1, 4),
    (Placement::Bidirectional, 3, 1, 2),
];

/// A fixed stream of numbers.
pub struct Draw(pub u64);

impl Draw {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// Some limits let no timetable through.
    fn memory(&mut self, layout: &Layout) -> Memory {
        let stage = |draw: &mut Self| {
            let activation = 1 + draw.below(3);
            StageMemory { activation, for_weights: draw.below(activation + 1) }
        };
        Memory {
            stages: (0..layout.stages).map(|_| stage(self)).collect(),
            workspace: Workspace::default(),
            limits: (0..layout.ranks).map(|_| 2 + self.below(5)).collect(),
        }
    }

    /// A problem with this layout. `round` says which kind.
    pub fn problem(&mut self, layout: Layout, round: u32) -> Problem {
        // Equal stages, as generators are made for, and all different, in turn.
        let mut cost = || {
            let (f, i, w) = (1 + self.below(4), 1 + self.below(4), self.below(4));
            StageCost { f: Nanos(f), i: Nanos(i), w: Nanos(w), b: Nanos((i + w).saturating_sub(self.below(3)).max(1)) }
        };
        let stages = match round % 2 {
            0 => vec![cost(); layout.stages as usize],
            _ => (0..layout.stages).map(|_| cost()).collect(),
        };
        let pair = match round % 3 {
            0 => PairCost::Sum,
            1 => PairCost::Uniform(Nanos(1 + self.below(9))),
            _ => {
                let stage = |draw: &mut Self| draw.below(u64::from(layout.stages)) as u32;
                PairCost::Table((0..4).map(|_| ((stage(self), stage(self)), Nanos(2 + self.below(8)))).collect())
            }
        };
        let hops = Hops::Uniform(Nanos(self.below(3)));
        let memory = (round % 4 < 2).then(|| self.memory(&layout));
        Problem { layout, stages, pair, hops, memory }
    }
}

/// Tries every order of every rank and every way to join parts to actions, each action as soon as it can start.
pub struct Search<'a> {
    problem: &'a Problem,
    /// Per phase and chunk, when it ended.
    ended: [Vec<Option<u64>>; 3],
    free: Vec<u64>,
    /// Per rank, what its chunks hold.
    held: Vec<u64>,
    best: u64,
    /// If partial timetables are compared: by what is done, the times that were seen.
    seen: Option<BTreeMap<u128, Vec<Vec<u64>>>>,
}

impl<'a> Search<'a> {
    /// Nothing has run yet.
    pub fn new(problem: &'a Problem) -> Self {
        let chunks = (problem.layout.stages * problem.layout.micro_batches) as usize;
        Self {
            problem,
            ended: std::array::from_fn(|_| vec![None; chunks]),
            free: vec![0; problem.layout.ranks as usize],
            held: vec![0; problem.layout.ranks as usize],
            best: u64::MAX,
            seen: None,
        }
    }

    /// The shortest makespan, if there is any timetable that keeps the memory.
    pub fn optimum(mut self) -> Option<u64> {
        self.extend((0, 0));
        (self.best < u64::MAX).then_some(self.best)
    }

    /// The same, if micro-batches pass each stage in order, and without what does the same as something seen before and is nowhere
    /// earlier; only what is shorter than `below`. Chunks are less than 43.
    pub fn optimum_by_states(mut self, below: u64) -> Option<u64> {
        (self.seen, self.best) = (Some(BTreeMap::new()), below);
        self.extend((0, 0));
        (self.best < below).then_some(self.best)
    }

    /// Whether nothing seen before did the same and was nowhere later.
    fn is_new(&mut self) -> bool {
        let layout = self.problem.layout;
        let Some(mut seen) = self.seen.take() else { return true };
        let parts = self.ended.iter().flatten();
        let done = parts.enumerate().fold(0, |done, (at, end)| done | u128::from(end.is_some()) << at);
        let mut times = self.free.clone();
        for chunk in self.chunks() {
            let (before, after) = (chunk.stage.checked_sub(1), Some(chunk.stage + 1).filter(|&s| s < layout.stages));
            // What the next stage, or the one before, has not read yet.
            for (phase, reader) in [(Phase::F, after), (Phase::I, before)] {
                let Some(stage) = reader else { continue };
                if self.ended(phase, ChunkId { stage, ..chunk }).is_none() {
                    times.extend(*self.ended(phase, chunk));
                }
            }
        }
        let others = seen.entry(done).or_default();
        let no_later = |a: &[u64], b: &[u64]| a.iter().zip(b).all(|(a, b)| a <= b);
        let new = !others.iter().any(|other| no_later(other, &times));
        if new {
            others.retain(|other| !no_later(&times, other));
            others.push(times);
        }
        self.seen = Some(seen);
        new
    }

    fn chunks(&self) -> Vec<ChunkId> {
        let layout = &self.problem.layout;
        let of = |stage| (0..layout.micro_batches).map(move |m| ChunkId::new(stage, m));
        (0..layout.stages).flat_map(of).collect()
    }

    fn ended(&mut self, phase: Phase, chunk: ChunkId) -> &mut Option<u64> {
        let at = chunk.stage * self.problem.layout.micro_batches + chunk.micro_batch;
        &mut self.ended[phase as usize][at as usize]
    }

    /// Adds each action that may come next. Actions are added in the order in which they start (then by rank), so that
    /// each timetable is tried once.
    fn extend(&mut self, latest: (u64, u32)) {
        let whole = self.ended.iter().flatten().all(Option::is_some);
        for action in self.candidates() {
            let rank = action.parts().map(|(_, chunk)| self.problem.layout.rank_of(chunk)).next().unwrap();
            let start = self.start(rank, action);
            let end = start + self.problem.cost(action).0;
            let again = self.seen.is_none() && (start, rank) < latest;
            if again || end >= self.best {
                continue;
            }
            let free = std::mem::replace(&mut self.free[rank as usize], end);
            let held = self.held[rank as usize];
            let Some(after) = self.after(held, rank, action) else {
                self.free[rank as usize] = free;
                continue;
            };
            self.held[rank as usize] = after;
            action.parts().for_each(|(phase, chunk)| *self.ended(phase, chunk) = Some(end));
            if self.is_new() {
                self.extend((start, rank));
            }
            action.parts().for_each(|(phase, chunk)| *self.ended(phase, chunk) = None);
            self.held[rank as usize] = held;
            self.free[rank as usize] = free;
        }
        if whole {
            self.best = self.best.min(self.free.iter().copied().max().unwrap());
        }
    }

    /// What the rank's chunks hold after an action, if there is room for it.
    fn after(&self, mut held: u64, rank: u32, action: Action) -> Option<u64> {
        let Some(memory) = &self.problem.memory else { return Some(held) };
        let whole = matches!(action, Action::B(_) | Action::FB(..));
        let running = memory.workspace.of(action);
        if held + running > memory.limits[rank as usize] {
            return None;
        }
        for (phase, chunk) in action.parts() {
            let of = &memory.stages[chunk.stage as usize];
            match phase {
                Phase::F => held += of.activation,
                Phase::I if whole => held -= of.activation,
                Phase::I => held = held - of.activation + of.activation.max(of.for_weights),
                Phase::W if whole => {}
                Phase::W => held -= of.for_weights,
            }
            // What a whole backward frees is free when it has ended.
            if held + running > memory.limits[rank as usize] {
                return None;
            }
            if phase == Phase::I && !whole {
                held -= of.activation.saturating_sub(of.for_weights);
            }
        }
        Some(held)
    }

    /// Actions whose parts have not run and whose inputs have.
    fn candidates(&mut self) -> Vec<Action> {
        let layout = self.problem.layout;
        let (mut forwards, mut backwards, mut actions) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in self.chunks() {
            let ChunkId { stage, micro_batch } = chunk;
            let (f, i, w) = (*self.ended(Phase::F, chunk), *self.ended(Phase::I, chunk), *self.ended(Phase::W, chunk));
            let comes_first = micro_batch == 0 || layout.direction(micro_batch - 1) != layout.direction(micro_batch);
            // Whether this one goes before those ahead of it, where that is not to be.
            let overtakes = |search: &mut Self, phase| {
                search.seen.is_some()
                    && !comes_first
                    && search.ended(phase, ChunkId::new(stage, micro_batch - 1)).is_none()
            };
            if f.is_none() {
                if overtakes(self, Phase::F) {
                    continue;
                }
                // Micro-batches of a direction are alike: they enter in order.
                let before = match stage {
                    0 if comes_first => None,
                    0 => Some(ChunkId::new(0, micro_batch - 1)),
                    _ => Some(ChunkId::new(stage - 1, micro_batch)),
                };
                if before.is_none_or(|before| self.ended(Phase::F, before).is_some()) {
                    forwards.push(chunk);
                }
            } else if i.is_none() {
                if overtakes(self, Phase::I) {
                    continue;
                }
                let after = ChunkId::new(stage + 1, micro_batch);
                if after.stage == layout.stages || self.ended(Phase::I, after).is_some() {
                    backwards.push(chunk);
                }
            } else if w.is_none() {
                actions.push(Action::W(chunk));
            }
        }
        for &b in &backwards {
            actions.extend([Action::I(b), Action::B(b)]);
            let beside = forwards.iter().filter(|&&f| layout.rank_of(f) == layout.rank_of(b));
            actions.extend(beside.map(|&f| Action::FB(f, b)));
        }
        actions.extend(forwards.into_iter().map(Action::F));
        actions
    }

    fn start(&mut self, rank: u32, action: Action) -> u64 {
        let layout = self.problem.layout;
        let mut start = self.free[rank as usize];
        let mut read = |phase, chunk: ChunkId| {
            let hop = match self.problem.hops {
                Hops::Uniform(hop) if layout.rank_of(chunk) != rank => hop.0,
                _ => 0,
            };
            start = start.max(self.ended(phase, chunk).unwrap() + hop);
        };
        if let Some(f) = action.forward().filter(|f| f.stage > 0) {
            read(Phase::F, ChunkId::new(f.stage - 1, f.micro_batch));
        }
        if let Some(i) = action.input_gradient().filter(|i| i.stage + 1 < layout.stages) {
            read(Phase::I, ChunkId::new(i.stage + 1, i.micro_batch));
        }
        start
    }
}
