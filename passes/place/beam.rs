//! Packing within a given height, block by block in the order in which they come.
//!
//! A beam of partial packings is kept: those in which most of the blocks to come still find room by a quick rule, if that is asked, and
//! of these the ones whose free space is in the fewest and largest pieces. Every gap is tried at its lower and at its upper end, so
//! that what stays long and what goes soon can part.

use super::pack::Block;

/// Blocks to come that a partial packing is asked for.
const AHEAD: usize = 48;

/// Partial packings that are asked for blocks to come, for each that is kept.
const ASKED: usize = 3;

/// Choices with equal gaps that are looked at, for each partial packing that goes on.
const TIES: usize = 4;

/// How wide to search.
#[derive(Clone, Copy)]
pub struct Beam {
    /// Partial packings that are kept.
    pub width: usize,
    /// Whether they are asked for blocks to come.
    pub asks: bool,
}

/// What the search may still do, counted in blocks that it looks at.
pub struct Work(pub u64);

impl Work {
    /// Whether nothing is left.
    pub fn is_spent(&self) -> bool {
        self.0 == 0
    }

    /// Looks at so many blocks; `None` once the work is spent.
    fn spend(&mut self, blocks: usize) -> Option<()> {
        self.0 = self.0.saturating_sub(1 + blocks as u64);
        (!self.is_spent()).then_some(())
    }
}

/// A block that is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Live {
    at: u64,
    size: u64,
    to: u32,
}

/// A partial packing: what of it is still there, by offset.
#[derive(Clone)]
struct Partial {
    live: Vec<Live>,
    /// Sum of the squares of its gaps: the larger, the less its free space is cut up.
    squares: u64,
    /// Where its last block lies: index into the log.
    last: Option<u32>,
}

/// The next block in a gap of a partial packing.
#[derive(Clone, Copy)]
struct Choice {
    /// As of the partial packing that it makes.
    squares: u64,
    /// The partial packing.
    parent: usize,
    /// Index into what is live, of the block behind the gap.
    behind: usize,
    at: u64,
}

impl Beam {
    /// Offsets of blocks, given in the order in which they come, so that none reaches above `height`. `None` if none are found, or the
    /// work is spent.
    pub fn search(self, blocks: &[Block], height: u64, work: &mut Work) -> Option<Vec<u64>> {
        let Self { width, asks } = self;
        // Squares of gaps in units in which their sum stays below 2^64.
        let shift = (u64::BITS - height.leading_zeros()).saturating_sub(u32::BITS - 1);
        let square = |gap: u64| (gap >> shift) * (gap >> shift);
        let mut log: Vec<(Option<u32>, u64)> = Vec::new();
        let mut kept = vec![Partial { live: Vec::new(), squares: 0, last: None }];
        for (number, block) in blocks.iter().enumerate() {
            let mut choices: Vec<Choice> = Vec::new();
            for (parent, partial) in kept.iter_mut().enumerate() {
                work.spend(partial.live.len())?;
                partial.live.retain(|live| live.to >= block.from);
                partial.squares = gaps(&partial.live, height).map(|gap| square(gap.2)).sum();
                for (behind, at, gap) in gaps(&partial.live, height) {
                    let Some(rest) = gap.checked_sub(block.size) else { continue };
                    let squares = partial.squares - square(gap) + square(rest);
                    choices.push(Choice { squares, parent, behind, at });
                    if rest > 0 {
                        choices.push(Choice { squares, parent, behind, at: at + rest });
                    }
                }
            }
            let asked = if asks { width * ASKED } else { width };
            let mut next = follow(&kept, choices, block, asked, work)?;
            if asks {
                let mut answers: Vec<(usize, usize)> = Vec::with_capacity(next.len());
                for (at, (partial, _)) in next.iter().enumerate() {
                    answers.push((stuck(&partial.live, &blocks[number + 1..], height, work)?, at));
                }
                answers.sort_unstable();
                next = answers.iter().take(width).map(|&(_, at)| next[at].clone()).collect();
            }
            if next.is_empty() {
                return None;
            }
            kept.clear();
            for (mut partial, at) in next {
                log.push((partial.last, at));
                partial.last = Some(log.len() as u32 - 1);
                kept.push(partial);
            }
        }
        let mut offsets = Vec::with_capacity(blocks.len());
        let mut last = kept.first()?.last;
        while let Some(entry) = last {
            let (before, at) = log[entry as usize];
            offsets.push(at);
            last = before;
        }
        offsets.reverse();
        Some(offsets)
    }
}

/// The best partial packings after these choices, at most so many, each with the place of the block; `last` is still the parent's.
fn follow(
    kept: &[Partial],
    mut choices: Vec<Choice>,
    block: &Block,
    most: usize,
    work: &mut Work,
) -> Option<Vec<(Partial, u64)>> {
    choices.sort_unstable_by_key(|choice| (std::cmp::Reverse(choice.squares), choice.parent, choice.at));
    // Of equals, those whose blocks lie lowest.
    let last = choices.get(most.saturating_sub(1)).map_or(0, |choice| choice.squares);
    let mut next = Vec::new();
    for choice in choices.iter().take_while(|choice| choice.squares >= last).take(most * TIES) {
        let parent = &kept[choice.parent];
        work.spend(parent.live.len())?;
        let mut live = Vec::with_capacity(parent.live.len() + 1);
        live.extend_from_slice(&parent.live);
        live.insert(choice.behind, Live { at: choice.at, size: block.size, to: block.to });
        next.push((Partial { live, squares: choice.squares, last: parent.last }, choice.at));
    }
    next.sort_by(|(a, _), (b, _)| b.squares.cmp(&a.squares).then_with(|| a.live.cmp(&b.live)));
    next.dedup_by(|(a, _), (b, _)| a.live == b.live);
    next.truncate(most);
    Some(next)
}

/// How many of the next blocks find no room if each lies at the start of the smallest gap that has room for it.
fn stuck(live: &[Live], coming: &[Block], height: u64, work: &mut Work) -> Option<usize> {
    let coming = &coming[..coming.len().min(AHEAD)];
    let mut live = live.to_vec();
    for (number, block) in coming.iter().enumerate() {
        work.spend(live.len())?;
        live.retain(|live| live.to >= block.from);
        let room = gaps(&live, height).filter(|&(.., gap)| gap >= block.size).min_by_key(|&(_, at, gap)| (gap, at));
        match room {
            Some((behind, at, _)) => live.insert(behind, Live { at, size: block.size, to: block.to }),
            None => return Some(coming.len() - number),
        }
    }
    Some(0)
}

/// The gaps between blocks that are there, up to a height: index of the block behind the gap, start and length.
fn gaps(live: &[Live], height: u64) -> impl Iterator<Item = (usize, u64, u64)> {
    let starts = std::iter::once(0).chain(live.iter().map(|live| live.at + live.size));
    let ends = live.iter().map(|live| live.at).chain(std::iter::once(height));
    starts.zip(ends).enumerate().map(|(behind, (start, end))| (behind, start, end - start)).filter(|gap| gap.2 > 0)
}
