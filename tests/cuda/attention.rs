//! The attention core, by own kernels and by cuDNN, against the host's in f64, which rounds nothing.

use std::ops::Range;

use dualweave::runtime::cuda::core_attention::CoreAttention;
use dualweave::runtime::cuda::ops::attention::{Core, Strided};
use dualweave::runtime::cuda::ops::element;
use dualweave::runtime::cuda::stream::Priority;
use dualweave::runtime::cuda::{Bf16, Event, Slice, Stream};
use dualweave::runtime::host::Matrix;
use dualweave::runtime::host::layers::core;

use crate::gpu::{BF16, Gpu, Random, assert_close, gpu};

/// Weights and their gradients are rounded before they are multiplied.
const GRADIENT: f64 = 2.0 * BF16;

/// A gradient of scores is the difference of two numbers, one of which is made of rounded results. They are close to each other where a
/// query sees few keys, and what they are multiplied with adds up to little in the gradient of sinks.
const DIFFERENCE: f64 = 5.0 * BF16;

/// Keys below which [`DIFFERENCE`] is the tolerance.
const FEW: usize = 8;

/// Columns of the matrix that holds q, k and v, behind them: nothing may change there.
const BESIDE: usize = 8;

/// What an op reads, and the same for the host.
struct Case {
    core: Core,
    tokens: usize,
    /// Tokens × columns of q, k and v.
    fused: Vec<Bf16>,
    exact: Matrix<f64>,
    sinks: Option<(Vec<f32>, Vec<f64>)>,
    d_o: (Vec<Bf16>, Vec<f64>),
    d_sinks: (Vec<f32>, Vec<f64>),
}

/// What comes out.
#[derive(Clone, Copy)]
struct Results {
    o: Slice<Bf16>,
    log_sums: Slice<f32>,
    /// As the fused matrix.
    gradients: Slice<Bf16>,
    d_sinks: Slice<f32>,
}

impl Case {
    fn new(random: &mut Random, core: Core, sequences: usize, sinks: bool) -> Self {
        let tokens = sequences * core.sequence;
        let stride = core.columns()[2].end + BESIDE;
        let (fused, exact) = random.bf16(tokens * stride, 1.2);
        Self {
            core,
            tokens,
            fused,
            exact: Matrix::new(tokens, stride, exact),
            sinks: sinks.then(|| random.f32(core.heads, 0.5, 1.5)),
            d_o: random.bf16(tokens * core.heads * core.value_dim, 0.7),
            d_sinks: random.f32(core.heads, 0.0, 2.0),
        }
    }

    /// By own kernels, and where they differ by what the runtime would take here.
    fn ways(&self, gpu: &Gpu) -> Vec<CoreAttention> {
        let own = CoreAttention::by_own_kernels(self.core, self.tokens);
        let strides = ([self.exact.columns(); 3], [self.exact.columns(); 3]);
        let best = CoreAttention::new(&gpu.device, self.core, self.tokens, strides, self.sinks.is_some());
        let best = best.expect("whatever cuDNN takes");
        if best.is_by_library() == (false, false) { vec![own] } else { vec![own, best] }
    }

    fn run(&self, gpu: &mut Gpu, way: &CoreAttention, sms: u32) -> Results {
        let Self { core, tokens, .. } = self;
        let (fused, d_o) = (gpu.given(&self.fused), gpu.given(&self.d_o.0));
        let (sinks, d_sinks) = match &self.sinks {
            Some((sinks, _)) => (gpu.given(sinks), gpu.given(&self.d_sinks.0)),
            None => (Slice::none(), Slice::none()),
        };
        let results = Results {
            o: gpu.poisoned(d_o.len()),
            log_sums: gpu.poisoned(core.heads * tokens),
            gradients: gpu.poisoned(fused.len()),
            d_sinks,
        };
        let scratch = [way.forward_scratch(), way.gradient_scratch()].map(|bytes| gpu.poisoned(bytes));
        let (inputs, gradients) = (self.parts(fused), self.parts(results.gradients));
        let Results { o, log_sums, .. } = results;
        way.forward(&gpu.stream, sms, inputs, sinks, o, log_sums, scratch[0]).expect("launched");
        way.input_gradient(&gpu.stream, sms, inputs, sinks, (o, d_o, log_sums), gradients, d_sinks, scratch[1])
            .expect("launched");
        results
    }

