//! What every rank holds in the simulated step, and when it holds most.
//!
//! Two numbers for each rank. The *peak* is the largest sum of what is live at one moment of the simulation. The
//! *reservation* is what a runtime sets aside before the step: every ring at its full size. The reservation does not
//! depend on times; a plan fits if it does.

use std::collections::BTreeMap;

use super::Simulation;
use crate::ir::{Action, ChunkId, Component, Phase};
use crate::plan::{Plan, PlanRank, RingOf, Task};
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
    /// Received from another rank and not yet read.
    Inbox,
    /// Made for another rank and not yet sent.
    Outbox,
    /// Made for the next stage on the same rank and not yet read.
    Handoff,
    /// Buffers of the all-to-alls.
    Exchange,
}

impl MemoryKind {
    /// All kinds, in the order of their declaration.
    pub const ALL: [Self; 13] = [
        Self::Parameters,
        Self::Gradients,
        Self::Optimizer,
        Self::Activations(Component::Embedding),
        Self::Activations(Component::Attention),
        Self::Activations(Component::Dispatch),
        Self::Activations(Component::Mlp),
        Self::Activations(Component::Combine),
        Self::Activations(Component::Head),
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
    /// Largest sum of what is live at one moment.
    pub peak: Bytes,
    /// The first such moment.
    pub at: Nanos,
    /// The item (index) that starts then and brings it about; `None` if the rank holds nothing that comes and goes.
    pub item: Option<u32>,
    /// What `peak` consists of, largest first; kinds of which there is nothing are left out.
    pub kinds: Vec<(MemoryKind, Bytes)>,
    /// Chunks whose activations are held then.
    pub chunks: u32,
    /// Activations of the chunk among them that holds most.
    pub largest_chunk: Bytes,
    /// What a runtime reserves.
    pub reserved: Reservation,
}

/// What a runtime sets aside on one GPU before the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    /// Weights, gradients and optimizer state of the stages that the rank holds, each stage once.
    pub state: Bytes,
    /// Rings of activations: slots × bytes.
    pub activations: Bytes,
    /// Rings of messages, and of what is handed on within the rank.
    pub messages: Bytes,
    /// The largest exchange buffer of the stages: exchanges run one after the other.
    pub exchange: Bytes,
}

impl Reservation {
    /// All of it.
    pub fn total(self) -> Bytes {
        self.state + self.activations + self.messages + self.exchange
    }
}

impl RankMemory {
    /// What the rank needs: the reservation, or the peak where that is more.
    pub fn need(&self) -> Bytes {
        self.peak.max(self.reserved.total())
    }

    /// Activations that are held at the peak.
    pub fn activations(&self) -> Bytes {
        let activations = self.kinds.iter().filter(|(kind, _)| matches!(kind, MemoryKind::Activations(_)));
        activations.map(|&(_, bytes)| bytes).sum()
    }

    /// Chunks whose activations fit beside everything else that is live at the peak, if each holds as much as the largest
    /// does. `None` if no chunk holds anything.
    pub fn chunks_that_fit(&self, memory: Bytes) -> Option<u64> {
        let others = self.peak.saturating_sub(self.activations());
        memory.saturating_sub(others).0.checked_div(self.largest_chunk.0)
    }
}

/// Memory of every rank. `simulation` must be the plan's.
pub fn memory(plan: &Plan, simulation: &Simulation) -> Vec<RankMemory> {
    let ranks = (0..).zip(&plan.ranks).zip(&simulation.ranks);
    ranks.map(|((rank, list), timing)| rank_memory(plan, rank, list, &timing.items, simulation.step)).collect()
}

/// Something that is there from one moment to another.
struct Load {
    from: Nanos,
    to: Nanos,
    /// The item that brings it.
    item: u32,
    /// Whose activations they are; `None` for messages.
    chunk: Option<ChunkId>,
    /// Index into the breakdowns.
    breakdown: usize,
}

type Breakdown = Vec<(MemoryKind, Bytes)>;

