//! Rules about several ranks: `completeness`, `unmatched-transfer`, `collective-order`, `deadlock`.

use dualweave::plan::Plan;
use dualweave::plan::Task::{
    self, B, FB, GatherParams, I, RecvAct, RecvGrad, ReduceGrads, SendAct, SendGrad, Update, W,
};
use dualweave::units::Bytes;
use dualweave::verify::{Rule, verify};

use crate::finds;
use crate::plan_by_hand::{bidirectional, linear, v};
use crate::plan_edit::{add_wait, enlarge, insert, move_before, remove, replace};

/// Gives every message a slot of its own, so that one more or less disturbs no ring.
fn roomy(plan: &mut Plan) {
    for rank in 0..plan.ranks.len() {
        for of in plan.ranks[rank].rings.iter().map(|ring| ring.of).collect::<Vec<_>>() {
            enlarge(plan, rank, of, 8);
        }
    }
}

#[test]
fn lost_micro_batches() {
    let mut plan = linear();
    remove(&mut plan, 0, W(0, 3));
    add_wait(&mut plan, 0, ReduceGrads(0), W(0, 2));
    finds(&plan, &["rank 0, W(0,3): is never run: the micro-batch is lost there [completeness]"]);
    let mut plan = linear();
    remove(&mut plan, 1, B(1, 2));
    finds(
        &plan,
        &[
            "rank 1, I(1,2): is never run: the micro-batch is lost there [completeness]",
            "rank 1, W(1,2): is never run: the micro-batch is lost there [completeness]",
            "rank 1, item 12, F(1,3): takes f_to_i of chunk (1,3) at bytes 1280 to 1536, where f_to_i of chunk (1,2) is from F(1,2) (item 9) on, at 1280 to 1536 [aliasing]",
            "rank 1, item 12, F(1,3): takes f_to_w of chunk (1,3) at bytes 1536 to 1792, where f_to_w of chunk (1,2) is from F(1,2) (item 9) on, at 1536 to 1792 [aliasing]",
        ],
    );
    // One too many in the layout: lost on every stage, by direction.
    let mut plan = bidirectional();
    plan.layout.micro_batches = 5;
    let report = verify(&plan);
    assert_eq!(report.counts[&Rule::Completeness], 2 * 6, "micro-batch 4 is new, and 2 now goes the other way");
}

#[test]
fn repeated_and_misplaced_work() {
    let mut plan = linear();
    insert(&mut plan, 0, 17, W(0, 3));
    finds(&plan, &["rank 0, item 18, W(0,3): repeats W(0,3) of item 17 [completeness]"]);
    let mut plan = linear();
    insert(&mut plan, 1, 16, W(0, 3));
    finds(&plan, &["rank 1, item 16, W(0,3): runs W on this rank, but the layout has it on rank 0 [completeness]"]);
}

#[test]
fn stages_that_are_not_synchronised() {
    let mut plan = bidirectional();
    remove(&mut plan, 1, ReduceGrads(0));
    finds(&plan, &["rank 1, ReduceGrads(0): is never run on this rank, which holds stage 0 [completeness]"]);
    let mut plan = linear();
    remove(&mut plan, 1, Update(1));
    finds(&plan, &["rank 1, Update(1): is never run on this rank, which holds stage 1 [completeness]"]);
    // Sharded parameters that are never gathered.
    let mut plan = linear();
    remove(&mut plan, 1, GatherParams(1));
    finds(&plan, &["rank 1, GatherParams(1): is never run on this rank, which holds stage 1 [completeness]"]);
    // Where gathering moves nothing it may be left out, but by all holders alike.
    let mut plan = bidirectional();
    for stage in &mut plan.stages {
        stage.gather = dualweave::ir::Work::over_nvlink(Bytes(0));
    }
    remove(&mut plan, 0, GatherParams(1));
    finds(&plan, &["rank 0, GatherParams(1): is never run on this rank, which holds stage 1 [completeness]"]);
    remove(&mut plan, 1, GatherParams(1));
    finds(&plan, &[]);
    let mut plan = linear();
    insert(&mut plan, 0, 19, ReduceGrads(0));
    finds(&plan, &["rank 0, item 19, ReduceGrads(0): repeats ReduceGrads(0) of item 18 [completeness]"]);
    let mut plan = linear();
    insert(&mut plan, 0, 21, ReduceGrads(1));
    finds(&plan, &["rank 0, item 21, ReduceGrads(1): is about a stage that rank 0 does not hold [completeness]"]);
}

