//! Rule `well-formed`, and limits on what a report lists.

use dualweave::ir::Placement;
use dualweave::plan::{Item, Pair, Plan, PlanRank, Ring, RingOf, Task};
use dualweave::units::Bytes;
use dualweave::verify::{LISTED, Rule, verify};

use crate::finds;
use crate::plan_by_hand::{bidirectional, linear, v};
use crate::plan_edit::{at, replace};

#[test]
fn layouts_that_do_not_fit() {
    let mut plan = linear();
    plan.layout.stages = 3;
    finds(
        &plan,
        &[
            "layout: has 3 stages, but 2 are there [well-formed]",
            "layout: has 3 stages on 2 ranks; placement linear needs as many stages as ranks [well-formed]",
        ],
    );
    let mut plan = linear();
    plan.ranks.pop();
    finds(&plan, &["layout: has 2 ranks, but 1 are there [well-formed]"]);
    let mut plan = v();
    plan.layout.placement = Placement::Linear;
    finds(&plan, &["layout: has 4 stages on 2 ranks; placement linear needs as many stages as ranks [well-formed]"]);
    let mut plan = linear();
    plan.layout.micro_batches = 0;
    finds(&plan, &["layout: has no micro-batches [well-formed]"]);
    let mut plan = linear();
    plan.version = 7;
    finds(&plan, &["layout: is of version 7 of the format, not 3 [well-formed]"]);
}

#[test]
fn gpus_that_cannot_share_the_experts() {
    let changed = |change: &dyn Fn(&mut Plan), expected: &[&str]| {
        let mut plan = linear();
        change(&mut plan);
        finds(&plan, expected);
    };
    changed(&|plan| plan.origin.dp = 4, &[]);
    changed(
        &|plan| plan.origin.dp = 3,
        &["origin: has 2 expert-parallel GPUs, which do not divide the 3 GPUs of dp 3 × tp 1 [well-formed]"],
    );
    changed(
        &|plan| (plan.origin.ep, plan.origin.dp) = (3, 3),
        &["origin: has 3 expert-parallel GPUs, which do not divide the 2 experts [well-formed]"],
    );
    for (change, what) in [
        ((|plan| plan.origin.dp = 0) as fn(&mut Plan), "data-parallel replicas"),
        (|plan| plan.origin.ep = 0, "expert-parallel GPUs"),
        (|plan| plan.origin.tp = 0, "tensor-parallel GPUs"),
        (|plan| plan.origin.micro_batch_size = 0, "sequences in a micro-batch"),
        (|plan| plan.origin.sequence = 0, "tokens in a sequence"),
    ] {
        changed(&change, &[&format!("origin: has no {what} [well-formed]")]);
    }
}

#[test]
fn items_that_name_what_is_not_there() {
    let mut plan = linear();
    replace(&mut plan, 0, Task::F(0, 3), Task::F(0, 4));
    finds(&plan, &["rank 0, item 10, F(0,4): names micro-batch 4 of 4 [well-formed]"]);
    let mut plan = linear();
    replace(&mut plan, 1, Task::Update(1), Task::Update(2));
    finds(&plan, &["rank 1, item 17, Update(2): names stage 2 of 2 [well-formed]"]);
    let mut plan = linear();
    replace(&mut plan, 0, Task::SendAct(0, 0, 1), Task::SendAct(0, 0, 2));
    finds(&plan, &["rank 0, item 1, SendAct(0,0) to rank 2: names rank 2 of 2 [well-formed]"]);
    let mut plan = linear();
    replace(&mut plan, 0, Task::SendAct(0, 0, 1), Task::SendAct(0, 0, 0));
    finds(&plan, &["rank 0, item 1, SendAct(0,0) to rank 0: is a transfer of a rank with itself [well-formed]"]);
    let mut plan = linear();
    plan.ranks[0].items[1].1 = vec![5];
    finds(&plan, &["rank 0, item 1, SendAct(0,0) to rank 1: waits for item 5, which is no earlier item [well-formed]"]);
}

