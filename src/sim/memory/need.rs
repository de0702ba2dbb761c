//! What a runtime must have on one GPU of a rank, and how well its arena is used.

use std::collections::BTreeMap;

use crate::ir::{Action, Component};
use crate::plan::{Plan, aligned};
use crate::units::Bytes;

/// What a runtime must have on one GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Weights, gradients and optimizer state of the stages that the rank holds, each stage once.
    pub state: Bytes,
    /// The arena: all that is not state.
    pub arena: Bytes,
    /// Most blocks of the arena that are there at one item: activations, and workspace of a full backward. Like the next two, in whole
    /// units of the arena.
    pub activations: Bytes,
    /// Rings of messages, and of what is handed on within the rank.
    pub messages: Bytes,
    /// The largest exchange buffer of the stages: exchanges run one after the other.
    pub exchange: Bytes,
}

impl Need {
    /// Of a rank of a plan. Where a plan frees what it never took, other checks have spoken.
    pub(super) fn new(plan: &Plan, rank: u32) -> Self {
        let mut stages = plan.layout.stages_of(rank);
        stages.sort_unstable();
        stages.dedup();
        let held = || stages.iter().filter_map(|&stage| plan.stages.get(stage as usize));
        let list = &plan.ranks[rank as usize];
        Self {
            state: held().map(|stage| stage.parameters + stage.gradients + stage.optimizer).sum(),
            arena: list.arena,
            activations: most_live(plan, rank),
            messages: list.rings.iter().map(|ring| aligned(ring.bytes) * u64::from(ring.slots)).sum(),
            exchange: held().map(|stage| aligned(stage.exchange_buffer)).max().unwrap_or_default(),
        }
    }

    /// All of it.
    pub fn total(self) -> Bytes {
        self.state + self.arena
    }

    /// What could not be done without, however well the arena were packed.
    pub fn least(self) -> Bytes {
        self.state + self.live()
    }

    /// The most of the arena that is in use at one item, all rings counted in full.
    pub fn live(self) -> Bytes {
        self.activations + self.messages + self.exchange
    }

    /// Share of the arena that is lost between blocks: never in use, not even when most is.
    pub fn fragmentation(self) -> f64 {
        match self.arena {
            Bytes::ZERO => 0.0,
            arena => arena.saturating_sub(self.live()).as_f64() / arena.as_f64(),
        }
    }
}

/// The most bytes of blocks that are there at one item of a rank.
fn most_live(plan: &Plan, rank: u32) -> Bytes {
    let sum = |parts: &BTreeMap<Component, Bytes>| aligned(parts.values().copied().sum());
    let sizes: Vec<[Bytes; 3]> = plan
        .stages
        .iter()
        .map(|stage| [sum(&stage.held.f_to_i), sum(&stage.held.f_to_w), sum(&stage.held.i_to_w)])
        .collect();
    let pairs: BTreeMap<(u32, u32), u32> = plan.pairs.iter().map(|pair| ((pair.f, pair.b), pair.program)).collect();
    let workspace = |program: Option<u32>| {
        let program = program.and_then(|program| plan.programs.get(program as usize));
        aligned(program.map(|program| program.workspace).unwrap_or_default())
    };
    let (mut live, mut most) = (Bytes::ZERO, Bytes::ZERO);
    for action in plan.ranks[rank as usize].items.iter().filter_map(|item| item.0.action()) {
        let held = |stage: u32| sizes.get(stage as usize).copied().unwrap_or_default();
        let stored = |stage: u32| held(stage)[0] + held(stage)[1];
        let (taken, freed, workspace) = match action {
            Action::F(c) => (stored(c.stage), Bytes::ZERO, Bytes::ZERO),
            Action::B(c) => {
                let program = plan.stages.get(c.stage as usize).and_then(|stage| stage.b);
                (Bytes::ZERO, stored(c.stage), workspace(program))
            }
            Action::I(c) => (held(c.stage)[2], held(c.stage)[0], Bytes::ZERO),
            Action::W(c) => (Bytes::ZERO, held(c.stage)[1] + held(c.stage)[2], Bytes::ZERO),
            Action::FB(f, b) => (stored(f.stage), stored(b.stage), workspace(pairs.get(&(f.stage, b.stage)).copied())),
        };
        live += taken;
        most = most.max(live + workspace);
        live = live.saturating_sub(freed);
    }
    most
}
