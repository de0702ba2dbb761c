//! What chunks hold, and what of a GPU's memory is left for them.

use std::collections::BTreeMap;

use crate::ir::{BackwardWorkspace, Component, Held, Memory, StageMemory, Timetable, Workspace};
use crate::job::Job;
use crate::passes::overlap::StagePrograms;
use crate::passes::{Chunks, emit};
use crate::plan::PlanStage;
use crate::sim::memory::RankMemory;
use crate::units::Bytes;

/// What a rank needs beside its chunks and what runs, and what those need.
pub struct Room {
    stages: Vec<StageMemory>,
    workspace: Workspace,
    /// Per rank. Parameters, gradients and optimizer state, the exchange buffer, and, as plans show it, messages and what is lost between
    /// blocks.
    besides: Vec<Bytes>,
    /// How many plans have shown what they need.
    corrections: u32,
}

/// After so many corrections what a plan needs beside its chunks is known but for small differences. The second often corrects much: a
/// timetable for less memory can have other messages waiting.
const SETTLED: u32 = 2;

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
        Self {
            stages: stages.iter().map(|stage| held(&stage.held)).collect(),
            workspace: workspace(chunks, stages.iter().map(|stage| &stage.held)),
            besides: (0..layout.ranks).map(besides).collect(),
            corrections: 0,
        }
    }

    /// The memory of the pipeline problem, in bytes. `None` if a rank has no room for anything: then nothing fits.
    pub fn memory(&self, chunks: &Chunks) -> Option<Memory> {
        let left = |besides: &Bytes| chunks.machine.memory.0.checked_sub(besides.0).filter(|left| *left > 0);
        let limits = self.besides.iter().map(left).collect::<Option<Vec<u64>>>()?;
        Some(Memory { stages: self.stages.clone(), workspace: self.workspace.clone(), limits })
    }

    /// Takes into account what the plan of a timetable needs, which differs a little from one timetable to the next. So a rank that has
    /// too little of the GPU's `memory` although it was corrected more than once gets as much less for its chunks, once more.
    pub fn correct(&mut self, timetable: &Timetable, needed: &[RankMemory], memory: Bytes) {
        let held = Memory { stages: self.stages.clone(), workspace: self.workspace.clone(), limits: Vec::new() };
        for ((besides, actions), rank) in self.besides.iter_mut().zip(&timetable.ranks).zip(needed) {
            let need = rank.need.total();
            let chunks = Bytes(held.peak(actions));
            *besides = (*besides).max(need.saturating_sub(chunks));
            if self.corrections >= SETTLED {
                *besides += need.saturating_sub(memory);
            }
        }
        self.corrections += 1;
    }
}

/// What backwards of these stages need while they run. An I takes what it leaves before it frees anything; what a whole backward hands
/// from I to W is the workspace of its program.
pub fn workspace<'a>(chunks: &Chunks, held: impl Iterator<Item = &'a Held>) -> Workspace {
    let of = |program: u32| chunks.overlapped.programs[program as usize].workspace.0;
    let stage = |(held, programs): (&Held, &StagePrograms)| BackwardWorkspace {
        input: sum(&held.f_to_i).min(sum(&held.i_to_w)).0,
        whole: of(programs.b),
    };
    Workspace {
        stages: held.zip(&chunks.overlapped.stages).map(stage).collect(),
        pairs: chunks.overlapped.pairs.iter().map(|(&pair, &program)| (pair, of(program))).collect(),
    }
}

fn sum(bytes: &BTreeMap<Component, Bytes>) -> Bytes {
    bytes.values().copied().sum()
}

/// What a chunk holds, workspace apart.
pub fn held(held: &Held) -> StageMemory {
    let (to_input, to_weights, left) = (sum(&held.f_to_i), sum(&held.f_to_w), sum(&held.i_to_w));
    StageMemory { activation: (to_input + to_weights).0, for_weights: (to_weights + left).0 }
}
