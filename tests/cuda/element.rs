//! What is done to every value or row, against the same in f64.

use dualweave::runtime::cuda::Bf16;
use dualweave::runtime::cuda::ops::element;

use crate::gpu::{BF16, F32, Random, assert_close, gpu};

#[test]
fn values_are_added() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(10);
    for len in [8, 8 * 257, 1 << 20] {
        let ((a, exact_a), (b, exact_b)) = (random.bf16(len, 1.0), random.bf16(len, 2.0));
        let (a, b, y) = (gpu.given(&a), gpu.given(&b), gpu.poisoned(len));
        let expected: Vec<f64> = exact_a.iter().zip(&exact_b).map(|(a, b)| a + b).collect();
        gpu.steady(&[y.cast()], |stream, sms| element::add(stream, sms, a, b, y));
        assert_close(&format!("{len}"), &gpu.floats(y), &expected, BF16);
        element::add(&gpu.stream, 20, a, b, b).expect("launched");
        assert_eq!(gpu.floats(b), gpu.floats(y), "in place");
    }
}

#[test]
fn columns_are_copied() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(11);
    for (rows, width, from_stride, to_stride) in [(1, 8, 8, 8), (33, 64, 576, 64), (257, 512, 520, 576)] {
        let (from, exact) = random.bf16(rows * from_stride, 1.0);
        let (from, to) = (gpu.given(&from), gpu.poisoned(rows * to_stride));
        gpu.steady(&[to.cast()], |stream, sms| {
            element::copy_columns(stream, sms, (from, from_stride), (to, to_stride), rows, width)
        });
        for (row, (to, from)) in gpu.floats(to).chunks(to_stride).zip(exact.chunks(from_stride)).enumerate() {
            assert_eq!(to[..width], from[..width], "row {row}");
            assert!(to[width..].iter().all(|value| value.is_nan()), "nothing is written behind row {row}");
        }
    }
}

#[test]
fn formats_are_changed() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(12);
    for len in [8, 8 * 1001] {
        let (narrow, exact) = random.bf16(len, 1.0);
        let (wide, _) = random.f32(len, 0.0, 3.0);
        let rounded: Vec<Bf16> = wide.iter().map(|&value| Bf16::of(value)).collect();
        let (narrow, wide) = (gpu.given(&narrow), gpu.given(&wide));
        let (widened, narrowed) = (gpu.poisoned(len), gpu.poisoned(len));
        gpu.steady(&[widened.cast()], |stream, sms| element::widen(stream, sms, narrow, widened));
        gpu.steady(&[narrowed.cast()], |stream, sms| element::narrow(stream, sms, wide, narrowed));
        assert_eq!(gpu.numbers(widened), exact);
        assert_eq!(narrowed.read(&gpu.stream).expect("results"), rounded, "to nearest, ties to even");
    }
}

#[test]
fn rows_are_scaled_and_multiplied() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(13);
    for (rows, width) in [(1, 8), (33, 264), (300, 7168)] {
        let (x, exact) = random.bf16(rows * width, 1.0);
        let (other, exact_other) = random.bf16(rows * width, 1.0);
        let (factors, exact_factors) = random.f32(rows, 0.0, 1.0);
        let (x, other, factors) = (gpu.given(&x), gpu.given(&other), gpu.given(&factors));
        let (y, dots) = (gpu.poisoned(rows * width), gpu.poisoned(rows));
        gpu.steady(&[y.cast()], |stream, sms| element::scale_rows(stream, sms, x, factors, y, width));
        gpu.steady(&[dots.cast()], |stream, sms| element::row_dots(stream, sms, x, other, dots, width));
        let scaled =
            exact.chunks(width).zip(&exact_factors).flat_map(|(row, factor)| row.iter().map(move |x| x * factor));
        assert_close(&format!("{rows} × {width}"), &gpu.floats(y), &scaled.collect::<Vec<_>>(), BF16);
        let dot = |(a, b): (&[f64], &[f64])| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let expected: Vec<f64> = exact.chunks(width).zip(exact_other.chunks(width)).map(dot).collect();
        assert_close(&format!("dots of {width}"), &gpu.numbers(dots), &expected, F32);
        element::scale_rows(&gpu.stream, 3, x, factors, x, width).expect("launched");
        assert_eq!(gpu.floats(x), gpu.floats(y), "in place");
    }
}

#[test]
fn sigmoid_and_its_gradient() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(14);
    for len in [1, 33, 5000] {
        let ((x, exact), (dy, exact_dy)) = (random.f32(len, 0.0, 8.0), random.f32(len, 0.0, 1.0));
        let (x, dy, y, dx) = (gpu.given(&x), gpu.given(&dy), gpu.poisoned(len), gpu.poisoned(len));
        gpu.steady(&[y.cast()], |stream, sms| element::sigmoid(stream, sms, x, y));
        gpu.steady(&[dx.cast()], |stream, sms| element::sigmoid_gradient(stream, sms, y, dy, dx));
        let sigmoid: Vec<f64> = exact.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        assert_close("sigmoid", &gpu.numbers(y), &sigmoid, F32);
        // From what it gave: of what is near 1, little is left but its rounding.
        let gradient: Vec<f64> = gpu.numbers(y).iter().zip(&exact_dy).map(|(y, dy)| dy * y * (1.0 - y)).collect();
        assert_close("its gradient", &gpu.numbers(dx), &gradient, F32);
    }
}
