//! Copies of parts of matrices.
//!
//! Widths and strides are multiples of 8; slices begin at multiples of 16 bytes.

use super::{assert_aligned, eights, pieces, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

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
