//! The attention core, against the host's in f64, which rounds nothing.

use std::ops::Range;

use dualweave::runtime::cuda::ops::attention::{Core, Strided, forward, gradient_scratch, input_gradient};
use dualweave::runtime::cuda::{Bf16, Event, Slice};
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

    fn run(&self, gpu: &mut Gpu, sms: u32) -> Results {
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
        let scratch = gpu.poisoned(gradient_scratch(core, *tokens));
        let [q, k, v] = self.parts(fused);
        forward(&gpu.stream, sms, core, q, k, v, sinks, results.o, results.log_sums).expect("launched");
        let ([d_q, d_k, d_v], Results { o, log_sums, .. }) = (self.parts(results.gradients), results);
        input_gradient(&gpu.stream, sms, core, q, k, v, sinks, o, d_o, log_sums, d_q, d_k, d_v, d_sinks, scratch)
            .expect("launched");
        results
    }

    /// q, k and v of a fused matrix.
    fn parts(&self, fused: Slice<Bf16>) -> [Strided; 3] {
        let stride = self.exact.columns();
        self.core.columns().map(|columns| Strided { values: fused.part(columns.start..fused.len()), stride })
    }

    fn check(&self, gpu: &mut Gpu) {
        let what = format!("{:?}, {} tokens, sinks: {}", self.core, self.tokens, self.sinks.is_some());
        let results = self.run(gpu, 132);
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

    /// Heads × tokens, by the definition.
    fn log_sums(&self) -> Vec<f64> {
        let Core { heads, kv_heads, qk_dim, sequence, window, .. } = self.core;
        let [q, k, _] = self.core.columns();
        let mut sums = Vec::new();
        for (head, query) in (0..heads).flat_map(|head| (0..self.tokens).map(move |query| (head, query))) {
            let first = (query / sequence * sequence).max((query + 1).saturating_sub(window.unwrap_or(usize::MAX)));
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
    case.sinks = Some((vec![-300.0, 300.0], vec![-300.0, 300.0]));
    let results = case.run(&mut gpu, 132);
    assert!(gpu.floats(results.o).iter().all(|value| value.is_finite()));
    assert!(gpu.numbers(results.log_sums).iter().all(|value| value.is_finite()));
    let gradients = Matrix::new(case.tokens, stride, gpu.floats(results.gradients));
    assert!(cut(&gradients, 0..stride - BESIDE).values().iter().all(|value| value.is_finite()));
    assert!(gpu.numbers(results.d_sinks).iter().all(|value| value.is_finite()));
}

#[test]
fn bits_do_not_depend_on_sms() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(5);
    for widths in [(32, 32), (64, 64), (128, 128), (192, 128), (256, 256)] {
        let core = Core { window: Some(300), ..heads(4, 2, widths, 500) };
        let case = Case::new(&mut random, core, 2, true);
        let bits = |gpu: &mut Gpu, sms| {
            let results = case.run(gpu, sms);
            let halves = [results.o, results.gradients].map(|slice| slice.read(&gpu.stream).expect("results"));
            let wholes = [results.log_sums, results.d_sinks]
                .map(|slice| slice.cast::<u32>().read(&gpu.stream).expect("results"));
            (halves, wholes)
        };
        let first = bits(&mut gpu, 132);
        for sms in [132, 1, 7, 100] {
            assert!(bits(&mut gpu, sms) == first, "{widths:?} on {sms} SMs");
        }
    }
}

/// Prints times and rates: `cargo test --release --test cuda attention::speed -- --ignored --nocapture`. FLOPs are counted as usual: half
/// of all pairs of query and key, two products forward and five backward.
#[test]
#[ignore = "measures"]
fn speed() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(6);
    for (heads_of, kv_heads, widths) in [(128, 128, (192, 128)), (32, 32, (128, 128)), (32, 4, (128, 128))] {
        let core = heads(heads_of, kv_heads, widths, 4096);
        let tokens = core.sequence;
        let [q, k, v] = core.columns().map(|columns| {
            let values = random.bf16(tokens * columns.len(), 1.0).0;
            Strided { values: gpu.given(&values), stride: columns.len() }
        });
        let [d_q, d_k, d_v] =
            [q, k, v].map(|Strided { values, stride }| Strided { values: gpu.poisoned(values.len()), stride });
        let d_o = random.bf16(tokens * core.heads * core.value_dim, 1.0).0;
        let (d_o, o) = (gpu.given(&d_o), gpu.poisoned(d_o.len()));
        let (log_sums, scratch) = (gpu.poisoned(core.heads * tokens), gpu.poisoned(gradient_scratch(&core, tokens)));
        let none = Slice::none;
        let pairs = (core.heads * tokens * tokens) as f64 / 2.0;
        let (qk, value) = (core.qk_dim as f64, core.value_dim as f64);
        for sms in [gpu.device.sms, gpu.device.sms - 20] {
            let milliseconds = median(&gpu, || {
                forward(&gpu.stream, sms, &core, q, k, v, none(), o, log_sums).expect("launched");
            });
            report(&core, "forward", sms, milliseconds, 2.0 * pairs * (qk + value));
            let milliseconds = median(&gpu, || {
                let (stream, none) = (&gpu.stream, none());
                input_gradient(stream, sms, &core, q, k, v, none, o, d_o, log_sums, d_q, d_k, d_v, none, scratch)
                    .expect("launched");
            });
            report(&core, "gradient", sms, milliseconds, 2.0 * pairs * (3.0 * qk + 2.0 * value));
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

/// Median of ten times, after three runs that are not counted.
fn median(gpu: &Gpu, run: impl Fn()) -> f32 {
    (0..3).for_each(|_| run());
    let mut times: Vec<f32> = (0..10)
        .map(|_| {
            let [start, end] = [(); 2].map(|()| Event::new(&gpu.device, true).expect("an event"));
            start.record(&gpu.stream).expect("recorded");
            run();
            end.record(&gpu.stream).expect("recorded");
            end.synchronize().expect("happens");
            end.since(&start).expect("a time")
        })
        .collect();
    times.sort_by(f32::total_cmp);
    times[times.len() / 2]
}
