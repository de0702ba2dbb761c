//! Biases of routed experts, against the same in f64.

use dualweave::runtime::cuda::Slice;
use dualweave::runtime::cuda::ops::expert_bias;
use dualweave::runtime::cuda::ops::grouped::Experts;

use crate::gpu::{BF16, F32, Gpu, Random, assert_close, gpu};

/// Rows of each expert, rows behind them that there is room for, and their width.
const SHAPES: [(&[usize], usize, usize); 4] =
    [(&[1], 0, 8), (&[3, 0, 70, 1], 5, 264), (&[0, 0, 9, 0], 3, 40), (&[300, 17, 0, 0, 64, 8, 1, 129], 50, 2048)];

/// Biases of experts that stand this far apart from each other's ends.
const GAP: usize = 24;

struct Case {
    experts: Vec<usize>,
    rows: usize,
    width: usize,
    values: Vec<dualweave::runtime::cuda::Bf16>,
    exact: Vec<f64>,
    biases: (Vec<f32>, Vec<f64>),
    weights: (Vec<f32>, Vec<f64>),
    stride: usize,
}

impl Case {
    fn new(random: &mut Random, (experts, behind, width): (&[usize], usize, usize)) -> Self {
        let (rows, stride) = (experts.iter().sum::<usize>() + behind, width + GAP);
        let (values, exact) = random.bf16(rows * width, 1.0);
        let biases = random.f32((experts.len() - 1) * stride + width, 0.0, 1.0);
        let weights = random.f32(rows, 0.5, 0.3);
        // The expert of each row.
        let of: Vec<usize> = experts.iter().enumerate().flat_map(|(e, &rows)| vec![e; rows]).collect();
        Self { experts: of, rows, width, values, exact, biases, weights, stride }
    }

    fn offsets(&self, gpu: &mut Gpu, count: usize) -> Slice<u32> {
        let before = |expert: usize| self.experts.iter().filter(|&&of| of < expert).count() as u32;
        gpu.given(&(0..=count).map(before).collect::<Vec<_>>())
    }

    fn bias(&self, row: usize) -> &[f64] {
        &self.biases.1[self.experts[row] * self.stride..][..self.width]
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.exact[row * self.width..][..self.width]
    }
}

#[test]
fn biases_are_added_by_expert() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(90);
    for (number, shape) in SHAPES.into_iter().enumerate() {
        let case = Case::new(&mut random, shape);
        let (offsets, count) = (case.offsets(&mut gpu, shape.0.len()), shape.0.len());
        let biases = Experts { first: gpu.given(&case.biases.0), stride: case.stride, count };
        for weighed in [true, false] {
            let weights = if weighed { gpu.given(&case.weights.0) } else { Slice::none() };
            let y = gpu.poisoned(case.rows * case.width);
            gpu.steady(&[y.cast()], |stream, sms| {
                y.write(stream, &case.values)?;
                expert_bias::add(stream, sms, y, (biases, weights), offsets, case.width)
            });
            // Rows behind the experts' are as they were.
            let mut expected = case.exact.clone();
            for row in 0..case.experts.len() {
                let weight = if weighed { case.weights.1[row] } else { 1.0 };
                let to = &mut expected[row * case.width..][..case.width];
                to.iter_mut().zip(case.bias(row)).for_each(|(y, bias)| *y += weight * bias);
            }
            assert_close(&format!("{number}, weighed: {weighed}"), &gpu.floats(y), &expected, BF16);
        }
        gpu.release();
    }
}

#[test]
fn gradients_of_biases_and_weights() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(91);
    for (number, shape) in SHAPES.into_iter().enumerate() {
        let case = Case::new(&mut random, shape);
        let (offsets, count) = (case.offsets(&mut gpu, shape.0.len()), shape.0.len());
        let biases = Experts { first: gpu.given(&case.biases.0), stride: case.stride, count };
        let dy = gpu.given(&case.values);
        let (start, exact_start) = random.f32(case.rows, 0.0, 1.0);
        let d_weights = gpu.poisoned(case.rows);
        gpu.steady(&[d_weights.cast()], |stream, sms| {
            d_weights.write(stream, &start)?;
            expert_bias::weights_gradient(stream, sms, dy, (biases, d_weights), offsets, case.width)
        });
        let mut expected = exact_start;
        for (row, sum) in expected.iter_mut().enumerate().take(case.experts.len()) {
            *sum += case.row(row).iter().zip(case.bias(row)).map(|(dy, bias)| dy * bias).sum::<f64>();
        }
        assert_close(&format!("{number}: weights"), &gpu.numbers(d_weights), &expected, F32);

        for weighed in [true, false] {
            let weights = if weighed { gpu.given(&case.weights.0) } else { Slice::none() };
            let (start, mut expected) = random.f32(case.biases.0.len(), 0.0, 1.0);
            let d_biases = gpu.poisoned(start.len());
            let gradients = Experts { first: d_biases, stride: case.stride, count };
            gpu.steady(&[d_biases.cast()], |stream, sms| {
                d_biases.write(stream, &start)?;
                expert_bias::gradient(stream, sms, (dy, weights), gradients, offsets, case.width)
            });
            // What stands between the experts' is as it was.
            for (row, &expert) in case.experts.iter().enumerate() {
                let weight = if weighed { case.weights.1[row] } else { 1.0 };
                let to = &mut expected[expert * case.stride..][..case.width];
                to.iter_mut().zip(case.row(row)).for_each(|(sum, dy)| *sum += weight * dy);
            }
            assert_close(&format!("{number}: biases, weighed: {weighed}"), &gpu.numbers(d_biases), &expected, F32);
        }
        gpu.release();
    }
}
