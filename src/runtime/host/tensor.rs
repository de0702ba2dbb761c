//! Row-major matrices, and views of them that can be transposed or cut without copying.

use std::ops::Range;

use super::real::Real;

/// A matrix, row after row. A vector is a matrix of one row.
///
/// Shapes that do not fit are mistakes of the program, not of its inputs: methods panic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix<T> {
    rows: usize,
    columns: usize,
    values: Vec<T>,
}

impl<T: Real> Matrix<T> {
    /// All zero.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![T::ZERO; rows * columns] }
    }

    /// From its values, row after row.
    pub fn new(rows: usize, columns: usize, values: Vec<T>) -> Self {
        assert_eq!(values.len(), rows * columns, "a {rows} × {columns} matrix");
        Self { rows, columns, values }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All values, row after row.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// All values, to be changed.
    pub fn values_mut(&mut self) -> &mut [T] {
        &mut self.values
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[T] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// One row, to be changed.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// The same values in rows of another length.
    pub fn reshaped(self, rows: usize, columns: usize) -> Self {
        Self::new(rows, columns, self.values)
    }

    /// A copy of some columns.
    pub fn columns_of(&self, range: Range<usize>) -> Self {
        let mut copy = Self::zeros(self.rows, range.len());
        for row in 0..self.rows {
            copy.row_mut(row).copy_from_slice(&self.row(row)[range.clone()]);
        }
        copy
    }

    /// A copy of some rows.
    pub fn rows_of(&self, range: Range<usize>) -> Self {
        let values = &self.values[range.start * self.columns..range.end * self.columns];
        Self::new(range.len(), self.columns, values.to_vec())
    }

    /// Matrices of as many rows side by side.
    pub fn beside(parts: &[&Self]) -> Self {
        let rows = parts.first().map_or(0, |part| part.rows);
        assert!(parts.iter().all(|part| part.rows == rows), "as many rows");
        let values = (0..rows).flat_map(|row| parts.iter().flat_map(move |part| part.row(row).iter().copied()));
        Self::new(rows, parts.iter().map(|part| part.columns).sum(), values.collect())
    }

    /// Matrices of rows of the same length one below the other.
    pub fn below(parts: &[&Self]) -> Self {
        let columns = parts.first().map_or(0, |part| part.columns);
        assert!(parts.iter().all(|part| part.columns == columns), "rows of the same length");
        let values = parts.iter().flat_map(|part| part.values.iter().copied()).collect();
        Self::new(parts.iter().map(|part| part.rows).sum(), columns, values)
    }

    /// Adds another of the same shape.
    pub fn add(&mut self, other: &Self) {
        assert_eq!((self.rows, self.columns), (other.rows, other.columns), "matrices of one shape");
        self.values.iter_mut().zip(&other.values).for_each(|(to, &from)| *to += from);
    }

    /// The sum of the rows.
    pub fn row_sum(&self) -> Self {
        let mut sum = Self::zeros(1, self.columns);
        for row in 0..self.rows {
            add_to(sum.row_mut(0), self.row(row), T::ONE);
        }
        sum
    }

    /// Another type of number.
    pub fn cast<U: Real>(&self) -> Matrix<U> {
        Matrix::new(self.rows, self.columns, self.values.iter().map(|value| U::of(value.to_f64())).collect())
    }

    /// All of it.
    pub fn view(&self) -> View<'_, T> {
        self.block(0..self.rows, 0..self.columns)
    }

    /// Rows as columns.
    pub fn transposed(&self) -> View<'_, T> {
        self.view().transposed()
    }

    /// Some rows of some columns.
    pub fn block(&self, rows: Range<usize>, columns: Range<usize>) -> View<'_, T> {
        let first = span(self, &rows, &columns);
        View {
            values: &self.values[first],
            rows: rows.len(),
            columns: columns.len(),
            row_stride: self.columns,
            column_stride: 1,
        }
    }

    /// Some rows of some columns, to be changed.
    pub fn block_mut(&mut self, rows: Range<usize>, columns: Range<usize>) -> ViewMut<'_, T> {
        let first = span(self, &rows, &columns);
        ViewMut { rows: rows.len(), columns: columns.len(), row_stride: self.columns, values: &mut self.values[first] }
    }
}

/// Values with one row for each token, or for each row that an expert gets: they can be taken apart and put together.
pub trait RowWise: Sized {
    /// A copy of some rows, in the order in which they are named.
    fn select(&self, rows: &[usize]) -> Self;

    /// Several, one below the other; at least one.
    fn stacked(parts: &[&Self]) -> Self;
}

impl<T: Real> RowWise for Matrix<T> {
    fn select(&self, rows: &[usize]) -> Self {
        let values = rows.iter().flat_map(|&row| self.row(row).iter().copied()).collect();
        Self::new(rows.len(), self.columns, values)
    }

    fn stacked(parts: &[&Self]) -> Self {
        Self::below(parts)
    }
}

/// Where the values of a block lie: from its first to the end of the matrix. An empty block has none.
fn span<T>(matrix: &Matrix<T>, rows: &Range<usize>, columns: &Range<usize>) -> Range<usize> {
    assert!(rows.end <= matrix.rows && columns.end <= matrix.columns, "a block within the matrix");
    if rows.is_empty() || columns.is_empty() {
        return 0..0;
    }
    rows.start * matrix.columns + columns.start..matrix.values.len()
}

/// A part of a matrix, or its transpose.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    /// From the first element on.
    pub(super) values: &'a [T],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<T> View<'_, T> {
    /// Rows as columns.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// A part of a matrix that is written to.
pub struct ViewMut<'a, T> {
    /// From the first element on.
    pub(super) values: &'a mut [T],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
}

/// `to += factor * from`.
pub fn add_to<T: Real>(to: &mut [T], from: &[T], factor: T) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to += factor * from);
}

/// The scalar product.
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}