    /// q, k and v of a fused matrix.
    fn parts(&self, fused: Slice<Bf16>) -> [Strided; 3] {
        let stride = self.exact.columns();
        self.core.columns().map(|columns| Strided { values: fused.part(columns.start..fused.len()), stride })
    }

    fn check(&self, gpu: &mut Gpu) {
        for way in self.ways(gpu) {
            self.check_way(gpu, &way);
        }
    }

    fn check_way(&self, gpu: &mut Gpu, way: &CoreAttention) {
        let by = if way.is_by_library() == (false, false) { "own kernels" } else { "cuDNN" };
        let what = format!("{by}, {:?}, {} tokens, sinks: {}", self.core, self.tokens, self.sinks.is_some());
        let results = self.run(gpu, way, 132);
        let host = core::Core {
            heads: self.core.heads,
            kv_heads: self.core.kv_heads,
            qk_dim: self.core.qk_dim,
            value_dim: self.core.value_dim,
            sequence: self.core.sequence,
            window: self.core.window,
            format: None,
        };
        let [q, k, v] = self.core.columns().map(|columns| cut(&self.exact, columns));
        let sinks = self.sinks.as_ref().map(|(_, exact)| Matrix::new(1, self.core.heads, exact.clone()));
        let (o, saved) = host.forward(q, k, v, sinks.as_ref());
        assert_close(&format!("{what}: o"), &gpu.floats(results.o), o.values(), BF16);
        assert_close(&format!("{what}: log sums"), &gpu.numbers(results.log_sums), &self.log_sums(), 1e-5);

        let d_o = Matrix::new(self.tokens, o.columns(), self.d_o.1.clone());
        let expected = host.input_gradient(&saved, &d_o, sinks.as_ref());
        let gradients = Matrix::new(self.tokens, self.exact.columns(), gpu.floats(results.gradients));
        let [q, k, v] = self.core.columns();
        let seen = self.core.window.unwrap_or(usize::MAX).min(self.core.sequence);
        let tolerance = if seen < FEW { DIFFERENCE } else { GRADIENT };
        for (name, columns, expected) in [("q", q, expected.q), ("k", k, expected.k), ("v", v.clone(), expected.v)] {
            let gradient = cut(&gradients, columns);
            assert_close(&format!("{what}: d{name}"), gradient.values(), expected.values(), tolerance);
        }
        let beside = cut(&gradients, v.end..v.end + BESIDE);
        assert!(beside.values().iter().all(|value| value.is_nan()), "{what}: only dq, dk and dv are written");
        if self.sinks.is_some() {
            let sums: Vec<f64> = expected.sinks.values().iter().zip(&self.d_sinks.1).map(|(a, b)| a + b).collect();
            assert_close(&format!("{what}: d sinks"), &gpu.numbers(results.d_sinks), &sums, DIFFERENCE);
        }
    }

    /// Sequences × heads × tokens of a sequence, by the definition.
    fn log_sums(&self) -> Vec<f64> {
        let Core { heads, kv_heads, qk_dim, sequence, window, .. } = self.core;
        let [q, k, _] = self.core.columns();
        let mut sums = Vec::new();
        for number in 0..heads * self.tokens {
            let (start, head) = (number / (heads * sequence) * sequence, number / sequence % heads);
            let query = start + number % sequence;
            let first = start.max((query + 1).saturating_sub(window.unwrap_or(usize::MAX)));
            let of_query = &self.exact.row(query)[q.start + head * qk_dim..][..qk_dim];
            let score = |key: usize| {
                let of_key = &self.exact.row(key)[k.start + head * kv_heads / heads * qk_dim..][..qk_dim];
                let product: f64 = of_query.iter().zip(of_key).map(|(a, b)| a * b).sum();
                product / (qk_dim as f64).sqrt()
            };
            let sink = self.sinks.as_ref().map_or(0.0, |(_, sinks)| sinks[head].exp());
            sums.push(((first..=query).map(|key| score(key).exp()).sum::<f64>() + sink).ln());
        }
        sums
    }
}

