//! Who wrote which byte last.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes that were written, each for the last that wrote it.
pub struct Stamps<B> {
    /// By first byte: the end, and who wrote these bytes. Disjoint, none empty.
    written: BTreeMap<u128, (u128, B)>,
}

impl<B: Copy + PartialEq> Stamps<B> {
    /// Nothing is written.
    pub fn new() -> Self {
        Self { written: BTreeMap::new() }
    }

    /// Writes bytes, over whatever was there.
    pub fn write(&mut self, bytes: &Range<u128>, by: B) {
        if bytes.is_empty() {
            return;
        }
        let reaches_in =
            self.written.range(..bytes.start).next_back().map(|(&start, &(end, other))| (start, end, other));
        if let Some((start, end, other)) = reaches_in.filter(|&(_, end, _)| end > bytes.start) {
            self.written.insert(start, (bytes.start, other));
            self.keep_behind(bytes, end, other);
        }
        while let Some((&start, &(end, other))) = self.written.range(bytes.clone()).next() {
            self.written.remove(&start);
            self.keep_behind(bytes, end, other);
        }
        self.written.insert(bytes.start, (bytes.end, by));
    }

    /// What is left of another's bytes, which end at `end`, behind these.
    fn keep_behind(&mut self, bytes: &Range<u128>, end: u128, other: B) {
        if end > bytes.end {
            self.written.insert(bytes.end, (end, other));
        }
    }

    /// The last of these bytes, written as one by `by`, that someone else has written since, and who did.
    pub fn overwritten(&self, bytes: &Range<u128>, by: B) -> Option<(Range<u128>, B)> {
        let last_first = self.written.range(..bytes.end).rev();
        let here = last_first.take_while(|(_, (end, _))| *end > bytes.start && !bytes.is_empty());
        let mut others = here.filter(|(_, (_, other))| *other != by);
        others.next().map(|(&start, &(end, other))| (start.max(bytes.start)..end.min(bytes.end), other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::host::random::Random;

    /// The same with a name for each byte, for random ranges of a few bytes.
    #[test]
    fn every_byte_is_the_last_writers() {
        const BYTES: usize = 24;
        let random = Random::new(7, "stamps");
        let (mut found, mut whole) = (0, 0);
        for round in 0..400 {
            let mut stamps = Stamps::new();
            let mut bytes = [None; BYTES];
            let mut ranges = Vec::new();
            for by in 0..12 {
                let draw = |what: u64| (random.bits((round * 12 + by) * 2 + what) % (BYTES as u64 + 1)) as usize;
                let range = draw(0).min(draw(1))..draw(0).max(draw(1));
                stamps.write(&(range.start as u128..range.end as u128), by);
                bytes[range.clone()].fill(Some(by));
                ranges.push(range);
                for (writer, range) in (0..).zip(&ranges) {
                    let last = range.clone().rev().find(|&byte| bytes[byte] != Some(writer));
                    let other = stamps.overwritten(&(range.start as u128..range.end as u128), writer);
                    assert_eq!(
                        other.as_ref().map(|(there, by)| (there.end as usize - 1, Some(*by))),
                        last.map(|byte| (byte, bytes[byte]))
                    );
                    if let Some((there, by)) = other {
                        assert!(bytes[there.start as usize..there.end as usize].iter().all(|byte| *byte == Some(by)));
                        found += 1;
                    } else {
                        whole += 1;
                    }
                }
            }
        }
        assert!(found > 1000 && whole > 1000, "{found} overwritten, {whole} whole");
    }
}
