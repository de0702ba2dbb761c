//! `split`: turns each stage into a chunk — attention, dispatch, MLP and combine of its units, in F, I and W.

use crate::ir::{Chunk, Held, Op, Phase, Stage, Step, Tokens, Unit, Work};
use crate::job::Job;
use crate::machine::Machine;
use crate::passes::lower::{Lowered, alike};
use crate::passes::unit_work::{UnitOp, UnitParameters, UnitWork, add_held, boundary, unit_work};
use crate::units::{Bytes, Nanos};

/// A stage's chunk and its parameters on one GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitStage {
    /// The ops and the memory of one micro-batch.
    pub chunk: Chunk,
    /// Parameters of its units; copies that other units need are `place`'s to add.
    pub parameters: UnitParameters,
}

/// Splits every stage.
pub fn split(job: &Job, lowered: &Lowered) -> Vec<SplitStage> {
    let mut known: Vec<(Unit, UnitWork)> = Vec::new();
    let mut input = Bytes::ZERO;
    lowered
        .stages
        .iter()
        .map(|stage| {
            let works: Vec<UnitWork> = stage
                .units
                .iter()
                .map(|&unit| {
                    let kind = alike(job, unit);
                    if let Some((_, work)) = known.iter().find(|(unit, _)| *unit == kind) {
                        return work.clone();
                    }
                    let work = unit_work(job, unit);
                    known.push((kind, work.clone()));
                    work
                })
                .collect();
            let split = assemble(job, stage, &works, input);
            input = split.chunk.output;
            split
        })
        .collect()
}

fn assemble(job: &Job, stage: &Stage, works: &[UnitWork], input: Bytes) -> SplitStage {
    let mut chunk = Chunk {
        f: Vec::new(),
        i: Vec::new(),
        w: Vec::new(),
        held: Held::default(),
        // After the head nothing is sent on; in front of the embedding nothing is received.
        output: stage.units.last().filter(|unit| **unit != Unit::Head).map_or(Bytes::ZERO, |&unit| boundary(job, unit)),
        input,
        exchange_buffer: Bytes::ZERO,
    };
    let mut parameters = UnitParameters::default();
    for (unit, work) in (0..).zip(works) {
        append(&mut chunk.f, Phase::F, unit, work);
        add_held(&mut chunk.held, &work.held);
        chunk.exchange_buffer = chunk.exchange_buffer.max(work.exchange_buffer);
        parameters.shared += work.parameters.shared;
        parameters.expert += work.parameters.expert;
    }
    for (unit, work) in (0..works.len() as u32).zip(works).rev() {
        append(&mut chunk.i, Phase::I, unit, work);
        append(&mut chunk.w, Phase::W, unit, work);
    }
    SplitStage { chunk, parameters }
}

/// Adds a unit's ops of one phase. In F and I each op needs the one before it; weight gradients are independent.
fn append(ops: &mut Vec<Op>, phase: Phase, unit: u32, work: &UnitWork) {
    let from: &[UnitOp] = match phase {
        Phase::F => &work.f,
        Phase::I => &work.i,
        Phase::W => &work.w,
    };
    for op in from {
        let needs = if phase != Phase::W && !ops.is_empty() { vec![ops.len() as u32 - 1] } else { Vec::new() };
        let handed = match phase {
            Phase::W => work.held.i_to_w.get(&op.component).copied().unwrap_or_default(),
            _ => Bytes::ZERO,
        };
        ops.push(Op {
            component: op.component,
            phase,
            unit,
            step: Step::Main,
            tokens: Tokens::ALL,
            work: op.work.clone(),
            needs,
            handed,
        });
    }
}

/// Time of a chunk's computation and of its communication, F, I and W together, each with the SMs that it gets.
pub fn loads(chunk: &Chunk, machine: &Machine, communication_sms: u32) -> (Nanos, Nanos) {
    let (mut computation, mut communication) = (Nanos::ZERO, Nanos::ZERO);
    for op in chunk.f.iter().chain(&chunk.i).chain(&chunk.w) {
        match &op.work {
            Work::Compute(_) => computation += machine.duration(&op.work, machine.sms - communication_sms),
            Work::Exchange { .. } | Work::Copy { .. } => communication += machine.duration(&op.work, communication_sms),
        }
    }
    (computation, communication)
}
