//! Where each rank's time went: compute, exposed communication, or waiting, and for what.

use std::collections::BTreeMap;
use std::fmt;

use super::meeting::ItemId;
use super::program::ProgramTiming;
use super::run::{Origin, Run};
use super::{RankTiming, Span, computes};
use crate::plan::{Plan, Task};
use crate::units::Nanos;

/// What a rank waited for, summed over the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait {
    /// For what.
    pub cause: Cause,
    /// How long.
    pub time: Nanos,
}

/// A stretch of a rank without a compute item, in which for some time nothing runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// From the end of a compute item (or the start of the step) to the start of the next (or the end of the step).
    pub span: Span,
    /// The compute item (index) that ends it; `None`: the step's end does.
    pub before: Option<u32>,
    /// Time in it in which nothing runs: communication may run in the rest.
    pub idle: Nanos,
    /// What it was spent waiting for.
    pub cause: Cause,
    /// The compute item that is meant, where the cause is one.
    pub item: Option<ItemId>,
}

/// Something that a rank waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The end of a compute item.
    Item {
        /// The rank that runs it; the waiting one if only transfers lie between its items.
        rank: u32,
        /// What it runs.
        activity: Activity,
        /// Why its end mattered.
        reason: Reason,
    },
    /// Transfers among other ranks that began with the step.
    Transfers,
    /// Nothing: the rank has done its last compute item, and others have not.
    End,
}

/// What a compute item runs, for any micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// Forward of a stage.
    F(u32),
    /// Full backward.
    B(u32),
    /// Backward for the input.
    I(u32),
    /// Weight gradient.
    W(u32),
    /// Forward of the first stage beside full backward of the second.
    FB(u32, u32),
    /// Optimizer step of a stage.
    Update(u32),
}

/// Why others waited for a compute item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It made what was needed.
    Data,
    /// A receive could not start before it had ended: it used the buffer, or its rank was not as far.
    Room,
    /// A collective could not start before it had ended.
    Gradients,
}

impl Activity {
    /// What a compute item runs; `None` for any other.
    pub fn of(task: Task) -> Option<Self> {
        Some(match task {
            Task::F(s, _) => Self::F(s),
            Task::B(s, _) => Self::B(s),
            Task::I(s, _) => Self::I(s),
            Task::W(s, _) => Self::W(s),
            Task::FB(f, b) => Self::FB(f.0, b.0),
            Task::Update(s) => Self::Update(s),
            _ => return None,
        })
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F(s) => write!(f, "F of stage {s}"),
            Self::B(s) => write!(f, "B of stage {s}"),
            Self::I(s) => write!(f, "I of stage {s}"),
            Self::W(s) => write!(f, "W of stage {s}"),
            Self::FB(a, b) => write!(f, "FB of stages {a}, {b}"),
            Self::Update(s) => write!(f, "update of stage {s}"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Item { rank, activity, reason: Reason::Data } => write!(f, "{activity} on rank {rank}"),
            Self::Item { rank, activity, reason: Reason::Room } => {
                write!(f, "rank {rank} to receive, after {activity}")
            }
            Self::Item { rank, activity, reason: Reason::Gradients } => {
                write!(f, "gradients, after {activity} on rank {rank}")
            }
            Self::Transfers => f.write_str("transfers among other ranks"),
            Self::End => f.write_str("the end of the step"),
        }
    }
}

