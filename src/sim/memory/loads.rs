//! What comes and goes on a rank: each thing with the items at whose start and end it does.

use std::collections::BTreeMap;

use super::MemoryKind;
use crate::ir::{Action, ChunkId, Component, Phase};
use crate::plan::{Plan, PlanRank, Task};
use crate::sim::RankTiming;
use crate::units::{Bytes, Nanos};

/// Something that is there from one moment to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The start of `item`.
    pub from: Nanos,
    /// The end of `until`, or of the step.
    pub to: Nanos,
    /// The item (index) that brings it.
    pub item: u32,
    /// The item that takes it away; `None`: it stays to the end of the step.
    pub until: Option<u32>,
    /// What it is.
    pub(super) of: Of,
    /// Index into [`super::Course::breakdowns`].
    pub breakdown: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// Activations of a chunk.
    Chunk(ChunkId),
    /// What a full backward hands to itself.
    Workspace,
    Message,
}

/// Parts of what a rank holds, by kind.
pub type Breakdown = Vec<(MemoryKind, Bytes)>;

/// The items of a rank that complete the phases of a chunk.
#[derive(Clone, Copy, Default)]
struct Done {
    f: Option<u32>,
    i: Option<u32>,
    w: Option<u32>,
}

/// Everything that comes and goes on a rank.
pub(super) fn loads(plan: &Plan, list: &PlanRank, timing: &RankTiming, step: Nanos) -> (Vec<Load>, Vec<Breakdown>) {
    let spans = &timing.items;
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
    let mut load = |from: u32, to: Option<u32>, of: Of, breakdown: usize| {
        loads.push(Load { from: start(from), to: end(to), item: from, until: to, of, breakdown });
    };
    for (&chunk, &Done { f, i, w }) in &done {
        let s = chunk.stage as usize;
        if let Some(f) = f {
            load(f, i, Of::Chunk(chunk), table.held(s, Class::FToI));
            load(f, w, Of::Chunk(chunk), table.held(s, Class::FToW));
            if let Some(reader) = of(after(chunk)).f {
                load(f, Some(reader), Of::Message, table.single(MemoryKind::Handoff, plan.stages[s].output));
            }
        }
        if let Some(i) = i {
            if w == Some(i) {
                let program = timing.programs[i as usize].and_then(|program| plan.programs.get(program as usize));
                let bytes = program.map(|program| program.workspace).unwrap_or_default();
                load(i, w, Of::Workspace, table.single(MemoryKind::Workspace, bytes));
            } else {
                load(i, w, Of::Chunk(chunk), table.held(s, Class::IToW));
            }
            if let Some(reader) = before(chunk).and_then(|chunk| of(chunk).i) {
                load(i, Some(reader), Of::Message, table.single(MemoryKind::Handoff, plan.stages[s].input));
            }
        }
    }
    for (index, item) in (0..).zip(&list.items) {
        let stage = |s: u32| &plan.stages[s as usize];
        match item.0 {
            Task::RecvAct(s, m, _) => {
                let reader = of(after(ChunkId::new(s, m))).f;
                load(index, reader, Of::Message, table.single(MemoryKind::Inbox, stage(s).output));
            }
            Task::RecvGrad(s, m, _) => {
                let reader = before(ChunkId::new(s, m)).and_then(|chunk| of(chunk).i);
                load(index, reader, Of::Message, table.single(MemoryKind::Inbox, stage(s).input));
            }
            Task::SendAct(s, m, _) => {
                let writer = of(ChunkId::new(s, m)).f.unwrap_or(index);
                load(writer, Some(index), Of::Message, table.single(MemoryKind::Outbox, stage(s).output));
            }
            Task::SendGrad(s, m, _) => {
                let writer = of(ChunkId::new(s, m)).i.unwrap_or(index);
                load(writer, Some(index), Of::Message, table.single(MemoryKind::Outbox, stage(s).input));
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
    singles: BTreeMap<(MemoryKind, Bytes), usize>,
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
        Self { breakdowns, singles: BTreeMap::new() }
    }

    fn held(&self, stage: usize, class: Class) -> usize {
        3 * stage + class as usize
    }

    fn single(&mut self, kind: MemoryKind, bytes: Bytes) -> usize {
        *self.singles.entry((kind, bytes)).or_insert_with(|| {
            self.breakdowns.push(vec![(kind, bytes)]);
            self.breakdowns.len() - 1
        })
    }
}