#[test]
fn transfers_without_their_other_end() {
    let mut plan = linear();
    remove(&mut plan, 1, SendGrad(1, 2, 0));
    finds(&plan, &["rank 0, item 12, RecvGrad(1,2) from rank 1: rank 1 never sends it [unmatched-transfer]"]);
    let mut plan = linear();
    remove(&mut plan, 1, RecvAct(0, 3, 0));
    finds(
        &plan,
        &[
            "rank 0, item 11, SendAct(0,3) to rank 1: rank 1 never receives it [unmatched-transfer]",
            "rank 1, item 12, F(1,3): reads the activation of micro-batch 3, but the rank has no RecvAct(0,3) from rank 0 [read-before-write]",
        ],
    );
}

#[test]
fn transfers_of_what_no_one_needs_there() {
    // The activation of the last stage.
    let mut plan = linear();
    roomy(&mut plan);
    insert(&mut plan, 1, 14, SendAct(1, 3, 0));
    finds(
        &plan,
        &[
            "rank 1, item 14, SendAct(1,3) to rank 0: no stage reads the activation of stage 1 [unmatched-transfer]",
            "rank 1, item 14, SendAct(1,3) to rank 0: reads the activation of micro-batch 3 before F(1,3) (item 13) has ended [read-before-write]",
        ],
    );
    // In a V, stage 1 hands its activation to stage 2 on its own rank.
    let mut plan = v();
    insert(&mut plan, 0, 19, SendAct(1, 0, 1));
    finds(
        &plan,
        &[
            "rank 0, item 19, SendAct(1,0) to rank 1: this activation is made on rank 1, not on rank 0 [unmatched-transfer]",
        ],
    );
    let mut plan = v();
    roomy(&mut plan);
    insert(&mut plan, 0, 19, RecvAct(1, 0, 1));
    finds(
        &plan,
        &[
            "rank 0, item 19, RecvAct(1,0) from rank 1: this activation is needed on rank 1, not on rank 0 [unmatched-transfer]",
        ],
    );
}

#[test]
fn transfers_that_are_repeated_or_swapped() {
    let mut plan = linear();
    roomy(&mut plan);
    insert(&mut plan, 0, 21, SendAct(0, 3, 1));
    plan.ranks[0].items[21].1 = vec![10];
    finds(
        &plan,
        &[
            "rank 0, item 21, SendAct(0,3) to rank 1: repeats a transfer that the rank has made already [unmatched-transfer]",
        ],
    );
    // Both receives are there, before both forwards, but not in the order of the sends.
    let mut plan = linear();
    roomy(&mut plan);
    move_before(&mut plan, 1, RecvAct(0, 1, 0), RecvAct(0, 0, 0));
    finds(
        &plan,
        &[
            "rank 1, item 0, RecvAct(0,1) from rank 0: meets SendAct(0,0) to rank 1 (rank 0, item 1): the two ranks do not transfer in the same order [unmatched-transfer]",
        ],
    );
}

#[test]
fn collectives_in_different_orders() {
    let mut plan = bidirectional();
    move_before(&mut plan, 1, GatherParams(0), GatherParams(1));
    finds(
        &plan,
        &[
            "rank 1, item 19, GatherParams(0): meets GatherParams(1) (rank 0, item 19): the two ranks run the collectives of their communicator in different orders [collective-order]",
        ],
    );
}

