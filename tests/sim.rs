//! Simulation of plans whose times, waits and memory are known by hand.

#[path = "sim/fixture.rs"]
mod fixture;
#[path = "host_runtime/shapes.rs"]
#[allow(dead_code, reason = "other tests have more kinds of models")]
mod shapes;

use dualweave::ir::{Component, Phase, Placement, Program, ProgramKind};
use dualweave::plan::Task::{B, F, FB, GatherParams, I, RecvAct, RecvGrad, ReduceGrads, SendAct, SendGrad, Update, W};
use dualweave::plan::{Item, Plan, PlanRank, Ring, RingOf, Task};
use dualweave::sim::memory::{MemoryKind, memory};
use dualweave::sim::{Activity, Cause, Rates, Reason, Relief, Simulation, Wait, simulate, time_program};
use dualweave::units::{Bytes, Nanos};
use fixture::{compute, exchange, machine, op, plan, rank};

fn run(plan: &Plan) -> Simulation {
    let simulation = simulate(plan).unwrap_or_else(|error| panic!("{error:?}"));
    for (rank, timing) in simulation.ranks.iter().enumerate() {
        assert_eq!(timing.busy + timing.exposed + timing.bubble, simulation.step, "rank {rank}");
        assert_eq!(timing.waits.iter().map(|wait| wait.time).sum::<Nanos>(), timing.bubble, "rank {rank}");
    }
    simulation
}

fn spans(simulation: &Simulation, rank: usize) -> Vec<(u64, u64)> {
    simulation.ranks[rank].items.iter().map(|span| (span.start.0, span.end.0)).collect()
}

/// One micro-batch down two ranks and back, with gradient reduction and optimizer.
fn there_and_back() -> Plan {
    plan(
        Placement::Linear,
        1,
        &[
            &[
                (F(0, 0), &[]),
                (SendAct(0, 0, 1), &[0]),
                (RecvGrad(1, 0, 1), &[]),
                (B(0, 0), &[2]),
                (ReduceGrads(0), &[3]),
                (Update(0), &[4]),
                (GatherParams(0), &[5]),
            ],
            &[
                (RecvAct(0, 0, 0), &[]),
                (F(1, 0), &[0]),
                (I(1, 0), &[]),
                (SendGrad(1, 0, 0), &[2]),
                (W(1, 0), &[]),
                (ReduceGrads(1), &[4]),
                (Update(1), &[5]),
            ],
        ],
    )
}

#[test]
fn a_program_runs_its_streams_side_by_side() {
    // Compute 100 | 50, and an exchange of 100 that starts when the first has ended; then one more compute after it.
    let ops = vec![
        op(Component::Attention, Phase::F, compute(100), &[]),
        op(Component::Dispatch, Phase::F, exchange(100), &[0]),
        op(Component::Attention, Phase::I, compute(50), &[]),
        op(Component::Mlp, Phase::F, compute(30), &[1]),
    ];
    let timing =
        time_program(&Program { kind: ProgramKind::FB, workspace: Bytes::ZERO, bound: Nanos::ZERO, ops }, &machine());
    let starts: Vec<u64> = timing.ops.iter().map(|span| span.start.0).collect();
    assert_eq!(starts, [0, 100, 100, 200]);
    assert_eq!((timing.total, timing.busy, timing.communication), (Nanos(230), Nanos(180), Nanos(100)));
    assert_eq!(timing.exposed, Nanos(50));
}