/// Columns of q, k and v in a matrix that holds all three.
trait Columns {
    fn columns(&self) -> [Range<usize>; 3];
}

impl Columns for Core {
    fn columns(&self) -> [Range<usize>; 3] {
        let q = self.heads * self.qk_dim;
        let k = q + self.kv_heads * self.qk_dim;
        [0..q, q..k, k..k + self.kv_heads * self.value_dim]
    }
}

fn cut(matrix: &Matrix<f64>, columns: Range<usize>) -> Matrix<f64> {
    let values = (0..matrix.rows()).flat_map(|row| matrix.row(row)[columns.clone()].to_vec()).collect();
    Matrix::new(matrix.rows(), columns.len(), values)
}

fn heads(heads: usize, kv_heads: usize, (qk_dim, value_dim): (usize, usize), sequence: usize) -> Core {
    Core { heads, kv_heads, qk_dim, value_dim, sequence, window: None }
}

#[test]
fn heads_of_every_width_are_the_hosts() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(1);
    let compiled = [(32, 32), (64, 64), (128, 128), (192, 128), (256, 256)];
    let padded = [(8, 8), (16, 40), (72, 64), (64, 96), (136, 128), (192, 136), (248, 8)];
    for widths in compiled.into_iter().chain(padded) {
        Case::new(&mut random, heads(2, 2, widths, 130), 2, false).check(&mut gpu);
    }
}

#[test]
fn shared_heads_windows_and_sinks_are_the_hosts() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(2);
    for widths in [(32, 32), (64, 64), (128, 128), (192, 128), (256, 256)] {
        for (kv_heads, window, sinks) in
            [(2, None, false), (1, Some(1), true), (4, Some(40), false), (2, Some(100), true), (1, Some(1000), true)]
        {
            let core = Core { window, ..heads(4, kv_heads, widths, 200) };
            Case::new(&mut random, core, 1, sinks).check(&mut gpu);
        }
    }
}

#[test]
fn sequences_of_every_length_are_the_hosts() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(3);
    for (sequence, sequences) in [(1, 5), (2, 1), (17, 3), (64, 2), (130, 1), (256, 2), (384, 1)] {
        for widths in [(32, 32), (128, 128), (192, 128)] {
            // With a sink: else one that sees itself alone has no gradient that one could be close to.
            Case::new(&mut random, heads(2, 1, widths, sequence), sequences, true).check(&mut gpu);
        }
    }
}

#[test]
fn large_scores_stay_finite() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(4);
    let mut case = Case::new(&mut random, heads(2, 2, (128, 128), 150), 1, true);
    // Scores of some hundreds: single keys win. Their exponentials have no place in f32, nor have those of the sinks.
    let q = case.core.columns()[0].clone();
    let stride = case.exact.columns();
    for (index, value) in case.fused.iter_mut().enumerate() {
        if q.contains(&(index % stride)) {
            *value = Bf16::of(64.0 * value.to_f32());
        }
    }
    for sinks in [Some((vec![-300.0, 300.0], vec![-300.0, 300.0])), None] {
        case.sinks = sinks;
        for way in case.ways(&gpu) {
            let results = case.run(&mut gpu, &way, 132);
            assert!(gpu.floats(results.o).iter().all(|value| value.is_finite()));
            assert!(gpu.numbers(results.log_sums).iter().all(|value| value.is_finite()));
            let gradients = Matrix::new(case.tokens, stride, gpu.floats(results.gradients));
            assert!(cut(&gradients, 0..stride - BESIDE).values().iter().all(|value| value.is_finite()));
            assert!(gpu.numbers(results.d_sinks).iter().all(|value| value.is_finite()));
        }
    }
}

