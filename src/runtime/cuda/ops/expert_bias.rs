//! Biases of routed experts, whose numbers of rows are known on the device only: rows are sorted by expert, as in [`super::grouped`].
//!
//! Each row's bias is multiplied with the row's weight, one of `weights`, or taken as it is if there are none. Widths are multiples of 8.

use super::grouped::Experts;
use super::{PER_SM, THREADS, assert_aligned, count, eights, looping, pieces, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// `y += weight · bias`. `y`: rows × `width`, with room for as many rows as the last of `offsets` says or more; what is behind that is not touched.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or a slice does not begin at a multiple of 16 bytes.
pub fn add(
    stream: &Stream,
    sms: u32,
    y: Slice<Bf16>,
    (biases, weights): (Experts<f32>, Slice<f32>),
    offsets: Slice<u32>,
    width: usize,
) -> Result<()> {
    by_rows("expert_bias_add", stream, sms, y, (biases, weights), offsets, width)
}

/// Adds to the gradients of the weights, `d_weights`, one for each row, what they get by the biases: `Σ dy · bias`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// As [`add`].
pub fn weights_gradient(
    stream: &Stream,
    sms: u32,
    dy: Slice<Bf16>,
    (biases, d_weights): (Experts<f32>, Slice<f32>),
    offsets: Slice<u32>,
    width: usize,
) -> Result<()> {
    assert_eq!(d_weights.len() * width, dy.len(), "a weight's gradient for each row");
    by_rows("expert_bias_weights", stream, sms, dy, (biases, d_weights), offsets, width)
}

/// Launches a kernel whose warps have a row each.
fn by_rows(
    kernel: &str,
    stream: &Stream,
    sms: u32,
    matrix: Slice<Bf16>,
    (biases, weights): (Experts<f32>, Slice<f32>),
    offsets: Slice<u32>,
    width: usize,
) -> Result<()> {
    let rows = rows_of(matrix, weights, &biases, offsets, width);
    let kernel = stream.device().kernel(kernel);
    let Experts { first, stride, count: experts } = biases;
    // SAFETY: both kernels reach at most `rows` rows and as many weights, and read the biases of the experts: all lengths were checked.
    unsafe {
        let arguments =
            arguments![matrix, first, stride as u64, weights, offsets, count(experts), pieces(rows), eights(width)];
        kernel.launch(stream, streaming(32 * rows, sms), arguments)
    }
}

/// Adds to the gradients of the biases: `Σ weight · dy` over each expert's rows. The bits do not depend on `sms`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// As [`add`].
pub fn gradient(
    stream: &Stream,
    sms: u32,
    (dy, weights): (Slice<Bf16>, Slice<f32>),
    d_biases: Experts<f32>,
    offsets: Slice<u32>,
    width: usize,
) -> Result<()> {
    let rows = rows_of(dy, weights, &d_biases, offsets, width);
    let kernel = stream.device().kernel("expert_bias_gradient");
    let Experts { first, stride, count: experts } = d_biases;
    let grid = looping(experts * width.div_ceil(THREADS as usize), sms, PER_SM, THREADS);
    // SAFETY: the kernel reads at most `rows` rows and weights, and adds to the gradients of the experts, whose lengths were checked.
    unsafe {
        let arguments =
            arguments![dy, weights, first, stride as u64, offsets, count(experts), pieces(rows), eights(width)];
        kernel.launch(stream, grid, arguments)
    }
}

/// Rows that there is room for.
fn rows_of(
    matrix: Slice<Bf16>,
    weights: Slice<f32>,
    biases: &Experts<f32>,
    offsets: Slice<u32>,
    width: usize,
) -> usize {
    let rows = matrix.len() / width;
    assert!(matrix.len() == rows * width, "{} values are no rows of {width}", matrix.len());
    assert!(weights.is_empty() || weights.len() == rows, "{} weights for {rows} rows", weights.len());
    assert_eq!(offsets.len(), biases.count + 1, "offsets of all experts, and the end");
    let last = (biases.count - 1) * biases.stride + width;
    assert!(biases.first.len() >= last && biases.stride >= width, "biases of {} experts", biases.count);
    assert!(biases.stride.is_multiple_of(4), "every expert's bias starts at a multiple of 16 bytes");
    assert_aligned(&[matrix]);
    assert_aligned(&[biases.first]);
    rows
}
