//! The steady state of a job's layer.

use super::{CyclicOp, CyclicProblem, Need};
use crate::ir::{Component, Phase, Stream, Unit, Work};
use crate::job::Job;
use crate::machine::Machine;
use crate::passes::split::{FormOp, UnitForm, reads_input};
use crate::passes::unit_work::{UnitOp, unit_work};
use crate::units::Nanos;

/// The unit that stands for all layers with experts: the middle one. `None` if no layer has any.
pub fn middle_layer(job: &Job) -> Option<Unit> {
    let with_experts: Vec<u32> = (0..job.model.layers).filter(|&layer| job.model.is_moe(layer)).collect();
    with_experts.get(with_experts.len() / 2).map(|&layer| Unit::Moe(layer))
}

impl CyclicProblem {
    /// The pair of a job's middle layer with experts: its ops' durations with `communication_sms` for exchanges and the other
    /// SMs for computation. `None` if no layer has experts. Exchanges among tensor-parallel GPUs count with their component.
    pub fn of_job(job: &Job, machine: &Machine, communication_sms: u32) -> Option<Self> {
        let work = unit_work(job, middle_layer(job)?, job.training.recompute);
        let sms = |work: &Work| machine.sms_of(work, communication_sms);
        let works = |component: Component, phase: Phase| {
            let (again, ops): (&[UnitOp], &[UnitOp]) = match phase {
                Phase::F => (&[], &work.f),
                Phase::I => (&work.again, &work.i),
                Phase::W => (&[], &work.w),
            };
            again.iter().chain(ops).filter(move |op| op.component == component).map(|op| &op.work)
        };
        let mut problem = Self::layer_pair(|component, phase| {
            works(component, phase).map(|work| machine.duration(work, sms(work))).sum()
        });
        let of = |op: &CyclicOp| works(op.component, op.phase);
        // Beside another op, an op's works each take as long as beside that one's first work of the other engine.
        let beside = |op: &CyclicOp, other: &CyclicOp| -> Nanos {
            let time = |work: &Work| match of(other).find(|there| there.is_exchange() != work.is_exchange()) {
                Some(there) => machine.duration_beside(work, sms(work), there, sms(there)),
                None => machine.duration(work, sms(work)),
            };
            of(op).map(time).sum()
        };
        let ops = problem.ops.clone();
        problem.slow_by_means(|op, other| beside(&ops[op], &ops[other]));
        Some(problem)
    }

    /// The pair of a layer in some form: F of it beside I and W, each layer reading what the one before it made.
    pub fn of_form(form: &UnitForm, machine: &Machine, communication_sms: u32) -> Self {
        let sides = [(Phase::F, &form.f), (Phase::I, &form.i), (Phase::W, &form.w)];
        let ops: Vec<(Phase, &FormOp)> =
            sides.iter().flat_map(|(phase, ops)| ops.iter().map(|op| (*phase, op))).collect();
        let sms = |work: &Work| machine.sms_of(work, communication_sms);
        let cyclic = |&(phase, op): &(Phase, &FormOp)| CyclicOp {
            component: op.component,
            phase,
            step: op.step,
            tokens: op.tokens,
            engine: if op.work.is_exchange() { Stream::Comm } else { Stream::Compute },
            duration: machine.duration(&op.work, sms(&op.work)),
        };
        let beside = |one: &FormOp, other: &FormOp| match one.work.is_exchange() == other.work.is_exchange() {
            true => machine.duration(&one.work, sms(&one.work)),
            false => machine.duration_beside(&one.work, sms(&one.work), &other.work, sms(&other.work)),
        };
        let cyclic_ops = ops.iter().map(cyclic).collect();
        let mut problem = Self { ops: cyclic_ops, needs: Vec::new(), weight_delay: 2, beside: Vec::new() };
        problem.slow_by_means(|op, other| beside(ops[op].1, ops[other].1));
        let (i, w) = (form.f.len(), form.f.len() + form.i.len());
        for (first, side) in [(0, &form.f), (i, &form.i)] {
            let ends = ends(side);
            for (at, op) in side.iter().enumerate() {
                problem.need(op.needs.iter().map(|&need| first + need as usize), first + at, 0);
                if reads_input(side, op) {
                    problem.need(ends.iter().map(|&end| first + end), first + at, 1);
                }
            }
        }
        for (at, op) in form.w.iter().enumerate() {
            match op.needs.is_empty() {
                true => problem.need(ends(&form.i).into_iter().map(|end| i + end), w + at, 0),
                false => problem.need(op.needs.iter().map(|&need| i + need as usize), w + at, 0),
            }
        }
        problem
    }

    fn need(&mut self, from: impl Iterator<Item = usize>, to: usize, distance: i64) {
        self.needs.extend(from.map(|from| Need { from, to, distance }));
    }
}

/// The ops that no other op of the list reads.
fn ends(ops: &[FormOp]) -> Vec<usize> {
    let read = |at: usize| ops.iter().any(|op| op.needs.contains(&(at as u32)));
    (0..ops.len()).filter(|&at| !read(at)).collect()
}
