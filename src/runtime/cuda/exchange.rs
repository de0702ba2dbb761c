//! The all-to-all of an expert-parallel group: tokens go to the GPUs of their experts, results come back.
//!
//! Expert e lives at *place* e / (experts / places); a place is a GPU, or, for tests, a part of one. At an expert, rows are ordered
//! by the place that they come from, then by token, so that nothing depends on when something arrives.
//!
//! An exchange is, on one stream of each member: announce (one small kernel: how many tokens go to which expert, and where this
//! member's buffers are, into the others' boards), meet, find the rows (one small kernel, dispatch only), copy (the only kernel of
//! any length, on as many SMs as it is given), meet. Waiting takes no SM.
//!
//! Why nothing is overwritten too early, with one board for all exchanges:
//! - A member writes to another one's board when it announces. It does so behind its second meeting of the exchange before, and there
//!   all members have come after their copies, which were the last to read their boards.
//! - A board is read behind the first meeting of the exchange, where all have announced.
//! - A receive buffer is written only behind the first meeting, so after all that its owner's stream did before; and its owner passes
//!   the second meeting only when all have written. Other streams of the owner are ordered by events, as for any op.
//!
//! Rows in FP8 ([`Member::dispatch_fp8`]) go the same ways, with their scales; [`packed`] has the exchanges that copy engines do.
//!
//! An end carries the number of its exchange: to one of another number nothing is written.
//!
//! All this is for GPUs of one process; `network` is the exchange between those of several.

mod narrow;
mod network;
pub mod packed;

pub use narrow::Arrived;

use std::ops::Range;
use std::sync::Arc;

use super::nccl::Communicator;
use super::ops::Rows;
use super::ops::exchange::{self as kernels, Back, Board, END, End, Scales, Spread};
use super::ops::router::{MOST_CHOSEN, MOST_EXPERTS};
use super::signals::{Meeting, meeting};
use super::stream::Priority;
use super::watch::Watch;
use super::{Bf16, Device, Element, Memory, Slice, Stream};
use crate::error::{Error, Result};
use network::Network;

/// One place of a group. All members do the same exchanges in the same order, on parts of the same tokens.
pub struct Member {
    transport: Transport,
    board: Board,
    top_k: usize,
    tokens: usize,
    /// Of all places of this process: others write here, and this one to theirs, as long as any of them lives.
    _boards: Arc<Vec<Memory>>,
    /// What of the others' memory copy engines write to.
    windows: Vec<packed::Window>,
}

/// How rows come to other places.
enum Transport {
    /// They are written there.
    Memory(Meeting),
    /// NCCL moves them.
    Network(Box<Network>),
}

/// Where the rows of one layer of one part of a micro-batch go and come from. t: tokens of the part.
#[derive(Clone, Copy, Debug)]
pub struct Routed {
    /// Given: the first token of the part.
    pub first: usize,
    /// Given: t × top-k, the experts of each token.
    pub experts: Slice<u32>,
    /// Given: t × top-k, their weights.
    pub weights: Slice<f32>,
    /// t × top-k: the row at the expert's place.
    pub rows: Slice<u32>,
    /// Where the rows of each of this place's experts begin, and where the last ends.
    pub offsets: Slice<u32>,
    /// For each row that has room, where it comes from: place · most tokens · top-k + token · top-k + slot, of all tokens.
    pub sources: Slice<u32>,
    /// For each row that has room, its weight.
    pub row_weights: Slice<f32>,
}

impl Routed {
    /// Rows that have room.
    pub fn capacity(&self) -> usize {
        self.sources.len()
    }

    /// Rows that there are: the end of the last expert's.
    pub fn count(&self) -> Rows {
        let end = self.offsets.len() - 1;
        Rows { most: self.capacity(), count: self.offsets.part(end..end + 1) }
    }
}

/// The most rows that one place of `places` can get, where each sends `tokens` that go to `top_k` of `experts`.
pub fn most_rows(places: usize, experts: usize, tokens: usize, top_k: usize) -> usize {
    tokens * places * top_k.min(experts / places)
}

