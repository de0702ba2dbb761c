//! Where ops slow each other: branch and bound against running every launch order there is.

use super::*;
use crate::passes::overlap::cyclic::{CyclicSchedule, best_launches, best_span};

/// Numbers in a fixed pseudo-random order (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// A layer pair of `ops` ops or more, whose engines slow each other; durations in tens of µs, so that rounding is small.
    fn problem(&mut self, ops: usize) -> CyclicProblem {
        loop {
            let mut durations = [0; 24];
            durations.iter_mut().for_each(|duration| *duration = self.below(5).saturating_sub(1) * 10_000);
            let mut problem = CyclicProblem::layer_pair(|component, phase| match (component, phase) {
                (Dispatch | Combine, Phase::W) | (Component::Embedding | Component::Head, _) => Nanos::ZERO,
                _ => Nanos(durations[component as usize * 3 + phase as usize]),
            });
            let weights = |problem: &CyclicProblem| {
                problem.ops.iter().all(|op| {
                    let input = |other: &CyclicOp| other.component == op.component && other.phase == Phase::I;
                    op.phase != Phase::W || problem.ops.iter().any(input)
                })
            };
            let on = |side: bool, engine: Stream| {
                problem.ops.iter().any(|op| op.engine == engine && (op.phase == Phase::F) == side)
            };
            let used = [Stream::Compute, Stream::Comm].map(|engine| [on(true, engine), on(false, engine)]);
            // Sides that share no engine drift apart: one runs through all its repetitions before the other.
            let tied = used.iter().any(|sides| sides[0] && sides[1]) && used.iter().all(|sides| sides[0] || sides[1]);
            if problem.ops.len() != ops || !weights(&problem) || !tied {
                continue;
            }
            let shares = [1.0 + self.below(40) as f64 / 100.0, 1.0 + self.below(40) as f64 / 100.0];
            let stretched =
                |op: &CyclicOp, more: f64| Nanos((op.duration.as_f64() * (shares[op.engine as usize] + more)) as u64);
            // In one problem of four every two ops lose another share.
            let uneven = self.below(4) == 0;
            let mut more = || if uneven { self.below(20) as f64 / 100.0 } else { 0.0 };
            problem.beside = problem.ops.iter().map(|op| (0..ops).map(|_| stretched(op, more())).collect()).collect();
            return problem;
        }
    }
}

/// All orders of some things.
fn orders(of: &[usize]) -> Vec<Vec<usize>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let with_first = |first: &usize| {
        let rest: Vec<usize> = of.iter().copied().filter(|other| other != first).collect();
        let whole = |mut order: Vec<usize>| {
            order.insert(0, *first);
            order
        };
        orders(&rest).into_iter().map(whole).collect::<Vec<_>>()
    };
    of.iter().flat_map(with_first).collect()
}

fn on(problem: &CyclicProblem, engine: Stream) -> Vec<usize> {
    (0..problem.ops.len()).filter(|&op| problem.ops[op].engine == engine).collect()
}

/// The least period of all launch orders: every order of each engine, every repetition from 0 to 2 of every op but the first.
fn least_period(problem: &CyclicProblem) -> Nanos {
    let (compute, comm) = (on(problem, Stream::Compute), on(problem, Stream::Comm));
    let count = problem.ops.len();
    let turn = count as i64;
    let mut best = Nanos(u64::MAX);
    for compute in orders(&compute) {
        // A circle may be turned.
        if compute[0] != 0 && problem.ops[0].engine == Stream::Compute {
            continue;
        }
        for comm in orders(&comm) {
            let mut place = vec![0; count];
            for line in [&compute, &comm] {
                line.iter().enumerate().for_each(|(at, &op)| place[op] = at as i64);
            }
            for code in 0..3_usize.pow(count as u32 - 1) {
                let repetition = |op: usize| if op == 0 { 1 } else { (code / 3_usize.pow(op as u32 - 1) % 3) as i64 };
                let mut edges = problem.edges();
                // Within a side nothing is more than two repetitions apart.
                if problem.needs.iter().any(|need| repetition(need.to) + need.distance < repetition(need.from)) {
                    continue;
                }
                for line in [&compute, &comm] {
                    for (at, &j) in line.iter().enumerate() {
                        for &i in &line[..at] {
                            let apart = place[i] + turn * repetition(i) - place[j] - turn * repetition(j);
                            edges.extend(problem.ordered(i, j, apart.div_euclid(turn) + 1));
                        }
                    }
                }
                let Some(timing) = period(count, &edges, Nanos(1)) else { continue };
                if timing.period >= best {
                    continue;
                }
                let first = timing.starts.iter().copied().min().unwrap_or(0);
                let starts = timing.starts.iter().map(|start| Nanos((start - first) as u64)).collect();
                best = best.min(problem.slowed_period(&unproved(timing.period, starts)));
            }
        }
    }
    best
}

