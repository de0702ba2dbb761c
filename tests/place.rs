//! Items and buffers of every schedule at random sizes and costs: messages meet, waits hold, nothing waits in a circle.

#[path = "sim/fixture.rs"]
mod fixture;
#[path = "host_runtime/shapes.rs"]
#[allow(dead_code, reason = "other tests have more kinds of models")]
mod shapes;

use std::collections::BTreeMap;

use dualweave::ir::{Action, ChunkId, Hops, Layout, PairCost, Phase, Problem, Program, ProgramKind, StageCost};
use dualweave::job::training::ScheduleKind;
use dualweave::passes::pipeline::{Replay, generate, precondition, replay};
use dualweave::passes::place::{Input, arena, place};
use dualweave::plan::{Item, Pair, Plan, PlanRank, RingOf, StreamId, Task};
use dualweave::sim::simulate;
use dualweave::units::{Bytes, Nanos};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// A plan whose programs are single ops of the given costs, F, I and W of each stage in turn; a pair costs `pair` percent
/// of its parts. Messages take `hop`.
fn plan(kind: ScheduleKind, layout: Layout, costs: &[[u64; 3]], pair: u64, hop: u64) -> (Plan, Replay) {
    let of = |stage: u32| costs[stage as usize % costs.len()];
    let stages = layout.stages;
    let pair_cost = |f: u32, b: u32| (of(f)[0] + of(b)[1] + of(b)[2]) * pair / 100;
    let cost = |stage| {
        let [f, i, w] = of(stage).map(Nanos);
        StageCost { f, i, w, b: i + w }
    };
    let pairs = (0..stages).flat_map(|f| (0..stages).map(move |b| (f, b)));
    let problem = Problem {
        layout,
        stages: (0..stages).map(cost).collect(),
        pair: PairCost::Table(pairs.clone().map(|(f, b)| ((f, b), Nanos(pair_cost(f, b)))).collect()),
        hops: Hops::Uniform(Nanos(hop)),
        memory: None,
    };
    let timetable = generate(kind, &layout).unwrap();
    let replay = replay(&problem, &timetable).unwrap();

    let empty = vec![&[][..]; layout.ranks as usize];
    let mut plan = fixture::plan(layout.placement, layout.micro_batches, &empty);
    plan.layout = layout;
    plan.programs.clear();
    plan.pairs.clear();
    let mut add = |kind, phase, ns| -> u32 {
        let op = fixture::op(dualweave::ir::Component::Attention, phase, fixture::compute(ns), &[]);
        plan.programs.push(Program { kind, workspace: Bytes::ZERO, bound: Nanos::ZERO, ops: vec![op] });
        plan.programs.len() as u32 - 1
    };
    let mut stage = plan.stages[0].clone();
    // A message of n bytes takes n ns.
    (stage.input, stage.output) = (Bytes(hop), Bytes(hop));
    plan.stages = (0..stages)
        .map(|number| {
            let [f, i, w] = of(number);
            let mut stage = stage.clone();
            stage.f = Some(add(ProgramKind::F, Phase::F, f));
            stage.b = Some(add(ProgramKind::B, Phase::I, i + w));
            stage.i = Some(add(ProgramKind::I, Phase::I, i));
            stage.w = Some(add(ProgramKind::W, Phase::W, w));
            stage
        })
        .collect();
    plan.pairs = pairs.map(|(f, b)| Pair { f, b, program: add(ProgramKind::FB, Phase::F, pair_cost(f, b)) }).collect();
    let ranks = place(Input {
        problem: &problem,
        timetable: &timetable,
        replay: &replay,
        stages: &plan.stages,
        pairs: &plan.pairs,
        programs: &plan.programs,
        gather: true,
        work: arena::BRIEFLY,
    });
    plan.ranks = ranks;
    // All ranks on one node, so that every message takes its bytes in ns.
    plan.machine.gpus_per_node = 1 << 20;
    (plan, replay)
}

/// ended[a][b]: item b has certainly ended when item a starts, by streams and waits.
fn ended(items: &[Item]) -> Vec<Vec<bool>> {
    let mut ended = vec![vec![false; items.len()]; items.len()];
    let mut last: BTreeMap<StreamId, usize> = BTreeMap::new();
    for (at, Item(task, after, _)) in items.iter().enumerate() {
        let before = last.insert(task.stream(), at);
        for other in before.into_iter().chain(after.iter().map(|&wait| wait as usize)) {
            assert!(other < at, "item {at} waits for {other}");
            let known = ended[other].clone();
            ended[at].iter_mut().zip(known).for_each(|(mine, theirs)| *mine |= theirs);
            ended[at][other] = true;
        }
    }
    ended
}

