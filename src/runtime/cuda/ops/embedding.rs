//! Token embedding.

use super::{PER_SM, THREADS, assert_aligned, count, eights, looping, pieces, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// The row of each token, rounded to bf16. `table`: vocabulary × `hidden`, which is a multiple of 8; `tokens`: all below the
/// vocabulary, which is not checked; `y`: tokens × `hidden`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or matrices do not begin at multiples of 16 bytes.
pub fn forward(
    stream: &Stream,
    sms: u32,
    table: Slice<f32>,
    tokens: Slice<u32>,
    y: Slice<Bf16>,
    hidden: usize,
) -> Result<()> {
    assert_lengths(table, tokens, y, hidden);
    let groups = eights(y.len());
    let kernel = stream.device().kernel("embedding_forward");
    // SAFETY: the kernel reads rows of the table that the tokens name, and writes all of `y`.
    unsafe {
        kernel.launch(stream, streaming(groups as usize, sms), arguments![table, tokens, y, groups, eights(hidden)])
    }
}

/// Adds the gradient of each token's row, `dy`, to that of the table. Gradients of the same token are added in the order of their
/// positions, so the bits do not depend on `sms`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// As [`forward`].
pub fn gradient(
    stream: &Stream,
    sms: u32,
    dy: Slice<Bf16>,
    tokens: Slice<u32>,
    d_table: Slice<f32>,
    hidden: usize,
) -> Result<()> {
    assert_lengths(d_table, tokens, dy, hidden);
    let groups = eights(hidden);
    let strips = groups.div_ceil(THREADS) as usize;
    let kernel = stream.device().kernel("embedding_gradient");
    let grid = looping(pieces(tokens.len() * strips) as usize, sms, PER_SM, THREADS);
    // SAFETY: the kernel reads all of `dy`, and adds to rows of the table that the tokens name.
    unsafe { kernel.launch(stream, grid, arguments![dy, tokens, d_table, count(tokens.len()), groups]) }
}

fn assert_lengths(table: Slice<f32>, tokens: Slice<u32>, rows: Slice<Bf16>, hidden: usize) {
    assert!(table.len().is_multiple_of(hidden), "{} values are no rows of {hidden}", table.len());
    assert!(rows.len() == tokens.len() * hidden, "a row of {hidden} for each of {} tokens", tokens.len());
    assert_aligned(&[table]);
    assert_aligned(&[rows]);
}
