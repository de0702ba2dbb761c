//! Plans on GPUs, against the same plans on the host: losses of several steps, gradients and updated parameters. With one GPU all ranks
//! share it; with two they are spread.

use std::collections::BTreeMap;
use std::path::Path;

use dualweave::ir::Unit;
use dualweave::job::model::{Attention, Dtype, Mla, Precision};
use dualweave::job::training::ScheduleKind;
use dualweave::job::{Job, Overrides, load};
use dualweave::passes::compile;
use dualweave::plan::Plan;
use dualweave::runtime::checkpoint::{Checkpoint, Progress};
use dualweave::runtime::cuda::executor::{Executor, Options};
use dualweave::runtime::cuda::{Device, device};
use dualweave::runtime::host::Shape;
use dualweave::runtime::host::adamw::AdamW;
use dualweave::runtime::host::batch::Batch;
use dualweave::runtime::host::executor::{Executor as HostExecutor, Order};
use dualweave::runtime::host::parameters::{Parameters as _, Role};
use dualweave::runtime::host::precision::Policy;
use dualweave::runtime::host::rate::Rate;
use dualweave::runtime::world::Gpu;
use dualweave::verify::verify;

use crate::gpu::Random;

/// A plan that is run.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub schedule: ScheduleKind,
    pub pp: u32,
    pub dp: u32,
    pub ep: u32,
    pub micro_batches: u32,
    pub sharded: bool,
    pub change: fn(&mut Job),
    /// Changes the plan that is run.
    pub form: fn(&mut Plan),
    /// Of the host, where it emulates what the plan, and not the job, says.
    pub emulated: Option<fn(&mut Precision)>,
}

pub const CASE: Case = Case {
    name: "1f1b",
    schedule: ScheduleKind::OneFOneB,
    pp: 2,
    dp: 1,
    ep: 1,
    micro_batches: 4,
    sharded: false,
    change: |_| {},
    form: |_| {},
    emulated: None,
};

pub fn latent(job: &mut Job) {
    job.model.attention =
        Attention::Mla(Mla { heads: 4, q_rank: Some(64), kv_rank: 32, nope_dim: 32, rope_dim: 16, value_dim: 32 });
    if let Some(moe) = &mut job.model.moe {
        (moe.groups, moe.topk_groups, moe.balance_bias) = (4, 2, true);
    }
}

fn extras(job: &mut Job) {
    if let Attention::Mha(heads) | Attention::Gqa(heads) = &mut job.model.attention {
        (heads.qk_norm, heads.qkv_bias, heads.output_bias, heads.sinks) = (true, true, true, true);
    }
}

pub fn tied(job: &mut Job) {
    job.model.tied_embedding = true;
}

/// As Qwen2-MoE.
pub fn gated(job: &mut Job) {
    if let Some(moe) = &mut job.model.moe {
        moe.shared_gate = true;
    }
    if let Attention::Mha(heads) | Attention::Gqa(heads) = &mut job.model.attention {
        heads.qkv_bias = true;
    }
}

fn gated_fp8(job: &mut Job) {
    gated(job);
    fp8(job);
}

/// As gpt-oss.
pub fn biased(job: &mut Job) {
    extras(job);
    if let Some(moe) = &mut job.model.moe {
        (moe.router_bias, moe.expert_bias) = (true, true);
    }
}

fn biased_fp8(job: &mut Job) {
    biased(job);
    fp8(job);
}

fn tied_dense(job: &mut Job) {
    tied(job);
    job.model.moe = None;
}

pub fn module(job: &mut Job) {
    job.model.mtp_layers = 1;
}

/// So many that hidden states of some cross from one stage to the next.
fn modules(job: &mut Job) {
    job.model.mtp_layers = 3;
}

fn modules_tied(job: &mut Job) {
    modules(job);
    tied(job);
}

fn modules_fp8(job: &mut Job) {
    modules(job);
    latent_fp8(job);
}

/// Products and payload as in DeepSeek-V3.
pub fn fp8(job: &mut Job) {
    (job.model.precision.products, job.model.precision.dispatch) = (Dtype::Fp8, Dtype::Fp8);
}

pub fn latent_fp8(job: &mut Job) {
    latent(job);
    fp8(job);
}

/// cuBLASLt takes no 50 rows in FP8.
fn odd_fp8(job: &mut Job) {
    job.training.sequence = 50;
    fp8(job);
}

fn dense(job: &mut Job) {
    job.model.moe = None;
    (job.training.ep, job.training.dp) = (1, 1);
}