/// Everything that must have ended before an item starts, as (item, what it needs): data, and free slots.
fn needs(plan: &Plan, rank: u32) -> Vec<(usize, usize)> {
    let PlanRank { rings, items, .. } = &plan.ranks[rank as usize];
    let place: BTreeMap<Task, usize> = items.iter().enumerate().map(|(at, item)| (item.0, at)).collect();
    let mut parts: BTreeMap<(Phase, ChunkId), usize> = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        item.0.action().into_iter().flat_map(Action::parts).for_each(|part| _ = parts.insert(part, at));
    }
    let slots = |of: RingOf| rings.iter().find(|ring| ring.of == of).expect("a ring").slots as usize;
    let reader = |task: Task| match task {
        Task::RecvAct(s, m, _) => parts[&(Phase::F, ChunkId::new(s + 1, m))],
        Task::RecvGrad(s, m, _) => parts[&(Phase::I, ChunkId::new(s - 1, m))],
        _ => unreachable!(),
    };
    let maker = |task: Task| match task {
        Task::SendAct(s, m, _) => parts[&(Phase::F, ChunkId::new(s, m))],
        Task::SendGrad(s, m, _) => parts[&(Phase::I, ChunkId::new(s, m))],
        _ => unreachable!(),
    };
    let mut needs = Vec::new();
    let mut inbox: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let mut outbox: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (at, &Item(task, ..)) in items.iter().enumerate() {
        match task {
            Task::RecvAct(.., from) | Task::RecvGrad(.., from) => {
                needs.push((reader(task), at));
                let received = inbox.entry(from).or_default();
                if let Some(k) = received.len().checked_sub(slots(RingOf::Inbox(from))) {
                    needs.push((at, reader(items[received[k]].0)));
                }
                received.push(at);
            }
            Task::SendAct(.., to) | Task::SendGrad(.., to) => {
                needs.push((at, maker(task)));
                let sent = outbox.entry(to).or_default();
                if let Some(k) = sent.len().checked_sub(slots(RingOf::Outbox(to))) {
                    needs.push((maker(task), sent[k]));
                }
                sent.push(at);
            }
            Task::ReduceGrads(stage) => {
                needs.extend(
                    parts.iter().filter(|((p, c), _)| *p == Phase::W && c.stage == stage).map(|(_, &w)| (at, w)),
                );
            }
            Task::Update(stage) => needs.push((at, place[&Task::ReduceGrads(stage)])),
            Task::GatherParams(stage) => needs.push((at, place[&Task::Update(stage)])),
            _ => {}
        }
    }
    // Handed over on the rank itself: made before it is read, and read before its slot is written again.
    let layout = &plan.layout;
    for (phase, of) in [(Phase::F, RingOf::HandoffAct as fn(u32) -> RingOf), (Phase::I, RingOf::HandoffGrad)] {
        for stage in 0..layout.stages {
            let next = if phase == Phase::F { Some(stage + 1) } else { stage.checked_sub(1) };
            let Some(next) = next.filter(|&next| next < layout.stages) else { continue };
            let reader = |m| parts.get(&(phase, ChunkId::new(next, m))).copied();
            let made = (0..layout.micro_batches)
                .filter_map(|m| Some((*parts.get(&(phase, ChunkId::new(stage, m)))?, reader(m)?)));
            let mut made: Vec<(usize, usize)> = made.collect();
            made.sort_unstable();
            for (k, &(maker, reader)) in made.iter().enumerate() {
                needs.push((reader, maker));
                if let Some(k) = k.checked_sub(slots(of(stage))) {
                    needs.push((maker, made[k].1));
                }
            }
        }
    }
    needs
}

/// By (sender, receiver) the messages in order, as (is a gradient, stage, micro-batch).
type Channels = BTreeMap<(u32, u32), Vec<(bool, u32, u32)>>;

/// The messages that the ranks send, or those that they receive.
fn channels(plan: &Plan, sent: bool) -> Channels {
    let mut channels = Channels::new();
    for (rank, list) in (0..).zip(&plan.ranks) {
        for Item(task, ..) in &list.items {
            let (channel, message) = match *task {
                Task::SendAct(s, m, to) if sent => ((rank, to), (false, s, m)),
                Task::SendGrad(s, m, to) if sent => ((rank, to), (true, s, m)),
                Task::RecvAct(s, m, from) if !sent => ((from, rank), (false, s, m)),
                Task::RecvGrad(s, m, from) if !sent => ((from, rank), (true, s, m)),
                _ => continue,
            };
            channels.entry(channel).or_default().push(message);
        }
    }
    channels
}

