//! What has surely ended before something starts: vector clocks over a few streams.
//!
//! Used for the items of a rank and for the ops of a chunk program alike. Both are lists in launch order, each entry on a
//! stream, waiting for the end of earlier entries.

/// For every entry of a list, how much of each stream has ended before it starts.
///
/// `clock[s]` of an entry is the number of leading entries of stream s that must have ended. That is exact: the entries of
/// a stream run one after the other, so those that precede an entry are a prefix of each stream.
pub struct Precedence {
    streams: usize,
    /// Stream and place on it, of each entry.
    at: Vec<(usize, u32)>,
    /// `streams` numbers for each entry.
    clocks: Vec<u32>,
}

impl Precedence {
    /// Of entries given as (stream below `streams`, earlier entries that it waits for). Time and memory are
    /// (entries + waits) · streams.
    pub fn new<'a>(streams: usize, entries: impl ExactSizeIterator<Item = (usize, &'a [u32])>) -> Self {
        let mut this = Self {
            streams,
            at: Vec::with_capacity(entries.len()),
            clocks: Vec::with_capacity(entries.len().saturating_mul(streams)),
        };
        // The last entry of each stream so far, and how many it has.
        let mut last: Vec<Option<usize>> = vec![None; streams];
        let mut length: Vec<u32> = vec![0; streams];
        let mut clock = vec![0_u32; streams];
        for (index, (stream, waits)) in entries.enumerate() {
            clock.fill(0);
            let earlier = waits.iter().map(|&wait| wait as usize).filter(|&wait| wait < index);
            for before in earlier.chain(last[stream]) {
                this.join(&mut clock, before);
            }
            this.clocks.extend_from_slice(&clock);
            this.at.push((stream, length[stream]));
            last[stream] = Some(index);
            length[stream] += 1;
        }
        this
    }

    /// Whether `first` has ended before `second` starts, whatever the speeds.
    pub fn ended_before(&self, first: usize, second: usize) -> bool {
        let (stream, place) = self.at[first];
        self.clock(second)[stream] > place
    }

    /// How many leading entries of each stream have ended before `entry` starts.
    pub fn clock(&self, entry: usize) -> &[u32] {
        &self.clocks[entry * self.streams..][..self.streams]
    }

    /// Adds what is known once `before` has ended.
    fn join(&self, clock: &mut [u32], before: usize) {
        for (known, &earlier) in clock.iter_mut().zip(self.clock(before)) {
            *known = (*known).max(earlier);
        }
        let (stream, place) = self.at[before];
        clock[stream] = clock[stream].max(place + 1);
    }
}
