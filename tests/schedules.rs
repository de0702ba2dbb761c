//! Timetables against what others publish: DeepSeek's DualPipe and DualPipeV, PyTorch's schedules, and closed formulas.

use std::fs;
use std::path::PathBuf;

use dualweave::ir::{
    Action, Hops, Layout, Memory, PairCost, Phase, Placement, Problem, StageCost, StageMemory, Timetable, Workspace,
};
use dualweave::job::training::ScheduleKind;
use dualweave::passes::pipeline::{Replay, generate, lower_bound, precondition, replay};
use dualweave::units::Nanos;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn data(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn timetable(kind: ScheduleKind, ranks: u32, per_rank: u32, micro_batches: u32) -> Timetable {
    generate(kind, &Layout::new(kind.placement().expect("a published one"), ranks, per_rank, micro_batches)).unwrap()
}

/// Equal costs on every stage, full backward = I + W.
fn problem(layout: Layout, [f, i, w]: [u64; 3], pair: PairCost, hop: u64) -> Problem {
    let cost = StageCost { f: Nanos(f), i: Nanos(i), w: Nanos(w), b: Nanos(i + w) };
    Problem { layout, stages: vec![cost; layout.stages as usize], pair, hops: Hops::Uniform(Nanos(hop)), memory: None }
}

fn equal_costs(timetable: &Timetable) -> (Problem, Replay) {
    let problem = problem(timetable.layout, [1, 1, 1], PairCost::Sum, 0);
    let replay = replay(&problem, timetable).unwrap();
    (problem, replay)
}

#[test]
fn dualpipe_and_dualpipev_are_deepseeks() {
    for (kind, ranks, micro_batches) in [
        (ScheduleKind::DualPipe, 2, 4),
        (ScheduleKind::DualPipe, 4, 8),
        (ScheduleKind::DualPipe, 8, 20),
        (ScheduleKind::DualPipeV, 2, 4),
        (ScheduleKind::DualPipeV, 4, 8),
        (ScheduleKind::DualPipeV, 8, 20),
    ] {
        let name = format!("schedules/{kind}_pp{ranks}_m{micro_batches}");
        let ours = timetable(kind, ranks, 1, micro_batches);
        assert_eq!(ours.local_tokens(), data(&format!("{name}.txt")), "{name}");
        if ranks > 2 {
            assert_eq!(ours.stage_tokens(), data(&format!("{name}.stage.txt")), "{name}");
        }
    }
}

#[test]
fn pytorchs_schedules_are_pytorchs() {
    for (kind, name, ranks, micro_batches) in [
        (ScheduleKind::OneFOneB, "1f1b_pp2_m4", 2, 4),
        (ScheduleKind::OneFOneB, "1f1b_pp4_m2", 4, 2),
        (ScheduleKind::OneFOneB, "1f1b_pp4_m8", 4, 8),
        (ScheduleKind::GPipe, "gpipe_pp4_m4", 4, 4),
        (ScheduleKind::Interleaved, "interleaved1f1b_pp2_stages4_m4", 2, 4),
        (ScheduleKind::ZbV, "zbv_pp2_m4", 2, 4),
        (ScheduleKind::ZbV, "zbv_pp4_m8", 4, 8),
    ] {
        let mut theirs = String::new();
        for line in data(&format!("torch-csv/{name}.compute_only.csv")).lines() {
            let cells: Vec<&str> = line.split(',').map(str::trim).filter(|cell| !cell.is_empty()).collect();
            theirs.push_str(&cells.join(" "));
            theirs.push('\n');
        }
        assert_eq!(timetable(kind, ranks, 2, micro_batches).stage_tokens(), theirs, "{name}");
    }
}

/// The columns of `makespans.csv` that a replay must reproduce, in tenths.
#[test]
fn replay_gives_the_published_makespans_and_bubbles() {
    let tenths = |text: &str| (text.parse::<f64>().unwrap() * 10.0).round() as u64;
    let list = |text: &str| text.split('/').map(tenths).collect::<Vec<u64>>();
    let mut rows = 0;
    for row in data("schedules/makespans.csv").lines().skip(1) {
        let cells: Vec<&str> = row.split(',').collect();
        let kind = if cells[0] == "dualpipe" { ScheduleKind::DualPipe } else { ScheduleKind::DualPipeV };
        let ours = timetable(kind, cells[1].parse().unwrap(), 1, cells[2].parse().unwrap());
        let costs = [tenths(cells[3]), tenths(cells[4]), tenths(cells[5])];
        let problem = problem(ours.layout, costs, PairCost::Uniform(Nanos(tenths(cells[6]))), 0);
        let replay = replay(&problem, &ours).unwrap();
        let bubbles: Vec<u64> = replay.bubble_per_rank().iter().map(|bubble| bubble.0).collect();
        let busy: Vec<u64> = bubbles.iter().map(|bubble| replay.makespan.0 - bubble).collect();
        let peaks: Vec<u64> = replay.peak_activations_per_rank().iter().map(|&peak| u64::from(peak) * 10).collect();
        assert_eq!(replay.makespan.0, tenths(cells[8]), "{row}");
        assert_eq!(busy, list(cells[9]), "{row}");
        assert_eq!(bubbles, list(cells[10]), "{row}");
        assert_eq!(peaks, list(cells[13]), "{row}");
        assert_eq!(peaks_until_input_gradient(&ours), list(cells[12]), "{row}");
        let bound = lower_bound(&problem);
        assert!(bound <= replay.makespan, "{row}: bound {bound}");
        // The published schedules are good: a bound that were much below would be a poor one.
        assert!(bound.0 * 100 >= replay.makespan.0 * 85, "{row}: bound {bound}");
        rows += 1;
    }
    assert_eq!(rows, 14);
}

/// Most chunks between the start of F and the end of I, in tenths: the other memory column of `makespans.csv`.
fn peaks_until_input_gradient(timetable: &Timetable) -> Vec<u64> {
    let peak = |actions: &Vec<Action>| {
        let (mut held, mut peak) = (0, 0);
        for action in actions {
            held += u64::from(action.forward().is_some());
            peak = peak.max(held);
            held -= u64::from(action.input_gradient().is_some());
        }
        peak * 10
    };
    timetable.ranks.iter().map(peak).collect()
}

/// The trip counts of the eight steps can be read off the list: they partition it.
#[test]
fn the_eight_steps_have_the_published_trip_counts() {
    for (kind, ranks, micro_batches) in [
        (ScheduleKind::DualPipe, 4, 8),
        (ScheduleKind::DualPipe, 8, 20),
        (ScheduleKind::DualPipeV, 4, 8),
        (ScheduleKind::DualPipeV, 8, 20),
    ] {
        let ours = timetable(kind, ranks, 1, micro_batches);
        for line in data(&format!("schedules/{kind}_pp{ranks}_m{micro_batches}.steps.csv")).lines().skip(1) {
            let n: Vec<usize> = line.split(',').map(|cell| cell.parse().unwrap()).collect();
            let actions = &ours.ranks[n[0]];
            let turning = n[3] == 0;
            let count = |wanted: fn(&Action) -> bool| actions.iter().filter(|action| wanted(action)).count();
            let pairs = 2 * n[4] - usize::from(turning) + n[5];
            assert_eq!(count(|a| matches!(a, Action::FB(..))), pairs, "{line}");
            assert_eq!(count(|a| matches!(a, Action::F(_))), n[1] + 2 * n[2] + n[3] + usize::from(turning), "{line}");
            assert_eq!(count(|a| matches!(a, Action::W(_))), n[3] + n[7] + n[8], "{line}");
            assert_eq!(count(|a| matches!(a, Action::I(_))), n[3] + n[6] + n[7], "{line}");
        }
    }
}

/// Equal costs: GPipe and 1F1B (P-1)(F+B), 1F1B over v stages a v-th of it, ZB-H1 (P-1)(F+I-W).
#[test]
fn bubbles_are_those_of_the_papers() {
    for (ranks, micro_batches) in [(1, 1), (2, 4), (4, 8), (4, 12), (8, 24), (5, 10)] {
        let p = u64::from(ranks);
        for (kind, per_rank, bubble) in [
            (ScheduleKind::GPipe, 1, (p - 1) * 3),
            (ScheduleKind::OneFOneB, 1, (p - 1) * 3),
            (ScheduleKind::ZbH1, 1, p - 1),
        ] {
            let (_, replay) = equal_costs(&timetable(kind, ranks, per_rank, micro_batches));
            let expected = vec![Nanos(bubble); ranks as usize];
            assert_eq!(replay.bubble_per_rank(), expected, "{kind} P{ranks} M{micro_batches}");
        }
        // A chunk of v stages per rank is a v-th of the work, so the bubble counts (P-1)(F+B) of small chunks.
        let (_, replay) = equal_costs(&timetable(ScheduleKind::Interleaved, ranks, 2, micro_batches));
        if micro_batches % ranks == 0 {
            assert_eq!(replay.bubble_per_rank(), vec![Nanos((p - 1) * 3); ranks as usize], "P{ranks} M{micro_batches}");
        }
    }
}

/// DualPipe (P/2-1)(FB+B-3W), DualPipeV (P-1)(FB+B-3W): on the ranks with the largest bubble. Also of a large run.
#[test]
fn bubbles_of_dualpipe_are_those_of_the_report() {
    let f = 3;
    for (ranks, micro_batches, pair) in [(2, 4, 9), (4, 8, 8), (8, 20, 7), (16, 32, 9), (64, 1024, 8)] {
        for (kind, hops) in [(ScheduleKind::DualPipe, ranks / 2 - 1), (ScheduleKind::DualPipeV, ranks - 1)] {
            let ours = timetable(kind, ranks, 1, micro_batches);
            // The formula is of stages whose F, I and W cost the same; others shift the steps against each other.
            let problem = problem(ours.layout, [f, f, f], PairCost::Uniform(Nanos(pair)), 0);
            let replay = replay(&problem, &ours).unwrap();
            let bubble = u64::from(hops) * (pair + 2 * f - 3 * f);
            assert_eq!(replay.bubble_per_rank().into_iter().max(), Some(Nanos(bubble)), "{kind} P{ranks}");
            assert!(replay.peak_activations_per_rank().iter().all(|&held| held <= 2 * ranks + 1));
        }
    }
}

#[test]
fn zb_h1_needs_no_more_memory_than_1f1b() {
    for (ranks, micro_batches) in [(2, 1), (4, 2), (4, 8), (8, 24)] {
        let peak = |kind| {
            let (_, replay) = equal_costs(&timetable(kind, ranks, 1, micro_batches));
            replay.peak_activations_per_rank().iter().copied().max().unwrap()
        };
        assert_eq!(peak(ScheduleKind::OneFOneB), ranks.min(micro_batches));
        assert!(peak(ScheduleKind::ZbH1) <= peak(ScheduleKind::OneFOneB), "P{ranks} M{micro_batches}");
        assert_eq!(peak(ScheduleKind::GPipe), micro_batches);
    }
}

/// With equal costs ZB-V has no bubble but the way in and out, and 1F1B's memory (2P half-size chunks).
#[test]
fn zb_v_has_zero_bubble() {
    for (ranks, micro_batches) in [(2, 4), (4, 8), (8, 24)] {
        let (_, replay) = equal_costs(&timetable(ScheduleKind::ZbV, ranks, 2, micro_batches));
        let span = replay.longest_span();
        assert_eq!(span, Nanos(6 * u64::from(micro_batches)), "P{ranks} M{micro_batches}");
        assert!(replay.peak_activations_per_rank().iter().all(|&peak| peak <= 2 * ranks));
    }
}

#[test]
fn preconditions_name_the_nearest_values() {
    let said = |kind, ranks, per_rank, m| precondition(kind, ranks, per_rank, m).unwrap_err().message().to_owned();
    for (message, expected) in [
        (
            said(ScheduleKind::DualPipe, 7, 1, 20),
            "dualpipe needs an even number of ranks, at least 2, not 7: use 6 or 8",
        ),
        (said(ScheduleKind::DualPipe, 1, 1, 20), "dualpipe needs an even number of ranks, at least 2, not 1: use 2"),
        (
            said(ScheduleKind::DualPipe, 8, 1, 15),
            "dualpipe with 8 ranks needs an even number of micro-batches, at least 16, not 15: use 16",
        ),
        (
            said(ScheduleKind::DualPipe, 8, 1, 21),
            "dualpipe with 8 ranks needs an even number of micro-batches, at least 16, not 21: use 20 or 22",
        ),
        (
            said(ScheduleKind::DualPipeV, 8, 1, 15),
            "dualpipev with 8 ranks needs at least 16 micro-batches, not 15: use 16",
        ),
        (
            said(ScheduleKind::Interleaved, 4, 2, 9),
            "interleaved with 4 ranks needs a number of micro-batches that divides into 2 equal rounds, not 9: use 8 or 10",
        ),
        (said(ScheduleKind::GPipe, 0, 1, 1), "gpipe needs 1 to 4096 ranks, not 0: use 1"),
        (said(ScheduleKind::ZbV, 2, 1, 0), "zb-v needs at least 1 micro-batch, not 0: use 1"),
        (said(ScheduleKind::Interleaved, 2, 0, 4), "interleaved needs 1 to 64 stages per rank, not 0: use 1"),
        (
            said(ScheduleKind::GPipe, 4096, 1, 1025),
            "gpipe over 4096 stages is made for at most 1024 micro-batches (4194304 chunks); 1025 is too many",
        ),
    ] {
        assert_eq!(message, expected);
    }
    // What is named does.
    for (kind, ranks, m) in [
        (ScheduleKind::DualPipe, 6, 20),
        (ScheduleKind::DualPipe, 8, 16),
        (ScheduleKind::DualPipe, 8, 22),
        (ScheduleKind::DualPipeV, 8, 16),
        (ScheduleKind::Interleaved, 4, 8),
        (ScheduleKind::Interleaved, 4, 10),
        (ScheduleKind::GPipe, 4096, 1024),
    ] {
        assert!(precondition(kind, ranks, 2, m).is_ok(), "{kind} P{ranks} M{m}");
    }
    let other = Layout::new(Placement::Linear, 4, 1, 8);
    assert!(generate(ScheduleKind::DualPipe, &other).unwrap_err().message().contains("bidirectional"));
    assert!(generate(ScheduleKind::GPipe, &Layout { stages: 5, ..other }).is_err());
    assert!(generate(ScheduleKind::GPipe, &Layout { ranks: 0, ..other }).is_err());
}

#[test]
fn replay_refuses_what_is_no_timetable() {
    let good = timetable(ScheduleKind::OneFOneB, 2, 1, 2);
    let problem = problem(good.layout, [1, 1, 1], PairCost::Sum, 0);
    let said = |change: &dyn Fn(&mut Vec<Vec<Action>>)| {
        let mut bad = good.clone();
        change(&mut bad.ranks);
        replay(&problem, &bad).unwrap_err().message().to_owned()
    };
    // Rank 0: 0F0 0F1 0B0 0B1. Rank 1: 1F0 1B0 1F1 1B1.
    assert_eq!(said(&|ranks| _ = ranks[0].remove(1)), "rank 0 never runs 0F1");
    assert_eq!(said(&|ranks| _ = ranks[1].pop()), "rank 1 never runs 1I1");
    assert_eq!(said(&|ranks| ranks[0][1] = ranks[0][0]), "rank 0 runs 0F0 twice, again at 0F0");
    assert_eq!(said(&|ranks| ranks.swap(0, 1)), "rank 0 runs 1F0, which belongs on rank 1");
    assert_eq!(said(&|ranks| _ = ranks.pop()), "the timetable has lists for 1 ranks and a layout of 2");
    assert_eq!(said(&|ranks| ranks[1].swap(0, 1)), "the timetable never ends: rank 1 waits at 1B0 for 1F0");
    assert_eq!(said(&|ranks| ranks[0].swap(1, 3)), "the timetable never ends: rank 0 waits at 0B1 for 0F1");
    let crossed = |ranks: &mut Vec<Vec<Action>>| {
        ranks[0].swap(1, 2); // 0F0 0B0 0F1 0B1
        ranks[1].swap(1, 2); // 1F0 1F1 1B0 1B1
    };
    assert_eq!(said(&crossed), "the timetable never ends: rank 0 waits at 0B0 for 1I0, rank 1 waits at 1F1 for 0F1");
    let outside = Action::F(dualweave::ir::ChunkId::new(0, 2));
    assert!(said(&|ranks| ranks[0].push(outside)).contains("only 2 stages and 2 micro-batches"));
}

/// A hop delays what crosses ranks, and only that: the point of the V is crossed on one rank.
#[test]
fn hops_are_between_ranks_only() {
    let v = timetable(ScheduleKind::ZbV, 2, 2, 1);
    let at = |hop| replay(&problem(v.layout, [1, 1, 0], PairCost::Sum, hop), &v).unwrap().makespan;
    assert_eq!(at(0), Nanos(8));
    assert_eq!(at(10), Nanos(8 + 4 * 10));
    let linear = timetable(ScheduleKind::GPipe, 4, 1, 1);
    let makespan = replay(&problem(linear.layout, [1, 1, 0], PairCost::Sum, 10), &linear).unwrap().makespan;
    assert_eq!(makespan, Nanos(8 + 6 * 10));
}

/// A schedule for which these numbers are fit.
fn any_schedule() -> impl Strategy<Value = Timetable> {
    (prop::sample::select(&ScheduleKind::PUBLISHED[..]), 1..=8_u32, 1..=3_u32, 1..=30_u32)
        .prop_filter("no such schedule", |&(kind, ranks, per_rank, m)| precondition(kind, ranks, per_rank, m).is_ok())
        .prop_map(|(kind, ranks, per_rank, m)| timetable(kind, ranks, per_rank, m))
}

fn any_problem(layout: Layout) -> impl Strategy<Value = Problem> {
    let stage = (1..20_u64, 1..20_u64, 0..20_u64, 0..=20_u64);
    let pair = prop_oneof![Just(PairCost::Sum), (1..60_u64).prop_map(|cost| PairCost::Uniform(Nanos(cost)))];
    (prop::collection::vec(stage, layout.stages as usize), pair, 0..5_u64).prop_map(move |(stages, pair, hop)| {
        let stages = stages.into_iter().map(|(f, i, w, hidden)| StageCost {
            f: Nanos(f),
            i: Nanos(i),
            w: Nanos(w),
            b: Nanos((i + w).saturating_sub(hidden).max(1)),
        });
        Problem { layout, stages: stages.collect(), pair, hops: Hops::Uniform(Nanos(hop)), memory: None }
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        rng_seed: RngSeed::Fixed(0),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Every part of every chunk once, on its rank, in the order F, I, W; and the lists do not wait for each other.
    #[test]
    fn every_schedule_is_whole_and_ends(
        (timetable, problem) in any_schedule().prop_flat_map(|t| { let l = t.layout; (Just(t), any_problem(l)) })
    ) {
        let layout = timetable.layout;
        let mut parts = Vec::new();
        for (rank, actions) in (0..).zip(&timetable.ranks) {
            for (phase, chunk) in actions.iter().flat_map(|action| action.parts()) {
                prop_assert_eq!(layout.rank_of(chunk), rank);
                parts.push((chunk, phase));
            }
        }
        // The sort is stable: equal chunks keep the order in which their rank runs them.
        parts.sort_by_key(|&(chunk, _)| chunk);
        let mut expected = Vec::new();
        for stage in 0..layout.stages {
            for m in 0..layout.micro_batches {
                expected.extend([Phase::F, Phase::I, Phase::W].map(|phase| (dualweave::ir::ChunkId::new(stage, m), phase)));
            }
        }
        prop_assert_eq!(parts, expected);

        let replay = replay(&problem, &timetable).unwrap();
        prop_assert!(lower_bound(&problem) <= replay.makespan);
        prop_assert!(replay.longest_span() <= replay.makespan);

        // Nor with exactly the memory that it needs.
        for for_weights in 0..=2 {
            let memory = just_enough(&timetable, for_weights);
            let limited = Problem { memory: Some(memory), ..problem.clone() };
            prop_assert!(lower_bound(&limited) <= replay.makespan, "{:?}", limited.memory);
        }
    }
}

/// Limits that a timetable comes up to on each rank, where chunks of the stages in turn hold 2, 3 and 4, and `for_weights` from I to
/// W.
fn just_enough(timetable: &Timetable, for_weights: u64) -> Memory {
    let stage = |stage: u32| StageMemory { activation: 2 + u64::from(stage % 3), for_weights };
    let peak = |actions: &Vec<Action>| {
        let (mut held, mut peak) = (0, 0);
        for action in actions {
            // A pair takes before it gives.
            held += action.forward().map_or(0, |chunk| stage(chunk.stage).activation);
            peak = peak.max(held);
            held -= action.input_gradient().map_or(0, |chunk| stage(chunk.stage).activation - for_weights);
            held -= action.weight_gradient().map_or(0, |_| for_weights);
        }
        peak
    };
    Memory {
        stages: (0..timetable.layout.stages).map(stage).collect(),
        workspace: Workspace::default(),
        limits: timetable.ranks.iter().map(peak).collect(),
    }
}
