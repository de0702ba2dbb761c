//! One machine with heads and tails (Jackson 1955; Carlier 1982).

use std::collections::BinaryHeap;

use super::heads::{Heads, Progress};
use super::lines::{Lines, Shares};
use super::pairs::Window;
use super::tails::Tails;
use crate::units::Nanos;

/// No timetable is shorter, as each rank runs what is not done one after the other. Of timetables no longer than `within` only.
///
/// Each action is cut into the shares of I, F and W, in that order. So each share lies within its action, the head of F and I is
/// that of the action, and behind the share of I comes at least what must come behind I. Actions that cannot be in a pair take what
/// they take alone: of a backward, what is more than the shares is a job that comes behind I.
pub(in crate::passes::pipeline) fn machines(
    lines: &Lines,
    heads: &Heads,
    tails: &Tails,
    progress: &Progress,
    within: Nanos,
) -> Nanos {
    let mut bound = Nanos::ZERO;
    let mut jobs = Vec::new();
    for (rank, chunks) in lines.on_rank.iter().enumerate() {
        let window = Window::new(lines, heads, tails, progress, rank, within);
        for off_forward in [false, true] {
            jobs.clear();
            for &(at, stage) in chunks {
                let line = &lines.lines[at];
                let chunk = &line.chunks[stage];
                let Shares { f, i, w } = if off_forward { chunk.shares_off_forward } else { chunk.shares };
                let alone = chunk.backward_alone.saturating_sub(i + w);
                let input = line.input(stage);
                for k in progress.steps[at][stage]..line.count {
                    let tail = tails.end(at, stage, line.count - 1 - k);
                    let alone = window.forward_is_alone(line.steps[stage].pair, tail);
                    let work = if alone { chunk.forward_alone } else { f };
                    jobs.push(Job { head: heads.start(at, stage, k), work, tail });
                }
                for k in progress.steps[at][input]..line.count {
                    let head = heads.start(at, input, k);
                    jobs.push(Job { head, work: i, tail: tails.share_end(at, input, line.count - 1 - k) });
                    if alone > Nanos::ZERO && window.backward_is_alone(line.steps[input].pair, head) {
                        jobs.push(Job { head: head + i, work: alone, tail: Nanos::ZERO });
                    }
                }
                jobs.extend((progress.weights[at][stage]..line.count).map(|k| Job {
                    head: heads.weights_start(lines, at, stage, k),
                    work: w,
                    tail: tails.weights_end(at, stage, line.count - 1 - k),
                }));
            }
            bound = bound.max(preemptive(&mut jobs));
        }
    }
    bound
}

/// A job of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    /// It cannot start before.
    head: Nanos,
    /// How long it takes.
    work: Nanos,
    /// So much must follow its end.
    tail: Nanos,
}

/// The least time in which all tails can have ended, if the machine may leave a job and come back to it: it always runs, of
/// the jobs that are there, one with the longest tail. No schedule is shorter, with or without leaving jobs.
fn preemptive(jobs: &mut [Job]) -> Nanos {
    jobs.sort_unstable();
    // Tail, and work that is left.
    let mut waiting: BinaryHeap<(Nanos, Nanos)> = BinaryHeap::new();
    let (mut now, mut bound) = (Nanos::ZERO, Nanos::ZERO);
    let mut coming = jobs.iter().peekable();
    loop {
        if waiting.is_empty() {
            let Some(next) = coming.peek() else { return bound };
            now = now.max(next.head);
        }
        while let Some(job) = coming.next_if(|job| job.head <= now) {
            waiting.push((job.tail, job.work));
        }
        let Some((tail, work)) = waiting.pop() else { continue };
        let end = now + work;
        match coming.peek() {
            Some(next) if next.head < end => {
                waiting.push((tail, end.saturating_sub(next.head)));
                now = next.head;
            }
            _ => {
                now = end;
                bound = bound.max(end + tail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any set of jobs needs its least head, all its work, and its least tail; and the largest such sum is the optimum (Carlier 1982).
    #[test]
    fn is_the_largest_sum_over_all_sets() {
        let mut state = 7_u64;
        let mut below = |limit: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Nanos((state >> 33) % limit)
        };
        for _ in 0..400 {
            let count = 1 + below(8).0 as usize;
            let mut jobs: Vec<Job> =
                (0..count).map(|_| Job { head: below(20), work: below(6), tail: below(20) }).collect();
            let sum = |set: u32| {
                let of_set = || jobs.iter().enumerate().filter(move |(at, _)| set >> at & 1 == 1).map(|(_, job)| job);
                let work: Nanos = of_set().map(|job| job.work).sum();
                of_set().map(|job| job.head).min().unwrap() + work + of_set().map(|job| job.tail).min().unwrap()
            };
            let best = (1..1_u32 << count).map(sum).max().unwrap();
            assert_eq!(preemptive(&mut jobs), best, "{jobs:?}");
        }
    }
}
