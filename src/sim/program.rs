//! When the ops of a chunk program run, on a machine that does nothing else.

use super::Span;
use super::streams::{StreamOps, run_streams};
use crate::ir::{Program, ProgramOp, Stream};
use crate::machine::Machine;
use crate::units::Nanos;

/// A timed chunk program. At every moment of it an op runs: each starts when an op before it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramTiming {
    /// One per op, from the program's start.
    pub ops: Vec<Span>,
    /// When the last op ends.
    pub total: Nanos,
    /// Time in which a compute op runs.
    pub busy: Nanos,
    /// Time in which an exchange runs.
    pub communication: Nanos,
    /// Time in which only an exchange runs: `total` less `busy`.
    pub exposed: Nanos,
}

/// Times a program: each op starts when the op before it on its stream and all that it waits for have ended. Ops that run
/// beside each other slow each other, as [`Machine::duration_beside`] says.
///
/// A wait for an op that is not before the waiting one counts as nothing; [`super::simulate`] refuses such programs.
pub fn time_program(program: &Program, machine: &Machine) -> ProgramTiming {
    let alone = program.ops.iter().map(|op| machine.duration(&op.work, op.sms)).collect();
    let ops = run_streams(&Timed { ops: &program.ops, machine, alone });
    let total = ops.iter().map(|span| span.end).max().unwrap_or_default();
    let ran = |stream: Stream| {
        let spans = program.ops.iter().zip(&ops).filter(|(op, _)| op.stream() == stream);
        spans.map(|(_, span)| span.end - span.start).sum::<Nanos>()
    };
    let busy = ran(Stream::Compute);
    ProgramTiming { total, busy, communication: ran(Stream::Comm), exposed: total.saturating_sub(busy), ops }
}

/// A program's ops with their durations.
struct Timed<'a> {
    ops: &'a [ProgramOp],
    machine: &'a Machine,
    alone: Vec<Nanos>,
}

impl StreamOps for Timed<'_> {
    fn count(&self) -> usize {
        self.ops.len()
    }

    fn stream(&self, op: usize) -> Stream {
        self.ops[op].stream()
    }

    fn waits(&self, op: usize) -> &[u32] {
        &self.ops[op].waits
    }

    fn alone(&self, op: usize) -> Nanos {
        self.alone[op]
    }

    fn beside(&self, op: usize, other: usize) -> Nanos {
        let (op, other) = (&self.ops[op], &self.ops[other]);
        self.machine.duration_beside(&op.work, op.sms, &other.work, other.sms)
    }
}