/// Shapes that cuDNN takes on Hopper: it must be what makes them there.
#[test]
fn what_cudnn_makes_is_the_hosts() {
    let Some(mut gpu) = gpu() else { return };
    if gpu.device.cudnn().is_none() {
        return eprintln!("skipped: no cuDNN, or no Hopper");
    }
    let mut random = Random::new(7);
    for (of, kv_heads, widths) in
        [(4, 4, (192, 128)), (4, 4, (128, 128)), (8, 2, (128, 128)), (4, 1, (64, 64)), (2, 2, (256, 256))]
    {
        for (sequence, sequences) in [(2, 3), (17, 2), (77, 3), (128, 1), (333, 2), (600, 1)] {
            let case = Case::new(&mut random, heads(of, kv_heads, widths, sequence), sequences, false);
            let ways = case.ways(&gpu);
            let by = ways.last().map(CoreAttention::is_by_library);
            assert_eq!(by, Some((true, true)), "{:?}", case.core);
            case.check_way(&mut gpu, &ways[1]);
            gpu.release();
        }
    }
    // A window that no query is behind the end of.
    let core = Core { window: Some(200), ..heads(4, 2, (128, 128), 200) };
    let case = Case::new(&mut random, core, 2, false);
    let ways = case.ways(&gpu);
    case.check_way(&mut gpu, &ways[1]);
}

/// More scores than may be kept at a time: cuDNN makes some heads, or sequences, after the other.
#[test]
fn parts_are_what_own_kernels_make() {
    let Some(mut gpu) = gpu() else { return };
    if gpu.device.cudnn().is_none() {
        return eprintln!("skipped: no cuDNN, or no Hopper");
    }
    let mut random = Random::new(8);
    for (of, kv_heads, sequence, sequences) in [(72, 36, 4096, 1), (80, 80, 2048, 6)] {
        let case = Case::new(&mut random, heads(of, kv_heads, (16, 16), sequence), sequences, false);
        let stride = case.exact.columns();
        let [own, parts] = [0, 1].map(|way| {
            let ways = case.ways(&gpu);
            let results = case.run(&mut gpu, &ways[way], 132);
            let gradients = Matrix::new(case.tokens, stride, gpu.floats(results.gradients));
            (gpu.floats(results.o), gpu.numbers(results.log_sums), gradients)
        });
        assert_close("o", &parts.0, &own.0, BF16);
        assert_close("log sums", &parts.1, &own.1, 1e-5);
        // Each head of q, k and v, since one in the wrong place is what could be. Both are rounded.
        for head in 0..of + 2 * kv_heads {
            let [own, parts] = [&own.2, &parts.2].map(|gradients| cut(gradients, 16 * head..16 * head + 16));
            let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
            let norm = square(&mut own.values().iter().copied()).sqrt();
            let apart = square(&mut own.values().iter().zip(parts.values()).map(|(a, b)| a - b)).sqrt();
            assert!(apart <= 2.0 * GRADIENT * norm, "head {head}: {apart} apart of {norm}");
        }
        gpu.release();
    }
}

#[test]
fn bits_do_not_depend_on_sms() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(5);
    for widths in [(32, 32), (64, 64), (128, 128), (192, 128), (256, 256)] {
        // With a window and sinks own kernels make it, without it may be cuDNN.
        for (window, sinks, sequence) in [(Some(300), true, 500), (None, false, 1100)] {
            let core = Core { window, ..heads(4, 2, widths, sequence) };
            let case = Case::new(&mut random, core, 2, sinks);
            for way in case.ways(&gpu) {
                let bits = |gpu: &mut Gpu, sms| {
                    let results = case.run(gpu, &way, sms);
                    let halves = [results.o, results.gradients].map(|slice| slice.read(&gpu.stream).expect("results"));
                    let wholes = [results.log_sums, results.d_sinks]
                        .map(|slice| slice.cast::<u32>().read(&gpu.stream).expect("results"));
                    (halves, wholes)
                };
                let first = bits(&mut gpu, 132);
                for sms in [132, 1, 7, 100] {
                    assert!(bits(&mut gpu, sms) == first, "{widths:?} on {sms} SMs, {:?}", way.is_by_library());
                }
            }
            gpu.release();
        }
    }
}

