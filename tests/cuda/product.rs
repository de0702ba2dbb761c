//! Dense matrix products, against sums in f64.

use dualweave::runtime::cuda::product::{Blocked, Output, Products, Tiled};
use dualweave::runtime::cuda::{Bf16, Fp8, Slice};

use crate::gpu::{BF16, Gpu, Random, assert_close, gpu};

/// What sums of bf16 products in fp32 may be off. Tensor cores cut off where they align terms.
pub const FP32: f64 = 2e-5;

/// `sum[i][j] = Σ_l left(i, l) · right(l, j)`, rows of `n`.
pub fn product(
    (m, n, k): (usize, usize, usize),
    left: impl Fn(usize, usize) -> f64,
    right: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut sums = vec![0.0; m * n];
    for (i, row) in sums.chunks_exact_mut(n).enumerate() {
        for l in 0..k {
            let factor = left(i, l);
            row.iter_mut().enumerate().for_each(|(j, sum)| *sum += factor * right(l, j));
        }
    }
    sums
}

/// Numbers that results are written in.
trait Stored: Output + Default + PartialEq {
    const TOLERANCE: f64;
    fn of(value: f64) -> Self;
    fn exact(self) -> f64;
    fn is_poison(self) -> bool;
}
impl Stored for Bf16 {
    const TOLERANCE: f64 = BF16;
    fn of(value: f64) -> Self {
        Self::of(value as f32)
    }
    fn exact(self) -> f64 {
        f64::from(self.to_f32())
    }
    fn is_poison(self) -> bool {
        self.0 == 0xffff
    }
}
impl Stored for f32 {
    const TOLERANCE: f64 = FP32;
    fn of(value: f64) -> Self {
        value as f32
    }
    fn exact(self) -> f64 {
        f64::from(self)
    }
    fn is_poison(self) -> bool {
        self.to_bits() == u32::MAX
    }
}

/// Runs `launch` twice on results that are poisoned, or random if it adds, and compares: values with `expected`, what lies between
/// rows with what was there, and both runs with each other.
fn assert_product<O: Stored>(
    what: &str,
    gpu: &mut Gpu,
    random: &mut Random,
    (rows, width, stride): (usize, usize, usize),
    add: bool,
    mut expected: Vec<f64>,
    launch: impl Fn(&Gpu, Slice<O>),
) {
    let mut runs: Vec<Vec<O>> = Vec::new();
    let before: Vec<O> = (0..rows * stride).map(|_| O::of(20.0 * random.normal())).collect();
    for _ in 0..2 {
        let y = if add { gpu.given(&before) } else { gpu.poisoned::<O>(rows * stride) };
        launch(gpu, y);
        runs.push(y.read(&gpu.stream).expect("results"));
    }
    let mut results = Vec::new();
    for (row, values) in runs[0].chunks_exact(stride).enumerate() {
        results.extend(values[..width].iter().map(|value| value.exact()));
        for (column, &value) in values.iter().enumerate() {
            if column >= width {
                let untouched = if add { value == before[row * stride + column] } else { value.is_poison() };
                assert!(untouched, "{what}: written between rows, in row {row} at {column}");
            } else {
                assert!(
                    value == runs[1][row * stride + column],
                    "{what}: the same bits twice, in row {row} at {column}"
                );
                expected[row * width + column] += if add { before[row * stride + column].exact() } else { 0.0 };
            }
        }
    }
    assert_close(what, &results, &expected, O::TOLERANCE);
}

/// Rows, inputs, outputs, and how far rows of inputs and outputs stand apart.
const SHAPES: [(usize, usize, usize, usize, usize); 5] = [
    (1, 8, 8, 8, 8),
    (33, 136, 72, 144, 72),
    (300, 512, 264, 512, 320),
    (128, 1024, 256, 1024, 256),
    (511, 64, 576, 192, 600),
];