fn rank_memory(plan: &Plan, rank: u32, list: &PlanRank, spans: &[super::Span], step: Nanos) -> RankMemory {
    let mut stages = plan.layout.stages_of(rank);
    stages.sort_unstable();
    stages.dedup();
    let held = || stages.iter().filter_map(|&stage| plan.stages.get(stage as usize));
    let fixed: Breakdown = vec![
        (MemoryKind::Parameters, held().map(|stage| stage.parameters).sum()),
        (MemoryKind::Gradients, held().map(|stage| stage.gradients).sum()),
        (MemoryKind::Optimizer, held().map(|stage| stage.optimizer).sum()),
        (MemoryKind::Exchange, held().map(|stage| stage.exchange_buffer).max().unwrap_or_default()),
    ];
    let (loads, breakdowns) = loads(plan, list, spans, step);
    let totals: Vec<u128> =
        breakdowns.iter().map(|kinds| kinds.iter().map(|&(_, bytes)| u128::from(bytes.0)).sum()).collect();

    // At one moment, what ends goes before what starts. A load of no duration is never there.
    let mut events: Vec<(Nanos, bool, usize)> = Vec::with_capacity(2 * loads.len());
    for (number, load) in loads.iter().enumerate().filter(|(_, load)| load.from < load.to && totals[load.breakdown] > 0)
    {
        events.push((load.from, true, number));
        events.push((load.to, false, number));
    }
    events.sort_unstable();
    let (mut live, mut most, mut peak_event) = (0, 0, None);
    for (index, &(_, starts, number)) in events.iter().enumerate() {
        match starts {
            true => live += totals[loads[number].breakdown],
            false => live -= totals[loads[number].breakdown],
        }
        if live > most {
            (most, peak_event) = (live, Some(index));
        }
    }

    // What is live after that event.
    let mut kinds: BTreeMap<MemoryKind, Bytes> = fixed.iter().copied().collect();
    let mut chunks: BTreeMap<ChunkId, Bytes> = BTreeMap::new();
    let peak_load = peak_event.map(|index| &loads[events[index].2]);
    let at = peak_load.map(|load| load.from).unwrap_or_default();
    let mut there = vec![false; loads.len()];
    for &(_, starts, number) in peak_event.iter().flat_map(|&index| &events[..=index]) {
        there[number] = starts;
    }
    for load in there.iter().zip(&loads).filter_map(|(there, load)| there.then_some(load)) {
        for &(kind, bytes) in &breakdowns[load.breakdown] {
            *kinds.entry(kind).or_default() += bytes;
            if let Some(chunk) = load.chunk {
                *chunks.entry(chunk).or_default() += bytes;
            }
        }
    }
    let mut kinds: Breakdown = kinds.into_iter().filter(|&(_, bytes)| bytes > Bytes::ZERO).collect();
    kinds.sort_by_key(|&(kind, bytes)| (std::cmp::Reverse(bytes), kind));
    RankMemory {
        peak: kinds.iter().map(|&(_, bytes)| bytes).sum(),
        at,
        item: peak_load.map(|load| load.item),
        kinds,
        chunks: chunks.len() as u32,
        largest_chunk: chunks.values().copied().max().unwrap_or_default(),
        reserved: reservation(list, &fixed),
    }
}

fn reservation(list: &PlanRank, fixed: &Breakdown) -> Reservation {
    let mut reserved = Reservation::default();
    for &(kind, bytes) in fixed {
        match kind {
            MemoryKind::Exchange => reserved.exchange += bytes,
            _ => reserved.state += bytes,
        }
    }
    for ring in &list.rings {
        let bytes = ring.bytes * u64::from(ring.slots);
        match ring.of {
            RingOf::FToI(_) | RingOf::FToW(_) | RingOf::IToW(_) => reserved.activations += bytes,
            RingOf::Inbox(_) | RingOf::Outbox(_) | RingOf::HandoffAct(_) | RingOf::HandoffGrad(_) => {
                reserved.messages += bytes;
            }
        }
    }
    reserved
}

/// The items of a rank that complete the phases of a chunk.
#[derive(Clone, Copy, Default)]
struct Done {
    f: Option<u32>,
    i: Option<u32>,
    w: Option<u32>,
}

