//! Matrix products with weights: `y = x Wᵀ + b`.

use std::borrow::Cow;

use crate::runtime::host::parameters::{Role, Tensor, parameters};
use crate::runtime::host::precision::{ProductFormats, Scale, Tiles, round, rounded};
use crate::runtime::host::product::product;
use crate::runtime::host::tensor::RowWise;
use crate::runtime::host::{Matrix, Real};

parameters! {
    /// A projection.
    pub struct Linear {
        /// Outputs × inputs.
        pub weight: Tensor<T>,
        /// One for each output.
        pub bias: Option<Tensor<T>>,
    }
}

/// The input of a product, as the product read it.
#[derive(Clone, Debug)]
pub struct Saved<T>(Matrix<T>);

/// What the weight gradient of a product needs: its input, as the product read it, and the gradient of its output.
#[derive(Clone, Debug)]
pub struct ForWeights<T> {
    input: Matrix<T>,
    output: Matrix<T>,
}

impl<T: Real> RowWise for Saved<T> {
    fn select(&self, rows: &[usize]) -> Self {
        Self(self.0.select(rows))
    }

    fn stacked(parts: &[&Self]) -> Self {
        Self(Matrix::below(&parts.iter().map(|part| &part.0).collect::<Vec<_>>()))
    }
}

impl<T: Real> RowWise for ForWeights<T> {
    fn select(&self, rows: &[usize]) -> Self {
        Self { input: self.input.select(rows), output: self.output.select(rows) }
    }

    fn stacked(parts: &[&Self]) -> Self {
        let stacked =
            |of: fn(&Self) -> &Matrix<T>| Matrix::below(&parts.iter().map(|&part| of(part)).collect::<Vec<_>>());
        Self { input: stacked(|part| &part.input), output: stacked(|part| &part.output) }
    }
}

impl<T: Real> Linear<T> {
    /// All zero.
    pub fn new(inputs: usize, outputs: usize, bias: bool) -> Self {
        let bias = bias.then(|| Tensor::vector(Role::Bias, outputs));
        Self { weight: Tensor::weight(outputs, inputs), bias }
    }

    /// `x`: tokens × inputs; the result: tokens × outputs.
    pub fn forward(&self, formats: ProductFormats, x: &Matrix<T>) -> (Matrix<T>, Saved<T>) {
        let (mut y, saved) = forward(formats, &self.weight, x);
        if let Some(bias) = &self.bias {
            (0..y.rows()).for_each(|row| add(y.row_mut(row), bias.values.values()));
            round(&mut y, formats.results, Tiles::Rows);
        }
        (y, saved)
    }

    /// From the gradient of the result to that of `x`.
    pub fn input_gradient(
        &self,
        formats: ProductFormats,
        saved: Saved<T>,
        dy: &Matrix<T>,
    ) -> (Matrix<T>, ForWeights<T>) {
        input_gradient(formats, &self.weight, saved, dy)
    }

    /// Adds to the gradients, which `self` has the place of.
    pub fn accumulate(&mut self, formats: ProductFormats, needed: &ForWeights<T>) {
        accumulate(formats, &mut self.weight, needed);
        if let Some(bias) = &mut self.bias {
            bias.accumulate(&needed.output.row_sum(), formats.gradients);
        }
    }
}

/// `x Wᵀ` for a weight that is no projection's own.
pub fn forward<T: Real>(formats: ProductFormats, weight: &Tensor<T>, x: &Matrix<T>) -> (Matrix<T>, Saved<T>) {
    let x = rounded(x, formats.inputs, Tiles::Rows, formats.activations);
    let mut y = product(x.view(), as_read(formats, weight).transposed());
    round(&mut y, formats.results, Tiles::Rows);
    (y, Saved(x))
}

/// From `dy` to `dy W`.
pub fn input_gradient<T: Real>(
    formats: ProductFormats,
    weight: &Tensor<T>,
    Saved(input): Saved<T>,
    dy: &Matrix<T>,
) -> (Matrix<T>, ForWeights<T>) {
    let read = rounded(dy, formats.inputs, Tiles::Rows, formats.output_gradients);
    let mut dx = product(read.view(), as_read(formats, weight).view());
    round(&mut dx, formats.results, Tiles::Rows);
    (dx, ForWeights { input, output: dy.clone() })
}

/// Adds `dyᵀ x` to the gradient of the weight. In FP8 both are quantised in tiles along the tokens, as the product goes over them: `x`,
/// which is kept in FP8, once more; `dy` from what it was.
pub fn accumulate<T: Real>(formats: ProductFormats, gradient: &mut Tensor<T>, needed: &ForWeights<T>) {
    let input = rounded(&needed.input, formats.inputs, Tiles::Columns, formats.activations);
    let output = rounded(&needed.output, formats.inputs, Tiles::Columns, formats.output_gradients);
    gradient.accumulate(&product(output.transposed(), input.view()), formats.gradients);
}

