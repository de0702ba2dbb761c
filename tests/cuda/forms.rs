//! Plans on GPUs whose programs have other forms than the plain one: tokens in parts, exchanges in FP8 or by copy engines, and what is computed
//! again. Against the host, and where a form is to give the same bits, against the plan without it.

use dualweave::ir::{Component, Phase, Program, ProgramOp, Step, Tokens, Work};
use dualweave::job::Job;
use dualweave::job::model::{Dtype, Precision};
use dualweave::job::training::ScheduleKind;
use dualweave::plan::Plan;
use dualweave::runtime::cuda::executor::{Executor, Options, Tensors};
use dualweave::runtime::host::Shape;
use dualweave::runtime::host::adamw::AdamW;
use dualweave::units::Bytes;

use crate::train::{CASE, Case, biased, fp8, gated, gpus, in_fp8, latent, latent_fp8, module, on_every_number_of_gpus};

/// Changes a job, or a plan.
type Change = fn(&mut Job);
type Form = fn(&mut Plan);

/// What is done to every exchange in a direction.
#[derive(Clone, Copy, Default)]
struct Way {
    quantised: bool,
    copied: bool,
}

const COPIED: Way = Way { quantised: false, copied: true };
const QUANTISED: Way = Way { quantised: true, copied: false };
const BOTH: Way = Way { quantised: true, copied: true };
const PLAIN: Way = Way { quantised: false, copied: false };

/// Which phases' tokens are cut in two.
#[derive(Clone, Copy, Default)]
struct Cut {
    f: bool,
    i: bool,
}

const WHOLE: Cut = Cut { f: false, i: false };

/// Gives all layers with experts a form. `ways`: to the experts, and back.
fn give(plan: &mut Plan, cut: Cut, ways: [Way; 2]) {
    let shared = plan.model.moe.as_ref().is_some_and(|moe| moe.shared_width > 0);
    // Programs of a stage and of pairs have the same units by number only where stages are alike; an exchange says that a unit has experts.
    for program in &mut plan.programs {
        formed(program, cut, ways, shared);
    }
}

fn formed(program: &mut Program, cut: Cut, [there, back]: [Way; 2], shared: bool) {
    let old = std::mem::take(&mut program.ops);
    let has = |op: &ProgramOp, component, step| {
        old.iter()
            .any(|other| (other.component, other.step, other.phase, other.unit) == (component, step, op.phase, op.unit))
    };
    let mut ops: Vec<ProgramOp> = Vec::new();
    let mut became: Vec<Vec<u32>> = Vec::new();
    for op in &old {
        let main = op.step == Step::Main && op.tokens.is_all() && op.phase != Phase::W;
        let exchange = main && matches!(op.component, Component::Dispatch | Component::Combine);
        let experts = main && op.component == Component::Mlp && has(op, Component::Dispatch, Step::Main);
        let parts = if (exchange || experts) && if op.phase == Phase::F { cut.f } else { cut.i } { 2 } else { 1 };
        let waits_of = |part: u32, became: &[Vec<u32>]| -> Vec<u32> {
            let of = |&wait: &u32| {
                let all = &became[wait as usize];
                // A part of a chain waits for its own part, but for all that does not belong to it.
                let chained =
                    matches!(old[wait as usize].component, Component::Dispatch | Component::Mlp | Component::Combine);
                if chained && parts == 2 && all.len() == 2 { vec![all[part as usize]] } else { all.clone() }
            };
            let mut waits: Vec<u32> = op.waits.iter().flat_map(of).collect();
            waits.sort_unstable();
            waits
        };
        if experts && parts == 2 && shared && !has(op, Component::Mlp, Step::Shared) {
            let waits = waits_of(0, &became);
            ops.push(ProgramOp { step: Step::Shared, waits, ..op.clone() });
        }
        let mut made = Vec::new();
        for part in 0..parts {
            let tokens = if parts == 1 { op.tokens } else { Tokens { part, parts } };
            let mut waits = waits_of(part, &became);
            let mut work = op.work.clone();
            if exchange {
                let way = if (op.component == Component::Dispatch) == (op.phase == Phase::F) { there } else { back };
                for (wanted, step) in [(way.quantised, Step::Quantise), (way.copied, Step::Pack)] {
                    if wanted {
                        let compute = Work::Compute(Vec::new());
                        ops.push(ProgramOp { step, tokens, work: compute, sms: 132, waits: Vec::new(), ..op.clone() });
                        waits.push(ops.len() as u32 - 1);
                    }
                }
                if way.copied {
                    (work, waits) = (Work::Copy { nvlink: Bytes(1) }, waits);
                }
            }
            ops.push(ProgramOp { tokens, work, waits, ..op.clone() });
            made.push(ops.len() as u32 - 1);
        }
        became.push(made);
    }
    program.ops = ops;
}

