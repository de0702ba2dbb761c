//! Products of the rows of experts with their weights: one launch for all experts, whose numbers of rows are known on the device only.
//!
//! Rows are sorted by expert: those of expert e are `offsets[e]` to `offsets[e + 1]`, of `count + 1` offsets on the device. Rows
//! beyond the last offset are neither read nor written. Widths are multiples of 8, and every expert's weights start at a multiple of
//! 16 bytes. Results do not depend on `sms`.

use super::count;
use crate::error::{Error, Result};
use crate::runtime::cuda::kernel::{Grid, Kernel, arguments};
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

/// How blocks of a kernel make the tiles of products.
#[derive(Clone, Copy)]
struct Blocks {
    kernel: &'static str,
    threads: u32,
    /// Rows and columns of a tile.
    tile: (usize, usize),
    /// Tiles that a block makes at a time.
    at_once: usize,
    /// Shared memory of a block's stages.
    stages: u32,
}

/// `kernels/grouped.cu`: two halves of a block with tiles of their own, three stages of two operands, 128 × 32 of bf16.
const fn anywhere(kernel: &'static str) -> Blocks {
    Blocks { kernel, threads: 256, tile: (128, 128), at_once: 2, stages: 2 * 3 * 2 * 128 * 32 * 2 }
}

/// `kernels/grouped_hopper.cu`: four stages of two operands, 64 of the depth each.
const fn on_hopper(kernel: &'static str, (rows, columns): (usize, usize)) -> Blocks {
    let stages = 4 * (rows + columns) as u32 * 64 * 2;
    Blocks { kernel, threads: 384, tile: (rows, columns), at_once: 1, stages }
}

/// Of each product, the kernel for GPUs of all kinds and that for compute capability 9.0.
const FORWARD: [Blocks; 2] = [anywhere("grouped_forward"), on_hopper("grouped_forward_hopper", (128, 256))];
const INPUT_GRADIENT: [Blocks; 2] =
    [anywhere("grouped_input_gradient"), on_hopper("grouped_input_gradient_hopper", (256, 192))];
const WEIGHT_GRADIENT: [Blocks; 2] =
    [anywhere("grouped_weight_gradient"), on_hopper("grouped_weight_gradient_hopper", (256, 192))];
/// What a block of these has in shared memory besides its stages.
const BARRIERS: u32 = 1024;

/// Most experts: so many starts of tiles fit behind the stages, in the 99 KiB of the smaller GPUs and in the 227 of Hopper.
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
    let (kernel, grid) = kernel(stream, sms, &FORWARD, w.count, |(of_rows, columns)| {
        (rows.div_ceil(of_rows) + w.count) * outputs.div_ceil(columns)
    })?;
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
    let (kernel, grid) = kernel(stream, sms, &INPUT_GRADIENT, w.count, |(of_rows, columns)| {
        (rows.div_ceil(of_rows) + w.count) * inputs.div_ceil(columns)
    })?;
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
    let (kernel, grid) = kernel(stream, sms, &WEIGHT_GRADIENT, dw.count, |(rows, columns)| {
        outputs.div_ceil(rows) * dw.count * inputs.div_ceil(columns)
    })?;
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

/// The kernel for the stream's GPU, and its grid: a block on each SM, or fewer if there are never so many tiles. A block takes more than half
/// of an SM's registers, so that no two share one. `tiles`: how many there are at most, of these rows and columns.
fn kernel<'a>(
    stream: &'a Stream,
    sms: u32,
    [anywhere, on_hopper]: &[Blocks; 2],
    experts: usize,
    tiles: impl Fn((usize, usize)) -> usize,
) -> Result<(&'a Kernel, Grid)> {
    let device = stream.device();
    let of = |blocks: &Blocks| blocks.stages + 4 * (count(experts) + 1);
    // Hopper's stages leave no room for the tiles of very many experts.
    let fits = device.capability == 90 && of(on_hopper) + BARRIERS <= device.shared_memory;
    let blocks = if fits { on_hopper } else { anywhere };
    let shared = of(blocks);
    if shared > device.shared_memory {
        return Err(Error::new(format!(
            "{} has {} bytes of shared memory for a block; products of experts need {shared}",
            device.name, device.shared_memory
        )));
    }
    let times = u32::try_from(tiles(blocks.tile).div_ceil(blocks.at_once)).unwrap_or(u32::MAX);
    let grid = Grid::of(times.min(sms.max(1)), blocks.threads).shared(shared);
    Ok((device.kernel(blocks.kernel), grid))
}
