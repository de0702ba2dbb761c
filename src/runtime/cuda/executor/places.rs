//! Where the blocks of chunks lie on a GPU, and the slots of its rings.
//!
//! The plan's own places are for balanced loads of experts; here there is room for any, so blocks are larger and have other places. They
//! come and go with the same items.

use std::collections::BTreeMap;

use super::blocks::Block;
use super::heap::Heap;
use super::stage::Stage;
use crate::ir::{ChunkId, Phase};
use crate::plan::{ALIGNMENT, Item, PlanRank, RingOf};

/// A block that an item takes.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Of which chunk.
    pub chunk: ChunkId,
    /// Which of its blocks.
    pub block: Block,
    /// First byte.
    pub at: usize,
    /// Bytes.
    pub bytes: usize,
}

/// By item, the blocks that it takes; and how much memory they need.
pub fn blocks(items: &[Item], stages: &BTreeMap<u32, Stage>) -> (Vec<Vec<Taken>>, usize) {
    let mut heap = Heap::default();
    let mut held: BTreeMap<ChunkId, Vec<Taken>> = BTreeMap::new();
    let mut places = Vec::new();
    for item in items {
        let parts: Vec<(Phase, ChunkId)> = item.0.action().into_iter().flat_map(|action| action.parts()).collect();
        let mut taken = Vec::new();
        for &(phase, chunk) in &parts {
            let blocks: &[Block] = match phase {
                Phase::F => &[Block::UntilI, Block::UntilW],
                Phase::I => &[Block::FromI],
                Phase::W => &[],
            };
            for &block in blocks {
                let bytes = stages.get(&chunk.stage).map_or(0, |stage| stage.bytes(block));
                taken.push(Taken { chunk, block, at: heap.take(bytes), bytes });
            }
        }
        for &taken in &taken {
            held.entry(taken.chunk).or_default().push(taken);
        }
        for &(phase, chunk) in &parts {
            let ends = |block| match phase {
                Phase::F => false,
                Phase::I => block == Block::UntilI,
                Phase::W => true,
            };
            if let Some(held) = held.get_mut(&chunk) {
                for gone in held.extract_if(.., |taken| ends(taken.block)) {
                    heap.release(gone.at, gone.bytes);
                }
            }
        }
        places.push(taken);
    }
    (places, heap.most())
}

/// Where the slots of a rank's rings lie: the first one's byte and the bytes of each; and how much memory they need.
pub fn rings(rank: &PlanRank) -> (BTreeMap<RingOf, (usize, usize)>, usize) {
    let mut next = 0;
    let place = |ring: &crate::plan::Ring| {
        let bytes = (ring.bytes.0 as usize).next_multiple_of(ALIGNMENT as usize);
        let first = next;
        next += bytes * ring.slots as usize;
        (ring.of, (first, bytes))
    };
    let rings = rank.rings.iter().map(place).collect();
    (rings, next)
}
