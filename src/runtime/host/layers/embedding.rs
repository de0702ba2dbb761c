//! Token embedding: a look-up. Its gradient needs no I.

use crate::runtime::host::parameters::Tensor;
use crate::runtime::host::precision::{Format, Tiles, round};
use crate::runtime::host::tensor::add_to;
use crate::runtime::host::{Matrix, Real, Shape};

/// A table, vocabulary × hidden, zero for now.
pub fn table<T: Real>(shape: &Shape) -> Tensor<T> {
    Tensor::weight(shape.model.vocabulary as usize, shape.hidden())
}

/// The row of each token.
pub fn forward<T: Real>(table: &Tensor<T>, format: Format, tokens: &[u32]) -> Matrix<T> {
    let mut rows = Matrix::zeros(tokens.len(), table.values.columns());
    for (row, &token) in tokens.iter().enumerate() {
        rows.row_mut(row).copy_from_slice(table.values.row(token as usize));
    }
    round(&mut rows, format, Tiles::Rows);
    rows
}

/// What the weight gradient needs.
#[derive(Clone, Debug)]
pub struct ForWeights<T> {
    /// The tokens that were looked up.
    pub tokens: Vec<u32>,
    /// The gradient of their rows.
    pub gradient: Matrix<T>,
}

/// Adds to the table's gradient, token by token.
pub fn accumulate<T: Real>(gradient: &mut Tensor<T>, format: Format, needed: &ForWeights<T>) {
    for (row, &token) in needed.tokens.iter().enumerate() {
        add_to(gradient.values.row_mut(token as usize), needed.gradient.row(row), T::ONE);
    }
    round(&mut gradient.values, format, Tiles::Rows);
}
