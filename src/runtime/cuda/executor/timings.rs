//! What traced steps took, by op and by program.

use std::collections::BTreeMap;

use super::trace::{Span, What};
use crate::runtime::world::Gpu;
use crate::units::Nanos;

/// Times of several steps.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    /// By program and op of it: one for each time that it ran.
    pub ops: BTreeMap<(u32, u32), Vec<Nanos>>,
    /// By program.
    pub programs: BTreeMap<u32, Vec<Nanos>>,
    /// From the first begin to the last end on any GPU.
    pub steps: Vec<Nanos>,
}

/// A median, and what half of all times lie between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The median: the lower of the two in the middle.
    pub median: Nanos,
    /// Quartiles.
    pub quartiles: (Nanos, Nanos),
    /// How many times there are.
    pub runs: u32,
}

impl Timings {
    /// Adds what ran in a step.
    pub fn add(&mut self, step: &[(Gpu, Vec<Span>)]) {
        let spans = || step.iter().flat_map(|(_, spans)| spans);
        for span in spans() {
            let time = span.end.saturating_sub(span.start);
            match span.what {
                What::Item => {}
                What::Program(program) => self.programs.entry(program).or_default().push(time),
                What::Op(program, op) => self.ops.entry((program, op)).or_default().push(time),
            }
        }
        if let (Some(begin), Some(end)) = (spans().map(|span| span.start).min(), spans().map(|span| span.end).max()) {
            self.steps.push(end.saturating_sub(begin));
        }
    }
}

impl Spread {
    /// Of some times, if there are any.
    pub fn of(times: &[Nanos]) -> Option<Self> {
        let mut times = times.to_vec();
        times.sort_unstable();
        let at = |quarter: usize| times.get((times.len().checked_sub(1)?) * quarter / 4).copied();
        Some(Self { median: at(2)?, quartiles: (at(1)?, at(3)?), runs: times.len() as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::StreamId;

    #[test]
    fn times_are_gathered_by_op_over_steps_and_gpus() {
        let span = |what, start, end| Span {
            stream: StreamId::Compute,
            exchange: false,
            name: String::new(),
            what,
            start: Nanos(start),
            end: Nanos(end),
        };
        let gpu = |rank| Gpu { rank, replica: 0 };
        let mut timings = Timings::default();
        timings.add(&[
            (gpu(0), vec![span(What::Op(1, 0), 10, 30), span(What::Op(1, 2), 30, 31), span(What::Program(1), 10, 40)]),
            (gpu(1), vec![span(What::Op(1, 0), 5, 15), span(What::Item, 15, 95)]),
        ]);
        timings.add(&[(gpu(0), vec![span(What::Op(1, 0), 0, 12)])]);
        assert_eq!(timings.ops[&(1, 0)], [Nanos(20), Nanos(10), Nanos(12)]);
        assert_eq!(timings.ops[&(1, 2)], [Nanos(1)]);
        assert_eq!(timings.programs[&1], [Nanos(30)]);
        assert_eq!(timings.steps, [Nanos(90), Nanos(12)]);
        let spread = Spread::of(&timings.ops[&(1, 0)]).expect("times");
        assert_eq!((spread.median, spread.quartiles, spread.runs), (Nanos(12), (Nanos(10), Nanos(12)), 3));
        assert_eq!(Spread::of(&[]), None);
    }
}
