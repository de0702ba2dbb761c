//! To FP8 (e4m3), with a scale for each tile: what `host::precision` emulates. Needs a GPU of compute capability 8.9.
//!
//! A scale is the largest magnitude of its tile over 448, in fp32, or the next power of two ([`Scale`]; none below 2⁻¹²⁶, where the host
//! goes on: that is for values below 2⁻¹¹⁸), or 1 where that would be 0; a value is its e4m3 number times its tile's scale. Scales lie as cuBLASLt reads them for a product over the depth (the columns of a matrix): those of 1 ×
//! 128 tiles (`VEC128_32F`) by tile of the depth, then by row; those of 128 × 128 blocks (`BLK128x128_32F`) by block of rows, then by block
//! of the depth, where rows of blocks stand a multiple of 4 apart. Tiles at the edges are cut.

use super::grouped::Experts;
use super::{PER_SM, Rows, THREADS, assert_aligned, count, looping, pieces, streaming};
use crate::error::{Error, Result};
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::product::{Blocked, Tiled};
use crate::runtime::cuda::{Bf16, Device, Fp8, Slice, Stream};
pub use crate::runtime::host::precision::Scale;

/// Width of a tile.
pub const TILE: usize = 128;

/// Most experts; so many are in the kernel.
const EXPERTS: usize = 512;

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

/// Rows that belong to experts: those of expert e are `offsets[e]` to `offsets[e + 1]`.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// There is room for so many rows.
    pub most: usize,
    /// On the device; [`Slice::none`]: one expert has all rows.
    pub offsets: Slice<u32>,
}

impl Groups {
    /// So many rows, known on the host, and no experts.
    pub fn one(rows: usize) -> Self {
        Self { most: rows, offsets: Slice::none() }
    }

    /// Experts.
    pub fn count(&self) -> usize {
        if self.offsets.is_empty() { 1 } else { self.offsets.len() - 1 }
    }

    /// Length of the rows of a transposed copy, in which every expert starts at a multiple of 128.
    pub fn columns(&self) -> usize {
        columns_of(self.most, (!self.offsets.is_empty()).then(|| self.count()))
    }

    /// All of them, of whichever expert.
    pub fn rows(&self) -> Rows {
        match self.offsets.len().checked_sub(1) {
            None => Rows::exactly(self.most),
            Some(end) => Rows { most: self.most, count: self.offsets.part(end..end + 1) },
        }
    }

    fn check(&self) {
        assert!((1..=EXPERTS).contains(&self.count()), "1 to {EXPERTS} experts, not {}", self.count());
    }
}

/// [`Groups::columns`] of `most` rows, of so many experts if there are experts.
pub fn columns_of(most: usize, experts: Option<usize>) -> usize {
    match experts {
        None => most.next_multiple_of(16),
        Some(experts) => (most + experts * (TILE - 1)).next_multiple_of(TILE),
    }
}

/// Tiles of 1 × 128 along rows of `width` values, a multiple of 8, for a product over the columns. `x` and `y`: `rows.most` × `width`;
/// `scales`: [`tile_scales`]`(rows.most, width)`, of tile `t` of row `r` at `t · rows.most + r`. Rows behind the count are left alone.
///
/// # Errors
/// If the GPU has no FP8, or the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or matrices do not begin at multiples of 16 bytes.
pub fn rows(stream: &Stream, sms: u32, x: Slice<Bf16>, y: Tiled, width: usize, rows: Rows, scale: Scale) -> Result<()> {
    require_fp8(stream)?;
    let Tiled { values: y, scales } = y;
    let values = rows.most * width;
    assert!(width.is_multiple_of(8), "rows of whole 16 bytes: {width}");
    assert!(x.len() == values && y.len() == values, "{} rows of {width}", rows.most);
    assert!(rows.count.len() <= 1, "one count");
    assert!(scales.len() >= tile_scales(rows.most, width), "scales of {} × {width}", rows.most);
    assert_aligned(&[x]);
    assert_aligned(&[y]);
    let tiles = pieces(rows.most * width.div_ceil(TILE)) as usize;
    let kernel = stream.device().kernel("quantise_rows");
    // Half a warp has a tile.
    let grid = streaming(16 * tiles, sms);
    // SAFETY: the kernel reads at most `rows.most` rows, and writes as many and their scales.
    unsafe {
        let arguments = arguments![x, y, scales, rows.count, count(rows.most), count(width), power(scale)];
        kernel.launch(stream, grid, arguments)
    }
}

/// Scales of rows in FP8, of 1 × 128 tiles along them.
#[derive(Clone, Copy, Debug)]
pub enum RowScales {
    /// By tile, then by row, as [`rows`] leaves them.
    ByTile(Slice<f32>),
    /// By row, then by tile, as they are sent.
    ByRow(Slice<f32>),
}

