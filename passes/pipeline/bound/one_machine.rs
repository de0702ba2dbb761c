//! One machine with heads and tails (Jackson 1955; Carlier 1982).

use std::collections::BinaryHeap;

use crate::units::Nanos;

/// A job of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Job {
    /// It cannot start before.
    pub head: Nanos,
    /// How long it takes.
    pub work: Nanos,
    /// So much must follow its end.
    pub tail: Nanos,
}

/// The least time in which all tails can have ended, if the machine may leave a job and come back to it: it always runs, of
/// the jobs that are there, one with the longest tail. No schedule is shorter, with or without leaving jobs.
pub(super) fn preemptive(jobs: &mut [Job]) -> Nanos {
    jobs.sort_unstable();
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
