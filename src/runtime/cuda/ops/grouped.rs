//! Products of the rows of experts with their weights: one launch for all experts, whose numbers of rows are known on the device only.
//!
//! Rows are sorted by expert: those of expert e are `offsets[e]` to `offsets[e + 1]`, of `count + 1` offsets on the device. Rows
//! beyond the last offset are neither read nor written. Widths are multiples of 8, and every expert's weights start at a multiple of
//! 16 bytes. Results do not depend on `sms`.

use super::count;
use crate::error::{Error, Result};
use crate::runtime::cuda::kernel::{Grid, arguments};
use crate::runtime::cuda::{Bf16, Element, Slice, Stream};

/// Weights of experts: `outputs × inputs` each, that of expert e from `e · stride` elements after `first` on.
#[derive(Debug)]
pub struct Experts<E> {
    /// From the first expert's first element to at least the last expert's last.
    pub first: Slice<E>,
    /// Elements from one expert's to the next one's.
    pub stride: usize,
    /// Experts.
    pub count: usize,
}

impl<E> Clone for Experts<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Experts<E> {}

/// Threads of a block: two halves, each with its own tiles.
const THREADS: u32 = 256;
/// Rows and columns of a tile.
const TILE: usize = 128;
/// Shared memory of a block's stages: two halves of three stages of two operands, 128 × 32 of bf16.
const STAGES: u32 = 2 * 3 * 2 * 128 * 32 * 2;
/// Most experts: so many starts of tiles fit behind the stages even in the 99 KiB of the smaller GPUs.
const EXPERTS: usize = 512;

impl<E: Element> Experts<E> {
    fn check(&self, (inputs, outputs): (usize, usize), offsets: Slice<u32>) {
        assert!(inputs > 0 && outputs > 0, "weights of {outputs} × {inputs}");
        assert!(inputs.is_multiple_of(8) && outputs.is_multiple_of(8), "rows of whole 16 bytes: {inputs}, {outputs}");
        assert!((1..=EXPERTS).contains(&self.count), "1 to {EXPERTS} experts, not {}", self.count);
        assert_eq!(offsets.len(), self.count + 1, "offsets of all experts, and the end");
        let whole = (self.stride * E::BYTES).is_multiple_of(16) && self.first.address().is_multiple_of(16);
        assert!(whole, "every expert's weights start at a multiple of 16 bytes");
        let last = (self.count - 1) * self.stride + inputs * outputs;
        assert!(self.first.len() >= last && self.stride >= inputs * outputs, "weights of {} experts", self.count);
    }
}

/// `y[r] = x[r] · W_eᵀ` for the rows r of each expert e. `x`: rows × inputs, `y`: rows × outputs, with room for as many rows as there
/// can be.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn forward(
    stream: &Stream,
    sms: u32,
    x: Slice<Bf16>,
    w: Experts<Bf16>,
    offsets: Slice<u32>,
    y: Slice<Bf16>,
    (inputs, outputs): (usize, usize),
) -> Result<()> {
    w.check((inputs, outputs), offsets);
    let rows = rows((x, inputs), (y, outputs));
    let grid = grid(stream, sms, rows.div_ceil(TILE) + w.count, outputs.div_ceil(TILE), w.count)?;
    let kernel = stream.device().kernel("grouped_forward");
    let apart = w.stride as u64;
    let arguments = arguments![x, w.first, apart, offsets, count(w.count), y, count(inputs), count(outputs)];
    // SAFETY: the kernel reads and writes rows below the last offset, which is a number of rows, and the weights; all were checked.
    unsafe { kernel.launch(stream, grid, arguments) }
}

/// `dx[r] = dy[r] · W_e` for the rows r of each expert e. `dy`: rows × outputs, `dx`: rows × inputs.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn input_gradient(
    stream: &Stream,
    sms: u32,
    dy: Slice<Bf16>,
    w: Experts<Bf16>,
    offsets: Slice<u32>,
    dx: Slice<Bf16>,
    (inputs, outputs): (usize, usize),
) -> Result<()> {
    w.check((inputs, outputs), offsets);
    let rows = rows((dx, inputs), (dy, outputs));
    let grid = grid(stream, sms, rows.div_ceil(TILE) + w.count, inputs.div_ceil(TILE), w.count)?;
    let kernel = stream.device().kernel("grouped_input_gradient");
    let apart = w.stride as u64;
    let arguments = arguments![dy, w.first, apart, offsets, count(w.count), dx, count(inputs), count(outputs)];
    // SAFETY: as in `forward`.
    unsafe { kernel.launch(stream, grid, arguments) }
}

/// `dW_e += dy_eᵀ · x_e` for each expert e that has rows. `x`: rows × inputs, `dy`: rows × outputs.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn weight_gradient(
    stream: &Stream,
    sms: u32,
    x: Slice<Bf16>,
    dy: Slice<Bf16>,
    offsets: Slice<u32>,
    dw: Experts<f32>,
    (inputs, outputs): (usize, usize),
) -> Result<()> {
    dw.check((inputs, outputs), offsets);
    rows((x, inputs), (dy, outputs));
    let grid = grid(stream, sms, outputs.div_ceil(TILE) * dw.count, inputs.div_ceil(TILE), dw.count)?;
    let kernel = stream.device().kernel("grouped_weight_gradient");
    let apart = dw.stride as u64;
    let arguments = arguments![x, dy, dw.first, apart, offsets, count(dw.count), count(inputs), count(outputs)];
    // SAFETY: as in `forward`; a block alone reads and writes a tile of `dw`.
    unsafe { kernel.launch(stream, grid, arguments) }
}

/// How many rows there can be: as many as both have room for.
fn rows((x, inputs): (Slice<Bf16>, usize), (y, outputs): (Slice<Bf16>, usize)) -> usize {
    let rows = x.len() / inputs;
    assert!(x.len() == rows * inputs && y.len() == rows * outputs, "as many rows in as out");
    assert!(x.address().is_multiple_of(16) && y.address().is_multiple_of(16), "rows start at multiples of 16 bytes");
    rows
}

/// A block on each SM, or fewer if there are never so many tiles. A block takes more than half of an SM's registers, so that no two
/// share one.
fn grid(stream: &Stream, sms: u32, down: usize, beside: usize, experts: usize) -> Result<Grid> {
    let shared = STAGES + 4 * (count(experts) + 1);
    let device = stream.device();
    if shared > device.shared_memory {
        return Err(Error::new(format!(
            "{} has {} bytes of shared memory for a block; products of experts need {shared}",
            device.name, device.shared_memory
        )));
    }
    let pairs = u32::try_from((down * beside).div_ceil(2)).unwrap_or(u32::MAX);
    Ok(Grid::of(pairs.min(sms.max(1)), THREADS).shared(shared))
}