impl Case {
    pub fn job(&self) -> Job {
        let mut job = load(Path::new("examples/tiny/job.ron"), &Overrides::default()).expect("the example").job;
        let training = &mut job.training;
        (training.pp, training.dp, training.ep) = (self.pp, self.dp, self.ep);
        (training.micro_batches, training.sequence, training.schedule) = (self.micro_batches, 64, self.schedule);
        training.sharded_optimizer = self.sharded;
        (self.change)(&mut job);
        if let (false, Some(moe)) = (self.sharded, &mut job.model.moe) {
            // Every token goes to all experts: where gradients are compared, none may be chosen here and not there by what rounding makes
            // of two scores that are nearly equal.
            (moe.top_k, moe.topk_groups) = (moe.experts, moe.groups);
        }
        job.check().unwrap_or_else(|error| panic!("{}: {error:?}", self.name));
        job
    }

    /// What is run.
    pub fn plan(&self) -> Plan {
        let mut plan = compile(&self.job()).unwrap_or_else(|error| panic!("{}: {error:?}", self.name)).plan;
        assert!(verify(&plan).violations.is_empty(), "{}: the plan is safe", self.name);
        (self.form)(&mut plan);
        plan
    }

    /// Data of a step, by replica.
    pub fn data(&self, shape: &Shape, step: u32) -> Vec<Vec<Batch>> {
        let replica = |replica| {
            let number = |micro_batch| u64::from((step * self.dp + replica) * self.micro_batches + micro_batch);
            (0..self.micro_batches).map(|m| Batch::random(shape, 1, 3, number(m))).collect()
        };
        (0..self.dp).map(replica).collect()
    }

    /// Runs a few steps on `gpus` GPUs and on the host, and compares.
    fn compare(&self, gpus: usize) {
        let job = self.job();
        let plan = self.plan();
        let shape = Shape::of_plan(&plan);
        let exact = Shape { policy: Policy::EXACT, ..shape.clone() };
        let in_fp8 = job.model.precision.products == Dtype::Fp8 || self.emulated.is_some();
        let emulated = self.emulated.map(|change| {
            let mut precision = job.model.precision.clone();
            change(&mut precision);
            Shape { policy: Policy::of(&precision), ..shape.clone() }
        });
        let optimizer = AdamW { learning_rate: Rate::constant(1e-3), ..AdamW::default() };
        let options = Options { gpus: Some(gpus), ..Options::default() };
        let made = Executor::new(plan.clone(), shape.clone(), optimizer, 7, &options);
        let mut executor = made.unwrap_or_else(|error| panic!("{}: {error:?}", self.name));
        let host = |shape: &Shape| HostExecutor::<f32>::new(plan.clone(), shape.clone(), optimizer, 7);
        // FP8's gradients are 10 to 14 % from exact ones, single tensors' up to 27 % (on the host), so they are compared with what emulates
        // it; whatever is rounded to another side on the way here leaves them a few per cent apart.
        let mut exact_host = host(&exact).expect("the host runs it");
        let mut host =
            host(emulated.as_ref().unwrap_or(if in_fp8 { &shape } else { &exact })).expect("the host runs it");
        if [&mut exact_host, &mut host].map(|host| self.set_biases(host)).contains(&true) {
            let progress = Progress { steps: 0, seed: 0, precision: String::new(), text: String::new() };
            let bytes = host.checkpoint(&progress).expect("a checkpoint");
            executor.restore(&Checkpoint::read(&bytes).expect("a checkpoint")).expect("of the same model");
        }
        for step in 0..4 {
            let data = self.data(&shape, step);
            let ours = executor.step(&data, false).unwrap_or_else(|error| panic!("{}: {error:?}", self.name)).step;
            let theirs = host.step(&data, Order::List).expect("a step on the host");
            assert_eq!(ours.losses.len(), theirs.losses.len(), "{}: the model's loss and each module's", self.name);
            let losses: Vec<f64> = ours.losses.iter().zip(&theirs.losses).map(|(a, b)| a / b - 1.0).collect();
            let norm = ours.gradient_norm / theirs.gradient_norm - 1.0;
            eprintln!(
                "{}, {gpus} GPUs, step {step}: losses {:.5?} off by {losses:.6?}, norm by {norm:.1e}",
                self.name, ours.losses
            );
            assert!(
                losses.iter().all(|loss| loss.abs() < 2e-3),
                "{}: step {step}: losses {:?}, not {:?}",
                self.name,
                ours.losses,
                theirs.losses
            );
            assert!(
                norm.abs() < if in_fp8 { 4e-2 } else { 2e-2 },
                "{}: step {step}: norm {}, not {}",
                self.name,
                ours.gradient_norm,
                theirs.gradient_norm
            );
            if step == 0 && !self.sharded {
                let apart = self.apart(&executor, &host, if in_fp8 { 2.5e-1 } else { 6e-2 });
                if in_fp8 {
                    exact_host.step(&data, Order::List).expect("a step on the host");
                    let from_exact = self.apart(&executor, &exact_host, 5e-1);
                    assert!(apart < from_exact, "{}: {apart:.1e} from FP8, {from_exact:.1e} from exact", self.name);
                }
            }
        }
    }