#[test]
fn one_micro_batch_goes_there_and_back() {
    let simulation = run(&there_and_back());
    let expected = [(0, 100), (100, 110), (270, 280), (280, 380), (380, 410), (410, 415), (415, 435)];
    assert_eq!(spans(&simulation, 0), expected);
    let expected = [(100, 110), (110, 210), (210, 270), (270, 280), (270, 310), (310, 340), (410, 415)];
    assert_eq!(spans(&simulation, 1), expected);
    assert_eq!((simulation.step, simulation.pipeline), (Nanos(435), Nanos(380)));

    // Rank 0: idle from 110 to 270, while rank 1 does F and I; it gets what I made.
    let first = &simulation.ranks[0];
    assert_eq!((first.busy, first.exposed, first.bubble), (Nanos(205), Nanos(70), Nanos(160)));
    assert_eq!(first.communication, Nanos(10 + 10 + 30 + 20));
    let cause = Cause::Item { rank: 1, activity: Activity::I(1), reason: Reason::Data };
    assert_eq!(first.waits, [Wait { cause, time: Nanos(160) }]);

    // Rank 1: idle until F of rank 0 has ended, from its own reduction to that of rank 0, without which there is no norm to clip by, and
    // after its update. Sending is hidden behind W.
    let second = &simulation.ranks[1];
    assert_eq!((second.busy, second.exposed, second.bubble), (Nanos(205), Nanos(10 + 30), Nanos(190)));
    let cause = Cause::Item { rank: 0, activity: Activity::F(0), reason: Reason::Data };
    let norm = Cause::Item { rank: 0, activity: Activity::B(0), reason: Reason::Gradients };
    let waits = [(cause, 100), (norm, 70), (Cause::End, 20)].map(|(cause, time)| Wait { cause, time: Nanos(time) });
    assert_eq!(second.waits, waits);
}

#[test]
fn rates_follow_from_the_step() {
    let plan = there_and_back();
    let rates = Rates::new(&plan, &run(&plan)).expect("the step takes time");
    // 20 tokens in 435 ns on 4 GPUs of 10^12 FLOP/s; a token needs 1000 FLOPs.
    let tokens_s = 20.0 / 435e-9;
    assert!((rates.tokens_s / tokens_s - 1.0).abs() < 1e-12);
    assert!((rates.tokens_s_gpu / (tokens_s / 4.0) - 1.0).abs() < 1e-12);
    assert!((rates.mfu / (tokens_s * 1000.0 / 4e12) - 1.0).abs() < 1e-12);
    let hours = 1e12 / tokens_s * 4.0 / 3600.0;
    assert!((rates.gpu_hours_per_trillion_tokens / hours - 1.0).abs() < 1e-12);

    let nothing = fixture::plan(Placement::Linear, 1, &[&[]]);
    assert_eq!(Rates::new(&nothing, &run(&nothing)), None);
}

#[test]
fn a_send_waits_until_the_other_side_can_receive() {
    // The second receive reuses the buffer that F(1,0) reads; with it the second send is late, and so is F(0,2).
    let plan = plan(
        Placement::Linear,
        3,
        &[
            &[
                (F(0, 0), &[]),
                (SendAct(0, 0, 1), &[0]),
                (F(0, 1), &[]),
                (SendAct(0, 1, 1), &[2]),
                (F(0, 2), &[3]),
                (SendAct(0, 2, 1), &[4]),
            ],
            &[
                (RecvAct(0, 0, 0), &[]),
                (F(1, 0), &[0]),
                (RecvAct(0, 1, 0), &[1]),
                (F(1, 1), &[2]),
                (RecvAct(0, 2, 0), &[3]),
                (F(1, 2), &[4]),
            ],
        ],
    );
    let simulation = run(&plan);
    assert_eq!(spans(&simulation, 0), [(0, 100), (100, 110), (100, 200), (210, 220), (220, 320), (320, 330)]);
    assert_eq!(spans(&simulation, 1), [(100, 110), (110, 210), (210, 220), (220, 320), (320, 330), (330, 430)]);
    let room = Cause::Item { rank: 1, activity: Activity::F(1), reason: Reason::Room };
    assert_eq!(simulation.ranks[0].waits[1], Wait { cause: room, time: Nanos(10) });
    assert_eq!(simulation.ranks[0].waits[0], Wait { cause: Cause::End, time: Nanos(100) });
    // Rank 1 waits at the start for F(0,0); the later transfers are exposed, not idle.
    let data = Cause::Item { rank: 0, activity: Activity::F(0), reason: Reason::Data };
    assert_eq!(simulation.ranks[1].waits, [Wait { cause: data, time: Nanos(100) }]);
    assert_eq!(simulation.ranks[1].exposed, Nanos(30));
}

