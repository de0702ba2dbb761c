//! RMSNorm (Zhang and Sennrich 2019): each row divided by its root mean square, times a gain.

use crate::runtime::host::parameters::{Role, Tensor, parameters};
use crate::runtime::host::precision::{Format, Tiles, round};
use crate::runtime::host::tensor::dot;
use crate::runtime::host::{Matrix, Real};

parameters! {
    /// The norm of rows of one width.
    pub struct RmsNorm {
        /// One for each column.
        pub gain: Tensor<T>,
    }
}

/// What the gradient needs: the input, and one over each row's root mean square.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    input: Matrix<T>,
    inverse: Vec<T>,
}

/// The gradient of the gain, made with that of the input.
#[derive(Clone, Debug)]
pub struct ForWeights<T>(Matrix<T>);

impl<T: Real> RmsNorm<T> {
    /// For rows of `width`.
    pub fn new(width: usize) -> Self {
        Self { gain: Tensor::vector(Role::Gain, width) }
    }

    /// `epsilon` is added to the mean square; the result is rounded to `format`.
    pub fn forward(&self, epsilon: f64, format: Format, x: Matrix<T>) -> (Matrix<T>, Saved<T>) {
        let width = T::of(x.columns() as f64);
        let mut y = x.clone();
        let mut inverse = Vec::with_capacity(x.rows());
        for row in 0..x.rows() {
            let mean_square = dot(x.row(row), x.row(row)) / width;
            let scale = T::ONE / (mean_square + T::of(epsilon)).sqrt();
            y.row_mut(row).iter_mut().zip(self.gain.values.values()).for_each(|(y, &gain)| *y = *y * scale * gain);
            inverse.push(scale);
        }
        round(&mut y, format, Tiles::Rows);
        (y, Saved { input: x, inverse })
    }

    /// With `u = dy ∘ gain` and `r` the inverse: `dx = r u - x r³ ⟨x, u⟩ / width`.
    pub fn input_gradient(&self, format: Format, saved: Saved<T>, dy: &Matrix<T>) -> (Matrix<T>, ForWeights<T>) {
        let width = T::of(dy.columns() as f64);
        let mut dx = dy.clone();
        let mut gain = Matrix::zeros(1, dy.columns());
        for (row, &scale) in saved.inverse.iter().enumerate() {
            let x = saved.input.row(row);
            for ((total, &x), &dy) in gain.values_mut().iter_mut().zip(x).zip(dy.row(row)) {
                *total += dy * x * scale;
            }
            let dx = dx.row_mut(row);
            dx.iter_mut().zip(self.gain.values.values()).for_each(|(u, &gain)| *u *= gain);
            let along = dot(x, dx) * scale * scale / width;
            dx.iter_mut().zip(x).for_each(|(u, &x)| *u = scale * (*u - x * along));
        }
        round(&mut dx, format, Tiles::Rows);
        (dx, ForWeights(gain))
    }

    /// Adds to the gradients, which `self` has the place of.
    pub fn accumulate(&mut self, format: Format, needed: &ForWeights<T>) {
        self.gain.accumulate(&needed.0, format);
    }
}