fn halves(plan: &mut Plan) {
    give(plan, Cut { f: true, i: true }, [PLAIN; 2]);
}

fn halves_in_f(plan: &mut Plan) {
    give(plan, Cut { f: true, i: false }, [PLAIN; 2]);
}

fn halves_in_i(plan: &mut Plan) {
    give(plan, Cut { f: false, i: true }, [PLAIN; 2]);
}

fn copied_there(plan: &mut Plan) {
    give(plan, WHOLE, [COPIED, PLAIN]);
}

fn copied(plan: &mut Plan) {
    give(plan, WHOLE, [COPIED; 2]);
}

fn copied_halves(plan: &mut Plan) {
    give(plan, Cut { f: true, i: true }, [COPIED; 2]);
}

fn quantised(plan: &mut Plan) {
    give(plan, WHOLE, [QUANTISED; 2]);
}

fn quantised_halves(plan: &mut Plan) {
    give(plan, Cut { f: true, i: true }, [QUANTISED; 2]);
}

fn quantised_and_copied(plan: &mut Plan) {
    give(plan, WHOLE, [BOTH; 2]);
}

/// What quantised exchanges send, as the host rounds it.
fn sent_in_fp8(precision: &mut Precision) {
    (precision.dispatch, precision.combine) = (Dtype::Fp8, Dtype::Fp8);
}

/// Two GPUs that share experts.
const EP: Case = Case { pp: 1, dp: 2, ep: 2, ..CASE };

