//! What is done to every value, or to every row, by itself.
//!
//! Widths, and lengths of bf16 slices, are multiples of 8; slices begin at multiples of 16 bytes.

use super::{assert_aligned, eights, pieces, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// `y = a + b`. `y` may be `a` or `b`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn add(stream: &Stream, sms: u32, a: Slice<Bf16>, b: Slice<Bf16>, y: Slice<Bf16>) -> Result<()> {
    assert!(a.len() == y.len() && b.len() == y.len(), "three matrices of one shape");
    assert_aligned(&[a, b, y]);
    let groups = eights(y.len());
    let kernel = stream.device().kernel("element_add");
    // SAFETY: the kernel reads all of `a` and `b`, and writes all of `y`.
    unsafe { kernel.launch(stream, streaming(groups as usize, sms), arguments![a, b, y, groups]) }
}

/// Copies the first `width` values of `rows` rows, which stand `from_stride` and `to_stride` values apart, both multiples of 8.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn copy_columns(
    stream: &Stream,
    sms: u32,
    (from, from_stride): (Slice<Bf16>, usize),
    (to, to_stride): (Slice<Bf16>, usize),
    rows: usize,
    width: usize,
) -> Result<()> {
    for (matrix, stride) in [(from, from_stride), (to, to_stride)] {
        assert!(stride >= width, "rows of {width} do not stand {stride} apart");
        assert!(rows == 0 || matrix.len() >= (rows - 1) * stride + width, "{rows} rows in {}", matrix.len());
    }
    assert_aligned(&[from, to]);
    let (groups, width) = (pieces(rows * eights(width) as usize), eights(width));
    let (from_stride, to_stride) = (eights(from_stride), eights(to_stride));
    let kernel = stream.device().kernel("element_copy_columns");
    // SAFETY: the kernel reads and writes `width` groups of each of the rows; the lengths were checked.
    unsafe {
        let arguments = arguments![from, from_stride, to, to_stride, groups, width];
        kernel.launch(stream, streaming(groups as usize, sms), arguments)
    }
}

/// The same values in fp32.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn widen(stream: &Stream, sms: u32, from: Slice<Bf16>, to: Slice<f32>) -> Result<()> {
    assert!(from.len() == to.len(), "{} values as {}", from.len(), to.len());
    assert_aligned(&[from]);
    assert_aligned(&[to]);
    let groups = eights(to.len());
    let kernel = stream.device().kernel("element_widen");
    // SAFETY: the kernel reads all of `from`, and writes all of `to`.
    unsafe { kernel.launch(stream, streaming(groups as usize, sms), arguments![from, to, groups]) }
}

/// The nearest values in bf16.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn narrow(stream: &Stream, sms: u32, from: Slice<f32>, to: Slice<Bf16>) -> Result<()> {
    assert!(from.len() == to.len(), "{} values as {}", from.len(), to.len());
    assert_aligned(&[from]);
    assert_aligned(&[to]);
    let groups = eights(to.len());
    let kernel = stream.device().kernel("element_narrow");
    // SAFETY: the kernel reads all of `from`, and writes all of `to`.
    unsafe { kernel.launch(stream, streaming(groups as usize, sms), arguments![from, to, groups]) }
}

/// Multiplies each row, of `width` values, with its factor. `y` may be `x`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn scale_rows(
    stream: &Stream,
    sms: u32,
    x: Slice<Bf16>,
    factors: Slice<f32>,
    y: Slice<Bf16>,
    width: usize,
) -> Result<()> {
    assert!(x.len() == y.len() && y.len() == factors.len() * width, "a factor for each row of {width}");
    assert_aligned(&[x, y]);
    let (groups, width) = (eights(y.len()), eights(width));
    let kernel = stream.device().kernel("element_scale_rows");
    // SAFETY: the kernel reads all of `x` and `factors`, and writes all of `y`.
    unsafe { kernel.launch(stream, streaming(groups as usize, sms), arguments![x, factors, y, groups, width]) }
}

/// The scalar product of each row of `a`, of `width` values, with that of `b`, in fp32.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn row_dots(
    stream: &Stream,
    sms: u32,
    a: Slice<Bf16>,
    b: Slice<Bf16>,
    out: Slice<f32>,
    width: usize,
) -> Result<()> {
    let rows = out.len();
    assert!(a.len() == rows * width && b.len() == rows * width, "a result for each row of {width}");
    assert_aligned(&[a, b]);
    let kernel = stream.device().kernel("element_row_dots");
    // A warp has a row.
    let grid = streaming(32 * rows, sms);
    // SAFETY: the kernel reads all of `a` and `b`, and writes all of `out`.
    unsafe { kernel.launch(stream, grid, arguments![a, b, out, pieces(rows), eights(width)]) }
}

/// `y = 1 / (1 + exp(-x))`. `y` may be `x`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn sigmoid(stream: &Stream, sms: u32, x: Slice<f32>, y: Slice<f32>) -> Result<()> {
    assert!(x.len() == y.len(), "as many results as values");
    let kernel = stream.device().kernel("element_sigmoid");
    // SAFETY: the kernel reads all of `x`, and writes all of `y`.
    unsafe { kernel.launch(stream, streaming(y.len(), sms), arguments![x, y, pieces(y.len())]) }
}

/// From the result `y` of [`sigmoid`] and its gradient, the gradient of its input: `dx = dy · y · (1 - y)`. `dx` may be `y` or `dy`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn sigmoid_gradient(stream: &Stream, sms: u32, y: Slice<f32>, dy: Slice<f32>, dx: Slice<f32>) -> Result<()> {
    assert!(y.len() == dx.len() && dy.len() == dx.len(), "as many results as values");
    let kernel = stream.device().kernel("element_sigmoid_gradient");
    // SAFETY: the kernel reads all of `y` and `dy`, and writes all of `dx`.
    unsafe { kernel.launch(stream, streaming(dx.len(), sms), arguments![y, dy, dx, pieces(dx.len())]) }
}
