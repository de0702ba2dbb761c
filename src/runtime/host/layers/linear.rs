//! Matrix products with weights: `y = x Wᵀ + b`.

use std::borrow::Cow;

use crate::runtime::host::parameters::{Role, Tensor, parameters};
use crate::runtime::host::precision::{ProductFormats, Tiles, round, rounded};
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

/// What the weight gradient of a product needs: its input, and the gradient of its output, as the products read them.
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
    let x = rounded(x, formats.inputs, Tiles::Rows);
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
    let output = rounded(dy, formats.inputs, Tiles::Rows);
    let mut dx = product(output.view(), as_read(formats, weight).view());
    round(&mut dx, formats.results, Tiles::Rows);
    (dx, ForWeights { input, output })
}

/// Adds `dyᵀ x` to the gradient of the weight. In FP8 both are quantised again, in tiles along the tokens, as the product
/// goes over them.
pub fn accumulate<T: Real>(formats: ProductFormats, gradient: &mut Tensor<T>, needed: &ForWeights<T>) {
    let input = rounded(&needed.input, formats.inputs, Tiles::Columns);
    let output = rounded(&needed.output, formats.inputs, Tiles::Columns);
    gradient.accumulate(&product(output.transposed(), input.view()), formats.gradients);
}

/// A weight as a product reads it.
fn as_read<T: Real>(formats: ProductFormats, weight: &Tensor<T>) -> Cow<'_, Matrix<T>> {
    if formats.inputs.is_none() && formats.weights.is_none() {
        return Cow::Borrowed(&weight.values);
    }
    let mut read = rounded(&weight.values, formats.weights, Tiles::Blocks);
    if formats.inputs != formats.weights {
        round(&mut read, formats.inputs, Tiles::Blocks);
    }
    Cow::Owned(read)
}

fn add<T: Real>(to: &mut [T], from: &[T]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
}