fn unproved(period: Nanos, starts: Vec<Nanos>) -> CyclicSchedule {
    CyclicSchedule { period, bound: Nanos::ZERO, starts, nodes: 0, unslowed: period, rounding: Nanos::ZERO }
}

/// One op after the other: a schedule to start from that is far from good.
fn in_turn(problem: &CyclicProblem) -> CyclicSchedule {
    let order = problem.indices(launch_order(PairOrder::DeepSeek));
    let mut starts = vec![Nanos::ZERO; problem.ops.len()];
    let mut now = Nanos::ZERO;
    for op in order {
        starts[op] = now;
        now += problem.ops[op].duration;
    }
    unproved(now, starts)
}

#[test]
fn launch_orders_equal_running_them_all() {
    let mut draw = Draw(1);
    let mut above_the_bound = 0;
    for case in 0..300 {
        let problem = draw.problem(5 + case % 3);
        let start = in_turn(&problem);
        let rounding = Nanos(problem.ops.len() as u64);
        let found = best_launches(&problem, CyclicSchedule { rounding, ..start }, Limits::default());
        let least = least_period(&problem);
        assert!(found.proved(), "case {case}: {found:?}");
        assert!(found.period <= least + rounding && least <= found.period + rounding, "case {case}: {found:?} {least}");
        assert!(problem.bound() <= least, "case {case}: {} {least}", problem.bound());
        above_the_bound += u32::from(least > problem.bound() + rounding);
    }
    println!("{above_the_bound} above the bound");
    assert!(above_the_bound >= 20, "{above_the_bound}");
}

/// The least span of all orders of one layer, or two.
fn least_span(problem: &CyclicProblem, layers: u64) -> Nanos {
    let count = problem.ops.len();
    let ops: Vec<(u64, usize)> = (0..layers).flat_map(|layer| (0..count).map(move |op| (layer, op))).collect();
    // What is launched, with the bits of what was.
    fn launch(
        problem: &CyclicProblem,
        ops: &[(u64, usize)],
        layers: u64,
        done: u32,
        so_far: &mut Vec<usize>,
        best: &mut Nanos,
    ) {
        if so_far.len() == ops.len() {
            *best = (*best).min(run_of(problem, ops, so_far));
            return;
        }
        let count = problem.ops.len();
        for (at, &(layer, op)) in ops.iter().enumerate() {
            let ready = done >> at & 1 == 0
                && problem.edges().iter().filter(|edge| edge.to == op).all(|edge| {
                    let from = layer as i64 - edge.distance;
                    !(0..layers as i64).contains(&from) || done >> (from as usize * count + edge.from) & 1 == 1
                });
            // Which engine comes first in the list does not matter: an exchange after a computation that it does not need is
            // launched before it.
            let swapped = so_far.last().is_some_and(|&last| {
                let needed = problem
                    .needs
                    .iter()
                    .any(|need| need.to == op && ops[last] == (layer.wrapping_add_signed(-need.distance), need.from));
                let (engine, before) = (problem.ops[op].engine, problem.ops[ops[last].1].engine);
                engine == Stream::Comm && before == Stream::Compute && !needed
            });
            if ready && !swapped {
                so_far.push(at);
                launch(problem, ops, layers, done | 1 << at, so_far, best);
                so_far.pop();
            }
        }
    }
    let mut best = Nanos(u64::MAX);
    launch(problem, &ops, layers, 0, &mut Vec::new(), &mut best);
    best
}

/// How long these ops take in this order: starts at whole multiples stand for a launch order.
fn run_of(problem: &CyclicProblem, ops: &[(u64, usize)], order: &[usize]) -> Nanos {
    let launches: Vec<(u64, usize)> = order.iter().map(|&at| ops[at]).collect();
    crate::passes::overlap::cyclic::span::time(problem, &launches)
}

#[test]
fn spans_equal_running_every_order() {
    let mut draw = Draw(2);
    let mut above_the_bound = 0;
    for case in 0..60 {
        let (ops, layers) = if case % 4 == 0 { (5, 2) } else { (10, 1) };
        let problem = draw.problem(ops);
        let found = best_span(&problem, layers, &[&in_turn(&problem)], Limits::default()).expect("a start");
        let least = least_span(&problem, layers);
        assert!(found.proved(), "case {case}: {found:?}");
        assert!(least <= found.span && found.span <= least + found.rounding, "case {case}: {found:?} {least}");
        assert_eq!(crate::passes::overlap::cyclic::span::time(&problem, &found.launches), found.span);
        assert!(problem.span_bound(layers) <= least, "case {case}");
        above_the_bound += u32::from(least > problem.span_bound(layers) + found.rounding);
    }
    assert!(above_the_bound >= 10, "{above_the_bound}");
}
