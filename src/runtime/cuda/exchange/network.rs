//! The exchange of a group whose places are GPUs of several processes. They cannot write into each other, so each packs what it
//! sends for each place, NCCL moves that, and the other takes it out. Rows stand at their experts in the same order as within a
//! process, so results have the same bits.
//!
//! What is moved has one size whatever the routing is, enough for all of a place's tokens to go to experts of one other place: the host
//! would have to wait for a count. With balanced routing, `places · min(top-k, experts of a place) / top-k` times as many bytes travel as
//! are needed.

use super::{Layout, Routed};
use crate::error::Result;
use crate::runtime::cuda::nccl::{Communicator, Transfer};
use crate::runtime::cuda::ops::exchange::{self as kernels, Back, Board, END, End, Scales, Spread};
use crate::runtime::cuda::ops::staging::{self, Staging, Taken};
use crate::runtime::cuda::watch::Watch;
use crate::runtime::cuda::{Bf16, Element, Memory, Slice, Stream};

/// Every exchange has this number: ends are always those of the staging memory.
const NUMBER: u32 = 1;

/// What a place of such a group has.
pub struct Network {
    communicator: Communicator,
    staging: Staging,
    /// With the outgoing memory as all places' ends: for what goes to experts, and for what comes back.
    boards: [Board; 2],
    memory: Vec<Memory>,
}

/// Rows that are sent, in FP8 as half as many values.
pub struct Rows {
    /// Rows × `hidden`.
    pub values: Slice<Bf16>,
    /// Values of a row.
    pub hidden: usize,
    /// What goes with rows in FP8.
    pub scales: Option<Scales>,
}

/// What a place sends to each other one in an exchange: rows, and behind them, in FP8, their scales.
#[derive(Clone, Copy)]
struct Sent {
    rows: usize,
    hidden: usize,
    scales: Option<Scales>,
}

impl Sent {
    /// Scales as they lie in staging memory.
    fn scales(&self) -> Option<Scales> {
        self.scales.map(|scales| Scales { apart: self.apart(), ..scales })
    }

    /// Bytes of the rows.
    fn apart(&self) -> u64 {
        (self.rows * self.hidden * Bf16::BYTES) as u64
    }

    /// Bytes of all.
    fn bytes(&self) -> usize {
        let tiles = self.scales.map_or(0, |scales| scales.tiles);
        self.rows * (self.hidden * Bf16::BYTES + tiles * f32::BYTES)
    }

    /// How it is taken out, to where it is read: `to`, with scales as far behind as whoever asks for it has them.
    fn taken(&self, to: Slice<Bf16>) -> Taken {
        let scales = self.scales.map_or((0, 0), |scales| (scales.tiles, to.address().wrapping_add(scales.apart)));
        Taken { hidden: self.hidden, apart: self.apart(), tiles: scales.0, scales_to: scales.1 }
    }
}

impl Network {
    /// `room`: rows that may go from one place to another; `board`: this place's, with the table.
    pub fn new(stream: &Stream, communicator: Communicator, board: Board, room: usize, hidden: usize) -> Result<Self> {
        let (device, places) = (stream.device(), board.places);
        let rows = || Memory::of::<Bf16>(device, places * room * hidden);
        let numbers = || Memory::of::<f32>(device, places * room);
        let ends = || Memory::of::<u64>(device, places * END);
        let (outgoing, incoming, out_numbers, in_numbers) = (rows()?, rows()?, numbers()?, numbers()?);
        // Where a row comes from is found by who gets it, so what is written here nobody reads.
        let unread = numbers()?;
        let ends = [ends()?, ends()?];
        let staging = Staging {
            outgoing: outgoing.all(),
            incoming: incoming.all(),
            outgoing_numbers: out_numbers.all(),
            incoming_numbers: in_numbers.all(),
            room,
            hidden,
        };
        let number = u64::from(NUMBER) << 32 | room as u64;
        let of = |memory: &Memory, place: usize, bytes: usize| memory.at::<u8>(place * room * bytes, 0).address();
        let row = hidden * Bf16::BYTES;
        let to_experts = (0..places).flat_map(|place| {
            [of(&outgoing, place, row), of(&unread, place, u32::BYTES), of(&out_numbers, place, f32::BYTES), number]
        });
        let back =
            (0..places).flat_map(|place| [of(&outgoing, place, row), of(&out_numbers, place, f32::BYTES), 0, number]);
        ends[0].all::<u64>().write(stream, &to_experts.collect::<Vec<_>>())?;
        ends[1].all::<u64>().write(stream, &back.collect::<Vec<_>>())?;
        let boards = [Board { ends: ends[0].all(), ..board }, Board { ends: ends[1].all(), ..board }];
        let [first, second] = ends;
        let memory = vec![outgoing, incoming, out_numbers, in_numbers, unread, first, second];
        Ok(Self { communicator, staging, boards, memory })
    }

    /// Bytes of staging memory.
    pub fn bytes(&self) -> usize {
        self.memory.iter().map(Memory::bytes).sum()
    }

