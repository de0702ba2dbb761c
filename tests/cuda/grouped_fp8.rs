//! FP8 products of experts, against sums in f64 of what the host rounds: quantised here, multiplied, compared. Uneven experts, some without
//! rows; rows of no expert must stay as they are, and so must what lies between the weights of two experts.

use std::ops::Range;

use dualweave::runtime::cuda::ops::grouped::Experts;
use dualweave::runtime::cuda::ops::quantise::{self, Groups, Scale, Source, Weights};
use dualweave::runtime::cuda::ops::{Rows, grouped_fp8};
use dualweave::runtime::cuda::product::Tiled;
use dualweave::runtime::cuda::{Bf16, Slice};
use dualweave::runtime::host::precision::Tiles;

use crate::gpu::{BF16, Gpu, Random, assert_close, gpu};
use crate::product::product;
use crate::quantise::{SCALES, has_fp8, host, room};

/// Tensor cores add up FP8 products of a tile in few bits: 14 on Hopper where `wgmma` does (DeepSeek-V3 report, section 3.3.2).
const FP8: f64 = 1e-3;

/// Elements between the weights of two experts.
const GAP: usize = 24;

/// Rows of each expert, rows in front and behind, inputs, outputs. Without experts where there is only one and none outside.
const CASES: [(&[usize], [usize; 2], usize, usize); 7] = [
    (&[1], [0, 0], 16, 16),
    (&[70], [0, 0], 272, 144),
    (&[256], [0, 0], 128, 384),
    (&[0, 1, 130, 0, 37, 256, 0], [5, 40], 144, 208),
    (&[128, 300], [0, 3], 528, 272),
    // More experts than a warp has lanes, twice over.
    (&[3; 70], [1, 0], 32, 48),
    // More row tiles than are walked in one band.
    (&[3, 2100], [0, 0], 64, 272),
];

struct Case {
    what: String,
    groups: Groups,
    ranges: Vec<Range<usize>>,
    inputs: usize,
    outputs: usize,
}

fn cases(gpu: &mut Gpu) -> Vec<Case> {
    let case = |(experts, [front, behind], inputs, outputs): (&[usize], [usize; 2], usize, usize)| {
        let mut offsets = vec![front as u32];
        experts.iter().for_each(|&rows| offsets.push(offsets[offsets.len() - 1] + rows as u32));
        let most = offsets[offsets.len() - 1] as usize + behind;
        let one = experts.len() == 1 && front + behind == 0;
        let groups = if one { Groups::one(most) } else { Groups { most, offsets: gpu.given(&offsets) } };
        let ranges = offsets.windows(2).map(|ends| ends[0] as usize..ends[1] as usize).collect();
        let what = format!("{} experts, {inputs} to {outputs}", experts.len());
        Case { what, groups, ranges, inputs, outputs }
    };
    CASES.map(case).into()
}

/// Rows in FP8, and what they are.
fn rows(gpu: &mut Gpu, random: &mut Random, most: usize, width: usize, scale: Scale) -> (Tiled, Vec<f64>) {
    let (values, exact) = random.bf16(most * width, 1.0);
    let (x, read) = (gpu.given(&values), room(gpu, most, width));
    quantise::rows(&gpu.stream, 132, x, read, width, Rows::exactly(most), scale).expect("launched");
    (read, host(most, width, &exact, Tiles::Rows, scale))
}

/// Weights of experts in FP8, and what they are, one behind the other.
fn weights(gpu: &mut Gpu, random: &mut Random, case: &Case) -> (Weights, Vec<f64>) {
    let (count, outputs, inputs) = (case.groups.count(), case.outputs, case.inputs);
    let (size, stride) = (outputs * inputs, outputs * inputs + GAP);
    let (values, exact) = random.bf16(count * stride, 1.0);
    let memory = gpu.poisoned(Weights::bytes(count, outputs, inputs));
    let to = Weights::at(memory, count, outputs, inputs);
    let w = Experts { first: gpu.given(&values), stride, count };
    quantise::blocks(&gpu.stream, 132, w, &to).expect("launched");
    let rounded =
        exact.chunks(stride).flat_map(|w| host(outputs, inputs, &w[..size], Tiles::Blocks, Scale::Exact)).collect();
    (to, rounded)
}

/// Whether this GPU has FP8.
fn runs(gpu: &mut Gpu) -> bool {
    let x: Slice<Bf16> = gpu.poisoned(128);
    let to = room(gpu, 1, 128);
    let launched = quantise::rows(&gpu.stream, 1, x, to, 128, Rows::exactly(1), Scale::Exact);
    has_fp8(gpu, launched.err().map(|error| error.to_string()))
}

/// Compares rows of experts with `expected`; the others are still `before`.
fn assert_rows(gpu: &Gpu, case: &Case, y: Slice<Bf16>, before: &[f64], expected: &[f64], width: usize) {
    let results = gpu.floats(y);
    let inside = case.ranges[0].start * width..case.ranges[case.ranges.len() - 1].end * width;
    for (index, (result, before)) in results.iter().zip(before).enumerate() {
        assert!(inside.contains(&index) || result == before, "{}: row {} is of no expert", case.what, index / width);
    }
    assert_close(&case.what, &results[inside], expected, BF16);
}

