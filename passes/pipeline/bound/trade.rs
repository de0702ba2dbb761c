//! A rank's work and the ends of its time: what fills the ends is not overlapped.

use super::heads::Heads;
use super::lines::Lines;
use super::tails::Tails;
use crate::ir::{Problem, StageMemory};
use crate::units::Nanos;

/// The work of a rank, with what must stay idle before its first backward and behind its last forward.
///
/// Forwards that run alone can fill the first, backwards that run alone the last, and then they are not overlapped.
pub(super) struct Trade {
    /// By the number of forwards that run alone: the least makespan, if it is at least `ends`.
    by_alone: Vec<Nanos>,
    /// The least makespan of those below `ends`.
    in_turn: Nanos,
    /// What the two ends take if they are apart. They are, unless the makespan is below this: then no forward runs behind the first
    /// backward, and nothing is overlapped.
    ends: Nanos,
}

impl Trade {
    /// That of `rank`.
    pub fn new(problem: &Problem, lines: &Lines, heads: &Heads, tails: &Tails, rank: usize) -> Self {
        let classes = classes(problem, lines, rank);
        let chunks: u64 = classes.iter().map(|class| class.count).sum();
        let least = |of: &dyn Fn(usize, usize) -> Nanos| {
            lines.on_rank[rank].iter().map(|&(line, stage)| of(line, stage)).min().unwrap_or(Nanos::ZERO)
        };
        let total = |of: fn(&Class) -> Nanos| classes.iter().map(|class| of(class) * class.count).sum::<Nanos>();
        let input = |line: usize, stage| lines.lines[line].input(stage);

        // Nothing runs before `entry`, only forwards before `first_backward`; counted from the end, no forward runs in the
        // last `no_forward`, and only weight gradients in the last `only_weights`.
        let entry = least(&|line, stage| heads.start(line, stage, 0));
        let first_backward = least(&|line, stage| heads.start(line, input(line, stage), 0));
        let no_forward = least(&|line, stage| tails.end(line, stage, 0));
        let only_weights = least(&|line, stage| tails.end(line, input(line, stage), 0));
        let (forwards, backwards, weights) = (total(|c| c.f), total(|c| c.b), total(|c| c.weights));

        // If `alone` forwards, and as many backwards, are not overlapped, the dearest of them can fill the two ends, as far as
        // memory has room for what they leave there, or find there.
        let room = Room::new(problem, &lines.on_rank[rank], rank);
        let mut dearest_forwards = in_order(&classes, |c| c.f, true);
        let mut dearest_backwards = in_order(&classes, |c| c.b, true);
        let mut dearest_weights = in_order(&classes, |c| c.weights, true);
        let mut least_forward_savings = in_order(&classes, |c| c.forward_saving, false);
        let mut least_backward_savings = in_order(&classes, |c| c.backward_saving, false);
        let (mut f, mut b, mut w) = (Nanos::ZERO, Nanos::ZERO, Nanos::ZERO);
        let (mut by_forward, mut by_backward) = (total(|c| c.forward_saving), total(|c| c.backward_saving));
        let by_alone = (0..=chunks).map(|alone| {
            let work = (forwards + backwards).saturating_sub(by_forward.min(by_backward));
            let idle_before = first_backward.saturating_sub(entry).saturating_sub(f);
            let idle_after = no_forward.saturating_sub(b).max(only_weights.saturating_sub(w));
            let next = |values: &mut dyn Iterator<Item = Nanos>| values.next().unwrap_or(Nanos::ZERO);
            if room.before.is_none_or(|room| alone < room) {
                f += next(&mut dearest_forwards);
            }
            if room.after.is_none_or(|room| alone < room) {
                b += next(&mut dearest_backwards);
                w += next(&mut dearest_weights);
            }
            by_forward = by_forward.saturating_sub(next(&mut least_forward_savings));
            by_backward = by_backward.saturating_sub(next(&mut least_backward_savings));
            entry + work + idle_before + idle_after
        });
        let in_turn = (entry + forwards + backwards)
            .max(entry + forwards + no_forward)
            .max(first_backward + backwards + only_weights.saturating_sub(weights));
        Self { by_alone: by_alone.collect(), in_turn, ends: first_backward + no_forward }
    }

