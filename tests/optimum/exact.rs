//! The exact search, and with it the lower bound, against trying everything.

use dualweave::ir::{Hops, Layout, Memory, PairCost, Placement, Problem, StageCost, StageMemory, Workspace};
use dualweave::passes::pipeline::{Exact, exact, lower_bound, replay, tight_bound};
use dualweave::units::Nanos;

use crate::small_pipelines::{Draw, LARGER_SHAPES, SHAPES, Search};

/// More nodes than any of the small problems takes.
const NODES: u64 = 1_000_000;

#[test]
fn finds_the_optimum_of_small_problems() {
    let mut draw = Draw(2);
    for (placement, ranks, per_rank, micro_batches) in SHAPES {
        for round in 0..48 {
            let problem = draw.problem(Layout::new(placement, ranks, per_rank, micro_batches), round);
            assert_eq!(optimum(&problem), Search::new(&problem).optimum(), "{problem:?}");
        }
    }
}

/// What the search has found can be reached, and nothing is shorter.
#[test]
fn finds_the_optimum_of_larger_problems() {
    let mut draw = Draw(3);
    for (placement, ranks, per_rank, micro_batches) in LARGER_SHAPES {
        for round in 0..12 {
            let problem = draw.problem(Layout::new(placement, ranks, per_rank, micro_batches), round);
            let found = optimum(&problem);
            // All costs are far below it.
            let below = found.map_or(1000, |found| found + 1);
            assert_eq!(Search::new(&problem).optimum_by_states(below), found, "{problem:?}");
            assert!(found.is_none_or(|found| tight_bound(&problem).0 <= found), "{problem:?}");
        }
    }
}

/// The makespan of the optimum that the search finds, which it confirms when asked for something shorter.
fn optimum(problem: &Problem) -> Option<u64> {
    match exact(problem, Nanos(u64::MAX), NODES) {
        Exact::NoneShorter => None,
        Exact::Optimal(timetable) => {
            let makespan = replay(problem, &timetable).unwrap().makespan;
            assert_eq!(exact(problem, makespan, NODES), Exact::NoneShorter, "{problem:?}");
            Some(makespan.0)
        }
        Exact::Open { .. } => panic!("more nodes are needed for {problem:?}"),
    }
}

/// Whatever the limit, what an unfinished search says is true.
#[test]
fn an_unfinished_search_brackets_the_optimum() {
    let problem = equal(Placement::Linear, 4, 8, [10, 10, 10], Some(24), 4);
    let optimum = match exact(&problem, Nanos(u64::MAX), 100_000) {
        Exact::Optimal(timetable) => replay(&problem, &timetable).unwrap().makespan,
        open => panic!("{open:?}"),
    };
    let mut best_bound = Nanos::ZERO;
    for nodes in [0, 10, 100, 400, 1_000, 2_000, 4_000] {
        match exact(&problem, Nanos(u64::MAX), nodes) {
            Exact::Open { found, bound } => {
                let found = found.map(|timetable| replay(&problem, &timetable).unwrap().makespan);
                assert!(bound <= optimum && found.is_none_or(|found| optimum <= found), "{nodes}: {bound} {found:?}");
                best_bound = best_bound.max(bound);
            }
            Exact::Optimal(timetable) => assert_eq!(replay(&problem, &timetable).unwrap().makespan, optimum),
            Exact::NoneShorter => panic!("there is a timetable"),
        }
    }
    // It also proves more than what counts do.
    assert!(best_bound > lower_bound(&problem), "{best_bound}, tight {}", tight_bound(&problem));
}

/// With room for four, none beats ZB-H1 where costs are equal, nor the 201 of the zero-bubble heuristic (Qi et al. 2023) for F 5,
/// I 6, W 4 and twelve micro-batches. With room for five its longest span of a rank, 193, is also the least that a CP solver
/// finds; the last rank starts later, so that the makespan is longer.
#[test]
fn proves_known_optima() {
    let unit = equal(Placement::Linear, 4, 8, [1, 1, 1], None, 4);
    assert_eq!(optimum(&unit), Some(27));
    for (memory, makespan) in [(4, 201), (5, 197)] {
        let problem = equal(Placement::Linear, 4, 12, [5, 6, 4], None, memory);
        assert_eq!(optimum(&problem), Some(makespan), "memory {memory}");
    }
}

/// Equal stages, and room for so many chunks on each rank.
fn equal(
    placement: Placement,
    ranks: u32,
    micro_batches: u32,
    cost: [u64; 3],
    pair: Option<u64>,
    room: u64,
) -> Problem {
    let layout = Layout::new(placement, ranks, 2, micro_batches);
    let [f, i, w] = cost.map(Nanos);
    let stages = layout.stages as usize;
    Problem {
        layout,
        stages: vec![StageCost { f, i, w, b: i + w }; stages],
        pair: pair.map_or(PairCost::Sum, |cost| PairCost::Uniform(Nanos(cost))),
        hops: Hops::Uniform(Nanos(0)),
        memory: Some(Memory {
            stages: vec![StageMemory { activation: 1, for_weights: 1 }; stages],
            workspace: Workspace::default(),
            limits: vec![room; ranks as usize],
        }),
    }
}