#[test]
fn forward_is_the_sum_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    if !runs(&mut gpu) {
        return;
    }
    let mut random = Random::new(110);
    for case in cases(&mut gpu) {
        let (inputs, outputs, groups) = (case.inputs, case.outputs, case.groups);
        let (x, x_exact) = rows(&mut gpu, &mut random, groups.most, inputs, Scale::Exact);
        let (w, w_exact) = weights(&mut gpu, &mut random, &case);
        let mut expected = Vec::new();
        for (expert, rows) in case.ranges.iter().enumerate() {
            expected.extend(product(
                (rows.len(), outputs, inputs),
                |row, input| x_exact[(rows.start + row) * inputs + input],
                |input, output| w_exact[(expert * outputs + output) * inputs + input],
            ));
        }
        let (before, before_exact) = random.bf16(groups.most * outputs, 1.0);
        let y = gpu.given(&before);
        gpu.steady(&[y.cast()], |stream, sms| {
            y.write(stream, &before)?;
            grouped_fp8::forward(stream, sms, x, &w, groups, y, false)
        });
        assert_rows(&gpu, &case, y, &before_exact, &expected, outputs);
        let first = case.ranges[0].start * outputs;
        expected.iter_mut().zip(&before_exact[first..]).for_each(|(sum, before)| *sum += before);
        y.write(&gpu.stream, &before).expect("values are copied");
        grouped_fp8::forward(&gpu.stream, 132, x, &w, groups, y, true).expect("launched");
        assert_rows(&gpu, &case, y, &before_exact, &expected, outputs);
    }
}

#[test]
fn input_gradient_is_the_sum_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    if !runs(&mut gpu) {
        return;
    }
    let mut random = Random::new(111);
    for case in cases(&mut gpu) {
        let (inputs, outputs, groups) = (case.inputs, case.outputs, case.groups);
        let (dy, dy_exact) = rows(&mut gpu, &mut random, groups.most, outputs, Scale::PowerOfTwo);
        let (w, w_exact) = weights(&mut gpu, &mut random, &case);
        let mut expected = Vec::new();
        for (expert, rows) in case.ranges.iter().enumerate() {
            expected.extend(product(
                (rows.len(), inputs, outputs),
                |row, output| dy_exact[(rows.start + row) * outputs + output],
                |output, input| w_exact[(expert * outputs + output) * inputs + input],
            ));
        }
        let (before, before_exact) = random.bf16(groups.most * inputs, 1.0);
        let dx = gpu.given(&before);
        gpu.steady(&[dx.cast()], |stream, sms| {
            dx.write(stream, &before)?;
            grouped_fp8::input_gradient(stream, sms, dy, &w, groups, dx, false)
        });
        assert_rows(&gpu, &case, dx, &before_exact, &expected, inputs);
    }
}

#[test]
fn weight_gradient_is_the_sum_in_f64() {
    let Some(mut gpu) = gpu() else { return };
    if !runs(&mut gpu) {
        return;
    }
    let mut random = Random::new(112);
    for (case, scale) in cases(&mut gpu).into_iter().zip(SCALES.into_iter().cycle()) {
        let (inputs, outputs, groups, count) = (case.inputs, case.outputs, case.groups, case.groups.count());
        let (x, x_exact) = rows(&mut gpu, &mut random, groups.most, inputs, scale);
        let (dy_values, dy_exact) = random.bf16(groups.most * outputs, 1.0);
        let dy = gpu.given(&dy_values);
        let (xt, dyt) = (room(&mut gpu, inputs, groups.columns()), room(&mut gpu, outputs, groups.columns()));
        let stream = &gpu.stream;
        quantise::columns(stream, 132, Source::Quantised(x), xt, inputs, groups, scale).expect("launched");
        quantise::columns(stream, 132, Source::Values(dy), dyt, outputs, groups, scale).expect("launched");

        let (size, stride) = (outputs * inputs, outputs * inputs + GAP);
        let (before, before_exact) = random.f32(count * stride, 0.0, 1.0);
        let dw = Experts { first: gpu.given(&before), stride, count };
        gpu.steady(&[dw.first.cast()], |stream, sms| {
            dw.first.write(stream, &before)?;
            grouped_fp8::weight_gradient(stream, sms, xt, dyt, groups, dw, (inputs, outputs))
        });
        let results = dw.first.read(&gpu.stream).expect("gradients");
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        for (expert, rows) in case.ranges.iter().enumerate() {
            let own = expert * stride..expert * stride + size;
            let gap = own.end..own.end + GAP;
            assert_eq!(results[gap.clone()], before[gap], "{}: written behind expert {expert}", case.what);
            if rows.is_empty() {
                assert_eq!(results[own.clone()], before[own], "{}: expert {expert} has no rows", case.what);
                continue;
            }
            let read = |exact: &[f64], width: usize| {
                host(rows.len(), width, &exact[rows.start * width..rows.end * width], Tiles::Columns, scale)
            };
            let (x, dy) = (read(&x_exact, inputs), read(&dy_exact, outputs));
            let sums = product(
                (outputs, inputs, rows.len()),
                |output, row| dy[row * outputs + output],
                |row, input| x[row * inputs + input],
            );
            found.extend(results[own.clone()].iter().map(|&value| f64::from(value)));
            expected.extend(sums.into_iter().zip(&before_exact[own]).map(|(sum, before)| before + sum));
        }
        assert_close(&case.what, &found, &expected, FP8);
    }
}
