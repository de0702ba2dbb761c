//! The kernels of the exchange between tokens and experts. In which order they make one is [`exchange`](super::super::exchange)'s.

use super::quantise::{require_fp8, tile_scales};
use super::{count, looping};
use crate::error::Result;
use crate::runtime::cuda::kernel::{Grid, arguments};
use crate::runtime::cuda::{Bf16, Fp8, Slice, Stream};

/// A place of a group, and its memory that the others write to.
#[derive(Clone, Copy, Debug)]
pub struct Board {
    /// Its number in the group.
    pub place: usize,
    /// Places of the group.
    pub places: usize,
    /// Experts of the group, the same number at each place.
    pub experts: usize,
    /// Addresses of all boards, by place.
    pub peers: Slice<u64>,
    /// Ends of all places in the exchange under way: places × 4.
    pub ends: Slice<u64>,
    /// Tokens that go from each place to each expert: places × experts.
    pub table: Slice<u32>,
    /// Row of this place's first token at each expert.
    pub first: Slice<u32>,
    /// The largest number of rows that was too large for its room.
    pub overflow: Slice<u32>,
}

/// Words of an end.
pub const END: usize = 4;

/// What a place receives in an exchange, and where.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Begin of the rows, and of two more arrays of values of 4 bytes, as addresses.
    pub arrays: [u64; 3],
    /// Rows that have room there.
    pub room: usize,
    /// The exchange's number.
    pub number: u32,
}

/// Threads of the blocks that copy, and of those that run alone.
const THREADS: u32 = 1024;

/// Counts that [`announce`] keeps in shared memory, at most: 96 KB.
const COUNTS: usize = 24 << 10;

/// Writes this place's end to all boards, and, with the experts of its tokens, how many go to which. Then the `ranks` get, for each
/// of those, how many before it name the same expert. Uses one SM.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If there are not as many ranks as experts of tokens.
pub fn announce(stream: &Stream, board: &Board, counted: Option<(Slice<u32>, Slice<u32>)>, end: &End) -> Result<()> {
    let (chosen, ranks) = counted.unwrap_or((Slice::none(), Slice::none()));
    assert_eq!(chosen.len(), ranks.len(), "a rank for each expert of a token");
    let (shared, threads) = counting(board.experts);
    let grid = Grid::of(1, threads).shared(shared);
    let [rows, second, third] = end.arrays;
    let room = u64::from(end.number) << 32 | u64::from(count(end.room));
    let kernel = stream.device().kernel("exchange_announce");
    // SAFETY: the kernel reads all experts of tokens, writes all ranks, and its place's parts of all boards.
    unsafe {
        kernel.launch(
            stream,
            grid,
            arguments![
                chosen,
                ranks,
                count(chosen.len()),
                count(board.experts),
                u32::from(counted.is_some()),
                board.peers,
                count(board.places),
                count(board.place),
                rows,
                second,
                third,
                room,
            ],
        )
    }
}

/// From the table of all places: where this place's tokens begin at each expert (`first` of the board), and where the rows of this
/// place's experts begin, with the end of the last: `offsets`, at most `capacity`. Uses one SM.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If there is not one offset more than experts of a place.
pub fn places(stream: &Stream, board: &Board, capacity: usize, offsets: Slice<u32>) -> Result<()> {
    assert_eq!(offsets.len(), board.experts / board.places + 1, "a begin for each expert, and an end");
    let kernel = stream.device().kernel("exchange_places");
    let grid = Grid::of(1, THREADS);
    let (places, experts, place) = (count(board.places), count(board.experts), count(board.place));
    // SAFETY: the kernel reads the table, and writes `first`, all offsets and the overflow.
    unsafe {
        kernel.launch(
            stream,
            grid,
            arguments![board.table, places, experts, place, count(capacity), board.first, offsets, board.overflow],
        )
    }
}

