//! What every rank holds in the simulated step, and when it holds most.
//!
//! Two numbers for each rank. The *peak* is the largest sum of what is live at one moment of the simulation. The *need*
//! is what a runtime must have: parameters, gradients and optimizer state, and the rank's arena. It does not depend on times; a plan
//! fits if the need of every rank does.

mod loads;
mod need;

use std::collections::BTreeMap;

use super::Simulation;
use crate::ir::{ChunkId, Component};
use crate::plan::Plan;
use crate::units::{Bytes, Nanos};
pub use loads::{Breakdown, Load};
use loads::{Of, loads};
pub use need::Need;

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryKind {
    /// Weights.
    Parameters,
    /// Gradient accumulators.
    Gradients,
    /// Master weights and moments.
    Optimizer,
    /// Activations that the backward of a component reads.
    Activations(Component),
    /// What a running full backward hands from I to W.
    Workspace,
    /// Received from another rank and not yet read.
    Inbox,
    /// Made for another rank and not yet sent.
    Outbox,
    /// Made for the next stage on the same rank and not yet read.
    Handoff,
    /// Buffers of the all-to-alls.
    Exchange,
}

impl MemoryKind {
    /// All kinds, in the order of their declaration.
    pub const ALL: [Self; 14] = [
        Self::Parameters,
        Self::Gradients,
        Self::Optimizer,
        Self::Activations(Component::Embedding),
        Self::Activations(Component::Attention),
        Self::Activations(Component::Dispatch),
        Self::Activations(Component::Mlp),
        Self::Activations(Component::Combine),
        Self::Activations(Component::Head),
        Self::Workspace,
        Self::Inbox,
        Self::Outbox,
        Self::Handoff,
        Self::Exchange,
    ];
}

impl std::fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Parameters => "parameters",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer state",
            Self::Activations(Component::Embedding) => "activations, embedding",
            Self::Activations(Component::Attention) => "activations, attention",
            Self::Activations(Component::Dispatch) => "activations, dispatch",
            Self::Activations(Component::Mlp) => "activations, MLP",
            Self::Activations(Component::Combine) => "activations, combine",
            Self::Activations(Component::Head) => "activations, head",
            Self::Workspace => "workspace of backward",
            Self::Inbox => "messages received",
            Self::Outbox => "messages to send",
            Self::Handoff => "handed to the next stage",
            Self::Exchange => "all-to-all buffers",
        })
    }
}

/// Memory of one GPU of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankMemory {
    /// Largest sum of what is live at one moment.
    pub peak: Bytes,
    /// The first such moment.
    pub at: Nanos,
    /// The item (index) that starts then and brings it about; `None` if the rank holds nothing that comes and goes.
    pub item: Option<u32>,
    /// What `peak` consists of, largest first; kinds of which there is nothing are left out.
    pub kinds: Vec<(MemoryKind, Bytes)>,
    /// Chunks whose activations are held then.
    pub chunks: u32,
    /// Activations of the chunk among them that holds most.
    pub largest_chunk: Bytes,
    /// What a runtime must have.
    pub need: Need,
}

impl RankMemory {
    /// Activations that are held at the peak, workspace not counted.
    pub fn activations(&self) -> Bytes {
        let activations = self.kinds.iter().filter(|(kind, _)| matches!(kind, MemoryKind::Activations(_)));
        activations.map(|&(_, bytes)| bytes).sum()
    }

    /// Chunks whose activations fit beside everything else that is live at the peak, if each holds as much as the largest
    /// does. `None` if no chunk holds anything.
    pub fn chunks_that_fit(&self, memory: Bytes) -> Option<u64> {
        let others = self.peak.saturating_sub(self.activations());
        memory.saturating_sub(others).0.checked_div(self.largest_chunk.0)
    }
}

/// What one GPU of a rank holds in the course of the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// What is there all the time.
    pub fixed: Breakdown,
    /// What comes and goes. At one moment, what ends goes before what starts.
    pub loads: Vec<Load>,
    /// What loads consist of.
    pub breakdowns: Vec<Breakdown>,
}