fn forward_of<O: Stored>(gpu: &mut Gpu, products: &Products, random: &mut Random) {
    for (rows, inputs, outputs, x_stride, y_stride) in SHAPES {
        let (x, x_exact) = random.bf16(rows * x_stride, 1.0);
        let (w, w_exact) = random.bf16(outputs * inputs, 1.0);
        let (x, w) = (gpu.given(&x), gpu.given(&w));
        let shape = (rows, inputs, outputs);
        let expected = product(
            (rows, outputs, inputs),
            |row, input| x_exact[row * x_stride + input],
            |input, output| w_exact[output * inputs + input],
        );
        for (add, sms) in [(false, 132), (true, 132), (true, 20)] {
            let what = format!("y, {} bytes, {shape:?}, add {add}, {sms} SMs", O::BYTES);
            assert_product::<O>(&what, gpu, random, (rows, outputs, y_stride), add, expected.clone(), |gpu, y| {
                let y = (y, y_stride);
                products.forward(&gpu.stream, sms, (x, x_stride), w, y, shape, add).expect("launched");
            });
        }
    }
}

#[test]
fn forward_is_the_sum_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    let products = Products::new(&gpu.device).expect("cuBLASLt");
    let mut random = Random::new(20);
    forward_of::<Bf16>(&mut gpu, &products, &mut random);
    forward_of::<f32>(&mut gpu, &products, &mut random);
}

#[test]
fn input_gradient_is_the_sum_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    let products = Products::new(&gpu.device).expect("cuBLASLt");
    let mut random = Random::new(21);
    for (rows, inputs, outputs, x_stride, y_stride) in SHAPES {
        let (dy, dy_exact) = random.bf16(rows * y_stride, 1.0);
        let (w, w_exact) = random.bf16(outputs * inputs, 1.0);
        let (dy, w) = (gpu.given(&dy), gpu.given(&w));
        let shape = (rows, inputs, outputs);
        let expected = product(
            (rows, inputs, outputs),
            |row, output| dy_exact[row * y_stride + output],
            |output, input| w_exact[output * inputs + input],
        );
        for (add, sms) in [(false, 132), (true, 132), (false, 20)] {
            let what = format!("dx, {shape:?}, add {add}, {sms} SMs");
            let matrix = (rows, inputs, x_stride);
            assert_product::<Bf16>(&what, &mut gpu, &mut random, matrix, add, expected.clone(), |gpu, dx| {
                let dx = (dx, x_stride);
                products.input_gradient(&gpu.stream, sms, (dy, y_stride), w, dx, shape, add).expect("launched");
            });
        }
    }
}

#[test]
fn weight_gradient_is_the_sum_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    let products = Products::new(&gpu.device).expect("cuBLASLt");
    let mut random = Random::new(22);
    for (rows, inputs, outputs, x_stride, y_stride) in SHAPES {
        let (x, x_exact) = random.bf16(rows * x_stride, 1.0);
        let (dy, dy_exact) = random.bf16(rows * y_stride, 1.0);
        let (x, dy) = (gpu.given(&x), gpu.given(&dy));
        let shape = (rows, inputs, outputs);
        let expected = product(
            (outputs, inputs, rows),
            |output, row| dy_exact[row * y_stride + output],
            |row, input| x_exact[row * x_stride + input],
        );
        for sms in [132, 20] {
            let what = format!("dW, {shape:?}, {sms} SMs");
            let matrix = (outputs, inputs, inputs);
            assert_product::<f32>(&what, &mut gpu, &mut random, matrix, true, expected.clone(), |gpu, dw| {
                let (x, dy) = ((x, x_stride), (dy, y_stride));
                products.weight_gradient(&gpu.stream, sms, x, dy, dw, shape).expect("launched");
            });
        }
    }
}

