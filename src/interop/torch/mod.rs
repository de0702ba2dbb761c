//! Schedules as PyTorch's `torch.distributed.pipelining` keeps them in CSV files: a row for each rank, a cell for each action, an empty
//! cell where a rank waits.
//!
//! There are two forms. The *compute-only* one has forwards and backwards alone; PyTorch adds the communication when it loads it. The one
//! *with communication* has sends and receives too, and what FSDP does with a stage's parameters; PyTorch runs it as it is.
//!
//! `read` is strict, unlike PyTorch's loader; `check` proves that a schedule is whole and ends, and times it; `comms` adds communication.

mod check;
mod comms;
mod convert;
mod read;

pub use check::{Fault, Owners, Site, Times, check, time};
pub use comms::with_communication;
pub use convert::{of_timetable, timetable};
pub use read::{File, read};

use std::fmt;

use crate::ir::{ChunkId, Phase};

/// What is computed for a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compute {
    /// Forward.
    F,
    /// Full backward.
    B,
    /// Backward for the input.
    I,
    /// Weight gradient.
    W,
}

/// A computation of one chunk: `3F7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work {
    /// Which.
    pub compute: Compute,
    /// Of stage and micro-batch.
    pub chunk: ChunkId,
}

impl Work {
    /// The phases that it completes.
    pub fn phases(self) -> &'static [Phase] {
        match self.compute {
            Compute::F => &[Phase::F],
            Compute::B => &[Phase::I, Phase::W],
            Compute::I => &[Phase::I],
            Compute::W => &[Phase::W],
        }
    }
}

/// What goes from a stage to a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Message {
    /// A gradient, to the stage before; or else an activation, to the one behind.
    pub gradient: bool,
    /// The chunk that made it.
    pub from: ChunkId,
}

impl Message {
    /// The chunk that reads it. `from.stage` is not 0 for a gradient.
    pub fn to(self) -> ChunkId {
        let stage = if self.gradient { self.from.stage - 1 } else { self.from.stage + 1 };
        ChunkId { stage, ..self.from }
    }
}

/// What a rank does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// A computation.
    Work(Work),
    /// A forward, and a backward of another chunk, interleaved: `(0F3;7B1)OVERLAP_F_B`.
    Pair(Work, Work),
    /// Sends: `0SEND_F3`. Named for the chunk that made it.
    Send(Message),
    /// Receives: `1RECV_F3`. Named for the chunk that reads it.
    Receive(Message),
    /// Gathers a stage's sharded parameters.
    Unshard(u32),
    /// Gives them back.
    Reshard(u32),
    /// Reduces, and scales, a stage's gradients.
    ReduceGrad(u32),
}

impl Cell {
    /// What it computes.
    pub fn works(&self) -> impl Iterator<Item = Work> + use<> {
        let (first, second) = match *self {
            Self::Work(work) => (Some(work), None),
            Self::Pair(forward, backward) => (Some(forward), Some(backward)),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// Whether only the form with communication has it.
    pub fn is_communication(&self) -> bool {
        !matches!(self, Self::Work(_) | Self::Pair(..))
    }

    /// The stages that the rank must have for it.
    fn stages(&self) -> impl Iterator<Item = u32> + use<> {
        let own = match *self {
            Self::Work(_) | Self::Pair(..) => None,
            Self::Send(message) => Some(message.from.stage),
            Self::Receive(message) => Some(message.to().stage),
            Self::Unshard(stage) | Self::Reshard(stage) | Self::ReduceGrad(stage) => Some(stage),
        };
        self.works().map(|work| work.chunk.stage).chain(own)
    }
}

/// A schedule: by rank, its cells in order; `None` where it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// By rank.
    pub rows: Vec<Vec<Option<Cell>>>,
}

impl Schedule {
    /// Whether it is of the form with communication.
    pub fn communicates(&self) -> bool {
        self.rows.iter().flatten().flatten().any(Cell::is_communication)
    }

    /// Only what is computed, and where ranks wait.
    pub fn compute_only(&self) -> Self {
        let row = |row: &Vec<Option<Cell>>| {
            row.iter().copied().filter(|cell| cell.is_none_or(|cell| !cell.is_communication())).collect()
        };
        Self { rows: self.rows.iter().map(row).collect() }
    }

    /// How many cells are not empty.
    pub fn actions(&self) -> usize {
        self.rows.iter().flatten().flatten().count()
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F => "F",
            Self::B => "B",
            Self::I => "I",
            Self::W => "W",
        })
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.chunk.stage, self.compute, self.chunk.micro_batch)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |message: &Message| if message.gradient { 'B' } else { 'F' };
        match self {
            Self::Work(work) => write!(f, "{work}"),
            Self::Pair(forward, backward) => write!(f, "({forward};{backward})OVERLAP_F_B"),
            Self::Send(message) => {
                write!(f, "{}SEND_{}{}", message.from.stage, letter(message), message.from.micro_batch)
            }
            Self::Receive(message) => {
                write!(f, "{}RECV_{}{}", message.to().stage, letter(message), message.from.micro_batch)
            }
            Self::Unshard(stage) => write!(f, "{stage}UNSHARD"),
            Self::Reshard(stage) => write!(f, "{stage}RESHARD"),
            Self::ReduceGrad(stage) => write!(f, "{stage}REDUCE_GRAD"),
        }
    }
}

/// As the file has it.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().map(|cell| cell.map_or_else(String::new, |cell| cell.to_string())).collect();
            writeln!(f, "{}", cells.join(","))?;
        }
        Ok(())
    }
}
