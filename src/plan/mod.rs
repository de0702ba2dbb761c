//! The emitted plan: everything that a verifier, a simulator or a runtime needs, and nothing that only the compiler does.
//!
//! A plan is a RON file. Chunk programs are stored once and referred to by number; each pipeline rank (with all its data-
//! and expert-parallel peers) has one list of items in launch order. See [`Plan`] for what an item means.

mod read;
mod stream;
mod write;

pub use stream::{StreamId, rank_streams};

use serde::{Deserialize, Serialize};

use crate::ir::{Action, ChunkId, Held, Layout, Program, Recompute, Unit, Work};
use crate::job::model::Model;
use crate::job::training::{balanced, is_balanced};
use crate::machine::Machine;
use crate::units::{Bytes, Nanos};

/// The version that this crate reads and writes.
pub const VERSION: u32 = 3;

/// What lies in a rank's arena begins at a multiple of so many bytes, and takes up whole multiples of it. That is what `cudaMalloc`
/// guarantees, so every vector load and copy engine is content with it.
pub const ALIGNMENT: u64 = 256;

/// The room that so many bytes take up in an arena.
pub fn aligned(bytes: Bytes) -> Bytes {
    Bytes(bytes.0.div_ceil(ALIGNMENT)) * ALIGNMENT
}

/// An execution plan.
///
/// # What it means
/// Every rank launches its [`Item`]s in list order. An item runs on a stream of its rank (see [`Task::stream`]); items of
/// one stream run one after the other, and an item starts only when the items that its `after` names have ended too.
/// A compute item runs its chunk program on the rank's compute and communication streams, and has ended when both have.
/// `Send` and `Recv` are rendezvous: the k-th send from one rank to another meets the k-th receive there, starts when
/// both have been reached, and ends on both sides at once. `ReduceGrads(s)` and `GatherParams(s)` are met by all ranks
/// that hold stage s in the same way. Gradients are clipped by the norm of all of them, so an `Update` also waits for the end of every
/// `ReduceGrads` on any rank.
///
/// # Memory
/// Beside the parameters, gradients and optimizer state of its stages each rank has one *arena* ([`PlanRank::arena`]). All that it
/// needs else has a place in there: an offset, a multiple of [`ALIGNMENT`], with room for its bytes rounded up to whole multiples. What
/// has no bytes has no place.
/// - Always there: the [`Ring`]s, and one exchange buffer, as large as the largest of the rank's stages, since exchanges run one after
///   the other. A ring has equal slots, slot k at `at` + k × its rounded size: the k-th message of a ring occupies slot k mod slots, from
///   its acquisition to its release (see [`RingOf`]).
/// - Blocks, which come and go with compute items; those of a rank run one after the other. F (or FB) takes one for all that its chunk
///   holds from F to I ([`Held::f_to_i`]) and one for what it holds from F to W, I one for what it leaves to W. A block is there from the
///   start of the item that takes it to the end of the last one that it is for. A full backward (B, FB) has a block of
///   [`Program::workspace`] while it runs, in place of `i_to_w`.
///
/// Each item lists the places of the blocks that it takes, in this order, blocks of no bytes left out: `f_to_i` and `f_to_w` of the
/// forward, `i_to_w`, workspace. Nothing that is there at the same time shares bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Of the form of the file: [`VERSION`] at the time of writing.
    pub version: u32,
    /// SHA-256 of the plan, in hex; see [`Plan::digest_now`]. It names a plan, and shows whether one was edited.
    pub digest: String,
    /// What it was compiled from.
    pub origin: Origin,
    /// What it trains.
    pub model: Model,
    /// What it was compiled for.
    pub machine: Machine,
    /// Ranks, stages, micro-batches and who holds what.
    pub layout: Layout,
    /// One per stage.
    pub stages: Vec<PlanStage>,
    /// Programs of overlapped pairs.
    pub pairs: Vec<Pair>,
    /// Chunk programs, each stored once.
    pub programs: Vec<Program>,
    /// What the compiler's own timing of the timetable gave.
    pub timetable: Certificate,
    /// One per rank.
    pub ranks: Vec<PlanRank>,
}

impl Plan {
    /// Whether some stages compute more again than others.
    pub fn recompute_differs(&self) -> bool {
        self.stages.windows(2).any(|pair| pair[0].recompute != pair[1].recompute)
    }