    /// [`super::Member::dispatch`], or if it is not the `first` time that rows take these ways, [`super::Member::combine_gradient`].
    pub fn send_to_experts(
        &mut self,
        on: (&Stream, &Watch),
        sms: u32,
        Rows { values, hidden, scales }: Rows,
        (routed, first): (&Routed, bool),
        per_place: usize,
        arrived: Slice<Bf16>,
    ) -> Result<()> {
        let ((stream, watch), board) = (on, self.boards[0]);
        let sent = self.sent(hidden, scales, routed);
        if first {
            let end = End { arrays: [0; 3], room: 0, number: 0 };
            kernels::announce(stream, &board, Some((routed.experts, routed.rows)), &end)?;
            let row = |place: usize| board.table.part(place * board.experts..(place + 1) * board.experts).cast();
            let counts = self
                .others()
                .flat_map(|place| [Transfer::Send(row(board.place), place), Transfer::Receive(row(place), place)]);
            let counts: Vec<_> = counts.collect();
            self.communicator.transfer(stream, &counts, watch)?;
            kernels::places(stream, &board, routed.capacity(), routed.offsets)?;
            staging::first(stream, &board)?;
        }
        let weights = if first { routed.weights } else { Slice::none() };
        let to = Spread { experts: routed.experts, rows: routed.rows, weights, source: 0 };
        kernels::spread(stream, sms, &board, (values, hidden), sent.scales().as_ref(), &to, NUMBER)?;
        self.swap(on, &sent, first)?;
        if first {
            staging::sources(stream, &board, per_place, routed.offsets, routed.sources)?;
        }
        let local = board.experts / board.places;
        let rows = (routed.offsets.part(local..local + 1), routed.sources, per_place);
        let numbers = if first { routed.row_weights } else { Slice::none() };
        staging::take_rows(stream, sms, &board, &self.staging, rows, &sent.taken(arrived), arrived, numbers)
    }

    /// [`super::Member::combine`], or with numbers [`super::Member::dispatch_gradient`].
    pub fn send_back(
        &mut self,
        on: (&Stream, &Watch),
        sms: u32,
        (Rows { values, hidden, scales }, numbers): (Rows, Slice<f32>),
        (routed, top_k): (&Routed, usize),
        per_place: usize,
        (returned, returned_numbers): (Slice<Bf16>, Slice<f32>),
    ) -> Result<()> {
        let (stream, board) = (on.0, self.boards[1]);
        let sent = self.sent(hidden, scales, routed);
        let local = board.experts / board.places;
        let back = Back { count: routed.offsets.part(local..local + 1), sources: routed.sources, numbers, per_place };
        kernels::give_back(stream, sms, &board, (values, hidden), sent.scales().as_ref(), &back, NUMBER)?;
        self.swap(on, &sent, !numbers.is_empty())?;
        let entries = routed.first * top_k..routed.first * top_k + routed.experts.len();
        let mut taken = sent.taken(returned);
        taken.scales_to = taken.scales_to.wrapping_add((entries.start * taken.tiles * f32::BYTES) as u64);
        let to = returned.part(entries.start * hidden..entries.end * hidden);
        let numbers = if numbers.is_empty() { Slice::none() } else { returned_numbers.part(entries) };
        let which = (routed.experts, routed.rows);
        staging::take_entries(stream, sms, &board, &self.staging, which, &taken, to, numbers)
    }

    /// Everyone gets what others have packed for it.
    fn swap(&mut self, (stream, watch): (&Stream, &Watch), sent: &Sent, with_numbers: bool) -> Result<()> {
        let Staging { outgoing, incoming, outgoing_numbers, incoming_numbers, room, hidden } = self.staging;
        let of_rows = |of: Slice<Bf16>, place: usize| {
            let first = place * room * hidden * Bf16::BYTES;
            of.cast::<u8>().part(first..first + sent.bytes())
        };
        let of_numbers = |of: Slice<f32>, place: usize| of.part(place * room..place * room + sent.rows).cast::<u8>();
        let mut transfers = Vec::new();
        for place in self.others() {
            transfers.push(Transfer::Send(of_rows(outgoing, place), place));
            transfers.push(Transfer::Receive(of_rows(incoming, place), place));
            if with_numbers {
                transfers.push(Transfer::Send(of_numbers(outgoing_numbers, place), place));
                transfers.push(Transfer::Receive(of_numbers(incoming_numbers, place), place));
            }
        }
        self.communicator.transfer(stream, &transfers, watch)
    }

    /// As many rows as can be between two places; asserts that there is room for them.
    fn sent(&self, hidden: usize, scales: Option<Scales>, routed: &Routed) -> Sent {
        let Staging { room, hidden: most, .. } = self.staging;
        let sent = Sent { rows: routed.capacity() / self.boards[0].places, hidden, scales };
        assert!(sent.rows <= room && sent.bytes() <= room * most * Bf16::BYTES, "room for {} rows", sent.rows);
        sent
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (places, place) = (self.boards[0].places, self.boards[0].place);
        (0..places).filter(move |&other| other != place)
    }
}

/// A place's board that nobody else writes to; `memory` has room for it, and for its own address as that of all boards.
pub fn board(stream: &Stream, layout: Layout, place: usize, memory: &Memory) -> Result<Board> {
    let board = layout.board(place, memory);
    memory.all::<u8>().fill_bytes(stream, 0)?;
    board.peers.write(stream, &vec![memory.all::<u8>().address(); board.places])?;
    Ok(board)
}
