//! AdamW, gradient norms, and balancing biases.

use super::{PER_SM, THREADS, assert_aligned, count, looping, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::{Grid, arguments};
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// Values that a block adds the squares of; so much is in the kernel.
const PIECE: usize = 16384;

/// Adds the sum of the squares of the values to `to`, one element. `scratch`: at least [`square_sum_scratch`]. The bits do not depend
/// on `sms`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If there is too little scratch, `to` is not one element, or the values do not begin at a multiple of 16 bytes.
pub fn square_sum(stream: &Stream, sms: u32, values: Slice<f32>, scratch: Slice<f32>, to: Slice<f32>) -> Result<()> {
    let pieces = square_sum_scratch(values.len());
    assert!(scratch.len() >= pieces, "scratch for {} values", values.len());
    assert_eq!(to.len(), 1, "one sum");
    assert_aligned(&[values]);
    let device = stream.device();
    // SAFETY: the first kernel reads all values and writes a sum for each piece; the second one reads those.
    unsafe {
        let grid = looping(pieces, sms, PER_SM, THREADS);
        device.kernel("optimizer_squares").launch(stream, grid, arguments![values, scratch, values.len() as u64])?;
        // A block, whatever `sms` is.
        let kernel = device.kernel("optimizer_squares_add");
        kernel.launch(stream, Grid::of(1, 1024), arguments![scratch, to, count(pieces)])
    }
}

/// f32 elements of scratch for the squares of so many values.
pub fn square_sum_scratch(len: usize) -> usize {
    len.div_ceil(PIECE)
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Its size.
    pub rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second.
    pub beta2: f32,
    /// Added to the root of the second.
    pub epsilon: f32,
    /// Of the first moment, for having started at zero: `1 / (1 - beta1^step)`.
    pub correction1: f32,
    /// Of the second, likewise.
    pub correction2: f32,
    /// Largest norm of all gradients together; `None`: any.
    pub clip: Option<f32>,
}

/// One step of AdamW, as the host takes it. `moments`: first and second; `copy`: the parameters as bf16, or none; `decay`: what the
/// parameters lose, as part of them (the rate times the weight decay); `squares`: the sum of the squares of all gradients, one element,
/// which is read only if the step clips.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or slices do not begin at multiples of 16 bytes.
#[allow(clippy::too_many_arguments)] // all that a parameter has
pub fn adamw(
    stream: &Stream,
    sms: u32,
    step: &Step,
    parameters: Slice<f32>,
    moments: [Slice<f32>; 2],
    gradient: Slice<f32>,
    copy: Slice<Bf16>,
    decay: f32,
    squares: Slice<f32>,
) -> Result<()> {
    let [first, second] = moments;
    let len = parameters.len();
    assert!(
        [first, second, gradient].iter().all(|slice| slice.len() == len),
        "moments and a gradient for each of {len}"
    );
    assert!(copy.address() == 0 || copy.len() == len, "a copy of {} of {len} parameters", copy.len());
    assert_aligned(&[parameters, first, second, gradient]);
    assert_aligned(&[copy]);
    let (clip, squares) = match step.clip {
        Some(clip) => {
            assert_eq!(squares.len(), 1, "one sum of squares");
            (clip, squares)
        }
        None => (f32::INFINITY, Slice::none()),
    };
    let &Step { rate, beta1, beta2, epsilon, correction1, correction2, .. } = step;
    let kernel = stream.device().kernel("optimizer_adamw");
    // At least one block, for a rest of less than 4.
    let grid = streaming(len.div_ceil(4), sms);
    // SAFETY: the kernel reads and writes all parameters and moments, reads all gradients, and writes the copy if there is one.
    unsafe {
        let arguments = arguments![
            parameters,
            first,
            second,
            gradient,
            copy,
            squares,
            len as u64,
            clip,
            rate,
            beta1,
            beta2,
            epsilon,
            correction1,
            correction2,
            decay
        ];
        kernel.launch(stream, grid, arguments)
    }
}

/// Moves each expert's bias by `rate`: up where its load, in tokens, was below the mean, down where it was above.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If there are not as many biases as loads.
pub fn balance(stream: &Stream, bias: Slice<f32>, loads: Slice<f32>, rate: f32) -> Result<()> {
    assert_eq!(bias.len(), loads.len(), "a bias for each expert");
    let kernel = stream.device().kernel("optimizer_balance");
    // SAFETY: the kernel reads all loads, and reads and writes all biases.
    unsafe { kernel.launch(stream, Grid::of(1, 32), arguments![bias, loads, count(bias.len()), rate]) }
}