    /// Gives biases, which begin at zero, other values: copies the same. Whether there are any.
    fn set_biases(&self, host: &mut HostExecutor<f32>) -> bool {
        let (stages, mut any) = (host.plan().layout.stages, false);
        let gpus = (0..self.pp).flat_map(|rank| (0..self.dp).map(move |replica| Gpu { rank, replica }));
        for (gpu, stage) in gpus.flat_map(|gpu| (0..stages).map(move |stage| (gpu, stage))) {
            let Some(parameters) = host.parameters_mut(gpu, stage) else { continue };
            for (name, tensor) in parameters.tensors_mut("").into_iter().filter(|(_, tensor)| tensor.role == Role::Bias)
            {
                let mut random = Random::new(name.bytes().map(u64::from).sum());
                tensor.values.values_mut().iter_mut().for_each(|value| *value = (0.1 * random.normal()) as f32);
                any = true;
            }
        }
        any
    }

    /// How far all gradients together are apart, as a part of their norm. None is `most` apart.
    fn apart(&self, executor: &Executor, host: &HostExecutor<f32>, most: f64) -> f64 {
        let ours: BTreeMap<_, _> = executor.gradients().expect("gradients are read").into_iter().collect();
        let mut worst = (0.0, String::new());
        let (mut all, mut all_apart) = (0.0, 0.0);
        for (gpu, name, theirs) in host.gradients() {
            let ours = &ours[&gpu][&name];
            let theirs = theirs.values.values();
            assert_eq!(ours.len(), theirs.len(), "{name}");
            if name.ends_with(".balance") {
                continue;
            }
            let square =
                |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
            let norm = square(&mut theirs.iter().copied());
            let apart = square(&mut ours.iter().zip(theirs).map(|(a, b)| a - b));
            (all, all_apart) = (all + norm, all_apart + apart);
            // A gate's is a sum over tokens that by chance is small: the host's own rounding to bf16 leaves one of them 4.8 % off, others about 1 %.
            let allowed = if name.ends_with(".shared_gate.weight") { 2.0 } else { 1.0 };
            let apart = apart.sqrt() / norm.sqrt().max(1e-6) / allowed;
            // NaN is apart.
            if apart > worst.0 || apart.is_nan() {
                worst = (apart, format!("{name} on {gpu}"));
            }
        }
        let together = (all_apart / all).sqrt();
        eprintln!("{}: gradients {together:.1e} apart, {:.1e} at most: {}", self.name, worst.0, worst.1);
        assert!(worst.0 < most, "{}: the gradient of {} is {:.1e} off", self.name, worst.1, worst.0);
        together
    }
}

/// How many GPUs there are, at most two; without one the test's output says why.
pub fn gpus() -> usize {
    device::count().map_or_else(
        |error| {
            assert!(std::env::var_os("DUALWEAVE_NEEDS_GPU").is_none(), "{error:?}");
            eprintln!("skipped: {error}");
            0
        },
        |there| there.min(2),
    )
}

pub fn on_every_number_of_gpus(case: &Case) {
    (1..=gpus()).for_each(|gpus| case.compare(gpus));
}

#[test]
fn one_rank() {
    on_every_number_of_gpus(&Case { name: "one rank", pp: 1, ..CASE });
}

#[test]
fn one_rank_without_experts() {
    on_every_number_of_gpus(&Case { name: "dense", pp: 1, change: dense, ..CASE });
}

#[test]
fn one_rank_with_latent_attention() {
    on_every_number_of_gpus(&Case { name: "latent", pp: 1, change: latent, ..CASE });
}

#[test]
fn one_rank_with_norms_and_biases() {
    on_every_number_of_gpus(&Case { name: "extras", pp: 1, change: extras, ..CASE });
}

#[test]
fn a_pipeline_of_two() {
    on_every_number_of_gpus(&CASE);
}