#[test]
fn rows_without_gaps_need_no_stride_and_no_rows_change_nothing() {
    let Some(mut gpu) = gpu() else { return };
    let products = Products::new(&gpu.device).expect("cuBLASLt");
    let mut random = Random::new(23);
    let ((x, x_exact), (w, w_exact)) = (random.bf16(40 * 64, 1.0), random.bf16(24 * 64, 1.0));
    let (x, w, y) = (gpu.given(&x), gpu.given(&w), gpu.poisoned::<Bf16>(40 * 24));
    products.forward(&gpu.stream, 132, x, w, y, (40, 64, 24), false).expect("launched");
    let expected = product((40, 24, 64), |row, i| x_exact[row * 64 + i], |i, output| w_exact[output * 64 + i]);
    assert_close("without strides", &gpu.floats(y), &expected, BF16);

    let (none, before) = (Slice::<Bf16>::none(), random.f32(24 * 64, 0.0, 1.0).0);
    let dw = gpu.given(&before);
    products.forward::<Bf16>(&gpu.stream, 132, none, w, none, (0, 64, 24), false).expect("nothing to do");
    products.input_gradient::<Bf16>(&gpu.stream, 132, none, w, none, (0, 64, 24), false).expect("nothing to do");
    products.weight_gradient(&gpu.stream, 132, none, none, dw, (0, 64, 24)).expect("nothing to do");
    assert_eq!(dw.read(&gpu.stream).expect("gradients"), before);
}

#[test]
fn rows_that_are_not_whole_16_bytes_are_refused() {
    let Some(mut gpu) = gpu() else { return };
    let products = Products::new(&gpu.device).expect("cuBLASLt");
    let (x, w, y) = (gpu.poisoned::<Bf16>(4 * 12), gpu.poisoned::<Bf16>(8 * 12), gpu.poisoned::<Bf16>(4 * 8));
    let error = products.forward(&gpu.stream, 132, x, w, y, (4, 12, 8), false).expect_err("24 bytes");
    assert!(error.message().contains("12 values of 2 bytes"), "{error:?}");
}

/// The value of an e4m3 code (Micikevicius et al. 2022, table 1).
fn e4m3(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size =
        if exponent == 0 { fraction / 8.0 * 2f64.powi(-6) } else { (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7) };
    if code & 0x80 == 0 { size } else { -size }
}

/// Random codes of numbers.
fn codes(random: &mut Random, count: usize) -> Vec<u8> {
    let number = |random: &mut Random| loop {
        let code = random.bits() as u8;
        if code & 0x7f != 0x7f {
            return code;
        }
    };
    (0..count).map(|_| number(random)).collect()
}

/// Random scales, of several magnitudes, and NaN where none is read.
fn scales(random: &mut Random, count: usize, read: impl Fn(usize) -> bool) -> Vec<f32> {
    let scale = |random: &mut Random| (0.01 * random.normal().exp()) as f32;
    (0..count).map(|index| if read(index) { scale(random) } else { f32::NAN }).collect()
}

/// A random matrix with a scale for 128 values, on the GPU and exact.
fn tiled(gpu: &mut Gpu, random: &mut Random, rows: usize, depth: usize) -> (Tiled, Vec<f64>) {
    let (codes, scales) = (codes(random, rows * depth), scales(random, Tiled::scales(rows, depth), |_| true));
    let exact = (0..rows * depth).map(|i| e4m3(codes[i]) * f64::from(scales[i % depth / 128 * rows + i / depth]));
    let exact = exact.collect();
    let codes: Vec<Fp8> = codes.into_iter().map(Fp8).collect();
    (Tiled { values: gpu.given(&codes), scales: gpu.given(&scales) }, exact)
}

/// A random matrix with a scale for 128 × 128 values, on the GPU and exact.
fn blocked(gpu: &mut Gpu, random: &mut Random, rows: usize, depth: usize) -> (Blocked, Vec<f64>) {
    let apart = Blocked::blocks_apart(depth);
    let scales = scales(random, Blocked::scales(rows, depth), |index| index % apart < depth.div_ceil(128));
    let codes = codes(random, rows * depth);
    let exact = (0..rows * depth)
        .map(|i| e4m3(codes[i]) * f64::from(scales[i / depth / 128 * apart + i % depth / 128]))
        .collect();
    let codes: Vec<Fp8> = codes.into_iter().map(Fp8).collect();
    (Blocked { values: gpu.given(&codes), scales: gpu.given(&scales) }, exact)
}

/// Hopper adds FP8 products in 14 bits within a tile of 128 and in fp32 beyond, as DeepSeek-V3's report says in section 3.3.2.
const FP8: f64 = 1e-3;

