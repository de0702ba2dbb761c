//! Two streams of ops that slow each other while both run.
//!
//! An op has a duration alone and, for each op of the other stream, a duration with that one beside it all the time. At any
//! moment it advances at the speed of what is beside it just then. All times are whole nanoseconds: an op's progress is
//! rounded down whenever what is beside it changes, so it ends less than a nanosecond late for each such change.

use super::Span;
use crate::ir::Stream;
use crate::units::Nanos;

/// Ops in launch order, as [`run_streams`] asks for them. Ops are named by their place.
pub trait StreamOps {
    /// How many there are.
    fn count(&self) -> usize;
    /// The stream of an op.
    fn stream(&self, op: usize) -> Stream;
    /// Earlier ops whose end it waits for. One that is not earlier counts as nothing.
    fn waits(&self, op: usize) -> &[u32];
    /// How long it takes alone.
    fn alone(&self, op: usize) -> Nanos;
    /// How long it takes with `other`, of the other stream, beside it all the time; at least [`StreamOps::alone`].
    fn beside(&self, op: usize, other: usize) -> Nanos;
}

/// An op that has started.
#[derive(Clone, Copy)]
struct Running {
    op: usize,
    /// Of its duration alone, what is left.
    left: Nanos,
}

/// When each op runs. An op starts when the one before it on its stream and all that it waits for have ended.
pub fn run_streams(ops: &impl StreamOps) -> Vec<Span> {
    let count = ops.count();
    let mut spans = vec![Span::default(); count];
    let mut ended = vec![false; count];
    let mut lines: [Vec<usize>; 2] = Default::default();
    (0..count).rev().for_each(|op| lines[ops.stream(op) as usize].push(op));
    let mut running: [Option<Running>; 2] = [None, None];
    let mut now = Nanos::ZERO;
    loop {
        for (line, running) in lines.iter_mut().zip(&mut running) {
            if running.is_some() {
                continue;
            }
            let ready = |&op: &usize| ops.waits(op).iter().all(|&wait| wait as usize >= op || ended[wait as usize]);
            if let Some(op) = line.last().copied().filter(ready) {
                line.pop();
                spans[op].start = now;
                *running = Some(Running { op, left: ops.alone(op) });
            }
        }
        // How far each comes until the first of them ends.
        let step = match running {
            [None, None] => break,
            [Some(one), None] | [None, Some(one)] => one.left,
            [Some(one), Some(other)] => {
                let paces = [Pace::new(ops, one.op, other.op), Pace::new(ops, other.op, one.op)];
                let times = [paces[0].time(one.left), paces[1].time(other.left)];
                let step = times[0].min(times[1]);
                for ((running, pace), time) in running.iter_mut().flatten().zip(paces).zip(times) {
                    running.left = if time == step { Nanos::ZERO } else { running.left - pace.progress(step) };
                }
                step
            }
        };
        now += step;
        let both = running.iter().flatten().count() == 2;
        for slot in &mut running {
            let Some(one) = *slot else { continue };
            if !both || one.left == Nanos::ZERO {
                spans[one.op].end = now;
                ended[one.op] = true;
                *slot = None;
            }
        }
    }
    spans
}

/// The speed of an op beside another: `alone` of its time passes in `beside`.
struct Pace {
    alone: u128,
    beside: u128,
}

impl Pace {
    fn new(ops: &impl StreamOps, op: usize, other: usize) -> Self {
        let alone = u128::from(ops.alone(op).0);
        Self { alone, beside: u128::from(ops.beside(op, other).0).max(alone) }
    }

    /// How long `left` of its time alone takes, rounded up.
    fn time(&self, left: Nanos) -> Nanos {
        match self.alone {
            0 => Nanos::ZERO,
            alone => Nanos((u128::from(left.0) * self.beside).div_ceil(alone) as u64),
        }
    }

    /// What of its time alone passes in `time`, rounded down.
    fn progress(&self, time: Nanos) -> Nanos {
        match self.beside {
            0 => Nanos::ZERO,
            beside => Nanos((u128::from(time.0) * self.alone / beside) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stream, duration alone, duration beside anything, waits.
    struct Table(Vec<(Stream, u64, u64, Vec<u32>)>);

    impl StreamOps for Table {
        fn count(&self) -> usize {
            self.0.len()
        }
        fn stream(&self, op: usize) -> Stream {
            self.0[op].0
        }
        fn waits(&self, op: usize) -> &[u32] {
            &self.0[op].3
        }
        fn alone(&self, op: usize) -> Nanos {
            Nanos(self.0[op].1)
        }
        fn beside(&self, op: usize, _: usize) -> Nanos {
            Nanos(self.0[op].2)
        }
    }

    fn times(ops: Vec<(Stream, u64, u64, Vec<u32>)>) -> Vec<(u64, u64)> {
        run_streams(&Table(ops)).into_iter().map(|span| (span.start.0, span.end.0)).collect()
    }

    #[test]
    fn ops_slow_each_other_only_while_both_run() {
        use Stream::{Comm, Compute};
        // The exchange takes 60 in place of 50. In that time the kernel does 60 · 100/120 = 50 of its 100; 50 are left.
        let ops = vec![(Compute, 100, 120, vec![]), (Comm, 50, 60, vec![])];
        assert_eq!(times(ops), [(0, 110), (0, 60)]);
        // One after the other nobody is slowed.
        let ops = vec![(Compute, 100, 120, vec![]), (Comm, 50, 60, vec![0])];
        assert_eq!(times(ops), [(0, 100), (100, 150)]);
        // Two kernels beside one exchange: 30 + 30 of 70; the third is alone for the rest.
        let ops = vec![
            (Compute, 20, 30, vec![]),
            (Compute, 20, 30, vec![]),
            (Comm, 60, 60, vec![]),
            (Compute, 7, 9, vec![2]),
        ];
        assert_eq!(times(ops), [(0, 30), (30, 60), (0, 60), (60, 67)]);
        // What ends together ends together; what takes no time takes none.
        let ops =
            vec![(Compute, 10, 20, vec![]), (Comm, 10, 20, vec![]), (Compute, 0, 0, vec![1]), (Comm, 0, 0, vec![2])];
        assert_eq!(times(ops), [(0, 20), (0, 20), (20, 20), (20, 20)]);
    }
}
