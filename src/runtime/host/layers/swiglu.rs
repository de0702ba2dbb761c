//! The SwiGLU MLP (Shazeer 2020): `down(silu(gate(x)) ∘ up(x))`. A dense MLP, an expert, or the shared expert.

use super::linear::{self, Linear};
use crate::job::arithmetic::SwigluShape;
use crate::runtime::host::parameters::parameters;
use crate::runtime::host::precision::{MlpFormats, Tiles, round};
use crate::runtime::host::tensor::RowWise;
use crate::runtime::host::{Matrix, Real};

parameters! {
    /// The three matrices, two of them one below the other.
    pub struct Swiglu {
        /// Gate, then up.
        pub gate_up: Linear<T>,
        /// Back to the stream's width.
        pub down: Linear<T>,
    }
}

/// What the gradient needs.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    gate_up: linear::Saved<T>,
    /// Results of both.
    inner: Matrix<T>,
    down: linear::Saved<T>,
}

/// What the weight gradient needs.
#[derive(Clone, Debug)]
pub struct ForWeights<T> {
    gate_up: linear::ForWeights<T>,
    down: linear::ForWeights<T>,
}

impl<T: Real> RowWise for Saved<T> {
    fn select(&self, rows: &[usize]) -> Self {
        Self { gate_up: self.gate_up.select(rows), inner: self.inner.select(rows), down: self.down.select(rows) }
    }

    fn stacked(parts: &[&Self]) -> Self {
        Self {
            gate_up: RowWise::stacked(&parts.iter().map(|part| &part.gate_up).collect::<Vec<_>>()),
            inner: RowWise::stacked(&parts.iter().map(|part| &part.inner).collect::<Vec<_>>()),
            down: RowWise::stacked(&parts.iter().map(|part| &part.down).collect::<Vec<_>>()),
        }
    }
}

impl<T: Real> RowWise for ForWeights<T> {
    fn select(&self, rows: &[usize]) -> Self {
        Self { gate_up: self.gate_up.select(rows), down: self.down.select(rows) }
    }

    fn stacked(parts: &[&Self]) -> Self {
        Self {
            gate_up: RowWise::stacked(&parts.iter().map(|part| &part.gate_up).collect::<Vec<_>>()),
            down: RowWise::stacked(&parts.iter().map(|part| &part.down).collect::<Vec<_>>()),
        }
    }
}

impl<T: Real> Swiglu<T> {
    /// All zero.
    pub fn new(shape: &SwigluShape) -> Self {
        let linear =
            |of: &crate::job::arithmetic::Linear| Linear::new(of.inputs as usize, of.outputs as usize, of.bias);
        Self { gate_up: linear(&shape.gate_up), down: linear(&shape.down) }
    }

    /// Rows of any number, none included.
    pub fn forward(&self, formats: MlpFormats, x: &Matrix<T>) -> (Matrix<T>, Saved<T>) {
        let (inner, gate_up) = self.gate_up.forward(formats.gate_up, x);
        let width = inner.columns() / 2;
        let mut active = Matrix::zeros(inner.rows(), width);
        for row in 0..inner.rows() {
            let (gates, ups) = inner.row(row).split_at(width);
            for ((to, &gate), &up) in active.row_mut(row).iter_mut().zip(gates).zip(ups) {
                *to = gate * sigmoid(gate) * up;
            }
        }
        round(&mut active, formats.gate_up.results, Tiles::Rows);
        let (y, down) = self.down.forward(formats.down, &active);
        (y, Saved { gate_up, inner, down })
    }

    /// From the gradient of the result to that of `x`.
    pub fn input_gradient(&self, formats: MlpFormats, saved: Saved<T>, dy: &Matrix<T>) -> (Matrix<T>, ForWeights<T>) {
        let (d_active, down) = self.down.input_gradient(formats.down, saved.down, dy);
        let mut d_inner = saved.inner;
        let width = d_active.columns();
        for row in 0..d_active.rows() {
            let (gates, ups) = d_inner.row_mut(row).split_at_mut(width);
            for ((gate, up), &d) in gates.iter_mut().zip(ups).zip(d_active.row(row)) {
                let sigma = sigmoid(*gate);
                let silu = *gate * sigma;
                let slope = sigma * (T::ONE + *gate * (T::ONE - sigma));
                (*gate, *up) = (d * *up * slope, d * silu);
            }
        }
        round(&mut d_inner, formats.down.results, Tiles::Rows);
        let (dx, gate_up) = self.gate_up.input_gradient(formats.gate_up, saved.gate_up, &d_inner);
        (dx, ForWeights { gate_up, down })
    }

    /// Adds to the gradients, which `self` has the place of.
    pub fn accumulate(&mut self, formats: MlpFormats, needed: &ForWeights<T>) {
        self.down.accumulate(formats.down, &needed.down);
        self.gate_up.accumulate(formats.gate_up, &needed.gate_up);
    }
}

/// The logistic function.
pub fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}
