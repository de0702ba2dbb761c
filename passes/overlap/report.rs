//! A layer pair under every order: what `dualweave overlap` shows, and what a search has to beat.

use super::cyclic::{CyclicProblem, CyclicSchedule, LayerSpan, Limits, best_launches, best_span, improve, search};
use super::launch_order;
use crate::ir::Stream;
use crate::job::training::PairOrder;
use crate::units::Nanos;

/// A steady state of a layer pair, and a few layers with their way in and out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steady {
    /// Whose order it is.
    pub order: PairOrder,
    /// The schedule; its bound is that of the problem unless the search proved more.
    pub schedule: CyclicSchedule,
    /// Time from the first start to the last end of some repetitions: for the search the best order of their ops, which need not be
    /// the steady one; for the others theirs, unrolled.
    pub span: Nanos,
    /// No order of these repetitions takes less, as far as was proved, but for `span_rounding`.
    pub span_bound: Nanos,
    /// See [`CyclicSchedule::rounding`].
    pub span_rounding: Nanos,
}

impl Steady {
    /// Whether no order of these repetitions takes less than `span`.
    pub fn span_proved(&self) -> bool {
        self.span <= self.span_bound + self.span_rounding
    }
}

/// Partial orders of a few layers.
const SPAN_NODES: u64 = 1_000;

/// The steady state under one order, and `repetitions` of it; `None` if the order contradicts what the ops need of each other.
pub fn steady(problem: &CyclicProblem, order: PairOrder, repetitions: u64) -> Option<Steady> {
    let schedule = schedule(problem, order)?;
    let span = match order {
        PairOrder::Serial => schedule.period * repetitions,
        _ => problem.span(&schedule, repetitions),
    };
    if order != PairOrder::Search {
        let (span_bound, span_rounding) = (problem.span_bound(repetitions), Nanos::ZERO);
        return Some(Steady { order, schedule, span, span_bound, span_rounding });
    }
    let by_hand = [PairOrder::DeepSeek, PairOrder::Megatron, PairOrder::Serial];
    let others: Vec<CyclicSchedule> = by_hand.into_iter().filter_map(|order| self::schedule(problem, order)).collect();
    let starts: Vec<&CyclicSchedule> = [&schedule].into_iter().chain(&others).collect();
    let best = best_span(problem, repetitions, &starts, Limits { nodes: SPAN_NODES })?;
    let (span, span_bound, span_rounding) = (best.span, best.bound, best.rounding);
    Some(Steady { order, schedule, span, span_bound, span_rounding })
}

/// The steady state under one order.
fn schedule(problem: &CyclicProblem, order: PairOrder) -> Option<CyclicSchedule> {
    let schedule = match order {
        PairOrder::Search => {
            let hand_made = [PairOrder::DeepSeek, PairOrder::Megatron];
            let starts = hand_made.map(|order| problem.indices(launch_order(order)));
            search(problem, &starts.each_ref().map(Vec::as_slice), Limits::default())?
        }
        PairOrder::Serial => serial(problem),
        PairOrder::DeepSeek | PairOrder::Megatron => {
            let order = problem.indices(launch_order(order));
            let timing = problem.timing_of(&order)?;
            let first = timing.starts.iter().copied().min().unwrap_or(0);
            let starts = timing.starts.iter().map(|&start| Nanos((start - first) as u64)).collect();
            CyclicSchedule {
                period: timing.period,
                bound: problem.bound(),
                starts,
                nodes: 0,
                unslowed: timing.period,
                rounding: Nanos::ZERO,
            }
        }
    };
    Some(slow(problem, order, schedule))
}