#[test]
fn a_stage_is_reduced_when_all_its_holders_are_there() {
    // Both ranks hold both stages. Rank 1 has one F more before it joins.
    let items_0: &[(Task, &[u32])] = &[(F(0, 0), &[]), (ReduceGrads(0), &[0]), (Update(0), &[1])];
    let items_1: &[(Task, &[u32])] = &[(F(0, 1), &[]), (F(1, 0), &[]), (ReduceGrads(0), &[1]), (Update(0), &[2])];
    let simulation = run(&plan(Placement::Bidirectional, 2, &[items_0, items_1]));
    assert_eq!(spans(&simulation, 0), [(0, 100), (200, 230), (230, 235)]);
    assert_eq!(spans(&simulation, 1), [(0, 100), (100, 200), (200, 230), (230, 235)]);
    let cause = Cause::Item { rank: 1, activity: Activity::F(1), reason: Reason::Gradients };
    assert_eq!(simulation.ranks[0].waits, [Wait { cause, time: Nanos(100) }]);
    assert_eq!((simulation.ranks[0].exposed, simulation.ranks[1].exposed), (Nanos(30), Nanos(30)));
}

#[test]
fn updates_wait_until_all_stages_are_reduced() {
    // Stage 1 of the V, on the same rank, has its backward first and could be updated beside the other's.
    let items: &[(Task, &[u32])] = &[
        (F(0, 0), &[]),
        (F(1, 0), &[]),
        (B(1, 0), &[]),
        (ReduceGrads(1), &[2]),
        (B(0, 0), &[]),
        (ReduceGrads(0), &[4]),
        (Update(1), &[3]),
        (Update(0), &[5]),
    ];
    let mut plan = plan(Placement::V, 1, &[items]);
    let simulation = run(&plan);
    assert_eq!(spans(&simulation, 0)[3..], [(300, 330), (300, 400), (400, 430), (430, 435), (435, 440)]);
    // In front of that backward it would wait for itself.
    let front = [&items[..4], &[items[6], items[4], (ReduceGrads(0), &[5]), (Update(0), &[6])]].concat();
    plan.ranks[0] = rank(vec![], &front);
    let error = simulate(&plan).expect_err("a circle").message().to_owned();
    let expected = "the plan deadlocks: rank 0, item 4, Update(1), which waits for the reduction of all stages, which waits for \
                    rank 0, item 6, ReduceGrads(0), which waits for rank 0, item 5, B(0,0), which waits for the first";
    assert_eq!(error, expected);
}

#[test]
fn exposed_communication_inside_a_pair_counts() {
    let simulation = run(&plan(Placement::Linear, 2, &[&[(F(0, 0), &[]), (FB((0, 1), (0, 0)), &[])]]));
    assert_eq!(simulation.step, Nanos(300));
    let only = &simulation.ranks[0];
    assert_eq!((only.busy, only.exposed, only.communication), (Nanos(250), Nanos(50), Nanos(100)));
}

#[test]
fn transfers_are_slower_between_nodes() {
    let mut plan = there_and_back();
    plan.machine.gpus_per_node = 2; // A rank is two GPUs: every rank its own node.
    let simulation = run(&plan);
    assert_eq!(spans(&simulation, 0)[1], (100, 200));
    assert_eq!(simulation.step, Nanos(435 + 2 * 90));
}

#[test]
fn ranks_share_a_node_exactly_if_every_pair_of_peers_does() {
    for gpus_per_node in 1..=9 {
        let machine = dualweave::machine::Machine { gpus_per_node, ..machine() };
        let node = u64::from(gpus_per_node);
        for (gpus, r, q) in (1..=10).flat_map(|g| (0..7).flat_map(move |r| (0..7).map(move |q| (g, r, q)))) {
            let pairs = (0..gpus).all(|i| (u64::from(r) * gpus + i) / node == (u64::from(q) * gpus + i) / node);
            assert_eq!(machine.ranks_share_node(gpus, r, q), pairs, "{gpus} GPUs, {node} a node, ranks {r} and {q}");
        }
    }
}

