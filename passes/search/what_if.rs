//! What single changes to a job would give, each by a plan made anew: to learn what a run is short of.

use super::configuration::Configuration;
use super::exact::Outcome;
use crate::error::Result;
use crate::ir::Recompute;
use crate::job::Job;
use crate::job::cluster::{Link, Pods};
use crate::job::model::Attention;
use crate::job::sms::CommunicationSms;
use crate::job::training::ScheduleKind;
use crate::machine::Machine;
use crate::parallel;
use crate::passes::search::closer::Known;
use crate::passes::{self, Wanted, compile_as, lower, pipeline};
use crate::units::Nanos;

/// How many of a pipeline's boundaries are moved: those that look best.
const BOUNDARIES: usize = 4;

/// How many SMs exchanges get more or fewer.
const SMS: u32 = 4;

/// A change, and what came of it.
#[derive(Clone, Debug)]
pub struct Change {
    /// In words.
    pub what: String,
    /// A plan with it, or why there is none.
    pub outcome: Result<Outcome, String>,
    /// Tokens of its step: another micro-batch brings more.
    pub tokens: u64,
}

/// What the job gives, and what each change would.
#[derive(Clone, Debug)]
pub struct WhatIf {
    /// The job as it is.
    pub given: Change,
    /// The changes, as they were tried.
    pub changes: Vec<Change>,
}

/// A job with a change.
struct Changed {
    what: String,
    job: Job,
    wanted: Wanted,
}

/// Tries every change, over so many threads. `progress` is told how many are done, and of how many.
///
/// # Errors
/// If the job itself cannot be compiled.
pub fn what_if(job: &Job, threads: usize, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<WhatIf> {
    let compiled = passes::compile(job)?;
    let tokens = job.training.step_tokens();
    let given = Change { what: "as it is".to_owned(), outcome: Ok(Outcome::of(&compiled)?), tokens };
    let sms = compiled.communication_sms;
    let mut all = vec![one_more_micro_batch(job)];
    all.extend(recomputes(job));
    all.extend(more_or_fewer_sms(job, sms));
    all.push(double_network(job));
    all.extend(without_oversubscription(job));
    all.extend(even_loads(job));
    all.extend(boundaries(job, sms, threads)?);
    let mut changes = Vec::with_capacity(all.len());
    let at_once = 4;
    for some in all.chunks(at_once) {
        changes.extend(parallel::map(threads, some, |changed| {
            let compile = || {
                changed.job.check()?;
                let compiled = match changed.job.training.schedule {
                    ScheduleKind::Auto => passes::compile(&changed.job)?,
                    _ => compile_as(&changed.job, &changed.wanted)?,
                };
                Outcome::of(&compiled)
            };
            let outcome = compile().map_err(|error| error.to_string());
            Change { what: changed.what.clone(), outcome, tokens: changed.job.training.step_tokens() }
        }));
        progress(changes.len() as u64, all.len() as u64);
    }
    Ok(WhatIf { given, changes })
}

fn with(job: &Job, what: String, change: impl FnOnce(&mut Job)) -> Changed {
    let mut job = job.clone();
    change(&mut job);
    Changed { what, job, wanted: Wanted::default() }
}

/// One more for each replica, or as many as the schedule can do with.
fn one_more_micro_batch(job: &Job) -> Changed {
    let training = &job.training;
    let fits = |more: &u32| {
        let count = training.micro_batches.saturating_add(*more);
        pipeline::precondition(training.schedule, training.pp, training.stages_per_rank(), count).is_ok()
    };
    let more = (1..=training.pp).find(fits).unwrap_or(1);
    let what = match more {
        1 => "one more micro-batch".to_owned(),
        more => format!("{more} more micro-batches"),
    };
    with(job, what, |job| job.training.micro_batches += more)
}

fn recomputes(job: &Job) -> Vec<Changed> {
    let own = job.training.recompute;
    let latent = matches!(job.model.attention, Attention::Mla(_));
    let parts = [
        ("norms", own.norms, Recompute { norms: !own.norms, ..own }, true),
        ("MLA's up-projections", own.mla_up, Recompute { mla_up: !own.mla_up, ..own }, latent),
        ("SwiGLU", own.swiglu, Recompute { swiglu: !own.swiglu, ..own }, true),
        ("whole layers", own.layer, Recompute { layer: !own.layer, ..own }, true),
    ];
    let possible = parts.into_iter().filter(|(_, _, _, possible)| *possible);
    let change = |(name, is, recompute, _)| {
        let what = format!("{name} {}", if is { "stored" } else { "computed again" });
        with(job, what, |job| job.training.recompute = recompute)
    };
    possible.map(change).collect()
}

fn more_or_fewer_sms(job: &Job, sms: u32) -> Vec<Changed> {
    let change = |(number, word): (Option<u32>, &str)| {
        let number = number.filter(|number| *number >= 2 && *number < job.cluster.gpu.sms)?;
        let what = format!("{SMS} SMs {word} for exchanges, {number}");
        Some(with(job, what, |job| job.training.communication_sms = CommunicationSms::Fixed(number)))
    };
    [(sms.checked_add(SMS), "more"), (sms.checked_sub(SMS), "fewer")].into_iter().filter_map(change).collect()
}

/// What one SM sends stays.
fn double_network(job: &Job) -> Changed {
    with(job, "twice the network".to_owned(), |job| {
        let Link { gb_s, copy_gb_s, measured, .. } = &mut job.cluster.network;
        *gb_s *= 2.0;
        copy_gb_s.iter_mut().for_each(|rate| *rate *= 2.0);
        measured.iter_mut().for_each(|(_, rate)| *rate *= 2.0);
    })
}

/// As much network between pods as within.
fn without_oversubscription(job: &Job) -> Option<Changed> {
    let pods = job.cluster.pods.filter(|pods| pods.nodes < job.cluster.nodes && pods.oversubscription > 1.0)?;
    let even = Pods { oversubscription: 1.0, ..pods };
    Some(with(job, "pods without oversubscription".to_owned(), |job| job.cluster.pods = Some(even)))
}

fn even_loads(job: &Job) -> Option<Changed> {
    let is_even = job.training.imbalance <= 1.0;
    (!is_even).then(|| with(job, "experts evenly loaded".to_owned(), |job| job.training.imbalance = 1.0))
}

/// A unit moved over the boundary behind a stage, from the later stage or to it; and where stages end then.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Move {
    boundary: usize,
    from_later: bool,
    ends: Vec<usize>,
}

