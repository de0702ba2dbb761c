//! RMSNorm.

use super::{count, looping};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// Threads of a block.
const THREADS: u32 = 256;

/// `y = x · gain / sqrt(mean(x²) + epsilon)`, row by row. `x`: rows that stand `stride` values apart, of which the first
/// `gain.len()` are read; `y`: rows × `gain.len()`, which is a multiple of 8, as is `stride`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn forward(
    stream: &Stream,
    sms: u32,
    (x, stride): (Slice<Bf16>, usize),
    gain: Slice<f32>,
    y: Slice<Bf16>,
    epsilon: f32,
) -> Result<()> {
    let width = gain.len();
    let rows = y.len() / width;
    assert!(width.is_multiple_of(8) && stride.is_multiple_of(8), "rows of whole 16 bytes: {width}, {stride}");
    assert!(y.len() == rows * width && x.len() >= rows * stride && stride >= width, "as many rows in as out");
    let grid = looping(rows, sms, 8, THREADS);
    let kernel = stream.device().kernel("rmsnorm_forward");
    // SAFETY: the kernel reads `rows` rows of `x`, all of `gain`, and writes all of `y`; the lengths were checked.
    unsafe { kernel.launch(stream, grid, arguments![x, count(stride), gain, y, count(rows), count(width), epsilon]) }
}
