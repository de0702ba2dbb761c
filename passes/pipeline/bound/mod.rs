//! What no timetable can beat.

mod block;
mod ends;
mod heads;
mod lines;
mod one_machine;
mod tails;

pub(super) use heads::{Heads, Progress};
pub(super) use lines::{Line, Lines};
pub(super) use tails::Tails;

use crate::ir::Problem;
use crate::units::Nanos;
use lines::Shares;
use one_machine::{Job, preemptive};

/// A makespan that no timetable over the problem's placement is below.
pub fn lower_bound(problem: &Problem) -> Nanos {
    let layout = &problem.layout;
    if layout.micro_batches == 0 || layout.stages == 0 {
        return Nanos::ZERO;
    }
    let lines = Lines::new(problem);
    let mut heads: Vec<Heads> = lines.lines.iter().map(Heads::new).collect();
    let tails: Vec<Tails> = (0..lines.lines.len()).map(|at| Tails::new(&lines, at)).collect();
    let progress = Progress::none(&lines);
    for (at, heads) in heads.iter_mut().enumerate() {
        heads.fill(&lines, at, &progress);
    }
    ends::lower_bound(problem)
        .max(chains(&lines, &heads, &tails, &progress))
        .max(machines(&lines, &heads, &tails, &progress))
}

/// The longest head and tail of a step.
pub(super) fn chains(lines: &Lines, heads: &[Heads], tails: &[Tails], progress: &Progress) -> Nanos {
    let mut bound = Nanos::ZERO;
    for (at, line) in lines.lines.iter().enumerate() {
        for (s, step) in line.steps.iter().enumerate() {
            for k in progress.steps[at][s]..line.count {
                let start = heads[at].end(s, k).saturating_sub(step.least);
                bound = bound.max(start + tails[at].start(s, line.count - 1 - k));
            }
        }
    }
    bound
}

/// One machine per rank.
pub(super) fn machines(lines: &Lines, heads: &[Heads], tails: &[Tails], progress: &Progress) -> Nanos {
    let mut bound = Nanos::ZERO;
    let mut jobs = Vec::new();
    for chunks in &lines.on_rank {
        for off_forward in [false, true] {
            jobs.clear();
            for &(at, stage) in chunks {
                let line = &lines.lines[at];
                let chunk = &line.chunks[stage];
                let Shares { f, i, w } = if off_forward { chunk.shares_off_forward } else { chunk.shares };
                for (step, work) in [(stage, f), (line.input(stage), i)] {
                    let least = line.steps[step].least;
                    jobs.extend((progress.steps[at][step]..line.count).map(|k| Job {
                        head: heads[at].end(step, k).saturating_sub(least),
                        work,
                        tail: tails[at].start(step, line.count - 1 - k).saturating_sub(least),
                    }));
                }
                jobs.extend((progress.weights[at][stage]..line.count).map(|k| Job {
                    head: heads[at].weights_release(line, stage, k),
                    work: w,
                    tail: tails[at].weights_end(stage, line.count - 1 - k),
                }));
            }
            bound = bound.max(preemptive(&mut jobs));
        }
    }
    bound
}
