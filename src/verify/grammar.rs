//! What a chunk program must contain: the ops that each unit of a stage calls for in each phase, in one table.

use crate::ir::{Component, Phase, Unit};

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
}

/// Nothing: no op of this component may be there.
const NONE: Ops = Ops { compute: (0, 0), exchange: (0, 0) };
/// One kernel op.
const ONE: Ops = Ops { compute: (1, 1), exchange: (0, 0) };
/// One kernel op; where weights are cut over tensor-parallel GPUs, also the exchanges that join their results.
const TP: Ops = Ops { compute: (1, 1), exchange: (0, EXCHANGES) };
/// Where weights are cut over tensor-parallel GPUs, exchanges alone.
const GATHER: Ops = Ops { compute: (0, 0), exchange: (0, EXCHANGES) };
/// One all-to-all, which does all there is: router and permutations are part of attention and MLP.
const A2A: Ops = Ops { compute: (0, 0), exchange: (1, 1) };
/// The same where each GPU has all experts.
const NO_A2A: Ops = Ops { compute: (0, 0), exchange: (0, 1) };
/// Far more exchanges than any way to cut an op's weights needs.
const EXCHANGES: u32 = 16;

/// A component of a unit: its ops in F, I and W.
pub type Row = (Component, Ops, Ops, Ops);

/// The embedding. Nothing before it wants a gradient, so all that its I can do is to gather one for W.
///                                                F    I       W
const EMBEDDING: &[Row] = &[(Component::Embedding, TP, GATHER, ONE)];
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

/// What a row allows in a phase, under numbers of tensor- and expert-parallel GPUs.
pub fn ops(row: &Row, phase: Phase, tensor_parallel: u32, expert_parallel: u32) -> Ops {
    let ops = match phase {
        Phase::F => row.1,
        Phase::I => row.2,
        Phase::W => row.3,
    };
    match ops {
        TP if tensor_parallel <= 1 => ONE,
        GATHER if tensor_parallel <= 1 => NONE,
        A2A if expert_parallel <= 1 => NO_A2A,
        ops => ops,
    }
}

/// Whether the component hands something from I to W in such a unit: it computes in both. All that a module can be does for
/// its attention and MLP.
pub fn hands_over(unit: Unit, component: Component) -> bool {
    rows(unit, true).iter().any(|row| row.0 == component && row.2.compute.1 > 0 && row.3.compute.1 > 0)
}
