//! Runs a plan in random order, as its documentation says that it runs, and watches every buffer. It proves nothing, but it
//! shares nothing with the verifier either: what that one passes must come through here, however the dice fall.

use std::collections::BTreeMap;

use dualweave::ir::{ChunkId, Work};
use dualweave::plan::{Item, Plan, RingOf, StreamId, Task};
use dualweave::units::Bytes;

/// What lies in an arena takes up multiples of so many bytes.
const UNIT: u64 = 256;

/// A value: what made it, and of which chunk.
type Tag = (char, u32, u32);

/// A value of a ring of a rank: where it lies, which item writes it and which one reads it.
struct Value {
    slot: (RingOf, u64),
    tag: Tag,
    writer: Option<usize>,
    reader: Option<usize>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Waits,
    Runs,
    Ended,
}

/// Whether sends and receives wait for each other.
#[derive(Clone, Copy, PartialEq)]
pub enum Ranks {
    /// As a plan says: a transfer starts when both ends have been reached.
    Together,
    /// Each end goes ahead by itself, the data being there by magic. Only what a rank orders by itself is left.
    Apart,
}

/// Runs the plan. `seed` gives everything that can happen a priority; what is possible and comes first happens next.
pub fn run(plan: &Plan, ranks: Ranks, seed: u64) -> Result<(), String> {
    let values: Vec<Vec<Value>> = (0..plan.ranks.len()).map(|rank| values(plan, rank)).collect::<Result<_, _>>()?;
    let mut meets = meets(plan)?;
    if ranks == Ranks::Apart {
        meets.iter_mut().for_each(|(&at, group)| *group = vec![at]);
    }
    let mut states: Vec<Vec<State>> = plan.ranks.iter().map(|rank| vec![State::Waits; rank.items.len()]).collect();
    // What lies in each slot, and whether it is whole.
    let mut slots: Vec<BTreeMap<(RingOf, u64), (Tag, bool)>> = vec![BTreeMap::new(); plan.ranks.len()];
    let mut arenas: Vec<Vec<Piece>> = Vec::new();
    for rank in 0..plan.ranks.len() {
        if state(plan, rank) + plan.ranks[rank].arena.0 > plan.machine.memory.0 {
            return Err(format!("rank {rank}: no memory"));
        }
        arenas.push(Vec::new());
        for piece in standing(plan, rank) {
            put(plan, rank, &mut arenas[rank], piece)?;
        }
    }
    loop {
        let mut choices = Vec::new();
        let all_reduced = ranks == Ranks::Apart || all_reduced(plan, &states);
        for (rank, there) in plan.ranks.iter().enumerate() {
            for item in 0..there.items.len() {
                match states[rank][item] {
                    State::Runs => choices.push((rank, item)),
                    State::Waits => {
                        let group = &meets[&(rank, item)];
                        let waits = matches!(there.items[item].0, Task::Update(_)) && !all_reduced;
                        if !waits && group.iter().all(|&(rank, item)| ready(plan, &states, rank, item)) {
                            choices.push((rank, item));
                        }
                    }
                    State::Ended => {}
                }
            }
        }
        let first = choices.into_iter().min_by_key(|&(rank, item)| priority(seed, rank, item, states[rank][item]));
        let Some((rank, item)) = first else { break };
        let starts = states[rank][item] == State::Waits;
        for &(rank, item) in &meets[&(rank, item)] {
            states[rank][item] = if starts { State::Runs } else { State::Ended };
            for value in &values[rank] {
                let there = slots[rank].get(&value.slot).copied();
                if value.writer == Some(item) {
                    if !starts && there != Some((value.tag, false)) {
                        return Err(format!("rank {rank}: {:?} was overwritten while being written", value.tag));
                    }
                    slots[rank].insert(value.slot, (value.tag, !starts));
                }
                if value.reader == Some(item) && there != Some((value.tag, true)) {
                    return Err(format!("rank {rank}: item {item} reads {:?} but finds {there:?}", value.tag));
                }
            }
            if starts {
                chunk_parts(plan, &states, rank, item)?;
                synchronised(plan, &states, rank, item)?;
            }
            if starts {
                for piece in taken(plan, rank, item)? {
                    put(plan, rank, &mut arenas[rank], piece)?;
                }
            } else {
                let over = let_go(plan.ranks[rank].items[item].0);
                arenas[rank].retain(|piece| !over.contains(&piece.of));
            }
        }
    }
    for (rank, states) in states.iter().enumerate() {
        if let Some(item) = states.iter().position(|&state| state != State::Ended) {
            return Err(format!("rank {rank}: item {item} never ends"));
        }
    }
    all_done(plan)
}

