//! The kernels around exchanges by copy engines: what a place finds out from what it was sent, and what it sends back. Why they are needed
//! is in [`exchange::packed`](super::super::exchange::packed).

use super::exchange::{Board, counting, places};
use super::{Rows, count, looping, streaming};
use crate::error::Result;
use crate::runtime::cuda::kernel::{Grid, arguments};
use crate::runtime::cuda::product::Tiled;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// A part of the tokens of each place.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Places of the group.
    pub places: usize,
    /// This one.
    pub place: usize,
    /// Tokens of the part.
    pub tokens: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// What stands for the part's first entry, among the entries of a place.
    pub start: usize,
    /// Entries of a place.
    pub per_place: usize,
}

impl Cut {
    /// Entries of the part: tokens × top-k.
    pub fn entries(&self) -> usize {
        self.tokens * self.top_k
    }
}

/// Something of every token of a part: of this place, and of the others (places × as much), where that of this place is not read.
#[derive(Clone, Copy, Debug)]
pub struct OfAll<V> {
    /// Of this place.
    pub own: V,
    /// Of the others.
    pub staged: V,
}

/// What [`find`] fills.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// For each entry of this place its row at the expert's.
    pub rows: Slice<u32>,
    /// Where the rows of this place's experts begin, and where the last ends.
    pub offsets: Slice<u32>,
    /// Where each row comes from.
    pub sources: Slice<u32>,
    /// Each row's weight.
    pub row_weights: Slice<f32>,
}

/// Words that [`find`] needs: of counts, of first rows, and of ranks.
pub fn scratch(experts: usize, places: usize, entries: usize) -> usize {
    places * experts + experts + places * entries
}

/// From the experts that all places have chosen, and the weights, which rows this place has and where its own ones are. `board`: only sizes
/// and the count of what had no room are taken from it.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
#[expect(clippy::too_many_arguments, reason = "what is read, and what is found")]
pub fn find(
    stream: &Stream,
    sms: u32,
    board: &Board,
    cut: Cut,
    experts: OfAll<Slice<u32>>,
    weights: OfAll<Slice<f32>>,
    found: &Found,
    words: Slice<u32>,
) -> Result<()> {
    let (entries, places_of, experts_of) = (cut.entries(), cut.places, board.experts);
    assert!(
        experts.own.len() == entries && experts.staged.len() == places_of * entries,
        "experts of {entries} entries"
    );
    assert!(
        weights.own.len() == entries && weights.staged.len() == places_of * entries,
        "weights of {entries} entries"
    );
    assert!(found.rows.len() == entries && found.sources.len() == found.row_weights.len(), "what is found");
    assert!(words.len() >= scratch(experts_of, places_of, entries), "room for counts and ranks");
    let table = words.part(0..places_of * experts_of);
    let first = words.part(table.len()..table.len() + experts_of);
    let ranks = words.part(table.len() + experts_of..table.len() + experts_of + places_of * entries);
    let (shared, threads) = counting(experts_of);
    let device = stream.device();
    let (own, staged) = (experts.own, experts.staged);
    let of = [entries, experts_of, cut.place].map(count);
    // SAFETY: a block reads the entries of a place, and writes as many ranks and the place's counts; lengths were checked.
    unsafe {
        let grid = Grid::of(count(places_of), threads).shared(shared);
        let arguments = arguments![own, staged, of[0], of[1], of[2], table, ranks];
        device.kernel("exchange_rank").launch(stream, grid, arguments)?;
    }
    let capacity = found.sources.len();
    places(stream, &Board { table, first, ..*board }, capacity, found.offsets)?;
    // SAFETY: the kernel reads what was checked above, and writes all rows of entries, and rows below the capacity.
    unsafe {
        let arguments = arguments![
            own,
            staged,
            weights.own,
            weights.staged,
            of[0],
            of[1],
            count(places_of),
            of[2],
            count(cut.per_place),
            count(cut.start),
            table,
            ranks,
            first,
            found.offsets,
            count(capacity),
            found.sources,
            found.row_weights,
            found.rows
        ];
        device.kernel("exchange_find").launch(stream, streaming(places_of * entries, sms), arguments)
    }
}

/// Rows of tokens: of `hidden` values, or in FP8.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// rows × hidden.
    Bf16(Slice<Bf16>),
    /// With scales by tile, then by row.
    Fp8(Tiled),
}

impl Values {
    /// Bytes, and scales.
    pub fn parts(self) -> (Slice<u8>, Slice<f32>) {
        match self {
            Self::Bf16(values) => (values.cast(), Slice::none()),
            Self::Fp8(Tiled { values, scales }) => (values.cast(), scales),
        }
    }

    fn row(self, hidden: usize) -> (usize, usize) {
        match self {
            Self::Bf16(_) => (2 * hidden, 0),
            Self::Fp8(_) => (hidden, hidden.div_ceil(super::quantise::TILE)),
        }
    }
}

