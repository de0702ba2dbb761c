//! What is known of timetables that are no longer than some makespan.

use super::crowd;
use super::heads::{Alone, Heads, Progress};
use super::lines::Lines;
use super::one_machine::machines;
use super::pairs::Window;
use super::tails::Tails;
use super::trade::Trade;
use super::turns::{self, Asked, Floors};
use crate::ir::Problem;
use crate::units::Nanos;

/// Least heads and tails, and how many actions may be outside of pairs.
pub(in crate::passes::pipeline) struct Known {
    /// Per rank.
    pub alone: Vec<Alone>,
    pub heads: Heads,
    pub tails: Tails,
    /// Of heads and tails, what no order of a rank can go below.
    floors: Option<[Floors; 2]>,
}

/// By what is refuted.
pub(super) enum Depth {
    /// How many actions are in no pair, and for how long chunks are held.
    Counts,
    /// The orders that ranks can have, too. It may be known what holds where timetables may be longer.
    Orders(Option<Known>),
}

/// So often heads and tails are computed again, from what the last ones have shown. Most often the second time changes nothing.
const ROUNDS: usize = 16;

impl Known {
    /// Of all timetables.
    pub fn of_all(lines: &Lines) -> Self {
        Self::new(lines, vec![Alone::ALL; lines.on_rank.len()], None)
    }

    /// Of timetables no longer than `within`, if none is shorter than `proved`. `None`: there are none.
    ///
    /// A rank has time for so many actions outside of pairs only. Where all others are pairs, micro-batches take longer on their
    /// ways, and ranks have to wait for them.
    pub fn within(problem: &Problem, lines: &Lines, within: Nanos, proved: Nanos) -> Option<Self> {
        Self::from(problem, lines, within, proved, &Depth::Orders(None))
    }

    /// The same, by some arguments.
    pub(super) fn from(problem: &Problem, lines: &Lines, within: Nanos, proved: Nanos, depth: &Depth) -> Option<Self> {
        let mut known = match depth {
            Depth::Orders(Some(longer)) => Self::new(lines, longer.alone.clone(), longer.floors.clone()),
            Depth::Counts | Depth::Orders(None) => Self::of_all(lines),
        };
        let mut asked = Asked::default();
        for _ in 0..ROUNDS {
            let Self { alone, heads, tails, .. } = &known;
            let progress = Progress::none(lines, alone.clone());
            if chains(lines, heads, tails, &progress) > within {
                return None;
            }
            let trades = known.trades(problem, lines);
            let most = trades.iter().enumerate().map(|(rank, trade)| {
                let window = Window::new(lines, heads, tails, &progress, rank, within);
                trade.most_alone(within, least_alone(lines, heads, tails, &window, rank))
            });
            let most = most.collect::<Option<Vec<usize>>>()?;
            if crowd::bound(problem, lines, heads, tails, &most, proved) > within {
                return None;
            }
            let mut raised = false;
            let mut floors = known.floors.clone().unwrap_or_else(|| [(); 2].map(|()| Floors::none(lines)));
            let [from_start, from_end] = &mut floors;
            let ranks = if matches!(depth, Depth::Orders(_)) { lines.on_rank.len() } else { 0 };
            for rank in 0..ranks {
                let floors = (&mut *from_start, &mut *from_end);
                raised |= turns::narrow(problem, lines, (heads, tails), floors, &mut asked, rank, within)?;
            }
            let next: Vec<Alone> = most.iter().map(|&most| Alone { forwards: most, backwards: most }).collect();
            if next == *alone && !raised {
                break;
            }
            known = Self::new(lines, next, raised.then_some(floors).or(known.floors));
        }
        let progress = Progress::none(lines, known.alone.clone());
        (machines(lines, &known.heads, &known.tails, &progress, within) <= within).then_some(known)
    }

    /// If on each rank so many may be alone.
    fn new(lines: &Lines, alone: Vec<Alone>, floors: Option<[Floors; 2]>) -> Self {
        let tails = Tails::new(lines, &alone, floors.as_ref().map(|[_, from_end]| from_end));
        let mut heads = Heads::new(lines, floors.as_ref().map(|[from_start, _]| from_start.clone()));
        heads.fill(lines, &Progress::none(lines, alone.clone()));
        Self { alone, heads, tails, floors }
    }

    /// Per rank.
    pub(super) fn trades(&self, problem: &Problem, lines: &Lines) -> Vec<Trade> {
        (0..lines.on_rank.len()).map(|rank| Trade::new(problem, lines, &self.heads, &self.tails, rank)).collect()
    }
}

/// How many forwards of a rank, or backwards if these are more, can be in no pair.
fn least_alone(lines: &Lines, heads: &Heads, tails: &Tails, window: &Window, rank: usize) -> usize {
    let (mut forwards, mut backwards) = (0, 0);
    for &(at, stage) in &lines.on_rank[rank] {
        let line = &lines.lines[at];
        let (input, count) = (line.input(stage), line.count);
        // The first forwards have the longest tails, and the last backwards the latest heads.
        let forward = |k: &usize| window.forward_is_alone(line.steps[stage].pair, tails.end(at, stage, count - 1 - k));
        let backward = |k: &usize| window.backward_is_alone(line.steps[input].pair, heads.start(at, input, *k));
        forwards += (0..count).take_while(forward).count();
        backwards += (0..count).rev().take_while(backward).count();
    }
    forwards.max(backwards)
}

/// The largest sum of head and tail of a step that is not done.
pub(in crate::passes::pipeline) fn chains(lines: &Lines, heads: &Heads, tails: &Tails, progress: &Progress) -> Nanos {
    let mut bound = Nanos::ZERO;
    for (at, line) in lines.lines.iter().enumerate() {
        for step in 0..line.steps.len() {
            for k in progress.steps[at][step]..line.count {
                let q = line.count - 1 - k;
                bound = bound
                    .max(heads.start(at, step, k) + tails.start(at, step, q))
                    .max(heads.end(at, step, k) + tails.end(at, step, q));
            }
        }
    }
    bound
}
