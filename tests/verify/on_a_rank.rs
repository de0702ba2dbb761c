//! Rules about one rank: `read-before-write`, `buffer-size`, `write-while-read`, `memory`.

use dualweave::plan::RingOf::{self, HandoffAct, HandoffGrad, Inbox, Outbox};
use dualweave::plan::Task::{B, F, FB, GatherParams, I, RecvAct, RecvGrad, ReduceGrads, SendAct, SendGrad, Update, W};
use dualweave::plan::{Plan, Ring};
use dualweave::units::Bytes;
use dualweave::verify::{Rule, verify};

use crate::finds;
use crate::plan_by_hand::{HELD, MESSAGE, bidirectional, linear, v};
use crate::plan_edit::{drop_wait, enlarge, move_before, remove, replace, swap};

fn ring(plan: &mut Plan, rank: usize, of: RingOf) -> &mut Ring {
    plan.ranks[rank].rings.iter_mut().find(|ring| ring.of == of).expect("the rank has the ring")
}

#[test]
fn messages_that_have_not_come() {
    let mut plan = linear();
    drop_wait(&mut plan, 1, F(1, 2), RecvAct(0, 2, 0));
    finds(
        &plan,
        &[
            "rank 1, item 9, F(1,2): reads the activation of micro-batch 2 before RecvAct(0,2) from rank 0 (item 8) has ended [read-before-write]",
        ],
    );
    let mut plan = linear();
    drop_wait(&mut plan, 0, I(0, 3), RecvGrad(1, 3, 1));
    finds(
        &plan,
        &[
            "rank 0, item 15, I(0,3): reads the gradient of micro-batch 3 before RecvGrad(1,3) from rank 1 (item 14) has ended [read-before-write]",
        ],
    );
    // Neither end is there.
    let mut plan = linear();
    remove(&mut plan, 0, SendAct(0, 3, 1));
    remove(&mut plan, 1, RecvAct(0, 3, 0));
    finds(
        &plan,
        &[
            "rank 1, item 12, F(1,3): reads the activation of micro-batch 3, but the rank has no RecvAct(0,3) from rank 0 [read-before-write]",
        ],
    );
}

#[test]
fn messages_that_have_not_been_made() {
    let mut plan = linear();
    drop_wait(&mut plan, 0, SendAct(0, 2, 1), F(0, 2));
    finds(
        &plan,
        &[
            "rank 0, item 7, SendAct(0,2) to rank 1: reads the activation of micro-batch 2 before F(0,2) (item 6) has ended [read-before-write]",
        ],
    );
    let mut plan = v();
    let pair = FB((3, 1), (3, 0));
    drop_wait(&mut plan, 0, SendGrad(3, 0, 1), pair);
    finds(
        &plan,
        &[
            "rank 0, item 8, SendGrad(3,0) to rank 1: reads the gradient of micro-batch 0 before FB(3,1;3,0) (item 7) has ended [read-before-write]",
        ],
    );
}

#[test]
fn chunks_out_of_order_on_their_rank() {
    // Stage 2 before stage 1, which stands on the same rank. It also takes the hand-over slot out of turn.
    let mut plan = v();
    swap(&mut plan, 1, 5, 6);
    finds(
        &plan,
        &[
            "rank 1, item 5, F(2,1): reads the activation of micro-batch 1 before F(1,1) (item 6) has ended [read-before-write]",
        ],
    );
    let mut plan = v();
    swap(&mut plan, 1, 9, 10);
    let found = verify(&plan).violations;
    assert!(
        found.iter().any(|violation| violation.to_string().starts_with(
            "rank 1, item 9, B(1,0): reads the gradient of micro-batch 0 before B(2,0) (item 10) has ended"
        )),
        "{found:#?}"
    );
    // A backward before its forward, a weight gradient before its backward.
    let mut plan = linear();
    move_before(&mut plan, 1, B(1, 3), F(1, 3));
    let found = verify(&plan).violations;
    assert_eq!(
        found[0].to_string(),
        "rank 1, item 13, B(1,3): reads what the forward of micro-batch 3 stored before F(1,3) (item 14) has ended [read-before-write]"
    );
    let mut plan = linear();
    move_before(&mut plan, 0, W(0, 3), I(0, 3));
    finds(
        &plan,
        &[
            "rank 0, item 15, W(0,3): reads what the backward of micro-batch 3 stored before I(0,3) (item 16) has ended [read-before-write]",
            "rank 0, item 18, ReduceGrads(0): reads the weight gradients of stage 0 before W(0,2) (item 17) has ended [read-before-write]",
        ],
    );
}