#[test]
fn memory_peaks_when_most_is_live() {
    let mut plan = there_and_back();
    plan.ranks[0].rings = vec![
        Ring { of: RingOf::Outbox(1), slots: 1, bytes: Bytes(10), at: Bytes(0) },
        Ring { of: RingOf::Inbox(1), slots: 2, bytes: Bytes(10), at: Bytes(0) },
    ];
    plan.ranks[0].arena = Bytes(8 * 256);
    let simulation = run(&plan);
    let memory = memory(&plan, &simulation);
    // Rank 0: state 6000, buffer 5. F holds 310 and the message that it makes, 10; B holds 310, what it received, 10, and
    // for itself 45.
    let first = &memory[0];
    assert_eq!((first.peak, first.at, first.item), (Bytes(6005 + 365), Nanos(280), Some(3)));
    assert_eq!((first.chunks, first.largest_chunk), (1, Bytes(310)));
    let expected = [
        (MemoryKind::Optimizer, 3000),
        (MemoryKind::Gradients, 2000),
        (MemoryKind::Parameters, 1000),
        (MemoryKind::Activations(Component::Mlp), 200),
        (MemoryKind::Activations(Component::Attention), 100),
        (MemoryKind::Workspace, 45),
        (MemoryKind::Activations(Component::Combine), 10),
        (MemoryKind::Inbox, 10),
        (MemoryKind::Exchange, 5),
    ];
    assert_eq!(first.kinds, expected.map(|(kind, bytes)| (kind, Bytes(bytes))));
    // Needed besides the state: an arena of 8 units, of which at B two blocks of activations and the workspace are in use, all three
    // message slots, and the exchange buffer.
    assert_eq!(
        (first.need.state, first.need.arena, first.need.activations),
        (Bytes(6000), Bytes(2048), Bytes(3 * 256))
    );
    assert_eq!((first.need.messages, first.need.exchange), (Bytes(3 * 256), Bytes(256)));
    assert_eq!((first.need.total(), first.need.least()), (Bytes(8048), Bytes(6000 + 7 * 256)));
    assert_eq!(first.need.fragmentation(), 1.0 / 8.0);
    // Rank 1: I at 210 adds 50 and its message, 10, to 310; what was received went with F's end.
    let second = &memory[1];
    assert_eq!((second.peak, second.at, second.item), (Bytes(6005 + 370), Nanos(210), Some(2)));
}

#[test]
fn memory_between_two_stages_of_a_rank_is_counted() {
    // V on one rank: stage 0 hands to stage 1 and gets its gradient back.
    let items: &[(Task, &[u32])] = &[(F(0, 0), &[]), (F(1, 0), &[]), (B(1, 0), &[]), (B(0, 0), &[])];
    let mut plan = plan(Placement::V, 1, &[items]);
    plan.stages[0].output = Bytes(7);
    plan.stages[1].input = Bytes(9);
    let memory = memory(&plan, &run(&plan));
    let only = &memory[0];
    // B(1,0): two chunks of 310, 45 for itself, the gradient that it makes. The activation is gone by then.
    assert_eq!((only.peak, only.at, only.chunks), (Bytes(2 * 6000 + 5 + 620 + 45 + 9), Nanos(200), 2));
    assert!(only.kinds.contains(&(MemoryKind::Handoff, Bytes(9))));
}