/// Everything that comes and goes on a rank.
fn loads(plan: &Plan, list: &PlanRank, spans: &[super::Span], step: Nanos) -> (Vec<Load>, Vec<Breakdown>) {
    let mut done: BTreeMap<ChunkId, Done> = BTreeMap::new();
    for (index, item) in (0..).zip(&list.items) {
        for (phase, chunk) in item.0.action().into_iter().flat_map(Action::parts) {
            let done = done.entry(chunk).or_default();
            match phase {
                Phase::F => done.f = Some(index),
                Phase::I => done.i = Some(index),
                Phase::W => done.w = Some(index),
            }
        }
    }
    let of = |chunk: ChunkId| done.get(&chunk).copied().unwrap_or_default();
    // The same micro-batch's chunk that follows, or precedes.
    let after = |c: ChunkId| ChunkId { stage: c.stage.saturating_add(1), ..c };
    let before = |c: ChunkId| c.stage.checked_sub(1).map(|stage| ChunkId { stage, ..c });
    let start = |item: u32| spans[item as usize].start;
    // What is never released stays.
    let end = |item: Option<u32>| item.map_or(step, |item| spans[item as usize].end);

    let mut table = Breakdowns::new(plan);
    let mut loads = Vec::new();
    let mut load = |from: u32, to: Option<u32>, chunk: Option<ChunkId>, breakdown: usize| {
        loads.push(Load { from: start(from), to: end(to), item: from, chunk, breakdown });
    };
    for (&chunk, &Done { f, i, w }) in &done {
        let s = chunk.stage as usize;
        if let Some(f) = f {
            load(f, i, Some(chunk), table.held(s, Class::FToI));
            load(f, w, Some(chunk), table.held(s, Class::FToW));
            if let Some(reader) = of(after(chunk)).f {
                load(f, Some(reader), None, table.message(MemoryKind::Handoff, plan.stages[s].output));
            }
        }
        if let Some(i) = i {
            load(i, w, Some(chunk), table.held(s, Class::IToW));
            if let Some(reader) = before(chunk).and_then(|chunk| of(chunk).i) {
                load(i, Some(reader), None, table.message(MemoryKind::Handoff, plan.stages[s].input));
            }
        }
    }
    for (index, item) in (0..).zip(&list.items) {
        let stage = |s: u32| &plan.stages[s as usize];
        match item.0 {
            Task::RecvAct(s, m, _) => {
                let reader = of(after(ChunkId::new(s, m))).f;
                load(index, reader, None, table.message(MemoryKind::Inbox, stage(s).output));
            }
            Task::RecvGrad(s, m, _) => {
                let reader = before(ChunkId::new(s, m)).and_then(|chunk| of(chunk).i);
                load(index, reader, None, table.message(MemoryKind::Inbox, stage(s).input));
            }
            Task::SendAct(s, m, _) => {
                let writer = of(ChunkId::new(s, m)).f.unwrap_or(index);
                load(writer, Some(index), None, table.message(MemoryKind::Outbox, stage(s).output));
            }
            Task::SendGrad(s, m, _) => {
                let writer = of(ChunkId::new(s, m)).i.unwrap_or(index);
                load(writer, Some(index), None, table.message(MemoryKind::Outbox, stage(s).input));
            }
            _ => {}
        }
    }
    (loads, table.breakdowns)
}

/// How long a part of a chunk's activations lives.
#[derive(Clone, Copy)]
enum Class {
    FToI,
    FToW,
    IToW,
}

/// Breakdowns by number, each kept once however many loads have it.
struct Breakdowns {
    breakdowns: Vec<Breakdown>,
    messages: BTreeMap<(MemoryKind, Bytes), usize>,
}

impl Breakdowns {
    fn new(plan: &Plan) -> Self {
        let activations = |(&component, &bytes): (&Component, &Bytes)| (MemoryKind::Activations(component), bytes);
        let mut breakdowns = Vec::new();
        for stage in &plan.stages {
            for class in [&stage.held.f_to_i, &stage.held.f_to_w, &stage.held.i_to_w] {
                breakdowns.push(class.iter().map(activations).collect());
            }
        }
        Self { breakdowns, messages: BTreeMap::new() }
    }

    fn held(&self, stage: usize, class: Class) -> usize {
        3 * stage + class as usize
    }

    fn message(&mut self, kind: MemoryKind, bytes: Bytes) -> usize {
        *self.messages.entry((kind, bytes)).or_insert_with(|| {
            self.breakdowns.push(vec![(kind, bytes)]);
            self.breakdowns.len() - 1
        })
    }
}
