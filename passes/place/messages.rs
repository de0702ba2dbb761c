//! Messages between ranks, and the order in which they travel.

use std::collections::BTreeMap;

use super::{Input, inputs};
use crate::ir::{Action, ChunkId, Layout, Phase};
use crate::plan::Task;

/// An activation or a gradient on its way from one rank to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// A gradient, not an activation.
    pub gradient: bool,
    /// The chunk whose F (or I) made it.
    pub chunk: ChunkId,
    /// Action of the sending rank that makes it.
    pub maker: usize,
    /// Action of the receiving rank that reads it.
    pub reader: usize,
}

impl Message {
    /// The item that receives it.
    pub fn receive(&self, from: u32) -> Task {
        match self.gradient {
            true => Task::RecvGrad(self.chunk.stage, self.chunk.micro_batch, from),
            false => Task::RecvAct(self.chunk.stage, self.chunk.micro_batch, from),
        }
    }
}

/// All messages of a timetable.
pub struct Messages {
    /// By (sender, receiver), in the order in which they are made.
    pub channels: BTreeMap<(u32, u32), Vec<Message>>,
    /// Values that stay on their rank: by (rank, is a gradient, stage that made it), in the order in which they are made.
    pub handoffs: BTreeMap<(u32, bool, u32), Vec<Message>>,
}

impl Messages {
    /// Reads them off the timetable.
    pub fn new(input: &Input) -> Self {
        let layout = &input.timetable.layout;
        // Which action reads the activation (or gradient) that a chunk made.
        let chunks = layout.stages as usize * layout.micro_batches as usize;
        let index = |chunk: ChunkId| chunk.stage as usize * layout.micro_batches as usize + chunk.micro_batch as usize;
        let mut readers = [vec![None; chunks], vec![None; chunks]];
        for actions in &input.timetable.ranks {
            for (at, &action) in actions.iter().enumerate() {
                for (gradient, chunk) in inputs(layout, action) {
                    readers[usize::from(gradient)][index(chunk)] = Some(at);
                }
            }
        }
        let mut messages = Self { channels: BTreeMap::new(), handoffs: BTreeMap::new() };
        for (rank, actions) in (0..).zip(&input.timetable.ranks) {
            for (maker, &action) in actions.iter().enumerate() {
                for (gradient, chunk, to) in outputs(layout, action) {
                    let Some(reader) = readers[usize::from(gradient)][index(chunk)] else { continue };
                    let message = Message { gradient, chunk, maker, reader };
                    match to == rank {
                        true => messages.handoffs.entry((rank, gradient, chunk.stage)).or_default().push(message),
                        false => messages.channels.entry((rank, to)).or_default().push(message),
                    }
                }
            }
        }
        messages
    }
}

/// The sends behind `action` of `rank`, each with its receiver, in order.
pub fn sends(layout: &Layout, rank: u32, action: Action) -> Vec<(u32, Task)> {
    let sent = outputs(layout, action).into_iter().filter(|&(_, _, to)| to != rank);
    let task = |gradient: bool, chunk: ChunkId, to: u32| match gradient {
        true => Task::SendGrad(chunk.stage, chunk.micro_batch, to),
        false => Task::SendAct(chunk.stage, chunk.micro_batch, to),
    };
    sent.map(|(gradient, chunk, to)| (to, task(gradient, chunk, to))).collect()
}

/// For each message of a channel the action in front of which it is received: the first that reads it or a later one.
pub fn receive_positions(channel: &[Message]) -> Vec<usize> {
    let mut first = usize::MAX;
    let mut positions: Vec<usize> = channel
        .iter()
        .rev()
        .map(|message| {
            first = first.min(message.reader);
            first
        })
        .collect();
    positions.reverse();
    positions
}

/// What an action makes for another chunk: (is a gradient, the chunk that made it, the rank that reads it).
fn outputs(layout: &Layout, action: Action) -> Vec<(bool, ChunkId, u32)> {
    let next = |stage: u32, chunk: ChunkId| layout.rank_of(ChunkId::new(stage, chunk.micro_batch));
    action
        .parts()
        .filter_map(|(phase, chunk)| match phase {
            Phase::F if chunk.stage + 1 < layout.stages => Some((false, chunk, next(chunk.stage + 1, chunk))),
            Phase::I if chunk.stage > 0 => Some((true, chunk, next(chunk.stage - 1, chunk))),
            _ => None,
        })
        .collect()
}