#[test]
fn what_does_not_fit_says_by_how_much() {
    let items: &[(Task, &[u32])] =
        &[(F(0, 0), &[]), (F(0, 1), &[]), (F(0, 2), &[]), (B(0, 0), &[]), (B(0, 1), &[]), (B(0, 2), &[])];
    let mut plan = plan(Placement::Linear, 3, &[items]);
    plan.ranks[0].arena = Bytes(980);
    let memory = memory(&plan, &run(&plan));
    let only = &memory[0];
    // Three chunks, 310 each, and B's own 45; with the buffer, just the arena.
    assert_eq!((only.peak, only.chunks), (Bytes(6005 + 975), 3));
    assert_eq!(Relief::new(only, Bytes(6980)), None);

    let relief = Relief::new(only, Bytes(6005 + 800)).expect("175 too many");
    assert_eq!((relief.over, relief.over_at_peak, relief.chunks), (Bytes(175), Bytes(175), Some((3, 2))));
    let kinds: Vec<MemoryKind> = relief.kinds.iter().map(|&(kind, _)| kind).collect();
    use MemoryKind::{Activations, Gradients, Optimizer, Parameters};
    let expected = [Optimizer, Gradients, Parameters, Activations(Component::Mlp), Activations(Component::Attention)];
    assert_eq!(kinds, expected);
    assert_eq!(relief.kinds[3].1, 175.0 / 600.0);

    // Below the state no number of chunks helps.
    assert_eq!(Relief::new(only, Bytes(5000)).expect("too much").chunks, None);
}

#[test]
fn a_deadlock_names_its_circle() {
    // Each receives before it sends what the other receives.
    let plan = plan(
        Placement::Linear,
        1,
        &[
            &[(F(0, 0), &[]), (RecvGrad(1, 0, 1), &[]), (SendAct(0, 0, 1), &[0, 1])],
            &[(RecvAct(0, 0, 0), &[]), (F(1, 0), &[0]), (B(1, 0), &[]), (SendGrad(1, 0, 0), &[2])],
        ],
    );
    let error = simulate(&plan).expect_err("both wait").message().to_owned();
    let expected = "the plan deadlocks: rank 0, item 1, RecvGrad(1,0) from rank 1, which meets rank 1, item 3, \
                    SendGrad(1,0) to rank 0, which waits for rank 1, item 2, B(1,0), which waits for rank 1, item 1, \
                    F(1,0), which waits for rank 1, item 0, RecvAct(0,0) from rank 0, which meets rank 0, item 2, \
                    SendAct(0,0) to rank 1, which waits for the first";
    assert_eq!(error, expected);
}

#[test]
fn what_the_plan_refers_to_and_does_not_have_is_refused() {
    let good = || there_and_back().ranks[0].items.clone();
    let with = |index: usize, item: Item| {
        let mut plan = there_and_back();
        plan.ranks[0].items[index] = item;
        plan
    };
    let message = |plan: &Plan| simulate(plan).expect_err("refused").message().to_owned();
    let cases: &[(Plan, &str)] = &[
        (with(0, Item(F(9, 0), vec![], vec![])), "rank 0, item 0, F(9,0): there are 2 stages"),
        (with(0, Item(F(0, 7), vec![], vec![])), "rank 0, item 0, F(0,7): there are 1 micro-batches"),
        (with(1, Item(SendAct(0, 0, 5), vec![], vec![])), "rank 0, item 1, SendAct(0,0) to rank 5: there are 2 ranks"),
        (
            with(1, Item(SendAct(0, 0, 0), vec![], vec![])),
            "rank 0, item 1, SendAct(0,0) to rank 0: a rank does not send to itself",
        ),
        (with(3, Item(B(0, 0), vec![3], vec![])), "rank 0, item 3, B(0,0): waits for item 3, which is not before it"),
        (
            with(1, Item(Update(0), vec![], vec![])),
            "rank 1, item 0, RecvAct(0,0) from rank 0: never sent: rank 0 has 0 sends to it",
        ),
        (
            with(2, Item(Update(0), vec![], vec![])),
            "rank 1, item 3, SendGrad(1,0) to rank 0: never received: rank 0 has 0 receives from it",
        ),
        (
            with(1, Item(SendGrad(0, 0, 1), vec![], vec![])),
            "rank 0, item 1, SendGrad(0,0) to rank 1: meets another message, RecvAct(0,0) from rank 0 (rank 1, item 0)",
        ),
        (
            with(4, Item(ReduceGrads(1), vec![], vec![])),
            "rank 0, item 4, ReduceGrads(1): the rank does not hold the stage",
        ),
    ];
    for (plan, expected) in cases {
        assert_eq!(message(plan), *expected);
    }

    let mut plan = there_and_back();
    plan.stages[0].b = None;
    assert_eq!(message(&plan), "rank 0, item 3, B(0,0): the plan has no program for it");
    plan.stages[0].b = Some(99);
    assert_eq!(message(&plan), "rank 0, item 3, B(0,0): its program is number 99, but the plan has 5");
    let mut plan = there_and_back();
    plan.programs[4].ops[1].waits = vec![1];
    assert_eq!(message(&plan), "program 4: op 1 waits for op 1, which is not before it");
    let mut plan = there_and_back();
    plan.layout.ranks = 3;
    assert_eq!(message(&plan), "the plan's layout has 3 ranks, but it lists 2");
    plan.layout.ranks = 0;
    plan.ranks = vec![];
    assert_eq!(message(&plan), "the plan's layout has 0 ranks, but it lists 0");
    let mut plan = there_and_back();
    plan.layout.placement = Placement::V;
    assert_eq!(message(&plan), "a placement v cannot lay 2 stages over 2 ranks");

    // One of the two holders does not join.
    let joins: &[(Task, &[u32])] = &[(ReduceGrads(0), &[])];
    let plan = fixture::plan(Placement::Bidirectional, 2, &[joins, &[]]);
    assert_eq!(message(&plan), "rank 0, item 0, ReduceGrads(0): rank 1, which holds the stage, does not join");
    assert_eq!(good().len(), 7);
}