/// A weight as a product reads it.
fn as_read<T: Real>(formats: ProductFormats, weight: &Tensor<T>) -> Cow<'_, Matrix<T>> {
    if formats.inputs.is_none() && formats.weights.is_none() {
        return Cow::Borrowed(&weight.values);
    }
    let mut read = rounded(&weight.values, formats.weights, Tiles::Blocks, Scale::Exact);
    if formats.inputs != formats.weights {
        round(&mut read, formats.inputs, Tiles::Blocks);
    }
    Cow::Owned(read)
}

fn add<T: Real>(to: &mut [T], from: &[T]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::job::model::Dtype;

    /// Values of many magnitudes.
    fn matrix(rows: usize, columns: usize, seed: f64) -> Matrix<f64> {
        let value =
            |index: usize| ((index as f64 + seed) * 0.61).sin() * ((index as f64 * 0.037 + seed).cos() * 3.0).exp();
        Matrix::new(rows, columns, (0..rows * columns).map(value).collect())
    }

    /// All numbers of e4m3 that are not negative (Micikevicius et al. 2022, table 1).
    fn e4m3() -> Vec<f64> {
        let subnormal = (0..8).map(|mantissa| f64::from(mantissa) / 8.0 * 2f64.powi(-6));
        let normal = (1..16).flat_map(|e| (0..8).map(move |m| (1.0 + f64::from(m) / 8.0) * 2f64.powi(e - 7)));
        subnormal.chain(normal).filter(|&value| value <= 448.0).collect()
    }

    /// Element by element: the largest of its tile, `high` × `wide`, gives the scale, and a search the number that is nearest.
    fn quantised(x: &Matrix<f64>, high: usize, wide: usize, scale: Scale) -> Matrix<f64> {
        let numbers = e4m3();
        let places = || (0..x.rows()).flat_map(|row| (0..x.columns()).map(move |column| (row, column)));
        let mut largest: BTreeMap<(usize, usize), f64> = BTreeMap::new();
        for (row, column) in places() {
            let tile = largest.entry((row / high, column / wide)).or_default();
            *tile = tile.max(x.row(row)[column].abs());
        }
        let element = |(row, column): (usize, usize)| {
            let exact = largest[&(row / high, column / wide)] / 448.0;
            let scale = match scale {
                Scale::Exact => f64::from(exact as f32),
                Scale::PowerOfTwo => 2f64.powf(exact.log2().ceil()),
            };
            let value = x.row(row)[column] / scale;
            // Places in the list are codes: of two that are equally near, the even one.
            let distance = |code: usize| (numbers[code] - value.abs()).abs();
            let nearer = |a: &usize, b: &usize| distance(*a).total_cmp(&distance(*b)).then((a % 2).cmp(&(b % 2)));
            let nearest = (0..numbers.len()).min_by(nearer).expect("numbers");
            numbers[nearest].copysign(value) * scale
        };
        Matrix::new(x.rows(), x.columns(), places().map(element).collect())
    }

    /// `Σ_k a(row, k) b(k, column)`.
    fn sums(rows: usize, columns: usize, inner: usize, term: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
        let sum = |index: usize| (0..inner).map(|k| term(index / columns, k, index % columns)).sum();
        (0..rows * columns).map(sum).collect()
    }

    fn same(found: &Matrix<f64>, expected: &[f64]) {
        let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        assert_eq!(found.values().len(), expected.len());
        for (index, (found, expected)) in found.values().iter().zip(expected).enumerate() {
            assert!((found - expected).abs() < 1e-12 * largest, "{index}: {found:e}, not {expected:e}");
        }
    }

    #[test]
    fn products_in_fp8_are_those_of_deepseek_v3() {
        // Tiles are cut at every edge: 128 and some more tokens, inputs and outputs.
        let (tokens, inputs, outputs) = (131, 135, 130);
        let (x, dy) = (matrix(tokens, inputs, 0.3), matrix(tokens, outputs, 7.7));
        let mut weight = Tensor::weight(outputs, inputs);
        weight.values = matrix(outputs, inputs, 3.1);
        for (activations, output_gradients) in
            [(Scale::Exact, Scale::Exact), (Scale::PowerOfTwo, Scale::Exact), (Scale::Exact, Scale::PowerOfTwo)]
        {
            let formats = ProductFormats {
                inputs: Some(Dtype::Fp8),
                activations,
                output_gradients,
                weights: None,
                results: None,
                gradients: None,
            };
            let (y, saved) = forward(formats, &weight, &x);
            let (dx, needed) = input_gradient(formats, &weight, saved, &dy);
            let mut gradient = Tensor::weight(outputs, inputs);
            accumulate(formats, &mut gradient, &needed);

            let w = quantised(&weight.values, 128, 128, Scale::Exact);
            let read = quantised(&x, 1, 128, activations);
            same(&y, &sums(tokens, outputs, inputs, |token, k, output| read.row(token)[k] * w.row(output)[k]));
            let arrived = quantised(&dy, 1, 128, output_gradients);
            same(&dx, &sums(tokens, inputs, outputs, |token, k, input| arrived.row(token)[k] * w.row(k)[input]));
            let (again, along) = (quantised(&read, 128, 1, activations), quantised(&dy, 128, 1, output_gradients));
            same(
                &gradient.values,
                &sums(outputs, inputs, tokens, |output, k, input| along.row(k)[output] * again.row(k)[input]),
            );
        }
    }
}
