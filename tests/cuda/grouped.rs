//! Products of experts, against sums in f64: uneven experts, some without rows; rows before the first offset and behind the last one
//! must stay as they are, and so must what lies between the weights of two experts.

use dualweave::runtime::cuda::ops::grouped::{self, Experts};
use dualweave::runtime::cuda::{Bf16, Slice};

use crate::gpu::{BF16, Gpu, Random, assert_close, gpu};
use crate::product::{FP32, product};

/// Rows that belong to no expert, in front of the first one's and behind the last one's.
const OUTSIDE: (usize, usize) = (5, 40);
/// Elements between the weights of two experts.
const GAP: usize = 24;

/// A case: rows of each expert, inputs, outputs.
type Case = (Vec<usize>, usize, usize);

fn cases() -> Vec<Case> {
    vec![
        (vec![1], 8, 8),
        (vec![0, 1, 130, 0, 37, 256, 0], 136, 200),
        (vec![128, 300], 520, 264),
        // More experts than a warp has lanes, twice over.
        ((0..70).map(|expert| expert * 7 % 5).collect(), 32, 40),
        // More row tiles than are walked in one band.
        (vec![3, 2100], 64, 264),
        (vec![50, 0, 9], 72, 2200),
    ]
}

/// Offsets of the rows, how many rows there are with those outside, and for each expert the rows that are its.
fn offsets(rows: &[usize]) -> (Vec<u32>, usize, Vec<std::ops::Range<usize>>) {
    let mut offsets = vec![OUTSIDE.0 as u32];
    let mut ranges = Vec::new();
    for &rows in rows {
        let first = *offsets.last().expect("the first one's") as usize;
        ranges.push(first..first + rows);
        offsets.push((first + rows) as u32);
    }
    let all = *offsets.last().expect("the first one's") as usize + OUTSIDE.1;
    (offsets, all, ranges)
}

/// Random rows, NaN where they belong to no expert.
fn rows(random: &mut Random, all: usize, width: usize) -> (Vec<Bf16>, Vec<f64>) {
    let (mut values, exact) = random.bf16(all * width, 1.0);
    values[..OUTSIDE.0 * width].fill(Bf16(0xffff));
    values[(all - OUTSIDE.1) * width..].fill(Bf16(0xffff));
    (values, exact)
}

/// Runs `launch` with several SM budgets; checks that results are the same bits and that rows outside are untouched, and returns
/// those inside.
fn assert_rows(
    gpu: &mut Gpu,
    what: &str,
    all: usize,
    width: usize,
    launch: impl Fn(&Gpu, u32, Slice<Bf16>),
) -> Vec<f64> {
    let mut first: Option<Vec<Bf16>> = None;
    for sms in [132, 7, 1] {
        let y = gpu.poisoned::<Bf16>(all * width);
        launch(gpu, sms, y);
        let results = y.read(&gpu.stream).expect("results");
        let first = first.get_or_insert_with(|| results.clone());
        assert!(*first == results, "{what}: other bits with {sms} SMs");
    }
    let results = first.expect("three runs");
    let inside = OUTSIDE.0 * width..(all - OUTSIDE.1) * width;
    for (index, value) in results.iter().enumerate() {
        assert!(inside.contains(&index) || value.0 == 0xffff, "{what}: row {} is of no expert", index / width);
    }
    results[inside].iter().map(|value| f64::from(value.to_f32())).collect()
}

/// Random weights of experts with gaps, on the GPU and exact.
fn weights(gpu: &mut Gpu, random: &mut Random, count: usize, size: usize) -> (Experts<Bf16>, Vec<f64>) {
    let stride = size + GAP;
    let (mut values, exact) = random.bf16(count * stride, 1.0);
    values.chunks_exact_mut(stride).for_each(|expert| expert[size..].fill(Bf16(0xffff)));
    (Experts { first: gpu.given(&values), stride, count }, exact)
}

#[test]
fn forward_is_the_sum_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(30);
    for (counts, inputs, outputs) in cases() {
        let what = format!("y of {} experts, {inputs} to {outputs}", counts.len());
        let (offsets, all, ranges) = offsets(&counts);
        let (x, x_exact) = rows(&mut random, all, inputs);
        let (w, w_exact) = weights(&mut gpu, &mut random, counts.len(), outputs * inputs);
        let (x, offsets) = (gpu.given(&x), gpu.given(&offsets));
        let mut expected = Vec::new();
        for (expert, rows) in ranges.into_iter().enumerate() {
            expected.extend(product(
                (rows.len(), outputs, inputs),
                |row, input| x_exact[(rows.start + row) * inputs + input],
                |input, output| w_exact[expert * w.stride + output * inputs + input],
            ));
        }
        let results = assert_rows(&mut gpu, &what, all, outputs, |gpu, sms, y| {
            grouped::forward(&gpu.stream, sms, x, w, offsets, y, (inputs, outputs)).expect("launched");
        });
        assert_close(&what, &results, &expected, BF16);
    }
}

