//! What every rank holds in the simulated step, and when it holds most.
//!
//! Parameters, gradients, optimizer state, message rings and exchange buffers are there throughout. Activations come and go
//! with compute items, which run one after the other: so the peak follows from their order, and only its moment from times.
//! Alignment and fragmentation are not counted.

use std::collections::BTreeMap;

use super::Simulation;
use crate::ir::{Action, ChunkId, Component, Held, Phase};
use crate::plan::{Plan, PlanRank, PlanStage, RingOf};
use crate::units::{Bytes, Nanos};

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryKind {
    /// Weights.
    Parameters,
    /// Gradient accumulators.
    Gradients,
    /// Master weights and moments.
    Optimizer,
    /// Activations that the backward of a component reads.
    Activations(Component),
    /// What a full backward hands from its I ops to its W ops while it runs.
    Workspace,
    /// Slots for messages received.
    Inbox,
    /// Slots for messages to send.
    Outbox,
    /// Slots for what one stage hands to the next on the same rank.
    Handoff,
    /// Buffers of the all-to-alls.
    Exchange,
}

impl MemoryKind {
    /// All kinds, in the order of their declaration.
    pub const ALL: [Self; 14] = [
        Self::Parameters,
        Self::Gradients,
        Self::Optimizer,
        Self::Activations(Component::Embedding),
        Self::Activations(Component::Attention),
        Self::Activations(Component::Dispatch),
        Self::Activations(Component::Mlp),
        Self::Activations(Component::Combine),
        Self::Activations(Component::Head),
        Self::Workspace,
        Self::Inbox,
        Self::Outbox,
        Self::Handoff,
        Self::Exchange,
    ];
}

impl std::fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Parameters => "parameters",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer state",
            Self::Activations(Component::Embedding) => "activations, embedding",
            Self::Activations(Component::Attention) => "activations, attention",
            Self::Activations(Component::Dispatch) => "activations, dispatch",
            Self::Activations(Component::Mlp) => "activations, MLP",
            Self::Activations(Component::Combine) => "activations, combine",
            Self::Activations(Component::Head) => "activations, head",
            Self::Workspace => "inside the backward",
            Self::Inbox => "messages received",
            Self::Outbox => "messages to send",
            Self::Handoff => "handed to the next stage",
            Self::Exchange => "all-to-all buffers",
        })
    }
}

/// Memory of one GPU of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankMemory {
    /// Largest sum of what is there at one moment.
    pub peak: Bytes,
    /// When the item starts that brings it about.
    pub at: Nanos,
    /// That item (index), the first of its kind; `None` if the rank computes nothing.
    pub item: Option<u32>,
    /// What `peak` consists of, largest first; kinds of which there is nothing are left out.
    pub kinds: Vec<(MemoryKind, Bytes)>,
    /// Chunks whose activations are held then.
    pub chunks: u32,
    /// Activations of the chunk among them that holds most.
    pub largest_chunk: Bytes,
}

impl RankMemory {
    /// Activations that are held at the peak, a running backward's workspace included.
    pub fn activations(&self) -> Bytes {
        let of = |kind: &MemoryKind| matches!(kind, MemoryKind::Activations(_) | MemoryKind::Workspace);
        self.kinds.iter().filter(|(kind, _)| of(kind)).map(|&(_, bytes)| bytes).sum()
    }

    /// Chunks whose activations fit beside everything else that is there at the peak, if each holds as much as the largest
    /// does. `None` if no chunk holds anything.
    pub fn chunks_that_fit(&self, memory: Bytes) -> Option<u64> {
        let others = self.peak.saturating_sub(self.activations());
        memory.saturating_sub(others).0.checked_div(self.largest_chunk.0)
    }
}

/// Memory of every rank. `simulation` must be the plan's.
pub fn memory(plan: &Plan, simulation: &Simulation) -> Vec<RankMemory> {
    let ranks = (0..).zip(&plan.ranks).zip(&simulation.ranks);
    ranks.map(|((rank, list), timing)| rank_memory(plan, rank, list, &timing.items)).collect()
}

/// The parts of [`Held`] that a chunk holds at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Holds {
    f_to_i: bool,
    f_to_w: bool,
    i_to_w: bool,
}

impl Holds {
    /// What a chunk holds while an action runs that completes `phases` of it, having held `self` before. A full backward
    /// makes and uses `i_to_w` inside: that is its workspace.
    fn during(self, phases: &[Phase]) -> Self {
        let forward = phases.contains(&Phase::F);
        let only_input = phases.contains(&Phase::I) && !phases.contains(&Phase::W);
        Self { f_to_i: self.f_to_i || forward, f_to_w: self.f_to_w || forward, i_to_w: self.i_to_w || only_input }
    }

    /// What it still holds when the action has ended.
    fn after(self, phases: &[Phase]) -> Self {
        let (input, weight) = (phases.contains(&Phase::I), phases.contains(&Phase::W));
        Self { f_to_i: self.f_to_i && !input, f_to_w: self.f_to_w && !weight, i_to_w: self.i_to_w && !weight }
    }

    fn parts(self, held: &Held) -> impl Iterator<Item = (Component, Bytes)> + '_ {
        let parts = [(self.f_to_i, &held.f_to_i), (self.f_to_w, &held.f_to_w), (self.i_to_w, &held.i_to_w)];
        let there = parts.into_iter().filter_map(|(there, part)| there.then_some(part));
        there.flatten().map(|(&component, &bytes)| (component, bytes))
    }

    fn bytes(self, held: &Held) -> Bytes {
        self.parts(held).map(|(_, bytes)| bytes).sum()
    }
}

