//! A shadow of a GPU's arena. Tensors lie elsewhere; followed here is where the plan says that they lie.
//!
//! What writes a block stamps all its bytes: an item each block that it takes and each slot that it writes, an exchange its buffer. As an
//! item starts and as it ends, what it writes and what it reads must bear its stamp still, to the last byte. So if two things that
//! are there at the same time share bytes, that is an error at the latest when the first of them is read.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::Run;
use super::stamps::Stamps;
use crate::ir::{ChunkId, Component, Phase};
use crate::plan::{ALIGNMENT, Item, Plan, PlanRank, RingOf, Task};
use crate::runtime::messages::{Message, Uses, Value};
use crate::units::Bytes;

/// The arena of a GPU in a step.
pub struct Arena<'a> {
    plan: &'a Plan,
    rank: &'a PlanRank,
    /// Where blocks lie that are there.
    places: BTreeMap<Block, Range<u128>>,
    stamps: Stamps<Block>,
}

/// Something that has bytes of the arena to itself for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Block {
    /// What a chunk holds from F to I.
    FToI(ChunkId),
    /// What a chunk holds from F to W.
    FToW(ChunkId),
    /// What a chunk holds from I to W.
    IToW(ChunkId),
    /// Of the chunk's full backward.
    Workspace(ChunkId),
    /// A message in a slot.
    Slot(RingOf, usize, Message),
    /// The exchange buffer, while an exchange of the chunk runs.
    Exchange(ChunkId),
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut of = |what: &str, chunk: &ChunkId| write!(f, "{what} of chunk ({},{})", chunk.stage, chunk.micro_batch);
        match self {
            Self::FToI(chunk) => of("f_to_i", chunk),
            Self::FToW(chunk) => of("f_to_w", chunk),
            Self::IToW(chunk) => of("i_to_w", chunk),
            Self::Workspace(chunk) => of("the workspace", chunk),
            Self::Exchange(chunk) => of("the exchange buffer", chunk),
            Self::Slot(ring, slot, message) => write!(f, "{message} in slot {slot} of {ring:?}"),
        }
    }
}

impl<'a> Arena<'a> {
    /// With nothing in it. `rank` is one of the plan's.
    pub fn new(plan: &'a Plan, rank: &'a PlanRank) -> Self {
        Self { plan, rank, places: BTreeMap::new(), stamps: Stamps::new() }
    }

    /// An item starts.
    ///
    /// # Errors
    /// If it does not say where its blocks lie, they lie where they cannot, or something that it reads is overwritten.
    pub fn start(&mut self, item: usize, uses: &Uses) -> Run<()> {
        let Item(task, _, places) = &self.rank.items[item];
        let taken = self.taken(*task);
        if taken.len() != places.len() {
            let names: Vec<String> = taken.iter().map(|(block, _)| block.to_string()).collect();
            let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            return Err(format!("lists {} places, but takes {names}", places.len()));
        }
        for ((block, bytes), at) in taken.into_iter().zip(places) {
            self.write(block, u128::from(at.0), bytes)?;
        }
        // A receive writes as it ends: it starts when both ends have been reached.
        if task.action().is_some() {
            uses.written.iter().try_for_each(|value| self.write_slot(value))?;
        }
        self.check(*task, uses)
    }

    /// An item ends: what it was the last one for is no longer there.
    ///
    /// # Errors
    /// If something that it has read or written is overwritten.
    pub fn end(&mut self, item: usize, uses: &Uses) -> Run<()> {
        let task = self.rank.items[item].0;
        if task.action().is_none() {
            uses.written.iter().try_for_each(|value| self.write_slot(value))?;
        }
        self.check(task, uses)?;
        for value in &uses.read {
            self.places.remove(&slot(value));
        }
        for (phase, chunk) in parts(task) {
            let last = match phase {
                Phase::F => &[][..],
                Phase::I => &[Block::FToI(chunk)],
                Phase::W => &[Block::FToW(chunk), Block::IToW(chunk), Block::Workspace(chunk)],
            };
            for block in last {
                self.places.remove(block);
            }
        }
        Ok(())
    }

    /// An exchange of a chunk starts to use the buffer.
    ///
    /// # Errors
    /// If that lies where it cannot.
    pub fn start_exchange(&mut self, chunk: ChunkId) -> Run<()> {
        let bytes = self.plan.stages.get(chunk.stage as usize).map_or(0, |stage| rounded(stage.exchange_buffer));
        self.write(Block::Exchange(chunk), u128::from(self.rank.exchange.0), bytes)
    }

    /// The exchange has what it needs.
    ///
    /// # Errors
    /// If the buffer is overwritten.
    pub fn end_exchange(&mut self, chunk: ChunkId) -> Run<()> {
        self.whole(Block::Exchange(chunk))?;
        self.places.remove(&Block::Exchange(chunk));
        Ok(())
    }

