//! Rule `aliasing`: nothing shares bytes of a rank's arena with what is there at the same time.
//!
//! Compute items of a rank run one after the other, so a block is there at every compute item from the one that takes it to the last one
//! that it is for, both included. Going through the items, what is there is kept in the order of its place: what is new can only
//! reach into its neighbours.

use std::collections::BTreeMap;

use crate::plan::Plan;

use super::places::Block;
use super::report::{Report, Rule, Violation};

const RULE: Rule = Rule::Aliasing;

/// Checks one rank; `blocks` are what is always there, then what items take, in their order.
pub fn check(plan: &Plan, number: u32, blocks: &[Block], report: &mut Report) {
    // Disjoint, by where they begin: indices into `blocks`. One that overlaps another is reported and left out.
    let mut there: BTreeMap<u128, usize> = BTreeMap::new();
    let mut ending: Vec<(usize, usize)> =
        blocks.iter().enumerate().filter_map(|(at, block)| Some((block.to?, at))).collect();
    ending.sort_unstable();
    let mut ending = ending.into_iter().peekable();
    for (at, block) in blocks.iter().enumerate() {
        while let Some((_, ended)) = ending.next_if(|&(last, _)| block.from.is_some_and(|from| last < from)) {
            let start = blocks[ended].bytes.start;
            if there.get(&start) == Some(&ended) {
                there.remove(&start);
            }
        }
        let below = there.range(..block.bytes.end).next_back().map(|(_, &other)| &blocks[other]);
        match below.filter(|below| below.bytes.end > block.bytes.start) {
            Some(other) => report.add(RULE, || violation(plan, number, block, other)),
            None => _ = there.insert(block.bytes.start, at),
        }
    }
}

fn violation(plan: &Plan, number: u32, block: &Block, other: &Block) -> Violation {
    let name = |item: usize| format!("{} (item {item})", plan.ranks[number as usize].items[item].0);
    let until = match (other.from, other.to) {
        (None, _) => "always".to_owned(),
        (Some(from), None) => format!("from {} on", name(from)),
        (Some(from), Some(to)) if from == to => format!("during {}", name(from)),
        (Some(from), Some(to)) => format!("from {} to {}", name(from), name(to)),
    };
    let place = |block: &Block| format!("{} to {}", block.bytes.start, block.bytes.end);
    let clash = format!("at bytes {}, where {} is {until}, at {}", place(block), other.what, place(other));
    match block.from {
        Some(item) => Violation::item(RULE, plan, number, item, format!("takes {} {clash}", block.what)),
        None => Violation::rank(RULE, number, block.what.to_string(), format!("lies {clash}")),
    }
}