#[test]
fn synchronisation_too_early() {
    let mut plan = linear();
    drop_wait(&mut plan, 0, ReduceGrads(0), W(0, 3));
    finds(
        &plan,
        &[
            "rank 0, item 18, ReduceGrads(0): reads the weight gradients of stage 0 before W(0,3) (item 17) has ended [read-before-write]",
        ],
    );
    let mut plan = linear();
    drop_wait(&mut plan, 1, Update(1), ReduceGrads(1));
    finds(
        &plan,
        &[
            "rank 1, item 17, Update(1): reads the reduced gradients of stage 1 before ReduceGrads(1) (item 16) has ended [read-before-write]",
        ],
    );
    let mut plan = linear();
    drop_wait(&mut plan, 1, GatherParams(1), Update(1));
    finds(
        &plan,
        &[
            "rank 1, item 18, GatherParams(1): reads the updated parameters of stage 1 before Update(1) (item 17) has ended [read-before-write]",
        ],
    );
}

/// What would read parameters that are already the next step's, or add to gradients that have been sent.
#[test]
fn the_optimizer_before_the_last_chunk() {
    let mut plan = linear();
    move_before(&mut plan, 0, ReduceGrads(0), F(0, 3));
    move_before(&mut plan, 0, Update(0), F(0, 3));
    let found = verify(&plan);
    let early = "rank 0, item 10, ReduceGrads(0): reads the weight gradients of stage 0 before W(0,3) (item 19) has ended [read-before-write]";
    assert!(found.violations.iter().any(|violation| violation.to_string() == early), "{found:#?}");
    // The update waits for the reduction on rank 1 too, which has nothing to reduce before F(0,3).
    assert_eq!(found.counts.keys().copied().collect::<Vec<Rule>>(), [Rule::Deadlock, Rule::ReadBeforeWrite]);
}

/// A pair of a chunk with itself: its backward reads what its forward has yet to store.
#[test]
fn a_chunk_beside_its_own_backward() {
    let mut plan = bidirectional();
    let pair = FB((1, 3), (1, 2));
    replace(&mut plan, 0, pair, FB((1, 3), (1, 3)));
    let found = verify(&plan).violations;
    let own = "rank 0, item 7, FB(1,3;1,3): reads what the forward of micro-batch 3 stored before FB(1,3;1,3) (item 7) has ended [read-before-write]";
    assert!(found.iter().any(|violation| violation.to_string() == own), "{found:#?}");
}

#[test]
fn rings_that_are_missing_or_too_small() {
    for of in [Inbox(1), Outbox(1)] {
        let mut plan = linear();
        plan.ranks[0].rings.retain(|ring| ring.of != of);
        finds(
            &plan,
            &[&format!("rank 0, ring {of:?}: the rank stores 4 values there but has no such ring [buffer-size]")],
        );
        let mut plan = linear();
        ring(&mut plan, 0, of).bytes = Bytes(MESSAGE - 1);
        finds(
            &plan,
            &[&format!("rank 0, ring {of:?}: slots of 7 bytes are too small for values of 8 bytes [buffer-size]")],
        );
    }
    for of in [HandoffAct(1), HandoffGrad(2)] {
        let mut plan = v();
        plan.ranks[1].rings.retain(|ring| ring.of != of);
        finds(
            &plan,
            &[&format!("rank 1, ring {of:?}: the rank stores 2 values there but has no such ring [buffer-size]")],
        );
    }
}