#[test]
fn fp8_products_are_the_sums_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    if gpu.device.capability != 90 {
        eprintln!("skipped: {} has no scales for every 128 values", gpu.device.name);
        return;
    }
    let products = Products::new(&gpu.device).expect("cuBLASLt");
    let mut random = Random::new(24);
    for (rows, inputs, outputs) in [(128, 256, 384), (64, 1152, 576), (20, 576, 256), (272, 128, 128)] {
        let shape = (rows, inputs, outputs);
        let (x, x_exact) = tiled(&mut gpu, &mut random, rows, inputs);
        let (w, w_exact) = blocked(&mut gpu, &mut random, outputs, inputs);
        let expected = product(
            (rows, outputs, inputs),
            |row, input| x_exact[row * inputs + input],
            |input, output| w_exact[output * inputs + input],
        );
        for sms in [132, 20] {
            let y = gpu.poisoned::<Bf16>(rows * outputs);
            products.forward_fp8(&gpu.stream, sms, x, w, y, shape, false).expect("launched");
            assert_close(&format!("FP8 y, {shape:?}, {sms} SMs"), &gpu.floats(y), &expected, BF16);
            let y = gpu.poisoned::<f32>(rows * outputs);
            products.forward_fp8(&gpu.stream, sms, x, w, y, shape, false).expect("launched");
            assert_close(&format!("FP8 y in fp32, {shape:?}, {sms} SMs"), &gpu.numbers(y), &expected, FP8);
        }

        let (dy, dy_exact) = tiled(&mut gpu, &mut random, rows, outputs);
        let (wt, wt_exact) = blocked(&mut gpu, &mut random, inputs, outputs);
        let (before, before_exact) = random.bf16(rows * inputs, 1.0);
        let dx = gpu.given(&before);
        products.input_gradient_fp8(&gpu.stream, 132, dy, wt, dx, shape, true).expect("launched");
        let mut expected = product(
            (rows, inputs, outputs),
            |row, output| dy_exact[row * outputs + output],
            |output, input| wt_exact[input * outputs + output],
        );
        expected.iter_mut().zip(before_exact).for_each(|(sum, before)| *sum += before);
        assert_close(&format!("FP8 dx, {shape:?}"), &gpu.floats(dx), &expected, BF16);
    }
}

#[test]
fn fp8_weight_gradient_is_the_sum_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    if gpu.device.capability != 90 {
        eprintln!("skipped: {} has no scales for every 128 values", gpu.device.name);
        return;
    }
    let products = Products::new(&gpu.device).expect("cuBLASLt");
    let mut random = Random::new(25);
    for (rows, inputs, outputs) in [(128, 256, 384), (320, 128, 576), (4096, 32, 48)] {
        let shape = (rows, inputs, outputs);
        let (xt, x_exact) = tiled(&mut gpu, &mut random, inputs, rows);
        let (dyt, dy_exact) = tiled(&mut gpu, &mut random, outputs, rows);
        let (before, before_exact) = random.f32(outputs * inputs, 0.0, 1.0);
        let mut expected = product(
            (outputs, inputs, rows),
            |output, row| dy_exact[output * rows + row],
            |row, input| x_exact[input * rows + row],
        );
        expected.iter_mut().zip(before_exact).for_each(|(sum, before)| *sum += before);
        let mut runs = Vec::new();
        for _ in 0..2 {
            let dw = gpu.given(&before);
            products.weight_gradient_fp8(&gpu.stream, 132, xt, dyt, dw, shape).expect("launched");
            runs.push(gpu.numbers(dw));
        }
        assert_eq!(runs[0], runs[1], "{shape:?}: the same bits twice");
        assert_close(&format!("FP8 dW, {shape:?}"), &runs[0], &expected, FP8);
    }
    let (xt, _) = tiled(&mut gpu, &mut random, 30, 16);
    let (dyt, dw) = (xt, gpu.poisoned::<f32>(30 * 30));
    let error = products.weight_gradient_fp8(&gpu.stream, 132, xt, dyt, dw, (16, 30, 30)).expect_err("30 rows");
    eprintln!("refused: {error}");
}