/// The phases that an action completes, by chunk.
fn phases(action: Action) -> BTreeMap<ChunkId, Vec<Phase>> {
    let mut phases: BTreeMap<ChunkId, Vec<Phase>> = BTreeMap::new();
    action.parts().for_each(|(phase, chunk)| phases.entry(chunk).or_default().push(phase));
    phases
}

/// What chunks hold, as a rank goes through its compute items.
struct Ledger<'a> {
    plan: &'a Plan,
    chunks: BTreeMap<ChunkId, Holds>,
    /// Sum over `chunks`.
    bytes: Bytes,
}

impl<'a> Ledger<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self { plan, chunks: BTreeMap::new(), bytes: Bytes::ZERO }
    }

    fn start(&mut self, action: Action) {
        for (chunk, phases) in phases(action) {
            let before = self.chunks.get(&chunk).copied().unwrap_or_default();
            self.set(chunk, before.during(&phases));
        }
    }

    fn end(&mut self, action: Action) {
        for (chunk, phases) in phases(action) {
            let during = self.chunks.get(&chunk).copied().unwrap_or_default();
            self.set(chunk, during.after(&phases));
        }
    }

    fn set(&mut self, chunk: ChunkId, holds: Holds) {
        let before = match holds == Holds::default() {
            true => self.chunks.remove(&chunk),
            false => self.chunks.insert(chunk, holds),
        };
        let Some(held) = self.held(chunk) else { return };
        self.bytes = self.bytes.saturating_sub(before.unwrap_or_default().bytes(held)) + holds.bytes(held);
    }

    fn held(&self, chunk: ChunkId) -> Option<&'a Held> {
        self.plan.stages.get(chunk.stage as usize).map(|stage| &stage.held)
    }
}

fn rank_memory(plan: &Plan, rank: u32, list: &PlanRank, spans: &[super::Span]) -> RankMemory {
    let computes = || list.items.iter().enumerate().filter_map(|(at, item)| Some((at, item.0.action()?)));

    // First where the peak is, by sums alone; then what it consists of.
    let mut ledger = Ledger::new(plan);
    let mut peak: Option<(Bytes, usize)> = None;
    for (at, action) in computes() {
        ledger.start(action);
        let now = ledger.bytes + workspace(plan, action);
        if peak.is_none_or(|(most, _)| now > most) {
            peak = Some((now, at));
        }
        ledger.end(action);
    }
    let peak = peak.map(|(_, item)| item);

    let mut kinds: BTreeMap<MemoryKind, Bytes> = fixed(plan, rank, list);
    let mut largest_chunk = Bytes::ZERO;
    let mut ledger = Ledger::new(plan);
    for (at, action) in computes() {
        ledger.start(action);
        if peak == Some(at) {
            *kinds.entry(MemoryKind::Workspace).or_default() += workspace(plan, action);
            break;
        }
        ledger.end(action);
    }
    for (&chunk, holds) in &ledger.chunks {
        let Some(held) = ledger.held(chunk) else { continue };
        largest_chunk = largest_chunk.max(holds.bytes(held));
        for (component, bytes) in holds.parts(held) {
            *kinds.entry(MemoryKind::Activations(component)).or_default() += bytes;
        }
    }
    let mut kinds: Vec<(MemoryKind, Bytes)> = kinds.into_iter().filter(|&(_, bytes)| bytes > Bytes::ZERO).collect();
    kinds.sort_by_key(|&(kind, bytes)| (std::cmp::Reverse(bytes), kind));
    RankMemory {
        peak: kinds.iter().map(|&(_, bytes)| bytes).sum(),
        at: peak.and_then(|item| spans.get(item)).map(|span| span.start).unwrap_or_default(),
        item: peak.map(|item| item as u32),
        kinds,
        chunks: ledger.chunks.len() as u32,
        largest_chunk,
    }
}

/// What is there throughout.
fn fixed(plan: &Plan, rank: u32, list: &PlanRank) -> BTreeMap<MemoryKind, Bytes> {
    let mut stages = plan.layout.stages_of(rank);
    stages.sort_unstable();
    stages.dedup();
    let held: Vec<&PlanStage> = stages.iter().filter_map(|&stage| plan.stages.get(stage as usize)).collect();
    let sum = |of: fn(&PlanStage) -> Bytes| held.iter().map(|stage| of(stage)).sum();
    let mut fixed = BTreeMap::from([
        (MemoryKind::Parameters, sum(|stage| stage.parameters)),
        (MemoryKind::Gradients, sum(|stage| stage.gradients)),
        (MemoryKind::Optimizer, sum(|stage| stage.optimizer)),
        // Exchanges of a rank run one after the other.
        (MemoryKind::Exchange, held.iter().map(|stage| stage.exchange_buffer).max().unwrap_or_default()),
    ]);
    for ring in &list.rings {
        let kind = match ring.of {
            RingOf::Inbox(_) => MemoryKind::Inbox,
            RingOf::Outbox(_) => MemoryKind::Outbox,
            RingOf::HandoffAct(_) | RingOf::HandoffGrad(_) => MemoryKind::Handoff,
        };
        *fixed.entry(kind).or_default() += ring.bytes * u64::from(ring.slots);
    }
    fixed
}

/// Workspace of the program that an action runs; zero unless it is a full backward.
fn workspace(plan: &Plan, action: Action) -> Bytes {
    let program = match action {
        Action::B(chunk) => plan.stages.get(chunk.stage as usize).and_then(|stage| stage.b),
        Action::FB(f, b) => {
            plan.pairs.iter().find(|pair| (pair.f, pair.b) == (f.stage, b.stage)).map(|pair| pair.program)
        }
        _ => None,
    };
    program.and_then(|program| plan.programs.get(program as usize)).map_or(Bytes::ZERO, |program| program.workspace)
}
