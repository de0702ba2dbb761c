//! The machine model against what was measured and published. Where it is exact it must stay so; where it is not, a
//! snapshot says by how much. Nothing is fitted here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use dualweave::ir::{Component, Kernel, Op, Phase, Rate, Unit, Work};
use dualweave::job::cluster::Link;
use dualweave::job::model::Dtype;
use dualweave::job::training::{Recompute, ScheduleKind};
use dualweave::job::{Job, Overrides, load};
use dualweave::machine::{EXCHANGE_EFFICIENCY, HBM_EFFICIENCY, LinkModel, Machine, NVLINK_COPY, NVLINK_PER_SM_GB_S};
use dualweave::passes::lower::Lowered;
use dualweave::passes::split::split;
use dualweave::passes::unit_work::routing::copies;
use dualweave::units::{Bytes, Flops, Nanos};

fn job(name: &str) -> Job {
    load(&Path::new("examples").join(name).join("job.ron"), &Overrides::default()).expect("an example").job
}

/// Rows of a table of measurements, without comments and heading.
fn rows(name: &str) -> Vec<Vec<String>> {
    let path = Path::new("tests/data/machine").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    lines.map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(format!("machine__{name}"), text));
}

/// H100 SXM, by its data sheet (989 TFLOP/s, 132 SMs).
fn h100() -> Machine {
    Machine::new(&job("mixtral-8x7b").cluster, None)
}

fn gemm(dtype: Dtype, [m, n, k]: [u64; 3], launches: u32) -> Kernel {
    let values = m * k + n * k;
    Kernel {
        rate: Rate::Gemm { dtype, depth: k as u32 },
        flops: Flops(2 * m * n * k * u64::from(launches)),
        bytes: Bytes((dtype.bytes(values) + 2 * m * n) * u64::from(launches)),
        launches,
    }
}

const FORWARD: Rate = Rate::AttentionForward { length: 4096 };
const BACKWARD: Rate = Rate::AttentionBackward { length: 4096 };

fn within(value: f64, expected: f64, tolerance: f64) {
    assert!((value / expected - 1.0).abs() <= tolerance, "{value}, not within {tolerance} of {expected}");
}

/// One SM writes 45.8 GB/s, two and four almost as much each, and 367 GB/s is the end. In between the links fill up
/// before the model says so: it is up to 16 % high at 8 SMs.
#[test]
fn nvlink_by_sm_count() {
    let link = |measured| Link { gb_s: 367.0, latency_us: 2.0, per_sm_gb_s: None, measured, copy_gb_s: None };
    let analytic = LinkModel::new(&link(vec![]), NVLINK_PER_SM_GB_S, NVLINK_COPY);
    let curve: Vec<(u32, f64)> = rows("h100x2_link_bandwidth.csv")
        .iter()
        .map(|row| (row[0].parse().expect("a number"), row[1].parse().expect("a number")))
        .collect();
    for &(sms, gb_s) in &curve {
        let tolerance = match sms {
            1 => 1e-9,
            2 | 4 => 0.05,
            8..=24 => 0.16,
            _ => 0.06,
        };
        within(analytic.rate(sms) / 1e9, gb_s, tolerance);
    }
    within(analytic.rate(132) / 1e9, 367.0, 1e-9);

    // Given as measured, the points come back; between them lie straight lines.
    let ascending: Vec<(u32, f64)> = curve.iter().copied().filter(|(sms, _)| ![20, 32].contains(sms)).collect();
    let measured = LinkModel::new(&link(ascending.clone()), NVLINK_PER_SM_GB_S, NVLINK_COPY);
    for &(sms, gb_s) in &ascending {
        within(measured.rate(sms) / 1e9, gb_s, 1e-12);
    }
    within(measured.rate(6) / 1e9, (176.0 + 317.3) / 2.0, 1e-12);
    within(measured.rate(3) / 1e9, (91.1 + 176.0) / 2.0, 1e-12);
    assert_eq!(measured.rate(u32::MAX), measured.rate(132));
    // 317.3 MB with 8 SMs: 1 ms for plain writes, more for an exchange, and the latency. Nothing: no time.
    let exchange = Nanos((1e6 / EXCHANGE_EFFICIENCY).round() as u64 + 2_000);
    assert_eq!(measured.duration(Bytes(317_300_000), 8), exchange);
    assert_eq!(measured.duration(Bytes::ZERO, 8), Nanos::ZERO);
}