/// What a core reads and writes, of whole rows.
struct Large {
    core: Core,
    inputs: [Strided; 3],
    gradients: [Strided; 3],
    results: (Slice<Bf16>, Slice<Bf16>, Slice<f32>),
    scratch: [Slice<u8>; 2],
}

impl Large {
    fn new(gpu: &mut Gpu, random: &mut Random, core: Core) -> Self {
        let tokens = core.sequence;
        // Random numbers take longer than what is measured: some are there several times.
        let some = random.bf16((1 << 20) - 1, 1.0).0;
        let values = |gpu: &mut Gpu, count: usize| {
            let values: Vec<_> = some.iter().copied().cycle().take(count).collect();
            gpu.given(&values)
        };
        let inputs = core
            .columns()
            .map(|columns| Strided { values: values(gpu, tokens * columns.len()), stride: columns.len() });
        let gradients = inputs.map(|Strided { values, stride }| Strided { values: gpu.poisoned(values.len()), stride });
        let d_o = values(gpu, tokens * core.heads * core.value_dim);
        let results = (gpu.poisoned(d_o.len()), d_o, gpu.poisoned(core.heads * tokens));
        Self { core, inputs, gradients, results, scratch: [Slice::none(); 2] }
    }

    /// Own kernels, and if there are others what the runtime takes.
    fn ways(&mut self, gpu: &mut Gpu) -> Vec<CoreAttention> {
        let tokens = self.core.sequence;
        let strides = [self.inputs, self.gradients].map(|rows| rows.map(|rows| rows.stride));
        let own = CoreAttention::by_own_kernels(self.core, tokens);
        let best = CoreAttention::new(&gpu.device, self.core, tokens, (strides[0], strides[1]), false);
        let best = best.expect("whatever cuDNN takes");
        self.scratch = [best.forward_scratch(), best.gradient_scratch()].map(|bytes| gpu.poisoned(bytes));
        if best.is_by_library() == (false, false) { vec![own] } else { vec![own, best] }
    }

    fn forward(&self, stream: &Stream, way: &CoreAttention, sms: u32) {
        let (o, _, log_sums) = self.results;
        way.forward(stream, sms, self.inputs, Slice::none(), o, log_sums, self.scratch[0]).expect("launched");
    }

    fn gradient(&self, stream: &Stream, way: &CoreAttention, sms: u32) {
        let (none, scratch) = (Slice::none(), self.scratch[1]);
        way.input_gradient(stream, sms, self.inputs, none, self.results, self.gradients, none, scratch)
            .expect("launched");
    }
}

/// Prints times and rates: `cargo test --release --test cuda attention::speed -- --ignored --nocapture`. FLOPs are counted as usual: half
/// of all pairs of query and key, two products forward and five backward.
#[test]
#[ignore = "measures"]
fn speed() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(6);
    for (of, kv_heads, widths, sequence) in [
        (128, 128, (192, 128), 4096),
        (32, 32, (128, 128), 4096),
        (32, 4, (128, 128), 4096),
        (64, 8, (64, 64), 4096),
        (32, 32, (192, 128), 8192),
    ] {
        let core = heads(of, kv_heads, widths, sequence);
        let mut large = Large::new(&mut gpu, &mut random, core);
        let pairs = (core.heads * sequence * sequence) as f64 / 2.0;
        let (qk, value) = (core.qk_dim as f64, core.value_dim as f64);
        for way in large.ways(&mut gpu) {
            let by = if way.is_by_library().1 { "cuDNN" } else { "own kernels" };
            for sms in [gpu.device.sms, gpu.device.sms - 20] {
                let milliseconds = median(&gpu, || large.forward(&gpu.stream, &way, sms));
                report(&core, &format!("{by}, forward"), sms, milliseconds, 2.0 * pairs * (qk + value));
                let milliseconds = median(&gpu, || large.gradient(&gpu.stream, &way, sms));
                report(&core, &format!("{by}, gradient"), sms, milliseconds, 2.0 * pairs * (3.0 * qk + 2.0 * value));
            }
        }
        gpu.release();
    }
}

