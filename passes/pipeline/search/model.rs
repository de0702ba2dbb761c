//! The problem in flat numbers, and orders without micro-batch numbers.
//!
//! Micro-batches of a stage and direction are alike, so they run in order there: a *lane* is such a queue of chunks. Every
//! order of a rank is then a list of steps that name lanes only; the step counts which chunk is meant.

use std::collections::VecDeque;

use crate::error::{Error, Result};
use crate::ir::{Action, BackwardWorkspace, ChunkId, Placement, Problem, StageMemory, Timetable};
use crate::units::Nanos;

/// Sums of times stay below this: no timetable is longer, and the ends of 4096 ranks still add up to a u64.
const LARGEST_TIME: u64 = 1 << 52;

/// The chunks of one stage and direction: they run F in order of micro-batches, and I, and W.
pub(super) struct Lane {
    pub rank: usize,
    pub stage: u32,
    /// Its first micro-batch; the others follow.
    pub first: u32,
    /// How many.
    pub count: usize,
    /// Where its chunks begin in arrays over all chunks.
    pub base: usize,
    pub f: u64,
    pub i: u64,
    pub w: u64,
    pub b: u64,
    /// What a chunk holds.
    pub held: StageMemory,
    /// What its backwards need while they run.
    pub workspace: BackwardWorkspace,
    /// The lane of the stage before in this direction, and the time of a message from it.
    pub before: Option<(usize, u64)>,
    /// The lane of the stage after in this direction, and the time of a message from it.
    pub after: Option<(usize, u64)>,
}

impl Lane {
    /// What a chunk takes of its rank's time where nothing is overlapped.
    pub fn work(&self) -> u64 {
        self.f + self.b.min(self.i + self.w)
    }

    /// What an I by itself needs, and a whole backward, over what is held before.
    pub fn backward_needs(&self) -> [u64; 2] {
        [self.held.added() + self.workspace.input, self.workspace.whole]
    }
}

/// What a rank does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// The lane's next forward.
    F(u32),
    /// The lane's next backward, its input half.
    I(u32),
    /// The weight half of the lane's oldest backward that lacks it.
    W(u32),
    /// The lane's next backward, whole.
    B(u32),
    /// The next forward of one lane beside the next whole backward of another, or of the same.
    Pair(u32, u32),
}

impl Step {
    /// The lane whose F it runs.
    pub fn forward(self) -> Option<usize> {
        match self {
            Self::F(lane) | Self::Pair(lane, _) => Some(lane as usize),
            _ => None,
        }
    }

    /// The lane whose I it runs.
    pub fn backward(self) -> Option<usize> {
        match self {
            Self::I(lane) | Self::B(lane) | Self::Pair(_, lane) => Some(lane as usize),
            _ => None,
        }
    }

    /// The lane whose W it runs.
    pub fn weights(self) -> Option<usize> {
        match self {
            Self::W(lane) | Self::B(lane) | Self::Pair(_, lane) => Some(lane as usize),
            _ => None,
        }
    }
}

/// What a forward must leave free, besides fitting, so that everything can still end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// Room for one chunk of every lane with a later stage on its rank.
    Reserve,
    /// Room for all micro-batches in flight to end, one after the other: the banker's algorithm.
    Banker,
}

/// Per rank, its steps.
pub(super) type Orders = Vec<Vec<Step>>;

/// The problem as the search reads it.
pub(super) struct Model {
    /// By direction, then stage.
    pub lanes: Vec<Lane>,
    /// Per rank, ascending.
    pub of_rank: Vec<Vec<usize>>,
    /// Per rank: the most that it may hold.
    pub limits: Vec<u64>,
    /// Per rank: what of that forwards leave free, so that any backward can run, whole or not.
    pub backwards: Vec<u64>,
    /// Per rank, by the places of two of its lanes in `of_rank`: cost of a pair of F and B, and what it needs while it runs.
    pairs: Vec<Vec<(u64, u64)>>,
    /// Per lane, its place in `of_rank`.
    place: Vec<usize>,
    /// Chunks of all lanes.
    pub chunks: usize,
    /// How memory may be kept from locking up, the plainest first.
    pub guards: &'static [Guard],
}

