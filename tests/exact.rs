//! The exact search against trying everything.

use dualweave::ir::Layout;
use dualweave::passes::pipeline::{Exact, exact, replay};
use dualweave::units::Nanos;

use small_pipelines::{Draw, SHAPES, Search};

#[path = "common/small_pipelines.rs"]
mod small_pipelines;

/// More nodes than any of the small problems takes.
const NODES: u64 = 10_000_000;

#[test]
fn finds_the_optimum_of_small_problems() {
    let mut draw = Draw(2);
    for (placement, ranks, per_rank, micro_batches) in SHAPES {
        for round in 0..48 {
            let layout = Layout::new(placement, ranks, per_rank, micro_batches);
            let problem = draw.problem(layout, round);
            let optimum = Search::new(&problem).optimum().map(Nanos);
            match (exact(&problem, Nanos(u64::MAX), NODES), optimum) {
                (Exact::NoneShorter, None) => {}
                (Exact::Optimal(timetable), Some(optimum)) => {
                    assert_eq!(replay(&problem, &timetable).unwrap().makespan, optimum, "{problem:?}");
                }
                (found, optimum) => panic!("{found:?}, but {optimum:?} is the optimum of {problem:?}"),
            }
        }
    }
}