/// Kernels as PyTorch timed them on an H200, held: `docs/measurements/h200_ops.csv`. How far the model is off, over all of a kind.
#[test]
fn held_kernels() {
    let text = fs::read_to_string("docs/measurements/h200_ops.csv").expect("the table");
    // The rates that the table's fits are about hold for a peak of 989 and 1979 TFLOP/s; memory is the H200's own.
    let mut cluster = job("deepseek-v3").cluster;
    cluster.gpu.hbm_gb_s = 4800.0;
    let machine = Machine::new(&cluster, None);
    let mut errors: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')).skip(1) {
        let mut fields = line.rsplitn(8, ',');
        let mut number = || fields.next().expect("a field").parse::<f64>().expect("a number");
        let (rate, _held, _burst, _copies) = (number(), number(), number(), number());
        let [k, n, m] = [number() as u32, number() as u32, number() as u32];
        let (op, what) = fields.next().expect("the name").split_once(',').expect("op and what");
        let products = |dtype, depth| machine.rate(Rate::Gemm { dtype, depth }).map(|rate| rate / 1e12);
        let depth = match what {
            "dx" => n,
            "dw" => m,
            _ => k,
        };
        let (kind, model) = match (op, what) {
            ("bf16", _) => ("bf16", products(Dtype::Bf16, depth)),
            ("grouped", _) => ("bf16, grouped", products(Dtype::Bf16, depth)),
            ("fp8", what) if what.contains("1x128") => ("FP8", products(Dtype::Fp8, depth)),
            // Of attention the third number is the length.
            ("attention", "cudnn forward 128/128") => {
                ("attention", machine.rate(Rate::AttentionForward { length: k }).map(|rate| rate / 1e12))
            }
            ("attention", "cudnn forward and backward 128/128") => {
                let forward = machine.rate(Rate::AttentionForward { length: k }).expect("a rate");
                let backward = machine.rate(Rate::AttentionBackward { length: k }).expect("a rate");
                ("attention, both ways", Some(3.5 / (1.0 / forward + 2.5 / backward) / 1e12))
            }
            ("attention", "cudnn forward 192/128") => {
                ("attention of MLA", machine.rate(Rate::AttentionForward { length: k }).map(|rate| rate / 1e12))
            }
            ("pass", "copy" | "add" | "silu and product, two kernels") if m == 1 << 26 => {
                ("passes", Some(HBM_EFFICIENCY * 4800.0))
            }
            _ => continue,
        };
        errors.entry(kind).or_default().push(model.expect("a rate") / rate - 1.0);
    }
    let mut text = String::from("kind, rows, mean square error, furthest below, furthest above\n");
    for (kind, errors) in &errors {
        let square = (errors.iter().map(|error| error * error).sum::<f64>() / errors.len() as f64).sqrt();
        let (low, high) = errors.iter().fold((0f64, 0f64), |(low, high), &error| (low.min(error), high.max(error)));
        let percent = |share: f64| format!("{:+.1} %", 100.0 * share);
        let _ = writeln!(text, "{kind}: {}, {}, {}, {}", errors.len(), percent(square), percent(low), percent(high));
    }
    snapshot("held_kernels", &text);
    assert_eq!(errors["bf16"].len(), 60);
    assert!(errors["bf16"].iter().chain(&errors["FP8"]).all(|error| error.abs() < 0.08));
    assert!(errors["attention"].iter().all(|error| error.abs() < 0.05));
    assert!(errors["attention, both ways"].iter().all(|error| error.abs() < 0.06));
}

