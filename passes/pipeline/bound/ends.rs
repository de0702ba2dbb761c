//! What no timetable can beat.
//!
//! A bound over every timetable of the same placement and costs, whatever its memory: backwards whole or split, any
//! forward overlapped with any backward of its rank. It does not search; it is no estimate of what can be reached.

use crate::ir::{Layout, Placement, Problem};
use crate::units::Nanos;

/// A makespan that no timetable over the problem's placement is below. Linear in the number of chunks.
///
/// The larger of two: the way of one micro-batch down to the last stage and back; and for each rank its work, with the
/// time before its first forward can have come, and what must stay idle before its first backward and after its last
/// forward. What fills time there is not overlapped, so the rank is given the best trade between the two.
pub fn lower_bound(problem: &Problem) -> Nanos {
    let layout = &problem.layout;
    if layout.micro_batches == 0 || layout.stages == 0 {
        return Nanos::ZERO;
    }
    let path = Path::new(problem);
    let ranks = (0..layout.ranks).map(|rank| rank_bound(problem, &path, rank));
    ranks.fold(path.whole, Nanos::max)
}

/// The way of a micro-batch, each action as short as it can be. All times are least times.
struct Path {
    /// Per stage, from zero to the start of F there.
    before_forward: Vec<Nanos>,
    /// Per stage, from zero to the start of I there (or of the B or FB that has it).
    before_backward: Vec<Nanos>,
    /// Per stage, from the end of F there to the end of everything that waits for it.
    after_forward: Vec<Nanos>,
    /// Per stage, from the end of I there (or of the B or FB that has it) to the end of everything on other stages that
    /// waits for it.
    after_backward: Vec<Nanos>,
    /// From the start of the first F to the end of the last action.
    whole: Nanos,
}

impl Path {
    fn new(problem: &Problem) -> Self {
        let layout = &problem.layout;
        let last = layout.stages as usize - 1;
        let fastest: Vec<Fastest> = (0..layout.stages).map(|stage| Fastest::of(problem, stage)).collect();
        // Between stage s and s + 1, in the quicker direction of a bidirectional pipeline.
        let hop = |s: usize| problem.hop(s as u32, 0).min(problem.hop(s as u32, layout.micro_batches - 1));

        let mut before_forward = vec![Nanos::ZERO; last + 1];
        for s in 0..last {
            before_forward[s + 1] = before_forward[s] + fastest[s].f + hop(s);
        }
        let mut before_backward = vec![before_forward[last] + fastest[last].f; last + 1];
        for s in (0..last).rev() {
            before_backward[s] = before_backward[s + 1] + fastest[s + 1].i + hop(s);
        }
        let mut after_backward = vec![Nanos::ZERO; last + 1];
        // From the start of I to the end of everything: W runs beside the way home, unless it is in B.
        let mut from_backward = Nanos::ZERO;
        for s in 0..=last {
            if s > 0 {
                after_backward[s] = hop(s - 1) + from_backward;
            }
            let cost = &problem.stages[s];
            let split = cost.i + after_backward[s].max(cost.w);
            from_backward = split.min(fastest[s].b + after_backward[s]);
        }
        let mut after_forward = vec![from_backward; last + 1];
        for s in (0..last).rev() {
            after_forward[s] = hop(s) + fastest[s + 1].f + after_forward[s + 1];
        }
        let whole = fastest[0].f + after_forward[0];
        Self { before_forward, before_backward, after_forward, after_backward, whole }
    }
}

/// The shortest action that has this part of a stage's chunk, pairs included.
struct Fastest {
    f: Nanos,
    i: Nanos,
    /// Both I and W.
    b: Nanos,
}

impl Fastest {
    fn of(problem: &Problem, stage: u32) -> Self {
        let cost = &problem.stages[stage as usize];
        let mut fastest = Self { f: cost.f, i: cost.i.min(cost.b), b: cost.b };
        for holder in problem.layout.holders(stage) {
            for other in problem.layout.stages_of(holder) {
                let backward = problem.pair_cost(other, stage);
                fastest.f = fastest.f.min(problem.pair_cost(stage, other));
                fastest.i = fastest.i.min(backward);
                fastest.b = fastest.b.min(backward);
            }
        }
        fastest
    }
}