impl Model {
    /// # Errors
    /// If a rank may not even hold what one micro-batch needs there, or the costs add up to more than can be counted.
    pub fn new(problem: &Problem) -> Result<Self> {
        let layout = &problem.layout;
        let up = match layout.placement {
            Placement::Bidirectional => layout.micro_batches / 2,
            _ => 0,
        };
        let down = layout.micro_batches - up;
        let mut lanes = Vec::new();
        let mut base = 0;
        for (first, count) in [(0, down), (down, up)] {
            if count == 0 {
                continue;
            }
            for stage in 0..layout.stages {
                let cost = &problem.stages[stage as usize];
                let memory = problem.memory.as_ref();
                let held = memory.map(|memory| memory.stages[stage as usize]);
                let workspace = memory.and_then(|memory| memory.workspace.stages.get(stage as usize)).copied();
                let at = lanes.len();
                let hop = |boundary: u32| problem.hop(boundary, first).0;
                lanes.push(Lane {
                    rank: layout.rank_of(ChunkId::new(stage, first)) as usize,
                    stage,
                    first,
                    count: count as usize,
                    base,
                    f: cost.f.0,
                    i: cost.i.0,
                    w: cost.w.0,
                    b: cost.b.0,
                    held: held.unwrap_or(StageMemory { activation: 0, for_weights: 0 }),
                    workspace: workspace.unwrap_or_default(),
                    before: (stage > 0).then(|| (at - 1, hop(stage - 1))),
                    after: (stage + 1 < layout.stages).then(|| (at + 1, hop(stage))),
                });
                base += count as usize;
            }
        }
        let mut of_rank = vec![Vec::new(); layout.ranks as usize];
        let mut place = Vec::with_capacity(lanes.len());
        for (at, lane) in lanes.iter().enumerate() {
            place.push(of_rank[lane.rank].len());
            of_rank[lane.rank].push(at);
        }
        let cost = |f: usize, b: usize| {
            let stages = (lanes[f].stage, lanes[b].stage);
            let workspace = problem.memory.as_ref().and_then(|memory| memory.workspace.pairs.get(&stages));
            (problem.pair_cost(stages.0, stages.1).0, workspace.copied().unwrap_or(0))
        };
        let pairs = of_rank
            .iter()
            .map(|held: &Vec<usize>| {
                held.iter().flat_map(|&f| held.iter().map(move |&b| (f, b))).map(|(f, b)| cost(f, b)).collect()
            })
            .collect();
        let limits = match &problem.memory {
            Some(memory) => memory.limits.clone(),
            None => vec![u64::MAX; layout.ranks as usize],
        };
        let backwards = of_rank.iter().map(|held: &Vec<usize>| {
            let least = |&at: &usize| lanes[at].backward_needs().into_iter().min().unwrap_or(0);
            held.iter().map(least).max().unwrap_or(0)
        });
        let backwards = backwards.collect();
        let mut model = Self { lanes, of_rank, limits, backwards, pairs, place, chunks: base, guards: &[] };
        model.check_sums()?;
        model.guards = model.guards()?;
        Ok(model)
    }

    /// That times and memory can be added up, over all ranks, without a thought of overflow.
    fn check_sums(&self) -> Result<()> {
        let pair = self.pairs.iter().flatten().map(|&(cost, _)| cost).max().unwrap_or(0);
        let workspace = self.pairs.iter().flatten().map(|&(_, workspace)| workspace).max().unwrap_or(0);
        let (mut time, mut memory) = (Nanos::ZERO, Nanos::ZERO);
        for lane in &self.lanes {
            let hops = [lane.before, lane.after].into_iter().flatten().map(|(_, hop)| Nanos(hop));
            let chunk = [lane.f, lane.i, lane.w, lane.b, pair].map(Nanos).into_iter().chain(hops).sum::<Nanos>();
            time += chunk * lane.count as u64;
            let running = [lane.workspace.input, lane.workspace.whole, workspace].map(Nanos).into_iter().sum::<Nanos>();
            memory += Nanos(lane.held.activation.max(lane.held.for_weights)) * lane.count as u64 + running;
        }
        match time.0 < LARGEST_TIME && memory.0 < u64::MAX / 4 {
            true => Ok(()),
            false => Err(Error::new("the costs of this pipeline add up to more than can be counted")),
        }
    }

