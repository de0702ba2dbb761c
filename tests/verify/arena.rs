//! Rules about a rank's arena: `places` and `aliasing`.

use dualweave::plan::{ALIGNMENT, Plan, RingOf, Task};
use dualweave::units::Bytes;
use dualweave::verify::{Rule, verify};

use crate::finds;
use crate::plan_by_hand::{UNIT, all, linear, v};
use crate::plan_edit::at;
use crate::plan_run::{Ranks, run};

/// The place of the n-th block that an item takes.
fn place(plan: &mut Plan, rank: usize, task: Task, n: usize) -> &mut Bytes {
    let item = at(plan, rank, task);
    &mut plan.ranks[rank].items[item].2[n]
}

#[test]
fn the_alignment_is_what_the_plans_by_hand_have() {
    assert_eq!(UNIT, ALIGNMENT);
}

/// Every block at every place of the arena: the verifier refuses just what goes wrong in a run that looks at each pair of blocks.
#[test]
fn every_block_at_every_place() {
    let mut refused = [0, 0];
    for plan in all() {
        for rank in 0..plan.ranks.len() {
            for item in 0..plan.ranks[rank].items.len() {
                for n in 0..plan.ranks[rank].items[item].2.len() {
                    for unit in 0..=plan.ranks[rank].arena.0 / UNIT {
                        let mut plan = plan.clone();
                        plan.ranks[rank].items[item].2[n] = Bytes(unit * UNIT);
                        let report = verify(&plan);
                        let task = plan.ranks[rank].items[item].0;
                        assert_eq!(
                            report.is_safe(),
                            run(&plan, Ranks::Together, 1).is_ok(),
                            "rank {rank}, {task}, {n} at {unit}"
                        );
                        refused[usize::from(report.is_safe())] += 1;
                        // The item at fault, or a later one that comes upon the block.
                        for violation in &report.violations {
                            assert!(matches!(violation.rule, Rule::Places | Rule::Aliasing));
                            assert!(violation.rank == Some(rank as u32) && violation.item >= Some(item), "{violation}");
                        }
                    }
                }
            }
        }
    }
    assert!(refused.iter().all(|&count| count > 50), "{refused:?}");
}

#[test]
fn blocks_where_others_are() {
    // What a chunk stored over what another one still needs.
    let mut plan = linear();
    place(&mut plan, 0, Task::F(0, 1), 0).0 = 6 * UNIT;
    finds(
        &plan,
        &[
            "rank 0, item 2, F(0,1): takes f_to_i of chunk (0,1) at bytes 1536 to 1792, where f_to_w of chunk (0,0) is from F(0,0) (item 0) to B(0,0) (item 5), at 1536 to 1792 [aliasing]",
        ],
    );
    // What a backward leaves over what it reads itself: the item that frees a block still has it.
    let mut plan = linear();
    place(&mut plan, 0, Task::I(0, 3), 0).0 = 7 * UNIT;
    finds(
        &plan,
        &[
            "rank 0, item 15, I(0,3): takes i_to_w of chunk (0,3) at bytes 1792 to 2048, where f_to_i of chunk (0,3) is from F(0,3) (item 10) to I(0,3) (item 15), at 1792 to 2048 [aliasing]",
        ],
    );
    // A workspace over the forward's blocks of the same pair.
    let mut plan = v();
    let pair = Task::FB((3, 1), (3, 0));
    place(&mut plan, 0, pair, 2).0 = 11 * UNIT;
    finds(
        &plan,
        &[
            "rank 0, item 7, FB(3,1;3,0): takes the workspace at bytes 2816 to 3072, where f_to_i of chunk (3,1) is from FB(3,1;3,0) (item 7) to B(3,1) (item 9), at 2816 to 3072 [aliasing]",
        ],
    );
    // A block in a ring.
    let mut plan = linear();
    place(&mut plan, 1, Task::B(1, 2), 0).0 = 3 * UNIT;
    finds(
        &plan,
        &[
            "rank 1, item 10, B(1,2): takes the workspace at bytes 768 to 1024, where ring Outbox(0) is always, at 512 to 1024 [aliasing]",
        ],
    );
}

