//! What chunks hold, and what of a GPU's memory is left for them.

use std::collections::BTreeMap;

use crate::ir::{Component, Memory, StageMemory, Timetable};
use crate::job::Job;
use crate::passes::{Chunks, emit};
use crate::plan::PlanStage;
use crate::sim::memory::RankMemory;
use crate::units::Bytes;

/// What a rank needs beside the activations of its chunks, and what those are.
pub struct Room {
    stages: Vec<StageMemory>,
    /// Per rank. Parameters, gradients and optimizer state, the exchange buffer, and, as plans show it, messages and workspace.
    besides: Vec<Bytes>,
}

impl Room {
    /// As far as it is known before there is a plan.
    pub fn new(job: &Job, chunks: &Chunks) -> Self {
        let stages = emit::stages(job, &chunks.machine, &chunks.lowered, &chunks.split, &chunks.overlapped);
        let layout = &chunks.lowered.layout;
        let besides = |rank: u32| {
            let held: Vec<&PlanStage> = layout.stages_of(rank).iter().map(|stage| &stages[*stage as usize]).collect();
            let state: Bytes = held.iter().map(|stage| stage.parameters + stage.gradients + stage.optimizer).sum();
            state + held.iter().map(|stage| stage.exchange_buffer).max().unwrap_or_default()
        };
        Self { stages: stages.iter().map(held).collect(), besides: (0..layout.ranks).map(besides).collect() }
    }

    /// The memory of the pipeline problem, in bytes. `None` if a rank has no room for anything: then nothing fits.
    pub fn memory(&self, chunks: &Chunks) -> Option<Memory> {
        let left = |besides: &Bytes| chunks.machine.memory.0.checked_sub(besides.0).filter(|left| *left > 0);
        let limits = self.besides.iter().map(left).collect::<Option<Vec<u64>>>()?;
        Some(Memory { stages: self.stages.clone(), limits })
    }

    /// Takes into account what the plan of a timetable needs.
    pub fn correct(&mut self, timetable: &Timetable, memory: &[RankMemory]) {
        let held = Memory { stages: self.stages.clone(), limits: Vec::new() };
        for ((besides, actions), rank) in self.besides.iter_mut().zip(&timetable.ranks).zip(memory) {
            let chunks = Bytes(held.peak(actions));
            *besides = (*besides).max(rank.need.total().saturating_sub(chunks));
        }
    }
}

/// What a chunk holds. Where a backward leaves more for the weights than it frees, the chunk counts as holding that from the start.
fn held(stage: &PlanStage) -> StageMemory {
    let sum = |bytes: &BTreeMap<Component, Bytes>| bytes.values().copied().sum::<Bytes>();
    let (to_input, to_weights, left) = (sum(&stage.held.f_to_i), sum(&stage.held.f_to_w), sum(&stage.held.i_to_w));
    let for_weights = to_weights + left;
    StageMemory { activation: (to_input + to_weights).max(for_weights).0, for_weights: for_weights.0 }
}