/// Runs all of them, also behind one that fails.
fn every(cases: &[Case], run: fn(&Case)) {
    let failed = cases.iter().filter(|case| std::panic::catch_unwind(|| run(case)).is_err());
    let failed: Vec<&str> = failed.map(|case| case.name).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn tokens_in_parts() {
    let schedule = ScheduleKind::DualPipe;
    let cases = [
        Case { name: "halves", form: halves, ..EP },
        Case { name: "halves in F", form: halves_in_f, ..EP },
        Case { name: "halves in I", form: halves_in_i, ..EP },
        Case { name: "halves, biases", form: halves, change: biased, ..EP },
        Case { name: "halves, MTP", form: halves, change: module, ..EP },
        Case { name: "halves, DualPipe", form: halves, schedule, pp: 2, sharded: true, ..EP },
    ];
    every(&cases, on_every_number_of_gpus);
}

#[test]
fn exchanges_by_copy_engines() {
    let schedule = ScheduleKind::DualPipe;
    let cases = [
        Case { name: "copied there", form: copied_there, ..EP },
        Case { name: "copied", form: copied, ..EP },
        Case { name: "copied halves", form: copied_halves, ..EP },
        Case { name: "copied, DualPipe", form: copied, schedule, pp: 2, sharded: true, ..EP },
        Case { name: "copied among 4", form: copied_halves, dp: 4, ep: 4, sharded: true, ..EP },
    ];
    every(&cases, on_every_number_of_gpus);
}

#[test]
fn exchanges_in_fp8() {
    let emulated: Option<fn(&mut Precision)> = Some(sent_in_fp8);
    let cases = [
        Case { name: "quantised", form: quantised, emulated, ..EP },
        Case { name: "quantised halves", form: quantised_halves, emulated, ..EP },
        Case { name: "quantised and copied", form: quantised_and_copied, emulated, ..EP },
        Case { name: "quantised, latent", form: quantised, emulated, change: latent, ..EP },
    ];
    every(&cases, in_fp8);
}

#[test]
fn fp8_in_every_form() {
    let only_sent = |job: &mut Job| job.model.precision.dispatch = Dtype::Fp8;
    let emulated: Option<fn(&mut Precision)> = Some(|precision: &mut Precision| precision.dispatch = Dtype::Fp8);
    let cases = [
        Case { name: "FP8 halves", form: halves, change: fp8, ..EP },
        Case { name: "FP8 copied", form: copied, change: fp8, ..EP },
        Case { name: "FP8 copied halves, latent", form: copied_halves, change: latent_fp8, ..EP },
        Case { name: "dispatch alone in FP8", change: only_sent, emulated, ..EP },
        Case { name: "dispatch alone in FP8, copied", form: copied, change: only_sent, emulated, ..EP },
    ];
    every(&cases, in_fp8);
}

/// What is not there is said before any GPU is looked for.
#[test]
fn what_cannot_be_run_is_refused() {
    let refused = |change: fn(&mut Plan), what: &str| {
        let mut plan = EP.plan();
        change(&mut plan);
        let shape = Shape::of_plan(&plan);
        let error = Executor::new(plan, shape, AdamW::default(), 7, &Options::default()).err().expect("a refusal");
        assert!(error.to_string().contains(what), "{error}");
    };
    refused(
        |plan| first(plan, Component::Attention).tokens = Tokens { part: 0, parts: 2 },
        "only routed experts and their exchanges can be cut",
    );
    // The first layer is dense.
    refused(|plan| first(plan, Component::Mlp).tokens = Tokens { part: 0, parts: 2 }, "only those of experts");
    refused(|plan| first(plan, Component::Dispatch).tokens = Tokens { part: 0, parts: 3 }, "only equal ones");
    refused(|plan| first(plan, Component::Mlp).tokens = Tokens { part: 2, parts: 2 }, "no such part");
    refused(|plan| first(plan, Component::Mlp).step = Step::Pack, "no such step");
    refused(|plan| plan.stages[0].recompute.layer = true, "computes its layers again, but program");
}

/// The first op of F of a component.
fn first(plan: &mut Plan, component: Component) -> &mut ProgramOp {
    let mut ops = plan.programs.iter_mut().flat_map(|program| &mut program.ops);
    ops.find(|op| op.component == component && op.phase == Phase::F).expect("such an op")
}

/// What a step leaves: losses, norm, gradients by GPU, and bytes of the first rank, which holds the most micro-batches.
type Left = (Vec<f64>, f64, Vec<Tensors>, usize);

fn left(case: &Case, gpus: usize) -> Left {
    let plan = case.plan();
    let shape = Shape::of_plan(&plan);
    let options = Options { gpus: Some(gpus), ..Options::default() };
    let made = Executor::new(plan, shape.clone(), AdamW::default(), 7, &options);
    let mut executor = made.unwrap_or_else(|error| panic!("{}: {error:?}", case.name));
    let mut losses = Vec::new();
    let mut norm = 0.0;
    for step in 0..2 {
        let taken = executor.step(&case.data(&shape, step), false);
        let step = taken.unwrap_or_else(|error| panic!("{}: {error:?}", case.name)).step;
        losses.extend(step.losses);
        norm = step.gradient_norm;
    }
    let gradients = executor.gradients().expect("gradients").into_iter().map(|(_, tensors)| tensors).collect();
    let bytes = executor.places().next().map(|(_, _, bytes)| bytes).unwrap_or_default();
    (losses, norm, gradients, bytes)
}

/// Runs both, and asserts that they leave the same bits. Returns bytes of both.
fn same_bits(one: &Case, other: &Case, gpus: usize) -> [usize; 2] {
    let (ours, theirs) = (left(one, gpus), left(other, gpus));
    assert_eq!((&ours.0, ours.1), (&theirs.0, theirs.1), "losses and norm of {} and {}", one.name, other.name);
    for (ours, theirs) in ours.2.iter().zip(&theirs.2) {
        for (name, values) in ours {
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert!(bits(values) == bits(&theirs[name]), "{name} of {} and {}", one.name, other.name);
        }
    }
    [ours.3, theirs.3]
}

/// Copy engines bring experts the same rows in the same order.
#[test]
fn copy_engines_leave_the_same_bits() {
    for gpus in 1..=gpus() {
        let case = Case { name: "copied there", form: copied_there, ..EP };
        same_bits(&case, &Case { name: "by SMs", ..EP }, gpus);
    }
}

fn with(job: &mut Job, what: &str) {
    let recompute = &mut job.training.recompute;
    *recompute = dualweave::ir::Recompute::NOTHING;
    match what {
        "norms" => recompute.norms = true,
        "swiglu" => recompute.swiglu = true,
        "mla-up" => recompute.mla_up = true,
        "layer" => recompute.layer = true,
        "all" => (recompute.norms, recompute.swiglu, recompute.mla_up) = (true, true, true),
        _ => {}
    }
    job.training.without_rewrites = vec!["all".to_owned()];
}

/// Sums of cuBLASLt's depend on how many SMs it gets.
fn all_sms(plan: &mut Plan) {
    let ops = plan.programs.iter_mut().flat_map(|program| &mut program.ops);
    ops.filter(|op| !op.work.is_exchange()).for_each(|op| op.sms = 132);
}

/// What is computed again with as many SMs has the same bits as what is kept, and takes less memory.
#[test]
fn what_is_computed_again_leaves_the_same_bits() {
    let changes: [(&str, Change, Change); 10] = [
        ("norms", |job| with(job, "norms"), |job| with(job, "")),
        ("SwiGLU", |job| with(job, "swiglu"), |job| with(job, "")),
        ("layers", |job| with(job, "layer"), |job| with(job, "")),
        (
            "norms, SwiGLU and q, k, v",
            |job| {
                latent(job);
                with(job, "all")
            },
            |job| {
                latent(job);
                with(job, "")
            },
        ),
        (
            "q, k, v",
            |job| {
                latent(job);
                with(job, "mla-up")
            },
            |job| {
                latent(job);
                with(job, "")
            },
        ),
        (
            "layers, latent",
            |job| {
                latent(job);
                with(job, "layer")
            },
            |job| {
                latent(job);
                with(job, "")
            },
        ),
        (
            "layers, biases",
            |job| {
                biased(job);
                with(job, "layer")
            },
            |job| {
                biased(job);
                with(job, "")
            },
        ),
        (
            "norms and SwiGLU, gates",
            |job| {
                gated(job);
                with(job, "all")
            },
            |job| {
                gated(job);
                with(job, "")
            },
        ),
        (
            "layers, MTP",
            |job| {
                module(job);
                with(job, "layer")
            },
            |job| {
                module(job);
                with(job, "")
            },
        ),
        (
            "layers, FP8",
            |job| {
                latent_fp8(job);
                with(job, "layer")
            },
            |job| {
                latent_fp8(job);
                with(job, "")
            },
        ),
    ];
    let schedules = [(ScheduleKind::OneFOneB, 1, 1), (ScheduleKind::OneFOneB, 2, 2), (ScheduleKind::ZbH1, 2, 1)];
    let mut failed = Vec::new();
    for (gpus, (name, again, kept)) in (1..=gpus()).flat_map(|gpus| changes.map(|change| (gpus, change))) {
        for (schedule, pp, ep) in schedules {
            let of = |change| Case { name, schedule, pp, dp: ep, ep, change, form: all_sms, ..CASE };
            let what = format!("{name}, {schedule:?}, {pp} ranks, ep {ep}, {gpus} GPUs");
            match std::panic::catch_unwind(|| same_bits(&of(again), &of(kept), gpus)) {
                Ok([ours, theirs]) => {
                    eprintln!("{what}: {ours} bytes, {theirs} kept");
                    if ours >= theirs && pp > 1 {
                        failed.push(format!("{what}: no less memory"));
                    }
                }
                Err(_) => failed.push(what),
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Programs of overlapped pairs compute again beside another micro-batch's forward, and each phase has its own SMs: no bits are promised.
#[test]
fn pairs_that_compute_again() {
    let schedule = ScheduleKind::DualPipe;
    let all = |job: &mut Job| {
        latent(job);
        with(job, "all");
    };
    let layer = |job: &mut Job| with(job, "layer");
    let cases = [
        Case { name: "DualPipe, all again", schedule, pp: 2, change: all, ..EP },
        Case { name: "DualPipe, layers again", schedule, pp: 2, change: layer, ..EP },
    ];
    every(&cases, on_every_number_of_gpus);
}

/// Recomputation of parts of the tokens, all of them or some, by ops of its own.
#[test]
fn what_is_computed_again_in_parts_leaves_the_same_bits() {
    let swiglu = |job: &mut Job| with(job, "swiglu");
    let kept = Case { name: "kept, halves", change: |job| with(job, ""), form: in_halves, ..EP };
    let forms: [(&str, Form); 4] = [
        ("by the backward of each half", in_halves),
        ("by an op for each half", |plan| again_apart(plan, true, &[[0, 2], [1, 2]])),
        ("by an op for the second half", |plan| again_apart(plan, true, &[[1, 2]])),
        ("by an op for the first half, in front of a backward of all", |plan| again_apart(plan, false, &[[0, 2]])),
    ];
    for (gpus, (name, form)) in (1..=gpus()).flat_map(|gpus| forms.map(|form| (gpus, form))) {
        same_bits(&Case { name, change: swiglu, form, ..EP }, &kept, gpus);
    }
}

fn in_halves(plan: &mut Plan) {
    halves(plan);
    all_sms(plan);
}

/// Ops of their own that compute SwiGLU again for these parts, in front of the backward of the experts, which `halved` cuts.
fn again_apart(plan: &mut Plan, halved: bool, parts: &[[u32; 2]]) {
    give(plan, Cut { f: true, i: halved }, [PLAIN; 2]);
    for program in &mut plan.programs {
        let exchanges = |unit| program.ops.iter().any(|op| op.component == Component::Dispatch && op.unit == unit);
        let experts = |op: &ProgramOp| {
            (op.component, op.phase, op.step) == (Component::Mlp, Phase::I, Step::Main) && exchanges(op.unit)
        };
        let mut ops: Vec<ProgramOp> = Vec::new();
        let mut became: Vec<u32> = Vec::new();
        let mut done: Vec<u32> = Vec::new();
        for op in &program.ops {
            if experts(op) && !done.contains(&op.unit) {
                done.push(op.unit);
                for &[part, parts] in parts {
                    let tokens = Tokens { part, parts };
                    ops.push(ProgramOp { step: Step::Again, tokens, waits: Vec::new(), ..op.clone() });
                }
            }
            let waits = op.waits.iter().map(|&wait| became[wait as usize]).collect();
            became.push(ops.len() as u32);
            ops.push(ProgramOp { waits, ..op.clone() });
        }
        program.ops = ops;
    }
    all_sms(plan);
}

/// Programs as `compile` makes them with all its rules, of GPUs and links so slow that a small model is worth cutting.
#[test]
fn forms_that_compile_chooses() {
    let emulated: Option<fn(&mut Precision)> = Some(sent_in_fp8);
    let (schedule, pp) = (ScheduleKind::DualPipe, 2);
    let dual = Case { name: "as compiled", schedule, pp, change: slow, ..EP };
    let cases = [
        (dual, [true, true, false, true]),
        (
            Case {
                name: "as compiled, DualPipeV, latent",
                schedule: ScheduleKind::DualPipeV,
                change: slow_latent,
                ..dual
            },
            [true, true, false, true],
        ),
        (
            Case { name: "as compiled, ZB-H1, latent", schedule: ScheduleKind::ZbH1, change: slow_latent, ..dual },
            [true, true, false, true],
        ),
        (
            Case { name: "as compiled, FP8 exchanges", change: slow_fp8_exchanges, emulated, ..dual },
            [true, false, true, true],
        ),
        (Case { name: "as compiled, FP8", change: slow_fp8, ..dual }, [true, true, false, true]),
    ];
    for (case, forms) in cases {
        let plan = case.plan();
        let is =
            |wanted: &dyn Fn(&ProgramOp) -> bool| plan.programs.iter().flat_map(|program| &program.ops).any(wanted);
        let found = [
            is(&|op| !op.tokens.is_all()),
            is(&|op| matches!(op.work, Work::Copy { .. })),
            is(&|op| op.step == Step::Quantise),
            is(&|op| op.step == Step::Again),
        ];
        assert_eq!(found, forms, "{}: parts, copies, quantised, again", case.name);
        let refused =
            Executor::new(plan.clone(), Shape::of_plan(&plan), AdamW::default(), 7, &Options::default()).err();
        let refused = refused.map(|error| error.to_string()).filter(|error| error.contains("the plan has"));
        assert_eq!(refused, None, "{}", case.name);
        match case.emulated.is_some() || case.job().model.precision.products == Dtype::Fp8 {
            true => in_fp8(&case),
            false => on_every_number_of_gpus(&case),
        }
    }
}

fn slow(job: &mut Job) {
    let cluster = &mut job.cluster;
    (cluster.gpu.bf16_tflops, cluster.gpu.fp8_tflops, cluster.gpu.hbm_gb_s) = (0.02, Some(0.2), 4.0);
    (cluster.nvlink.gb_s, cluster.network.gb_s) = (0.03, 0.02);
    job.training.recompute = dualweave::ir::Recompute { norms: true, mla_up: true, swiglu: true, layer: false };
}

fn slow_latent(job: &mut Job) {
    latent(job);
    slow(job);
}

fn slow_fp8(job: &mut Job) {
    slow(job);
    fp8(job);
    job.cluster.nvlink.gb_s = 0.06;
}

fn slow_fp8_exchanges(job: &mut Job) {
    slow(job);
    job.training.fp8_exchanges = true;
    job.cluster.nvlink.gb_s = 0.01;
    job.training.without_rewrites = vec!["copy-engine".to_owned()];
}
