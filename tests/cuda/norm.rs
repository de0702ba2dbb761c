//! RMSNorm, against the host's.

use dualweave::runtime::cuda::ops::norm;
use dualweave::runtime::host::Matrix;
use dualweave::runtime::host::layers::rmsnorm::RmsNorm;

use crate::gpu::{BF16, F32, Random, assert_close, gpu};

#[test]
fn forward_is_the_hosts() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(1);
    for (rows, width, stride) in [(1, 8, 8), (33, 256, 256), (300, 512, 576), (64, 7168, 7168)] {
        let (x, exact) = random.bf16(rows * stride, 1.5);
        let (gain, exact_gain) = random.f32(width, 1.0, 0.3);
        let (x, gain, y) = (gpu.given(&x), gpu.given(&gain), gpu.poisoned(rows * width));
        norm::forward(&gpu.stream, 132, (x, stride), gain, y, 1e-6).expect("launched");
        let mut host = RmsNorm::<f64>::new(width);
        host.gain.values = Matrix::new(1, width, exact_gain);
        let read = exact.chunks_exact(stride).flat_map(|row| &row[..width]).copied().collect();
        let (expected, _) = host.forward(1e-6, None, Matrix::new(rows, width, read));
        assert_close(&format!("{rows} × {width}"), &gpu.floats(y), expected.values(), BF16);
    }
}

/// Gradients of the input and of the gain, by the host.
fn host_gradients(width: usize, gain: &[f64], x: Vec<f64>, dy: Vec<f64>) -> (Vec<f64>, Vec<f64>) {
    let rows = x.len() / width;
    let mut host = RmsNorm::<f64>::new(width);
    host.gain.values = Matrix::new(1, width, gain.to_vec());
    let (_, saved) = host.forward(1e-6, None, Matrix::new(rows, width, x));
    let (dx, needed) = host.input_gradient(None, saved, &Matrix::new(rows, width, dy));
    let mut d_gain = RmsNorm::<f64>::new(width);
    d_gain.gain.values.values_mut().fill(0.0);
    d_gain.accumulate(None, &needed);
    (dx.values().to_vec(), d_gain.gain.values.values().to_vec())
}

#[test]
fn gradients_are_the_hosts() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(2);
    let shapes = [(1, 8, 8, 8), (33, 256, 264, 256), (300, 512, 576, 640), (65, 520, 520, 528), (64, 7168, 7168, 7168)];
    for (rows, width, x_stride, dx_stride) in shapes {
        let (x, exact) = random.bf16(rows * x_stride, 1.5);
        let (dy, exact_dy) = random.bf16(rows * width, 0.3);
        let (gain, exact_gain) = random.f32(width, 1.0, 0.3);
        let (add, exact_add) = random.bf16(rows * width, 0.5);
        let read = exact.chunks_exact(x_stride).flat_map(|row| &row[..width]).copied().collect();
        let (mut expected, expected_gain) = host_gradients(width, &exact_gain, read, exact_dy);
        let (x, dy, gain, add) = (gpu.given(&x), gpu.given(&dy), gpu.given(&gain), gpu.given(&add));

        let dx = gpu.poisoned(rows * dx_stride);
        gpu.steady(&[dx.cast()], |stream, sms| {
            norm::input_gradient(stream, sms, (x, x_stride), gain, dy, (dx, dx_stride), None, 1e-6)
        });
        let results = gpu.floats(dx);
        let written: Vec<f64> = results.chunks_exact(dx_stride).flat_map(|row| &row[..width]).copied().collect();
        assert_close(&format!("{rows} × {width}"), &written, &expected, BF16);
        let between = results.chunks_exact(dx_stride).flat_map(|row| &row[width..]);
        assert!(between.into_iter().all(|value| value.is_nan()), "nothing is written between rows");

        expected.iter_mut().zip(&exact_add).for_each(|(to, add)| *to += add);
        norm::input_gradient(&gpu.stream, 9, (x, x_stride), gain, dy, (add, width), Some(add), 1e-6).expect("launched");
        assert_close(&format!("{rows} × {width}, added in place"), &gpu.floats(add), &expected, BF16);

        let (start, exact_start) = random.f32(width, 0.0, 1.0);
        let expected: Vec<f64> = exact_start.iter().zip(&expected_gain).map(|(start, sum)| start + sum).collect();
        let (d_gain, scratch) = (gpu.poisoned(width), gpu.poisoned(norm::gain_gradient_scratch(rows, width)));
        gpu.steady(&[d_gain.cast()], |stream, sms| {
            d_gain.write(stream, &start)?;
            norm::gain_gradient(stream, sms, (x, x_stride), dy, d_gain, scratch, 1e-6)
        });
        assert_close(&format!("gain, {rows} × {width}"), &gpu.numbers(d_gain), &expected, F32);
    }
}