/// Divides every rank's step into busy, exposed and bubble.
pub(super) fn account(
    plan: &Plan,
    programs: &[ProgramTiming],
    program_of: Vec<Vec<Option<u32>>>,
    run: Run,
    step: Nanos,
) -> Vec<RankTiming> {
    let task_of = |rank: u32, item: u32| plan.ranks[rank as usize].items[item as usize].0;
    let mut ranks = Vec::with_capacity(plan.ranks.len());
    for (((list, spans), origins), programs_of_rank) in
        plan.ranks.iter().zip(run.spans).zip(run.origins).zip(program_of)
    {
        let (mut busy, mut communication, mut exposed) = (Nanos::ZERO, Nanos::ZERO, Nanos::ZERO);
        let mut gaps = Vec::new();
        let beside: Vec<Span> =
            list.items.iter().zip(&spans).filter(|(item, _)| !computes(item.0)).map(|(_, &span)| span).collect();
        communication += beside.iter().map(|span| span.duration()).sum();
        let mut covered = Covered::new(beside);

        let mut now = Nanos::ZERO;
        for index in (0..list.items.len()).filter(|&index| computes(list.items[index].0)) {
            let span = spans[index];
            let gap = Span { start: now, end: span.start };
            let hidden = covered.within(gap);
            exposed += hidden;
            let idle = gap.duration().saturating_sub(hidden);
            if idle > Nanos::ZERO {
                let origin = origins[index].and_then(|origin| Some((cause(origin, task_of)?, origin.item)));
                let (cause, item) = origin.map_or((Cause::Transfers, None), |(cause, item)| (cause, Some(item)));
                gaps.push(Gap { span: gap, before: Some(index as u32), idle, cause, item });
            }
            match programs_of_rank[index].and_then(|program| programs.get(program as usize)) {
                Some(program) => {
                    busy += program.busy;
                    communication += program.communication;
                    exposed += program.exposed;
                }
                None => busy += span.duration(),
            }
            now = span.end;
        }
        let tail = Span { start: now, end: step };
        let hidden = covered.within(tail);
        exposed += hidden;
        let idle = tail.duration().saturating_sub(hidden);
        if idle > Nanos::ZERO {
            gaps.push(Gap { span: tail, before: None, idle, cause: Cause::End, item: None });
        }

        let mut waits: BTreeMap<Cause, Nanos> = BTreeMap::new();
        for gap in &gaps {
            *waits.entry(gap.cause).or_default() += gap.idle;
        }
        let mut waits: Vec<Wait> = waits.into_iter().map(|(cause, time)| Wait { cause, time }).collect();
        waits.sort_by_key(|wait| (std::cmp::Reverse(wait.time), wait.cause));
        let start = spans.iter().map(|span| span.start).min().unwrap_or_default();
        let end = spans.iter().map(|span| span.end).max().unwrap_or_default();
        ranks.push(RankTiming {
            items: spans,
            programs: programs_of_rank,
            span: Span { start, end },
            busy,
            communication,
            exposed,
            bubble: waits.iter().map(|wait| wait.time).sum(),
            waits,
            gaps,
        });
    }
    ranks
}

fn cause(origin: Origin, task_of: impl Fn(u32, u32) -> Task) -> Option<Cause> {
    let (rank, item) = origin.item;
    let activity = Activity::of(task_of(rank, item))?;
    let reason = match origin.released {
        Task::RecvAct(..) | Task::RecvGrad(..) => Reason::Room,
        Task::ReduceGrads(_) | Task::GatherParams(_) => Reason::Gradients,
        _ => Reason::Data,
    };
    Some(Cause::Item { rank, activity, reason })
}

/// The union of spans, asked for ever later windows.
pub(crate) struct Covered {
    /// Disjoint, ascending.
    spans: Vec<Span>,
    /// Spans before this one end before any window still to come.
    next: usize,
}

impl Covered {
    pub(crate) fn new(mut spans: Vec<Span>) -> Self {
        spans.sort_unstable();
        let mut union: Vec<Span> = Vec::with_capacity(spans.len());
        for span in spans {
            match union.last_mut() {
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => union.push(span),
            }
        }
        Self { spans: union, next: 0 }
    }

    /// How much of `window` is covered. Windows must come in ascending order.
    pub(crate) fn within(&mut self, window: Span) -> Nanos {
        let mut covered = Nanos::ZERO;
        while let Some(span) = self.spans.get(self.next) {
            let part = Span { start: span.start.max(window.start), end: span.end.min(window.end) };
            covered += part.duration();
            if span.end > window.end {
                break;
            }
            self.next += 1;
        }
        covered
    }
}
