//! Training that is broken off and goes on is the same as training that is not.

use dualweave::job::training::ScheduleKind;
use dualweave::plan::Plan;
use dualweave::runtime::checkpoint::{Checkpoint, Progress};
use dualweave::runtime::host::adamw::AdamW;
use dualweave::runtime::host::executor::{Executor, Order};
use dualweave::runtime::host::rate::Rate;

use crate::cases::{Case, Heads, Kind, by_name, close, exact, executor};

fn case(schedule: ScheduleKind, pp: u32, ep: u32) -> Case {
    let kind = Kind { heads: Heads::Latent, modules: 1, tied: false, dense_first: true, shared: true, balanced: true };
    Case {
        schedule,
        placement: None,
        pp,
        ep,
        dp: 4,
        micro_batches: 4,
        sequences: 1,
        kind,
        rewritten: false,
        sharded: true,
        seed: 11,
    }
}

const OPTIMIZER: AdamW = AdamW {
    learning_rate: Rate::constant(1e-2),
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    clip: Some(1.0),
    balance_rate: 0.001,
};

fn progress(steps: u32) -> Progress {
    Progress { steps, seed: 3, precision: "f64".into(), text: "none".into() }
}

/// Steps `from..to` of a case.
fn train(executor: &mut Executor<f64>, case: &Case, from: u64, to: u64) {
    for step in from..to {
        let data = case.data(&exact(executor.plan()), step);
        executor.step(&data, Order::List).expect("a step");
    }
}

/// One that goes on from a checkpoint, whose own parameters were others.
fn resumed(plan: &Plan, bytes: &[u8]) -> Executor<f64> {
    let mut executor = Executor::new(plan.clone(), exact(plan), OPTIMIZER, 99).expect("a plan that can be run");
    let checkpoint = Checkpoint::read(bytes).expect("a checkpoint");
    assert_eq!(checkpoint.progress, progress(2));
    executor.restore(&checkpoint).expect("of the same model");
    executor
}

#[test]
fn resumed_training_has_the_same_bits() {
    for sharded in [true, false] {
        let case = Case { sharded, ..case(ScheduleKind::DualPipe, 2, 2) };
        let plan = case.plan();
        let mut whole = executor(&plan, OPTIMIZER);
        train(&mut whole, &case, 0, 2);
        let bytes = whole.checkpoint(&progress(2)).expect("a checkpoint");
        assert_eq!(bytes, whole.checkpoint(&progress(2)).expect("a checkpoint"));
        train(&mut whole, &case, 2, 4);
        let mut second = resumed(&plan, &bytes);
        assert_eq!(bytes, second.checkpoint(&progress(2)).expect("a checkpoint"));
        train(&mut second, &case, 2, 4);
        assert!(
            by_name(whole.parameters()).expect("equal copies") == by_name(second.parameters()).expect("equal copies")
        );
        assert!(
            whole.checkpoint(&progress(4)).expect("a checkpoint")
                == second.checkpoint(&progress(4)).expect("a checkpoint")
        );
    }
}

/// Names do not depend on how the model is spread, nor do numbers, but for the order of sums.
#[test]
fn training_goes_on_under_another_plan() {
    let first = case(ScheduleKind::DualPipe, 2, 4);
    let mut whole = executor(&first.plan(), OPTIMIZER);
    train(&mut whole, &first, 0, 2);
    let bytes = whole.checkpoint(&progress(2)).expect("a checkpoint");
    // As many layers as the other has.
    let second = case(ScheduleKind::OneFOneB, 2, 1);
    let mut other = resumed(&second.plan(), &bytes);
    train(&mut whole, &first, 2, 3);
    train(&mut other, &second, 2, 3);
    let tensors =
        [by_name(whole.parameters()), by_name(other.parameters())].map(|tensors| tensors.expect("equal copies"));
    close("parameters", &tensors[1], &tensors[0]).expect("the same training");
}

#[test]
fn what_is_no_checkpoint_of_the_model_is_refused() {
    let case = case(ScheduleKind::OneFOneB, 2, 2);
    let plan = case.plan();
    let mut whole = executor(&plan, OPTIMIZER);
    train(&mut whole, &case, 0, 1);
    let bytes = whole.checkpoint(&progress(1)).expect("a checkpoint");
    for end in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        assert!(Checkpoint::read(&bytes[..end]).is_err(), "cut at {end}");
    }
    let other = Case { kind: Kind { tied: true, ..case.kind }, ..case }.plan();
    let mut executor = Executor::<f64>::new(other.clone(), exact(&other), OPTIMIZER, 0).expect("a plan");
    let checkpoint = Checkpoint::read(&bytes).expect("a checkpoint");
    assert!(executor.restore(&checkpoint).expect_err("another model").message().contains("another model"));
    let mut single = Executor::<f32>::new(plan.clone(), exact(&plan), OPTIMIZER, 0).expect("a plan");
    let error = single.restore(&checkpoint).expect_err("other numbers");
    assert!(error.message().contains("is F64 of shape"), "{error}");
}
