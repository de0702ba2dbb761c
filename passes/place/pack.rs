//! Where blocks that come and go lie in one piece of memory, so that it need not be much larger than what is live at once.
//!
//! A beam search (`beam`) is asked for packings of ever less height than the best so far, from below, forwards and backwards in time, and
//! with ever wider beams where much is lost. The limit is counted work, so that equal blocks get equal places.

use std::cmp::Reverse;

use super::beam::{Beam, Work};

/// From the start of item `from` to the end of item `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// First item at which it is there.
    pub from: u32,
    /// Last one, not before `from`.
    pub to: u32,
    /// Its size, in any unit.
    pub size: u64,
}

/// The beams, one after the other: first those that cost little.
const BEAMS: [Beam; 6] = [
    Beam { width: 1, asks: false },
    Beam { width: 8, asks: false },
    Beam { width: 32, asks: false },
    Beam { width: 16, asks: true },
    Beam { width: 64, asks: true },
    Beam { width: 256, asks: true },
];

/// A packing that is higher than what is live at once by no more than one part in so many is good enough.
const GOOD: u64 = 100;

/// Heights that are tried between what is live at once and the best packing so far.
const RUNGS: u64 = 8;

/// Sizes that differ by no more than one part in so many are made equal.
const ALIKE: u64 = 512;

/// The most that is there at one item: no packing is lower.
pub fn most_live(blocks: &[Block]) -> u64 {
    let mut events: Vec<(u32, bool, u64)> = Vec::with_capacity(2 * blocks.len());
    for block in blocks {
        // At one item what comes goes before what ends.
        events.push((block.from, false, block.size));
        events.push((block.to, true, block.size));
    }
    events.sort_unstable();
    let (mut live, mut most) = (0_u128, 0_u128);
    for (_, ends, size) in events {
        if ends {
            live -= u128::from(size);
        } else {
            live += u128::from(size);
            most = most.max(live);
        }
    }
    u64::try_from(most).unwrap_or(u64::MAX)
}

/// An offset for each block, such that no two that are there at the same item overlap, and the height that this takes. `work` limits
/// the search: about so many blocks are looked at.
pub fn pack(blocks: &[Block], work: u64) -> (Vec<u64>, u64) {
    // What comes and goes together is one block.
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&at| (blocks[at].from, Reverse(blocks[at].to)));
    let mut groups: Vec<Block> = Vec::new();
    let (mut group_of, mut within) = (vec![0; blocks.len()], vec![0_u64; blocks.len()]);
    for at in order {
        let block = blocks[at];
        match groups.last_mut().filter(|group| (group.from, group.to) == (block.from, block.to)) {
            Some(group) => {
                within[at] = group.size;
                group.size = group.size.saturating_add(block.size);
            }
            None => groups.push(block),
        }
        group_of[at] = groups.len() - 1;
    }
    even_out(&mut groups);
    let packing = search(&groups, Work(work));
    let offset = |(&group, &within): (&usize, &u64)| packing.offsets[group].saturating_add(within);
    (group_of.iter().zip(&within).map(offset).collect(), packing.height)
}

/// Gives blocks of about the same size the same, the largest, so that each fits where another was.
fn even_out(blocks: &mut [Block]) {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&at| Reverse(blocks[at].size));
    let mut largest = 0;
    for at in order {
        let size = blocks[at].size;
        if largest - size.min(largest) > size / ALIKE || largest == 0 {
            largest = size;
        }
        blocks[at].size = largest;
    }
}

/// Offsets by block, and the height that they take.
#[derive(Default)]
struct Packing {
    offsets: Vec<u64>,
    height: u64,
}

/// Blocks in the order in which they come, in one direction of time; of those that come together the ones that stay long, or the others,
/// first.
struct Order {
    blocks: Vec<Block>,
    /// As what they were numbered.
    numbers: Vec<usize>,
}

impl Order {
    fn new(blocks: impl Iterator<Item = Block>, long_first: bool) -> Self {
        let mut numbered: Vec<(Block, usize)> = blocks.zip(0..).collect();
        numbered.sort_by_key(|&(block, number)| {
            (block.from, if long_first { u32::MAX - block.to } else { block.to }, number)
        });
        let (blocks, numbers) = numbered.into_iter().unzip();
        Self { blocks, numbers }
    }

    /// A packing of the blocks as they were numbered, from one in this order.
    fn packing(&self, offsets: &[u64]) -> Packing {
        let mut packing = Packing { offsets: vec![0; offsets.len()], height: 0 };
        for ((block, &number), &at) in self.blocks.iter().zip(&self.numbers).zip(offsets) {
            packing.offsets[number] = at;
            packing.height = packing.height.max(at.saturating_add(block.size));
        }
        packing
    }
}

