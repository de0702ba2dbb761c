//! A compute item that runs: its chunk program, op by op, on two streams.

use super::Run;
use crate::ir::{Action, Phase, Program, ProgramOp, Stream};

/// Where a program stands.
pub struct Running<'a> {
    /// What runs.
    pub action: Action,
    program: &'a Program,
    /// By stream, its ops in order, and how many have ended.
    streams: [(Vec<usize>, usize); 2],
    ended: Vec<bool>,
    /// The exchange that has sent, and waits for what it receives.
    posted: Option<usize>,
}

/// The next that can be done of a program, or what it waits for.
pub enum Next {
    /// Run this op; an exchange sends.
    Start(usize),
    /// This exchange has sent: it ends when everything has come.
    Receive(usize),
    /// This op waits for others of the program.
    Waits(usize),
}

impl<'a> Running<'a> {
    /// At its start.
    pub fn new(action: Action, program: &'a Program) -> Self {
        let of = |stream| (0..program.ops.len()).filter(|&op| program.ops[op].stream() == stream).collect();
        let streams = [(of(Stream::Compute), 0), (of(Stream::Comm), 0)];
        Self { action, program, streams, ended: vec![false; program.ops.len()], posted: None }
    }

    /// An op of the program.
    pub fn op(&self, op: usize) -> &'a ProgramOp {
        &self.program.ops[op]
    }

    /// The first op of each stream that has not ended.
    pub fn next(&self) -> impl Iterator<Item = Next> {
        self.streams.iter().filter_map(|(ops, done)| {
            let &op = ops.get(*done)?;
            let ready = self.program.ops[op].waits.iter().all(|&wait| self.ended.get(wait as usize) == Some(&true));
            Some(match (self.posted == Some(op), ready) {
                (true, _) => Next::Receive(op),
                (false, true) => Next::Start(op),
                (false, false) => Next::Waits(op),
            })
        })
    }

    /// Whether both streams have come to their end.
    pub fn is_done(&self) -> bool {
        self.streams.iter().all(|(ops, done)| *done == ops.len())
    }

    /// An exchange has sent.
    pub fn sent(&mut self, op: usize) {
        self.posted = Some(op);
    }

    /// The op has ended.
    pub fn end(&mut self, op: usize) {
        self.ended[op] = true;
        self.posted = self.posted.filter(|&posted| posted != op);
        for (ops, done) in &mut self.streams {
            if ops.get(*done) == Some(&op) {
                *done += 1;
            }
        }
    }

    /// Whether the op does the shared expert's work too.
    pub fn with_shared(&self, op: usize) -> bool {
        self.program.with_shared(op)
    }

    /// The chunk that an op belongs to.
    ///
    /// # Errors
    /// If the action has no such part.
    pub fn chunk_of(&self, op: usize) -> Run<crate::ir::ChunkId> {
        let wanted = self.program.ops[op].phase;
        let chunk = self.action.parts().find(|&(phase, _)| phase == wanted).map(|(_, chunk)| chunk);
        let name = match wanted {
            Phase::F => "a forward",
            Phase::I => "a backward for the input",
            Phase::W => "a weight gradient",
        };
        chunk.ok_or_else(|| format!("is of {name}, which the item is not"))
    }
}
