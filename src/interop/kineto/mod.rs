//! Traces of PyTorch's profiler (Kineto's Chrome traces): where a GPU's time went, by the components of a layer.
//!
//! `reader` goes through a file of any size once and keeps what is needed (`trace`); `rules` say what names stand for; `attribute` finds for each
//! GPU op what it belongs to; `breakdown` adds up; `components` makes the table that `dualweave overlap` reads.
//!
//! Times are what was measured: a kernel that waits for another GPU counts as running.

mod attribute;
mod breakdown;
mod components;
mod ranges;
mod raw;
mod reader;
mod rules;
mod stream;
mod trace;

pub use breakdown::{Breakdown, Row, Selection, StreamRow};
pub use components::components;
pub use rules::{Part, Phase, Rules};

use std::io::Read;

use crate::error::Result;

/// Reads a trace, packed by gzip or not, and says how the time of a GPU was spent. `name` is the file's, for messages.
///
/// # Errors
/// If the file is no trace from end to end, or has nothing of what is selected.
pub fn read(name: &str, file: impl Read, rules: &Rules, selection: Selection) -> Result<Breakdown> {
    let trace = trace::Trace::read(name, file)?;
    let owners = attribute::owners(&trace, rules);
    Breakdown::new(name, &trace, &owners, selection)
}
