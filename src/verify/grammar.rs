//! What a chunk program must contain: the ops that each unit of a stage calls for in each phase, in one table.

use crate::ir::{Component, Phase, ProgramOp, Step, Unit};
use crate::plan::Origin;

/// Ops that a component may have in one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ops {
    /// Fewest and most kernel ops.
    pub compute: (u32, u32),
    /// Fewest and most exchange ops.
    pub exchange: (u32, u32),
}

impl Ops {
    /// Whether no op may be there.
    pub fn is_none(self) -> bool {
        self == NONE
    }

    /// Nothing: no op of the component may be there.
    pub const NONE: Self = Self { compute: (0, 0), exchange: (0, 0) };
}

/// See [`Ops::NONE`].
const NONE: Ops = Ops::NONE;
/// One kernel op.
const ONE: Ops = Ops { compute: (1, 1), exchange: (0, 0) };
/// One kernel op; where weights are cut over tensor-parallel GPUs, also the exchanges that join their results.
const TP: Ops = Ops { compute: (1, 1), exchange: (0, EXCHANGES) };
/// No kernel; where weights are cut over tensor-parallel GPUs, the exchange that brings each what it must see.
const JOIN: Ops = Ops { compute: (0, 0), exchange: (0, EXCHANGES) };
/// One all-to-all, which does all there is: router and permutations are part of attention and MLP.
const A2A: Ops = Ops { compute: (0, 0), exchange: (1, 1) };
/// Far more exchanges than any way to cut an op's weights needs.
const EXCHANGES: u32 = 16;

/// A component of a unit: its ops in F, I and W.
pub type Row = (Component, Ops, Ops, Ops);

/// The embedding. Nothing before it wants a gradient, so I computes nothing.
///                                                F    I     W
const EMBEDDING: &[Row] = &[(Component::Embedding, TP, JOIN, ONE)];
/// A layer with a dense MLP.
const DENSE: &[Row] = &[(Component::Attention, TP, TP, ONE), (Component::Mlp, TP, TP, ONE)];
/// A layer with experts.
const EXPERTS: &[Row] = &[
    (Component::Attention, TP, TP, ONE),
    (Component::Dispatch, A2A, A2A, NONE),
    (Component::Mlp, ONE, ONE, ONE),
    (Component::Combine, A2A, A2A, NONE),
];
/// Final norm, output head and loss.
const HEAD: &[Row] = &[(Component::Head, TP, TP, ONE)];

/// The components of a unit, in the order in which a forward passes through them. An MTP module is a layer with a
/// projection in front (counted with its attention), with experts or without.
pub fn rows(unit: Unit, modules_have_experts: bool) -> &'static [Row] {
    match unit {
        Unit::Embedding => EMBEDDING,
        Unit::Dense(_) => DENSE,
        Unit::Moe(_) => EXPERTS,
        Unit::Mtp(_) if modules_have_experts => EXPERTS,
        Unit::Mtp(_) => DENSE,
        Unit::Head => HEAD,
    }
}

/// What a row allows in a phase. Over one tensor-parallel GPU there is nothing to join, over one expert-parallel GPU nothing
/// to send.
pub fn ops(row: &Row, phase: Phase, origin: &Origin) -> Ops {
    let ops = match phase {
        Phase::F => row.1,
        Phase::I => row.2,
        Phase::W => row.3,
    };
    match ops {
        TP if origin.tp <= 1 => ONE,
        JOIN if origin.tp <= 1 => NONE,
        A2A if origin.ep <= 1 => NONE,
        _ => ops,
    }
}

/// What a row's backward must repeat of its forward where whole layers are computed again; nothing outside of layers. No gradient reads
/// what combine brings back.
pub fn again(row: &Row, origin: &Origin) -> Ops {
    match row.0 {
        Component::Attention | Component::Dispatch | Component::Mlp => ops(row, Phase::F, origin),
        Component::Embedding | Component::Combine | Component::Head => NONE,
    }
}

/// Whether the component hands something from I to W in such a unit: both compute. All that a module can be does so in its
/// attention and MLP.
pub fn hands_over(unit: Unit, component: Component) -> bool {
    rows(unit, true).iter().any(|row| row.0 == component && row.2.compute.1 > 0 && row.3.compute.1 > 0)
}

/// Whether an op that is there for its step may be there at all. The main steps of all components may; only kernels do the
/// others: a shared expert is of a layer with experts, something is computed again for I alone, and what is quantised or
/// packed goes into an all-to-all. Exchanges are repeated only where whole layers are computed again: `again` is what must be.
pub fn step_belongs(op: &ProgramOp, of: Unit, again: Ops) -> bool {
    let kernel = !op.work.is_exchange();
    let exchange = matches!(op.component, Component::Dispatch | Component::Combine);
    match op.step {
        Step::Main => true,
        Step::Shared => kernel && op.component == Component::Mlp && matches!(of, Unit::Moe(_) | Unit::Mtp(_)),
        Step::Again if !again.is_none() => true,
        Step::Again => kernel && op.phase == Phase::I && matches!(op.component, Component::Attention | Component::Mlp),
        Step::Quantise | Step::Pack => kernel && exchange && op.phase != Phase::W,
    }
}
