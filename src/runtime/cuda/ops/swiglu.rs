//! SwiGLU, between its products.

use super::{Rows, assert_aligned, eights, pieces, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// `y = weight · silu(gate) · up`. `gate_up`: rows × (gate, then up, `width` each, a multiple of 8); `weights`: one for each row, or
/// none; `y`: rows × `width`. Slices have room for `rows.most`; rows behind the count are neither read nor written.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or matrices do not begin at multiples of 16 bytes.
pub fn forward(
    stream: &Stream,
    sms: u32,
    gate_up: Slice<Bf16>,
    weights: Slice<f32>,
    y: Slice<Bf16>,
    width: usize,
    rows: Rows,
) -> Result<()> {
    assert_lengths(gate_up, weights, y, width, rows);
    let groups = eights(y.len()) as usize;
    let kernel = stream.device().kernel("swiglu_forward");
    // SAFETY: the kernel reads at most `rows.most` rows and weights, and writes as many rows of `y`.
    unsafe {
        let arguments = arguments![gate_up, weights, y, rows.count, pieces(rows.most), eights(width)];
        kernel.launch(stream, streaming(groups, sms), arguments)
    }
}

/// From the gradient of `y`, `dy`, to that of `gate_up`, which may lie in the memory of `gate_up`, and to that of the weights (or
/// none): `Σ dy · silu(gate) · up`, in fp32.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // five slices and their shape
pub fn input_gradient(
    stream: &Stream,
    sms: u32,
    gate_up: Slice<Bf16>,
    weights: Slice<f32>,
    dy: Slice<Bf16>,
    d_gate_up: Slice<Bf16>,
    d_weights: Slice<f32>,
    width: usize,
    rows: Rows,
) -> Result<()> {
    assert_lengths(gate_up, weights, dy, width, rows);
    assert_lengths(d_gate_up, d_weights, dy, width, rows);
    let kernel = stream.device().kernel("swiglu_input_gradient");
    // A warp has a row.
    let grid = streaming(32 * rows.most, sms);
    let (most, width) = (pieces(rows.most), eights(width));
    // SAFETY: the kernel reads at most `rows.most` rows and weights, and writes as many.
    unsafe {
        let arguments = arguments![gate_up, weights, dy, d_gate_up, d_weights, rows.count, most, width];
        kernel.launch(stream, grid, arguments)
    }
}

fn assert_lengths(gate_up: Slice<Bf16>, weights: Slice<f32>, y: Slice<Bf16>, width: usize, rows: Rows) {
    let most = rows.most;
    assert!(y.len() == most * width && gate_up.len() == 2 * most * width, "{most} rows of {width}, and twice that");
    assert!(weights.address() == 0 || weights.len() == most, "{} weights for {most} rows", weights.len());
    assert!(rows.count.len() <= 1, "one count");
    assert_aligned(&[gate_up, y]);
}
