//! Cross-entropy, against the same in f64.

use dualweave::runtime::cuda::ops::loss;

use crate::gpu::{BF16, F32, Random, assert_close, gpu};

#[test]
fn losses_and_gradients() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(70);
    for (rows, vocabulary, deviation) in
        [(1, 8, 1.0), (7, 4104, 5.0), (300, 1000, 3.0), (5, 129_280, 2.0), (3, 64, 40.0)]
    {
        let (logits, exact) = random.f32(rows * vocabulary, 1.0, deviation);
        let targets: Vec<u32> = (0..rows).map(|_| (random.bits() % vocabulary as u64) as u32).collect();
        let scale = 0.25;
        let (mut expected, mut expected_losses) = (Vec::new(), Vec::new());
        for (row, &target) in exact.chunks(vocabulary).zip(&targets) {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = largest + row.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln();
            let start = expected.len();
            expected.extend(row.iter().map(|logit| (logit - log_sum).exp() * scale));
            expected[start + target as usize] -= scale;
            expected_losses.push(log_sum - row[target as usize]);
        }
        let (logits, targets) = (gpu.given(&logits), gpu.given(&targets));
        let (d_logits, losses) = (gpu.poisoned(rows * vocabulary), gpu.poisoned(rows));
        gpu.steady(&[d_logits.cast(), losses.cast()], |stream, sms| {
            loss::cross_entropy(stream, sms, logits, targets, scale as f32, d_logits, losses)
        });
        let what = format!("{rows} × {vocabulary}");
        assert_close(&what, &gpu.numbers(losses), &expected_losses, F32);
        // Few elements of a gradient are large: a row's mean says little of one element.
        assert_close(&what, &gpu.floats(d_logits), &expected, BF16);
        let largest = gpu.floats(d_logits).into_iter().zip(&expected).map(|(d, e)| (d - e).abs() / e.abs().max(1e-6));
        assert!(largest.fold(0.0, f64::max) < 0.01, "{what}: every element");

        let total = gpu.poisoned(1);
        loss::sum(&gpu.stream, losses, total).expect("launched");
        assert_close("sum", &gpu.numbers(total), &[expected_losses.iter().sum()], F32);
    }
}