/// What [`spread`] knows of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Experts: tokens × top-k.
    pub experts: Slice<u32>,
    /// Their rows there. With weights, ranks at first, of [`announce`].
    pub rows: Slice<u32>,
    /// Weights that go with the rows: tokens × top-k, or none.
    pub weights: Slice<f32>,
    /// What stands for the first entry, in what says where a row comes from.
    pub source: usize,
}

/// Scales that go with rows in FP8.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    /// Of the rows that are sent: `tiles` × `rows`.
    pub from: Slice<f32>,
    /// Rows that those have.
    pub rows: usize,
    /// Of each row.
    pub tiles: usize,
    /// Bytes from the first row that arrives to the first of its scales, which lie side by side: rows × `tiles`. The same at all places.
    pub apart: u64,
}

impl Scales {
    /// As kernels take them.
    fn of(scales: Option<&Self>) -> (Slice<f32>, u32, u32, u64) {
        scales.map_or((Slice::none(), 0, 0, 0), |of| (of.from, count(of.rows), count(of.tiles), of.apart))
    }

    fn check(scales: Option<&Self>, rows: usize) {
        if let Some(of) = scales {
            assert!(of.rows == rows && of.from.len() >= of.tiles * rows, "scales of {rows} rows");
        }
    }
}

/// Copies the row of each token (`x`: tokens × `hidden`) to its experts; with `scales`, what is in FP8 counts as half as many values.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn spread(
    stream: &Stream,
    sms: u32,
    board: &Board,
    (x, hidden): (Slice<Bf16>, usize),
    scales: Option<&Scales>,
    to: &Spread,
    number: u32,
) -> Result<()> {
    let tokens = x.len() / hidden;
    Scales::check(scales, tokens);
    let (scales, _, tiles, apart) = Scales::of(scales);
    let top_k = to.experts.len().checked_div(tokens).unwrap_or_default();
    assert!(hidden.is_multiple_of(8), "rows of whole 16 bytes, not {hidden} values");
    assert!(x.len() == tokens * hidden && to.experts.len() == tokens * top_k && top_k <= 32, "{tokens} tokens");
    assert_eq!(to.rows.len(), to.experts.len(), "a row for each expert of a token");
    let ranked = !to.weights.is_empty();
    assert!(!ranked || to.weights.len() == to.experts.len(), "a weight for each expert of a token");
    let first = if ranked { board.first } else { Slice::none() };
    let kernel = stream.device().kernel("exchange_spread");
    // SAFETY: the kernel reads all rows of `x` and all of `to`, of which it changes rows; it writes to ends of this exchange, inside
    // the room that they say they have.
    unsafe {
        kernel.launch(
            stream,
            looping(tokens, sms, 1, THREADS),
            arguments![
                x,
                count(hidden / 8),
                count(tokens),
                count(top_k),
                count(board.places),
                count(board.experts / board.places),
                to.experts,
                to.rows,
                first,
                to.weights,
                count(to.source),
                board.ends,
                number,
                scales,
                tiles,
                apart,
            ],
        )
    }
}

/// What [`give_back`] knows of rows.
#[derive(Clone, Copy, Debug)]
pub struct Back {
    /// How many there are: one element.
    pub count: Slice<u32>,
    /// Where they come from: place · `per_place` + entry there.
    pub sources: Slice<u32>,
    /// A number of each that goes with it, or none.
    pub numbers: Slice<f32>,
    /// Entries of a place.
    pub per_place: usize,
}

