//! What a configuration cannot be better than with the stages that it gets, and what it is likely to be: the second sieve.
//!
//! The model is cut as `lower` does it, and the schedule's timetable is timed with the least that each program can take ([`Terms`]); times of a
//! timetable only grow with those of its programs, so no plan of it is faster. The estimate is the same with layers in their plain
//! form. Memory is what chunks hold at least, with all that a rank has besides, but for messages and what lies between blocks.

use std::collections::BTreeMap;

use super::configuration::Configuration;
use super::space::Setting;
use super::work::{Kind, Least, Terms};
use crate::error::Result;
use crate::ir::{Action, Layout, Memory, PairCost, Problem, Stage, StageCost, Timetable, Work, Workspace};
use crate::job::Job;
use crate::job::training::ScheduleKind;
use crate::machine::Machine;
use crate::parallel;
use crate::passes::auto::held;
use crate::passes::lower::{self, Lowered, alike};
use crate::passes::{emit, hops, pipeline, split};
use crate::plan::PlanStage;
use crate::units::{Bytes, Nanos};

/// How much longer than the least the programs of pairs are, as a rule: a part in so many. Only the order in which configurations are looked
/// at depends on it.
const PAIR_GAP: f64 = 1.03;

/// A closer look at a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// No step is shorter.
    pub bound: Nanos,
    /// What it is likely to be.
    pub estimate: Nanos,
    /// No fullest rank needs less.
    pub memory: Bytes,
}

/// What looks share.
pub struct Known<'a> {
    job: &'a Job,
    machine: &'a Machine,
    terms: BTreeMap<(Setting, u32), (Vec<Kind>, Terms)>,
    timetables: BTreeMap<Shape, Timetable>,
}

/// What a timetable of a published schedule depends on.
type Shape = (ScheduleKind, u32, Option<u32>, u32);

fn shape(of: &Configuration) -> Shape {
    (of.schedule, of.pp, of.stages_per_rank, of.micro_batches)
}

impl<'a> Known<'a> {
    /// For a look at these, over so many threads.
    pub fn new(job: &'a Job, machine: &'a Machine, all: &[Configuration], threads: usize) -> Self {
        let mut settings: Vec<(Setting, u32)> = all.iter().map(|of| (Setting::of(of), of.sms)).collect();
        settings.sort_unstable();
        settings.dedup();
        let terms = parallel::map(threads, &settings, |(setting, sms)| {
            let job = setting.apply(job);
            let kinds = Kind::all(&job);
            let terms = Terms::new(&job, machine, &kinds, *sms);
            (kinds, terms)
        });
        let mut shapes: Vec<Shape> = all.iter().map(shape).collect();
        shapes.sort_unstable();
        shapes.dedup();
        let timetables = parallel::map(threads, &shapes, |&(kind, ranks, turns, micro_batches)| {
            let placement = kind.placement()?;
            pipeline::generate(kind, &Layout::new(placement, ranks, turns.unwrap_or(1), micro_batches)).ok()
        });
        let timetables = shapes.into_iter().zip(timetables);
        Self {
            job,
            machine,
            terms: settings.into_iter().zip(terms).collect(),
            timetables: timetables.filter_map(|(shape, timetable)| Some((shape, timetable?))).collect(),
        }
    }

    /// A look at one of them; `None` if there is no such timetable, or the model has too few layers.
    ///
    /// # Errors
    /// If the timetable cannot be timed.
    pub fn look(&self, of: &Configuration) -> Result<Option<Look>> {
        let lowered = lower::lower(&of.apply(self.job), self.machine, of.sms)?;
        self.look_at(of, &lowered)
    }