/// A group with one place on each of `devices`, of which several may be the same, for at most `tokens` of each at a time. By place.
///
/// # Errors
/// If experts cannot be divided evenly, there are too many of them or of the tokens, or GPUs do not reach each other.
pub fn group(devices: &[Arc<Device>], experts: usize, tokens: usize, top_k: usize) -> Result<Vec<Member>> {
    let layout = Layout::new(devices.len(), experts, tokens, top_k)?;
    let meetings = meeting(devices)?;
    let boards = devices.iter().map(|device| Memory::new(device, layout.bytes())).collect::<Result<Vec<_>>>()?;
    let boards = Arc::new(boards);
    let peers: Vec<u64> = boards.iter().map(|board| board.all::<u8>().address()).collect();
    let member = |(meeting, device): (Meeting, &Arc<Device>)| {
        let board = layout.board(meeting.member(), &boards[meeting.member()]);
        let stream = Stream::new(device, Priority::Low)?;
        boards[board.place].all::<u8>().fill_bytes(&stream, 0)?;
        board.peers.write(&stream, &peers)?;
        let (transport, _boards) = (Transport::Memory(meeting), Arc::clone(&boards));
        Ok(Member { transport, board, top_k, tokens, _boards, windows: Vec::new() })
    };
    meetings.into_iter().zip(devices).map(member).collect()
}

/// The place of a GPU in a group whose other places are GPUs of other processes. `hidden`: values of a row.
///
/// # Errors
/// As for [`group`].
pub fn member(
    communicator: Communicator,
    experts: usize,
    tokens: usize,
    top_k: usize,
    hidden: usize,
) -> Result<Member> {
    let (place, places) = (communicator.member(), communicator.members());
    let layout = Layout::new(places, experts, tokens, top_k)?;
    let stream = Stream::new(communicator.device(), Priority::Low)?;
    let memory = Memory::new(communicator.device(), layout.bytes())?;
    let board = network::board(&stream, layout, place, &memory)?;
    let room = most_rows(places, experts, tokens, top_k) / places;
    let network = Network::new(&stream, communicator, board, room, hidden)?;
    stream.synchronize()?;
    let transport = Transport::Network(Box::new(network));
    Ok(Member { transport, board, top_k, tokens, _boards: Arc::new(vec![memory]), windows: Vec::new() })
}

/// What lies on a board, in order.
#[derive(Clone, Copy)]
struct Layout {
    places: usize,
    experts: usize,
}

impl Layout {
    /// If such an exchange can be.
    fn new(places: usize, experts: usize, tokens: usize, top_k: usize) -> Result<Self> {
        if places == 0 || !experts.is_multiple_of(places) || !(1..=MOST_EXPERTS).contains(&experts) {
            return Err(Error::new(format!(
                "{experts} experts on {places} GPUs: as many on each, and at most {MOST_EXPERTS}, can be exchanged with"
            )));
        }
        if !(1..=MOST_CHOSEN).contains(&top_k) || u32::try_from(places * tokens * top_k).is_err() {
            return Err(Error::new(format!(
                "{places} × {tokens} tokens with {top_k} experts each are too many for an exchange"
            )));
        }
        Ok(Self { places, experts })
    }

    /// The kernels know that the table stands behind the ends.
    fn table(self) -> usize {
        self.places * END * u64::BYTES
    }

    fn first(self) -> usize {
        self.table() + self.places * self.experts * u32::BYTES
    }

    fn overflow(self) -> usize {
        self.first() + self.experts * u32::BYTES
    }

    fn peers(self) -> usize {
        (self.overflow() + u32::BYTES).next_multiple_of(u64::BYTES)
    }

    fn bytes(self) -> usize {
        self.peers() + self.places * u64::BYTES
    }

    fn board(self, place: usize, memory: &Memory) -> Board {
        let Self { places, experts } = self;
        Board {
            place,
            places,
            experts,
            peers: memory.at(self.peers(), places),
            ends: memory.at(0, places * END),
            table: memory.at(self.table(), places * experts),
            first: memory.at(self.first(), experts),
            overflow: memory.at(self.overflow(), 1),
        }
    }
}

