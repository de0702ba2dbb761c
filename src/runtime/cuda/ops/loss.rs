//! Cross-entropy.

use super::{assert_aligned, count, eights, looping, pieces};
use crate::error::Result;
use crate::runtime::cuda::kernel::{Grid, arguments};
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// Threads of a block.
const THREADS: u32 = 1024;

/// `losses[r] = -ln softmax(logits[r])[targets[r]]`, and the gradient of `scale` times their sum: `d_logits = scale · (softmax -
/// one-hot)`. `logits` and `d_logits`: rows × vocabulary, which is a multiple of 8; they do not overlap. `targets`: one for each row, all
/// below the vocabulary, which is not checked.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or matrices do not begin at multiples of 16 bytes.
pub fn cross_entropy(
    stream: &Stream,
    sms: u32,
    logits: Slice<f32>,
    targets: Slice<u32>,
    scale: f32,
    d_logits: Slice<Bf16>,
    losses: Slice<f32>,
) -> Result<()> {
    let rows = losses.len();
    if rows == 0 {
        return Ok(());
    }
    let vocabulary = logits.len() / rows;
    assert!(vocabulary > 0 && logits.len() == rows * vocabulary, "{} logits are no {rows} rows", logits.len());
    assert!(
        d_logits.len() == logits.len() && targets.len() == rows,
        "as many gradients as logits, a target for each row"
    );
    assert_aligned(&[logits]);
    assert_aligned(&[d_logits]);
    let kernel = stream.device().kernel("loss_cross_entropy");
    let grid = looping(rows, sms, 2, THREADS);
    // SAFETY: the kernel reads all logits and targets, and writes all of `d_logits` and `losses`.
    unsafe {
        let arguments = arguments![logits, targets, d_logits, losses, count(rows), eights(vocabulary), scale];
        kernel.launch(stream, grid, arguments)
    }
}

/// Sets `to`, one element, to the sum of the values. One block adds them, always in the same order.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If `to` is not one element.
pub fn sum(stream: &Stream, values: Slice<f32>, to: Slice<f32>) -> Result<()> {
    assert_eq!(to.len(), 1, "one sum");
    let kernel = stream.device().kernel("loss_sum");
    // SAFETY: the kernel reads all values, and writes one.
    unsafe { kernel.launch(stream, Grid::of(1, THREADS), arguments![values, to, pieces(values.len())]) }
}
