//! Looks for configurations of a job that are faster: how GPUs are split into pipelines, replicas, expert- and tensor-parallel groups, the size
//! of micro-batches, the schedule and its placement, what is computed again, what exchanges send and how many SMs they get. Model, cluster,
//! sequence and the tokens of a step stay.
//!
//! Four sieves, each slower and closer than the one before:
//!
//! 1. [`bound`]: what no plan of a configuration is below, from a table; for every configuration of the [`space`].
//! 2. [`closer`]: the same for the stages that it gets and its schedule's timetable, and an estimate; for those with the least bounds.
//! 3. [`exact`], layers in their plain form: all passes and the simulation; for those with the least estimates, and for the
//!    neighbours of the best as long as one is better.
//! 4. all passes with rewritten layers; for the best few.
//!
//! This is done for several limits of memory, so that what is found is a front: what is the fastest in how much memory. Bounds are proved
//! (`tests/search.rs` compares them with plans), so it is also known how much faster anything else in the space could be. Limits are
//! counts and batches have fixed sizes, so results depend neither on clocks nor on the number of threads.

pub mod bound;
pub mod closer;
pub mod configuration;
pub mod exact;
mod found;
mod neighbours;
mod sieve;
pub mod space;
pub mod what_if;
pub mod work;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::job::Job;
use crate::job::training::ScheduleKind;
use crate::machine::Machine;
use crate::parallel;
use crate::passes::{self, Compiled};
use crate::units::{Bytes, Nanos};
use closer::{Known, Look};
pub use configuration::{Configuration, Decision};
use exact::Outcome;
pub use found::{Found, Neighbour, Reason, Row};
use sieve::{Sieve, Sieved};
use space::Space;

/// How much is looked at. All are counts; those of configurations are for each level of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Configurations of each schedule that are looked at more closely.
    pub looks: usize,
    /// Of these, how many are compiled with layers in their plain form.
    pub plain: usize,
    /// How often the best may move to a neighbour.
    pub moves: usize,
    /// Neighbours that are compiled for a move.
    pub moved: usize,
    /// How many are compiled with rewritten layers.
    pub full: usize,
    /// How many of the front, in all, are also compiled with the schedule that the compiler finds.
    pub auto: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { looks: 1024, plain: 24, moves: 8, moved: 8, full: 3, auto: 0 }
    }
}

/// Levels of memory: hundredths of the limit.
const LEVELS: [u64; 4] = [100, 90, 75, 50];

/// Configurations that are looked at before progress is told.
const LOOKED_AT_ONCE: usize = 512;

/// Configurations that are compiled before the next are chosen.
const COMPILED_AT_ONCE: usize = 8;

/// What a search is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first sieve; counted in settings.
    Bounds,
    /// The second; counted in configurations, like the others.
    Looks,
    /// The third.
    Plain,
    /// The last.
    Full,
}

/// Told how much of a phase is done, and of how much.
pub type Progress<'a> = &'a (dyn Fn(Phase, u64, u64) + Sync);

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The job: what it decides is where the search starts from.
    pub job: &'a Job,
    /// GPUs; `None`: those that the job uses. With more or fewer, the cluster has more or fewer nodes.
    pub gpus: Option<u64>,
    /// Decisions that stay as the job has them.
    pub keep: &'a [Decision],
    /// Whether it is asked what speaks against the neighbours of the fastest.
    pub explain: bool,
    /// How much is looked at.
    pub limits: Limits,
    /// Threads that work at the same time. Results do not depend on it.
    pub threads: usize,
}

/// Looks for faster configurations.
///
/// # Errors
/// If the job cannot be compiled, its cluster cannot have so many GPUs, or nothing in the space fits.
pub fn search(asked: Asked, progress: Progress) -> Result<Found> {
    let Asked { gpus, keep, limits, threads, explain, .. } = asked;
    let job = &on_gpus(asked.job, gpus)?;
    let compiled = passes::compile(asked.job)?;
    let own = Configuration::of(asked.job, compiled.communication_sms);
    if keep.contains(&Decision::Schedule) && own.schedule == ScheduleKind::Auto {
        return Err(Error::new("the job's schedule is searched for, so it cannot be kept")
            .help("give a published schedule with `--schedule`"));
    }
    let machine = Machine::new(&job.cluster, job.training.memory_limit_gb);
    let space = Space::new(job, gpus.unwrap_or(own.gpus()), &own, keep);
    let mut search = Search {
        job,
        machine: &machine,
        space: &space,
        limits,
        threads,
        progress,
        looks: BTreeMap::new(),
        plain: BTreeMap::new(),
        full: BTreeMap::new(),
    };
    let given = search.row(own, compiled)?;
    let sieved = search.sieve(&given);
    search.look_at(sieved.candidates.iter().flatten().copied().collect())?;
    search.compile_plain(&sieved.candidates);
    search.climb()?;
    search.compile_full();
    search.compile_auto(&given);
    search.found(given, &sieved, explain)
}