    /// The same, with the model cut so.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub fn look_at(&self, of: &Configuration, lowered: &Lowered) -> Result<Option<Look>> {
        let (Some((kinds, terms)), Some(timetable)) =
            (self.terms.get(&(Setting::of(of), of.sms)), self.timetables.get(&shape(of)))
        else {
            return Ok(None);
        };
        let job = of.apply(self.job);
        let split = split::split(&job, lowered);
        let stages = emit::without_programs(&job, self.machine, lowered, &split);
        let counts: Vec<Vec<f64>> = lowered.stages.iter().map(|stage| counts(&job, kinds, stage)).collect();
        let layout = lowered.layout;
        let hops = hops(&job, self.machine, &layout, &stages);
        let problem = |costs: Vec<StageCost>, longer: f64| {
            let mut pairs = BTreeMap::new();
            if matches!(of.schedule, ScheduleKind::DualPipe | ScheduleKind::DualPipeV) {
                for rank in 0..layout.ranks {
                    let held = layout.stages_of(rank);
                    for (&f, &b) in held.iter().flat_map(|f| held.iter().map(move |b| (f, b))) {
                        pairs
                            .entry((f, b))
                            .or_insert_with(|| nanos(longer * terms.pair(&counts[f as usize], &counts[b as usize])));
                    }
                }
            }
            Problem { layout, stages: costs, pair: PairCost::Table(pairs), hops: hops.clone(), memory: None }
        };
        let costs = |of: &dyn Fn(&[f64]) -> Least| counts.iter().map(|counts| cost(of(counts))).collect::<Vec<_>>();
        let least = problem(costs(&|counts| terms.least(counts)), 1.0);
        let likely = problem(costs(&|counts| terms.in_series(counts)), PAIR_GAP);
        let after = self.after(&layout, &stages);
        Ok(Some(Look {
            bound: pipeline::replay(&least, timetable)?.makespan + after,
            estimate: pipeline::replay(&likely, timetable)?.makespan + after,
            memory: memory(&layout, &stages, timetable),
        }))
    }

    /// What comes behind the last action: the reduction of some stage, each rank's updates, and that parameters of some stage are gathered.
    fn after(&self, layout: &Layout, stages: &[PlanStage]) -> Nanos {
        let machine = self.machine;
        let least = |work: fn(&PlanStage) -> &Work| {
            stages.iter().map(|stage| machine.duration(work(stage), machine.sms)).min().unwrap_or_default()
        };
        let update = |rank: u32| {
            let held = layout.stages_of(rank);
            held.iter().map(|&stage| machine.duration(&stages[stage as usize].update, machine.sms)).sum::<Nanos>()
        };
        let exchanges = least(|stage| &stage.reduce) + least(|stage| &stage.gather);
        exchanges + (0..layout.ranks).map(update).max().unwrap_or_default()
    }
}

fn counts(job: &Job, kinds: &[Kind], stage: &Stage) -> Vec<f64> {
    let mut counts = vec![0.0; kinds.len()];
    for &unit in &stage.units {
        let unit = alike(job, unit);
        if let Some(kind) = kinds.iter().position(|kind| kind.unit == unit) {
            counts[kind] += 1.0;
        }
    }
    counts
}

fn cost(least: Least) -> StageCost {
    StageCost { f: nanos(least.f), i: nanos(least.i), w: nanos(least.w), b: nanos(least.b) }
}

fn nanos(time: f64) -> Nanos {
    Nanos(time as u64)
}

/// Of the fullest rank.
fn memory(layout: &Layout, stages: &[PlanStage], timetable: &Timetable) -> Bytes {
    let held = Memory {
        stages: stages.iter().map(|stage| held(&stage.held)).collect(),
        workspace: Workspace::default(),
        limits: Vec::new(),
    };
    let rank = |(rank, actions): (u32, &Vec<Action>)| {
        let of = || layout.stages_of(rank).into_iter().map(|stage| &stages[stage as usize]);
        let state: Bytes = of().map(|stage| stage.parameters + stage.gradients + stage.optimizer).sum();
        state + of().map(|stage| stage.exchange_buffer).max().unwrap_or_default() + Bytes(held.peak(actions))
    };
    (0..).zip(&timetable.ranks).map(rank).max().unwrap_or_default()
}
