//! To FP8 (e4m3), with a scale for each tile: what `host::precision` emulates. Needs a GPU of compute capability 8.9.
//!
//! A scale is the largest magnitude of its tile over 448, in fp32 (no power of two), or 1 where that would be 0; a value is its e4m3
//! number times its tile's scale. Scales lie as cuBLASLt reads them for a product over the depth (the columns of a matrix): those of 1 ×
//! 128 tiles (`VEC128_32F`) by tile of the depth, then by row; those of 128 × 128 blocks (`BLK128x128_32F`) by block of rows, then by block
//! of the depth, where rows of blocks stand a multiple of 4 apart. Tiles at the edges are cut.

use super::{PER_SM, Rows, THREADS, assert_aligned, count, looping, pieces, streaming};
use crate::error::{Error, Result};
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Fp8, Slice, Stream};

/// Width of a tile.
pub const TILE: usize = 128;

/// The oldest GPUs that have FP8: compute capability 8.9.
const OLDEST: u32 = 89;

/// Columns of a tile of tokens that a block works on; so many are in the kernel.
const STRIP: usize = 64;

/// Scales of `rows × depth` values in 1 × 128 tiles along the depth.
pub fn tile_scales(rows: usize, depth: usize) -> usize {
    depth.div_ceil(TILE) * rows
}

/// Scales of `rows × depth` values in 128 × 128 blocks, with what stands between rows of blocks.
pub fn block_scales(rows: usize, depth: usize) -> usize {
    rows.div_ceil(TILE) * block_stride(depth)
}

/// From one row of blocks to the next.
fn block_stride(depth: usize) -> usize {
    depth.div_ceil(TILE).next_multiple_of(4)
}

/// Tiles of 1 × 128 along rows of `width` values, a multiple of 8, for a product over the columns. `x` and `y`: `rows.most` × `width`;
/// `scales`: [`tile_scales`]`(rows.most, width)`, of tile `t` of row `r` at `t · rows.most + r`. Rows behind the count are left alone.
///
/// # Errors
/// If the GPU has no FP8, or the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or matrices do not begin at multiples of 16 bytes.
pub fn rows(
    stream: &Stream,
    sms: u32,
    x: Slice<Bf16>,
    y: Slice<Fp8>,
    scales: Slice<f32>,
    width: usize,
    rows: Rows,
) -> Result<()> {
    require_fp8(stream)?;
    assert!(width.is_multiple_of(8), "rows of whole 16 bytes: {width}");
    assert_lengths(x, y, width, rows);
    assert!(scales.len() >= tile_scales(rows.most, width), "scales of {} × {width}", rows.most);
    let tiles = pieces(rows.most * width.div_ceil(TILE)) as usize;
    let kernel = stream.device().kernel("quantise_rows");
    // Half a warp has a tile.
    let grid = streaming(16 * tiles, sms);
    // SAFETY: the kernel reads at most `rows.most` rows, and writes as many and their scales.
    unsafe { kernel.launch(stream, grid, arguments![x, y, scales, rows.count, count(rows.most), count(width)]) }
}

/// Tiles of 128 × 1 along the rows (tokens), written transposed, for a product over the tokens. `x`: `rows.most` × `width`, multiples
/// of 16 and of 8; `y`: `width` × `rows.most`; `scales`: [`tile_scales`]`(width, rows.most)`, of tile `t` of column `c` at `t · width + c`.
/// Where the count ends within a tile, the rest of the tile is written as zeros, so that a product may go to its end; tiles behind that
/// are left alone.
///
/// # Errors
/// As [`rows`].
///
/// # Panics
/// As [`rows`].
pub fn columns(
    stream: &Stream,
    sms: u32,
    x: Slice<Bf16>,
    y: Slice<Fp8>,
    scales: Slice<f32>,
    width: usize,
    rows: Rows,
) -> Result<()> {
    require_fp8(stream)?;
    assert!(width.is_multiple_of(8), "rows of whole 16 bytes: {width}");
    assert!(rows.most.is_multiple_of(16), "columns of whole 16 bytes: {}", rows.most);
    assert_lengths(x, y, width, rows);
    assert!(scales.len() >= tile_scales(width, rows.most), "scales of {width} × {}", rows.most);
    let tiles = pieces(rows.most.div_ceil(TILE) * width.div_ceil(STRIP)) as usize;
    let kernel = stream.device().kernel("quantise_columns");
    let grid = looping(tiles, sms, PER_SM, THREADS);
    // SAFETY: the kernel reads at most `rows.most` rows, and writes as many columns and their scales.
    unsafe { kernel.launch(stream, grid, arguments![x, y, scales, rows.count, count(rows.most), count(width)]) }
}

/// Blocks of 128 × 128 of a weight matrix, as it is and transposed: for the product over its inputs and for that over its outputs. `w`
/// and `y`: `outputs` × `inputs`, both multiples of 16; `y_transposed`: `inputs` × `outputs`. `scales`: [`block_scales`]`(outputs, inputs)` of
/// `y`, then [`block_scales`]`(inputs, outputs)` of `y_transposed`: the same numbers in the other order. What stands between rows of blocks
/// is not written.
///
/// # Errors
/// As [`rows`].
///
/// # Panics
/// As [`rows`].
#[allow(clippy::too_many_arguments)] // four matrices and their shape
pub fn blocks(
    stream: &Stream,
    sms: u32,
    w: Slice<f32>,
    y: Slice<Fp8>,
    y_transposed: Slice<Fp8>,
    scales: Slice<f32>,
    outputs: usize,
    inputs: usize,
) -> Result<()> {
    require_fp8(stream)?;
    assert!(outputs.is_multiple_of(16) && inputs.is_multiple_of(16), "rows of whole 16 bytes: {outputs} × {inputs}");
    let values = outputs * inputs;
    assert!(w.len() == values && y.len() == values && y_transposed.len() == values, "{outputs} × {inputs} weights");
    let (first, second) = (block_scales(outputs, inputs), block_scales(inputs, outputs));
    assert!(scales.len() >= first + second, "scales of {outputs} × {inputs}, twice");
    let (own, transposed) = (scales.part(0..first), scales.part(first..first + second));
    assert_aligned(&[w]);
    assert_aligned(&[y, y_transposed]);
    let kernel = stream.device().kernel("quantise_blocks");
    let blocks = pieces(outputs.div_ceil(TILE) * inputs.div_ceil(TILE)) as usize;
    // A thread holds 64 values: fewer threads fit.
    let grid = looping(blocks, sms, 2, THREADS);
    let strides = [count(block_stride(inputs)), count(block_stride(outputs))];
    // SAFETY: the kernel reads all of `w`, writes all of both results, and a scale of each for each block.
    unsafe {
        let arguments =
            arguments![w, y, y_transposed, own, transposed, count(outputs), count(inputs), strides[0], strides[1]];
        kernel.launch(stream, grid, arguments)
    }
}

fn assert_lengths(x: Slice<Bf16>, y: Slice<Fp8>, width: usize, rows: Rows) {
    let values = rows.most * width;
    assert!(x.len() == values && y.len() == values, "{} rows of {width}", rows.most);
    assert!(rows.count.len() <= 1, "one count");
    assert_aligned(&[x]);
    assert_aligned(&[y]);
}

fn require_fp8(stream: &Stream) -> Result<()> {
    let device = stream.device();
    if device.capability >= OLDEST {
        return Ok(());
    }
    let (major, minor) = (device.capability / 10, device.capability % 10);
    Err(Error::new(format!("{} (compute capability {major}.{minor}) has no FP8: that needs 8.9", device.name)))
}
