//! RMSNorm.

use super::columns::{self, Times};
use super::{PER_SM, THREADS, assert_aligned, count, looping};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// `y = x · gain / sqrt(mean(x²) + epsilon)`, row by row. `x`: rows that stand `stride` values apart, of which the first
/// `gain.len()` are read; `y`: rows × `gain.len()`, which is a multiple of 8, as is `stride`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or a slice does not begin at a multiple of 16 bytes.
pub fn forward(
    stream: &Stream,
    sms: u32,
    (x, stride): (Slice<Bf16>, usize),
    gain: Slice<f32>,
    y: Slice<Bf16>,
    epsilon: f32,
) -> Result<()> {
    let width = gain.len();
    let rows = rows_of(y, width);
    assert_rows((x, stride), rows, width);
    let grid = looping(rows, sms, PER_SM, THREADS);
    let kernel = stream.device().kernel("rmsnorm_forward");
    // SAFETY: the kernel reads `rows` rows of `x`, all of `gain`, and writes all of `y`; the lengths were checked.
    unsafe { kernel.launch(stream, grid, arguments![x, count(stride), gain, y, count(rows), count(width), epsilon]) }
}

/// `dx = add + ` the gradient of `x` from that of the result, `dy`: rows × `gain.len()`, as is `add`. `x` and `dx`: rows that stand
/// apart, as in [`forward`]. `dx` may be the memory of `dy` or of `add`, if its rows do not stand apart.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // five matrices
pub fn input_gradient(
    stream: &Stream,
    sms: u32,
    (x, x_stride): (Slice<Bf16>, usize),
    gain: Slice<f32>,
    dy: Slice<Bf16>,
    (dx, dx_stride): (Slice<Bf16>, usize),
    add: Option<Slice<Bf16>>,
    epsilon: f32,
) -> Result<()> {
    let width = gain.len();
    let rows = rows_of(dy, width);
    assert_rows((x, x_stride), rows, width);
    assert_rows((dx, dx_stride), rows, width);
    assert!(add.is_none_or(|add| add.len() == dy.len()), "as much is added as there is of dy");
    let add = add.unwrap_or(Slice::none());
    assert_aligned(&[add]);
    let grid = looping(rows, sms, PER_SM, THREADS);
    let kernel = stream.device().kernel("rmsnorm_input_gradient");
    let (rows, width) = (count(rows), count(width));
    // SAFETY: the kernel reads `rows` rows of `x`, all of `gain`, `dy` and `add`, and writes `rows` rows of `dx`.
    unsafe {
        let arguments = arguments![x, count(x_stride), gain, dy, add, dx, count(dx_stride), rows, width, epsilon];
        kernel.launch(stream, grid, arguments)
    }
}

/// Adds the gradient of the gain to `d_gain`, from `x` as in [`forward`] and the gradient of the result, `dy`: rows ×
/// `d_gain.len()`. `scratch`: at least [`gain_gradient_scratch`]. The bits do not depend on `sms`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// As [`forward`].
pub fn gain_gradient(
    stream: &Stream,
    sms: u32,
    (x, stride): (Slice<Bf16>, usize),
    dy: Slice<Bf16>,
    d_gain: Slice<f32>,
    scratch: Slice<f32>,
    epsilon: f32,
) -> Result<()> {
    let width = d_gain.len();
    let rows = rows_of(dy, width);
    assert_rows((x, stride), rows, width);
    assert!(scratch.len() >= gain_gradient_scratch(rows, width), "scratch for {rows} × {width}");
    let (inverses, partial) = (scratch.part(0..rows), scratch.part(rows..scratch.len()));
    let kernel = stream.device().kernel("rmsnorm_inverses");
    let grid = looping(rows, sms, PER_SM, THREADS);
    // SAFETY: the kernel reads `rows` rows of `x`, and writes as many inverses.
    unsafe {
        let arguments = arguments![x, count(stride), inverses, count(rows), count(width), epsilon];
        kernel.launch(stream, grid, arguments)?;
    }
    columns::add_sums(stream, sms, dy, &Times::Normed { x, stride, inverses }, d_gain, partial)
}

/// f32 elements of scratch for a gain's gradient.
pub fn gain_gradient_scratch(rows: usize, width: usize) -> usize {
    rows + columns::scratch(rows, width)
}

/// Rows of a matrix of whole rows.
fn rows_of(matrix: Slice<Bf16>, width: usize) -> usize {
    let rows = matrix.len() / width;
    assert!(matrix.len() == rows * width, "{} values are no rows of {width}", matrix.len());
    assert_aligned(&[matrix]);
    rows
}

/// Asserts that there are so many rows, at least `width` values apart, and that all begin at 16 bytes. The last one need not be
/// followed by what stands between two.
fn assert_rows((matrix, stride): (Slice<Bf16>, usize), rows: usize, width: usize) {
    assert!(width.is_multiple_of(8) && stride.is_multiple_of(8), "rows of whole 16 bytes: {width}, {stride}");
    assert!(stride >= width, "rows of {width} do not stand {stride} apart");
    assert!(
        rows == 0 || matrix.len() >= (rows - 1) * stride + width,
        "{rows} rows, {stride} apart, in {}",
        matrix.len()
    );
    assert_aligned(&[matrix]);
}
