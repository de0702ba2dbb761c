//! Which message lies in which slot of which ring, and which items write and read it.

use std::collections::BTreeMap;
use std::fmt;

use crate::ir::{ChunkId, Layout, Phase};
use crate::plan::{PlanRank, RingOf, Task};

/// What a slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Message {
    /// A gradient, or else an activation.
    pub gradient: bool,
    /// The chunk whose I, or F, made it.
    pub chunk: ChunkId,
}

impl Message {
    /// What a transfer carries, and the rank at the other end; whether that is where it goes.
    pub fn of(task: Task) -> Option<(Self, u32, bool)> {
        let (gradient, stage, micro_batch, peer, sent) = match task {
            Task::SendAct(s, m, peer) => (false, s, m, peer, true),
            Task::SendGrad(s, m, peer) => (true, s, m, peer, true),
            Task::RecvAct(s, m, peer) => (false, s, m, peer, false),
            Task::RecvGrad(s, m, peer) => (true, s, m, peer, false),
            _ => return None,
        };
        Some((Self { gradient, chunk: ChunkId::new(stage, micro_batch) }, peer, sent))
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, letter) = if self.gradient { ("gradient", 'I') } else { ("activation", 'F') };
        write!(f, "the {what} of {letter}({},{})", self.chunk.stage, self.chunk.micro_batch)
    }
}

/// A message in a slot of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Value {
    /// Of the GPU.
    pub ring: RingOf,
    /// Of the ring.
    pub slot: usize,
    /// What it is.
    pub message: Message,
}

/// What an item does with slots.
#[derive(Clone, Debug, Default)]
pub struct Uses {
    /// It writes these.
    pub written: Vec<Value>,
    /// It reads these.
    pub read: Vec<Value>,
}

/// What each item of a rank does with slots: the k-th value of a ring, in the order of the items that the ring is named for, lies
/// in slot k mod slots.
pub fn uses(rank: &PlanRank, number: u32, layout: &Layout) -> Vec<Uses> {
    let slots: BTreeMap<RingOf, usize> = rank.rings.iter().map(|ring| (ring.of, ring.slots as usize)).collect();
    let mut items: BTreeMap<(Phase, ChunkId), usize> = BTreeMap::new();
    for (index, item) in rank.items.iter().enumerate() {
        for part in item.0.action().into_iter().flat_map(|action| action.parts()) {
            items.entry(part).or_insert(index);
        }
    }
    let made = |message: Message| if message.gradient { Phase::I } else { Phase::F };
    let writer = |message: Message| items.get(&(made(message), message.chunk)).copied();
    let next = |message: Message| neighbour(layout, message);
    let reader = |message: Message| items.get(&(made(message), next(message)?)).copied();
    let here = |message: Message| next(message).is_some_and(|chunk| layout.rank_of(chunk) == number);

    let mut uses = vec![Uses::default(); rank.items.len()];
    let mut counts: BTreeMap<RingOf, usize> = BTreeMap::new();
    for (index, item) in rank.items.iter().enumerate() {
        let mut pass = |ring: RingOf, message: Message, written: Option<usize>, read: Option<usize>| {
            let count = counts.entry(ring).or_default();
            // A ring that is missing, or has no slots, has no slot 0 either: its use is an error.
            let slot = count.checked_rem(slots.get(&ring).copied().unwrap_or_default()).unwrap_or_default();
            *count += 1;
            let value = Value { ring, slot, message };
            if let Some(uses) = written.and_then(|item| uses.get_mut(item)) {
                uses.written.push(value);
            }
            if let Some(uses) = read.and_then(|item| uses.get_mut(item)) {
                uses.read.push(value);
            }
        };
        if let Some((message, peer, sent)) = Message::of(item.0) {
            match sent {
                true => pass(RingOf::Outbox(peer), message, writer(message), Some(index)),
                false => pass(RingOf::Inbox(peer), message, Some(index), reader(message)),
            }
        }
        for (phase, chunk) in item.0.action().into_iter().flat_map(|action| action.parts()) {
            let message = Message { gradient: phase == Phase::I, chunk };
            if phase == Phase::W || !here(message) {
                continue;
            }
            let ring = match message.gradient {
                true => RingOf::HandoffGrad(chunk.stage),
                false => RingOf::HandoffAct(chunk.stage),
            };
            pass(ring, message, Some(index), reader(message));
        }
    }
    uses
}

/// The chunk that reads a message.
fn neighbour(layout: &Layout, message: Message) -> Option<ChunkId> {
    let ChunkId { stage, micro_batch } = message.chunk;
    let stage = if message.gradient { stage.checked_sub(1) } else { stage.checked_add(1) };
    stage.filter(|&stage| stage < layout.stages).map(|stage| ChunkId::new(stage, micro_batch))
}
