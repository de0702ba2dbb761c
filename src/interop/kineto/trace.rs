//! What of a trace is needed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A number for a name.
pub(super) type Name = u32;
/// A number for a thread of the CPU.
pub(super) type Thread = u32;

/// What was kept of a trace.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub names: Names,
    /// What ran on GPUs.
    pub ops: Vec<GpuOp>,
    /// Annotations, modules and nodes of autograd, on threads of the CPU.
    pub ranges: Vec<Range>,
    /// Annotations as the profiler found them on streams.
    pub gpu_ranges: Vec<GpuRange>,
    /// Calls that start GPU ops.
    pub launches: Vec<Launch>,
    /// Forward operators, and the backward ones that belong to them.
    pub flows: Vec<Flow>,
    /// By number.
    pub devices: BTreeMap<u32, Device>,
    /// Rank and number of ranks.
    pub rank: Option<(u64, u64)>,
    /// All, also those that were left.
    pub events: u64,
    /// Those that would have been kept but lack a time, a place or their other half.
    pub unusable: u64,
}

/// A kernel, copy or fill. Times are ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct GpuOp {
    pub start: i64,
    pub end: i64,
    pub device: u32,
    pub stream: u64,
    pub name: Name,
    /// What NCCL was asked for, where the profiler says it.
    pub collective: Option<Name>,
    /// Ties it to its launch.
    pub correlation: Option<u64>,
    /// Thread blocks of a kernel.
    pub blocks: Option<u64>,
}

/// What a range of time on a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeKind {
    /// A person's annotation, or a module.
    Named,
    /// A step of the profiler, with its number.
    Step(u64),
    /// A node of autograd.
    Node {
        /// It adds to a parameter's gradient.
        accumulates: bool,
    },
}

/// A range of time on a thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub thread: Thread,
    pub start: i64,
    pub end: i64,
    pub name: Name,
    pub kind: RangeKind,
}

/// A range of time on a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct GpuRange {
    pub device: u32,
    pub stream: u64,
    pub start: i64,
    pub end: i64,
    pub name: Name,
    /// The annotation's number, which is the same on every stream that it reaches.
    pub annotation: Option<u64>,
}

/// The start of a call that starts GPU ops.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    pub correlation: u64,
    pub thread: Thread,
    pub at: i64,
}

/// One end of an arrow from a forward operator to a backward one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub id: u64,
    pub thread: Thread,
    pub at: i64,
    /// The forward operator's end.
    pub forward: bool,
}

/// A GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub name: Option<String>,
    pub sms: Option<u64>,
}

/// Names, each kept once.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: HashMap<Arc<str>, Name>,
    texts: Vec<Arc<str>>,
}

impl Names {
    /// The number of a name, a new one if it was not there.
    pub fn number(&mut self, text: &str) -> Name {
        if let Some(&number) = self.numbers.get(text) {
            return number;
        }
        let (text, number) = (Arc::<str>::from(text), self.texts.len() as Name);
        self.texts.push(text.clone());
        self.numbers.insert(text, number);
        number
    }

    /// The text of a name.
    pub fn text(&self, name: Name) -> &str {
        &self.texts[name as usize]
    }

    /// How many there are; names are numbered from 0.
    pub fn count(&self) -> usize {
        self.texts.len()
    }
}
