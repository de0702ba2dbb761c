//! The colours of what runs and of what memory is used for, the same in every figure. Runs have Okabe and Ito's, memory has Tol's muted ones:
//! both are told apart by the colour-blind. An overlapped pair is drawn as what it is: its forward above its backward.

use crate::ir::{Component, Phase, ProgramKind, ProgramOp, Stream};
use crate::plan::Task;

/// What is drawn alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// Forward.
    F,
    /// Full backward.
    B,
    /// Backward for the input.
    I,
    /// Weight gradient.
    W,
    /// Forward beside a full backward.
    FB,
    /// All-to-all to the experts.
    Dispatch,
    /// All-to-all from the experts.
    Combine,
    /// To another rank.
    Send,
    /// From another rank.
    Receive,
    /// Reduction of gradients, gathering of parameters.
    Reduce,
    /// Optimizer step.
    Optimizer,
}

impl Category {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 11] = [
        Self::F,
        Self::B,
        Self::I,
        Self::W,
        Self::FB,
        Self::Dispatch,
        Self::Combine,
        Self::Send,
        Self::Receive,
        Self::Reduce,
        Self::Optimizer,
    ];

    /// Of an item.
    pub fn of(task: Task) -> Self {
        match task {
            Task::F(..) => Self::F,
            Task::B(..) => Self::B,
            Task::I(..) => Self::I,
            Task::W(..) => Self::W,
            Task::FB(..) => Self::FB,
            Task::SendAct(..) | Task::SendGrad(..) => Self::Send,
            Task::RecvAct(..) | Task::RecvGrad(..) => Self::Receive,
            Task::ReduceGrads(_) | Task::GatherParams(_) => Self::Reduce,
            Task::Update(_) => Self::Optimizer,
        }
    }

    /// Of an op of a program.
    pub fn of_op(op: &ProgramOp) -> Self {
        match (op.stream(), op.component, op.phase) {
            (Stream::Comm, Component::Combine, _) => Self::Combine,
            (Stream::Comm, ..) => Self::Dispatch,
            (Stream::Compute, _, Phase::F) => Self::F,
            (Stream::Compute, _, Phase::I) => Self::I,
            (Stream::Compute, _, Phase::W) => Self::W,
        }
    }

    /// Of a program.
    pub fn of_program(kind: ProgramKind) -> Self {
        match kind {
            ProgramKind::F => Self::F,
            ProgramKind::B => Self::B,
            ProgramKind::I => Self::I,
            ProgramKind::W => Self::W,
            ProgramKind::FB => Self::FB,
        }
    }

    /// Its line in a legend.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::F => "F forward",
            Self::B => "B full backward",
            Self::I => "I input gradient",
            Self::W => "W weight gradient",
            Self::FB => "FB forward beside backward",
            Self::Dispatch => "dispatch",
            Self::Combine => "combine",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Reduce => "gradients, parameters",
            Self::Optimizer => "optimizer",
        }
    }

    /// Its colour on white, and on black. A pair has that of its forward; its backward has [`Category::B`]'s.
    pub fn colours(self) -> [&'static str; 2] {
        match self {
            Self::F | Self::FB => ["#0072b2", "#4a9fd8"],
            Self::B => ["#d55e00", "#e8743b"],
            Self::I => ["#e69f00", "#f0b541"],
            Self::W => ["#009e73", "#2fb98f"],
            Self::Dispatch => ["#56b4e9", "#8ccbf0"],
            Self::Combine => ["#cc79a7", "#dc9bc0"],
            Self::Send => ["#8a919c", "#7f8793"],
            Self::Receive => ["#565d68", "#b4bbc6"],
            Self::Reduce => ["#cdbd1f", "#ece36a"],
            Self::Optimizer => ["#1d1f23", "#f2f2f0"],
        }
    }
}

/// Colours of [`crate::sim::memory::MemoryKind::ALL`], on white and on black: state in greys, activations and what else comes and goes in hues.
pub const MEMORY: [[&str; 2]; 14] = [
    ["#5b6472", "#8b94a1"],
    ["#8b94a1", "#6b7480"],
    ["#b9c0c9", "#4c535d"],
    ["#332288", "#8478d6"],
    ["#44aa99", "#5cc2b1"],
    ["#88ccee", "#88ccee"],
    ["#117733", "#3f9d60"],
    ["#aa4499", "#c86bb8"],
    ["#882255", "#c2608f"],
    ["#cc6677", "#dc8492"],
    ["#ddcc77", "#ddcc77"],
    ["#999933", "#b3b34f"],
    ["#ee8866", "#ee9a7c"],
    ["#d6dae0", "#343a42"],
];
