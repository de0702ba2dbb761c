//! Rule `places`: rings, exchange buffer and every block that an item takes have a place: as many as there should be, each at a multiple
//! of the alignment and within the rank's arena.
//!
//! What has a place, from when to when, is handed to `aliasing`. Numbers come from files, so sums are in 128 bits.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use crate::ir::{ChunkId, Component};
use crate::plan::{ALIGNMENT, Plan, RingOf, Task};
use crate::units::Bytes;

use super::buffers::ring_name;
use super::report::{Report, Rule, Violation};

const RULE: Rule = Rule::Places;

/// Sizes of blocks, rounded up to whole units.
pub struct Sizes {
    /// Of each stage.
    held: Vec<[u128; 3]>,
    /// Workspaces of pairs.
    pairs: BTreeMap<(u32, u32), u128>,
}

impl Sizes {
    /// Of a well-formed plan.
    pub fn new(plan: &Plan) -> Self {
        let sum = |parts: &BTreeMap<Component, Bytes>| rounded(parts.values().map(|bytes| u128::from(bytes.0)).sum());
        let held =
            plan.stages.iter().map(|stage| [&stage.held.f_to_i, &stage.held.f_to_w, &stage.held.i_to_w].map(sum));
        let workspace = |program: u32| rounded(u128::from(plan.programs[program as usize].workspace.0));
        let pairs = plan.pairs.iter().map(|pair| ((pair.f, pair.b), workspace(pair.program)));
        Self { held: held.collect(), pairs: pairs.collect() }
    }

    /// What an item takes, in the order in which it lists the places; what has no bytes is left out.
    fn taken(&self, plan: &Plan, task: Task) -> Vec<(What, u128)> {
        let held = |kind: Kind, (stage, micro_batch): (u32, u32)| {
            (What::Held(kind, ChunkId::new(stage, micro_batch)), self.held[stage as usize][kind as usize])
        };
        let mut taken = match task {
            Task::F(s, m) => vec![held(Kind::FToI, (s, m)), held(Kind::FToW, (s, m))],
            Task::I(s, m) => vec![held(Kind::IToW, (s, m))],
            Task::B(s, _) => {
                let program = plan.stages[s as usize].b.and_then(|program| plan.programs.get(program as usize));
                vec![(What::Workspace, rounded(program.map_or(0, |program| u128::from(program.workspace.0))))]
            }
            Task::FB(f, b) => {
                let workspace = self.pairs.get(&(f.0, b.0)).copied().unwrap_or(0);
                vec![held(Kind::FToI, f), held(Kind::FToW, f), (What::Workspace, workspace)]
            }
            _ => vec![],
        };
        taken.retain(|&(_, bytes)| bytes > 0);
        taken
    }
}

/// Something that lies in an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Ring(RingOf),
    Exchange,
    Held(Kind, ChunkId),
    Workspace,
}

/// Parts of what a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    FToI,
    FToW,
    IToW,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(of) => f.write_str(&ring_name(*of)),
            Self::Exchange => f.write_str("the exchange buffer"),
            Self::Held(kind, chunk) => {
                let kind = match kind {
                    Kind::FToI => "f_to_i",
                    Kind::FToW => "f_to_w",
                    Kind::IToW => "i_to_w",
                };
                write!(f, "{kind} of chunk ({},{})", chunk.stage, chunk.micro_batch)
            }
            Self::Workspace => f.write_str("the workspace"),
        }
    }
}

/// Bytes of an arena that something has to itself.
#[derive(Clone, Debug)]
pub struct Block {
    pub what: What,
    pub bytes: Range<u128>,
    /// The item that takes it; `None` if it is always there.
    pub from: Option<usize>,
    /// The last item that it is for; `None` if there is none.
    pub to: Option<usize>,
}

/// Checks one rank, and gives what has a place: what is always there, then what items take, in their order.
pub fn check(plan: &Plan, sizes: &Sizes, number: u32, report: &mut Report) -> Vec<Block> {
    let rank = &plan.ranks[number as usize];
    let mut blocks = Vec::new();
    let mut standing = |what: What, at: Bytes, size: u128| {
        let bytes = u128::from(at.0)..u128::from(at.0) + size;
        if let Some(wrong) = misplaced(&bytes, rank.arena) {
            report.add(RULE, || Violation::rank(RULE, number, what.to_string(), wrong));
        }
        if size > 0 {
            blocks.push(Block { what, bytes, from: None, to: None });
        }
    };
    for ring in &rank.rings {
        standing(What::Ring(ring.of), ring.at, u128::from(ring.slots) * rounded(u128::from(ring.bytes.0)));
    }
    let stages = plan.layout.stages_of(number);
    let exchange = stages.iter().map(|&stage| plan.stages[stage as usize].exchange_buffer.0).max().unwrap_or(0);
    standing(What::Exchange, rank.exchange, rounded(u128::from(exchange)));

    // Blocks of chunks that some later item is for, by what they are: index into `blocks`.
    let mut open: BTreeMap<(Kind, ChunkId), usize> = BTreeMap::new();
    for (index, item) in rank.items.iter().enumerate() {
        let taken = sizes.taken(plan, item.0);
        if taken.len() != item.2.len() {
            report.add(RULE, || {
                let names: Vec<String> = taken.iter().map(|(what, _)| what.to_string()).collect();
                let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
                let message = format!("lists {} places, but takes {names}", item.2.len());
                Violation::item(RULE, plan, number, index, message)
            });
        }
        for (&(what, size), at) in taken.iter().zip(&item.2) {
            let bytes = u128::from(at.0)..u128::from(at.0) + size;
            if let Some(wrong) = misplaced(&bytes, rank.arena) {
                report.add(RULE, || Violation::item(RULE, plan, number, index, format!("takes {what}, which {wrong}")));
            }
            let to = match what {
                What::Held(kind, chunk) => {
                    open.insert((kind, chunk), blocks.len());
                    None
                }
                _ => Some(index),
            };
            blocks.push(Block { what, bytes, from: Some(index), to });
        }
        let mut ends = |kind: Kind, (stage, micro_batch): (u32, u32)| {
            if let Some(at) = open.remove(&(kind, ChunkId::new(stage, micro_batch))) {
                blocks[at].to = Some(index);
            }
        };
        match item.0 {
            Task::I(s, m) => ends(Kind::FToI, (s, m)),
            Task::W(s, m) => [Kind::FToW, Kind::IToW].into_iter().for_each(|kind| ends(kind, (s, m))),
            Task::B(s, m) | Task::FB(_, (s, m)) => {
                [Kind::FToI, Kind::FToW].into_iter().for_each(|kind| ends(kind, (s, m)));
            }
            _ => {}
        }
    }
    blocks
}

/// What is wrong with where something lies, if anything.
fn misplaced(bytes: &Range<u128>, arena: Bytes) -> Option<String> {
    if !bytes.start.is_multiple_of(u128::from(ALIGNMENT)) {
        return Some(format!("begins at byte {}, no multiple of {ALIGNMENT}", bytes.start));
    }
    let arena = arena.0;
    (bytes.end > u128::from(arena))
        .then(|| format!("lies at bytes {} to {}, but the arena has {arena}", bytes.start, bytes.end))
}

/// In whole units of the arena.
fn rounded(bytes: u128) -> u128 {
    bytes.next_multiple_of(u128::from(ALIGNMENT))
}
