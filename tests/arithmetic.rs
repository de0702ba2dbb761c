//! Counting, against derivations by hand: FLOPs, parameters and memory that the passes give a job.

use std::fs;
use std::path::Path;

use dualweave::ir::{Component, Phase, Rate, Work};
use dualweave::job::arithmetic::TrainingFlops;
use dualweave::job::model::{Attention, Dtype};
use dualweave::job::training::{Recompute, ScheduleKind};
use dualweave::job::{Job, Model, Overrides, hf, load};
use dualweave::machine::Machine;
use dualweave::passes::split::{SplitStage, split};
use dualweave::passes::{compile, lower};

fn model(name: &str) -> Model {
    let path = Path::new("tests/data/hf").join(format!("{name}.config.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hf::import(name, &text).unwrap_or_else(|error| panic!("{name}: {error:?}")).model
}

/// DeepSeek's job with another model, on one rank, with nothing recomputed.
fn job(model: Model, [dp, tp, ep]: [u32; 3]) -> Job {
    let mut job = load(Path::new("examples/deepseek-v3/job.ron"), &Overrides::default()).expect("an example").job;
    job.model = model;
    job.training.schedule = ScheduleKind::OneFOneB;
    job.training.recompute = Recompute::default();
    (job.training.pp, job.training.micro_batches) = (1, 4);
    (job.training.dp, job.training.tp, job.training.ep) = (dp, tp, ep);
    job.check().unwrap_or_else(|error| panic!("{error:?}"));
    job
}

fn stages(job: &Job) -> Vec<SplitStage> {
    let machine = Machine::new(&job.cluster, None);
    split(job, &lower::lower(job, &machine, 20).expect("a model that can be cut"))
}

/// FLOPs of one GPU in F, and in I and W together; and those of the attention core in F.
fn flops(job: &Job) -> (u64, u64, u64) {
    let (mut forward, mut backward, mut core) = (0, 0, 0);
    for stage in stages(job) {
        let chunk = stage.chunk;
        forward += chunk.f.iter().map(|op| op.work.flops().0).sum::<u64>();
        backward += chunk.i.iter().chain(&chunk.w).map(|op| op.work.flops().0).sum::<u64>();
        for op in &chunk.f {
            let Work::Compute(kernels) = &op.work else { continue };
            core += kernels
                .iter()
                .filter(|k| matches!(k.rate, Rate::AttentionForward { .. }))
                .map(|k| k.flops.0)
                .sum::<u64>();
        }
    }
    (forward, backward, core)
}

/// Every matrix of DeepSeek-V3, written out (technical report, section 4.2).
#[test]
fn deepseeks_flops_by_hand() {
    let attention = 7168 * 1536          // q down
        + 1536 * 128 * (128 + 64)        // q up: 128 heads of 128 without and 64 with position
        + 7168 * (512 + 64)              // k, v down, and the shared rotary key
        + 512 * 128 * (128 + 128)        // k and v up
        + 128 * 128 * 7168; // output
    assert_eq!(attention, 187_105_280);
    let dense = 3 * 7168 * 18432; // gate, up, down
    let expert = 3 * 7168 * 2048;
    let moe = 8 * expert + expert + 7168 * 256; // routed, shared, router
    let head = 7168 * 129_280;
    let weights = 61 * attention + 3 * dense + 58 * moe + head;
    // Two products over 4097 / 2 keys on average, of width 192 and 128, for 128 heads; a multiply-add is two.
    let core = 2 * 128 * (192 + 128) * 4097 / 2;
    let by_hand = 6 * weights + 3 * 61 * core;
    let TrainingFlops { model: flops, mtp } = model("DeepSeek-V3").training_flops(4096);
    assert_eq!(flops, by_hand);
    assert_eq!(flops / 1_000_000, 250_457, "250.457 GFLOP");
    // The module: a projection of 2 · 7168 to 7168, a MoE layer, and the head again.
    assert_eq!(mtp, 6 * (2 * 7168 * 7168 + attention + moe + head) + 3 * core);
}

/// Three numbers are published for the same model. 671.03 B total and 37.55 B activated count embedding, head and the
/// balancing bias of each router; without the input embedding, which is looked up and not multiplied by, 36.63 B are
/// activated. Both round to the report's 37 B; for the FLOPs it is the second that counts.
#[test]
fn deepseeks_parameters() {
    let parameters = model("DeepSeek-V3").parameters();
    assert_eq!(parameters.total(), 671_026_419_200);
    assert_eq!(parameters.active(), 37_552_297_472);
    assert_eq!(parameters.active() - parameters.embedding, 36_625_618_432);
    // Published weights of 685 B have the module, with its own copies of embedding and head.
    let with_module = parameters.total() + parameters.mtp + parameters.embedding + parameters.head;
    assert!((684_000_000_000..685_000_000_000).contains(&with_module), "{with_module}");
}

/// Models, and ways to spread them: (dp, tp, ep).
const SPREADS: [(&str, &[[u32; 3]]); 9] = [
    ("DeepSeek-V3", &[[64, 1, 64], [1, 1, 1], [32, 2, 64], [2, 8, 16]]),
    ("DeepSeek-V2-Lite", &[[8, 1, 8], [4, 2, 8], [1, 4, 1]]),
    ("Mixtral-8x7B-v0.1", &[[8, 1, 8], [4, 2, 8], [1, 8, 4]]),
    ("Qwen3-30B-A3B", &[[16, 1, 16], [2, 2, 4], [1, 4, 4]]),
    ("Qwen2-57B-A14B", &[[8, 1, 8], [4, 4, 16]]),
    ("GLM-4.5", &[[32, 1, 32], [16, 2, 32]]),
    ("Llama-3-8B", &[[2, 1, 1], [2, 2, 1], [2, 8, 1]]),
    ("Llama-3.1-405B", &[[1, 1, 1], [1, 8, 1]]),
    ("gpt-oss-20b", &[[8, 1, 8], [4, 2, 8]]),
];

/// The GPUs of one replica together do the model's forward FLOPs, each token's once: none lost, none done twice.
#[test]
fn split_does_the_models_forward() {
    for (name, spreads) in SPREADS {
        for &spread in spreads {
            for pp in [1, 4] {
                let mut job = job(model(name), spread);
                job.training.pp = pp;
                let tokens = job.training.micro_batch_tokens();
                let expected = (job.model.training_flops(4096).total() / 3 * tokens) as f64;
                let done = (flops(&job).0 * u64::from(job.training.tp)) as f64;
                // The model's number is per token, rounded down.
                assert!((done / expected - 1.0).abs() < 1e-6, "{name} {spread:?} pp {pp}: {done} of {expected}");
            }
        }
    }
}

/// Backward is twice forward, but for the core, which computes its scores again: 2.5 times.
#[test]
fn backward_is_twice_forward() {
    for (name, spreads) in SPREADS {
        for &spread in spreads {
            let (forward, backward, core) = flops(&job(model(name), spread));
            let expected = (2 * forward + core / 2) as f64;
            assert!((backward as f64 / expected - 1.0).abs() < 1e-6, "{name} {spread:?}");
        }
    }
}

/// What is recomputed is added to I, and nothing else changes.
#[test]
fn recompute_adds_the_up_projections() {
    let stored = job(model("DeepSeek-V3"), [64, 1, 64]);
    let mut again = stored.clone();
    again.training.recompute = Recompute { norms: true, mla_up: true, swiglu: true, ..Recompute::NOTHING };
    let up = 2 * 4096 * (1536 * 128 * 192 + 512 * 128 * 256);
    let ((f, b, _), (f_again, b_again, _)) = (flops(&stored), flops(&again));
    assert_eq!(f_again, f);
    assert_eq!(b_again, b + 62 * up, "61 layers and the module");
}

/// Where whole layers are computed again, I has what F has once more, but for the last product of each MLP and for combine, which no gradient
/// reads; what is sent to the experts is sent once more. Neither F nor W nor what the model needs changes.
#[test]
fn recompute_repeats_whole_layers() {
    let stored = job(model("DeepSeek-V3"), [64, 1, 64]);
    let mut again = stored.clone();
    again.training.recompute = Recompute { layer: true, ..Recompute::NOTHING };
    let ((f, b, _), (f_again, b_again, _)) = (flops(&stored), flops(&again));
    assert_eq!(f_again, f);
    let (t, h) = (4096, 7168);
    // Down-projections: three dense layers; 8 experts of a token and the shared one in 58 layers and the module.
    let down = 3 * 2 * t * 18432 * h + 59 * 9 * 2 * t * 2048 * h;
    // The head runs twice, and is not repeated.
    let head = 2 * 2 * t * h * u64::from(stored.model.vocabulary);
    assert_eq!(b_again, b + f - down - head);
    assert_eq!(again.model.training_flops(t).total(), stored.model.training_flops(t).total());

    let sent = |job: &Job, phase: Phase| {
        let ops = stages(job).into_iter().flat_map(move |stage| match phase {
            Phase::F => stage.chunk.f,
            _ => stage.chunk.i,
        });
        ops.filter(|op| op.component == Component::Dispatch).fold([0, 0], |sum, op| match op.work {
            Work::Exchange { nvlink, network, .. } => [sum[0] + nvlink.0, sum[1] + network.0],
            _ => sum,
        })
    };
    let (forward, backward) = (sent(&stored, Phase::F), sent(&stored, Phase::I));
    assert!(forward[1] > 0);
    assert_eq!(sent(&again, Phase::I), [backward[0] + forward[0], backward[1] + forward[1]]);
}

/// With more GPUs than key/value heads each has a whole head: k and v are made more than once.
#[test]
fn key_value_heads_are_repeated() {
    // 4 key/value heads of 128, 48 layers; 8 GPUs make 8.
    let job = job(model("Qwen3-30B-A3B"), [1, 8, 8]);
    let done = flops(&job).0 * 8;
    let expected = job.model.training_flops(4096).total() / 3 * 4096;
    let repeated = 48 * 2 * 4096 * 2048 * (4 * 2 * 128);
    assert!((done as f64 / (expected + repeated) as f64 - 1.0).abs() < 1e-6, "{done} {expected}");
}

/// Over the stages and the GPUs among which they are divided, a plan has the model's parameters once, and the copies
/// that must be: a table for an MTP module, and a tied head, that are not on the ranks of the embedding.
#[test]
fn plans_have_all_parameters() {
    let (one_f, dual, v) = (ScheduleKind::OneFOneB, ScheduleKind::DualPipe, ScheduleKind::DualPipeV);
    let cases: [(&str, ScheduleKind, u32, u64); 12] = [
        ("DeepSeek-V3", one_f, 1, 0),
        ("DeepSeek-V3", one_f, 16, 1),
        ("DeepSeek-V3", dual, 16, 0),
        ("DeepSeek-V3", v, 4, 0),
        ("GLM-4.5", one_f, 4, 1),
        ("Mixtral-8x7B-v0.1", one_f, 4, 0),
        ("Qwen3-30B-A3B", v, 4, 0),
        ("gpt-oss-20b", dual, 4, 0),
        ("Llama-3-8B", one_f, 4, 0),
        ("tied", one_f, 1, 0),
        ("tied", one_f, 4, 1),
        ("tied", dual, 4, 1),
    ];
    for (name, schedule, pp, copies) in cases {
        let model = match name {
            "tied" => Model { tied_embedding: true, ..model("Llama-3-8B") },
            _ => model(name),
        };
        let ep = if model.moe.is_some() { 4 } else { 1 };
        let mut job = job(model, [8, 1, ep]);
        (job.training.pp, job.training.schedule, job.training.micro_batches) = (pp, schedule, 2 * pp);
        let plan = compile(&job).unwrap_or_else(|error| panic!("{name}: {error:?}")).plan;
        let count = job.model.parameters();
        let routed_mtp = match &job.model.moe {
            Some(moe) => {
                u64::from(job.model.mtp_layers) * u64::from(moe.experts) * job.model.expert_shape(moe).parameters()
            }
            None => 0,
        };
        let routed = count.routed + routed_mtp;
        let all = count.total() + count.mtp;
        let expected = (all - routed) + routed / u64::from(ep) + copies * count.embedding;
        let held: u64 = plan.stages.iter().map(|stage| stage.parameters.0 / 2).sum();
        assert_eq!(held, expected, "{name} {schedule} pp {pp}");
        // fp32 accumulators; master and two bf16 moments, divided among those who hold the same.
        assert!(plan.stages.iter().all(|stage| stage.gradients.0 == 2 * stage.parameters.0));
        let holders = if schedule == dual { 2 } else { 1 };
        let owned = (all - routed + copies * count.embedding) / 8 / holders + routed / 8 / holders;
        let optimizer: u64 = plan.stages.iter().map(|stage| stage.optimizer.0 / 8).sum();
        assert!(optimizer.abs_diff(owned) <= 2 * plan.stages.len() as u64, "{name}: {optimizer} {owned}");
    }
}

/// Tensor parallelism cuts what it can, and the rest stands on every GPU: norms, routers, latent down-projections, shared
/// experts, the MTP projection.
#[test]
fn tensor_parallelism_cuts_parameters() {
    for (name, tp, whole) in [
        ("Llama-3-8B", 8, 32 * 2 * 4096 + 4096),
        ("Qwen3-30B-A3B", 2, 48 * (2 * 2048 + 2 * 128 + 2048 * 128) + 2048),
        (
            "DeepSeek-V3",
            2,
            62 * (2 * 7168 + (1536 + 512) + 7168 * (1536 + 576))        // norms, inner norms, down-projections
                + 59 * (7168 * 256 + 256 + 3 * 7168 * 2048)             // routers with bias, shared experts
                + 7168                                                  // final norm
                + 3 * 7168 + 2 * 7168 * 7168, // the module's norms and projection
        ),
    ] {
        let mut job = job(model(name), [2, tp, 1]);
        job.training.ep = 1;
        let held: u64 = stages(&job).iter().map(|stage| stage.parameters.shared).sum();
        let count = job.model.parameters();
        let mtp_routed = if job.model.mtp_layers > 0 { 256 * 3 * 7168 * 2048 } else { 0 };
        let shared = count.total() + count.mtp - count.routed - mtp_routed;
        assert_eq!(held * u64::from(tp), shared + u64::from(tp - 1) * whole, "{name}");
    }
}

/// A dense layer in bf16, nothing recomputed: t tokens, width h, inner width m, q width a, k and v width k each.
#[test]
fn memory_of_a_dense_layer() {
    let mut llama = model("Llama-3-8B");
    (llama.precision.products, llama.precision.dispatch) = (Dtype::Bf16, Dtype::Bf16);
    let job = job(llama, [1, 1, 1]);
    let (t, h, m, a, k) = (4096, 4096, 14336, 32 * 128, 8 * 128);
    let held = &stages(&job)[0].chunk.held;
    let of = |part: &std::collections::BTreeMap<Component, dualweave::units::Bytes>, component| part[&component].0 / 32;
    // The stream before the norm; q, k, v; one fp32 number per head. Then the normed stream, and the core's output.
    assert_eq!(of(&held.f_to_i, Component::Attention), 2 * t * (h + a + 2 * k) + 4 * t * 32);
    assert_eq!(of(&held.f_to_w, Component::Attention), 2 * t * (h + a));
    // Gradients of q, k, v and of the output.
    assert_eq!(of(&held.i_to_w, Component::Attention), 2 * t * (a + 2 * k + h));
    // The stream, gate and up; the normed stream and what the down projection reads; gradients of gate, up and down.
    assert_eq!(of(&held.f_to_i, Component::Mlp), 2 * t * (h + 2 * m));
    assert_eq!(of(&held.f_to_w, Component::Mlp), 2 * t * (h + m));
    assert_eq!(of(&held.i_to_w, Component::Mlp), 2 * t * (2 * m + h));

    // Made again from the stream that comes in, which is all that is kept. The rest is there from I on.
    let mut again = job.clone();
    again.training.recompute = Recompute { layer: true, ..Recompute::NOTHING };
    let made = &stages(&again)[0].chunk.held;
    assert_eq!(of(&made.f_to_i, Component::Attention), 2 * t * h);
    assert_eq!(
        (made.f_to_i.len(), made.f_to_w.get(&Component::Attention), made.f_to_w.get(&Component::Mlp)),
        (2, None, None)
    );
    let attention = 2 * t * (a + 2 * k) + 4 * t * 32 + 2 * t * (h + a) + 2 * t * (a + 2 * k + h);
    assert_eq!(of(&made.i_to_w, Component::Attention), attention);
    assert_eq!(of(&made.i_to_w, Component::Mlp), 2 * t * (h + 2 * m) + 2 * t * (h + m) + 2 * t * (2 * m + h));
}

/// DeepSeek-V3's attention with what its report recomputes: neither q, k, v nor normed latents are kept.
#[test]
fn memory_of_latent_attention() {
    let (t, h, heads) = (4096, 7168, 128);
    let of = |recompute, direct_q: bool| {
        let mut deepseek = model("DeepSeek-V3");
        if let (Attention::Mla(mla), true) = (&mut deepseek.attention, direct_q) {
            mla.q_rank = None;
        }
        let mut job = job(Model { layers: 3, mtp_layers: 0, moe: None, ..deepseek }, [1, 1, 1]);
        job.training.recompute = recompute;
        let held = &stages(&job)[0].chunk.held;
        [&held.f_to_i, &held.f_to_w].map(|part| part[&Component::Attention].0 / 3)
    };
    let all = Recompute { norms: true, mla_up: true, swiglu: true, ..Recompute::NOTHING };
    let fp8 = |values: u64| values + values / 128 * 4;
    let lse = 4 * t * heads;
    let output = 2 * t * heads * 128;
    let latents = 2 * t * (1536 + 576);
    let qkv = 2 * t * heads * (192 + 192 + 128);
    assert_eq!(of(all, false), [2 * t * h + lse + latents, output]);
    let normed = fp8(t * h) + fp8(t * 1536) + fp8(t * 512);
    assert_eq!(of(Recompute::default(), false), [2 * t * h + lse + latents + qkv, output + normed]);
    // Without a latent q is kept as the core reads it, once; recomputed is what is made of the other latent.
    let kv_latent = 2 * t * 576;
    let normed = fp8(t * h) + fp8(t * 512);
    assert_eq!(of(Recompute::default(), true), [2 * t * h + lse + kv_latent + qkv, output + normed]);
    assert_eq!(of(all, true), [2 * t * h + lse + kv_latent + 2 * t * heads * 192, output]);
}

/// What tensor parallelism sends: each collective moves (tp - 1) / tp of what is gathered or reduced.
#[test]
fn tensor_parallel_traffic() {
    let (t, h) = (4096, 7168);
    for (name, hidden, gathered, again) in [
        // The stream is gathered, and for W once more.
        ("Llama-3-8B", 4096, 4096, 4096),
        // Latents are gathered; W of the down-projections reads a GPU's own tokens.
        ("DeepSeek-V3", h, 1536 + 576, 0),
    ] {
        let job = job(Model { layers: 1, mtp_layers: 0, moe: None, ..model(name) }, [1, 2, 1]);
        let chunk = &stages(&job)[0].chunk;
        let sent = |ops: &[dualweave::ir::Op]| -> u64 {
            let attention = ops.iter().filter(|op| op.component == Component::Attention);
            attention.map(|op| if let Work::Exchange { nvlink, .. } = op.work { nvlink.0 } else { 0 }).sum()
        };
        // bf16, half of it: one byte per value.
        assert_eq!(sent(&chunk.f), t * (gathered + hidden), "{name}");
        assert_eq!(sent(&chunk.i), t * (hidden + again + gathered), "{name}");
    }
}
