//! `place`: gives every rank its items in launch order — actions, sends and receives, gradient synchronisation, optimizer —
//! with the events between them and the buffers that they need.
//!
//! A send is launched right behind the action that makes its data. Receives are launched in the order of the sends, each
//! in front of the first action that reads it or a later message. Every ring has the fewest slots with which the replayed
//! timetable never waits for a buffer. The plan cannot deadlock: at the replay's times, with each message passing at the
//! moment of its arrival, everything comes after what it waits for, and a message strictly after its maker and the reader
//! that frees its slot; a circle of waits would have to go through a message.
//!
//! In the end everything gets its place in the rank's [`arena`].

pub mod arena;
mod beam;
mod messages;
mod pack;
mod rings;
mod waits;

use std::collections::BTreeMap;

use crate::ir::{Action, ChunkId, Layout, Phase, Problem, Program, Timetable};
use crate::passes::pipeline::Replay;
use crate::plan::{Item, Pair, PlanRank, PlanStage, Ring, RingOf, Task};
use crate::units::{Bytes, Nanos};
use arena::Blocks;
use messages::Messages;

/// What the pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// What the timetable solves. Its hops must not be zero where actions take no time: else the replay's moments do not
    /// order what happens on different ranks.
    pub problem: &'a Problem,
    /// The order of actions.
    pub timetable: &'a Timetable,
    /// Their times.
    pub replay: &'a Replay,
    /// Sizes, by stage, and which programs run alone.
    pub stages: &'a [PlanStage],
    /// Which programs run pairs.
    pub pairs: &'a [Pair],
    /// What the numbers of stages and pairs refer to.
    pub programs: &'a [Program],
    /// Whether updated parameters are gathered (sharded optimizer).
    pub gather: bool,
    /// How much the search for places in the arenas works: [`arena::BRIEFLY`] or [`arena::AT_LENGTH`].
    pub work: u64,
}

/// The items and buffers of every rank.
pub fn place(input: Input) -> Vec<PlanRank> {
    let messages = Messages::new(&input);
    let reduce_order = reduce_order(&input);
    let layout = &input.timetable.layout;
    let mut ranks: Vec<PlanRank> =
        (0..layout.ranks).map(|rank| place_rank(&input, &messages, &reduce_order, rank)).collect();
    arena::lay_out(&mut ranks, layout, &Blocks::new(input.stages, input.pairs, input.programs), input.work);
    ranks
}

/// Stages in the order in which every rank reduces those that it holds: by the end of the last weight gradient anywhere.
/// One order for all, so that two ranks that share two stages never wait for each other.
fn reduce_order(input: &Input) -> Vec<u32> {
    let mut ends = vec![Nanos::ZERO; input.stages.len()];
    for (actions, spans) in input.timetable.ranks.iter().zip(&input.replay.spans) {
        for (action, span) in actions.iter().zip(spans) {
            if let Some(chunk) = action.weight_gradient() {
                let end = &mut ends[chunk.stage as usize];
                *end = (*end).max(span.end);
            }
        }
    }
    let mut order: Vec<u32> = (0..input.stages.len() as u32).collect();
    order.sort_by_key(|&stage| (ends[stage as usize], stage));
    order
}

/// Builds one rank's list.
struct Builder {
    items: Vec<Item>,
    /// Item of each action.
    compute: Vec<u32>,
    /// Item of the k-th send to each peer.
    sends: BTreeMap<u32, Vec<u32>>,
    /// Item of each message that was received, by (payload is gradient, chunk).
    received: BTreeMap<(bool, ChunkId), u32>,
}

impl Builder {
    fn push(&mut self, task: Task, after: Vec<u32>) -> u32 {
        self.items.push(Item(task, after, Vec::new()));
        self.items.len() as u32 - 1
    }
}