/// Some number, the same for the same arguments (SplitMix64).
fn priority(seed: u64, rank: usize, item: usize, state: State) -> u64 {
    let mut z = [rank as u64, item as u64, u64::from(state == State::Runs)]
        .into_iter()
        .fold(seed, |z, next| z.wrapping_add(next).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether the item before it on its stream and all of its `after` have ended.
fn ready(plan: &Plan, states: &[Vec<State>], rank: usize, item: usize) -> bool {
    let items = &plan.ranks[rank].items;
    let stream = items[item].0.stream();
    states[rank][item] == State::Waits
        && (0..item).all(|earlier| items[earlier].0.stream() != stream || states[rank][earlier] == State::Ended)
        && items[item].1.iter().all(|&after| states[rank][after as usize] == State::Ended)
}

/// Whether every reduction has ended.
fn all_reduced(plan: &Plan, states: &[Vec<State>]) -> bool {
    let items = plan.ranks.iter().zip(states).flat_map(|(rank, states)| rank.items.iter().zip(states));
    items.into_iter().all(|(item, &state)| !matches!(item.0, Task::ReduceGrads(_)) || state == State::Ended)
}

/// An item: rank and index.
type At = (usize, usize);

/// For every item, all items that start and end with it, itself included.
fn meets(plan: &Plan) -> Result<BTreeMap<At, Vec<At>>, String> {
    let mut groups: BTreeMap<(Vec<u32>, bool, usize), Vec<At>> = BTreeMap::new();
    let mut meets = BTreeMap::new();
    for (rank, there) in plan.ranks.iter().enumerate() {
        let mut counts: BTreeMap<(Vec<u32>, bool), usize> = BTreeMap::new();
        for (index, item) in there.items.iter().enumerate() {
            let key = match item.0.stream() {
                StreamId::To(to) => (vec![rank as u32, to], true),
                StreamId::From(from) => (vec![from, rank as u32], true),
                StreamId::Sync => match item.0 {
                    Task::ReduceGrads(s) | Task::GatherParams(s) => (plan.layout.holders(s), false),
                    _ => unreachable!("only these are on that stream"),
                },
                StreamId::Compute => {
                    meets.insert((rank, index), vec![(rank, index)]);
                    continue;
                }
            };
            let count = counts.entry(key.clone()).or_default();
            groups.entry((key.0, key.1, *count)).or_default().push((rank, index));
            *count += 1;
        }
    }
    for ((ranks, transfer, _), group) in groups {
        if group.len() != ranks.len() {
            return Err(format!("{group:?} do not all meet"));
        }
        let names: Vec<Task> = group.iter().map(|&(rank, item)| plan.ranks[rank].items[item].0).collect();
        let same = |a: Task, b: Task| match (a, b) {
            (Task::SendAct(s, m, _) | Task::RecvAct(s, m, _), Task::SendAct(t, n, _) | Task::RecvAct(t, n, _))
            | (Task::SendGrad(s, m, _) | Task::RecvGrad(s, m, _), Task::SendGrad(t, n, _) | Task::RecvGrad(t, n, _)) => {
                transfer && (s, m) == (t, n)
            }
            _ => a == b,
        };
        if !names.iter().all(|&name| same(names[0], name)) {
            return Err(format!("{names:?} meet"));
        }
        for &at in &group {
            meets.insert(at, group.clone());
        }
    }
    Ok(meets)
}

/// Everything that lies in a ring of this rank at some time. Values whose reader gets nothing are an error.
fn values(plan: &Plan, rank: usize) -> Result<Vec<Value>, String> {
    let items = &plan.ranks[rank].items;
    let layout = &plan.layout;
    let runs = |s: u32, m: u32| s < layout.stages && layout.rank_of(ChunkId::new(s, m)) == rank as u32;
    let find = |wanted: &dyn Fn(Task) -> bool| items.iter().position(|item| wanted(item.0));
    let forward = |s, m| find(&|task| matches!(task, Task::F(a, b) | Task::FB((a, b), _) if (a, b) == (s, m)));
    let input =
        |s, m| find(&|task| matches!(task, Task::I(a, b) | Task::B(a, b) | Task::FB(_, (a, b)) if (a, b) == (s, m)));
    let slots: BTreeMap<RingOf, u64> =
        plan.ranks[rank].rings.iter().map(|ring| (ring.of, u64::from(ring.slots))).collect();
    let mut counts: BTreeMap<RingOf, u64> = BTreeMap::new();
    let mut values = Vec::new();
    let mut push = |of, tag, writer: Option<usize>, reader: Option<usize>| {
        let count = counts.entry(of).or_default();
        let slots = slots.get(&of).ok_or(format!("rank {rank} has no {of:?}"))?;
        values.push(Value { slot: (of, *count % slots), tag, writer, reader });
        *count += 1;
        Ok::<(), String>(())
    };
    for (index, item) in items.iter().enumerate() {
        let here = Some(index);
        let (f, i) = match item.0 {
            Task::F(s, m) => (Some((s, m)), None),
            Task::B(s, m) | Task::I(s, m) => (None, Some((s, m))),
            Task::FB(f, b) => (Some(f), Some(b)),
            _ => (None, None),
        };
        if let Some((s, m)) = f
            && runs(s + 1, m)
        {
            push(RingOf::HandoffAct(s), ('a', s, m), here, forward(s + 1, m))?;
        }
        if let Some((s, m)) = i
            && s > 0
            && runs(s - 1, m)
        {
            push(RingOf::HandoffGrad(s), ('g', s, m), here, input(s - 1, m))?;
        }
        match item.0 {
            Task::SendAct(s, m, to) => push(RingOf::Outbox(to), ('a', s, m), forward(s, m), here)?,
            Task::SendGrad(s, m, to) => push(RingOf::Outbox(to), ('g', s, m), input(s, m), here)?,
            Task::RecvAct(s, m, from) => push(RingOf::Inbox(from), ('a', s, m), here, forward(s + 1, m))?,
            Task::RecvGrad(s, m, from) if s > 0 => push(RingOf::Inbox(from), ('g', s, m), here, input(s - 1, m))?,
            _ => {}
        }
    }
    // Every forward but the first stage's, and every backward but the last's, reads a value.
    for (index, item) in items.iter().enumerate() {
        let mut reads = Vec::new();
        match item.0 {
            Task::F(s, m) => reads.push((s > 0).then(|| ('a', s - 1, m))),
            Task::B(s, m) | Task::I(s, m) => reads.push((s + 1 < layout.stages).then(|| ('g', s + 1, m))),
            Task::FB((s, m), (t, n)) => {
                reads.push((s > 0).then(|| ('a', s - 1, m)));
                reads.push((t + 1 < layout.stages).then(|| ('g', t + 1, n)));
            }
            _ => {}
        }
        for tag in reads.into_iter().flatten() {
            if !values.iter().any(|value| value.tag == tag && value.reader == Some(index)) {
                return Err(format!("rank {rank}: nothing brings {tag:?} to {}", item.0));
            }
        }
    }
    Ok(values)
}

/// What a piece of an arena is used for: part 0 from F to I, 1 from F to W, 2 from I to W of a chunk, as (part, stage, micro-batch); 3 a
/// workspace, as (3, 0, 0); 4 what is always there.
type Use = (usize, u32, u32);

/// Bytes of an arena that are in use.
struct Piece {
    of: Use,
    at: u64,
    bytes: u64,
}

/// Puts a piece into an arena, if it is free there.
fn put(plan: &Plan, rank: usize, arena: &mut Vec<Piece>, piece: Piece) -> Result<(), String> {
    let Piece { of, at, bytes } = piece;
    if bytes == 0 {
        return Ok(());
    }
    if at % UNIT != 0 || at + bytes > plan.ranks[rank].arena.0 {
        return Err(format!("rank {rank}: {of:?} cannot lie at {at}"));
    }
    if let Some(other) = arena.iter().find(|other| at < other.at + other.bytes && other.at < at + bytes) {
        return Err(format!("rank {rank}: {of:?} at {at} lies where {:?} is", other.of));
    }
    arena.push(piece);
    Ok(())
}

/// What a compute item takes as it starts.
fn taken(plan: &Plan, rank: usize, item: usize) -> Result<Vec<Piece>, String> {
    let Item(task, _, places) = &plan.ranks[rank].items[item];
    let chunk = |part: usize, (s, m): (u32, u32)| ((part, s, m), held(plan, s, part));
    let space = ((3, 0, 0), workspace(plan, *task));
    let wanted = match *task {
        Task::F(s, m) => vec![chunk(0, (s, m)), chunk(1, (s, m))],
        Task::I(s, m) => vec![chunk(2, (s, m))],
        Task::B(..) => vec![space],
        Task::FB(f, _) => vec![chunk(0, f), chunk(1, f), space],
        _ => vec![],
    };
    let wanted: Vec<(Use, u64)> = wanted.into_iter().filter(|&(_, bytes)| bytes > 0).collect();
    if wanted.len() != places.len() {
        return Err(format!("rank {rank}: {task} has {} places for {}", places.len(), wanted.len()));
    }
    let piece = |(&(of, bytes), at): (&(Use, u64), &Bytes)| Piece { of, at: at.0, bytes: bytes.next_multiple_of(UNIT) };
    Ok(wanted.iter().zip(places).map(piece).collect())
}

/// What it lets go as it ends: it was the last to read it.
fn let_go(task: Task) -> Vec<Use> {
    match task {
        Task::B(s, m) | Task::FB(_, (s, m)) => vec![(0, s, m), (1, s, m), (3, 0, 0)],
        Task::I(s, m) => vec![(0, s, m)],
        Task::W(s, m) => vec![(1, s, m), (2, s, m)],
        _ => vec![],
    }
}

/// What a chunk of a stage holds: 0 from F to I, 1 from F to W, 2 from I to W.
fn held(plan: &Plan, stage: u32, which: usize) -> u64 {
    let held = &plan.stages[stage as usize].held;
    [&held.f_to_i, &held.f_to_w, &held.i_to_w][which].values().map(|bytes| bytes.0).sum()
}

/// What a full backward needs while it runs.
fn workspace(plan: &Plan, task: Task) -> u64 {
    let program = match task {
        Task::B(s, _) => plan.stages[s as usize].b,
        Task::FB(f, b) => plan.pairs.iter().find(|pair| (pair.f, pair.b) == (f.0, b.0)).map(|pair| pair.program),
        _ => None,
    };
    program.map_or(0, |program| plan.programs[program as usize].workspace.0)
}

/// Parameters, gradients and optimizer state of a rank.
fn state(plan: &Plan, rank: usize) -> u64 {
    let stages = plan.layout.stages_of(rank as u32);
    let stages = stages.iter().map(|&stage| &plan.stages[stage as usize]);
    stages.map(|stage| stage.parameters.0 + stage.gradients.0 + stage.optimizer.0).sum()
}

/// What is always in the arena of a rank: every slot of its rings, and its exchange buffer.
fn standing(plan: &Plan, rank: usize) -> Vec<Piece> {
    let always = (4, 0, 0);
    let mut pieces = Vec::new();
    for ring in &plan.ranks[rank].rings {
        let bytes = ring.bytes.0.next_multiple_of(UNIT);
        pieces.extend((0..u64::from(ring.slots)).map(|slot| Piece { of: always, at: ring.at.0 + slot * bytes, bytes }));
    }
    let stages = plan.layout.stages_of(rank as u32);
    let exchange = stages.iter().map(|&stage| plan.stages[stage as usize].exchange_buffer.0).max().unwrap_or(0);
    pieces.push(Piece { of: always, at: plan.ranks[rank].exchange.0, bytes: exchange.next_multiple_of(UNIT) });
    pieces
}

/// A chunk's backward comes after its forward, its weight gradient after its backward.
fn chunk_parts(plan: &Plan, states: &[Vec<State>], rank: usize, item: usize) -> Result<(), String> {
    let items = &plan.ranks[rank].items;
    let ended = |wanted: &dyn Fn(Task) -> bool| {
        (0..items.len()).any(|index| wanted(items[index].0) && states[rank][index] == State::Ended)
    };
    let forward = |s, m| ended(&|task| matches!(task, Task::F(a, b) | Task::FB((a, b), _) if (a, b) == (s, m)));
    let fine = match items[item].0 {
        Task::B(s, m) | Task::I(s, m) | Task::FB(_, (s, m)) => forward(s, m),
        Task::W(s, m) => ended(&|task| task == Task::I(s, m)),
        _ => true,
    };
    if fine { Ok(()) } else { Err(format!("rank {rank}: {} comes before what it reads", items[item].0)) }
}

/// Reduction comes after all weight gradients of the stage on the rank, update after reduction, gathering after update.
fn synchronised(plan: &Plan, states: &[Vec<State>], rank: usize, item: usize) -> Result<(), String> {
    let items = &plan.ranks[rank].items;
    let ended = |wanted: &dyn Fn(Task) -> bool| {
        (0..items.len()).all(|index| !wanted(items[index].0) || states[rank][index] == State::Ended)
    };
    let fine = match items[item].0 {
        Task::ReduceGrads(s) => {
            ended(&|task| matches!(task, Task::W(t, _) | Task::B(t, _) | Task::FB(_, (t, _)) if t == s))
        }
        Task::Update(s) => ended(&|task| task == Task::ReduceGrads(s)),
        Task::GatherParams(s) => ended(&|task| task == Task::Update(s)),
        _ => true,
    };
    if fine { Ok(()) } else { Err(format!("rank {rank}: {} comes too early", items[item].0)) }
}

/// Every chunk was run once, on its rank, and every stage was synchronised once, on all of its ranks. (Every stage is
/// gathered in the plans at hand, or none.)
fn all_done(plan: &Plan) -> Result<(), String> {
    let layout = &plan.layout;
    let gathers = plan.stages.iter().any(|stage| match &stage.gather {
        Work::Exchange { nvlink, network, .. } => nvlink.0 + network.0 > 0,
        Work::Copy { nvlink } => nvlink.0 > 0,
        Work::Compute(kernels) => !kernels.is_empty(),
    });
    for s in 0..layout.stages {
        for rank in layout.holders(s) {
            let items = &plan.ranks[rank as usize].items;
            let count = |task: Task| items.iter().filter(|item| item.0 == task).count();
            let counts = [count(Task::ReduceGrads(s)), count(Task::Update(s)), count(Task::GatherParams(s))];
            if counts[..2] != [1, 1] || counts[2] > 1 || gathers && counts[2] == 0 {
                return Err(format!("rank {rank} synchronises stage {s} {counts:?} times"));
            }
        }
    }
    for s in 0..layout.stages {
        for m in 0..layout.micro_batches {
            let mut done = [0; 3];
            for item in &plan.ranks[layout.rank_of(ChunkId::new(s, m)) as usize].items {
                let here = |chunk: (u32, u32)| u32::from(chunk == (s, m));
                let (f, i, w) = match item.0 {
                    Task::F(a, b) => (here((a, b)), 0, 0),
                    Task::I(a, b) => (0, here((a, b)), 0),
                    Task::W(a, b) => (0, 0, here((a, b))),
                    Task::B(a, b) => (0, here((a, b)), here((a, b))),
                    Task::FB(f, b) => (here(f), here(b), here(b)),
                    _ => (0, 0, 0),
                };
                done = [done[0] + f, done[1] + i, done[2] + w];
            }
            if done != [1; 3] {
                return Err(format!("F, I, W of micro-batch {m} on stage {s} were run {done:?} times"));
            }
        }
    }
    Ok(())
}
