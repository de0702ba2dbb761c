//! The neighbours of a configuration: each decision moved by one step.

use super::configuration::{Configuration, Decision};
use super::space::{Setting, Space, Split, TURNS};
use crate::job::Job;
use crate::job::training::ScheduleKind;

/// How many places in the list of SMs a step takes.
const SMS_STEPS: [usize; 2] = [1, 3];

/// All of them, each with the decision that moved, whether they are in the space or not. What hangs together moves together: other
/// pipelines have as many replicas as there are GPUs for.
pub fn neighbours(space: &Space, of: &Configuration) -> Vec<(Decision, Configuration)> {
    let mut found: Vec<(Decision, Configuration)> = Vec::new();
    for decision in Decision::ALL {
        for moved in moved(space, of, decision) {
            if moved != *of && found.iter().all(|(_, known)| *known != moved) {
                found.push((decision, moved));
            }
        }
    }
    found
}

fn moved(space: &Space, of: &Configuration, decision: Decision) -> Vec<Configuration> {
    let setting = Setting::of(of);
    let schedule = (of.schedule, of.stages_per_rank);
    // The split with the most GPUs of those with a number next to the configuration's, above and below.
    let next = |own: u32, number: &dyn Fn(&Split) -> u32, fits: &dyn Fn(&Split) -> bool| -> Vec<Configuration> {
        let splits = || space.splits.iter().filter(|split| split.schedules.contains(&schedule) && fits(split));
        let above = splits().map(number).filter(|&n| n > own).min();
        let below = splits().map(number).filter(|&n| n < own).max();
        let most = |wanted: u32| {
            let of = splits().filter(|split| number(split) == wanted);
            of.max_by_key(|split| (u64::from(split.pp) * u64::from(split.tp) * u64::from(split.dp), split.dp))
        };
        let split = |split: &Split| {
            let setting = Setting { tp: split.tp, micro_batch_size: split.micro_batch_size, ..setting };
            split.with(schedule, &setting, of.sms)
        };
        [below, above].into_iter().flatten().filter_map(most).map(split).collect()
    };
    let takes =
        |split: &Split| split.takes(&Setting { tp: split.tp, micro_batch_size: split.micro_batch_size, ..setting });
    let with = |settings: Vec<Setting>| -> Vec<Configuration> {
        let of = |setting: Setting| Configuration {
            ep: setting.ep,
            recompute: setting.recompute,
            dispatch: setting.dispatch,
            combine: setting.combine,
            ..*of
        };
        settings.into_iter().map(of).collect()
    };
    // Settings that differ in one decision alone.
    let settings = |own: &dyn Fn(&Setting) -> Setting| -> Vec<Setting> {
        space.settings.iter().filter(|other| own(other) == setting).copied().collect()
    };
    match decision {
        Decision::Pp => next(of.pp, &|split| split.pp, &|split| {
            takes(split) && (split.tp, split.micro_batch_size) == (of.tp, of.micro_batch_size)
        }),
        Decision::Dp => next(of.dp, &|split| split.dp, &|split| {
            takes(split) && (split.pp, split.tp, split.micro_batch_size) == (of.pp, of.tp, of.micro_batch_size)
        }),
        Decision::Tp => next(of.tp, &|split| split.tp, &|split| {
            takes(split) && (split.pp, split.micro_batch_size) == (of.pp, of.micro_batch_size)
        }),
        Decision::MicroBatchSize => next(of.micro_batch_size, &|split| split.micro_batch_size, &|split| {
            takes(split) && (split.pp, split.tp) == (of.pp, of.tp)
        }),
        Decision::Ep => {
            let all = settings(&|other| Setting { ep: setting.ep, ..*other });
            let above = all.iter().filter(|other| other.ep > of.ep).min_by_key(|other| other.ep);
            let below = all.iter().filter(|other| other.ep < of.ep).max_by_key(|other| other.ep);
            with([below, above].into_iter().flatten().copied().collect())
        }
        Decision::Schedule => {
            let other = |kind: ScheduleKind| match kind {
                ScheduleKind::Interleaved => TURNS.map(|stages| (kind, Some(stages))).to_vec(),
                _ => vec![(kind, None)],
            };
            let all = ScheduleKind::PUBLISHED.into_iter().flat_map(other);
            all.map(|(schedule, stages_per_rank)| Configuration { schedule, stages_per_rank, ..*of }).collect()
        }
        Decision::Recompute => {
            let mut all = settings(&|other| Setting { recompute: setting.recompute, ..*other });
            all.retain(|other| {
                let parts = |setting: &Setting| {
                    let recompute = setting.recompute;
                    [recompute.norms, recompute.mla_up, recompute.swiglu, recompute.layer]
                };
                let moved = parts(other).iter().zip(parts(&setting)).filter(|(one, other)| **one != *other).count();
                moved == 1 || other.recompute.layer != of.recompute.layer
            });
            with(all)
        }
        Decision::Payload => {
            with(settings(&|other| Setting { dispatch: setting.dispatch, combine: setting.combine, ..*other }))
        }
        Decision::Sms => {
            let at = space.sms.partition_point(|&sms| sms < of.sms);
            let above = if space.sms.get(at) == Some(&of.sms) { at } else { at.saturating_sub(1) };
            let places = SMS_STEPS.into_iter().flat_map(|step| [at.checked_sub(step), above.checked_add(step)]);
            let numbers = places.flatten().filter_map(|at| space.sms.get(at));
            numbers.map(|&sms| Configuration { sms, ..*of }).collect()
        }
    }
}

/// Why a configuration is not one that can be had; `None` if it can.
pub fn fault(job: &Job, of: &Configuration) -> Option<String> {
    let turns = of.stages_per_rank.unwrap_or(1);
    let check = of.apply(job).check();
    let error = check
        .and_then(|()| crate::passes::pipeline::precondition(of.schedule, of.pp, turns, of.micro_batches))
        .err()?;
    Some(error.to_string())
}
