//! Small changes to a plan that keep the rest of it as it was: `after` lists go on naming the same items.

use dualweave::plan::{Item, Plan, RingOf, Task};
use dualweave::units::Bytes;

/// Index of an item of a rank.
#[track_caller]
pub fn at(plan: &Plan, rank: usize, task: Task) -> usize {
    plan.ranks[rank].items.iter().position(|item| item.0 == task).expect("the rank has the item")
}

/// Takes an item off a rank, and out of the lists of those that wait for it.
pub fn remove(plan: &mut Plan, rank: usize, task: Task) {
    let gone = at(plan, rank, task) as u32;
    let items = &mut plan.ranks[rank].items;
    items.remove(gone as usize);
    for item in items {
        item.1.retain(|&after| after != gone);
        for after in &mut item.1 {
            *after -= u32::from(*after > gone);
        }
    }
}

/// Puts a new item at an index of a rank.
pub fn insert(plan: &mut Plan, rank: usize, index: usize, task: Task) {
    let items = &mut plan.ranks[rank].items;
    for item in items.iter_mut() {
        for after in &mut item.1 {
            *after += u32::from(*after as usize >= index);
        }
    }
    items.insert(index, Item(task, vec![], vec![]));
}

/// Moves an item of a rank in front of another. Waits for what comes later then are left out.
pub fn move_before(plan: &mut Plan, rank: usize, task: Task, other: Task) {
    let mut order: Vec<usize> = (0..plan.ranks[rank].items.len()).collect();
    let moved = order.remove(at(plan, rank, task));
    let place = order.iter().position(|&index| index == at(plan, rank, other)).expect("the other one is there");
    order.insert(place, moved);
    reorder(plan, rank, &order);
}

/// Swaps two items of a rank. Waits for what comes later then are left out.
pub fn swap(plan: &mut Plan, rank: usize, a: usize, b: usize) {
    let mut order: Vec<usize> = (0..plan.ranks[rank].items.len()).collect();
    order.swap(a, b);
    reorder(plan, rank, &order);
}

/// Lets an item no longer wait for another.
#[track_caller]
pub fn drop_wait(plan: &mut Plan, rank: usize, task: Task, awaited: Task) {
    let (index, awaited) = (at(plan, rank, task), at(plan, rank, awaited) as u32);
    let waits = &mut plan.ranks[rank].items[index].1;
    let before = waits.len();
    waits.retain(|&after| after != awaited);
    assert_eq!(waits.len() + 1, before, "the item waited for it");
}

/// Lets an item wait for another.
pub fn add_wait(plan: &mut Plan, rank: usize, task: Task, awaited: Task) {
    let (index, awaited) = (at(plan, rank, task), at(plan, rank, awaited) as u32);
    plan.ranks[rank].items[index].1.push(awaited);
}

/// Gives a ring so many slots, above all else in its arena, which grows by as much as that takes; so does the memory.
#[track_caller]
pub fn enlarge(plan: &mut Plan, rank: usize, of: RingOf, slots: u32) {
    let there = &mut plan.ranks[rank];
    let ring = there.rings.iter_mut().find(|ring| ring.of == of).expect("the rank has the ring");
    let more = u64::from(slots) * ring.bytes.0.next_multiple_of(256);
    (ring.slots, ring.at) = (slots, there.arena);
    there.arena.0 += more;
    plan.machine.memory = Bytes(plan.machine.memory.0 + more);
}

/// Replaces an item of a rank and leaves its waits.
pub fn replace(plan: &mut Plan, rank: usize, task: Task, with: Task) {
    let index = at(plan, rank, task);
    plan.ranks[rank].items[index].0 = with;
}

/// `order[n]` is the old index of what comes n-th.
fn reorder(plan: &mut Plan, rank: usize, order: &[usize]) {
    let items = &mut plan.ranks[rank].items;
    let new = |old: u32| order.iter().position(|&index| index == old as usize).expect("a permutation") as u32;
    *items = order
        .iter()
        .enumerate()
        .map(|(index, &old)| {
            let Item(task, waits, places) = &items[old];
            let waits = waits.iter().map(|&wait| new(wait)).filter(|&wait| (wait as usize) < index).collect();
            Item(*task, waits, places.clone())
        })
        .collect();
}
