//! When the ops of a chunk program run, on a machine that does nothing else.

use super::Span;
use crate::ir::{Program, Stream};
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

/// Times a program: each op starts when the op before it on its stream and all that it waits for have ended.
///
/// A wait for an op that is not before the waiting one counts as nothing; [`super::simulate`] refuses such programs.
pub fn time_program(program: &Program, machine: &Machine) -> ProgramTiming {
    let mut ops: Vec<Span> = Vec::with_capacity(program.ops.len());
    let (mut compute_end, mut comm_end) = (Nanos::ZERO, Nanos::ZERO);
    let (mut busy, mut communication) = (Nanos::ZERO, Nanos::ZERO);
    for op in &program.ops {
        let duration = machine.duration(&op.work, op.sms);
        let (stream_end, ran) = match op.stream() {
            Stream::Compute => (&mut compute_end, &mut busy),
            Stream::Comm => (&mut comm_end, &mut communication),
        };
        let waited = op.waits.iter().filter_map(|&wait| ops.get(wait as usize)).map(|span| span.end).max();
        let start = waited.unwrap_or_default().max(*stream_end);
        let end = start + duration;
        *stream_end = end;
        *ran += duration;
        ops.push(Span { start, end });
    }
    let total = compute_end.max(comm_end);
    ProgramTiming { ops, total, busy, communication, exposed: total.saturating_sub(busy) }
}