#[test]
fn slots_taken_too_early() {
    // With one slot, a gradient comes in over the one that the backward before it still reads.
    let mut plan = linear();
    ring(&mut plan, 0, Inbox(1)).slots = 1;
    finds(
        &plan,
        &[
            "rank 0, item 8, RecvGrad(1,1) from rank 1: writes micro-batch 1 into the slot of ring Inbox(1) that holds micro-batch 0 before B(0,0) (item 5) has ended [write-while-read]",
            "rank 0, item 12, RecvGrad(1,2) from rank 1: writes micro-batch 2 into the slot of ring Inbox(1) that holds micro-batch 1 before B(0,1) (item 9) has ended [write-while-read]",
            "rank 0, item 14, RecvGrad(1,3) from rank 1: writes micro-batch 3 into the slot of ring Inbox(1) that holds micro-batch 2 before I(0,2) (item 13) has ended [write-while-read]",
        ],
    );
    // A message comes into an inbox that is still being read.
    let mut plan = linear();
    drop_wait(&mut plan, 0, RecvGrad(1, 2, 1), B(0, 0));
    finds(
        &plan,
        &[
            "rank 0, item 12, RecvGrad(1,2) from rank 1: writes micro-batch 2 into the slot of ring Inbox(1) that holds micro-batch 0 before B(0,0) (item 5) has ended [write-while-read]",
        ],
    );
    // A backward writes a message over one that is still being sent.
    let mut plan = linear();
    drop_wait(&mut plan, 1, B(1, 2), SendGrad(1, 0, 0));
    finds(
        &plan,
        &[
            "rank 1, item 10, B(1,2): writes micro-batch 2 into the slot of ring Outbox(0) that holds micro-batch 0 before SendGrad(1,0) to rank 0 (item 3) has ended [write-while-read]",
        ],
    );
    // Two forwards of stage 1 in a row need two hand-over slots.
    let mut plan = v();
    move_before(&mut plan, 1, RecvAct(0, 1, 0), F(2, 0));
    move_before(&mut plan, 1, F(1, 1), F(2, 0));
    finds(
        &plan,
        &[
            "rank 1, item 3, F(1,1): writes micro-batch 1 into the slot of ring HandoffAct(1) that holds micro-batch 0 before F(2,0) (item 4) has ended [write-while-read]",
        ],
    );
    enlarge(&mut plan, 1, HandoffAct(1), 2);
    finds(&plan, &[]);
}

#[test]
fn memory_that_the_rank_does_not_have() {
    // The plan by hand has just what rank 0 needs.
    let mut plan = linear();
    plan.machine.memory.0 -= 1;
    finds(
        &plan,
        &[
            "rank 0, memory: needs 2735 bytes, 1 B more than the 2734 bytes that there are; most of it is its arena 2560 B, parameters of stage 0 100 B, gradients of stage 0 50 B, optimizer state of stage 0 25 B [memory]",
        ],
    );
    plan.machine.memory = Bytes(0);
    let needs: Vec<String> = verify(&plan).violations.iter().map(|v| v.message[..16].to_owned()).collect();
    // Rank 1 has one chunk at a time, and the workspace of its backward.
    assert_eq!(needs, ["needs 2735 bytes", "needs 2223 bytes"]);
    for (mut plan, rank) in [(v(), 1), (bidirectional(), 0)] {
        plan.machine.memory.0 -= 1;
        let found = &verify(&plan).violations[0];
        assert_eq!((found.rank, found.rule), (Some(rank), Rule::Memory));
    }
}

#[test]
fn memory_past_every_number() {
    let mut plan = linear();
    plan.ranks[0].arena = Bytes(u64::MAX);
    let report = verify(&plan);
    assert_eq!(report.total(), 1);
    let total = u128::from(u64::MAX) + 175;
    assert_eq!(report.violations[0].message.split(',').next(), Some(format!("needs {total} bytes").as_str()));
}

#[test]
fn workspaces_that_are_too_small() {
    let mut plan = linear();
    plan.programs[1].workspace = Bytes(HELD.2 - 1);
    finds(
        &plan,
        &[
            "rank 0, item 5, B(0,0), program 1 (B of stage 0): has a workspace of 3 bytes, but one of its weight gradients alone is handed 4 [memory]",
        ],
    );
    let mut plan = v();
    plan.programs[12].workspace = Bytes(0);
    plan.ranks[0].items[7].2.pop();
    finds(
        &plan,
        &[
            "rank 0, item 7, FB(3,1;3,0), program 12 (F of stage 3 beside B of stage 3): has a workspace of 0 bytes, but one of its weight gradients alone is handed 4 [memory]",
        ],
    );
}