fn place_rank(input: &Input, messages: &Messages, reduce_order: &[u32], rank: u32) -> PlanRank {
    let layout = &input.timetable.layout;
    let actions = &input.timetable.ranks[rank as usize];
    let rings = rings::rings(input, messages, rank);
    let slots = |of: RingOf| rings.iter().find(|ring| ring.of == of).map_or(1, |ring| ring.slots as usize);

    let mut builder = Builder {
        items: Vec::with_capacity(actions.len() * 3),
        compute: Vec::with_capacity(actions.len()),
        sends: BTreeMap::new(),
        received: BTreeMap::new(),
    };
    let receives = receives(messages, rank, actions.len());
    let reduces = reduce_positions(layout, actions, reduce_order, rank);
    let mut next_reduce = reduces.iter().peekable();
    let mut reduced: BTreeMap<u32, u32> = BTreeMap::new();

    for (at, &action) in actions.iter().enumerate() {
        for &(from, number) in &receives[at] {
            let channel = &messages.channels[&(from, rank)];
            // The slot is free once the message that used it before was read.
            let freed = number.checked_sub(slots(RingOf::Inbox(from))).map(|k| builder.compute[channel[k].reader]);
            let message = &channel[number];
            let item = builder.push(message.receive(from), freed.into_iter().collect());
            builder.received.insert((message.gradient, message.chunk), item);
        }

        let mut after: Vec<u32> = Vec::new();
        for (gradient, chunk) in inputs(layout, action) {
            after.extend(builder.received.get(&(gradient, chunk)));
        }
        let outgoing = messages::sends(layout, rank, action);
        let mut count: BTreeMap<u32, usize> = BTreeMap::new();
        for (to, _) in &outgoing {
            let sent = builder.sends.get(to).map_or(0, Vec::len);
            let ahead = count.entry(*to).or_insert(0);
            let number = sent + *ahead;
            *ahead += 1;
            // The slot is free once the message that used it before has left.
            if let Some(k) = number.checked_sub(slots(RingOf::Outbox(*to))) {
                after.push(builder.sends[to][k]);
            }
        }
        let item = builder.push(Task::from(action), after);
        builder.compute.push(item);
        for (to, task) in outgoing {
            let send = builder.push(task, vec![item]);
            builder.sends.entry(to).or_default().push(send);
        }
        while let Some(&&(stage, position)) = next_reduce.peek() {
            if position > at {
                break;
            }
            next_reduce.next();
            let last = builder.compute[last_weight(actions, stage).unwrap_or(at)];
            let item = builder.push(Task::ReduceGrads(stage), vec![last]);
            reduced.insert(stage, item);
        }
    }
    let held: Vec<u32> = reduces.iter().map(|&(stage, _)| stage).collect();
    let updates: Vec<(u32, u32)> =
        held.iter().map(|&stage| (stage, builder.push(Task::Update(stage), vec![reduced[&stage]]))).collect();
    if input.gather {
        for (stage, update) in updates {
            builder.push(Task::GatherParams(stage), vec![update]);
        }
    }
    waits::prune(&mut builder.items);
    PlanRank { arena: Bytes::ZERO, exchange: Bytes::ZERO, rings, items: builder.items }
}

/// What an action reads that another rank may have made: (is a gradient, the chunk that made it).
fn inputs(layout: &Layout, action: Action) -> impl Iterator<Item = (bool, ChunkId)> + use<> {
    let stages = layout.stages;
    action.parts().filter_map(move |(phase, chunk)| match phase {
        Phase::F if chunk.stage > 0 => Some((false, ChunkId::new(chunk.stage - 1, chunk.micro_batch))),
        Phase::I if chunk.stage + 1 < stages => Some((true, ChunkId::new(chunk.stage + 1, chunk.micro_batch))),
        _ => None,
    })
}

/// For each action the receives in front of it, as (peer, number of the message).
fn receives(messages: &Messages, rank: u32, actions: usize) -> Vec<Vec<(u32, usize)>> {
    let mut positions = vec![Vec::new(); actions];
    for (&(from, _), channel) in messages.channels.iter().filter(|((_, to), _)| *to == rank) {
        for (number, position) in messages::receive_positions(channel).into_iter().enumerate() {
            positions[position].push((from, number));
        }
    }
    positions
}

/// The stages that a rank reduces, in the common order, each with the action behind which it is launched.
fn reduce_positions(layout: &Layout, actions: &[Action], order: &[u32], rank: u32) -> Vec<(u32, usize)> {
    let held = layout.stages_of(rank);
    let mut last = 0;
    order
        .iter()
        .filter(|stage| held.contains(stage))
        .map(|&stage| {
            last = last.max(last_weight(actions, stage).unwrap_or(0));
            (stage, last)
        })
        .collect()
}

/// The last action that makes a weight gradient of `stage`.
fn last_weight(actions: &[Action], stage: u32) -> Option<usize> {
    actions.iter().rposition(|action| action.weight_gradient().is_some_and(|chunk| chunk.stage == stage))
}

/// A ring that has no place yet.
fn ring(of: RingOf, slots: usize, bytes: Bytes) -> Ring {
    Ring { of, slots: slots as u32, bytes, at: Bytes::ZERO }
}
