//! Biases: one value for each column.

use super::columns::{self, Times};
use super::{assert_aligned, eights, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// Adds a bias to every row of `y`: rows × `bias.len()`, which is a multiple of 8.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or a slice does not begin at a multiple of 16 bytes.
pub fn add(stream: &Stream, sms: u32, y: Slice<Bf16>, bias: Slice<f32>) -> Result<()> {
    let (groups, width) = (eights(y.len()), eights(bias.len()));
    assert!(y.len().is_multiple_of(bias.len()), "{} values are no rows of {}", y.len(), bias.len());
    assert_aligned(&[y]);
    assert_aligned(&[bias]);
    let kernel = stream.device().kernel("bias_add");
    // SAFETY: the kernel reads and writes all of `y`, and reads all of `bias`.
    unsafe { kernel.launch(stream, streaming(groups as usize, sms), arguments![y, bias, groups, width]) }
}

/// Adds the sums of the columns of `dy` (rows × `d_bias.len()`, which is a multiple of 8) to `d_bias`. `scratch`: at least
/// [`gradient_scratch`]. The bits do not depend on `sms`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// As [`add`].
pub fn gradient(stream: &Stream, sms: u32, dy: Slice<Bf16>, d_bias: Slice<f32>, scratch: Slice<f32>) -> Result<()> {
    columns::add_sums(stream, sms, dy, &Times::One, d_bias, scratch)
}

/// f32 elements of scratch for a gradient.
pub fn gradient_scratch(rows: usize, width: usize) -> usize {
    columns::scratch(rows, width)
}
