//! Where blocks go that come and go: first fit, in the order of a list. Decided once for a step, before any memory is there.

use std::collections::BTreeMap;

use crate::plan::ALIGNMENT;

/// A stretch of memory of which parts are taken.
#[derive(Debug, Default)]
pub struct Heap {
    /// Start and end of what is taken.
    taken: BTreeMap<usize, usize>,
    most: usize,
}

impl Heap {
    /// Takes so many bytes where there is room first. Of no bytes it is place 0.
    pub fn take(&mut self, bytes: usize) -> usize {
        if bytes == 0 {
            return 0;
        }
        let bytes = bytes.next_multiple_of(ALIGNMENT as usize);
        let mut at = 0;
        for (&start, &end) in &self.taken {
            if start >= at + bytes {
                break;
            }
            at = end;
        }
        self.taken.insert(at, at + bytes);
        self.most = self.most.max(at + bytes);
        at
    }

    /// Gives back what was taken. `bytes`: as it was taken with.
    pub fn release(&mut self, at: usize, bytes: usize) {
        if bytes > 0 {
            self.taken.remove(&at);
        }
    }

    /// Bytes that were needed at most.
    pub fn most(&self) -> usize {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_gap_that_is_large_enough_is_taken() {
        let mut heap = Heap::default();
        let (a, b, c) = (heap.take(256), heap.take(1000), heap.take(10));
        assert_eq!((a, b, c), (0, 256, 1280));
        heap.release(b, 1000);
        assert_eq!((heap.take(2000), heap.take(600), heap.take(0), heap.take(300)), (1536, 256, 0, 3536));
        assert_eq!(heap.most(), 4048);
    }
}