#[test]
fn experts_on_two() {
    on_every_number_of_gpus(&Case { name: "ep 2", pp: 1, dp: 2, ep: 2, ..CASE });
}

#[test]
fn replicas() {
    on_every_number_of_gpus(&Case { name: "dp 2", pp: 1, dp: 2, sharded: true, ..CASE });
}

#[test]
fn one_f_one_b() {
    on_every_number_of_gpus(&Case { name: "1f1b ep 2", dp: 2, ep: 2, sharded: true, ..CASE });
}

#[test]
fn dual_pipe_of_two() {
    let schedule = ScheduleKind::DualPipe;
    on_every_number_of_gpus(&Case { name: "DualPipe P2 ep 1", schedule, ..CASE });
    on_every_number_of_gpus(&Case { name: "DualPipe P2 ep 2", schedule, dp: 2, ep: 2, sharded: true, ..CASE });
}

#[test]
fn dual_pipe_of_four() {
    let schedule = ScheduleKind::DualPipe;
    on_every_number_of_gpus(&Case { name: "DualPipe P4", schedule, pp: 4, micro_batches: 8, ..CASE });
    let case =
        Case { name: "DualPipe P4 ep 2", schedule, pp: 4, dp: 2, ep: 2, micro_batches: 8, sharded: true, ..CASE };
    on_every_number_of_gpus(&case);
}

#[test]
fn dual_pipe_v() {
    let schedule = ScheduleKind::DualPipeV;
    on_every_number_of_gpus(&Case { name: "DualPipeV ep 2", schedule, dp: 2, ep: 2, ..CASE });
}

/// Of one stage, of two on ranks of their own, and of two on the same rank; with other ranks of which some have none.
#[test]
fn heads_that_are_tied_to_the_embedding() {
    let case = Case { change: tied, ..CASE };
    let (pipe, pipe_v) = (ScheduleKind::DualPipe, ScheduleKind::DualPipeV);
    for case in [
        Case { name: "tied, one rank", pp: 1, ..case },
        Case { name: "tied, 1f1b", ..case },
        Case { name: "tied, 1f1b P4", pp: 4, ..case },
        Case { name: "tied, DualPipe P2", schedule: pipe, ..case },
        Case { name: "tied, DualPipe P2 ep 2", schedule: pipe, dp: 2, ep: 2, ..case },
        Case { name: "tied, dense, sharded", dp: 2, sharded: true, change: tied_dense, ..case },
        Case { name: "tied, DualPipeV ep 2", schedule: pipe_v, dp: 2, ep: 2, ..case },
    ] {
        on_every_number_of_gpus(&case);
    }
}

/// Every rank updates its copies for itself.
#[test]
fn copies_of_the_table_stay_alike() {
    let case = Case { change: tied, sharded: true, dp: 2, pp: 4, micro_batches: 8, ..CASE };
    for gpus in 1..=gpus() {
        let plan = Case { schedule: ScheduleKind::DualPipe, ..case }.plan();
        let shape = Shape::of_plan(&plan);
        let options = Options { gpus: Some(gpus), ..Options::default() };
        let mut executor = Executor::new(plan, shape.clone(), AdamW::default(), 7, &options).expect("it can be run");
        let tables = |executor: &Executor| -> Vec<Vec<f32>> {
            let all = executor.parameters().expect("parameters");
            all.into_iter().filter_map(|(_, mut tensors)| tensors.remove("embedding")).collect()
        };
        let initial = tables(&executor);
        (0..3).for_each(|step| drop(executor.step(&case.data(&shape, step), false).expect("a step")));
        let trained = tables(&executor);
        assert_eq!(trained.len(), 4, "two ranks of two replicas");
        assert!(trained.iter().all(|table| *table == trained[0] && *table != initial[0]), "{gpus} GPUs");
    }
}

#[test]
fn modules_that_predict_more_tokens() {
    let case = Case { change: module, ..CASE };
    let (pipe, pipe_v) = (ScheduleKind::DualPipe, ScheduleKind::DualPipeV);
    for case in [
        Case { name: "MTP, one rank", pp: 1, ..case },
        Case { name: "MTP, 1f1b ep 2", dp: 2, ep: 2, sharded: true, ..case },
        Case { name: "MTP, DualPipe P2", schedule: pipe, ..case },
        Case { name: "3 MTP, DualPipeV", schedule: pipe_v, change: modules, ..case },
        Case {
            name: "3 MTP, DualPipeV P4 ep 2",
            schedule: pipe_v,
            pp: 4,
            dp: 2,
            ep: 2,
            micro_batches: 8,
            change: modules,
            ..case
        },
        Case { name: "3 MTP, tied, 1f1b P4", pp: 4, change: modules_tied, ..case },
    ] {
        on_every_number_of_gpus(&case);
    }
}

