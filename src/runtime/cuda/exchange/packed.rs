//! Exchanges by copy engines, within a host.
//!
//! A copy engine is told on the host how much it moves, and how many rows go where is known on the GPU alone. So what goes to a place is as
//! much as it can be at most, and it is as little as that can be made:
//! - To the experts each place gets every token of each other place once, however many of its experts want it, with the experts that the
//!   tokens chose and their weights; nothing has to be laid out for that. What comes where is found out and picked at the receiver
//!   ([`kernels::find`], [`kernels::gather`]): in the order of an exchange by SMs.
//! - From them each place gets one row for each of its tokens from each other place, the sum of what the experts there made of it
//!   ([`kernels::pack`]), or zeros.
//!
//! That is tokens × hidden for each other place, whoever is chosen: less than an exchange by SMs sends where a token has more than one expert
//! at a place, more where it often has none there. While they move no SM takes part; who copies where is known from windows: parts of memory
//! that look alike at all places.

use super::{Member, Transport};
use crate::error::{Error, Result};
use crate::runtime::cuda::ops::packed as kernels;
use crate::runtime::cuda::watch::Watch;
use crate::runtime::cuda::{Slice, Stream};

pub use kernels::Cut;

/// Memory with the same layout at all places.
#[derive(Clone, Debug)]
pub struct Window {
    /// Of this place.
    pub own: Slice<u8>,
    /// By place, this one's too.
    pub all: Vec<Slice<u8>>,
}

impl Window {
    /// What lies at a place where `here` lies at this one; none if it is not inside.
    fn at(&self, place: usize, here: Slice<u8>) -> Option<Slice<u8>> {
        let first = here.address().checked_sub(self.own.address())?;
        let (first, there) = (usize::try_from(first).ok()?, self.all.get(place)?);
        let end = first.checked_add(here.len())?;
        (end <= self.own.len() && end <= there.len()).then(|| there.part(first..end))
    }
}

/// What is copied: what of this place, and where it goes at the other, as what lies there at this one.
pub type Copy = (Slice<u8>, Slice<u8>);

impl Member {
    /// Where others look alike: memory that lives until all exchanges have ended.
    pub fn open(&mut self, windows: Vec<Window>) {
        self.windows = windows;
    }

    /// Some of the tokens of a micro-batch.
    pub fn cut(&self, tokens: std::ops::Range<usize>) -> Cut {
        Cut {
            places: self.board.places,
            place: self.board.place,
            start: tokens.start * self.top_k,
            tokens: tokens.len(),
            top_k: self.top_k,
            per_place: self.tokens * self.top_k,
        }
    }

    /// Copies to every other place what `to` says for it. All members copy at once; when their streams go on, all has come.
    ///
    /// # Errors
    /// If the driver refuses, a target lies in no window, or another member does not come in time.
    pub fn copy(&mut self, (stream, watch): (&Stream, &Watch), to: impl Fn(usize) -> Vec<Copy>) -> Result<()> {
        let Transport::Memory(meeting) = &mut self.transport else {
            return Err(Error::new("copy engines reach no memory of other processes"));
        };
        // Everyone may write behind this: what lay there has been read.
        meeting.meet(stream, watch)?;
        let (place, places) = (self.board.place, self.board.places);
        // Each begins with its neighbour, so that no place gets all at once.
        for other in (1..places).map(|step| (place + step) % places) {
            for (from, here) in to(other) {
                let there = self.windows.iter().find_map(|window| window.at(other, here));
                let there = there.ok_or_else(|| Error::new("a copy goes to memory that others do not see"))?;
                there.copy_from(stream, from)?;
            }
        }
        meeting.meet(stream, watch)
    }

    /// [`kernels::find`] for this place.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn find(
        &self,
        (stream, sms): (&Stream, u32),
        cut: Cut,
        experts: kernels::OfAll<Slice<u32>>,
        weights: kernels::OfAll<Slice<f32>>,
        found: &kernels::Found,
        words: Slice<u32>,
    ) -> Result<()> {
        kernels::find(stream, sms, &self.board, cut, experts, weights, found, words)
    }
}
