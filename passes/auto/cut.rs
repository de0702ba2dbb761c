//! Another cut into stages, where it makes the timetable shorter.
//!
//! Stages of equal cost are not always the best: the last one may be heavy and the first light, and what counts is what a *rank* holds.
//! Cuts are compared by what their fullest rank has to do, with costs that add up over units: each unit's computation and exchanges,
//! scaled so that they agree with the programs of the first cut. The winner is compiled with programs of its own.

use std::collections::BTreeMap;

use crate::ir::{Placement, Unit};
use crate::job::Job;
use crate::passes::unit_work::{self, UnitOp};
use crate::passes::{Chunks, lower};

/// Most cuts that are looked at.
const MOST_CUTS: usize = 4_000;

/// Where to cut instead; `None` if nothing better is found.
pub fn better(job: &Job, chunks: &Chunks) -> Option<Vec<usize>> {
    let model = Costs::new(job, chunks);
    let mut ends: Vec<usize> = Vec::new();
    for stage in &chunks.lowered.stages {
        ends.push(ends.last().copied().unwrap_or(0) + stage.units.len());
    }
    let first = ends.clone();
    let mut best = model.estimate(&ends);
    let mut left = MOST_CUTS;
    // Takes the best change as long as one helps.
    while let Some((estimate, next)) = changes(&ends)
        .take(left)
        .map(|ends| (model.estimate(&ends), ends))
        .min_by(|one, other| one.0.0.total_cmp(&other.0.0).then(one.0.1.total_cmp(&other.0.1)))
        .filter(|(estimate, _)| *estimate < best)
    {
        left = left.saturating_sub(changes(&ends).count());
        (best, ends) = (estimate, next);
    }
    (ends != first).then_some(ends)
}

/// Cuts that differ from this one by one unit: some neighbouring ends, all but the last, go forward or back by one together, so that
/// the unit goes from one stage to another and those between keep as many as they have.
fn changes(ends: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let inner = ends.len().saturating_sub(1);
    let ranges = (0..inner).flat_map(move |from| (from..inner).map(move |to| (from, to)));
    let moved = ranges.flat_map(|(from, to)| [(from, to, true), (from, to, false)]);
    moved.filter_map(|(from, to, forward)| {
        let mut next = ends.to_vec();
        next[from..=to].iter_mut().for_each(|end| *end = if forward { *end + 1 } else { *end - 1 });
        let longer = |pair: &[usize]| pair[0] < pair[1];
        (next[0] > 0 && next.windows(2).all(longer)).then_some(next)
    })
}

/// What stages cost, whatever the cut.
struct Costs<'a> {
    chunks: &'a Chunks,
    /// Per unit, F, I and W.
    units: Vec<[f64; 3]>,
    /// By which sums over units are multiplied, for F, I, W and B: as the programs of the first cut have it.
    scale: [f64; 4],
    /// What a pair takes of its forward and its backward one after the other; `None` without pairs.
    paired: Option<f64>,
}

impl<'a> Costs<'a> {
    fn new(job: &'a Job, chunks: &'a Chunks) -> Self {
        let mut known: BTreeMap<Unit, [f64; 3]> = BTreeMap::new();
        let units = unit_work::units(job);
        let units = units.into_iter().map(|unit| {
            let unit = lower::alike(job, unit);
            *known.entry(unit).or_insert_with(|| of_unit(job, chunks, unit))
        });
        let mut costs = Self { chunks, units: units.collect(), scale: [1.0; 4], paired: None };
        let mut first = 0;
        let (mut exact, mut summed) = ([0.0; 4], [0.0; 4]);
        for (stage, programs) in chunks.lowered.stages.iter().zip(&chunks.overlapped.stages) {
            let time = |program: u32| chunks.overlapped.durations[program as usize].as_f64();
            let [f, i, w] = costs.sum(first, first + stage.units.len());
            first += stage.units.len();
            let of = [(programs.f, f), (programs.i, i), (programs.w, w), (programs.b, i + w)];
            for (at, (program, sum)) in of.into_iter().enumerate() {
                exact[at] += time(program);
                summed[at] += sum;
            }
        }
        for (scale, (exact, summed)) in costs.scale.iter_mut().zip(exact.into_iter().zip(summed)) {
            *scale = if summed > 0.0 { exact / summed } else { 1.0 };
        }
        let (mut together, mut apart) = (0.0, 0.0);
        for (&(f, b), &program) in &chunks.overlapped.pairs {
            let time = |program: u32| chunks.overlapped.durations[program as usize].as_f64();
            let of = |stage: u32| &chunks.overlapped.stages[stage as usize];
            together += time(program);
            apart += time(of(f).f) + time(of(b).b);
        }
        costs.paired = (apart > 0.0).then(|| together / apart);
        costs
    }

    fn sum(&self, from: usize, to: usize) -> [f64; 3] {
        let mut sum = [0.0; 3];
        for unit in &self.units[from..to] {
            sum.iter_mut().zip(unit).for_each(|(sum, cost)| *sum += cost);
        }
        sum
    }

    /// About how long the timetable of a cut takes, in ns: the rank's work and its way in and out, for the rank where that is most. And
    /// then the sum of the stages' squares: of equals the more even cut is better.
    fn estimate(&self, ends: &[usize]) -> (f64, f64) {
        let layout = &self.chunks.lowered.layout;
        let mut from = 0;
        let mut stages: Vec<[f64; 3]> = Vec::with_capacity(ends.len());
        for &end in ends {
            let [f, i, w] = self.sum(from, end);
            from = end;
            stages.push([f * self.scale[0], i * self.scale[1], (i + w) * self.scale[3]]);
        }
        // Before the first forward on a stage has come, and after its last gradient has gone.
        let mut outside = vec![0.0; stages.len()];
        for at in 1..stages.len() {
            let [f, i, _] = stages[at - 1];
            outside[at] = outside[at - 1] + f + i;
        }
        let micro_batches = f64::from(layout.micro_batches);
        let both_ways = layout.placement == Placement::Bidirectional;
        let rank = |rank: u32| {
            let held: Vec<usize> = layout.stages_of(rank).into_iter().map(|stage| stage as usize).collect();
            let apart: f64 = held.iter().map(|&stage| stages[stage][0] + stages[stage][2]).sum();
            let each = if both_ways && held.len() == 2 { micro_batches / 2.0 } else { micro_batches };
            let way = held.iter().map(|&stage| outside[stage]).fold(f64::INFINITY, f64::min);
            apart * self.paired.unwrap_or(1.0) * each + way
        };
        let longest = (0..layout.ranks).map(rank).fold(0.0, f64::max);
        (longest, stages.iter().map(|[f, _, b]| (f + b) * (f + b)).sum())
    }
}

/// F, I and W of a unit, one op after the other, in ns.
fn of_unit(job: &Job, chunks: &Chunks, unit: Unit) -> [f64; 3] {
    let work = unit_work::unit_work(job, unit, job.training.recompute);
    let time = |ops: &mut dyn Iterator<Item = &UnitOp>| -> f64 {
        let duration = |op: &UnitOp| {
            let sms = chunks.machine.sms_of(&op.work, chunks.budget.sms);
            chunks.machine.duration(&op.work, sms).as_f64()
        };
        ops.map(duration).sum()
    };
    [time(&mut work.f.iter()), time(&mut work.backward()), time(&mut work.w.iter())]
}
