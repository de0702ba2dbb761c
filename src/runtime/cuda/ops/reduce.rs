//! Sums over GPUs.

use super::{assert_aligned, count, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Slice, Stream};

/// Arrays that can be added up at once; so many are in the kernel.
pub const MOST_SOURCES: usize = 64;

/// `to = Σ sources`, in their order. `sources`: where equally long arrays of f32 begin, each at a multiple of 16 bytes, in this GPU's
/// memory or in that of one that it can reach; `to.len()` elements of each are added from element `offset` on, a multiple of 4. `to` may
/// be that part of one of them.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If there are more than [`MOST_SOURCES`], or `offset` or `to` is not aligned.
pub fn sum(stream: &Stream, sms: u32, sources: Slice<u64>, offset: usize, to: Slice<f32>) -> Result<()> {
    assert!(sources.len() <= MOST_SOURCES, "{} sources, more than {MOST_SOURCES}", sources.len());
    assert!(offset.is_multiple_of(4), "an offset of {offset} is not 16 bytes from another");
    assert_aligned(&[to]);
    let kernel = stream.device().kernel("reduce_sum");
    let grid = streaming(to.len().div_ceil(4), sms);
    // SAFETY: the kernel reads the part of the arrays that the caller says is there, and writes all of `to`.
    unsafe {
        let arguments = arguments![sources, to, offset as u64, to.len() as u64, count(sources.len())];
        kernel.launch(stream, grid, arguments)
    }
}
