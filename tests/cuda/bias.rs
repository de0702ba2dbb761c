//! Biases, against the same in f64.

use dualweave::runtime::cuda::ops::bias;

use crate::gpu::{BF16, F32, Random, assert_close, gpu};

#[test]
fn a_bias_is_added_to_every_row() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(20);
    for (rows, width) in [(1, 8), (65, 264), (100, 7168)] {
        let ((y, exact), (bias, exact_bias)) = (random.bf16(rows * width, 1.0), random.f32(width, 0.0, 1.0));
        let (result, bias) = (gpu.poisoned(rows * width), gpu.given(&bias));
        gpu.steady(&[result.cast()], |stream, sms| {
            result.write(stream, &y)?;
            bias::add(stream, sms, result, bias)
        });
        let expected = exact.chunks(width).flat_map(|row| row.iter().zip(&exact_bias).map(|(y, bias)| y + bias));
        assert_close(&format!("{rows} × {width}"), &gpu.floats(result), &expected.collect::<Vec<_>>(), BF16);
    }
}

#[test]
fn its_gradient_is_the_sum_of_rows() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(21);
    for (rows, width) in [(1, 8), (64, 256), (65, 264), (1000, 2048), (4096, 40)] {
        let ((dy, exact), (start, exact_start)) = (random.bf16(rows * width, 1.0), random.f32(width, 0.0, 1.0));
        let (dy, d_bias) = (gpu.given(&dy), gpu.poisoned(width));
        let scratch = gpu.poisoned(bias::gradient_scratch(rows, width));
        gpu.steady(&[d_bias.cast()], |stream, sms| {
            d_bias.write(stream, &start)?;
            bias::gradient(stream, sms, dy, d_bias, scratch)
        });
        let mut expected = exact_start;
        exact.chunks(width).for_each(|row| expected.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy));
        assert_close(&format!("{rows} × {width}"), &gpu.numbers(d_bias), &expected, F32);
    }
}