impl Member {
    /// Forward dispatch: the rows of `x` (all tokens × `hidden`) that are in `tokens` go to their experts, into `arrived` (capacity ×
    /// `hidden`) there, by expert. Fills all of `routed` that is not given.
    ///
    /// # Errors
    /// If the driver refuses, or another member does not come in time.
    ///
    /// # Panics
    /// If lengths do not fit each other.
    #[expect(clippy::too_many_arguments, reason = "what is sent, how, and where it arrives")]
    pub fn dispatch(
        &mut self,
        (stream, watch): (&Stream, &Watch),
        sms: u32,
        x: Slice<Bf16>,
        hidden: usize,
        tokens: Range<usize>,
        routed: &Routed,
        arrived: Slice<Bf16>,
    ) -> Result<()> {
        let x = x.part(tokens.start * hidden..tokens.end * hidden);
        self.there((stream, watch), sms, (x, None), hidden, tokens, (routed, true), arrived)
    }

    /// Forward combine: the rows of `y` (capacity × `hidden`, by expert) go back to their tokens, into `returned` (all tokens ×
    /// top-k × `hidden`) there. They are not weighed.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If lengths do not fit each other.
    pub fn combine(
        &mut self,
        (stream, watch): (&Stream, &Watch),
        sms: u32,
        y: Slice<Bf16>,
        hidden: usize,
        routed: &Routed,
        returned: Slice<Bf16>,
    ) -> Result<()> {
        self.give_back((stream, watch), sms, (y, Slice::none(), None), hidden, routed, (returned, Slice::none()))
    }

    /// Input gradient of combine: as [`Member::dispatch`], of the gradient `dy` (all tokens × `hidden`), to where the tokens went.
    ///
    /// # Errors
    /// If the driver refuses, or another member does not come in time.
    ///
    /// # Panics
    /// If lengths do not fit each other.
    #[expect(clippy::too_many_arguments, reason = "what is sent, how, and where it arrives")]
    pub fn combine_gradient(
        &mut self,
        (stream, watch): (&Stream, &Watch),
        sms: u32,
        dy: Slice<Bf16>,
        hidden: usize,
        tokens: Range<usize>,
        routed: &Routed,
        arrived: Slice<Bf16>,
    ) -> Result<()> {
        let dy = dy.part(tokens.start * hidden..tokens.end * hidden);
        self.there((stream, watch), sms, (dy, None), hidden, tokens, (routed, false), arrived)
    }

    /// Input gradient of dispatch: as [`Member::combine`], of the gradients `dx` by row (capacity × `hidden`). With each goes the
    /// gradient of its weight, from `d_row_weights` (capacity) to `d_weights` (all tokens × top-k) there.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If lengths do not fit each other.
    pub fn dispatch_gradient(
        &mut self,
        (stream, watch): (&Stream, &Watch),
        sms: u32,
        (dx, d_row_weights): (Slice<Bf16>, Slice<f32>),
        hidden: usize,
        routed: &Routed,
        (returned, d_weights): (Slice<Bf16>, Slice<f32>),
    ) -> Result<()> {
        assert!(!d_row_weights.is_empty() || routed.capacity() == 0, "a gradient for the weight of each row");
        self.give_back((stream, watch), sms, (dx, d_row_weights, None), hidden, routed, (returned, d_weights))
    }

    /// The largest number of rows of this place that had no room since this was last asked, if there was one: then the step is
    /// worth nothing. Waits for the stream.
    ///
    /// # Errors
    /// If the driver refuses, or something that the stream was given has failed.
    pub fn overflow(&mut self, stream: &Stream) -> Result<Option<usize>> {
        let rows = self.board.overflow.read(stream)?.first().copied().unwrap_or_default();
        if rows == 0 {
            return Ok(None);
        }
        self.board.overflow.write(stream, &[0])?;
        Ok(usize::try_from(rows).ok())
    }

    /// Its number in the group.
    pub fn place(&self) -> usize {
        self.board.place
    }

    /// Places of the group.
    pub fn places(&self) -> usize {
        self.board.places
    }

    /// Experts of a place.
    pub fn local_experts(&self) -> usize {
        self.board.experts / self.board.places
    }

    /// Bytes that it has for what is on its way.
    pub fn bytes(&self) -> usize {
        match &self.transport {
            Transport::Memory(_) => 0,
            Transport::Network(network) => network.bytes(),
        }
    }

