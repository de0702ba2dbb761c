//! Typed launches of kernels: each function checks shapes and launches. None waits.
//!
//! Matrices are row-major slices; their widths are given or follow from lengths. `sms` is how many SMs an op may use: a kernel that
//! walks over its work in a loop is launched with as many blocks as fit there at once.

pub mod attention;
pub mod grouped;
pub mod exchange;
pub mod norm;
pub mod router;

use super::kernel::Grid;

/// A grid for a kernel that loops over `work` pieces, one block for each, `per_sm` blocks on an SM at a time.
fn looping(work: usize, sms: u32, per_sm: u32, threads: u32) -> Grid {
    let most = sms.saturating_mul(per_sm).max(1);
    Grid::of(u32::try_from(work).unwrap_or(u32::MAX).min(most), threads)
}

/// A number of rows or columns as kernels take it.
///
/// # Panics
/// If it has more than 32 bits: no dimension of a model has.
fn count(number: usize) -> u32 {
    u32::try_from(number).expect("dimensions have 32 bits")
}