/// What [`rows`] made, back in bf16, which has its values if scales are powers of two. `x` and `y`: `rows.most` × `width`, a multiple of 8; rows
/// behind the count are left alone.
///
/// # Errors
/// As [`rows`].
///
/// # Panics
/// As [`rows`].
pub fn dequantise_rows(
    stream: &Stream,
    sms: u32,
    (x, scales): (Slice<Fp8>, RowScales),
    y: Slice<Bf16>,
    width: usize,
    rows: Rows,
) -> Result<()> {
    require_fp8(stream)?;
    let tiles = width.div_ceil(TILE);
    let (scales, by_row, by_tile) = match scales {
        RowScales::ByTile(scales) => (scales, 1, rows.most),
        RowScales::ByRow(scales) => (scales, tiles, 1),
    };
    let values = rows.most * width;
    assert!(width.is_multiple_of(8), "rows of whole 16 bytes: {width}");
    assert!(x.len() == values && y.len() == values && scales.len() >= tiles * rows.most, "{} rows", rows.most);
    assert!(rows.count.len() <= 1, "one count");
    assert_aligned(&[x]);
    assert_aligned(&[y]);
    let kernel = stream.device().kernel("dequantise_rows");
    let grid = streaming(pieces(values / 8) as usize, sms);
    // SAFETY: the kernel reads at most `rows.most` rows and their scales, and writes as many.
    unsafe {
        let arguments =
            arguments![x, scales, count(by_row), count(by_tile), y, rows.count, count(rows.most), count(width)];
        kernel.launch(stream, grid, arguments)
    }
}

/// Scales as they were sent, by row, to where products read them, by tile: `y` has `tiles` × `rows.most`.
///
/// # Errors
/// As [`rows`].
///
/// # Panics
/// If lengths do not fit each other.
pub fn turn_scales(stream: &Stream, sms: u32, x: Slice<f32>, y: Slice<f32>, tiles: usize, rows: Rows) -> Result<()> {
    assert!(x.len() >= tiles * rows.most && y.len() >= tiles * rows.most, "scales of {} rows", rows.most);
    assert!(rows.count.len() <= 1, "one count");
    let kernel = stream.device().kernel("quantise_turn_scales");
    let grid = streaming(pieces(tiles * rows.most) as usize, sms);
    // SAFETY: the kernel reads the scales of at most `rows.most` rows, and writes as many.
    unsafe { kernel.launch(stream, grid, arguments![x, y, rows.count, count(rows.most), count(tiles)]) }
}

/// What is quantised along its rows.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// Values.
    Values(Slice<Bf16>),
    /// What [`rows`] made of them, with scales of as many rows as there is room for.
    Quantised(Tiled),
}

/// Tiles of 128 × 1 along each expert's rows (tokens), written transposed, for a product over them. `x`: `groups.most` × `width`, a multiple
/// of 8; `y`: `width` × [`Groups::columns`], where tile `t` of all experts' is 128 columns from `128 · t` on; its scales: [`tile_scales`] of
/// that, of tile `t` of column `c` at `t · width + c`. Where an expert's rows end within a tile, the rest of the tile is written as zeros, so
/// that a product may go to its end; tiles behind the last are left alone.
///
/// # Errors
/// As [`rows`].
///
/// # Panics
/// As [`rows`].
pub fn columns(
    stream: &Stream,
    sms: u32,
    x: Source,
    y: Tiled,
    width: usize,
    groups: Groups,
    scale: Scale,
) -> Result<()> {
    require_fp8(stream)?;
    groups.check();
    let Tiled { values: y, scales } = y;
    let (most, stride) = (groups.most, groups.columns());
    assert!(width.is_multiple_of(8), "rows of whole 16 bytes: {width}");
    assert!(y.len() == width * stride, "{width} × {stride} transposed");
    assert!(scales.len() >= tile_scales(width, stride), "scales of {width} × {stride}");
    assert_aligned(&[y]);
    let tiles = pieces(stride.div_ceil(TILE) * width.div_ceil(STRIP)) as usize;
    let grid = looping(tiles, sms, PER_SM, THREADS);
    let device = stream.device();
    let (offsets, experts, power) = (groups.offsets, count(groups.count()), power(scale));
    let (rows, width_of, stride) = (count(most), count(width), count(stride));
    // SAFETY: the kernels read at most `most` rows, and write as many columns, in tiles of experts, and their scales.
    unsafe {
        match x {
            Source::Values(x) => {
                assert!(x.len() == most * width, "{most} rows of {width}");
                assert_aligned(&[x]);
                let arguments = arguments![x, y, scales, offsets, experts, rows, width_of, stride, power];
                device.kernel("quantise_columns").launch(stream, grid, arguments)
            }
            Source::Quantised(Tiled { values: x, scales: own }) => {
                assert!(x.len() == most * width && own.len() >= tile_scales(most, width), "{most} rows of {width}");
                assert_aligned(&[x]);
                let arguments = arguments![x, own, y, scales, offsets, experts, rows, width_of, stride, power];
                device.kernel("quantise_columns_again").launch(stream, grid, arguments)
            }
        }
    }
}