/// The chunks of one stage on one rank, all alike.
struct Class {
    stage: usize,
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

fn rank_bound(problem: &Problem, path: &Path, rank: u32) -> Nanos {
    let classes = classes(problem, rank);
    let chunks: u64 = classes.iter().map(|class| class.count).sum();
    let least = |times: &[Nanos]| classes.iter().map(|class| times[class.stage]).min().unwrap_or(Nanos::ZERO);
    let total = |of: fn(&Class) -> Nanos| classes.iter().map(|class| of(class) * class.count).sum::<Nanos>();
    if chunks == 0 {
        return Nanos::ZERO;
    }

    // Nothing runs before `entry`, only forwards before `first_backward`; counted from the end, no forward runs in the
    // last `no_forward`, and only weight gradients in the last `only_weights`.
    let entry = least(&path.before_forward);
    let first_backward = least(&path.before_backward);
    let no_forward = least(&path.after_forward);
    let only_weights = least(&path.after_backward);
    let (forwards, backwards, weights) = (total(|c| c.f), total(|c| c.b), total(|c| c.weights));

    // If `alone` forwards, and as many backwards, are not overlapped, the dearest of them can fill the two ends.
    let mut dearest_forwards = in_order(&classes, |c| c.f, true);
    let mut dearest_backwards = in_order(&classes, |c| c.b, true);
    let mut dearest_weights = in_order(&classes, |c| c.weights, true);
    let mut least_forward_savings = in_order(&classes, |c| c.forward_saving, false);
    let mut least_backward_savings = in_order(&classes, |c| c.backward_saving, false);
    let (mut f, mut b, mut w) = (Nanos::ZERO, Nanos::ZERO, Nanos::ZERO);
    let (mut by_forward, mut by_backward) = (total(|c| c.forward_saving), total(|c| c.backward_saving));
    let mut trade = Nanos(u64::MAX);
    for _alone in 0..=chunks {
        let work = (forwards + backwards).saturating_sub(by_forward.min(by_backward));
        let idle_before = first_backward.saturating_sub(entry).saturating_sub(f);
        let idle_after = no_forward.saturating_sub(b).max(only_weights.saturating_sub(w));
        trade = trade.min(entry + work + idle_before + idle_after);
        let next = |values: &mut dyn Iterator<Item = Nanos>| values.next().unwrap_or(Nanos::ZERO);
        f += next(&mut dearest_forwards);
        b += next(&mut dearest_backwards);
        w += next(&mut dearest_weights);
        by_forward = by_forward.saturating_sub(next(&mut least_forward_savings));
        by_backward = by_backward.saturating_sub(next(&mut least_backward_savings));
    }

    // That counted the two ends as apart. They are, unless the makespan is below `first_backward + no_forward`: then no
    // forward runs after the first backward, and nothing is overlapped.
    let in_turn = (entry + forwards + backwards)
        .max(entry + forwards + no_forward)
        .max(first_backward + backwards + only_weights.saturating_sub(weights));
    let ends = first_backward + no_forward;
    if in_turn < ends { in_turn } else { trade.max(ends) }
}

/// What `rank` has to run.
fn classes(problem: &Problem, rank: u32) -> Vec<Class> {
    let held = held(&problem.layout, rank);
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
            stage: stage as usize,
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

/// Stages whose chunks `rank` runs, and how many of each.
fn held(layout: &Layout, rank: u32) -> Vec<(u32, u64)> {
    let micro_batches = u64::from(layout.micro_batches);
    match layout.placement {
        Placement::Bidirectional => {
            let up = micro_batches / 2;
            let both = [(rank, micro_batches - up), (layout.ranks - 1 - rank, up)];
            both.into_iter().filter(|&(_, count)| count > 0).collect()
        }
        _ => layout.stages_of(rank).into_iter().map(|stage| (stage, micro_batches)).collect(),
    }
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
