//! Matrix products.

use super::real::{Real, Strided};
use super::tensor::{Matrix, View, ViewMut};

/// `a b`.
pub fn product<T: Real>(a: View<'_, T>, b: View<'_, T>) -> Matrix<T> {
    let mut c = Matrix::zeros(a.rows, b.columns);
    let (rows, columns) = (0..a.rows, 0..b.columns);
    multiply(a, b, T::ZERO, c.block_mut(rows, columns));
    c
}

/// `c = a b + beta c`. Each element of `a b` is a sum over the inner dimension in an order that does not depend on the
/// number of rows or columns.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply<T: Real>(a: View<'_, T>, b: View<'_, T>, beta: T, c: ViewMut<'_, T>) {
    assert!(
        a.columns == b.rows && c.rows == a.rows && c.columns == b.columns,
        "{} × {} times {} × {} is not {} × {}",
        a.rows,
        a.columns,
        b.rows,
        b.columns,
        c.rows,
        c.columns
    );
    if c.rows == 0 || c.columns == 0 {
        return;
    }
    assert!(
        a.columns == 0 || (reach(&a) < a.values.len() && reach(&b) < b.values.len()),
        "views within their matrices"
    );
    assert!((c.rows - 1) * c.row_stride + c.columns - 1 < c.values.len(), "a view within its matrix");
    assert!(c.rows == 1 || c.columns <= c.row_stride, "rows that do not overlap");
    let sizes = [a.rows, a.columns, b.columns];
    let (a, b) = (strided(&a), strided(&b));
    let c = Strided { first: c.values.as_mut_ptr(), row: c.row_stride as isize, column: 1 };
    #[expect(unsafe_code, reason = "matrixmultiply takes pointers")]
    // SAFETY: the assertions bound the last element that each stride reaches; rows of `c` do not overlap, and it is borrowed
    // exclusively, so nothing of it is shared with `a` or `b`.
    unsafe {
        T::gemm(sizes, a, b, beta, c);
    }
}

/// Place of the last element.
fn reach<T>(view: &View<'_, T>) -> usize {
    (view.rows - 1) * view.row_stride + (view.columns - 1) * view.column_stride
}

fn strided<T>(view: &View<'_, T>) -> Strided<*const T> {
    Strided { first: view.values.as_ptr(), row: view.row_stride as isize, column: view.column_stride as isize }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that are no round numbers, from -1 to 1.
    fn matrix(rows: usize, columns: usize, seed: u64) -> Matrix<f32> {
        let value = |index: usize| ((index as f64 + 1.0) * (seed as f64 + 0.37)).sin() as f32;
        Matrix::new(rows, columns, (0..rows * columns).map(value).collect())
    }

    #[test]
    fn is_the_sum_over_the_inner_dimension() {
        let (a, b) = (matrix(7, 5, 1), matrix(5, 3, 2));
        let c = product(a.view(), b.view());
        let d = product(b.transposed(), a.transposed());
        for row in 0..7 {
            for column in 0..3 {
                let exact: f64 = (0..5).map(|k| f64::from(a.row(row)[k]) * f64::from(b.row(k)[column])).sum();
                assert!((f64::from(c.row(row)[column]) - exact).abs() < 1e-6);
                assert!((f64::from(d.row(column)[row]) - exact).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn rows_have_the_same_bits_whatever_stands_beside_them() {
        // More than one block of the inner dimension, and all remainders of a block of rows.
        let (a, b) = (matrix(33, 700, 3), matrix(40, 700, 4));
        let whole = product(a.view(), b.transposed());
        for first in 0..33 {
            let part = product(a.block(first..33, 0..700), b.transposed());
            assert_eq!(part.values(), &whole.values()[first * 40..], "from row {first}");
        }
    }

    #[test]
    fn blocks_are_written_in_place_and_nothing_else() {
        let (a, b) = (matrix(3, 4, 5), matrix(4, 2, 6));
        let mut c = Matrix::zeros(5, 6);
        multiply(a.view(), b.view(), 0.0, c.block_mut(1..4, 3..5));
        multiply(a.view(), b.view(), 1.0, c.block_mut(1..4, 3..5));
        let once = product(a.view(), b.view());
        for row in 0..5 {
            for column in 0..6 {
                let inside = (1..4).contains(&row) && (3..5).contains(&column);
                let expected = if inside { 2.0 * once.row(row - 1)[column - 3] } else { 0.0 };
                assert!((c.row(row)[column] - expected).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn empty_matrices_are_allowed() {
        let none = Matrix::<f32>::zeros(0, 4);
        assert_eq!(product(none.view(), matrix(4, 2, 7).view()).rows(), 0);
        assert_eq!(product(none.transposed(), none.view()).values(), &[0.0; 16]);
    }
}
