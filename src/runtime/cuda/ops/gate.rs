//! Gates: one number for each row, `sigmoid(Σ x · gate)`. Widths are multiples of 8.

use super::columns::{self, Times};
use super::{assert_aligned, count, eights, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// `weights[r] = sigmoid(Σ x[r] · gate)`. `x`: rows × `gate.len()`; `weights`: one for each row.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or a slice does not begin at a multiple of 16 bytes.
pub fn forward(stream: &Stream, sms: u32, x: Slice<Bf16>, gate: Slice<f32>, weights: Slice<f32>) -> Result<()> {
    assert_rows(x, gate, weights);
    let kernel = stream.device().kernel("gate_forward");
    let grid = streaming(32 * weights.len(), sms);
    // SAFETY: the kernel reads all of `x` and the gate, and writes all weights.
    unsafe { kernel.launch(stream, grid, arguments![x, gate, weights, count(weights.len()), eights(gate.len())]) }
}

/// From the gradient of the weights, `d_weights`, to that of what the sigmoid was of, `d_logits`, one for each row; what `x` gets by it is added to
/// `dx`, rows × `gate.len()`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// As [`forward`].
pub fn input_gradient(
    stream: &Stream,
    sms: u32,
    (weights, d_weights): (Slice<f32>, Slice<f32>),
    gate: Slice<f32>,
    d_logits: Slice<f32>,
    dx: Slice<Bf16>,
) -> Result<()> {
    assert_rows(dx, gate, weights);
    let rows = weights.len();
    assert!(d_weights.len() == rows && d_logits.len() == rows, "gradients of {rows} weights");
    let kernel = stream.device().kernel("gate_input_gradient");
    // SAFETY: the kernel reads all weights, their gradients and the gate, writes all of `d_logits`, and reads and writes all of `dx`.
    unsafe {
        let arguments = arguments![weights, d_weights, gate, d_logits, dx, count(rows), eights(gate.len())];
        kernel.launch(stream, streaming(32 * rows, sms), arguments)
    }
}

/// Adds the gradient of the gate to `d_gate`, from `x` as in [`forward`] and `d_logits`. `scratch`: at least [`gradient_scratch`]. The bits do not
/// depend on `sms`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// As [`forward`].
pub fn gradient(
    stream: &Stream,
    sms: u32,
    x: Slice<Bf16>,
    d_logits: Slice<f32>,
    d_gate: Slice<f32>,
    scratch: Slice<f32>,
) -> Result<()> {
    columns::add_sums(stream, sms, x, &Times::Rows(d_logits), d_gate, scratch)
}

/// f32 elements of scratch for a gradient.
pub fn gradient_scratch(rows: usize, width: usize) -> usize {
    columns::scratch(rows, width)
}

fn assert_rows(x: Slice<Bf16>, gate: Slice<f32>, weights: Slice<f32>) {
    assert_eq!(x.len(), weights.len() * gate.len(), "a row of {} for each of {} weights", gate.len(), weights.len());
    assert_aligned(&[x]);
    assert_aligned(&[gate]);
}
