//! Where the values of a chunk lie: in blocks that come and go with its items, and in scratch that every chunk of a rank uses in turn.

use std::marker::PhantomData;

use crate::plan::ALIGNMENT;
use crate::runtime::cuda::{Element, Slice};

/// What a value lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Of the chunk, from F to I.
    UntilI,
    /// Of the chunk, from F to W.
    UntilW,
    /// Of the chunk, from I to W.
    FromI,
    /// Scratch of F: of one unit at a time.
    Forward,
    /// Scratch of I: of one unit at a time.
    Backward,
    /// Scratch of W: of one op at a time.
    Weights,
}

/// Blocks.
pub const BLOCKS: usize = 6;

/// The place of some elements.
#[derive(Debug)]
pub struct Spot<E> {
    block: Block,
    byte: usize,
    len: usize,
    of: PhantomData<E>,
}

impl<E> Clone for Spot<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Spot<E> {}

/// Gives out places.
#[derive(Clone, Debug, Default)]
pub struct Packer {
    used: [usize; BLOCKS],
    most: [usize; BLOCKS],
}

impl Packer {
    /// A place behind all others of the block.
    pub fn take<E: Element>(&mut self, block: Block, len: usize) -> Spot<E> {
        let used = &mut self.used[block as usize];
        let byte = *used;
        *used += (len * E::BYTES).next_multiple_of(ALIGNMENT as usize);
        self.most[block as usize] = self.most[block as usize].max(*used);
        Spot { block, byte, len, of: PhantomData }
    }

    /// The next unit has scratch to itself.
    pub fn next_unit(&mut self) {
        for block in [Block::Forward, Block::Backward, Block::Weights] {
            self.used[block as usize] = 0;
        }
    }

    /// Bytes of a block.
    pub fn bytes(&self, block: Block) -> usize {
        self.most[block as usize]
    }
}

/// Where the blocks of a chunk are.
#[derive(Clone, Copy, Debug)]
pub struct Blocks([Slice<u8>; BLOCKS]);

impl Blocks {
    /// None yet.
    pub fn none() -> Self {
        Self([Slice::none(); BLOCKS])
    }

    /// Says where one is.
    pub fn put(&mut self, block: Block, bytes: Slice<u8>) {
        self.0[block as usize] = bytes;
    }

    /// What lies at a place.
    ///
    /// # Panics
    /// If the block is not there, or too small.
    pub fn at<E: Element>(&self, spot: Spot<E>) -> Slice<E> {
        self.0[spot.block as usize].part(spot.byte..spot.byte + spot.len * E::BYTES).cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::cuda::Bf16;

    #[test]
    fn places_follow_each_other_and_scratch_is_used_again() {
        let mut packer = Packer::default();
        let first = packer.take::<Bf16>(Block::UntilI, 3);
        let second = packer.take::<f32>(Block::UntilI, 100);
        assert_eq!((first.byte, second.byte, packer.bytes(Block::UntilI)), (0, 256, 256 + 512));
        let big = packer.take::<f32>(Block::Forward, 1000);
        packer.next_unit();
        let small = packer.take::<f32>(Block::Forward, 10);
        assert_eq!((big.byte, small.byte, packer.bytes(Block::Forward)), (0, 0, 4096));
    }
}
