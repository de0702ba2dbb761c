//! The lower bound against the optimum of small instances, found by trying everything.

use dualweave::ir::{Action, ChunkId, Hops, Layout, PairCost, Phase, Placement, Problem, StageCost};
use dualweave::job::training::ScheduleKind;
use dualweave::passes::pipeline::{generate, lower_bound, replay};
use dualweave::units::Nanos;

/// Every instance is small enough to be searched in well under a second.
const SHAPES: [(Placement, u32, u32, u32); 13] = [
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

#[test]
fn no_timetable_of_a_small_instance_is_below_the_bound() {
    let mut draw = Draw(1);
    let (mut met, mut total) = (0, 0);
    for (placement, ranks, per_rank, micro_batches) in SHAPES {
        for round in 0..24 {
            let layout = Layout::new(placement, ranks, per_rank, micro_batches);
            let problem = draw.problem(layout, round);
            let optimum = Search::new(&problem).optimum();
            let bound = lower_bound(&problem).0;
            assert!(bound <= optimum, "bound {bound}, but {optimum} can be reached: {problem:?}");
            met += u32::from(bound == optimum);
            total += 1;
        }
    }
    // A bound of nothing would pass the above. This one is reached more often than not.
    println!("the bound is the optimum of {met} of {total}");
    assert!(met * 2 > total, "{met} of {total}");
}

/// With equal costs ZB-H1 is optimal: the last rank starts P-1 late and then has no bubble. Bound and replay must meet.
#[test]
fn meets_zb_h1() {
    for (ranks, micro_batches) in [(1, 5), (4, 8), (8, 24)] {
        let layout = Layout::new(Placement::Linear, ranks, 1, micro_batches);
        let cost = StageCost { f: Nanos(1), i: Nanos(1), w: Nanos(1), b: Nanos(2) };
        let problem = Problem {
            layout,
            stages: vec![cost; ranks as usize],
            pair: PairCost::Sum,
            hops: Hops::Uniform(Nanos(0)),
            memory: None,
        };
        let optimum = Nanos(u64::from(3 * micro_batches + ranks - 1));
        let timetable = generate(ScheduleKind::ZbH1, &layout).unwrap();
        assert_eq!(replay(&problem, &timetable).unwrap().makespan, optimum, "P{ranks} M{micro_batches}");
        assert_eq!(lower_bound(&problem), optimum, "P{ranks} M{micro_batches}");
    }
}

/// One micro-batch over three stages, by hand: down 1+10+1+10+1, back 2+10+2+10, and the first stage's I and W at the end.
#[test]
fn follows_a_single_micro_batch_home() {
    let layout = Layout::new(Placement::Linear, 3, 1, 1);
    let cost = StageCost { f: Nanos(1), i: Nanos(2), w: Nanos(3), b: Nanos(5) };
    let problem =
        Problem { layout, stages: vec![cost; 3], pair: PairCost::Sum, hops: Hops::Uniform(Nanos(10)), memory: None };
    assert_eq!(lower_bound(&problem), Nanos(23 + 24 + 5));
}

/// A fixed stream of numbers.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn problem(&mut self, layout: Layout, round: u32) -> Problem {
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
        Problem { layout, stages, pair, hops: Hops::Uniform(Nanos(self.below(3))), memory: None }
    }
}

/// Tries every order of every rank and every way to join parts to actions, each action as soon as it can start.
struct Search<'a> {
    problem: &'a Problem,
    /// Per phase and chunk, when it ended.
    ended: [Vec<Option<u64>>; 3],
    free: Vec<u64>,
    best: u64,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem) -> Self {
        let chunks = (problem.layout.stages * problem.layout.micro_batches) as usize;
        Self {
            problem,
            ended: std::array::from_fn(|_| vec![None; chunks]),
            free: vec![0; problem.layout.ranks as usize],
            best: u64::MAX,
        }
    }

    fn optimum(mut self) -> u64 {
        self.extend((0, 0));
        self.best
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
        let mut whole = true;
        for action in self.candidates() {
            whole = false;
            let rank = action.parts().map(|(_, chunk)| self.problem.layout.rank_of(chunk)).next().unwrap();
            let start = self.start(rank, action);
            let end = start + self.problem.cost(action).0;
            if (start, rank) < latest || end >= self.best {
                continue;
            }
            let free = std::mem::replace(&mut self.free[rank as usize], end);
            action.parts().for_each(|(phase, chunk)| *self.ended(phase, chunk) = Some(end));
            self.extend((start, rank));
            action.parts().for_each(|(phase, chunk)| *self.ended(phase, chunk) = None);
            self.free[rank as usize] = free;
        }
        if whole {
            self.best = self.best.min(self.free.iter().copied().max().unwrap());
        }
    }

    /// Actions whose parts have not run and whose inputs have.
    fn candidates(&mut self) -> Vec<Action> {
        let layout = self.problem.layout;
        let (mut forwards, mut backwards, mut actions) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in self.chunks() {
            let ChunkId { stage, micro_batch } = chunk;
            let (f, i, w) = (*self.ended(Phase::F, chunk), *self.ended(Phase::I, chunk), *self.ended(Phase::W, chunk));
            if f.is_none() {
                // Micro-batches of a direction are alike: they enter in order.
                let comes_first =
                    micro_batch == 0 || layout.direction(micro_batch - 1) != layout.direction(micro_batch);
                let before = match stage {
                    0 if comes_first => None,
                    0 => Some(ChunkId::new(0, micro_batch - 1)),
                    _ => Some(ChunkId::new(stage - 1, micro_batch)),
                };
                if before.is_none_or(|before| self.ended(Phase::F, before).is_some()) {
                    forwards.push(chunk);
                }
            } else if i.is_none() {
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
