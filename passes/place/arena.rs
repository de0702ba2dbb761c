//! Where everything lies in a rank's arena: from the bottom the rings, the exchange buffer, and above them what comes and goes.

use std::collections::BTreeMap;

use super::pack::{self, Block};
use crate::ir::{Action, ChunkId, Component, Layout, Phase, Program};
use crate::plan::{ALIGNMENT, Item, Pair, PlanRank, PlanStage, aligned};
use crate::units::Bytes;

/// How much the search for places works, over all ranks, where several plans are compared: some hundredths of a second.
pub const BRIEFLY: u64 = 10_000_000;

/// How much it works where a plan's places decide whether it fits: seconds where blocks are few, large and of many sizes.
pub const AT_LENGTH: u64 = 1_000_000_000;

/// How much it works on the plan that `auto` keeps, whose timetable is not regular. With [`AT_LENGTH`] 18 % of an arena of DeepSeek-V3 stayed
/// empty, with this 5 %.
pub const AT_LAST: u64 = 8_000_000_000;

/// Sizes of what compute items take, rounded up; of one GPU.
pub struct Blocks {
    /// By stage: F to I, F to W, I to W.
    held: Vec<[Bytes; 3]>,
    /// Workspace of B, by stage.
    full: Vec<Bytes>,
    /// Workspace of FB.
    pairs: BTreeMap<(u32, u32), Bytes>,
    /// Exchange buffers, by stage.
    exchange: Vec<Bytes>,
}

impl Blocks {
    /// Of the stages and programs of a plan; numbers of stages and pairs refer to `programs`.
    pub fn new(stages: &[PlanStage], pairs: &[Pair], programs: &[Program]) -> Self {
        let sum = |parts: &BTreeMap<Component, Bytes>| aligned(parts.values().copied().sum());
        let workspace = |number: u32| aligned(programs[number as usize].workspace);
        Self {
            held: stages
                .iter()
                .map(|stage| [sum(&stage.held.f_to_i), sum(&stage.held.f_to_w), sum(&stage.held.i_to_w)])
                .collect(),
            full: stages.iter().map(|stage| stage.b.map(workspace).unwrap_or_default()).collect(),
            pairs: pairs.iter().map(|pair| ((pair.f, pair.b), workspace(pair.program))).collect(),
            exchange: stages.iter().map(|stage| aligned(stage.exchange_buffer)).collect(),
        }
    }

    /// What an action takes, in the order in which an item lists it.
    fn taken(&self, action: Action) -> Vec<(Last, Bytes)> {
        let held = |chunk: ChunkId| &self.held[chunk.stage as usize];
        let forward = |chunk| vec![(Last::Input(chunk), held(chunk)[0]), (Last::Weights(chunk), held(chunk)[1])];
        match action {
            Action::F(chunk) => forward(chunk),
            Action::I(chunk) => vec![(Last::Weights(chunk), held(chunk)[2])],
            Action::W(_) => Vec::new(),
            Action::B(chunk) => vec![(Last::Here, self.full[chunk.stage as usize])],
            Action::FB(f, b) => {
                let workspace = self.pairs.get(&(f.stage, b.stage)).copied().unwrap_or_default();
                forward(f).into_iter().chain([(Last::Here, workspace)]).collect()
            }
        }
    }
}

/// The last item that a block is for.
#[derive(Clone, Copy)]
enum Last {
    /// The one that takes it.
    Here,
    /// The backward for the input of the chunk.
    Input(ChunkId),
    /// The weight gradient of the chunk.
    Weights(ChunkId),
}

/// Gives everything on every rank its place. `work` limits the search, over all ranks together.
pub fn lay_out(ranks: &mut [PlanRank], layout: &Layout, blocks: &Blocks, work: u64) {
    let work = work / ranks.len().max(1) as u64;
    for (number, rank) in (0..).zip(ranks) {
        let mut end = Bytes::ZERO;
        let mut next = |bytes: Bytes| match bytes {
            Bytes::ZERO => Bytes::ZERO,
            bytes => {
                let at = end;
                end += bytes;
                at
            }
        };
        for ring in &mut rank.rings {
            ring.at = next(aligned(ring.bytes) * u64::from(ring.slots));
        }
        let stages = layout.stages_of(number);
        rank.exchange = next(stages.iter().map(|&stage| blocks.exchange[stage as usize]).max().unwrap_or_default());
        rank.arena = end + place_blocks(&mut rank.items, blocks, end, work);
    }
}

/// Gives what the items take its place, from `bottom` upwards, and says how high it stands.
fn place_blocks(items: &mut [Item], blocks: &Blocks, bottom: Bytes, work: u64) -> Bytes {
    let actions: Vec<(usize, Action)> =
        items.iter().enumerate().filter_map(|(index, item)| Some((index, item.0.action()?))).collect();
    // When the phases of a chunk end, in numbers of actions.
    let mut ends: BTreeMap<(Phase, ChunkId), u32> = BTreeMap::new();
    for (number, &(_, action)) in (0..).zip(&actions) {
        ends.extend(action.parts().map(|part| (part, number)));
    }
    let never = actions.len() as u32;
    let end = |last: Last, number: u32| match last {
        Last::Here => number,
        Last::Input(chunk) => ends.get(&(Phase::I, chunk)).copied().unwrap_or(never),
        Last::Weights(chunk) => ends.get(&(Phase::W, chunk)).copied().unwrap_or(never),
    };
    let mut taken: Vec<Block> = Vec::new();
    let mut takers: Vec<usize> = Vec::new();
    for (number, &(index, action)) in (0..).zip(&actions) {
        items[index].2.clear();
        for (last, bytes) in blocks.taken(action).into_iter().filter(|&(_, bytes)| bytes > Bytes::ZERO) {
            // In whole units, so that every place is a multiple of them.
            taken.push(Block { from: number, to: end(last, number), size: bytes.0 / ALIGNMENT });
            takers.push(index);
        }
    }
    let (offsets, height) = pack::pack(&taken, work);
    for (&index, &offset) in takers.iter().zip(&offsets) {
        items[index].2.push(bottom + Bytes(offset) * ALIGNMENT);
    }
    Bytes(height) * ALIGNMENT
}