/// The job with another number of GPUs in its cluster.
fn on_gpus(job: &Job, gpus: Option<u64>) -> Result<Job> {
    let mut job = job.clone();
    let Some(gpus) = gpus else { return Ok(job) };
    let per_node = u64::from(job.cluster.gpus_per_node);
    if gpus == 0 || !gpus.is_multiple_of(per_node) {
        let below = gpus / per_node * per_node;
        let nearest = match below {
            0 => per_node.to_string(),
            below => format!("{below} or {}", below + per_node),
        };
        return Err(Error::new(format!("{gpus} GPUs are no whole nodes of {per_node}")).help(format!("use {nearest}")));
    }
    let nodes = u32::try_from(gpus / per_node).map_err(|_| Error::new(format!("{gpus} GPUs are too many")))?;
    if nodes != job.cluster.nodes {
        job.cluster.nodes = nodes;
        job.cluster.name = format!("{nodes} nodes of {per_node} {}", job.cluster.gpu.name);
    }
    job.cluster.check()?;
    Ok(job)
}

struct Search<'a> {
    job: &'a Job,
    machine: &'a Machine,
    space: &'a Space,
    limits: Limits,
    threads: usize,
    progress: Progress<'a>,
    looks: BTreeMap<Configuration, Look>,
    plain: BTreeMap<Configuration, Outcome>,
    full: BTreeMap<Configuration, Option<Row>>,
}

