//! `split`: turns each stage into a chunk — attention, dispatch, MLP and combine of its units, in F, I and W.

mod form;

pub use form::{FormOp, UnitForm, reads_input};

use std::collections::BTreeMap;

use crate::ir::{Chunk, Held, Op, Phase, Recompute, Stage, Unit};
use crate::job::Job;
use crate::machine::Machine;
use crate::passes::lower::{Lowered, alike};
use crate::passes::unit_work::{UnitParameters, UnitWork, add_held, boundary, unit_work};
use crate::units::{Bytes, Nanos};

/// A stage's chunk and its parameters on one GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitStage {
    /// The ops and the memory of one micro-batch.
    pub chunk: Chunk,
    /// Parameters of its units; copies that other units need are `place`'s to add.
    pub parameters: UnitParameters,
}

/// Splits every stage, each unit in its plain form.
pub fn split(job: &Job, lowered: &Lowered) -> Vec<SplitStage> {
    split_as(job, lowered, &|_| None)
}

/// Units that do the same work: one that stands for them (see `lower::alike`), and what they compute again.
pub type Kind = (Unit, Recompute);

/// The kinds of the units of a stage.
pub fn kinds(job: &Job, stage: &Stage) -> impl Iterator<Item = Kind> {
    stage.units.iter().map(|&unit| (alike(job, unit), stage.recompute))
}

/// Splits every stage. `form` gives the form of a kind of unit where it is not the plain one.
pub fn split_as<'a>(job: &Job, lowered: &Lowered, form: &dyn Fn(Kind) -> Option<&'a UnitForm>) -> Vec<SplitStage> {
    let mut known: BTreeMap<Kind, (UnitWork, UnitForm)> = BTreeMap::new();
    for kind in lowered.stages.iter().flat_map(|stage| kinds(job, stage)) {
        known.entry(kind).or_insert_with_key(|&kind| {
            let work = unit_work(job, kind.0, kind.1);
            let form = form(kind).cloned().unwrap_or_else(|| UnitForm::plain(&work));
            (work, form)
        });
    }
    let mut input = Bytes::ZERO;
    let stage = |stage: &Stage| {
        let units: Vec<&(UnitWork, UnitForm)> = kinds(job, stage).map(|kind| &known[&kind]).collect();
        let split = assemble(job, stage, &units, input);
        input = split.chunk.output;
        split
    };
    lowered.stages.iter().map(stage).collect()
}

/// A chunk of `layers` layers of one kind, all in the same form.
pub fn repeated(job: &Job, unit: Unit, work: &UnitWork, form: &UnitForm, layers: u32) -> Chunk {
    let known = (work.clone(), form.clone());
    let stage = Stage { units: vec![unit; layers as usize], recompute: Recompute::NOTHING };
    let units: Vec<&(UnitWork, UnitForm)> = stage.units.iter().map(|_| &known).collect();
    assemble(job, &stage, &units, boundary(job, unit)).chunk
}

fn assemble(job: &Job, stage: &Stage, units: &[&(UnitWork, UnitForm)], input: Bytes) -> SplitStage {
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
    let mut made = Vec::new();
    for (unit, (work, form)) in (0..).zip(units) {
        append(&mut chunk.f, (Phase::F, unit), &form.f, &mut made, &[]);
        add_held(&mut chunk.held, &work.held);
        chunk.exchange_buffer = chunk.exchange_buffer.max(form.exchange_buffer);
        parameters.shared += work.parameters.shared;
        parameters.expert += work.parameters.expert;
    }
    made.clear();
    // Where each unit's I begins.
    let mut begins = vec![0; units.len()];
    // A layer is not made again before the backward has come to the layer behind it: else all of them could be, and be held, at once.
    let mut ahead = Vec::new();
    for (unit, (work, form)) in (0..units.len() as u32).zip(units).rev() {
        begins[unit as usize] = chunk.i.len() as u32;
        let comes_in = made.clone();
        let after: &[u32] = if work.again.is_empty() { &[] } else { &ahead };
        append(&mut chunk.i, (Phase::I, unit), &form.i, &mut made, after);
        ahead = comes_in;
    }
    for (unit, (work, form)) in (0..units.len() as u32).zip(units).rev() {
        for (at, op) in form.w.iter().enumerate() {
            let needs = match op.needs.is_empty() {
                true => made.clone(),
                false => op.needs.iter().map(|need| begins[unit as usize] + need).collect(),
            };
            // What a component hands on is let go by the last op of its W.
            let last = form.w[at + 1..].iter().all(|other| other.component != op.component);
            let handed = work.held.i_to_w.get(&op.component).copied().filter(|_| last).unwrap_or_default();
            chunk.w.push(op_of(op, Phase::W, unit, needs, handed));
        }
    }
    SplitStage { chunk, parameters }
}

/// Adds a unit's ops of F or I. `made`: the ops that made what comes into the unit, then those that make what goes out. `after`: ops that must
/// have ended before anything is computed again.
fn append(ops: &mut Vec<Op>, (phase, unit): (Phase, u32), form: &[FormOp], made: &mut Vec<u32>, after: &[u32]) {
    if form.is_empty() {
        return;
    }
    let first = ops.len() as u32;
    for op in form {
        let mut needs: Vec<u32> = op.needs.iter().map(|need| first + need).collect();
        if reads_input(form, op) {
            needs.extend(made.iter());
            needs.sort_unstable();
        } else if op.needs.is_empty() {
            needs.extend(after);
        }
        ops.push(op_of(op, phase, unit, needs, Bytes::ZERO));
    }
    let read = |at: u32| form.iter().any(|op| op.needs.contains(&at));
    *made = (0..form.len() as u32).filter(|&at| !read(at)).map(|at| first + at).collect();
}

fn op_of(op: &FormOp, phase: Phase, unit: u32, needs: Vec<u32>, handed: Bytes) -> Op {
    let FormOp { component, step, tokens, ref work, .. } = *op;
    Op { component, phase, unit, step, tokens, work: work.clone(), needs, handed }
}

/// Time of a chunk's computation and of its communication, F, I and W together, each with the SMs that it gets.
pub fn loads(chunk: &Chunk, machine: &Machine, communication_sms: u32) -> (Nanos, Nanos) {
    let (mut computation, mut communication) = (Nanos::ZERO, Nanos::ZERO);
    for op in chunk.f.iter().chain(&chunk.i).chain(&chunk.w) {
        let time = machine.duration(&op.work, machine.sms_of(&op.work, communication_sms));
        *(if op.work.is_exchange() { &mut communication } else { &mut computation }) += time;
    }
    (computation, communication)
}
