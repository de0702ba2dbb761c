//! Plans that are run: losses, gradients and updated parameters are those of the reference trainer, however the model is spread,
//! whichever schedule orders the work, and in whatever order streams and events allow.

use std::collections::{BTreeMap, BTreeSet};

use crate::cases::{Case, Heads, Kind, same_as_the_reference};
use dualweave::ir::{Placement, ProgramOp, Work};
use dualweave::job::training::ScheduleKind;
use dualweave::plan::Plan;
use dualweave::runtime::host::Shape;
use dualweave::runtime::host::adamw::AdamW;
use dualweave::runtime::host::executor::{Executor, Order};
use dualweave::runtime::host::parameters::Parameters as _;
use dualweave::runtime::host::precision::Policy;
use dualweave::runtime::host::reference::Trainer;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn kind() -> impl Strategy<Value = Kind> {
    let attention = prop::sample::select(vec![Heads::Multi, Heads::Grouped, Heads::Latent]);
    (attention, 0..3_u32, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(heads, modules, tied, dense_first, shared, balanced)| Kind {
            heads,
            modules,
            tied,
            dense_first,
            shared,
            balanced,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let schedule = prop::sample::select(vec![
        ScheduleKind::GPipe,
        ScheduleKind::OneFOneB,
        ScheduleKind::Interleaved,
        ScheduleKind::ZbH1,
        ScheduleKind::ZbV,
        ScheduleKind::DualPipe,
        ScheduleKind::DualPipeV,
        ScheduleKind::Auto,
    ]);
    let spread = (1..=8_u32, prop::sample::select(vec![1_u32, 2, 4]), 1..=2_u32);
    let placement = prop::option::of(prop::sample::select(vec![
        Placement::Linear,
        Placement::Loop,
        Placement::V,
        Placement::Bidirectional,
    ]));
    let flags = (any::<bool>(), any::<bool>());
    (schedule, placement, spread, 0..6_u32, 1..=2_u32, kind(), flags, any::<u64>()).prop_map(
        |(schedule, placement, (pp, ep, replicas), more, sequences, kind, (rewritten, sharded), seed)| {
            // What a schedule needs: an even number of ranks, or at least so many micro-batches.
            let pp = if schedule == ScheduleKind::DualPipe { pp.next_multiple_of(2) } else { pp };
            let micro_batches = match schedule {
                ScheduleKind::DualPipe => 2 * pp + 2 * more,
                ScheduleKind::DualPipeV => 2 * pp + more,
                ScheduleKind::ZbV => 2 * pp + more,
                ScheduleKind::Interleaved => pp * (1 + more / 3),
                _ => 1 + more,
            };
            // `Auto` chooses, or is told.
            let placement = placement.filter(|_| schedule == ScheduleKind::Auto);
            Case {
                schedule,
                placement,
                pp,
                ep,
                dp: ep * replicas,
                micro_batches,
                sequences,
                kind,
                rewritten,
                sharded,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(31),
        failure_persistence: None,
        cases: 36,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]
    #[test]
    fn whatever_is_run_computes_what_the_reference_does(case in case()) {
        same_as_the_reference(&case).map_err(TestCaseError::fail)?;
    }
}

/// Which forms the programs of a plan have, in words.
fn forms(plan: &Plan) -> BTreeSet<String> {
    let ops = plan.programs.iter().flat_map(|program| &program.ops);
    let of = |op: &ProgramOp| {
        let carrier = if matches!(op.work, Work::Copy { .. }) { " by copy engine" } else { "" };
        format!("{:?} of {} parts{carrier}", op.step, op.tokens.parts)
    };
    let kinds = plan.programs.iter().map(|program| format!("{:?}", program.kind));
    ops.map(of).chain(kinds).collect()
}

#[test]
fn every_form_of_a_layer_is_run() {
    let mut seen = BTreeSet::new();
    for (schedule, ep, heads, shared) in [
        (ScheduleKind::DualPipe, 4, Heads::Latent, true),
        (ScheduleKind::DualPipeV, 2, Heads::Grouped, true),
        (ScheduleKind::ZbV, 4, Heads::Multi, false),
    ] {
        let kind = Kind { heads, modules: 1, tied: false, dense_first: true, shared, balanced: true };
        let case = Case {
            schedule,
            placement: None,
            pp: 2,
            ep,
            dp: ep,
            micro_batches: 6,
            sequences: 2,
            kind,
            rewritten: true,
            sharded: true,
            seed: 7,
        };
        seen.extend(forms(&case.plan()));
        same_as_the_reference(&case).unwrap_or_else(|problem| panic!("{case:?}: {problem}"));
    }
    for form in [
        "F",
        "B",
        "I",
        "W",
        "FB",
        "Main of 2 parts",
        "Main of 1 parts by copy engine",
        "Shared of 1 parts",
        "Again of 1 parts",
        "Pack of 1 parts",
    ] {
        assert!(seen.contains(form), "no {form} in {seen:?}");
    }
}

/// A pipeline of one replica adds up in the reference's order, if its micro-batches come in order and no matrix has copies: then
/// even formats of few bits give the same bits.
#[test]
fn numbers_of_few_bits_are_the_references_too() {
    let kind = Kind { heads: Heads::Latent, modules: 0, tied: false, dense_first: true, shared: true, balanced: true };
    let case = Case {
        schedule: ScheduleKind::OneFOneB,
        placement: None,
        pp: 3,
        ep: 1,
        dp: 1,
        micro_batches: 5,
        sequences: 2,
        kind,
        rewritten: true,
        sharded: false,
        seed: 3,
    };
    let plan = case.plan();
    let shape = Shape::of_plan(&plan);
    let mut executor = Executor::<f32>::new(plan, shape.clone(), AdamW::default(), 9).expect("a plan that can be run");
    let reference = Trainer::<f32>::new(shape.clone(), AdamW::default(), 9);
    let data = case.data(&shape, 0);
    let (losses, gradients) = reference.gradients(&data[0]);
    assert_eq!(executor.step(&data, Order::Random(2)).expect("a step").losses, losses);
    let ours: BTreeMap<String, _> = executor.gradients().map(|(_, name, tensor)| (name, tensor)).collect();
    let theirs: BTreeMap<String, _> = gradients.tensors("").into_iter().collect();
    assert!(ours == theirs);
    let exact = Trainer::<f32>::new(Shape { policy: Policy::EXACT, ..shape }, AdamW::default(), 9);
    assert_ne!(exact.gradients(&data[0]).0, losses);
}