#[test]
fn numbers_out_of_all_proportion_do_not_panic() {
    let mut plan = there_and_back();
    for stage in &mut plan.stages {
        (stage.parameters, stage.input, stage.output) = (Bytes(u64::MAX), Bytes(u64::MAX), Bytes(u64::MAX));
        stage.held.f_to_w.insert(Component::Attention, Bytes(u64::MAX));
    }
    for program in &mut plan.programs {
        program.ops[0].work = compute(u64::MAX);
        program.ops[0].sms = 0;
    }
    plan.machine.gpus_per_node = 0;
    plan.machine.nvlink.byte_s = f64::NAN;
    plan.machine.network.byte_s = 0.0;
    plan.machine.bf16_flop_s = 0.0;
    plan.ranks[0].rings = vec![Ring { of: RingOf::Inbox(77), slots: u32::MAX, bytes: Bytes(u64::MAX), at: Bytes(0) }];
    let simulation = simulate(&plan).expect("times, if absurd ones");
    let memory = memory(&plan, &simulation);
    assert!(Relief::new(&memory[0], Bytes(1)).is_some());
    assert_eq!(Rates::new(&plan, &simulation), None);
}

#[test]
fn many_items_are_simulated_in_linear_time() {
    // 64 ranks, 1024 micro-batches forward: 64 · 1024 · 3 items, each F bound to the transfers around it.
    let (ranks, micro_batches) = (64, 1024);
    let mut plan = plan(Placement::Linear, micro_batches, &vec![&[][..]; ranks as usize]);
    plan.ranks = (0..ranks)
        .map(|r| {
            let mut list = rank(vec![], &[]);
            for m in 0..micro_batches {
                let received = (r > 0).then(|| push(&mut list, RecvAct(r - 1, m, r - 1), vec![]));
                let f = push(&mut list, F(r, m), received.into_iter().collect());
                if r + 1 < ranks {
                    push(&mut list, SendAct(r, m, r + 1), vec![f]);
                }
            }
            list
        })
        .collect();
    let simulation = run(&plan);
    // 63 forwards and transfers to the last rank, and then its 1024 forwards one after the other. Four ranks are a node;
    // the 15 transfers between nodes take ten times as long.
    assert_eq!(simulation.step, Nanos(63 * 110 + 15 * 90 + 1024 * 100));
}

fn push(list: &mut PlanRank, task: Task, after: Vec<u32>) -> u32 {
    list.items.push(Item(task, after, vec![]));
    list.items.len() as u32 - 1
}