/// The rows that this place has, from the tokens of all places. `sources` and `rows` as [`find`] or a dispatch by SMs made them; `to`: `rows.most`
/// rows.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or not all are in the same format.
pub fn gather(
    stream: &Stream,
    sms: u32,
    cut: Cut,
    tokens: OfAll<Values>,
    hidden: usize,
    (sources, rows): (Slice<u32>, Rows),
    to: Values,
) -> Result<()> {
    let (bytes, tiles) = to.row(hidden);
    let ((own, own_scales), (staged, staged_scales), (values, scales)) =
        (tokens.own.parts(), tokens.staged.parts(), to.parts());
    assert!(own.len() == cut.tokens * bytes && staged.len() == cut.places * own.len(), "{} tokens", cut.tokens);
    assert!(
        values.len() == rows.most * bytes && sources.len() == rows.most && rows.count.len() == 1,
        "rows and a count"
    );
    assert!(
        own_scales.len() >= tiles * cut.tokens
            && staged_scales.len() >= cut.places * tiles * cut.tokens
            && scales.len() >= tiles * rows.most,
        "scales of all rows"
    );
    assert!(bytes.is_multiple_of(16), "rows of whole 16 bytes, not {bytes}");
    let kernel = stream.device().kernel("exchange_gather");
    // SAFETY: the kernel reads tokens that sources name, which are of the part, and writes as many rows as the count says.
    unsafe {
        let arguments = arguments![
            own,
            staged,
            count(bytes / 16),
            count(cut.tokens),
            count(cut.top_k),
            count(cut.place),
            count(cut.per_place),
            count(cut.start),
            rows.count,
            sources,
            values,
            count(rows.most),
            own_scales,
            staged_scales,
            scales,
            count(tiles)
        ];
        kernel.launch(stream, looping((32 * rows.most).div_ceil(256), sms, 8, 256), arguments)
    }
}

/// For each place and token the sum of its rows here (`y`, and how many there are, with their sources), or zeros: to `own` of this place, to
/// `others` of the others, both places × tokens × `hidden`. `row_of`: scratch for a word for each entry of all places. With `numbers`, one of
/// each row, each entry's number (or 0) likewise.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
#[expect(clippy::too_many_arguments, reason = "what is read, and where it goes")]
pub fn pack(
    stream: &Stream,
    sms: u32,
    cut: Cut,
    (y, hidden): (Slice<Bf16>, usize),
    (sources, rows): (Slice<u32>, Rows),
    row_of: Slice<u32>,
    [own, others]: [Slice<Bf16>; 2],
    numbers: Option<(Slice<f32>, [Slice<f32>; 2])>,
) -> Result<()> {
    let entries = cut.entries();
    let all = cut.places * cut.tokens * hidden;
    assert!(hidden.is_multiple_of(8), "rows of whole 16 bytes, not {hidden} values");
    assert!(y.len() == rows.most * hidden && sources.len() == rows.most && rows.count.len() == 1, "rows and a count");
    assert!(own.len() == all && others.len() == all, "a row for each place and token");
    assert!(row_of.len() == cut.places * entries && cut.top_k <= 32, "a word for each entry of all places");
    let (from, [own_numbers, others_numbers]) = numbers.unwrap_or((Slice::none(), [Slice::none(); 2]));
    if numbers.is_some() {
        assert!(from.len() == rows.most && own_numbers.len() == row_of.len() && others_numbers.len() == row_of.len());
    }
    row_of.fill_bytes(stream, 0xff)?;
    let device = stream.device();
    // SAFETY: the kernels read as many rows as the count says, and write a word for each of their entries, and all of what was checked.
    unsafe {
        let arguments = arguments![
            rows.count,
            sources,
            count(cut.per_place),
            count(cut.start),
            count(entries),
            count(cut.places),
            row_of
        ];
        device.kernel("exchange_invert").launch(stream, streaming(rows.most, sms), arguments)?;
        let arguments = arguments![
            y,
            count(hidden / 8),
            row_of,
            count(cut.tokens),
            count(cut.top_k),
            count(cut.places),
            count(cut.place),
            own,
            others,
            from,
            own_numbers,
            others_numbers
        ];
        let blocks = (32 * cut.places * cut.tokens).div_ceil(256);
        device.kernel("exchange_pack").launch(stream, looping(blocks, sms, 8, 256), arguments)
    }
}

/// `y[i] = Σ over places of x[place][i]`. `x`: places × as many as `y`.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other.
pub fn sum_numbers(stream: &Stream, sms: u32, x: Slice<f32>, places: usize, y: Slice<f32>) -> Result<()> {
    assert_eq!(x.len(), places * y.len(), "a number of each place");
    let kernel = stream.device().kernel("exchange_sum_numbers");
    // SAFETY: the kernel reads all of `x` and writes all of `y`.
    unsafe { kernel.launch(stream, streaming(y.len(), sms), arguments![x, count(places), count(y.len()), y]) }
}