/// Copies rows (`y`: rows × `hidden`) back to where their tokens are; `scales` as in [`spread`].
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn give_back(
    stream: &Stream,
    sms: u32,
    board: &Board,
    (y, hidden): (Slice<Bf16>, usize),
    scales: Option<&Scales>,
    to: &Back,
    number: u32,
) -> Result<()> {
    let most = to.sources.len();
    Scales::check(scales, most);
    let (scales, rows, tiles, apart) = Scales::of(scales);
    assert!(hidden.is_multiple_of(8), "rows of whole 16 bytes, not {hidden} values");
    assert!(y.len() >= most * hidden && to.count.len() == 1, "as many rows as sources, {most}");
    assert!(to.numbers.is_empty() || to.numbers.len() >= most, "a number for each row");
    let kernel = stream.device().kernel("exchange_return");
    // SAFETY: the kernel reads as many rows, sources and numbers as the count says, which is at most the capacity; it writes to
    // ends of this exchange, inside the room that they say they have.
    unsafe {
        kernel.launch(
            stream,
            looping(most, sms, 1, THREADS),
            arguments![
                y,
                count(hidden / 8),
                to.count,
                to.sources,
                to.numbers,
                count(board.places),
                count(to.per_place),
                board.ends,
                number,
                scales,
                rows,
                tiles,
                apart,
            ],
        )
    }
}

/// What came back for tokens: `slots` rows for each.
#[derive(Clone, Copy, Debug)]
pub enum Returned {
    /// tokens × slots × hidden.
    ByToken(Slice<Bf16>),
    /// slots × tokens × hidden: a row for each place.
    ByPlace(Slice<Bf16>),
    /// As `ByToken` in FP8, with scales tokens × slots × tiles.
    ByTokenFp8(Slice<Fp8>, Slice<f32>),
    /// As `ByPlace` in FP8, with scales slots × tiles × tokens.
    ByPlaceFp8(Slice<Fp8>, Slice<f32>),
}

/// `y = Σ over slots of returned, plus each of `add` that is not none`. `y` and what is added: tokens × `hidden`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn sum(
    stream: &Stream,
    sms: u32,
    (returned, slots): (Returned, usize),
    hidden: usize,
    add: [Slice<Bf16>; 2],
    y: Slice<Bf16>,
) -> Result<()> {
    assert!(hidden.is_multiple_of(8) && y.len().is_multiple_of(hidden), "rows of whole 16 bytes, not {hidden} values");
    assert!(add.iter().all(|add| add.is_empty() || add.len() == y.len()), "as many values added as there are");
    let (tokens, width, tiles) = (y.len() / hidden, hidden / 8, tile_scales(1, hidden));
    let (values, scales, address, fp8) = match returned {
        Returned::ByToken(values) | Returned::ByPlace(values) => (values.len(), Slice::none(), values.address(), false),
        Returned::ByTokenFp8(values, scales) | Returned::ByPlaceFp8(values, scales) => {
            assert!(scales.len() >= slots * tokens * tiles, "scales of {slots} rows for each token");
            (values.len(), scales, values.address(), true)
        }
    };
    assert_eq!(values, y.len() * slots, "{slots} rows for each token");
    let by_token = matches!(returned, Returned::ByToken(_) | Returned::ByTokenFp8(..));
    let (token, slot) = if by_token { (slots * width, width) } else { (width, tokens * width) };
    let [scale_token, scale_slot, scale_tile] =
        if by_token { [slots * tiles, tiles, 1] } else { [1, tiles * tokens, tokens] };
    let [one, other] = add;
    let chunks = y.len() / 8;
    let kernel = stream.device().kernel(if fp8 { "exchange_sum_fp8" } else { "exchange_sum" });
    if fp8 {
        require_fp8(stream)?;
    }
    // SAFETY: the kernel reads all of `returned`, its scales and what is added, and writes all of `y`; lengths were checked.
    unsafe {
        kernel.launch(
            stream,
            looping(chunks.div_ceil(256), sms, 8, 256),
            arguments![
                address,
                count(slots),
                count(width),
                count(token),
                slot as u64,
                scales,
                count(scale_token),
                scale_slot as u64,
                count(scale_tile),
                one,
                other,
                y,
                count(chunks)
            ],
        )
    }
}

/// Bytes of shared memory for counts by warp, and threads, where one block counts entries of `experts`.
pub(super) fn counting(experts: usize) -> (u32, u32) {
    let warps = (COUNTS / experts).clamp(1, 32);
    (count(4 * warps * experts), count(32 * warps))
}
