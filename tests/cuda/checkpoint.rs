//! Training that is broken off on GPUs and goes on: there, to the same bits; on the host, and from there, to what rounding allows.

use dualweave::job::training::ScheduleKind;
use dualweave::plan::Plan;
use dualweave::runtime::checkpoint::{Checkpoint, Progress};
use dualweave::runtime::cuda::Device;
use dualweave::runtime::cuda::executor::{Executor, Options};
use dualweave::runtime::host::Shape;
use dualweave::runtime::host::adamw::AdamW;
use dualweave::runtime::host::executor::{Executor as HostExecutor, Order};
use dualweave::runtime::host::rate::Rate;
use dualweave::runtime::host::reference::Step;

use crate::train::{CASE, Case, biased, gpus, latent, latent_fp8, module, tied};

/// The rate rises before the interruption, and falls behind it.
fn optimizer() -> AdamW {
    AdamW { learning_rate: Rate { most: 1e-3, warm_up: 2, decayed: Some(4) }, ..AdamW::default() }
}

fn progress(steps: u32) -> Progress {
    Progress { steps, seed: 3, precision: "as-planned".into(), text: "none".into() }
}

fn executor(plan: &Plan, seed: u64, gpus: usize) -> Executor {
    let options = Options { gpus: Some(gpus), ..Options::default() };
    Executor::new(plan.clone(), Shape::of_plan(plan), optimizer(), seed, &options).expect("a plan that can be run")
}

fn host(plan: &Plan, seed: u64) -> HostExecutor<f32> {
    HostExecutor::new(plan.clone(), Shape::of_plan(plan), optimizer(), seed).expect("a plan that can be run")
}

fn train(executor: &mut Executor, case: &Case, steps: std::ops::Range<u32>) -> Vec<Step> {
    let step = |step| executor.step(&case.data(&executor.shape().clone(), step), false).expect("a step").step;
    steps.map(step).collect()
}

fn train_host(host: &mut HostExecutor<f32>, case: &Case, steps: std::ops::Range<u32>) -> Vec<Step> {
    let step = |step| host.step(&case.data(&host.shape().clone(), step), Order::List).expect("a step");
    steps.map(step).collect()
}

/// Has two steps, a checkpoint and two more steps; goes on from the checkpoint with parameters that were others.
fn goes_on_bit_for_bit(case: &Case) {
    for gpus in 1..=gpus() {
        let plan = case.plan();
        let mut whole = executor(&plan, 7, gpus);
        train(&mut whole, case, 0..2);
        let bytes = whole.checkpoint(&progress(2)).expect("a checkpoint");
        assert!(bytes == whole.checkpoint(&progress(2)).expect("a checkpoint"), "{}: the same bytes", case.name);
        let mut second = executor(&plan, 99, gpus);
        let read = Checkpoint::read(&bytes).expect("a checkpoint");
        assert_eq!(read.progress, progress(2));
        second.restore(&read).expect("of the same model");
        assert!(bytes == second.checkpoint(&progress(2)).expect("a checkpoint"), "{}: what was restored", case.name);
        assert_eq!(train(&mut whole, case, 2..4), train(&mut second, case, 2..4), "{}", case.name);
        let ends = [&whole, &second].map(|executor| executor.checkpoint(&progress(4)).expect("a checkpoint"));
        assert!(ends[0] == ends[1] && ends[0] != bytes, "{}: the same end", case.name);
        eprintln!("{}, {gpus} GPUs: {} bytes are the same", case.name, ends[0].len());
    }
}

#[test]
fn interrupted_training_has_the_same_bits() {
    let schedule = ScheduleKind::DualPipe;
    goes_on_bit_for_bit(&Case { name: "1f1b", ..CASE });
    goes_on_bit_for_bit(&Case { name: "DualPipe ep 2, sharded", schedule, dp: 2, ep: 2, sharded: true, ..CASE });
    goes_on_bit_for_bit(&Case { name: "tied DualPipe, sharded", schedule, dp: 2, sharded: true, change: tied, ..CASE });
    goes_on_bit_for_bit(&Case { name: "biases, ep 2", dp: 2, ep: 2, sharded: true, change: biased, ..CASE });
    goes_on_bit_for_bit(&Case { name: "MTP", change: module, ..CASE });
    goes_on_bit_for_bit(&Case { name: "dp 2, sharded, latent", pp: 1, dp: 2, sharded: true, change: latent, ..CASE });
}

#[test]
fn interrupted_training_in_fp8_has_the_same_bits() {
    if gpus() > 0 && Device::open(0).is_ok_and(|device| device.capability >= 89) {
        goes_on_bit_for_bit(&Case { name: "FP8 ep 2", pp: 1, dp: 2, ep: 2, change: latent_fp8, ..CASE });
    }
}

/// Both write the same file, under any plan of the model, and go on alike.
#[test]
fn the_host_goes_on_and_the_other_way_round() {
    if gpus() == 0 {
        return;
    }
    let case = Case { name: "1f1b ep 2", dp: 2, ep: 2, sharded: true, change: latent, ..CASE };
    let other = Case { name: "one rank", pp: 1, dp: 2, change: latent, ..case };
    let alike = |ours: &[Step], theirs: &[Step]| {
        for (ours, theirs) in ours.iter().zip(theirs) {
            let loss = ours.losses[0] / theirs.losses[0] - 1.0;
            let norm = ours.gradient_norm / theirs.gradient_norm - 1.0;
            eprintln!("loss off by {loss:.1e}, norm by {norm:.1e}");
            assert!(loss.abs() < 2e-3 && norm.abs() < 4e-2, "{ours:?}, not {theirs:?}");
        }
    };
    let mut first = host(&case.plan(), 7);
    train_host(&mut first, &case, 0..2);
    let bytes = first.checkpoint(&progress(2)).expect("a checkpoint");
    let mut second = executor(&other.plan(), 99, 1);
    second.restore(&Checkpoint::read(&bytes).expect("a checkpoint")).expect("of the same model");
    assert!(bytes == second.checkpoint(&progress(2)).expect("a checkpoint"), "the host's bytes");
    alike(&train(&mut second, &case, 2..4), &train_host(&mut first, &case, 2..4));

    let bytes = second.checkpoint(&progress(4)).expect("a checkpoint");
    let mut third = host(&case.plan(), 5);
    third.restore(&Checkpoint::read(&bytes).expect("a checkpoint")).expect("of the same model");
    assert!(bytes == third.checkpoint(&progress(4)).expect("a checkpoint"), "the GPU's bytes");
    alike(&train(&mut second, &case, 4..5), &train_host(&mut third, &case, 4..5));
}

#[test]
fn what_is_no_checkpoint_of_the_model_is_refused() {
    if gpus() == 0 {
        return;
    }
    let plan = Case { pp: 1, ..CASE }.plan();
    let bytes = host(&plan, 7).checkpoint(&progress(0)).expect("a checkpoint");
    let other = Case { pp: 1, change: latent, ..CASE }.plan();
    let read = Checkpoint::read(&bytes).expect("a checkpoint");
    let error = executor(&other, 7, 1).restore(&read).expect_err("another model");
    assert!(error.to_string().contains("another model"), "{error}");
    let exact = HostExecutor::<f64>::new(plan.clone(), Shape::of_plan(&plan), optimizer(), 7).expect("a plan");
    let bytes = exact.checkpoint(&progress(0)).expect("a checkpoint");
    let error = executor(&plan, 7, 1).restore(&Checkpoint::read(&bytes).expect("a checkpoint")).expect_err("f64");
    assert!(error.to_string().contains("is F64 of shape"), "{error}");
}