impl Search<'_> {
    /// Memory of a level.
    fn level(&self, level: usize) -> Bytes {
        Bytes(self.machine.memory.0 / 100 * LEVELS[level])
    }

    fn row(&self, configuration: Configuration, compiled: Compiled) -> Result<Row> {
        let outcome = Outcome::of(&compiled)?;
        let bound = match configuration.schedule {
            ScheduleKind::Auto => None,
            _ => {
                let known = Known::new(self.job, self.machine, &[configuration], 1);
                known.look(&configuration)?.map(|look| look.bound)
            }
        };
        Ok(Row { configuration, outcome, bound, compiled })
    }

    /// The first sieve. What is no better than the job itself is not looked for.
    fn sieve(&self, given: &Row) -> Sieved {
        let same_gpus = given.configuration.gpus() == self.space.gpus;
        let of = |level: usize| {
            let memory = self.level(level);
            let known = same_gpus && given.outcome.need <= memory;
            (memory, if known { given.outcome.step } else { Nanos(u64::MAX) })
        };
        let sieve = Sieve {
            job: self.job,
            machine: self.machine,
            space: self.space,
            levels: (0..LEVELS.len()).map(of).collect(),
            kept: self.limits.looks,
        };
        sieve.sieved(self.threads, &|done, all| (self.progress)(Phase::Bounds, done, all))
    }

    /// The second sieve.
    fn look_at(&mut self, configurations: BTreeSet<Configuration>) -> Result<()> {
        let new: Vec<Configuration> = configurations.into_iter().filter(|of| !self.looks.contains_key(of)).collect();
        let (mut done, all) = (0, new.len() as u64);
        for some in new.chunks(LOOKED_AT_ONCE) {
            let known = Known::new(self.job, self.machine, some, self.threads);
            let looks = parallel::map(self.threads, some, |of| known.look(of));
            for (of, look) in some.iter().zip(looks) {
                if let Some(look) = look? {
                    self.looks.insert(*of, look);
                }
            }
            done += some.len() as u64;
            (self.progress)(Phase::Looks, done, all);
        }
        Ok(())
    }

    /// The fastest with layers in their plain form that fits into a level.
    fn best(&self, level: usize) -> Option<(Outcome, Configuration)> {
        let fits = self.plain.iter().filter(|(_, outcome)| outcome.need <= self.level(level));
        fits.map(|(&of, &outcome)| (outcome, of)).min_by_key(|(outcome, of)| (outcome.step, outcome.need, *of))
    }

    /// Compiles these, but for those that are known, with layers in their plain form.
    fn compile_these(&mut self, these: &[Configuration]) {
        let new: Vec<Configuration> = these.iter().filter(|of| !self.plain.contains_key(of)).copied().collect();
        let outcomes = parallel::map(self.threads, &new, |of| Outcome::plain(&of.apply(self.job)));
        // What a rule of the passes refuses is no configuration.
        self.plain.extend(new.into_iter().zip(outcomes).filter_map(|(of, outcome)| Some((of, outcome.ok()?))));
    }

    /// The third sieve: of each level those with the least estimates, as long as their bounds let them be the best.
    fn compile_plain(&mut self, candidates: &[Vec<Configuration>]) {
        let all = (LEVELS.len() * self.limits.plain) as u64;
        for (level, candidates) in candidates.iter().enumerate() {
            let mut ordered: Vec<(Look, Configuration)> =
                candidates.iter().filter_map(|of| Some((*self.looks.get(of)?, *of))).collect();
            ordered.retain(|(look, _)| look.memory <= self.level(level));
            ordered.sort_by_key(|(look, of)| (look.estimate, *of));
            let mut left = self.limits.plain;
            let mut ordered = ordered.into_iter();
            while left > 0 {
                let best = self.best(level).map_or(Nanos(u64::MAX), |(outcome, _)| outcome.step);
                let some: Vec<Configuration> = ordered
                    .by_ref()
                    .filter(|(look, _)| look.bound < best)
                    .map(|(_, of)| of)
                    .take(left.min(COMPILED_AT_ONCE))
                    .collect();
                if some.is_empty() {
                    break;
                }
                self.compile_these(&some);
                left -= some.len();
                (self.progress)(Phase::Plain, ((level + 1) * self.limits.plain - left) as u64, all);
            }
        }
    }

    /// Moves the best of each level to neighbours as long as one is better.
    fn climb(&mut self) -> Result<()> {
        for level in 0..LEVELS.len() {
            for _ in 0..self.limits.moves {
                let Some((outcome, best)) = self.best(level) else { break };
                let around: Vec<Configuration> = self.neighbours_of(&best).into_iter().map(|(_, of)| of).collect();
                self.look_at(around.iter().copied().collect())?;
                let mut worth: Vec<(Look, Configuration)> =
                    around.into_iter().filter_map(|of| Some((*self.looks.get(&of)?, of))).collect();
                worth.retain(|(look, of)| {
                    look.memory <= self.level(level) && look.bound < outcome.step && !self.plain.contains_key(of)
                });
                worth.sort_by_key(|(look, of)| (look.estimate, *of));
                let some: Vec<Configuration> = worth.into_iter().map(|(_, of)| of).take(self.limits.moved).collect();
                self.compile_these(&some);
                if self.best(level).is_none_or(|(_, now)| now == best) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Those next to a configuration that there are.
    fn neighbours_of(&self, of: &Configuration) -> Vec<(Decision, Configuration)> {
        let mut all = neighbours::neighbours(self.space, of);
        all.retain(|(_, of)| self.space.contains(of));
        all
    }

    /// The last sieve: the best few of each level.
    fn compile_full(&mut self) {
        let mut chosen: BTreeSet<Configuration> = BTreeSet::new();
        for level in 0..LEVELS.len() {
            let mut fits: Vec<(Outcome, Configuration)> =
                self.plain.iter().map(|(&of, &outcome)| (outcome, of)).collect();
            fits.retain(|(outcome, _)| outcome.need <= self.level(level));
            fits.sort_by_key(|(outcome, of)| (outcome.step, outcome.need, *of));
            chosen.extend(fits.into_iter().map(|(_, of)| of).take(self.limits.full));
        }
        self.compile_rewritten(&chosen.into_iter().collect::<Vec<_>>());
    }

    /// The first of the front once more, with the schedule that the compiler finds.
    fn compile_auto(&mut self, given: &Row) {
        let found = |of: &Configuration| Configuration { schedule: ScheduleKind::Auto, stages_per_rank: None, ..*of };
        let front = self.front(given);
        let first = front.iter().take(self.limits.auto).map(|row| found(&row.configuration));
        let new: BTreeSet<Configuration> = first.filter(|of| *of != given.configuration).collect();
        self.compile_rewritten(&new.into_iter().collect::<Vec<_>>());
    }

    fn compile_rewritten(&mut self, chosen: &[Configuration]) {
        let mut done = 0;
        for some in chosen.chunks(COMPILED_AT_ONCE) {
            let rows = parallel::map(self.threads, some, |of| {
                let compiled = passes::compile(&of.apply(self.job)).ok()?;
                self.row(*of, compiled).ok()
            });
            self.full.extend(some.iter().copied().zip(rows));
            done += some.len();
            (self.progress)(Phase::Full, done as u64, chosen.len() as u64);
        }
    }

    /// Of all that was compiled with rewritten layers, and fits, what nothing is better than in both time and memory.
    fn front(&self, given: &Row) -> Vec<Row> {
        let limit = self.machine.memory;
        let mut rows: Vec<Row> = self.full.values().flatten().cloned().collect();
        if given.configuration.gpus() == self.space.gpus
            && rows.iter().all(|row| row.configuration != given.configuration)
        {
            rows.push(given.clone());
        }
        rows.retain(|row| row.outcome.need <= limit);
        rows.sort_by_key(|row| (row.outcome.step, row.outcome.need, row.configuration));
        let mut front: Vec<Row> = Vec::new();
        for row in rows {
            if front.iter().all(|better| !better.outcome.dominates(&row.outcome) && better.outcome != row.outcome) {
                front.push(row);
            }
        }
        front
    }

    fn found(self, given: Row, sieved: &Sieved, explain: bool) -> Result<Found> {
        let limit = self.machine.memory;
        let front = self.front(&given);
        let Some(best) = front.first() else { return Err(self.nothing_fits(sieved)) };
        let neighbours = if explain { self.reasons(best) } else { Vec::new() };
        let bound = sieved.bound.min(best.outcome.step);
        Ok(Found {
            neighbours,
            gpus: self.space.gpus,
            memory: limit,
            compiled_in_full: self.full.len() as u64,
            job: self.job.clone(),
            configurations: self.space.count(),
            looked_at: self.looks.len() as u64,
            compiled: self.plain.len() as u64,
            bound,
            given,
            front,
        })
    }

    fn nothing_fits(&self, sieved: &Sieved) -> Error {
        let limit = self.machine.memory;
        let nearest = self.plain.iter().min_by_key(|(of, outcome)| (outcome.need, **of));
        match (nearest, sieved.leanest) {
            (Some((of, outcome)), _) => {
                let over = outcome.need.saturating_sub(limit);
                Error::new(format!(
                    "no configuration that was compiled fits in {limit}: the nearest needs {over} more ({of})"
                ))
            }
            (None, Some((least, of))) => {
                let count = self.space.count();
                let nearest = match least > limit {
                    true => format!("needs at least {} more", least - limit),
                    false => "may need little more".to_owned(),
                };
                Error::new(format!("none of {count} configurations fits in {limit}: the nearest {nearest} ({of})"))
            }
            (None, None) if self.space.splits.is_empty() => Error::new(format!(
                "{} sequences a step cannot be divided over more than half of {} GPUs",
                self.space.sequences, self.space.gpus
            )),
            (None, None) => Error::new("there is no configuration with what is kept"),
        }
        .help("use more GPUs, GPUs with more memory, or keep less with `--keep`")
    }

    /// What speaks against the neighbours of the fastest.
    fn reasons(&self, best: &Row) -> Vec<Neighbour> {
        let limit = self.machine.memory;
        let own = self.plain.get(&best.configuration).map_or(best.outcome.step, |outcome| outcome.step);
        let all = neighbours::neighbours(self.space, &best.configuration);
        let known = {
            let configurations: Vec<Configuration> = all.iter().map(|(_, of)| *of).collect();
            Known::new(self.job, self.machine, &configurations, self.threads)
        };
        let reason = |of: &Configuration| -> Reason {
            if let Some(fault) = neighbours::fault(self.job, of) {
                return Reason::Invalid(fault);
            }
            match known.look(of) {
                Ok(Some(look)) if look.memory > limit => return Reason::Memory(look.memory - limit),
                Ok(Some(look)) if look.bound > best.outcome.step => {
                    return Reason::Bound(look.bound - best.outcome.step);
                }
                Ok(_) => {}
                Err(error) => return Reason::Invalid(error.to_string()),
            }
            if let Some(Some(row)) = self.full.get(of) {
                return match row.outcome {
                    Outcome { need, .. } if need > limit => Reason::PlanMemory(need - limit),
                    Outcome { step, .. } => Reason::FullPlan(step.saturating_sub(best.outcome.step)),
                };
            }
            let outcome = match self.plain.get(of) {
                Some(outcome) => Ok(*outcome),
                None => Outcome::plain(&of.apply(self.job)),
            };
            match outcome {
                Err(error) => Reason::Invalid(error.to_string()),
                Ok(outcome) if outcome.need > limit => Reason::PlanMemory(outcome.need - limit),
                Ok(outcome) if outcome.step > own => Reason::Plan(outcome.step - own),
                Ok(outcome) => Reason::Near(own - outcome.step),
            }
        };
        let reasons = parallel::map(self.threads, &all, |(_, of)| reason(of));
        let with = |((decision, configuration), reason)| Neighbour { decision, configuration, reason };
        all.into_iter().zip(reasons).map(with).collect()
    }
}
