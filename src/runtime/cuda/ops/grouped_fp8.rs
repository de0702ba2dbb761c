//! Products in FP8 with a scale for every 128 values of the depth, of the rows of experts with their weights in one launch; or, for shapes
//! that cuBLASLt does not take, of all rows with one matrix. Needs a GPU of compute capability 8.9. Results do not depend on `sms`.

use super::count;
use super::grouped::Experts;
use super::quantise::{Groups, TILE, Weights, block_scales, require_fp8, tile_scales};
use crate::error::{Error, Result};
use crate::runtime::cuda::kernel::{Grid, arguments};
use crate::runtime::cuda::product::{Blocked, Tiled};
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// Threads of a block.
const THREADS: u32 = 256;
/// Shared memory of a block's stages: three stages of two operands, 128 × 128 of e4m3.
const STAGES: u32 = 3 * 2 * 128 * 128;

/// `y[r] = x[r] · W_eᵀ` for the rows r of each expert e, or with `add` `y[r] +=` that. `x`: rows × inputs as
/// [`quantise::rows`](super::quantise::rows) makes it, `y`: rows × outputs.
///
/// # Errors
/// If the GPU has no FP8, or the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn forward(
    stream: &Stream,
    sms: u32,
    x: Tiled,
    w: &Weights,
    groups: Groups,
    y: Slice<Bf16>,
    add: bool,
) -> Result<()> {
    rows(stream, sms, x, (w.values, w.count), (w.inputs, w.outputs), groups, y, add)
}

/// `dx[r] = dy[r] · W_e` for the rows r of each expert e, or with `add` `dx[r] +=` that. `dy`: rows × outputs, `dx`: rows × inputs.
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// As [`forward`].
pub fn input_gradient(
    stream: &Stream,
    sms: u32,
    dy: Tiled,
    w: &Weights,
    groups: Groups,
    dx: Slice<Bf16>,
    add: bool,
) -> Result<()> {
    rows(stream, sms, dy, (w.transposed, w.count), (w.outputs, w.inputs), groups, dx, add)
}

#[allow(clippy::too_many_arguments)] // as many as the product has
fn rows(
    stream: &Stream,
    sms: u32,
    x: Tiled,
    (w, matrices): (Blocked, usize),
    (depth, width): (usize, usize),
    groups: Groups,
    y: Slice<Bf16>,
    add: bool,
) -> Result<()> {
    require_fp8(stream)?;
    let most = groups.most;
    assert_eq!(matrices, groups.count(), "a matrix for each expert");
    assert!(depth.is_multiple_of(16) && width.is_multiple_of(16), "rows of whole 16 bytes: {depth}, {width}");
    assert!(x.values.len() == most * depth && y.len() == most * width, "{most} rows of {depth} and {width}");
    assert!(x.scales.len() >= tile_scales(most, depth), "scales of {most} × {depth}");
    let scales = block_scales(width, depth);
    assert!(w.values.len() == matrices * depth * width && w.scales.len() == matrices * scales, "{matrices} matrices");
    super::assert_aligned(&[x.values, w.values]);
    super::assert_aligned(&[y]);
    let tiles = (most.div_ceil(TILE) + matrices) * width.div_ceil(TILE);
    let grid = grid(stream, sms, tiles, matrices + 1)?;
    let kernel = stream.device().kernel("grouped_fp8_rows");
    let blocks = Blocked::blocks_apart(depth);
    // SAFETY: the kernel reads and writes rows below the last offset, which is a number of rows, and reads the weights; all were checked.
    unsafe {
        let arguments = arguments![
            x.values,
            x.scales,
            w.values,
            w.scales,
            count(scales),
            count(blocks),
            groups.offsets,
            count(matrices),
            count(most),
            y,
            count(depth),
            count(width),
            u32::from(add)
        ];
        kernel.launch(stream, grid, arguments)
    }
}

/// `dW_e += dy_eᵀ · x_e` for each expert e that has rows. `xt` and `dyt`: inputs and outputs × [`Groups::columns`], as
/// [`quantise::columns`](super::quantise::columns) makes them.
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// As [`forward`].
pub fn weight_gradient(
    stream: &Stream,
    sms: u32,
    xt: Tiled,
    dyt: Tiled,
    groups: Groups,
    dw: Experts<f32>,
    (inputs, outputs): (usize, usize),
) -> Result<()> {
    require_fp8(stream)?;
    let columns = groups.columns();
    assert_eq!(dw.count, groups.count(), "a matrix for each expert");
    assert!(inputs.is_multiple_of(8) && outputs.is_multiple_of(8), "rows of whole 16 bytes: {inputs}, {outputs}");
    for (matrix, rows) in [(xt, inputs), (dyt, outputs)] {
        assert!(matrix.values.len() == rows * columns, "{rows} × {columns} transposed");
        assert!(matrix.scales.len() >= tile_scales(rows, columns), "scales of {rows} × {columns}");
    }
    let last = (dw.count - 1) * dw.stride + inputs * outputs;
    assert!(dw.first.len() >= last && dw.stride >= inputs * outputs, "weights of {} experts", dw.count);
    assert!(dw.stride.is_multiple_of(4), "every expert's weights start at a multiple of 16 bytes");
    super::assert_aligned(&[xt.values, dyt.values]);
    super::assert_aligned(&[dw.first]);
    let tiles = outputs.div_ceil(TILE) * inputs.div_ceil(TILE) * dw.count;
    let grid = grid(stream, sms, tiles, 2 * (dw.count + 1))?;
    let kernel = stream.device().kernel("grouped_fp8_weight_gradient");
    // SAFETY: the kernel reads columns below `columns`, and adds to all weights of experts that have rows; all were checked.
    unsafe {
        let arguments = arguments![
            dyt.values,
            dyt.scales,
            xt.values,
            xt.scales,
            count(columns),
            groups.offsets,
            count(dw.count),
            count(groups.most),
            dw.first,
            dw.stride as u64,
            count(inputs),
            count(outputs)
        ];
        kernel.launch(stream, grid, arguments)
    }
}

/// A block on each SM, or fewer if there are never so many tiles: no two have room in an SM's registers. `numbers`: of 4 bytes, that stand
/// behind the stages.
fn grid(stream: &Stream, sms: u32, tiles: usize, numbers: usize) -> Result<Grid> {
    let shared = STAGES + 4 * count(numbers);
    let device = stream.device();
    if shared > device.shared_memory {
        return Err(Error::new(format!(
            "{} has {} bytes of shared memory for a block; FP8 products of experts need {shared}",
            device.name, device.shared_memory
        )));
    }
    let tiles = u32::try_from(tiles).unwrap_or(u32::MAX);
    Ok(Grid::of(tiles.min(sms.max(1)), THREADS).shared(shared))
}