    /// The guards that do, if every rank has room for one micro-batch. Reserving needs room for a chunk of every lane; where
    /// two directions share ranks and some have no room for two, it can also be stricter than it needs to be.
    fn guards(&self) -> Result<&'static [Guard]> {
        let (mut one, mut two) = (true, true);
        for (rank, held) in self.of_rank.iter().enumerate() {
            let mut needs = [0_u64; 2];
            for lane in held.iter().map(|&lane| &self.lanes[lane]) {
                needs[usize::from(lane.first > 0)] += lane.held.activation;
            }
            let (limit, backwards) = (self.limits[rank], self.backwards[rank]);
            let (least, all) = (needs[0].max(needs[1]) + backwards, needs[0] + needs[1] + backwards);
            if least > limit {
                let message = format!("rank {rank} may hold {limit}, but a micro-batch alone holds {least} there");
                return Err(Error::new(message).help("no timetable exists with so little memory"));
            }
            one &= all <= limit;
            two &= 2 * all - backwards <= limit;
        }
        let directions = self.lanes.iter().any(|lane| lane.first > 0);
        Ok(match (one, two || !directions) {
            (true, true) => &[Guard::Reserve],
            (true, false) => &[Guard::Reserve, Guard::Banker],
            (false, _) => &[Guard::Banker],
        })
    }

    /// Duration of a step.
    pub fn cost(&self, step: Step) -> u64 {
        let lane = |lane: u32| &self.lanes[lane as usize];
        match step {
            Step::F(l) => lane(l).f,
            Step::I(l) => lane(l).i,
            Step::W(l) => lane(l).w,
            Step::B(l) => lane(l).b,
            Step::Pair(f, b) => self.pair(f as usize, b as usize),
        }
    }

    /// Duration of a pair of F of lane `f` and B of lane `b`, both of one rank.
    pub fn pair(&self, f: usize, b: usize) -> u64 {
        self.paired(f, b).0
    }

    /// Duration of a pair, and what it needs while it runs.
    fn paired(&self, f: usize, b: usize) -> (u64, u64) {
        let rank = self.lanes[f].rank;
        self.pairs[rank][self.place[f] * self.of_rank[rank].len() + self.place[b]]
    }

    /// The place of a lane in `of_rank`.
    pub fn place(&self, lane: usize) -> usize {
        self.place[lane]
    }

    /// How much a pair takes less than its F and the shorter way to its B.
    pub fn saving(&self, f: usize, b: usize) -> u64 {
        let lane = &self.lanes[b];
        (self.lanes[f].f + lane.b.min(lane.i + lane.w)).saturating_sub(self.pair(f, b))
    }

    /// Whether any pair is shorter than its parts.
    pub fn pairs_help(&self) -> bool {
        self.of_rank.iter().any(|held| held.iter().any(|&f| held.iter().any(|&b| self.saving(f, b) > 0)))
    }

    /// The least time that a rank with these lanes is at work: each F and each B may be in one pair.
    pub fn least_work(&self, held: &[usize]) -> u64 {
        let all: u64 = held.iter().map(|&at| self.lanes[at].work() * self.lanes[at].count as u64).sum();
        let saved = |at: usize, best: u64| best * self.lanes[at].count as u64;
        let beside = |f: usize| held.iter().map(|&b| self.saving(f, b)).max().unwrap_or(0);
        let under = |b: usize| held.iter().map(|&f| self.saving(f, b)).max().unwrap_or(0);
        let by_forward: u64 = held.iter().map(|&at| saved(at, beside(at))).sum();
        let by_backward: u64 = held.iter().map(|&at| saved(at, under(at))).sum();
        all - by_forward.min(by_backward)
    }

    /// Steps of orders without B and pairs: the most that there are.
    pub fn steps(&self) -> u64 {
        3 * self.chunks as u64
    }

    /// What a step adds to what its rank holds: when it starts, and (taken away) when it ends.
    pub fn holds(&self, step: Step) -> (u64, u64) {
        let lane = |lane: u32| self.lanes[lane as usize].held;
        match step {
            Step::F(l) => (lane(l).activation, 0),
            Step::I(l) => (lane(l).added(), lane(l).freed()),
            Step::W(l) => (0, lane(l).for_weights),
            Step::B(l) => (0, lane(l).activation),
            Step::Pair(f, b) => (lane(f).activation, lane(b).activation),
        }
    }

    /// What a step needs when it starts, over what its rank holds by then.
    pub fn needs(&self, step: Step) -> u64 {
        let workspace = match step {
            Step::F(_) | Step::W(_) => 0,
            Step::I(l) => self.lanes[l as usize].workspace.input,
            Step::B(l) => self.lanes[l as usize].workspace.whole,
            Step::Pair(f, b) => self.paired(f as usize, b as usize).1,
        };
        self.holds(step).0 + workspace
    }

    /// Whether a rank's steps have every part of every chunk once, each after what it reads on this rank, within memory.
    pub fn allows(&self, rank: usize, steps: &[Step]) -> bool {
        let held = &self.of_rank[rank];
        let mut lanes = vec![Counts::default(); held.len()];
        let (mut memory, limit) = (0_u64, self.limits[rank]);
        for &step in steps {
            let (start, end) = self.holds(step);
            if memory + self.needs(step) > limit {
                return false;
            }
            memory += start;
            if let Some(lane) = step.backward() {
                let lane = &mut lanes[self.place[lane]];
                lane.i += 1;
                lane.pending += usize::from(matches!(step, Step::I(_)));
                if lane.i > lane.f {
                    return false;
                }
            }
            if let Some(lane) = step.forward() {
                lanes[self.place[lane]].f += 1;
            }
            if let Step::W(lane) = step {
                let lane = &mut lanes[self.place[lane as usize]];
                if lane.pending == 0 {
                    return false;
                }
                lane.pending -= 1;
            }
            memory -= end;
        }
        let whole = |(lane, counts): (&usize, &Counts)| {
            let count = self.lanes[*lane].count;
            counts.f == count && counts.i == count && counts.pending == 0
        };
        held.iter().zip(&lanes).all(whole)
    }

    /// The orders of a timetable, if micro-batches run in order on every lane. W are taken in order too.
    pub fn orders(&self, timetable: &Timetable) -> Option<Orders> {
        let layout = &timetable.layout;
        let lane = |chunk: ChunkId| (layout.direction(chunk.micro_batch) * layout.stages + chunk.stage) as usize;
        let mut next = vec![(0, 0); self.lanes.len()];
        let mut step = |action: Action| {
            if let Some(chunk) = action.forward() {
                let count = &mut next[lane(chunk)].0;
                *count += 1;
                if chunk.micro_batch + 1 != self.lanes[lane(chunk)].first + *count {
                    return None;
                }
            }
            if let Some(chunk) = action.input_gradient() {
                let count = &mut next[lane(chunk)].1;
                *count += 1;
                if chunk.micro_batch + 1 != self.lanes[lane(chunk)].first + *count {
                    return None;
                }
            }
            let lane = |chunk| lane(chunk) as u32;
            Some(match action {
                Action::F(chunk) => Step::F(lane(chunk)),
                Action::I(chunk) => Step::I(lane(chunk)),
                Action::W(chunk) => Step::W(lane(chunk)),
                Action::B(chunk) => Step::B(lane(chunk)),
                Action::FB(f, b) => Step::Pair(lane(f), lane(b)),
            })
        };
        timetable.ranks.iter().map(|actions| actions.iter().map(|&action| step(action)).collect()).collect()
    }

    /// The timetable of orders that are [allowed](Self::allows).
    pub fn timetable(&self, problem: &Problem, orders: &Orders) -> Timetable {
        let mut f = vec![0_u32; self.lanes.len()];
        let mut i = f.clone();
        let mut pending = vec![VecDeque::new(); self.lanes.len()];
        let take = |counts: &mut Vec<u32>, lane: u32| {
            let lane = lane as usize;
            counts[lane] += 1;
            ChunkId::new(self.lanes[lane].stage, self.lanes[lane].first + counts[lane] - 1)
        };
        let mut action = |step: Step| match step {
            Step::F(l) => Some(Action::F(take(&mut f, l))),
            Step::I(l) => {
                let chunk = take(&mut i, l);
                pending[l as usize].push_back(chunk);
                Some(Action::I(chunk))
            }
            Step::W(l) => pending[l as usize].pop_front().map(Action::W),
            Step::B(l) => Some(Action::B(take(&mut i, l))),
            Step::Pair(a, b) => Some(Action::FB(take(&mut f, a), take(&mut i, b))),
        };
        let ranks = orders.iter().map(|steps| steps.iter().filter_map(|&step| action(step)).collect()).collect();
        Timetable { layout: problem.layout, ranks }
    }
}

/// How far a lane has come.
#[derive(Clone, Copy, Default)]
struct Counts {
    f: usize,
    i: usize,
    /// I whose W has not run.
    pending: usize,
}