/// A unit moved over one boundary between stages: those moves that look best. `auto` cuts models as it likes.
fn boundaries(job: &Job, sms: u32, threads: usize) -> Result<Vec<Changed>> {
    if job.training.schedule == ScheduleKind::Auto {
        return Ok(Vec::new());
    }
    let machine = Machine::new(&job.cluster, job.training.memory_limit_gb);
    let lowered = lower::lower(job, &machine, sms)?;
    let mut ends: Vec<usize> = Vec::new();
    for stage in &lowered.stages {
        ends.push(ends.last().copied().unwrap_or(0) + stage.units.len());
    }
    let mut moves: Vec<Move> = Vec::new();
    for boundary in 0..ends.len().saturating_sub(1) {
        for from_later in [false, true] {
            let giving = boundary + usize::from(from_later);
            if lowered.stages[giving].units.len() > 1 {
                let mut moved = ends.clone();
                if from_later {
                    moved[boundary] += 1
                } else {
                    moved[boundary] -= 1
                }
                moves.push(Move { boundary, from_later, ends: moved });
            }
        }
    }
    let own = Configuration::of(job, sms);
    let known = Known::new(job, &machine, &[own], threads);
    let estimates = parallel::map(threads, &moves, |moved| {
        let look = known.look_at(&own, &lower::cut(job, &moved.ends));
        look.map(|look| look.map_or(Nanos(u64::MAX), |look| look.estimate))
    });
    let estimates = estimates.into_iter().collect::<Result<Vec<Nanos>>>()?;
    let mut ordered: Vec<(Nanos, Move)> = estimates.into_iter().zip(moves).collect();
    ordered.sort();
    let change = |(_, Move { boundary, from_later, ends }): (Nanos, Move)| {
        let (from, to) = if from_later { (boundary + 1, boundary) } else { (boundary, boundary + 1) };
        let unit = lowered.stages[from].units[if from_later { 0 } else { lowered.stages[from].units.len() - 1 }];
        Changed {
            what: format!("{unit} from stage {from} to {to}"),
            job: job.clone(),
            wanted: Wanted { cut: Some(ends), ..Wanted::default() },
        }
    };
    Ok(ordered.into_iter().take(BOUNDARIES).map(change).collect())
}