    /// No makespan is below it.
    pub fn bound(&self) -> Nanos {
        if self.in_turn < self.ends {
            return self.in_turn;
        }
        self.by_alone.iter().copied().min().unwrap_or(Nanos::ZERO).max(self.ends)
    }

    /// The most forwards that can run alone in a makespan of at most `within`, and so the most backwards, if `least` of them must.
    /// `None`: there is no such makespan.
    pub fn most_alone(&self, within: Nanos, least: usize) -> Option<usize> {
        if self.in_turn <= within && self.in_turn < self.ends {
            return Some(self.by_alone.len() - 1);
        }
        if within < self.ends {
            return None;
        }
        self.by_alone.iter().rposition(|&makespan| makespan <= within).filter(|&most| most >= least)
    }
}

/// How many chunks a rank has room for; `None` where memory sets no limit.
struct Room {
    /// Before its first backward: each chunk that has come holds its activation.
    before: Option<u64>,
    /// Behind its last forward: each chunk that has not gone holds what W reads, at least.
    after: Option<u64>,
}

impl Room {
    fn new(problem: &Problem, chunks: &[(usize, usize)], rank: usize) -> Self {
        let limit = problem.memory.as_ref().map(|memory| (memory, memory.limits[rank]));
        let room = |holds: fn(&StageMemory) -> u64| {
            let (memory, limit) = limit?;
            limit.checked_div(chunks.iter().map(|&(_, stage)| holds(&memory.stages[stage])).min()?)
        };
        Self { before: room(|of| of.activation), after: room(|of| of.for_weights.min(of.activation)) }
    }
}

/// The chunks of one stage on one rank, all alike.
struct Class {
    count: u64,
    f: Nanos,
    /// I and W, in whichever way is shorter.
    b: Nanos,
    /// What of `b` may still run when all I have ended.
    weights: Nanos,
    /// The most that overlapping its F saves, over running the pair one after the other.
    forward_saving: Nanos,
    /// The same of its B.
    backward_saving: Nanos,
}

/// What `rank` has to run.
fn classes(problem: &Problem, lines: &Lines, rank: usize) -> Vec<Class> {
    let held: Vec<(u32, u64)> =
        lines.on_rank[rank].iter().map(|&(line, stage)| (stage as u32, lines.lines[line].count as u64)).collect();
    let shorter = |stage: u32| {
        let cost = &problem.stages[stage as usize];
        cost.b.min(cost.i + cost.w)
    };
    let saving = |f: u32, b: u32| {
        let apart = problem.stages[f as usize].f + shorter(b);
        apart.saturating_sub(problem.pair_cost(f, b))
    };
    let class = |&(stage, count): &(u32, u64)| {
        let cost = &problem.stages[stage as usize];
        let best =
            |saving: &dyn Fn(u32) -> Nanos| held.iter().map(|&(other, _)| saving(other)).max().unwrap_or(Nanos::ZERO);
        Class {
            count,
            f: cost.f,
            b: shorter(stage),
            weights: shorter(stage).saturating_sub(cost.i),
            forward_saving: best(&|other| saving(stage, other)),
            backward_saving: best(&|other| saving(other, stage)),
        }
    };
    held.iter().map(class).collect()
}

/// A value of every chunk, sorted.
fn in_order(classes: &[Class], of: fn(&Class) -> Nanos, descending: bool) -> impl Iterator<Item = Nanos> + use<> {
    let mut values: Vec<(Nanos, u64)> = classes.iter().map(|class| (of(class), class.count)).collect();
    values.sort_unstable();
    if descending {
        values.reverse();
    }
    values.into_iter().flat_map(|(value, count)| (0..count).map(move |_| value))
}