#[test]
fn programs_that_are_not_there() {
    let mut plan = linear();
    plan.stages[0].i = None;
    finds(
        &plan,
        &[
            "rank 0, item 13, I(0,2): has no program: its stage has none for I [well-formed]",
            "rank 0, item 15, I(0,3): has no program: its stage has none for I [well-formed]",
        ],
    );
    let mut plan = linear();
    plan.stages[1].w = Some(8);
    finds(&plan, &["stage 1: names program 8 of 8 [well-formed]"]);
    let mut plan = linear();
    plan.stages[1].w = Some(4);
    finds(&plan, &["stage 1: names program 4 to run W, but that is a program of kind F [well-formed]"]);
    let mut plan = v();
    plan.pairs.clear();
    finds(
        &plan,
        &["rank 0, item 7, FB(3,1;3,0): has no program: no pair runs F of stage 3 beside B of stage 3 [well-formed]"],
    );
    let mut plan = v();
    plan.pairs.push(Pair { f: 3, b: 3, program: 12 });
    finds(&plan, &["pair 1: gives F of stage 3 beside B of stage 3 a second program [well-formed]"]);
    let mut plan = v();
    plan.pairs.push(Pair { f: 4, b: 3, program: 12 });
    finds(&plan, &["pair 1: names stage 4 of 4 [well-formed]"]);
}

#[test]
fn stages_that_do_not_fit() {
    let mut plan = linear();
    plan.stages[0].units.clear();
    finds(&plan, &["stage 0: has no units [well-formed]"]);
    let mut plan = linear();
    plan.stages[1].input = Bytes(9);
    finds(&plan, &["stage 0: sends activations of 8 bytes, but stage 1 takes 9 bytes [well-formed]"]);
}

#[test]
fn ops_that_wait_for_what_is_not_there() {
    let mut plan = linear();
    plan.programs[4].ops[2].waits = vec![3];
    finds(
        &plan,
        &[
            "rank 1, item 1, F(1,0), program 4, op 2, Mlp F of unit 0: waits for op 3, which is no earlier op [well-formed]",
        ],
    );
    let mut plan = linear();
    plan.programs[4].ops[2].waits = vec![1, 0];
    finds(
        &plan,
        &["rank 1, item 1, F(1,0), program 4, op 2, Mlp F of unit 0: waits for op 0 of its own stream [well-formed]"],
    );
}

#[test]
fn rings_that_cannot_be() {
    let mut plan = linear();
    plan.ranks[0].rings[1].slots = 0;
    finds(&plan, &["rank 0, ring Outbox(1): has no slots [well-formed]"]);
    let mut plan = linear();
    let twice = plan.ranks[0].rings[0];
    plan.ranks[0].rings.push(twice);
    finds(&plan, &["rank 0, ring Inbox(1): is there twice [well-formed]"]);
    let mut plan = linear();
    plan.ranks[0].rings.push(Ring { of: RingOf::Inbox(u32::MAX), slots: 1, bytes: Bytes(1), at: Bytes(0) });
    finds(&plan, &["rank 0, ring Inbox(4294967295): names rank 4294967295 of 2 [well-formed]"]);
}

#[test]
fn more_streams_than_any_placement_needs() {
    let mut plan = linear();
    let ranks = 100;
    plan.layout.ranks = ranks;
    plan.layout.stages = ranks;
    plan.stages = vec![plan.stages[0].clone(); ranks as usize];
    for stage in &mut plan.stages {
        stage.output = stage.input;
    }
    plan.ranks = vec![PlanRank { arena: Bytes(0), exchange: Bytes(0), rings: vec![], items: vec![] }; ranks as usize];
    plan.ranks[0].items = (1..ranks).map(|rank| Item(Task::SendAct(0, 0, rank), vec![], vec![])).collect();
    finds(&plan, &["rank 0, streams: are 99; no placement needs more than 64 [well-formed]"]);
}

#[test]
fn a_report_lists_so_many_and_counts_the_rest() {
    let mut plan = linear();
    // Four billion micro-batches that nothing runs cost nothing to count.
    plan.layout.micro_batches = u32::MAX;
    let report = verify(&plan);
    let missing = 2 * 3 * (u64::from(u32::MAX) - 4);
    assert_eq!(report.counts[&Rule::Completeness], missing);
    assert_eq!(report.unlisted(Rule::Completeness), missing - LISTED);
    assert_eq!(report.violations.len() as u64, LISTED);
    assert_eq!(
        report.violations[0].to_string(),
        "rank 0, F(0,4): is never run: the micro-batch is lost there [completeness]"
    );
}

#[test]
fn the_other_rules_wait_for_this_one() {
    let mut plan = bidirectional();
    let index = at(&plan, 1, Task::F(0, 2));
    plan.ranks[1].items[index] = Item(Task::F(u32::MAX, u32::MAX), vec![u32::MAX], vec![]);
    let report = verify(&plan);
    assert_eq!(report.checked.rules, 1);
    assert!(!report.is_safe());
    assert!(report.counts.keys().all(|&rule| rule == Rule::WellFormed));
}