/// The schedule with its period where ops slow each other. For the search the best of what it found and the orders made by
/// hand, which may be slowed less.
fn slow(problem: &CyclicProblem, order: PairOrder, schedule: CyclicSchedule) -> CyclicSchedule {
    if order == PairOrder::Serial || !problem.is_slowed() {
        return schedule;
    }
    if order != PairOrder::Search {
        return slowed(problem, schedule);
    }
    let by_hand = [PairOrder::DeepSeek, PairOrder::Megatron];
    let by_hand = by_hand.into_iter().filter_map(|order| self::schedule(problem, order));
    // What no order is below where nothing slows anything, none is below where something does.
    let (nodes, proved) = (schedule.nodes, schedule.bound);
    let best = least_slowed(problem, [slowed(problem, schedule)].into_iter().chain(by_hand).collect());
    let best = best.map(|best| CyclicSchedule { nodes, bound: best.bound.max(proved), ..best });
    let best = best.map(|best| best_launches(problem, best, Limits::default()));
    best.unwrap_or_else(|| serial(problem))
}

/// The steady state of a layer in any form, whose ops no order by hand knows; `None` if there is none within the limits.
pub fn steady_form(problem: &CyclicProblem) -> Option<CyclicSchedule> {
    let found = search(problem, &[], Limits { nodes: FORM_NODES })?;
    match problem.is_slowed() {
        true => {
            let best = least_slowed(problem, vec![slowed(problem, found)])?;
            Some(best_launches(problem, best, Limits { nodes: FORM_LAUNCHES }))
        }
        false => Some(found),
    }
}

/// The best order of some repetitions of a form, from its steady one.
pub fn form_span(problem: &CyclicProblem, schedule: &CyclicSchedule, repetitions: u64) -> Option<LayerSpan> {
    best_span(problem, repetitions, &[schedule], Limits { nodes: FORM_SPANS })
}

/// Partial schedules of a form: it has more ops than a plain layer, each node takes longer.
const FORM_NODES: u64 = 2_000;

/// The same where ops slow each other: each node looks at every pair of ops.
const FORM_LAUNCHES: u64 = 200;

/// Partial orders of a few layers of a form, which may have a hundred ops.
const FORM_SPANS: u64 = 40;

/// A schedule with its period where ops slow each other.
fn slowed(problem: &CyclicProblem, schedule: CyclicSchedule) -> CyclicSchedule {
    let period = problem.slowed_period(&schedule);
    // A nanosecond for each op.
    let rounding = Nanos(problem.ops.len() as u64);
    CyclicSchedule { period, bound: problem.bound(), rounding, ..schedule }
}

/// The best of some schedules and of those that are the best where one side, or each, takes as long as with the other beside it
/// all the time; improved, if it is not proved.
fn least_slowed(problem: &CyclicProblem, mut candidates: Vec<CyclicSchedule>) -> Option<CyclicSchedule> {
    let sides = [[true, false], [false, true], [true, true]];
    let limits = Limits { nodes: FORM_NODES };
    let stretched = sides.iter().filter_map(|sides| search(&problem.stretched(*sides), &[], limits));
    candidates.extend(stretched.map(|schedule| slowed(problem, schedule)));
    // Stable: of equals the first.
    candidates.sort_by_key(|schedule| schedule.period);
    if !candidates.first().is_some_and(CyclicSchedule::proved) {
        candidates = candidates.into_iter().map(|schedule| improve(problem, schedule)).collect();
    }
    candidates.into_iter().min_by_key(|schedule| schedule.period)
}

/// One op after the other, in DeepSeek's order.
fn serial(problem: &CyclicProblem) -> CyclicSchedule {
    let mut starts = vec![Nanos::ZERO; problem.ops.len()];
    let mut now = Nanos::ZERO;
    for at in problem.indices(launch_order(PairOrder::DeepSeek)) {
        starts[at] = now;
        now += problem.ops[at].duration;
    }
    CyclicSchedule { period: now, bound: problem.bound(), starts, nodes: 0, unslowed: now, rounding: Nanos::ZERO }
}

/// Why no period can be shorter than the problem's bound, in words.
pub fn bound_reason(problem: &CyclicProblem) -> &'static str {
    let bound = problem.bound();
    if problem.load(Stream::Compute) == bound {
        "the computation itself"
    } else if problem.load(Stream::Comm) == bound {
        "the communication itself"
    } else if problem.is_slowed() && problem.load_is_bound() {
        "the busier engine's work and what it loses while the other works beside it"
    } else {
        "one micro-batch's chain through the layer"
    }
}