#[test]
fn input_gradient_is_the_sum_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(31);
    for (counts, inputs, outputs) in cases() {
        let what = format!("dx of {} experts, {inputs} to {outputs}", counts.len());
        let (offsets, all, ranges) = offsets(&counts);
        let (dy, dy_exact) = rows(&mut random, all, outputs);
        let (w, w_exact) = weights(&mut gpu, &mut random, counts.len(), outputs * inputs);
        let (dy, offsets) = (gpu.given(&dy), gpu.given(&offsets));
        let mut expected = Vec::new();
        for (expert, rows) in ranges.into_iter().enumerate() {
            expected.extend(product(
                (rows.len(), inputs, outputs),
                |row, output| dy_exact[(rows.start + row) * outputs + output],
                |output, input| w_exact[expert * w.stride + output * inputs + input],
            ));
        }
        let results = assert_rows(&mut gpu, &what, all, inputs, |gpu, sms, dx| {
            grouped::input_gradient(&gpu.stream, sms, dy, w, offsets, dx, (inputs, outputs)).expect("launched");
        });
        assert_close(&what, &results, &expected, BF16);
    }
}

#[test]
fn weight_gradient_is_the_sum_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(32);
    for (counts, inputs, outputs) in cases() {
        let what = format!("dW of {} experts, {inputs} to {outputs}", counts.len());
        let (offsets, all, ranges) = offsets(&counts);
        let (x, x_exact) = rows(&mut random, all, inputs);
        let (dy, dy_exact) = rows(&mut random, all, outputs);
        let (x, dy, offsets) = (gpu.given(&x), gpu.given(&dy), gpu.given(&offsets));
        let (size, count) = (outputs * inputs, counts.len());
        let stride = size + GAP;
        let (before, before_exact) = random.f32(count * stride, 0.0, 1.0);
        let mut runs = Vec::new();
        for sms in [132, 7, 1] {
            let first = gpu.given(&before);
            let dw = Experts { first, stride, count };
            grouped::weight_gradient(&gpu.stream, sms, x, dy, offsets, dw, (inputs, outputs)).expect("launched");
            runs.push(first.read(&gpu.stream).expect("gradients"));
        }
        assert!(runs.iter().all(|run| *run == runs[0]), "{what}: other bits with fewer SMs");
        let (mut results, mut expected) = (Vec::new(), Vec::new());
        for (expert, rows) in ranges.into_iter().enumerate() {
            let own = expert * stride..expert * stride + size;
            let gap = own.end..own.end + GAP;
            assert_eq!(runs[0][gap.clone()], before[gap], "{what}: written behind expert {expert}");
            if rows.is_empty() {
                assert_eq!(runs[0][own.clone()], before[own], "{what}: expert {expert} has no rows");
                continue;
            }
            results.extend(runs[0][own.clone()].iter().map(|&value| f64::from(value)));
            let sums = product(
                (outputs, inputs, rows.len()),
                |output, row| dy_exact[(rows.start + row) * outputs + output],
                |row, input| x_exact[(rows.start + row) * inputs + input],
            );
            expected.extend(sums.into_iter().zip(&before_exact[own]).map(|(sum, before)| before + sum));
        }
        assert_close(&what, &results, &expected, FP32);
    }
}

#[test]
fn experts_without_any_rows_change_nothing() {
    let Some(mut gpu) = gpu() else { return };
    let offsets = gpu.given(&[3u32; 5]);
    let (x, w) = (gpu.poisoned::<Bf16>(8 * 64), gpu.poisoned::<Bf16>(4 * 64 * 64));
    let y = gpu.poisoned::<Bf16>(8 * 64);
    let w = Experts { first: w, stride: 64 * 64, count: 4 };
    grouped::forward(&gpu.stream, 132, x, w, offsets, y, (64, 64)).expect("launched");
    grouped::input_gradient(&gpu.stream, 132, x, w, offsets, y, (64, 64)).expect("launched");
    assert!(y.read(&gpu.stream).expect("rows").iter().all(|value| value.0 == 0xffff));
    let before = Random::new(33).f32(4 * 64 * 64, 0.0, 1.0).0;
    let dw = Experts { first: gpu.given(&before), stride: 64 * 64, count: 4 };
    grouped::weight_gradient(&gpu.stream, 132, x, x, offsets, dw, (64, 64)).expect("launched");
    assert_eq!(dw.first.read(&gpu.stream).expect("gradients"), before);
}