/// DeepGEMM on an H800 (README of February 2025, grouped, contiguous layout): 1292.5 TFLOP/s over an inner dimension of
/// 7168, 1096 over 2048. These are short runs; the model has what a card keeps up.
#[test]
fn fp8_products() {
    let machine = Machine::new(&job("deepseek-v3").cluster, None);
    for (depth, tflops, faster) in [(7168, 1292.5, 1.15), (2048, 1096.0, 1.08)] {
        let rate = machine.rate(Rate::Gemm { dtype: Dtype::Fp8, depth }).expect("a rate");
        within(tflops * 1e12 / rate, faster, 0.01);
    }
}

/// Eight products of 8192 × 7168 × 4096 take 4.65 ms with all SMs, after a pause: 22 % less than in the long run. With fewer the share
/// of SMs is what remains.
#[test]
fn bf16_products() {
    let machine = h100();
    let work = Work::Compute(vec![gemm(Dtype::Bf16, [8192, 7168, 4096], 8)]);
    for row in rows("h100x2_sm_split_probe.csv") {
        let alone: f64 = row[2].parse().expect("milliseconds");
        within(machine.duration(&work, 132).millis() / alone, 1.22, 0.02);
    }
    let rate = machine.rate(Rate::Gemm { dtype: Dtype::Bf16, depth: 4096 }).expect("a rate");
    within(rate / 1e12, 699.0 * 4096.0 / 4216.0, 1e-9);
    let long = machine.rate(Rate::Gemm { dtype: Dtype::Bf16, depth: u32::MAX }).expect("a rate");
    within(long / 1e12, 699.0, 1e-6);
    // No depth, no rate, and no panic.
    assert!(machine.rate(Rate::Gemm { dtype: Dtype::Bf16, depth: 0 }).expect("a rate") > 0.0);
}

/// A product and a copy at once: with k SMs for the copy, the product on the others. Measured is the product told to leave
/// k SMs. These were short runs, in which products are up to 22 % faster than the model's, which has the long run; with few SMs for the
/// copy the two share power and memory bandwidth, which the model leaves out here, and that takes it back.
#[test]
fn a_product_beside_a_copy() {
    let machine = h100();
    let work = Work::Compute(vec![gemm(Dtype::Bf16, [8192, 7168, 4096], 8)]);
    let mut text = String::from("SMs of the copy, model ms, measured ms, model / measured\n");
    for row in rows("h100x2_sm_split_probe.csv") {
        let number = |at: usize| row[at].parse::<f64>().expect("a number");
        let sms: u32 = row[0].parse().expect("a number");
        let bytes = Bytes((number(1) * number(3) * 1e6) as u64);
        let copy = machine.duration(&Work::over_nvlink(bytes), sms);
        let both = machine.duration(&work, 132 - sms).max(copy).millis();
        let measured = number(7);
        let _ = writeln!(text, "{sms:>3} {both:6.2} {measured:6.2} {:5.2}", both / measured);
    }
    snapshot("a_product_beside_a_copy", &text);
}

/// One DeepSeek-V3-like layer on two GPUs, as it was timed with PyTorch: 32 experts, bf16, 4096 tokens.
fn layer_pair(shared_width: u32) -> Vec<Op> {
    let mut job = job("deepseek-v3");
    let moe = job.model.moe.as_mut().expect("experts");
    (moe.experts, moe.groups, moe.topk_groups, moe.shared_width) = (32, 1, 1, shared_width);
    (job.model.precision.products, job.model.precision.dispatch) = (Dtype::Bf16, Dtype::Bf16);
    (job.training.pp, job.training.dp, job.training.ep) = (1, 2, 2);
    (job.training.schedule, job.training.recompute) = (ScheduleKind::GPipe, Recompute::default());
    ops_of_a_moe_layer(&job)
}

/// The ops of F, I and W of one MoE layer.
fn ops_of_a_moe_layer(job: &Job) -> Vec<Op> {
    let layout = dualweave::ir::Layout::new(dualweave::ir::Placement::Linear, 1, 1, 1);
    let stages = vec![dualweave::ir::Stage { units: vec![Unit::Moe(60)], recompute: job.training.recompute }];
    let chunk = split(job, &Lowered { layout, stages }).remove(0).chunk;
    [chunk.f, chunk.i, chunk.w].concat()
}