/// The lowest packing that is found.
fn search(blocks: &[Block], mut work: Work) -> Packing {
    let last = blocks.iter().map(|block| block.to).max().unwrap_or(0);
    let reversed = |block: &Block| Block { from: last - block.to, to: last - block.from, size: block.size };
    let orders = [true, false].map(|long_first| {
        [Order::new(blocks.iter().copied(), long_first), Order::new(blocks.iter().map(reversed), long_first)]
    });
    let orders = || orders.iter().flatten();
    let floor = most_live(blocks);
    let simple = orders().map(|order| order.packing(&first_fit(&order.blocks)));
    let mut best = simple.min_by_key(|packing| packing.height).unwrap_or_default();
    for beam in BEAMS {
        let room = best.height.saturating_sub(floor);
        if room <= floor / GOOD || work.is_spent() {
            break;
        }
        // What fits into one height need not be found in a larger one: so none is left out.
        let found = (0..RUNGS).find_map(|rung| {
            let height = floor + room / RUNGS * rung;
            orders().find_map(|order| Some(order.packing(&beam.search(&order.blocks, height, &mut work)?)))
        });
        best = found.unwrap_or(best);
    }
    best
}

/// Each block at the lowest place that is free, in the order in which they come.
fn first_fit(blocks: &[Block]) -> Vec<u64> {
    // By offset.
    let mut live: Vec<(u64, Block)> = Vec::new();
    let mut offsets = Vec::with_capacity(blocks.len());
    for block in blocks {
        live.retain(|(_, other)| other.to >= block.from);
        let mut at = 0_u64;
        let mut behind = live.len();
        for (number, &(start, other)) in live.iter().enumerate() {
            if start.saturating_sub(at) >= block.size {
                behind = number;
                break;
            }
            at = start.saturating_add(other.size);
        }
        live.insert(behind, (at, *block));
        offsets.push(at);
    }
    offsets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::{Block, most_live, pack};

    fn together(a: &Block, b: &Block) -> bool {
        a.from <= b.to && b.from <= a.to
    }

    /// Every pair, and that the height is that of the highest.
    fn is_packing(blocks: &[Block], offsets: &[u64], height: u64) -> bool {
        let end = |at: usize| offsets[at] + blocks[at].size;
        let apart =
            |a: usize, b: usize| !together(&blocks[a], &blocks[b]) || end(a) <= offsets[b] || end(b) <= offsets[a];
        (0..blocks.len()).all(|a| end(a) <= height && (0..a).all(|b| apart(a, b)))
    }

    /// The lowest height of all: in some order of the blocks each lies at the lowest place that those before it leave.
    fn lowest(blocks: &[Block], placed: &mut Vec<(usize, u64)>, height: u64, best: &mut u64) {
        if height >= *best {
            return;
        }
        if placed.len() == blocks.len() {
            *best = height;
            return;
        }
        for next in 0..blocks.len() {
            if placed.iter().any(|&(other, _)| other == next) {
                continue;
            }
            let near = placed.iter().filter(|&&(other, _)| together(&blocks[other], &blocks[next]));
            let near: Vec<(u64, u64)> = near.map(|&(other, at)| (at, at + blocks[other].size)).collect();
            let free = |at: u64| near.iter().all(|&(from, to)| at + blocks[next].size <= from || to <= at);
            let candidates = near.iter().map(|&(_, to)| to).chain([0]);
            let Some(at) = candidates.filter(|&at| free(at)).min() else { continue };
            placed.push((next, at));
            lowest(blocks, placed, height.max(at + blocks[next].size), best);
            placed.pop();
        }
    }

    fn blocks(count: std::ops::Range<usize>, items: u32, sizes: u64) -> impl Strategy<Value = Vec<Block>> {
        let block = (0..items, 0..items, 1..=sizes);
        prop::collection::vec(block.prop_map(|(a, b, size)| Block { from: a.min(b), to: a.max(b), size }), count)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

        /// So few blocks are packed as low as they can be.
        #[test]
        fn tiny_ones_are_optimal(blocks in blocks(1..7, 8, 9)) {
            let (offsets, height) = pack(&blocks, 1_000_000);
            prop_assert!(is_packing(&blocks, &offsets, height));
            let mut best = u64::MAX;
            lowest(&blocks, &mut Vec::new(), 0, &mut best);
            prop_assert!(best >= most_live(&blocks));
            prop_assert_eq!(height, best);
        }

        /// Many, long and short, with little work and with more: never higher with more.
        #[test]
        fn nothing_overlaps(blocks in blocks(0..120, 60, 1000), work in 0_u64..200_000) {
            let (offsets, height) = pack(&blocks, work);
            prop_assert!(is_packing(&blocks, &offsets, height));
            let there = |item| blocks.iter().filter(move |block| block.from <= item && item <= block.to);
            let live = (0..60).map(|item| there(item).map(|block| block.size).sum::<u64>());
            prop_assert_eq!(live.max(), Some(most_live(&blocks)));
            prop_assert!(pack(&blocks, 10 * work).1 <= height);
        }
    }

    /// Sizes that no memory has: nothing overflows, and nothing is lost.
    #[test]
    fn sizes_past_every_number() {
        let block = |from, to, size| Block { from, to, size };
        let (offsets, height) = pack(&[block(0, 2, u64::MAX), block(1, 3, u64::MAX), block(2, 4, 1)], 1000);
        assert_eq!((offsets.len(), height), (3, u64::MAX));
        assert_eq!(pack(&[], 1000), (vec![], 0));
    }
}