    /// The rows of the part's tokens to their experts. `first`: where they are is not known yet, so all of `routed` that is not given is filled.
    #[expect(clippy::too_many_arguments, reason = "what is sent, how, and where it arrives")]
    fn there(
        &mut self,
        (stream, watch): (&Stream, &Watch),
        sms: u32,
        (x, scales): (Slice<Bf16>, Option<Scales>),
        hidden: usize,
        tokens: Range<usize>,
        (routed, first): (&Routed, bool),
        arrived: Slice<Bf16>,
    ) -> Result<()> {
        // Others are told of the memory: it is as large as they will think.
        assert!(tokens.end <= self.tokens, "token {} of {}", tokens.end, self.tokens);
        assert_eq!(routed.experts.len(), tokens.len() * self.top_k, "{} experts for each token", self.top_k);
        assert!(arrived.len() >= routed.capacity() * hidden, "room for {} rows", routed.capacity());
        assert_eq!(x.len(), tokens.len() * hidden, "a row for each token");
        let (room, per_place) = (routed.capacity(), self.tokens * self.top_k);
        if first {
            assert_eq!(routed.row_weights.len(), room, "a weight for each row that has room");
            assert_eq!(routed.weights.len(), routed.experts.len(), "a weight for each expert of a token");
        }
        let meeting = match &mut self.transport {
            Transport::Memory(meeting) => meeting,
            Transport::Network(network) => {
                let rows = network::Rows { values: x, hidden, scales };
                return network.send_to_experts((stream, watch), sms, rows, (routed, first), per_place, arrived);
            }
        };
        let number = meeting.upcoming();
        let source = (self.board.place * self.tokens + tokens.start) * self.top_k;
        let mut to = Spread { experts: routed.experts, rows: routed.rows, weights: Slice::none(), source };
        if first {
            to.weights = routed.weights;
            let arrays = [arrived.address(), routed.sources.address(), routed.row_weights.address()];
            let counted = Some((routed.experts, routed.rows));
            kernels::announce(stream, &self.board, counted, &End { arrays, room, number })?;
            meeting.meet(stream, watch)?;
            kernels::places(stream, &self.board, room, routed.offsets)?;
        } else {
            let arrays = [arrived.address(), 0, 0];
            kernels::announce(stream, &self.board, None, &End { arrays, room, number })?;
            meeting.meet(stream, watch)?;
        }
        kernels::spread(stream, sms, &self.board, (x, hidden), scales.as_ref(), &to, number)?;
        meeting.meet(stream, watch)
    }

    fn give_back(
        &mut self,
        (stream, watch): (&Stream, &Watch),
        sms: u32,
        (y, numbers, scales): (Slice<Bf16>, Slice<f32>, Option<Scales>),
        hidden: usize,
        routed: &Routed,
        (returned, returned_numbers): (Slice<Bf16>, Slice<f32>),
    ) -> Result<()> {
        let entries = returned.len() / hidden;
        assert_eq!(returned.len(), entries * hidden, "whole rows of {hidden}");
        assert!(numbers.is_empty() || returned_numbers.len() >= entries, "room for a number with each row");
        let (local, per_place) = (self.local_experts(), self.tokens * self.top_k);
        let meeting = match &mut self.transport {
            Transport::Memory(meeting) => meeting,
            Transport::Network(network) => {
                let rows = network::Rows { values: y, hidden, scales };
                let to = (returned, returned_numbers);
                return network.send_back((stream, watch), sms, (rows, numbers), (routed, self.top_k), per_place, to);
            }
        };
        let end = End {
            arrays: [returned.address(), returned_numbers.address(), 0],
            room: entries,
            number: meeting.upcoming(),
        };
        kernels::announce(stream, &self.board, None, &end)?;
        meeting.meet(stream, watch)?;
        let back = Back { count: routed.offsets.part(local..local + 1), sources: routed.sources, numbers, per_place };
        kernels::give_back(stream, sms, &self.board, (y, hidden), scales.as_ref(), &back, end.number)?;
        meeting.meet(stream, watch)
    }
}
