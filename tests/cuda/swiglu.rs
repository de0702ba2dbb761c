//! SwiGLU, against the same in f64.

use dualweave::runtime::cuda::Slice;
use dualweave::runtime::cuda::ops::{Rows, swiglu};

use crate::gpu::{BF16, F32, Random, assert_close, gpu};

/// By row and column: silu of the gate, its slope, and up.
fn parts(gate_up: &[f64], width: usize) -> Vec<[f64; 3]> {
    let pairs = gate_up.chunks(2 * width).flat_map(|row| row[..width].iter().zip(&row[width..]));
    let part = |(&gate, &up): (&f64, &f64)| {
        let sigma = 1.0 / (1.0 + (-gate).exp());
        [gate * sigma, sigma * (1.0 + gate * (1.0 - sigma)), up]
    };
    pairs.map(part).collect()
}

/// Rows that there is room for, rows that there are, width.
const CASES: [(usize, usize, usize); 5] = [(1, 1, 8), (70, 33, 264), (64, 0, 64), (300, 300, 2048), (9, 9, 18432)];

#[test]
fn forward_with_and_without_weights() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(50);
    for (most, there, width) in CASES {
        let ((x, exact), (weights, exact_weights)) = (random.bf16(most * 2 * width, 2.0), random.f32(most, 0.5, 0.2));
        let (x, weights, count) = (gpu.given(&x), gpu.given(&weights), gpu.given(&[there as u32]));
        let y = gpu.poisoned(most * width);
        let parts = parts(&exact, width);
        for weighted in [false, true] {
            let weights = if weighted { weights } else { Slice::none() };
            gpu.steady(&[y.cast()], |stream, sms| {
                swiglu::forward(stream, sms, x, weights, y, width, Rows { most, count })
            });
            let weight = |index: usize| if weighted { exact_weights[index / width] } else { 1.0 };
            let expected: Vec<f64> =
                parts.iter().enumerate().map(|(index, [silu, _, up])| weight(index) * silu * up).collect();
            let (results, end) = (gpu.floats(y), there * width);
            assert_close(&format!("{there} of {most} × {width}"), &results[..end], &expected[..end], BF16);
            assert!(results[end..].iter().all(|value| value.is_nan()), "rows behind the count are not written");
            swiglu::forward(&gpu.stream, 3, x, weights, y, width, Rows { most, count: Slice::none() })
                .expect("launched");
            assert_close(&format!("{most} × {width}"), &gpu.floats(y), &expected, BF16);
        }
    }
}

#[test]
fn gradients_with_and_without_weights() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(51);
    for (most, there, width) in CASES {
        let ((x, exact), (weights, exact_weights)) = (random.bf16(most * 2 * width, 2.0), random.f32(most, 0.5, 0.2));
        let (dy, exact_dy) = random.bf16(most * width, 1.0);
        let (gate_up, dy, count) = (gpu.given(&x), gpu.given(&dy), gpu.given(&[there as u32]));
        let (all_weights, all_d_weights) = (gpu.given(&weights), gpu.poisoned(most));
        let dx = gpu.poisoned(most * 2 * width);
        let parts = parts(&exact, width);
        for weighted in [false, true] {
            let (weights, d_weights) =
                if weighted { (all_weights, all_d_weights) } else { (Slice::none(), Slice::none()) };
            gpu.steady(&[dx.cast(), all_d_weights.cast()], |stream, sms| {
                let rows = Rows { most, count };
                swiglu::input_gradient(stream, sms, gate_up, weights, dy, dx, d_weights, width, rows)
            });
            let (mut expected, mut expected_weights) = (vec![0.0; there * 2 * width], vec![0.0; there]);
            for row in 0..there {
                let weight = if weighted { exact_weights[row] } else { 1.0 };
                for column in 0..width {
                    let ([silu, slope, up], d) = (parts[row * width + column], exact_dy[row * width + column]);
                    expected[row * 2 * width + column] = weight * d * up * slope;
                    expected[row * 2 * width + width + column] = weight * d * silu;
                    expected_weights[row] += d * silu * up;
                }
            }
            let (results, results_weights) = (gpu.floats(dx), gpu.numbers(all_d_weights));
            let end = expected.len();
            assert_close(&format!("{there} of {most} × {width}"), &results[..end], &expected, BF16);
            assert!(results[end..].iter().all(|value| value.is_nan()), "rows behind the count are not written");
            if weighted {
                assert_close("weights", &results_weights[..there], &expected_weights, F32);
                assert!(results_weights[there..].iter().all(|value| value.is_nan()), "nor are their weights");
            }
        }
        let first = dx.read(&gpu.stream).expect("results");
        let rows = Rows { most, count };
        swiglu::input_gradient(&gpu.stream, 9, gate_up, all_weights, dy, gate_up, all_d_weights, width, rows)
            .expect("launched");
        let end = there * 2 * width;
        assert!(gate_up.read(&gpu.stream).expect("results")[..end] == first[..end], "in place");
    }
}