fn kernels(ops: &[Op], component: Component) -> impl Iterator<Item = &Kernel> {
    let works = ops.iter().filter(move |op| op.component == component).map(|op| &op.work);
    works.flat_map(|work| if let Work::Compute(kernels) = work { &kernels[..] } else { &[] })
}

fn tflop<'a>(kernels: impl Iterator<Item = &'a Kernel>) -> f64 {
    kernels.map(|kernel| kernel.flops.as_f64() / 1e12).sum()
}

/// Its arithmetic: F of one micro-batch and B of another.
#[test]
fn flops_of_the_layer_pair() {
    let (without, with) = (layer_pair(0), layer_pair(2048));
    let routed = tflop(kernels(&without, Component::Mlp));
    let shared = tflop(kernels(&with, Component::Mlp)) - routed;
    let is_core =
        |kernel: &&Kernel| matches!(kernel.rate, Rate::AttentionForward { .. } | Rate::AttentionBackward { .. });
    let is_product = |kernel: &&Kernel| matches!(kernel.rate, Rate::Gemm { dtype: Dtype::Bf16, .. });
    let core = tflop(kernels(&with, Component::Attention).filter(is_core));
    let projections = tflop(kernels(&with, Component::Attention).filter(is_product));
    within(routed, 8.66, 0.001);
    within(shared, 1.08, 0.003);
    within(projections, 4.6, 0.003);
    within(core, 2.4, 0.005);
    within(routed + shared + projections + core, 16.7, 0.003);
}

/// PyTorch's cuDNN attention, 128 heads, qk 192 and v 128, 4096 tokens, causal: 1.30 ms forward and 4.24 ms backward in the long run
/// (1.17 and 4.02 after a pause). Forward MLA's heads are faster than the heads of 128 that the model is about.
#[test]
fn attention_cores() {
    let machine = h100();
    let ops = layer_pair(2048);
    for (rate, ms) in [(FORWARD, 1.30), (BACKWARD, 4.24)] {
        let cores: Vec<&Kernel> = kernels(&ops, Component::Attention).filter(|kernel| kernel.rate == rate).collect();
        assert_eq!(cores.len(), 1);
        within(machine.kernel(cores[0], 132).millis(), ms, 0.1);
    }
}

/// The measured pair, computation only, took 38.07 ms (PyTorch, eager, experts as batched products padded to the mean).
/// The model has what the kernels could do.
#[test]
fn time_of_the_layer_pair() {
    let machine = h100();
    let ops = layer_pair(2048);
    let mut times: BTreeMap<(Component, Phase), Nanos> = BTreeMap::new();
    for op in ops.iter().filter(|op| !op.work.is_exchange()) {
        *times.entry((op.component, op.phase)).or_default() += machine.duration(&op.work, 132);
    }
    let all: Nanos = times.values().sum();
    let mut text = String::new();
    for ((component, phase), time) in &times {
        let _ = writeln!(text, "{component:?} {phase:?} {:.2} ms", time.millis());
    }
    let _ = writeln!(text, "all {:.2} ms, measured 38.07: model / measured {:.2}", all.millis(), all.millis() / 38.07);
    snapshot("pytorch_layer_pair", &text);
}

