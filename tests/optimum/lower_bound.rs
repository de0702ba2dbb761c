//! The lower bound against the optimum of small instances, found by trying everything.

use dualweave::ir::{BackwardWorkspace, Hops, Layout, PairCost, Placement, Problem, StageCost};
use dualweave::job::training::ScheduleKind;
use dualweave::passes::pipeline::{generate, lower_bound, replay, tight_bound};
use dualweave::units::Nanos;

use crate::small_pipelines::{Draw, SHAPES, Search};

#[test]
fn no_timetable_of_a_small_instance_is_below_the_bound() {
    let mut draw = Draw(1);
    let (mut met, mut total) = (0, 0);
    for (placement, ranks, per_rank, micro_batches) in SHAPES {
        for round in 0..24 {
            let layout = Layout::new(placement, ranks, per_rank, micro_batches);
            let problem = draw.problem(layout, round);
            let Some(optimum) = Search::new(&problem).optimum() else { continue };
            let bound = tight_bound(&problem).0;
            assert!(lower_bound(&problem).0 <= bound);
            assert!(bound <= optimum, "bound {bound}, but {optimum} can be reached: {problem:?}");
            met += u32::from(bound == optimum);
            total += 1;
        }
    }
    // A bound of nothing would pass the above. This one is reached more often than not.
    println!("the bound is the optimum of {met} of {total}");
    assert!(met * 2 > total, "{met} of {total}");
}

/// Where I leaves more than it frees, or backwards need memory while they run, the bound holds as well.
#[test]
fn holds_where_chunks_grow() {
    let mut draw = Draw(5);
    let mut total = 0;
    for (placement, ranks, per_rank, micro_batches) in SHAPES {
        for round in 0..24 {
            let layout = Layout::new(placement, ranks, per_rank, micro_batches);
            let mut problem = draw.problem(layout, round);
            let Some(memory) = &mut problem.memory else { continue };
            memory.stages.iter_mut().for_each(|stage| stage.for_weights += 1 + draw.below(3));
            if round % 8 >= 4 {
                let mut backward = || BackwardWorkspace { input: draw.below(2), whole: draw.below(3) };
                memory.workspace.stages = (0..layout.stages).map(|_| backward()).collect();
            }
            let Some(optimum) = Search::new(&problem).optimum() else { continue };
            let bound = tight_bound(&problem).0;
            assert!(lower_bound(&problem).0 <= bound);
            assert!(bound <= optimum, "bound {bound}, but {optimum} can be reached: {problem:?}");
            total += 1;
        }
    }
    assert!(total > 20, "{total}");
}

/// Where pairs save a part of F and B, as in `benches/pipeline_grid.rs`, the orders of ranks prove more than counts do, and never too
/// much.
#[test]
fn holds_where_pairs_save() {
    let mut draw = Draw(6);
    let (mut more, mut total) = (0, 0);
    for (placement, ranks, per_rank, micro_batches) in SHAPES {
        for round in 0..24 {
            let layout = Layout::new(placement, ranks, per_rank, micro_batches);
            let mut problem = draw.problem(layout, round);
            let tenths = 5 + draw.below(5);
            let cost = |f: u32, b: u32| problem.stages[f as usize].f + problem.stages[b as usize].b;
            let pairs = (0..layout.stages).flat_map(|f| (0..layout.stages).map(move |b| (f, b)));
            let pairs = pairs.map(|(f, b)| ((f, b), Nanos((cost(f, b).0 * tenths).div_ceil(10))));
            problem.pair = PairCost::Table(pairs.collect());
            let Some(optimum) = Search::new(&problem).optimum() else { continue };
            let bound = tight_bound(&problem);
            assert!(bound.0 <= optimum, "bound {bound}, but {optimum} can be reached: {problem:?}");
            more += u32::from(bound > lower_bound(&problem));
            total += 1;
        }
    }
    println!("orders prove more in {more} of {total}");
    assert!(more > 0);
}

/// With equal costs ZB-H1 is optimal: the last rank starts P-1 late and then has no bubble. Bound and replay must meet.
#[test]
fn meets_zb_h1() {
    for (ranks, micro_batches) in [(1, 5), (4, 8), (8, 24)] {
        let layout = Layout::new(Placement::Linear, ranks, 1, micro_batches);
        let cost = StageCost { f: Nanos(1), i: Nanos(1), w: Nanos(1), b: Nanos(2) };
        let problem = Problem {
            layout,
            stages: vec![cost; ranks as usize],
            pair: PairCost::Sum,
            hops: Hops::Uniform(Nanos(0)),
            memory: None,
        };
        let optimum = Nanos(u64::from(3 * micro_batches + ranks - 1));
        let timetable = generate(ScheduleKind::ZbH1, &layout).unwrap();
        assert_eq!(replay(&problem, &timetable).unwrap().makespan, optimum, "P{ranks} M{micro_batches}");
        assert_eq!(lower_bound(&problem), optimum, "P{ranks} M{micro_batches}");
    }
}

/// One micro-batch over three stages, by hand: down 1+10+1+10+1, back 2+10+2+10, and the first stage's I and W at the end.
#[test]
fn follows_a_single_micro_batch_home() {
    let layout = Layout::new(Placement::Linear, 3, 1, 1);
    let cost = StageCost { f: Nanos(1), i: Nanos(2), w: Nanos(3), b: Nanos(5) };
    let problem =
        Problem { layout, stages: vec![cost; 3], pair: PairCost::Sum, hops: Hops::Uniform(Nanos(10)), memory: None };
    assert_eq!(lower_bound(&problem), Nanos(23 + 24 + 5));
}
