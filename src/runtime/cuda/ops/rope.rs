//! Rotary position embedding.

use super::{PER_SM, THREADS, assert_aligned, count, looping};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// Where the turned columns of a matrix are.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Values from one row to the next.
    pub row_stride: usize,
    /// First column of the first head.
    pub first: usize,
    /// Heads of a row.
    pub heads: usize,
    /// Columns from one head to the next.
    pub head_stride: usize,
    /// Columns of a head that stand before the turned ones.
    pub offset: usize,
    /// Turned columns of a head; if that is odd, the last one does not turn.
    pub width: usize,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the position of the row.
    Forward,
    /// Back: from the gradient of what was turned to that of what was there before.
    Back,
}

/// Turns rows in place, each to its position in its sequence: row `r` by `r % sequence`. Column `i` of the turned ones of a head turns
/// with column `i + width / 2`, by the angle `position · base^(-2 i / width)`. Sine and cosine are right to 4e-7.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If `x` has no whole rows, or the heads are not in them.
pub fn turn(
    stream: &Stream,
    sms: u32,
    x: Slice<Bf16>,
    heads: Heads,
    sequence: usize,
    base: f32,
    direction: Direction,
) -> Result<()> {
    let Heads { row_stride, first, heads, head_stride, offset, width } = heads;
    let (rows, half) = (x.len() / row_stride, width / 2);
    assert!(x.len() == rows * row_stride, "{} values are no rows of {row_stride}", x.len());
    let end = first + (heads.max(1) - 1) * head_stride + offset + width;
    assert!(end <= row_stride && offset + width <= head_stride.max(width), "heads up to column {end} of {row_stride}");
    assert!(sequence > 0, "sequences have tokens");
    if half == 0 || heads == 0 {
        return Ok(());
    }
    let begin = first + offset;
    let whole = [row_stride, begin, head_stride, half].iter().all(|columns| columns.is_multiple_of(8));
    let kernel = stream.device().kernel(if whole { "rope_turn" } else { "rope_turn_any" });
    if whole {
        assert_aligned(&[x]);
    }
    // A frequency in fp64, a sine and a cosine for each pair.
    let grid = looping(rows, sms, PER_SM, THREADS).shared(16 * count(half));
    let sign = if direction == Direction::Forward { 1f32 } else { -1f32 };
    // SAFETY: the kernel reads and writes the turned columns of `rows` rows, which end before the rows do.
    unsafe {
        let arguments = arguments![
            x,
            count(row_stride),
            count(begin),
            count(heads),
            count(head_stride),
            count(width),
            count(rows),
            count(sequence),
            base,
            sign
        ];
        kernel.launch(stream, grid, arguments)
    }
}