    /// The program (index into `programs`) that an action runs; `None` if the plan names none.
    pub fn program_of(&self, action: Action) -> Option<u32> {
        let stage = |chunk: ChunkId| self.stages.get(chunk.stage as usize);
        match action {
            Action::F(chunk) => stage(chunk)?.f,
            Action::B(chunk) => stage(chunk)?.b,
            Action::I(chunk) => stage(chunk)?.i,
            Action::W(chunk) => stage(chunk)?.w,
            Action::FB(f, b) => {
                self.pairs.iter().find(|pair| (pair.f, pair.b) == (f.stage, b.stage)).map(|pair| pair.program)
            }
        }
    }
}

/// What a plan was compiled from, the model apart: how it is spread, for people, and for the rates that `simulate` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Name and version of the compiler.
    pub compiler: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the schedule.
    pub schedule: String,
    /// GPUs that the plan occupies: pp × dp × tp.
    pub gpus: u64,
    /// Data-parallel replicas.
    pub dp: u32,
    /// Expert-parallel GPUs.
    pub ep: u32,
    /// Tensor-parallel GPUs.
    pub tp: u32,
    /// Sequences of a micro-batch.
    pub micro_batch_size: u32,
    /// Tokens of a sequence.
    pub sequence: u32,
    /// Tokens that one step trains on.
    pub tokens_per_step: u64,
    /// FLOPs that the model needs to train on one token: forward and backward, recomputation not counted.
    pub model_flops_per_token: u64,
    /// Tokens of the fullest GPU of an expert-parallel group over the mean, for which times and memory are predicted. What is computed does not depend
    /// on it.
    #[serde(default = "balanced", skip_serializing_if = "is_balanced")]
    pub imbalance: f64,
}

/// A stage as it stands on each of its ranks. Bytes are those of one GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PlanStage {
    /// Its part of the model.
    pub units: Vec<Unit>,
    /// What its layers compute again in the backward.
    #[serde(default, skip_serializing_if = "Recompute::is_nothing")]
    pub recompute: Recompute,
    /// Weights.
    pub parameters: Bytes,
    /// Gradient accumulators.
    pub gradients: Bytes,
    /// Master weights and moments, as sharded.
    pub optimizer: Bytes,
    /// Activation memory of one micro-batch.
    pub held: Held,
    /// Activation that comes from the stage before (and gradient that goes back): bytes of one micro-batch.
    pub input: Bytes,
    /// Activation that goes to the next stage (and gradient that comes back).
    pub output: Bytes,
    /// Largest exchange buffer of its programs.
    pub exchange_buffer: Bytes,
    /// Gradient reduction, over data-parallel replicas and the ranks that hold the stage.
    pub reduce: Work,
    /// Optimizer step.
    pub update: Work,
    /// Gathering of updated parameters, where the optimizer is sharded.
    pub gather: Work,
    /// Program (index into `programs`) of F; `None` if no rank runs it.
    pub f: Option<u32>,
    /// Program of B.
    pub b: Option<u32>,
    /// Program of I.
    pub i: Option<u32>,
    /// Program of W.
    pub w: Option<u32>,
}

/// The program of an overlapped pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Stage whose forward it runs.
    pub f: u32,
    /// Stage whose backward it runs.
    pub b: u32,
    /// Index into `programs`.
    pub program: u32,
}

/// What is proved of the timetable: actions at the durations of their programs, transfers at theirs, gradient
/// synchronisation and optimizer not counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// From the first action's start to the last one's end.
    pub makespan: Nanos,
    /// No timetable of the same programs over the same placement is shorter; of the schedule `auto`: none that holds no more
    /// activations than there was thought to be room for.
    pub lower_bound: Nanos,
}

/// What a rank does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PlanRank {
    /// Bytes of its arena.
    pub arena: Bytes,
    /// Where in the arena its exchange buffer lies; 0 if that has no bytes.
    pub exchange: Bytes,
    /// Its message buffers.
    pub rings: Vec<Ring>,
    /// In launch order.
    pub items: Vec<Item>,
}

/// Equal buffers that are used in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Ring {
    /// What it holds.
    pub of: RingOf,
    /// Buffers.
    pub slots: u32,
    /// Bytes of each.
    pub bytes: Bytes,
    /// Where in the arena the first one lies; the others follow. 0 if they have no bytes.
    pub at: Bytes,
}