#[test]
fn circles_of_waits() {
    // Rank 0 sends its first activation only when its first gradient is back.
    let mut plan = linear();
    move_before(&mut plan, 0, RecvGrad(1, 0, 1), SendAct(0, 0, 1));
    add_wait(&mut plan, 0, SendAct(0, 0, 1), RecvGrad(1, 0, 1));
    // All but F(0,0) and F(0,1) wait for it.
    let never = 21 + 19 - 2;
    finds(
        &plan,
        &[&format!(
            "rank 1, item 3, SendGrad(1,0) to rank 0: waits in a circle: for B(1,0) (rank 1, item 2), which waits for F(1,0) \
             (rank 1, item 1), which waits for RecvAct(0,0) from rank 0 (rank 1, item 0), which meets SendAct(0,0) to rank 1 \
             (rank 0, item 2), which waits for RecvGrad(1,0) from rank 1 (rank 0, item 1), which meets this item; {never} items \
             never start [deadlock]"
        )],
    );
}

/// Sends of both ranks that come before their receives are fine on streams of their own. With every transfer of a rank
/// behind the one before it, the order of the two lists decides.
#[test]
fn circles_through_several_rendezvous() {
    let crossed = |plan: &mut Plan| {
        // Rank 0: SendAct(0,3) only after RecvGrad(1,2). Rank 1: SendGrad(1,2) only after RecvAct(0,3).
        move_before(plan, 0, RecvGrad(1, 2, 1), SendAct(0, 3, 1));
        add_wait(plan, 0, SendAct(0, 3, 1), RecvGrad(1, 2, 1));
        move_before(plan, 1, RecvAct(0, 3, 0), SendGrad(1, 2, 0));
        add_wait(plan, 1, SendGrad(1, 2, 0), RecvAct(0, 3, 0));
    };
    let mut plan = linear();
    crossed(&mut plan);
    let report = verify(&plan);
    assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&Rule::Deadlock], "{:#?}", report.violations);
    let message = &report.violations[0].message;
    for member in ["SendAct(0,3)", "RecvGrad(1,2)", "SendGrad(1,2)", "RecvAct(0,3)"] {
        let all = format!("{}{message}", report.violations[0].action);
        assert!(all.contains(member), "{member} is not in: {all}");
    }
}

#[test]
fn an_overlapped_pair_that_reads_itself() {
    // In the V, the backward of stage 3 needs the forward of the same micro-batch first.
    let mut plan = v();
    replace(&mut plan, 0, FB((3, 1), (3, 0)), FB((3, 1), (3, 1)));
    replace(&mut plan, 0, B(3, 1), B(3, 0));
    let report = verify(&plan);
    let reads = report.violations.iter().find(|violation| violation.rule == Rule::ReadBeforeWrite).unwrap();
    assert_eq!(
        reads.to_string(),
        "rank 0, item 7, FB(3,1;3,1): reads what the forward of micro-batch 1 stored before FB(3,1;3,1) (item 7) has ended [read-before-write]"
    );
}

/// Halves of a backward count like a whole one.
#[test]
fn split_backwards_are_complete() {
    let mut plan = linear();
    replace(&mut plan, 0, I(0, 2), Task::B(0, 2));
    replace(&mut plan, 0, I(0, 3), Task::B(0, 3));
    remove(&mut plan, 0, W(0, 2));
    remove(&mut plan, 0, W(0, 3));
    add_wait(&mut plan, 0, ReduceGrads(0), B(0, 3));
    finds(&plan, &[]);
}

/// Gradients are clipped by the norm of all of them: no stage is updated while a rank still has another one's backward before it.
#[test]
fn an_update_in_front_of_another_stages_backward() {
    let mut plan = v();
    move_before(&mut plan, 0, Task::ReduceGrads(3), Task::RecvGrad(1, 0, 1));
    finds(&plan, &[]);
    move_before(&mut plan, 0, Task::Update(3), Task::B(0, 1));
    finds(
        &plan,
        &[
            "rank 0, item 15, Update(3): waits in a circle: for the reduction of all stages, which waits for ReduceGrads(0) (rank 0, \
           item 17), which waits for B(0,1) (rank 0, item 16), which waits for Update(3) (rank 0, item 15); 6 items never start \
           [deadlock]",
        ],
    );
}
