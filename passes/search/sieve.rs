//! The first sieve: every configuration of the space against its bounds.

use super::bound::{Shape, Table};
use super::configuration::Configuration;
use super::space::{Setting, Space, Split};
use crate::job::Job;
use crate::job::training::ScheduleKind;
use crate::machine::Machine;
use crate::parallel;
use crate::units::{Bytes, Nanos};

/// Settings between two merges of what was found.
const BATCH: usize = 64;

/// What is sieved.
pub struct Sieve<'a> {
    pub job: &'a Job,
    pub machine: &'a Machine,
    pub space: &'a Space,
    /// Each with its memory, from much to little, and the step that a bound has to be below.
    pub levels: Vec<(Bytes, Nanos)>,
    /// How many configurations of each schedule are kept for a level.
    pub kept: usize,
}

/// What is left.
pub struct Sieved {
    /// For each level the configurations of each schedule that are likely to fit, then the others, with the least bounds. Of those that differ only in SMs the best.
    pub candidates: Vec<Vec<Configuration>>,
    /// No plan of any configuration that fits, and is faster than had to be, is below.
    pub bound: Nanos,
    /// Of all configurations the one with the least bound of memory.
    pub leanest: Option<(Bytes, Configuration)>,
}

/// A configuration with its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bounded {
    /// It is likely to need more than the level has.
    unlikely: bool,
    step: Nanos,
    memory: Bytes,
    configuration: Configuration,
}

/// By level and schedule.
type Lists = Vec<[Vec<Bounded>; ScheduleKind::PUBLISHED.len()]>;

/// A split and what bounds need of it with each of its schedules.
type Shaped<'a> = (&'a Split, Vec<Shape>);

impl Sieve<'_> {
    /// Sieves, and tells how many settings are done, and of how many.
    pub fn sieved(&self, threads: usize, progress: &dyn Fn(u64, u64)) -> Sieved {
        let shapes =
            |split: &Split| split.schedules.iter().map(|&(kind, _)| Shape::new(self.job, split, kind)).collect();
        let splits: Vec<Shaped> = self.space.splits.iter().map(|split| (split, shapes(split))).collect();
        let mut best: Lists = self.levels.iter().map(|_| Default::default()).collect();
        let (mut leanest, mut bound) = (None, Nanos(u64::MAX));
        let all = self.space.settings.len() as u64;
        for (number, settings) in self.space.settings.chunks(BATCH).enumerate() {
            for (found, lean, least) in parallel::map(threads, settings, |setting| self.of_setting(setting, &splits)) {
                leanest = leanest.into_iter().chain(lean).min();
                bound = bound.min(least);
                let lists = best.iter_mut().flatten().zip(found.into_iter().flatten());
                lists.for_each(|(best, found)| best.extend(found));
            }
            for list in best.iter_mut().flatten() {
                list.sort_unstable();
                list.truncate(self.kept);
            }
            progress((number * BATCH + settings.len()) as u64, all);
        }
        let configurations = |lists: &[Vec<Bounded>; ScheduleKind::PUBLISHED.len()]| {
            lists.iter().flatten().map(|bounded| bounded.configuration).collect()
        };
        Sieved { bound, candidates: best.iter().map(configurations).collect(), leanest }
    }

    fn of_setting(&self, setting: &Setting, splits: &[Shaped]) -> (Lists, Option<(Bytes, Configuration)>, Nanos) {
        let sms = &self.space.sms;
        let table = Table::new(self.job, self.machine, setting, sms);
        let mut found: Lists = self.levels.iter().map(|_| Default::default()).collect();
        let mut leanest: Option<(Bytes, Configuration)> = None;
        let mut bound = Nanos(u64::MAX);
        for (split, shapes) in splits.iter().filter(|(split, _)| split.takes(setting)) {
            for (&schedule, shape) in split.schedules.iter().zip(shapes) {
                let memory = table.memory(shape);
                if leanest.is_none_or(|(least, _)| memory < least) {
                    leanest = Some((memory, split.with(schedule, setting, sms[0])));
                }
                if self.levels.iter().all(|(level, _)| memory > *level) {
                    continue;
                }
                let Some((step, at)) = (0..sms.len()).map(|at| (table.step(shape, at), at)).min() else { continue };
                bound = bound.min(step);
                let (likely, configuration) = (table.likely_memory(shape), split.with(schedule, setting, sms[at]));
                let kind = ScheduleKind::PUBLISHED.iter().position(|kind| *kind == schedule.0);
                for (lists, (level, useful)) in found.iter_mut().zip(&self.levels) {
                    if let Some(kind) = kind.filter(|_| memory <= *level && step < *useful) {
                        lists[kind].push(Bounded { unlikely: likely > *level, step, memory, configuration });
                    }
                }
            }
        }
        (found, leanest, bound)
    }
}