/// What a ring holds, from its acquisition to its release. The k-th value is the k-th in the order of the items named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum RingOf {
    /// Messages from this rank: from `Recv` (the order) to the compute item that reads it.
    Inbox(u32),
    /// Messages to this rank: from the compute item that writes it to its `Send` (the order).
    Outbox(u32),
    /// Activations that stage s hands to stage s+1 on the same rank: from F of s (the order) to F of s+1.
    HandoffAct(u32),
    /// Gradients that stage s hands to stage s-1 on the same rank: from I of s (the order) to I of s-1.
    HandoffGrad(u32),
}

/// One entry of a rank's list: what to do; the earlier items (by index) whose end it waits for, by an event, where order
/// is not given by the streams themselves; and where in the arena the blocks lie that it takes (see [`Plan`]), left out of the file if
/// it takes none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Item(pub Task, pub Vec<u32>, #[serde(default, skip_serializing_if = "Vec::is_empty")] pub Vec<Bytes>);

/// What an item does. Numbers are (stage, micro-batch).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Task {
    /// Forward.
    F(u32, u32),
    /// Full backward.
    B(u32, u32),
    /// Backward for the input.
    I(u32, u32),
    /// Weight gradient.
    W(u32, u32),
    /// Forward of the first beside full backward of the second.
    FB((u32, u32), (u32, u32)),
    /// Send the activation that F of this chunk made, to a rank: (stage, micro-batch, rank).
    SendAct(u32, u32, u32),
    /// Receive the activation that F of this chunk (on another rank) made, from a rank.
    RecvAct(u32, u32, u32),
    /// Send the gradient that I of this chunk made, to a rank.
    SendGrad(u32, u32, u32),
    /// Receive the gradient that I of this chunk (on another rank) made, from a rank.
    RecvGrad(u32, u32, u32),
    /// Reduce the gradients of a stage over its replicas.
    ReduceGrads(u32),
    /// Optimizer step of a stage.
    Update(u32),
    /// Gather the updated parameters of a stage.
    GatherParams(u32),
}

impl Task {
    /// The timetable action of a compute item.
    pub fn action(self) -> Option<Action> {
        let chunk = ChunkId::new;
        Some(match self {
            Self::F(s, m) => Action::F(chunk(s, m)),
            Self::B(s, m) => Action::B(chunk(s, m)),
            Self::I(s, m) => Action::I(chunk(s, m)),
            Self::W(s, m) => Action::W(chunk(s, m)),
            Self::FB(f, b) => Action::FB(chunk(f.0, f.1), chunk(b.0, b.1)),
            _ => return None,
        })
    }
}

impl From<Action> for Task {
    fn from(action: Action) -> Self {
        match action {
            Action::F(c) => Self::F(c.stage, c.micro_batch),
            Action::B(c) => Self::B(c.stage, c.micro_batch),
            Action::I(c) => Self::I(c.stage, c.micro_batch),
            Action::W(c) => Self::W(c.stage, c.micro_batch),
            Action::FB(f, b) => Self::FB((f.stage, f.micro_batch), (b.stage, b.micro_batch)),
        }
    }
}

impl std::fmt::Display for Task {
    /// As messages name it: `F(3,7)`, `SendAct(3,7) to rank 4`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SendAct(s, m, to) => write!(f, "SendAct({s},{m}) to rank {to}"),
            Self::SendGrad(s, m, to) => write!(f, "SendGrad({s},{m}) to rank {to}"),
            Self::RecvAct(s, m, from) => write!(f, "RecvAct({s},{m}) from rank {from}"),
            Self::RecvGrad(s, m, from) => write!(f, "RecvGrad({s},{m}) from rank {from}"),
            Self::FB(a, b) => write!(f, "FB({},{};{},{})", a.0, a.1, b.0, b.1),
            Self::F(s, m) => write!(f, "F({s},{m})"),
            Self::B(s, m) => write!(f, "B({s},{m})"),
            Self::I(s, m) => write!(f, "I({s},{m})"),
            Self::W(s, m) => write!(f, "W({s},{m})"),
            Self::ReduceGrads(s) => write!(f, "ReduceGrads({s})"),
            Self::Update(s) => write!(f, "Update({s})"),
            Self::GatherParams(s) => write!(f, "GatherParams({s})"),
        }
    }
}
