//! Exchanges of rows in FP8: bytes, with a scale of every 128 of them. A row's scales arrive side by side, so that they cross a link as
//! whole packets, and are as many bytes behind its values at every place.

use std::ops::Range;

use super::{Member, Routed, Scales};
use crate::error::Result;
use crate::runtime::cuda::ops::quantise::TILE;
use crate::runtime::cuda::product::Tiled;
use crate::runtime::cuda::watch::Watch;
use crate::runtime::cuda::{Fp8, Slice, Stream};

/// Rows that arrive in FP8. At every place of a group scales lie as many bytes behind values.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// rows × hidden.
    pub values: Slice<Fp8>,
    /// rows × tiles of 128: other than products read them.
    pub scales: Slice<f32>,
}

impl Member {
    /// As [`Member::dispatch`]; `x`: the rows of `tokens` alone, in FP8.
    ///
    /// # Errors
    /// If the driver refuses, or another member does not come in time.
    ///
    /// # Panics
    /// If lengths do not fit each other, or rows are no multiple of 16 wide.
    #[expect(clippy::too_many_arguments, reason = "what is sent, how, and where it arrives")]
    pub fn dispatch_fp8(
        &mut self,
        on: (&Stream, &Watch),
        sms: u32,
        x: Tiled,
        hidden: usize,
        tokens: Range<usize>,
        routed: &Routed,
        arrived: Arrived,
    ) -> Result<()> {
        let scales = scales((x, tokens.len()), hidden, (arrived, routed.capacity()));
        let (x, arrived) = (x.values.cast(), arrived.values.cast());
        self.there(on, sms, (x, Some(scales)), hidden / 2, tokens, (routed, true), arrived)
    }

    /// As [`Member::combine_gradient`]; `dy`: the rows of `tokens` alone, in FP8.
    ///
    /// # Errors
    /// As [`Member::dispatch_fp8`].
    ///
    /// # Panics
    /// As [`Member::dispatch_fp8`].
    #[expect(clippy::too_many_arguments, reason = "what is sent, how, and where it arrives")]
    pub fn combine_gradient_fp8(
        &mut self,
        on: (&Stream, &Watch),
        sms: u32,
        dy: Tiled,
        hidden: usize,
        tokens: Range<usize>,
        routed: &Routed,
        arrived: Arrived,
    ) -> Result<()> {
        let scales = scales((dy, tokens.len()), hidden, (arrived, routed.capacity()));
        let (dy, arrived) = (dy.values.cast(), arrived.values.cast());
        self.there(on, sms, (dy, Some(scales)), hidden / 2, tokens, (routed, false), arrived)
    }

    /// As [`Member::combine`], or with a number of each row as [`Member::dispatch_gradient`]; `y`: capacity × `hidden` in FP8, `returned`: all
    /// tokens × top-k rows.
    ///
    /// # Errors
    /// As [`Member::dispatch_fp8`].
    ///
    /// # Panics
    /// As [`Member::dispatch_fp8`].
    pub fn give_back_fp8(
        &mut self,
        on: (&Stream, &Watch),
        sms: u32,
        (y, numbers): (Tiled, Slice<f32>),
        hidden: usize,
        routed: &Routed,
        (returned, returned_numbers): (Arrived, Slice<f32>),
    ) -> Result<()> {
        let entries = returned.values.len() / hidden;
        let scales = scales((y, routed.capacity()), hidden, (returned, entries));
        let (from, to) = ((y.values.cast(), numbers, Some(scales)), (returned.values.cast(), returned_numbers));
        self.give_back(on, sms, from, hidden / 2, routed, to)
    }
}

fn scales((from, rows): (Tiled, usize), hidden: usize, (to, arriving): (Arrived, usize)) -> Scales {
    let tiles = hidden.div_ceil(TILE);
    assert!(hidden.is_multiple_of(16), "rows of whole 16 bytes, not {hidden}");
    assert!(to.values.len() == arriving * hidden && to.scales.len() >= arriving * tiles, "room for {arriving} rows");
    let apart = to.scales.address().wrapping_sub(to.values.address());
    Scales { from: from.scales, rows, tiles, apart }
}
