//! The data that passes exchange, from model layers to per-rank actions. No decisions are made here.
//!
//! In the order in which the passes make them:
//! [`Stage`] (lower) → [`Chunk`] of [`Op`]s (split) → [`Program`] (overlap) → [`Problem`] → [`Timetable`] (pipeline).

mod action;
mod chunk;
mod op;
mod placement;
mod problem;
mod program;
mod recompute;
mod stage;
mod timetable;

pub use action::{Action, ChunkId, Phase};
pub use chunk::{Chunk, Held};
pub use op::{Component, Kernel, Op, Rate, Step, Tokens, Work};
pub use placement::{Layout, Placement};
pub use problem::{BackwardWorkspace, Hops, Memory, PairCost, Problem, StageCost, StageMemory, Workspace};
pub use program::{Program, ProgramKind, ProgramOp, Stream};
pub use recompute::Recompute;
pub use stage::{Stage, Unit};
pub use timetable::Timetable;