#[test]
fn modules_across_stages() {
    // What the cases above stand for.
    let case = Case { schedule: ScheduleKind::DualPipeV, change: modules, ..CASE };
    let has_module = |units: &[Unit]| units.iter().any(|unit| matches!(unit, Unit::Mtp(_)));
    assert!(case.plan().stages.iter().filter(|stage| has_module(&stage.units)).count() > 1);
}

#[test]
fn fp8_with_modules() {
    in_fp8(&Case { name: "FP8, 3 MTP, latent", pp: 1, dp: 2, ep: 2, change: modules_fp8, ..CASE });
}

#[test]
fn biases_of_routers_and_experts() {
    let case = Case { change: biased, ..CASE };
    for case in [
        Case { name: "biases, one rank", pp: 1, ..case },
        Case { name: "biases, ep 2", pp: 1, dp: 2, ep: 2, ..case },
        Case { name: "biases, DualPipe ep 2", schedule: ScheduleKind::DualPipe, dp: 2, ep: 2, sharded: true, ..case },
    ] {
        on_every_number_of_gpus(&case);
    }
}

#[test]
fn gates_of_shared_experts() {
    let case = Case { change: gated, ..CASE };
    for case in [
        Case { name: "gates, one rank", pp: 1, ..case },
        Case { name: "gates, ep 2", pp: 1, dp: 2, ep: 2, ..case },
        Case { name: "gates, DualPipe ep 2", schedule: ScheduleKind::DualPipe, dp: 2, ep: 2, sharded: true, ..case },
    ] {
        on_every_number_of_gpus(&case);
    }
}

#[test]
fn fp8_with_gates() {
    in_fp8(&Case { name: "FP8, gates, ep 2", pp: 1, dp: 2, ep: 2, change: gated_fp8, ..CASE });
}

#[test]
fn fp8_with_biases() {
    in_fp8(&Case { name: "FP8, biases, ep 2", pp: 1, dp: 2, ep: 2, change: biased_fp8, ..CASE });
}

#[test]
fn auto() {
    let schedule = ScheduleKind::Auto;
    on_every_number_of_gpus(&Case { name: "auto", schedule, dp: 2, ep: 2, sharded: true, ..CASE });
}

/// FP8 is refused where the GPUs have none, and says so.
pub fn in_fp8(case: &Case) {
    let has = device::count().is_ok() && Device::open(0).is_ok_and(|device| device.capability >= 89);
    if has {
        return on_every_number_of_gpus(case);
    }
    if device::count().is_ok() {
        let plan = compile(&case.job()).expect("a plan").plan;
        let shape = Shape::of_plan(&plan);
        let refused = Executor::new(plan, shape, AdamW::default(), 7, &Options::default());
        assert!(refused.err().is_some_and(|error| error.to_string().contains("has no FP8")));
    } else {
        on_every_number_of_gpus(case);
    }
}

#[test]
fn fp8_on_one_rank() {
    in_fp8(&Case { name: "FP8", pp: 1, change: fp8, ..CASE });
}

#[test]
fn fp8_without_experts() {
    let change = |job: &mut Job| {
        dense(job);
        fp8(job);
    };
    in_fp8(&Case { name: "FP8 dense", pp: 1, change, ..CASE });
}

#[test]
fn fp8_with_latent_attention() {
    in_fp8(&Case { name: "FP8 latent", pp: 1, change: latent_fp8, ..CASE });
}

#[test]
fn fp8_of_odd_shapes() {
    in_fp8(&Case { name: "FP8 of 50 tokens", pp: 1, change: odd_fp8, ..CASE });
}

#[test]
fn fp8_with_experts_on_two() {
    in_fp8(&Case { name: "FP8 ep 2", pp: 1, dp: 2, ep: 2, change: fp8, ..CASE });
}

#[test]
fn fp8_dual_pipe() {
    let schedule = ScheduleKind::DualPipe;
    in_fp8(&Case { name: "FP8 DualPipe P2 ep 1", schedule, change: fp8, ..CASE });
    in_fp8(&Case { name: "FP8 DualPipe P2 ep 2", schedule, dp: 2, ep: 2, sharded: true, change: fp8, ..CASE });
}