fn check(kind: ScheduleKind, ranks: u32, per_rank: u32, m: u32, costs: &[[u64; 3]], pair: u64, hop: u64) {
    let layout = Layout::new(kind.placement().expect("a published one"), ranks, per_rank, m);
    let (plan, replay) = plan(kind, layout, costs, pair, hop);
    let sent = channels(&plan, true);
    assert_eq!(sent, channels(&plan, false), "both ends of a channel have one order");
    // Every boundary between ranks is crossed once in each direction by each micro-batch.
    let crossings = (1..layout.stages).flat_map(|s| (0..m).map(move |m| (s, m)));
    let crossings =
        crossings.filter(|&(s, m)| layout.rank_of(ChunkId::new(s, m)) != layout.rank_of(ChunkId::new(s - 1, m)));
    assert_eq!(sent.values().map(Vec::len).sum::<usize>(), 2 * crossings.count());

    for (rank, list) in (0..).zip(&plan.ranks) {
        let ended = ended(&list.items);
        let needs = needs(&plan, rank);
        for &(item, need) in &needs {
            assert!(ended[item][need], "rank {rank}: {} before {}", list.items[item].0, list.items[need].0);
        }
        // No wait can go: without it something that the item needs may not have ended.
        for (at, Item(task, after, _)) in list.items.iter().enumerate() {
            for &wait in after {
                let stream = list.items[..at].iter().rposition(|other| other.0.stream() == task.stream());
                let others = after.iter().filter(|&&other| other != wait).map(|&other| other as usize);
                let known = stream.into_iter().chain(others);
                let implied = known.clone().any(|other| other == wait as usize || ended[other][wait as usize]);
                assert!(!implied, "rank {rank}: {task} waits for {} in vain", list.items[wait as usize].0);
                assert!(
                    needs.contains(&(at, wait as usize)),
                    "rank {rank}: {task} needs no {}",
                    list.items[wait as usize].0
                );
            }
        }
    }

    // It runs. Transfers of one channel follow each other, which the replay does not know; where they take no time, no
    // ring ever delays what the replay has.
    let simulation = simulate(&plan).unwrap_or_else(|error| panic!("{kind} P{ranks} M{m}: {error:?}"));
    assert!(simulation.pipeline >= replay.makespan);
    if hop == 0 {
        assert_eq!(simulation.pipeline, replay.makespan, "{kind} P{ranks} M{m}: {costs:?}");
    }
}

/// A schedule in a size that it has.
fn sizes() -> impl Strategy<Value = (ScheduleKind, u32, u32, u32)> {
    (prop::sample::select(&ScheduleKind::PUBLISHED[..]), 1..=6_u32, 1..=3_u32, 1..=14_u32)
        .prop_filter("no such schedule", |&(kind, ranks, per_rank, m)| precondition(kind, ranks, per_rank, m).is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 250,
        max_global_rejects: 10_000,
        rng_seed: RngSeed::Fixed(5),
        ..ProptestConfig::default()
    })]

    #[test]
    fn items_are_right(
        (kind, ranks, per_rank, m) in sizes(),
        costs in prop::collection::vec(prop::array::uniform3(0u64..10), 1..6),
        pair in 60u64..=100,
        hop in prop::sample::select(&[0, 0, 1, 7][..]),
    ) {
        // Where nothing takes time, times order nothing: actions do, or messages.
        let least = u64::from(hop == 0);
        let costs: Vec<[u64; 3]> = costs.into_iter().map(|costs| costs.map(|cost| cost.max(least))).collect();
        check(kind, ranks, per_rank, m, &costs, pair, hop);
    }
}

/// Actions that take no time: what messages there are still orders them.
#[test]
fn nothing_takes_time() {
    for kind in ScheduleKind::PUBLISHED {
        for (ranks, m) in [(2, 4), (4, 8), (6, 12)] {
            check(kind, ranks, 2, m, &[[0, 0, 0]], 100, 1);
            check(kind, ranks, 2, m, &[[0, 0, 1], [0, 0, 0], [1, 0, 0]], 100, 1);
        }
    }
}