/// The course of a rank's memory. `simulation` must be the plan's; the rank must be there.
pub fn course(plan: &Plan, simulation: &Simulation, rank: u32) -> Course {
    let mut stages = plan.layout.stages_of(rank);
    stages.sort_unstable();
    stages.dedup();
    let held = || stages.iter().filter_map(|&stage| plan.stages.get(stage as usize));
    let fixed = vec![
        (MemoryKind::Parameters, held().map(|stage| stage.parameters).sum()),
        (MemoryKind::Gradients, held().map(|stage| stage.gradients).sum()),
        (MemoryKind::Optimizer, held().map(|stage| stage.optimizer).sum()),
        (MemoryKind::Exchange, held().map(|stage| stage.exchange_buffer).max().unwrap_or_default()),
    ];
    let at = rank as usize;
    let (loads, breakdowns) = loads(plan, &plan.ranks[at], &simulation.ranks[at], simulation.step);
    Course { fixed, loads, breakdowns }
}

/// Memory of every rank. `simulation` must be the plan's.
pub fn memory(plan: &Plan, simulation: &Simulation) -> Vec<RankMemory> {
    (0..plan.ranks.len() as u32).map(|rank| rank_memory(plan, simulation, rank)).collect()
}

fn rank_memory(plan: &Plan, simulation: &Simulation, rank: u32) -> RankMemory {
    let Course { fixed, loads, breakdowns } = course(plan, simulation, rank);
    let totals: Vec<u128> =
        breakdowns.iter().map(|kinds| kinds.iter().map(|&(_, bytes)| u128::from(bytes.0)).sum()).collect();

    // At one moment, what ends goes before what starts. A load of no duration is never there.
    let mut events: Vec<(Nanos, bool, usize)> = Vec::with_capacity(2 * loads.len());
    for (number, load) in loads.iter().enumerate().filter(|(_, load)| load.from < load.to && totals[load.breakdown] > 0)
    {
        events.push((load.from, true, number));
        events.push((load.to, false, number));
    }
    events.sort_unstable();
    let (mut live, mut most, mut peak_event) = (0, 0, None);
    for (index, &(_, starts, number)) in events.iter().enumerate() {
        let load = &loads[number];
        live = if starts { live + totals[load.breakdown] } else { live - totals[load.breakdown] };
        if live > most {
            (most, peak_event) = (live, Some(index));
        }
    }

    // What is live after that event.
    let mut kinds: BTreeMap<MemoryKind, Bytes> = fixed.iter().copied().collect();
    let mut chunks: BTreeMap<ChunkId, Bytes> = BTreeMap::new();
    let peak_load = peak_event.map(|index| &loads[events[index].2]);
    let at = peak_load.map(|load| load.from).unwrap_or_default();
    let mut there = vec![false; loads.len()];
    for &(_, starts, number) in peak_event.iter().flat_map(|&index| &events[..=index]) {
        there[number] = starts;
    }
    for load in there.iter().zip(&loads).filter_map(|(there, load)| there.then_some(load)) {
        for &(kind, bytes) in &breakdowns[load.breakdown] {
            *kinds.entry(kind).or_default() += bytes;
            if let Of::Chunk(chunk) = load.of {
                *chunks.entry(chunk).or_default() += bytes;
            }
        }
    }
    let mut kinds: Breakdown = kinds.into_iter().filter(|&(_, bytes)| bytes > Bytes::ZERO).collect();
    kinds.sort_by_key(|&(kind, bytes)| (std::cmp::Reverse(bytes), kind));
    RankMemory {
        peak: kinds.iter().map(|&(_, bytes)| bytes).sum(),
        at,
        item: peak_load.map(|load| load.item),
        kinds,
        chunks: chunks.len() as u32,
        largest_chunk: chunks.values().copied().max().unwrap_or_default(),
        need: Need::new(plan, rank),
    }
}
