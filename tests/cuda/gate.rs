//! Gates, against the same in f64.

use dualweave::runtime::cuda::ops::gate;

use crate::gpu::{BF16, F32, Random, assert_close, gpu};

const SHAPES: [(usize, usize); 4] = [(1, 8), (65, 264), (1000, 2048), (300, 7168)];

/// One for each row of `x`.
fn weights(x: &[f64], gate: &[f64]) -> Vec<f64> {
    let along = |row: &[f64]| row.iter().zip(gate).map(|(x, gate)| x * gate).sum::<f64>();
    x.chunks(gate.len()).map(|row| 1.0 / (1.0 + (-along(row)).exp())).collect()
}

#[test]
fn rows_are_weighed() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(95);
    for (rows, width) in SHAPES {
        let (x, exact) = random.bf16(rows * width, 1.0);
        let (vector, exact_vector) = random.f32(width, 0.0, 1.0 / (width as f64).sqrt());
        let (x, vector, found) = (gpu.given(&x), gpu.given(&vector), gpu.poisoned(rows));
        gpu.steady(&[found.cast()], |stream, sms| gate::forward(stream, sms, x, vector, found));
        assert_close(&format!("{rows} × {width}"), &gpu.numbers(found), &weights(&exact, &exact_vector), F32);
        gpu.release();
    }
}

#[test]
fn gradients_of_rows_and_of_the_gate() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(96);
    for (rows, width) in SHAPES {
        let (x, exact) = random.bf16(rows * width, 1.0);
        let (vector, exact_vector) = random.f32(width, 0.0, 1.0 / (width as f64).sqrt());
        let exact_weights = weights(&exact, &exact_vector);
        let given: Vec<f32> = exact_weights.iter().map(|&weight| weight as f32).collect();
        let ((d_weights, exact_d_weights), (start, exact_start)) =
            (random.f32(rows, 0.0, 1.0), random.bf16(rows * width, 1.0));
        let (x, vector) = (gpu.given(&x), gpu.given(&vector));
        let (given, d_weights) = (gpu.given(&given), gpu.given(&d_weights));
        let (d_logits, dx) = (gpu.poisoned(rows), gpu.poisoned(rows * width));
        gpu.steady(&[d_logits.cast(), dx.cast()], |stream, sms| {
            dx.write(stream, &start)?;
            gate::input_gradient(stream, sms, (given, d_weights), vector, d_logits, dx)
        });
        let expected: Vec<f64> =
            exact_d_weights.iter().zip(&exact_weights).map(|(d, weight)| d * weight * (1.0 - weight)).collect();
        let what = format!("{rows} × {width}");
        assert_close(&what, &gpu.numbers(d_logits), &expected, F32);
        let mut expected_dx = exact_start;
        for (row, d) in expected_dx.chunks_mut(width).zip(&expected) {
            row.iter_mut().zip(&exact_vector).for_each(|(dx, gate)| *dx += d * gate);
        }
        assert_close(&what, &gpu.floats(dx), &expected_dx, BF16);

        let (start, mut expected_gate) = random.f32(width, 0.0, 1.0);
        let d_gate = gpu.poisoned(width);
        let scratch = gpu.poisoned(gate::gradient_scratch(rows, width));
        gpu.steady(&[d_gate.cast()], |stream, sms| {
            d_gate.write(stream, &start)?;
            gate::gradient(stream, sms, x, d_logits, d_gate, scratch)
        });
        for (row, d) in exact.chunks(width).zip(&expected) {
            expected_gate.iter_mut().zip(row).for_each(|(sum, x)| *sum += d * x);
        }
        assert_close(&what, &gpu.numbers(d_gate), &expected_gate, F32);
        gpu.release();
    }
}
