//! The kernels of the exchange between processes that the one within a process has not: what packed rows need to know, and how they
//! come out of staging memory. In which order they make an exchange is [`network`](super::super::exchange)'s.

use super::exchange::Board;
use super::{count, looping};
use crate::error::Result;
use crate::runtime::cuda::kernel::{Grid, arguments};
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// Threads of the blocks that copy.
const THREADS: u32 = 1024;

/// Staging memory: places × room × hidden values, and places × room numbers, outgoing and incoming.
#[derive(Clone, Copy, Debug)]
pub struct Staging {
    /// Rows for each place.
    pub outgoing: Slice<Bf16>,
    /// Rows from each place.
    pub incoming: Slice<Bf16>,
    /// What goes with the rows.
    pub outgoing_numbers: Slice<f32>,
    /// What comes with the rows.
    pub incoming_numbers: Slice<f32>,
    /// Rows between two places that have room.
    pub room: usize,
    /// Values of such a row.
    pub hidden: usize,
}

/// How rows are taken out.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Values of a row; in FP8 it counts as half as many.
    pub hidden: usize,
    /// Bytes from the first row between two places to the first of the scales, which lie side by side: rows × `tiles`.
    pub apart: u64,
    /// Scales of a row; none, if it is not in FP8.
    pub tiles: usize,
    /// Where they go, as an address: rows × `tiles`.
    pub scales_to: u64,
}

/// From the table: where this place's tokens for each expert begin among its rows for that expert's place (`first` of the board).
///
/// # Errors
/// If the driver refuses.
pub fn first(stream: &Stream, board: &Board) -> Result<()> {
    let &Board { experts, places, place, table, first, .. } = board;
    let kernel = stream.device().kernel("staging_first");
    // SAFETY: the kernel reads this place's counts, and writes a number for each expert.
    unsafe {
        let arguments = arguments![table, count(experts), count(experts / places), count(place), first];
        kernel.launch(stream, Grid::of(count(experts.div_ceil(256)), 256), arguments)
    }
}

/// From the table: where each row of this place's experts comes from, as place · `per_place` + its number among those from there.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If there is not one offset more than experts of a place.
pub fn sources(
    stream: &Stream,
    board: &Board,
    per_place: usize,
    offsets: Slice<u32>,
    sources: Slice<u32>,
) -> Result<()> {
    let &Board { experts, places, place, table, .. } = board;
    assert_eq!(offsets.len(), experts / places + 1, "a begin for each expert, and an end");
    let kernel = stream.device().kernel("staging_sources");
    let grid = Grid::of(count(experts.div_ceil(8)), 256);
    // SAFETY: the kernel reads the table and the offsets, and writes sources of rows that have room.
    unsafe {
        let (places, experts, capacity) = (count(places), count(experts), count(sources.len()));
        let arguments = arguments![table, places, experts, count(place), count(per_place), offsets, capacity, sources];
        kernel.launch(stream, grid, arguments)
    }
}

/// Rows of this place's experts: `to` (capacity × hidden), and with `numbers` (capacity) what came with them. `rows`: how many there
/// are, one element; `sources`: as [`sources`] made them.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
#[expect(clippy::too_many_arguments, reason = "what is copied, by what, and where to")]
pub fn take_rows(
    stream: &Stream,
    sms: u32,
    board: &Board,
    staging: &Staging,
    (rows, origin, per_place): (Slice<u32>, Slice<u32>, usize),
    taken: &Taken,
    to: Slice<Bf16>,
    numbers: Slice<f32>,
) -> Result<()> {
    let (most, hidden) = (origin.len(), taken.hidden);
    assert!(rows.len() == 1 && to.len() >= most * hidden && hidden.is_multiple_of(8), "room for {most} rows");
    assert!(numbers.is_empty() || numbers.len() >= most, "room for a number of each row");
    let kernel = stream.device().kernel("staging_take_rows");
    // SAFETY: the kernel reads as many sources as there are rows, and of staging memory the rows that these name, inside its room; it
    // writes as many rows, numbers and scales, which have room.
    unsafe {
        kernel.launch(
            stream,
            looping(most, sms, 1, THREADS),
            arguments![
                staging.incoming,
                staging.outgoing,
                staging.incoming_numbers,
                staging.outgoing_numbers,
                count(staging.room),
                count(staging.room * staging.hidden / 8),
                count(board.place),
                count(board.places),
                count(hidden / 8),
                taken.apart,
                count(taken.tiles),
                taken.scales_to,
                rows,
                origin,
                count(per_place),
                to,
                numbers,
            ],
        )
    }
}

/// Rows of this place's tokens: `to` (entries × hidden), and with `numbers` (entries) what came with them. `chosen`: the expert of
/// each entry; `packed`: the row's number among those between the two places.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
#[expect(clippy::too_many_arguments, reason = "what is copied, by what, and where to")]
pub fn take_entries(
    stream: &Stream,
    sms: u32,
    board: &Board,
    staging: &Staging,
    (chosen, packed): (Slice<u32>, Slice<u32>),
    taken: &Taken,
    to: Slice<Bf16>,
    numbers: Slice<f32>,
) -> Result<()> {
    let (entries, hidden) = (chosen.len(), taken.hidden);
    assert!(packed.len() == entries && to.len() == entries * hidden && hidden.is_multiple_of(8), "{entries} rows");
    assert!(numbers.is_empty() || numbers.len() == entries, "room for a number of each row");
    let kernel = stream.device().kernel("staging_take_entries");
    // SAFETY: the kernel reads all of `chosen` and `packed`, and of staging memory the rows that these name, inside its room; it writes
    // as many rows, numbers and scales, which have room.
    unsafe {
        kernel.launch(
            stream,
            looping(entries, sms, 1, THREADS),
            arguments![
                staging.incoming,
                staging.outgoing,
                staging.incoming_numbers,
                staging.outgoing_numbers,
                count(staging.room),
                count(staging.room * staging.hidden / 8),
                count(board.place),
                count(board.places),
                count(hidden / 8),
                taken.apart,
                count(taken.tiles),
                taken.scales_to,
                count(entries),
                chosen,
                count(board.experts / board.places),
                packed,
                to,
                numbers,
            ],
        )
    }
}