/// Weights of one or more matrices in blocks of 128 × 128, one behind the other: for the products over their inputs and over their outputs.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// count × outputs × inputs, and count × [`block_scales`] of that.
    pub values: Blocked,
    /// count × inputs × outputs, likewise: the same numbers.
    pub transposed: Blocked,
    /// Matrices.
    pub count: usize,
    /// Rows of each: a multiple of 16.
    pub outputs: usize,
    /// Columns of each: a multiple of 16.
    pub inputs: usize,
}

impl Weights {
    /// Bytes that they take.
    pub fn bytes(count: usize, outputs: usize, inputs: usize) -> usize {
        let scales = block_scales(outputs, inputs) + block_scales(inputs, outputs);
        count * (2 * outputs * inputs + 4 * scales)
    }

    /// In memory of so many bytes.
    ///
    /// # Panics
    /// If it is less, or the widths are no multiples of 16.
    pub fn at(memory: Slice<u8>, count: usize, outputs: usize, inputs: usize) -> Self {
        assert!(
            outputs.is_multiple_of(16) && inputs.is_multiple_of(16),
            "rows of whole 16 bytes: {outputs} × {inputs}"
        );
        let mut next = 0;
        let mut take = |bytes: usize| {
            next += bytes;
            memory.part(next - bytes..next)
        };
        let [values, transposed] = [(); 2].map(|()| take(count * outputs * inputs).cast());
        let [own, other] = [(outputs, inputs), (inputs, outputs)]
            .map(|(rows, depth)| take(4 * count * block_scales(rows, depth)).cast());
        Self {
            values: Blocked { values, scales: own },
            transposed: Blocked { values: transposed, scales: other },
            count,
            outputs,
            inputs,
        }
    }
}

/// Blocks of 128 × 128 of weight matrices, as they are and transposed. What stands between rows of blocks of scales is not written.
///
/// # Errors
/// As [`rows`].
///
/// # Panics
/// As [`rows`].
pub fn blocks(stream: &Stream, sms: u32, w: Experts<Bf16>, to: &Weights) -> Result<()> {
    require_fp8(stream)?;
    let &Weights { values, transposed, count: matrices, outputs, inputs } = to;
    let size = outputs * inputs;
    assert_eq!(w.count, matrices, "as many matrices as quantised ones");
    assert!(w.stride >= size && w.first.len() >= (matrices - 1) * w.stride + size, "{matrices} matrices");
    assert!(w.stride.is_multiple_of(8), "every matrix starts at a multiple of 16 bytes");
    assert_aligned(&[w.first]);
    assert_aligned(&[values.values, transposed.values]);
    let kernel = stream.device().kernel("quantise_blocks");
    let blocks = pieces(matrices * outputs.div_ceil(TILE) * inputs.div_ceil(TILE)) as usize;
    // A thread holds 64 values: fewer threads fit.
    let grid = looping(blocks, sms, 2, THREADS);
    // SAFETY: the kernel reads all of `w`, writes all of both results, and a scale of each for each block.
    unsafe {
        let arguments = arguments![
            w.first,
            w.stride as u64,
            count(matrices),
            values.values,
            transposed.values,
            values.scales,
            transposed.scales,
            count(outputs),
            count(inputs),
            count(block_stride(inputs)),
            count(block_stride(outputs))
        ];
        kernel.launch(stream, grid, arguments)
    }
}

fn power(scale: Scale) -> u32 {
    u32::from(scale == Scale::PowerOfTwo)
}

/// Whether the GPU of a stream has FP8 at all.
pub(super) fn require_fp8(stream: &Stream) -> Result<()> {
    require(stream.device())
}

/// Whether a GPU has FP8 at all.
///
/// # Errors
/// If not.
pub fn require(device: &Device) -> Result<()> {
    if device.capability >= OLDEST {
        return Ok(());
    }
    let (major, minor) = (device.capability / 10, device.capability % 10);
    Err(Error::new(format!("{} (compute capability {major}.{minor}) has no FP8: that needs 8.9", device.name)))
}
