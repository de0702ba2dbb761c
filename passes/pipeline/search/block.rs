//! Building blocks: one micro-batch of each direction, placed so that it can be repeated once a period (Qi et al. 2024, "Pipeline
//! Parallelism with Controllable Memory"; modulo scheduling in compilers).
//!
//! Every rank has a table as long as the period. The steps of the micro-batch take their places in it one after the other on its way to the
//! last stage and back, each at the first time that is free in the table, and W in what is left. A longer period leaves fewer micro-batches
//! in flight, so memory is met by trying periods.

use super::model::{Model, Step};
use super::pattern::Pattern;

/// Periods that are tried, in sixteenths of the busiest rank's work for one micro-batch (of each direction).
const PERIODS: std::ops::RangeInclusive<u64> = 8..=40;

/// Starts of the second direction that are tried, in quarters of the period.
const STARTS: [u64; 3] = [0, 1, 2];

/// Building blocks for many periods. Whether they fit in memory is for the orders to show that they make.
pub(super) fn blocks(model: &Model) -> impl Iterator<Item = Pattern> {
    let work = |held: &Vec<usize>| held.iter().map(|&at| model.lanes[at].work()).sum::<u64>();
    let work = model.of_rank.iter().map(work).max().unwrap_or(0);
    let ways: &[Way] =
        if model.pairs_help() { &[Way::Split, Way::Whole, Way::Paired] } else { &[Way::Split, Way::Whole] };
    let starts = if model.lanes.iter().any(|lane| lane.first > 0) { STARTS.len() } else { 1 };
    PERIODS.flat_map(move |sixteenths| {
        let period = (u128::from(work) * u128::from(sixteenths)).div_ceil(16) as u64;
        ways.iter()
            .flat_map(move |&way| STARTS[..starts].iter().filter_map(move |&start| block(model, period, way, start)))
    })
}

/// What a backward is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// I, and W later.
    Split,
    /// B.
    Whole,
    /// B, overlapped with the F of another micro-batch where that is shorter.
    Paired,
}

/// A rank's table.
#[derive(Default)]
struct Table {
    /// What is placed: step, time, duration.
    placed: Vec<(Step, u64, u64)>,
    /// Of those the F that no B is overlapped with yet, by place.
    open: Vec<usize>,
    /// B that share the place of an F: that, and the time.
    shared: Vec<(usize, u32, u64)>,
}

impl Table {
    /// The first time from `from` on at which so much is free in every repetition.
    fn free(&self, from: u64, duration: u64, period: u64) -> Option<u64> {
        let ends = self.placed.iter().map(|(_, time, duration)| {
            let end = (time + duration) % period;
            from + (end + period - from % period) % period
        });
        let is_free = |time: &u64| {
            let clash = |&(_, other, length): &(Step, u64, u64)| {
                let after = (other % period + period - time % period) % period;
                // Empty steps are in nobody's way.
                length > 0 && duration > 0 && (after < duration || after + length > period)
            };
            !self.placed.iter().any(clash)
        };
        std::iter::once(from).chain(ends).filter(is_free).min().filter(|_| duration <= period)
    }
}

fn block(model: &Model, period: u64, way: Way, start: u64) -> Option<Pattern> {
    if period == 0 {
        return None;
    }
    let mut tables: Vec<Table> = model.of_rank.iter().map(|_| Table::default()).collect();
    let mut weights: Vec<(usize, u64)> = Vec::new();
    let directions: Vec<usize> = (0..model.lanes.len()).filter(|&at| model.lanes[at].before.is_none()).collect();
    for (number, &first) in directions.iter().enumerate() {
        let stages = first..directions.get(number + 1).copied().unwrap_or(model.lanes.len());
        let mut time = if number > 0 { period * start / 4 } else { 0 };
        for at in stages.clone() {
            let lane = &model.lanes[at];
            let table = &mut tables[lane.rank];
            // A pair's place, if there is to be one.
            let pairs = model.of_rank[lane.rank].iter().filter(|&&b| model.saving(at, b) > 0);
            let pair = pairs.map(|&b| model.pair(at, b)).max().filter(|_| way == Way::Paired);
            let duration = pair.unwrap_or(lane.f);
            time = table.free(time + lane.before.map_or(0, |(_, hop)| hop), duration, period)?;
            if pair.is_some() {
                table.open.push(table.placed.len());
            }
            table.placed.push((Step::F(at as u32), time, duration));
            time += duration;
        }
        for at in stages.rev() {
            let lane = &model.lanes[at];
            let table = &mut tables[lane.rank];
            let arrival = time + lane.after.map_or(0, |(_, hop)| hop);
            let beside = |&index: &usize| {
                let (step, time, duration) = table.placed[index];
                let Step::F(f) = step else { return None };
                let fits = model.saving(f as usize, at) > 0 && model.pair(f as usize, at) <= duration;
                let wait = (time % period + period - arrival % period) % period;
                fits.then_some((arrival + wait, index, duration))
            };
            if let Some((place, index, duration)) = table.open.iter().filter_map(beside).min() {
                table.open.retain(|&other| other != index);
                table.shared.push((index, at as u32, place));
                time = place + duration;
                continue;
            }
            let (step, duration) = match way {
                Way::Split => (Step::I(at as u32), lane.i),
                Way::Whole | Way::Paired => (Step::B(at as u32), lane.b),
            };
            let place = table.free(arrival, duration, period)?;
            table.placed.push((step, place, duration));
            time = place + duration;
            if way == Way::Split {
                weights.push((at, time));
            }
        }
    }
    for (at, time) in weights {
        let lane = &model.lanes[at];
        let table = &mut tables[lane.rank];
        let place = table.free(time, lane.w, period)?;
        table.placed.push((Step::W(at as u32), place, lane.w));
    }
    Some(Pattern::of_one(model, tables.into_iter().map(|table| table.body(period)).collect()))
}

impl Table {
    /// The steps of one period, each with the chunks of its F and its I in the first one.
    fn body(self, period: u64) -> Vec<(Step, [i64; 2])> {
        // Below 2^52 and therefore within an i64.
        let chunk = |time: u64| -((time / period) as i64);
        let Self { mut placed, shared, .. } = self;
        let mut chunks: Vec<[i64; 2]> = placed.iter().map(|&(_, time, _)| [chunk(time); 2]).collect();
        for (index, b, time) in shared {
            if let (Step::F(f), ..) = placed[index] {
                placed[index].0 = Step::Pair(f, b);
                chunks[index][1] = chunk(time);
            }
        }
        let mut body: Vec<(u64, usize)> =
            placed.iter().enumerate().map(|(at, (_, time, _))| (time % period, at)).collect();
        body.sort_unstable();
        body.into_iter().map(|(_, at)| (placed[at].0, chunks[at])).collect()
    }
}