/// Prints how long a kernel on 20 SMs, of a stream with high priority, takes beside the core, which knows nothing of it; and how long
/// both take together. `cargo test --release --test cuda attention::beside -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn beside() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(9);
    let mut large = Large::new(&mut gpu, &mut random, heads(128, 128, (192, 128), 4096));
    let urgent = Stream::new(&gpu.device, Priority::High).expect("a stream");
    let [from, to] = [(); 2].map(|()| gpu.poisoned::<Bf16>(1 << 30));
    let columns = 1 << 14;
    let copy = |stream: &Stream| {
        let rows = from.len() / columns;
        element::copy_columns(stream, 20, (from, columns), (to, columns), rows, columns).expect("launched");
    };
    let ways = large.ways(&mut gpu);
    let event = || Event::new(&gpu.device, true).expect("an event");
    let alone = {
        let [start, end] = [event(), event()];
        copy(&urgent);
        start.record(&urgent).expect("recorded");
        copy(&urgent);
        end.record(&urgent).expect("recorded");
        end.synchronize().expect("happens");
        end.since(&start).expect("a time")
    };
    eprintln!("copy alone: {alone:.3} ms");
    for way in ways {
        let by = if way.is_by_library().1 { "cuDNN" } else { "own kernels" };
        for backward in [false, true] {
            let run = |stream: &Stream| match backward {
                false => large.forward(stream, &way, gpu.device.sms),
                true => large.gradient(stream, &way, gpu.device.sms),
            };
            let core_alone = median(&gpu, || run(&gpu.stream));
            let mut times: Vec<[f32; 3]> = (0..11)
                .map(|_| {
                    let [start, first, copied, end] = [event(), event(), event(), event()];
                    start.record(&gpu.stream).expect("recorded");
                    urgent.wait(&start).expect("waits");
                    run(&gpu.stream);
                    end.record(&gpu.stream).expect("recorded");
                    // The core has all SMs by then.
                    element::copy_columns(&urgent, 1, (from, 8), (to, 8), 40_000, 8).expect("launched");
                    first.record(&urgent).expect("recorded");
                    copy(&urgent);
                    copied.record(&urgent).expect("recorded");
                    gpu.stream.wait(&copied).expect("waits");
                    let all = event();
                    all.record(&gpu.stream).expect("recorded");
                    all.synchronize().expect("happens");
                    let since = |of: &Event, from: &Event| of.since(from).expect("a time");
                    [since(&copied, &first), since(&end, &start), since(&all, &start)]
                })
                .collect();
            times.sort_by(|a, b| a[2].total_cmp(&b[2]));
            let [copy_took, core_took, both] = times[times.len() / 2];
            let what = if backward { "gradient" } else { "forward" };
            eprintln!(
                "{by}, {what}: alone {core_alone:.3} ms; beside a copy: {core_took:.3}, the copy {copy_took:.3}, both {both:.3}"
            );
        }
    }
}

fn report(core: &Core, what: &str, sms: u32, milliseconds: f32, flops: f64) {
    let Core { heads, kv_heads, qk_dim, value_dim, sequence, .. } = core;
    let rate = flops / f64::from(milliseconds) / 1e9;
    eprintln!(
        "{what}, {heads} heads ({kv_heads}) of {qk_dim}/{value_dim}, {sequence} tokens, {sms} SMs: {milliseconds:.3} ms, {rate:.0} TFLOP/s"
    );
}

/// Median of 21 times, one behind the other, after three runs that are not counted.
fn median(gpu: &Gpu, run: impl Fn()) -> f32 {
    (0..3).for_each(|_| run());
    let events: Vec<_> = (0..21)
        .map(|_| {
            let [start, end] = [(); 2].map(|()| Event::new(&gpu.device, true).expect("an event"));
            start.record(&gpu.stream).expect("recorded");
            run();
            end.record(&gpu.stream).expect("recorded");
            (start, end)
        })
        .collect();
    gpu.stream.synchronize().expect("happens");
    let mut times: Vec<f32> = events.iter().map(|(start, end)| end.since(start).expect("a time")).collect();
    times.sort_by(f32::total_cmp);
    times[times.len() / 2]
}