    /// What an item takes, in the order in which it lists the places, with bytes. What has none is left out.
    fn taken(&self, task: Task) -> Vec<(Block, u128)> {
        let full = parts(task).any(|(phase, _)| phase == Phase::W);
        let mut taken = Vec::new();
        for (phase, chunk) in parts(task) {
            let Some(stage) = self.plan.stages.get(chunk.stage as usize) else { continue };
            match phase {
                Phase::F => {
                    taken.push((Block::FToI(chunk), sum(&stage.held.f_to_i)));
                    taken.push((Block::FToW(chunk), sum(&stage.held.f_to_w)));
                }
                Phase::I if full => taken.push((Block::Workspace(chunk), self.workspace(task))),
                Phase::I => taken.push((Block::IToW(chunk), sum(&stage.held.i_to_w))),
                Phase::W => {}
            }
        }
        taken.retain(|&(_, bytes)| bytes > 0);
        taken
    }

    /// Of the program of a full backward.
    fn workspace(&self, task: Task) -> u128 {
        let program = task.action().and_then(|action| self.plan.program_of(action));
        let program = program.and_then(|program| self.plan.programs.get(program as usize));
        program.map_or(0, |program| rounded(program.workspace))
    }

    fn write_slot(&mut self, value: &Value) -> Run<()> {
        let Value { ring: of, slot: number, message } = *value;
        // A ring that is missing is missed where the slot is used.
        let Some(ring) = self.rank.rings.iter().find(|ring| ring.of == of) else { return Ok(()) };
        let stage = self.plan.stages.get(message.chunk.stage as usize);
        let bytes = stage.map_or(Bytes::ZERO, |stage| if message.gradient { stage.input } else { stage.output });
        if bytes > ring.bytes {
            return Err(format!("writes {message}, of {} bytes, into a slot of {of:?} of {}", bytes.0, ring.bytes.0));
        }
        let size = rounded(ring.bytes);
        self.write(slot(value), u128::from(ring.at.0) + number as u128 * size, size)
    }

    /// Stamps a block.
    fn write(&mut self, block: Block, at: u128, size: u128) -> Run<()> {
        if size == 0 {
            return Ok(());
        }
        let bytes = at..at + size;
        if !at.is_multiple_of(u128::from(ALIGNMENT)) {
            return Err(format!("writes {block} at byte {at}, no multiple of {ALIGNMENT}"));
        }
        let arena = self.rank.arena.0;
        if bytes.end > u128::from(arena) {
            return Err(format!("writes {block} at bytes {} to {}, but the arena has {arena}", bytes.start, bytes.end));
        }
        self.stamps.write(&bytes, block);
        self.places.insert(block, bytes);
        Ok(())
    }

    /// Whether all that an item writes and reads is whole.
    fn check(&self, task: Task, uses: &Uses) -> Run<()> {
        uses.read.iter().chain(&uses.written).try_for_each(|value| self.whole(slot(value)))?;
        for (phase, chunk) in parts(task) {
            let blocks = match phase {
                Phase::F => [Block::FToI(chunk), Block::FToW(chunk)].to_vec(),
                Phase::I => {
                    [Block::FToI(chunk), Block::FToW(chunk), Block::IToW(chunk), Block::Workspace(chunk)].to_vec()
                }
                Phase::W => [Block::FToW(chunk), Block::IToW(chunk), Block::Workspace(chunk)].to_vec(),
            };
            blocks.into_iter().try_for_each(|block| self.whole(block))?;
        }
        Ok(())
    }

    /// Whether a block, if it is there, bears its stamp on all its bytes.
    fn whole(&self, block: Block) -> Run<()> {
        let Some(bytes) = self.places.get(&block) else { return Ok(()) };
        match self.stamps.overwritten(bytes, block) {
            None => Ok(()),
            Some((there, other)) => Err(format!(
                "needs {block} at bytes {} to {}, of which {other} has overwritten {} to {}",
                bytes.start, bytes.end, there.start, there.end
            )),
        }
    }
}

/// The parts of chunks that an item runs.
fn parts(task: Task) -> impl Iterator<Item = (Phase, ChunkId)> {
    task.action().into_iter().flat_map(|action| action.parts())
}

/// What lies in a slot.
fn slot(value: &Value) -> Block {
    Block::Slot(value.ring, value.slot, value.message)
}

/// Bytes of all components together, in whole units of the arena.
fn sum(parts: &BTreeMap<Component, Bytes>) -> u128 {
    parts.values().map(|bytes| u128::from(bytes.0)).sum::<u128>().next_multiple_of(u128::from(ALIGNMENT))
}

/// In whole units of the arena.
fn rounded(bytes: Bytes) -> u128 {
    u128::from(bytes.0).next_multiple_of(u128::from(ALIGNMENT))
}