#[test]
fn blocks_without_a_place() {
    let mut plan = linear();
    plan.ranks[0].items[0].2.pop();
    finds(
        &plan,
        &["rank 0, item 0, F(0,0): lists 1 places, but takes f_to_i of chunk (0,0), f_to_w of chunk (0,0) [places]"],
    );
    let mut plan = linear();
    let twice = plan.ranks[1].items[2].2[0];
    plan.ranks[1].items[2].2.push(twice);
    finds(&plan, &["rank 1, item 2, B(1,0): lists 2 places, but takes the workspace [places]"]);
    let mut plan = linear();
    plan.ranks[0].items[16].2.push(Bytes(0));
    finds(&plan, &["rank 0, item 16, W(0,2): lists 1 places, but takes nothing [places]"]);
    let mut plan = linear();
    plan.ranks[0].items[1].2.push(Bytes(0));
    finds(&plan, &["rank 0, item 1, SendAct(0,0) to rank 1: lists 1 places, but takes nothing [places]"]);
    // A chunk that holds nothing from F to I has one block less.
    let mut plan = linear();
    plan.stages[0].held.f_to_i.clear();
    assert_eq!(verify(&plan).counts.get(&Rule::Places), Some(&4));
    for item in plan.ranks[0].items.iter_mut().filter(|item| matches!(item.0, Task::F(..))) {
        item.2.remove(0);
    }
    finds(&plan, &[]);
}

#[test]
fn places_that_cannot_be() {
    let mut plan = linear();
    place(&mut plan, 0, Task::F(0, 0), 1).0 = 6 * UNIT + 8;
    let found = verify(&plan).violations;
    assert_eq!(
        found[0].to_string(),
        "rank 0, item 0, F(0,0): takes f_to_w of chunk (0,0), which begins at byte 1544, no multiple of 256 [places]"
    );
    // Past the end, by a unit or by as much as a file can say.
    let mut plan = linear();
    plan.ranks[0].arena.0 -= UNIT;
    let found: Vec<String> = verify(&plan).violations.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [5, 9, 13].map(|item| {
            let (task, what) = match item {
                13 => ("I(0,2)".to_owned(), "i_to_w of chunk (0,2)"),
                _ => (format!("B(0,{})", (item - 5) / 4), "the workspace"),
            };
            format!("rank 0, item {item}, {task}: takes {what}, which lies at bytes 2304 to 2560, but the arena has 2304 [places]")
        })
    );
    let mut plan = linear();
    place(&mut plan, 0, Task::F(0, 0), 1).0 = u64::MAX - 255;
    finds(
        &plan,
        &[
            "rank 0, item 0, F(0,0): takes f_to_w of chunk (0,0), which lies at bytes 18446744073709551360 to 18446744073709551616, but the arena has 2560 [places]",
        ],
    );
}

#[test]
fn rings_and_exchange_buffers_where_others_are() {
    let ring = |plan: &mut Plan, of: RingOf, at: u64| {
        plan.ranks[0].rings.iter_mut().find(|ring| ring.of == of).expect("the ring").at = Bytes(at * UNIT);
    };
    let mut plan = linear();
    ring(&mut plan, RingOf::Outbox(1), 1);
    finds(
        &plan,
        &["rank 0, ring Outbox(1): lies at bytes 256 to 768, where ring Inbox(1) is always, at 0 to 512 [aliasing]"],
    );
    let mut plan = linear();
    plan.ranks[0].exchange = Bytes(3 * UNIT);
    finds(
        &plan,
        &[
            "rank 0, the exchange buffer: lies at bytes 768 to 1024, where ring Outbox(1) is always, at 512 to 1024 [aliasing]",
        ],
    );
    let mut plan = linear();
    ring(&mut plan, RingOf::Inbox(1), 100);
    finds(&plan, &["rank 0, ring Inbox(1): lies at bytes 25600 to 26112, but the arena has 2560 [places]"]);
    // Slots past every number.
    let mut plan = linear();
    for ring in &mut plan.ranks[0].rings {
        (ring.slots, ring.bytes, ring.at) = (u32::MAX, Bytes(u64::MAX), Bytes(u64::MAX));
    }
    assert!(!verify(&plan).is_safe());
}
