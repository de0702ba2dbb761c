//! Where the values of a chunk lie: in blocks that come and go with its items, and in scratch that every chunk of a rank uses in turn.
//!
//! What is computed again in the backward has two places: in F it lies in scratch, and is lost; in I and W where the backward makes it
//! again. So the same ops make it both times.

use std::marker::PhantomData;

use crate::ir::Recompute;
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
    /// Scratch of I for what is computed again, of units of even and of odd number: the next unit's may be made before the last one's is
    /// done with.
    Even,
    /// See [`Block::Even`].
    Odd,
}

/// Blocks.
pub const BLOCKS: usize = 8;

/// Scratch of a rank.
pub const SCRATCH: [Block; 5] = [Block::Forward, Block::Backward, Block::Weights, Block::Even, Block::Odd];

/// A place in a block.
#[derive(Clone, Copy, Debug)]
struct At {
    block: Block,
    byte: usize,
}

/// The place of some elements.
#[derive(Debug)]
pub struct Spot<E> {
    /// In F, and in I and W.
    at: [At; 2],
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
#[derive(Clone, Debug)]
pub struct Packer {
    used: [usize; BLOCKS],
    most: [usize; BLOCKS],
    /// What the stage computes again.
    recompute: Recompute,
    /// Units whose values are there at once, of those that are computed again; more than 2: all.
    apart: usize,
    /// Where those of the current unit lie.
    again: Block,
}

impl Packer {
    /// For the units of a stage. `apart`: how many units in a row may be there at once, of what is computed again.
    pub fn new(recompute: Recompute, apart: usize) -> Self {
        Self { used: [0; BLOCKS], most: [0; BLOCKS], recompute, apart, again: Block::Even }
    }

    /// A place behind all others of the block. Where the whole layer is computed again, so is what lies there from F on.
    pub fn take<E: Element>(&mut self, block: Block, len: usize) -> Spot<E> {
        let again = match block {
            Block::UntilI | Block::UntilW => self.recompute.layer,
            // Whoever computes again needs scratch as F does, but not F's: that may run at the same time.
            Block::Forward => self.recompute.layer || self.recompute.mla_up,
            _ => false,
        };
        self.take_if(again, block, len)
    }

    /// A place behind all others of the block; `again`: what lies there is computed again.
    pub fn take_if<E: Element>(&mut self, again: bool, block: Block, len: usize) -> Spot<E> {
        if !again {
            return self.take_once(block, len);
        }
        let backward = if block == Block::UntilW { Block::FromI } else { self.again };
        let at = [self.place::<E>(Block::Forward, len), self.place::<E>(backward, len)];
        Spot { at, len, of: PhantomData }
    }

    /// A place behind all others of the block, for what is made once.
    pub fn take_once<E: Element>(&mut self, block: Block, len: usize) -> Spot<E> {
        let at = self.place::<E>(block, len);
        Spot { at: [at; 2], len, of: PhantomData }
    }

    fn place<E: Element>(&mut self, block: Block, len: usize) -> At {
        let used = &mut self.used[block as usize];
        let byte = *used;
        *used += (len * E::BYTES).next_multiple_of(ALIGNMENT as usize);
        self.most[block as usize] = self.most[block as usize].max(*used);
        At { block, byte }
    }

    /// The next unit, of this number, has scratch to itself.
    pub fn next_unit(&mut self, number: usize) {
        self.again = if self.apart == 2 && !number.is_multiple_of(2) { Block::Odd } else { Block::Even };
        for block in [Block::Forward, Block::Backward, Block::Weights] {
            self.used[block as usize] = 0;
        }
        if self.apart <= 2 {
            self.used[self.again as usize] = 0;
        }
    }

    /// What the stage computes again.
    pub fn recompute(&self) -> Recompute {
        self.recompute
    }

    /// Bytes of a block.
    pub fn bytes(&self, block: Block) -> usize {
        self.most[block as usize]
    }
}

/// Where the blocks of a chunk are.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    of: [Slice<u8>; BLOCKS],
    backward: bool,
}

impl Blocks {
    /// None yet.
    pub fn none() -> Self {
        Self { of: [Slice::none(); BLOCKS], backward: false }
    }

    /// The same, for ops of I and W.
    #[must_use]
    pub fn backward(self) -> Self {
        Self { backward: true, ..self }
    }

    /// Says where one is.
    pub fn put(&mut self, block: Block, bytes: Slice<u8>) {
        self.of[block as usize] = bytes;
    }

    /// What lies at a place.
    ///
    /// # Panics
    /// If the block is not there, or too small.
    pub fn at<E: Element>(&self, spot: Spot<E>) -> Slice<E> {
        let At { block, byte } = spot.at[usize::from(self.backward)];
        self.of[block as usize].part(byte..byte + spot.len * E::BYTES).cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::cuda::Bf16;

    #[test]
    fn places_follow_each_other_and_scratch_is_used_again() {
        let mut packer = Packer::new(Recompute::NOTHING, 1);
        let first = packer.take::<Bf16>(Block::UntilI, 3);
        let second = packer.take::<f32>(Block::UntilI, 100);
        assert_eq!((first.at[0].byte, second.at[1].byte, packer.bytes(Block::UntilI)), (0, 256, 256 + 512));
        let big = packer.take::<f32>(Block::Forward, 1000);
        packer.next_unit(1);
        let small = packer.take::<f32>(Block::Forward, 10);
        assert_eq!((big.at[0].byte, small.at[0].byte, packer.bytes(Block::Forward)), (0, 0, 4096));
        assert_eq!(packer.bytes(Block::Even) + packer.bytes(Block::Odd), 0);
    }

    #[test]
    fn what_is_computed_again_is_not_kept() {
        let layer = Recompute { layer: true, ..Recompute::NOTHING };
        // By how many units are there at once: bytes of the two kinds of scratch for three units of 256 and 512 bytes.
        for (apart, even, odd) in [(1, 768, 0), (2, 768, 768), (3, 3 * 768, 0)] {
            let mut packer = Packer::new(layer, apart);
            for number in 0..3 {
                packer.next_unit(number);
                packer.take_once::<u8>(Block::UntilI, 1);
                packer.take::<u8>(Block::UntilI, 256);
                packer.take::<u8>(Block::UntilW, 1024);
                packer.take::<u8>(Block::Forward, 512);
            }
            let bytes = [Block::UntilI, Block::UntilW, Block::FromI, Block::Forward, Block::Even, Block::Odd]
                .map(|block| packer.bytes(block));
            assert_eq!(bytes, [3 * 256, 0, 3 * 1024, 256 + 1024 + 512, even, odd], "{apart}");
        }
    }
}
