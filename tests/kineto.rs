//! Traces of PyTorch's profiler: sums that are known, found again. The traces in `tests/data/kineto` were written by PyTorch on a GPU;
//! what they must give is PyTorch's own sums, and a second way to find what a kernel belongs to.

#[path = "kineto/made.rs"]
mod made;
#[path = "kineto/published.rs"]
mod published;
#[path = "kineto/recorded.rs"]
mod recorded;
#[path = "kineto/refused.rs"]
mod refused;
#[path = "kineto/writer.rs"]
mod writer;

use dualweave::Result;
use dualweave::interop::kineto::{self, Breakdown, Part, Phase, Row, Rules, Selection};

/// Reads a trace with the rules that come along.
fn breakdown(text: &[u8]) -> Result<Breakdown> {
    kineto::read("trace.json", text, &Rules::default(), Selection::default())
}

/// The row of a component, which must be there once.
fn row(breakdown: &Breakdown, part: Part, phase: Option<Phase>) -> &Row {
    let mut rows = breakdown.rows.iter().filter(|row| row.part == part && row.phase == phase);
    match (rows.next(), rows.next()) {
        (Some(row), None) => row,
        other => panic!("{part:?} {phase:?}: {other:?} in {:?}", breakdown.rows),
    }
}
