//! Typed launches of kernels: each function checks shapes and launches. None waits.
//!
//! Matrices are row-major slices; their widths are given or follow from lengths. `sms` is how many SMs an op may use: a kernel that
//! walks over its work in a loop is launched with as many blocks as fit there at once.

pub mod attention;
pub mod bias;
mod columns;
pub mod element;
pub mod embedding;
pub mod exchange;
pub mod expert_bias;
pub mod gate;
pub mod grouped;
pub mod grouped_fp8;
pub mod latent;
pub mod loss;
pub mod norm;
pub mod optimizer;
pub mod packed;
pub mod quantise;
pub mod reduce;
pub mod rope;
pub mod router;
pub mod staging;
pub mod swiglu;

use super::kernel::Grid;
use super::{Element, Slice};

/// How many rows an op works on.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// There is room for so many.
    pub most: usize,
    /// How many there are: one number on the device; [`Slice::none`]: as many as there is room for.
    pub count: Slice<u32>,
}

impl Rows {
    /// So many, known on the host.
    pub fn exactly(rows: usize) -> Self {
        Self { most: rows, count: Slice::none() }
    }
}

/// A grid for a kernel that loops over `work` pieces, one block for each, `per_sm` blocks on an SM at a time.
fn looping(work: usize, sms: u32, per_sm: u32, threads: u32) -> Grid {
    let most = sms.saturating_mul(per_sm).max(1);
    Grid::of(u32::try_from(work).unwrap_or(u32::MAX).min(most), threads)
}

/// Threads of a block of the kernels that move memory.
const THREADS: u32 = 256;

/// How many such blocks an SM has at once: all its threads.
const PER_SM: u32 = 8;

/// A grid for a kernel that loops over `work` pieces, one thread for each, and does little but move memory.
fn streaming(work: usize, sms: u32) -> Grid {
    looping(work.div_ceil(THREADS as usize), sms, PER_SM, THREADS)
}

/// A number of rows or columns as kernels take it.
///
/// # Panics
/// If it has more than 32 bits: no dimension of a model has.
fn count(number: usize) -> u32 {
    u32::try_from(number).expect("dimensions have 32 bits")
}

/// How many groups of 8 so many values are: 16 bytes of bf16.
///
/// # Panics
/// If they are no whole groups, or so many that a thread's index could overflow (32 GiB of bf16).
fn eights(values: usize) -> u32 {
    assert!(values.is_multiple_of(8), "{values} values are no whole groups of 8");
    pieces(values / 8)
}

/// A number of pieces of work that threads walk over in steps of the grid.
///
/// # Panics
/// If a thread's index could overflow.
fn pieces(number: usize) -> u32 {
    assert!(number < 1 << 31, "{number} pieces are too many for one launch");
    number as u32
}

/// Asserts that 16 bytes can be accessed at once. Of nothing, they always can.
fn assert_aligned<E: Element>(slices: &[Slice<E>]) {
    for slice in slices {
        assert!(
            slice.address().is_multiple_of(16),
            "a slice begins at a multiple of 16 bytes, not at {:#x}",
            slice.address()
        );
    }
}
