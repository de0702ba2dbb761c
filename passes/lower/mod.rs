//! `lower`: cuts the model into stages of about equal cost.
//!
//! A unit costs the time of its F, I and W on the machine: the longer of computation and communication where the schedule
//! overlaps them, else their sum. The cut has the smallest possible largest stage, and among those the smallest sum of
//! squares. It does not look at the schedule: moving layers to shorten a given timetable is another question.

mod partition;

use crate::error::{Error, Result};
use crate::ir::{Layout, Placement, Stage, Unit};
use crate::job::Job;
use crate::job::training::ScheduleKind;
use crate::machine::Machine;
use crate::passes::unit_work;
use crate::units::Nanos;

/// The model as stages, and where they live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lowered {
    /// Ranks, stages, micro-batches.
    pub layout: Layout,
    /// In model order; `layout.stages` of them.
    pub stages: Vec<Stage>,
}

/// Cuts the model of `job` into `layout.stages` stages of about equal cost, where exchanges have `comm_sms`.
///
/// # Errors
/// If the model has fewer units (embedding, layers, MTP modules, head) than stages are asked for.
pub fn lower(job: &Job, machine: &Machine, comm_sms: u32) -> Result<Lowered> {
    let layout = layout(job);
    let units = unit_work::units(job);
    if layout.stages as usize > units.len() {
        return Err(Error::new(format!(
            "{} pipeline ranks make {} stages, but the model has only {} units to spread (embedding, layers, MTP, head)",
            layout.ranks,
            layout.stages,
            units.len()
        ))
        .help("use fewer pipeline ranks")
        .field("training.pp"));
    }
    // Layers of one kind cost the same: price each kind once.
    let mut priced: Vec<(Unit, Nanos)> = Vec::new();
    let costs: Vec<u64> = units
        .iter()
        .map(|&unit| {
            let kind = alike(job, unit);
            if let Some(&(_, cost)) = priced.iter().find(|(known, _)| *known == kind) {
                return cost.0;
            }
            let cost = unit_cost(job, machine, comm_sms, unit);
            priced.push((kind, cost));
            cost.0
        })
        .collect();
    Ok(cut(job, &partition::partition(&costs, layout.stages as usize)))
}

/// Ranks, stages and micro-batches of a job; stages on a line if their placement is still to be chosen.
fn layout(job: &Job) -> Layout {
    let training = &job.training;
    let placement = training.placement().unwrap_or(Placement::Linear);
    Layout::new(placement, training.pp, training.stages_per_rank(), training.micro_batches)
}

/// Cuts the model behind the units that `ends` count: ascending, the last of them the number of units. Stages compute again what the job
/// says.
pub fn cut(job: &Job, ends: &[usize]) -> Lowered {
    let units = unit_work::units(job);
    let mut first = 0;
    let mut stages = Vec::with_capacity(ends.len());
    for &end in ends {
        stages.push(Stage { units: units[first..end].to_vec(), recompute: job.training.recompute });
        first = end;
    }
    Lowered { layout: layout(job), stages }
}

/// A unit that stands for all that do the same work: layers differ only by kind and attention window.
pub(crate) fn alike(job: &Job, unit: Unit) -> Unit {
    let pairs = |layer| job.model.attended_pairs(layer, u64::from(job.training.sequence));
    let first_like = |layer: u32, moe: bool| {
        (0..layer).find(|&other| job.model.is_moe(other) == moe && pairs(other) == pairs(layer)).unwrap_or(layer)
    };
    match unit {
        Unit::Dense(layer) => Unit::Dense(first_like(layer, false)),
        Unit::Moe(layer) => Unit::Moe(first_like(layer, true)),
        Unit::Mtp(_) => Unit::Mtp(0),
        Unit::Embedding | Unit::Head => unit,
    }
}

/// Time of a unit's F, I and W.
fn unit_cost(job: &Job, machine: &Machine, comm_sms: u32, unit: Unit) -> Nanos {
    let work = unit_work::unit_work(job, unit, job.training.recompute);
    let overlaps =
        matches!(job.training.schedule, ScheduleKind::DualPipe | ScheduleKind::DualPipeV | ScheduleKind::Auto);
    let compute_sms = if overlaps { machine.sms - comm_sms } else { machine.sms };
    let (mut computation, mut communication) = (Nanos::ZERO, Nanos::ZERO);
    for op in work.f.iter().chain(work.backward()).chain(&work.w) {
        match op.work.is_exchange() {
            true => communication += machine.duration(&op.work, comm_sms),
            false => computation += machine.duration(&op.work, compute_sms),
        }
    }
    if overlaps { computation.max(communication) } else { computation + communication }
}
