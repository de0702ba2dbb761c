//! The kernels of the exchange between tokens and experts. In which order they make one is [`exchange`](super::super::exchange)'s.

use super::{count, looping};
use crate::error::Result;
use crate::runtime::cuda::kernel::{Grid, arguments};
use crate::runtime::cuda::{Bf16, Slice, Stream};

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
    let warps = (COUNTS / board.experts).clamp(1, 32);
    let grid = Grid::of(1, count(32 * warps)).shared(count(4 * warps * board.experts));
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

/// Copies the row of each token (`x`: tokens × `hidden`) to its experts.
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
    to: &Spread,
    number: u32,
) -> Result<()> {
    let tokens = x.len() / hidden;
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

/// Copies rows (`y`: rows × `hidden`) back to where their tokens are.
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
    to: &Back,
    number: u32,
) -> Result<()> {
    let most = to.sources.len();
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
            ],
        )
    }
}

/// `y = Σ over the token's experts of returned, plus each of `add` that is not none`. `returned`: tokens × `top_k` × `hidden`; `y`
/// and what is added: tokens × `hidden`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn sum(
    stream: &Stream,
    sms: u32,
    (returned, top_k): (Slice<Bf16>, usize),
    hidden: usize,
    add: [Slice<Bf16>; 2],
    y: Slice<Bf16>,
) -> Result<()> {
    assert!(hidden.is_multiple_of(8) && y.len().is_multiple_of(hidden), "rows of whole 16 bytes, not {hidden} values");
    assert_eq!(returned.len(), y.len() * top_k, "{top_k} rows for each token");
    assert!(add.iter().all(|add| add.is_empty() || add.len() == y.len()), "as many values added as there are");
    let [one, other] = add;
    let chunks = y.len() / 8;
    let kernel = stream.device().kernel("exchange_sum");
    // SAFETY: the kernel reads all of `returned` and of what is added, and writes all of `y`; lengths were checked.
    unsafe {
        kernel.launch(
            stream,
            looping(chunks.div_ceil(256), sms, 8, 256),
            arguments![returned, count(top_k), count(hidden / 8), one, other, y, count(chunks)],
        )
    }
}
