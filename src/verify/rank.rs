//! One rank as the rules see it: its items, which of them does what to which chunk, and what precedes what.

use crate::ir::{ChunkId, Layout};
use crate::plan::{Item, Plan, Task, rank_streams};

use super::precedence::Precedence;

/// What an item does to a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// Runs its forward.
    F,
    /// Runs its backward for the input.
    I,
    /// Runs its weight gradient.
    W,
    /// Receives the activation that its forward made elsewhere.
    RecvAct,
    /// Receives the gradient that its backward made elsewhere.
    RecvGrad,
    /// Reduces the gradients of its stage. Stands on micro-batch 0, like the next.
    ReduceGrads,
    /// Updates its stage.
    Update,
}

impl Deed {
    /// How many there are.
    const COUNT: usize = Self::Update as usize + 1;
}

/// A chunk as one number.
fn key(chunk: ChunkId) -> u64 {
    u64::from(chunk.stage) << 32 | u64::from(chunk.micro_batch)
}

/// What an item does, and to which chunks. What others wait for is here; sends and gathers are not.
pub fn deeds(task: Task) -> impl Iterator<Item = (Deed, ChunkId)> {
    let chunk = ChunkId::new;
    let deeds = match task {
        Task::F(s, m) => [Some((Deed::F, chunk(s, m))), None, None],
        Task::I(s, m) => [Some((Deed::I, chunk(s, m))), None, None],
        Task::W(s, m) => [Some((Deed::W, chunk(s, m))), None, None],
        Task::B(s, m) => [Some((Deed::I, chunk(s, m))), Some((Deed::W, chunk(s, m))), None],
        Task::FB(f, b) => {
            [Some((Deed::F, chunk(f.0, f.1))), Some((Deed::I, chunk(b.0, b.1))), Some((Deed::W, chunk(b.0, b.1)))]
        }
        Task::RecvAct(s, m, _) => [Some((Deed::RecvAct, chunk(s, m))), None, None],
        Task::RecvGrad(s, m, _) => [Some((Deed::RecvGrad, chunk(s, m))), None, None],
        Task::ReduceGrads(s) => [Some((Deed::ReduceGrads, chunk(s, 0))), None, None],
        Task::Update(s) => [Some((Deed::Update, chunk(s, 0))), None, None],
        Task::SendAct(..) | Task::SendGrad(..) | Task::GatherParams(_) => [None; 3],
    };
    deeds.into_iter().flatten()
}

/// A rank, with what the rules ask of it most.
pub struct Rank<'a> {
    /// The plan that it is of.
    pub plan: &'a Plan,
    /// Its number.
    pub number: u32,
    /// Its items.
    pub items: &'a [Item],
    precedence: Precedence,
    /// For each deed the chunks that it is done to and by which item, sorted.
    deeds: [Vec<(u64, usize)>; Deed::COUNT],
}

impl<'a> Rank<'a> {
    /// Looks at rank `number` of a well-formed plan.
    pub fn new(plan: &'a Plan, number: u32) -> Self {
        let items = plan.ranks[number as usize].items.as_slice();
        let streams = rank_streams(items);
        let stream = |item: &Item| streams.binary_search(&item.0.stream()).unwrap_or(0);
        let precedence = Precedence::new(streams.len(), items.iter().map(|item| (stream(item), item.1.as_slice())));
        let mut done: [Vec<(u64, usize)>; Deed::COUNT] = Default::default();
        for (index, item) in items.iter().enumerate() {
            for (deed, chunk) in deeds(item.0) {
                done[deed as usize].push((key(chunk), index));
            }
        }
        done.iter_mut().for_each(|list| list.sort_unstable());
        Self { plan, number, items, precedence, deeds: done }
    }

    /// The layout of the plan.
    pub fn layout(&self) -> &'a Layout {
        &self.plan.layout
    }

    /// Whether this rank is the one that runs the chunk.
    pub fn runs(&self, chunk: ChunkId) -> bool {
        self.layout().rank_of(chunk) == self.number
    }

    /// The first item that does this to the chunk.
    pub fn find(&self, deed: Deed, chunk: ChunkId) -> Option<usize> {
        let (done, key) = (&self.deeds[deed as usize], key(chunk));
        let at = done.partition_point(|&(other, _)| other < key);
        done.get(at).and_then(|&(other, item)| (other == key).then_some(item))
    }

    /// Whether item `first` has ended before item `second` starts, by what this rank alone orders.
    pub fn ended_before(&self, first: usize, second: usize) -> bool {
        self.precedence.ended_before(first, second)
    }

    /// An item in words: `F(3,1) (item 12)`.
    pub fn name(&self, item: usize) -> String {
        format!("{} (item {item})", self.items[item].0)
    }
}

/// The chunk of the same micro-batch one stage earlier; none for stage 0.
pub fn before(chunk: ChunkId) -> Option<ChunkId> {
    Some(ChunkId { stage: chunk.stage.checked_sub(1)?, ..chunk })
}

/// The chunk of the same micro-batch one stage later; none for the last stage.
pub fn after(layout: &Layout, chunk: ChunkId) -> Option<ChunkId> {
    let stage = chunk.stage.checked_add(1)?;
    (stage < layout.stages).then_some(ChunkId { stage, ..chunk })
}
