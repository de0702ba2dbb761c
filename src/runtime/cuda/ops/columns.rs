//! Sums of the columns of a matrix: the first half of the gradients of biases and gains.

use super::{PER_SM, THREADS, assert_aligned, count, eights, looping, pieces, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// Rows that a block sums; so much is in the kernel.
const PIECE: usize = 64;

/// Columns that a block sums; so much is in the kernel.
const STRIP: usize = 256;

/// f32 elements for the partial sums of `rows × width` values.
pub(super) fn scratch(rows: usize, width: usize) -> usize {
    rows.div_ceil(PIECE) * width
}

/// What each value is multiplied with before it is summed.
pub(super) enum Times {
    /// Nothing.
    One,
    /// One number for each row.
    Rows(Slice<f32>),
    /// One of `x`, whose rows stand `stride` values apart, and one of each row's `inverses`.
    Normed { x: Slice<Bf16>, stride: usize, inverses: Slice<f32> },
}

/// `to += Σ over rows of dy`, or of a product; `to` has one element for each column. `partial`: at least [`scratch`].
pub(super) fn add_sums(
    stream: &Stream,
    sms: u32,
    dy: Slice<Bf16>,
    times: &Times,
    to: Slice<f32>,
    partial: Slice<f32>,
) -> Result<()> {
    let width = to.len();
    let rows = dy.len() / width;
    assert!(dy.len() == rows * width, "{} values are no rows of {width}", dy.len());
    assert!(partial.len() >= scratch(rows, width), "room for the sums of {rows} × {width}");
    assert_aligned(&[dy]);
    eights(width);
    let grid = looping(rows.div_ceil(PIECE) * width.div_ceil(STRIP), sms, PER_SM, THREADS);
    let device = stream.device();
    // SAFETY: the kernels read all of `dy`, as many rows of `x` and factors where there are some, and write as much of `partial` as
    // its length was checked for. (The caller has checked what is normed.)
    unsafe {
        match *times {
            Times::One => {
                let kernel = device.kernel("columns_sum");
                kernel.launch(stream, grid, arguments![dy, partial, count(rows), count(width)])?;
            }
            Times::Rows(factors) => {
                assert_eq!(factors.len(), rows, "a factor for each row");
                let kernel = device.kernel("columns_sum_weighed");
                kernel.launch(stream, grid, arguments![dy, factors, partial, count(rows), count(width)])?;
            }
            Times::Normed { x, stride, inverses } => {
                let kernel = device.kernel("columns_sum_normed");
                let arguments = arguments![dy, x, count(stride), inverses, partial, count(rows), count(width)];
                kernel.launch(stream, grid, arguments)?;
            }
        }
    }
    let kernel = device.kernel("columns_add");
    // SAFETY: the kernel reads what was written above, and adds to all of `to`.
    unsafe {
        let arguments = arguments![partial, to, pieces(rows.div_ceil(PIECE)), count(width)];
        kernel.launch(stream, streaming(width, sms), arguments)
    }
}