/// DeepEP's published bandwidths. Its logical bandwidth counts what a GPU's tokens would need if they stayed on their own
/// node (or GPU) too: one copy for each node (within a node: for each GPU) that a token visits. v1 is an H800; v2 names
/// only SM90 and is taken for an H100, since EP16 moves more over NVLink than an H800 can;
/// its EP32 is where `NETWORK_PER_SM_GB_S` comes from.
#[test]
fn deepep() {
    let mut job = job("deepseek-v3");
    let h800 = Machine::new(&job.cluster, None);
    let mut text = String::from("row, dispatch GB/s: model, published, ratio; combine GB/s: model, published, ratio\n");
    for row in rows("deepep.csv") {
        if row[1].starts_with("SM100") {
            continue; // Another GPU and another NVLink.
        }
        let ep: u32 = row[3].parse().expect("a number");
        let sms: u32 = row[6].parse().expect("a number");
        let nodes = ep / 8;
        let tokens = if row[0] == "v1" { 4096.0 } else { 8192.0 };
        // As its test has it: a group is a node, of which v1 visits at most four; v2 does not limit them.
        let moe = job.model.moe.as_mut().expect("experts");
        moe.groups = nodes;
        moe.topk_groups = if row[0] == "v1" { nodes.min(4) } else { nodes };
        let copies = copies(moe, ep, 8);
        let machine = if row[0] == "v1" { h800.clone() } else { h100() };
        let sent = if nodes > 1 {
            copies.network * f64::from(nodes) / f64::from(nodes - 1)
        } else {
            copies.nvlink * 8.0 / 7.0
        };
        let _ = write!(text, "{} EP{ep} with {sms} SMs:", row[0]);
        for (dtype, published) in [(Dtype::Fp8, &row[4]), (Dtype::Bf16, &row[5])] {
            let token = dtype.bytes(7168) as f64;
            let bytes = |copies: f64| Bytes((tokens * copies * token) as u64);
            let work =
                Work::Exchange { nvlink: bytes(copies.nvlink), network: bytes(copies.network), uplink: Bytes::ZERO };
            let gb_s = tokens * sent * token / machine.duration(&work, sms).secs() / 1e9;
            let published: f64 = published.parse().expect("a number");
            let _ = write!(text, "  {gb_s:6.1} {published:5.0} {:5.2}", gb_s / published);
        }
        text.push('\n');
    }
    snapshot("deepep", &text);
}

/// Means of the components in DeepSeek's published training trace: a pair of chunks of four MoE layers, 112 SMs for
/// computation and 20 for communication. "kernels" is the time in kernels of the component's first stream, "span" from its
/// first start to its last end; where a component runs on two streams (W of the experts) neither is its time alone, and
/// exchanges also wait for other GPUs.
#[test]
fn deepseeks_trace() {
    #[derive(Clone, Copy)]
    struct Seen {
        start: f64,
        end: f64,
        kernels: f64,
    }
    let mut seen: BTreeMap<(String, String), Seen> = BTreeMap::new();
    for row in rows("deepseek_v3_train_chunk_pair.csv") {
        let number = |at: usize| row[at].parse::<f64>().expect("a number") / 1e3;
        let new = Seen { start: number(4), end: number(5), kernels: number(6) };
        let seen = seen.entry((row[0].clone(), row[1].clone())).or_insert(new);
        (seen.start, seen.end) = (seen.start.min(new.start), seen.end.max(new.end));
    }
    let mut measured: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
    seen.into_iter().for_each(|((name, _), seen)| measured.entry(name).or_default().push(seen));

    let mut job = job("deepseek-v3");
    job.training.schedule = ScheduleKind::DualPipe;
    let machine = Machine::new(&job.cluster, None);
    let mut text = String::from("component, model ms, kernels ms, span ms, model / kernels, model / span\n");
    for op in ops_of_a_moe_layer(&job) {
        // The trace calls I of attention and MLP, and both exchanges of the backward pass, B.
        let letter = match op.phase {
            Phase::F => "F",
            Phase::I => "B",
            Phase::W => "W",
        };
        let name = match op.component {
            Component::Attention => "attn",
            Component::Dispatch => "dispatch",
            Component::Mlp => "mlp",
            Component::Combine => "combine",
            other => panic!("{other:?} in a layer"),
        };
        let name = format!("{name}({letter})");
        let sms = if op.work.is_exchange() { 20 } else { 112 };
        let all = measured.remove(&name).unwrap_or_else(|| panic!("{name} is not in the trace"));
        let mean = |of: fn(&Seen) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
        let (kernels, span) = (mean(|seen| seen.kernels), mean(|seen| seen.end - seen.start));
        let model = machine.duration(&op.work, sms).millis();
        let (to_kernels, to_span) = (model / kernels, model / span);
        let _ = writeln!(text, "{name:<11} {model:6.2} {kernels:6.2} {span:6.2} {to_kernels:5.2} {to_span:5.2}");
    }
    assert!(measured.is_empty(), "{:?}", measured.keys());
    snapshot("deepseeks_trace", &text);
}
