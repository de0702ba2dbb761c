//! One change to a plan, at random, of a given kind. The rest stays as it was: waits go on naming the same entries where those are
//! still in front.

use dualweave::ir::{Component, Phase, Placement, Program, ProgramOp, Step, Tokens, Work};
use dualweave::plan::{ALIGNMENT, Item, Plan, PlanStage, Task};
use dualweave::units::Bytes;

use crate::dice::Dice;

/// What is drawn from lists.
trait Draw {
    /// A place in a list; none if it is empty.
    fn at<V>(&mut self, list: &[V]) -> Option<usize>;

    fn one_of<V: Copy>(&mut self, list: &[V]) -> Option<V> {
        self.at(list).map(|at| list[at])
    }
}

impl Draw for Dice {
    fn at<V>(&mut self, list: &[V]) -> Option<usize> {
        (!list.is_empty()).then(|| self.below(list.len()))
    }
}

/// Changes a plan, and says what it did; nothing if the plan has nothing to change.
pub type Change = fn(&mut Plan, &mut Dice) -> Option<String>;

/// All kinds, by name.
pub const KINDS: &[(&str, Change)] = &[
    ("items swapped", |plan, dice| order_items(plan, dice, swapped)),
    ("neighbours swapped", |plan, dice| order_items(plan, dice, neighbours_swapped)),
    ("item moved", |plan, dice| order_items(plan, dice, moved)),
    ("item dropped", |plan, dice| order_items(plan, dice, dropped)),
    ("item doubled", |plan, dice| order_items(plan, dice, doubled)),
    ("tasks exchanged", tasks_exchanged),
    ("event dropped", event_dropped),
    ("event moved", event_moved),
    ("event added", event_added),
    ("gradient awaited early", awaited_early),
    ("micro-batch changed", |plan, dice| task(plan, dice, micro_batch)),
    ("stage changed", |plan, dice| task(plan, dice, stage_number)),
    ("peer changed", |plan, dice| task(plan, dice, peer)),
    ("send for receive", |plan, dice| task(plan, dice, direction)),
    ("gradient for activation", |plan, dice| task(plan, dice, content)),
    ("action changed", |plan, dice| task(plan, dice, action)),
    ("place moved", place_moved),
    ("places exchanged", places_exchanged),
    ("place dropped", place_dropped),
    ("ring moved", ring_moved),
    ("ring slots", ring_slots),
    ("ring bytes", ring_bytes),
    ("ring dropped", ring_dropped),
    ("exchange buffer moved", exchange_moved),
    ("arena smaller", arena_smaller),
    ("more held", more_held),
    ("larger exchange buffer", larger_exchange_buffer),
    ("workspace changed", workspace),
    ("op dropped", |plan, dice| order_ops(plan, dice, dropped)),
    ("op doubled", |plan, dice| order_ops(plan, dice, doubled)),
    ("ops swapped", |plan, dice| order_ops(plan, dice, swapped)),
    ("neighbouring ops swapped", |plan, dice| order_ops(plan, dice, neighbours_swapped)),
    ("op moved", |plan, dice| order_ops(plan, dice, moved)),
    ("op's wait dropped", op_wait_dropped),
    ("op's wait added", op_wait_added),
    ("op's SMs", op_sms),
    ("op's name", op_name),
    ("op's tokens", op_tokens),
    ("op's carrier", op_carrier),
    ("stage's program", stage_program),
    ("pair's program", pair_program),
    ("units moved", units_moved),
    ("recomputation", recomputation),
    ("ranks exchanged", ranks_exchanged),
    ("layout", layout),
    ("expert GPUs", expert_gpus),
];

/// A new order of a list of so many, in which entries may be missing or there twice; in words too.
type NewOrder = fn(usize, &mut Dice) -> Option<(Vec<usize>, String)>;

fn swapped(length: usize, dice: &mut Dice) -> Option<(Vec<usize>, String)> {
    let mut order: Vec<usize> = (0..length).collect();
    let (a, b) = (dice.at(&order)?, dice.at(&order)?);
    order.swap(a, b);
    Some((order, format!("{a} and {b} swapped")))
}

fn neighbours_swapped(length: usize, dice: &mut Dice) -> Option<(Vec<usize>, String)> {
    let mut order: Vec<usize> = (0..length).collect();
    let a = dice.at(order.get(1..)?)?;
    order.swap(a, a + 1);
    Some((order, format!("{a} and {} swapped", a + 1)))
}

fn moved(length: usize, dice: &mut Dice) -> Option<(Vec<usize>, String)> {
    let mut order: Vec<usize> = (0..length).collect();
    let (a, b) = (dice.at(&order)?, dice.at(&order)?);
    let entry = order.remove(a);
    order.insert(b, entry);
    Some((order, format!("{a} moved to {b}")))
}

fn dropped(length: usize, dice: &mut Dice) -> Option<(Vec<usize>, String)> {
    let mut order: Vec<usize> = (0..length).collect();
    let a = dice.at(&order)?;
    order.remove(a);
    Some((order, format!("{a} dropped")))
}

fn doubled(length: usize, dice: &mut Dice) -> Option<(Vec<usize>, String)> {
    let mut order: Vec<usize> = (0..length).collect();
    let a = dice.at(&order)?;
    let b = a + 1 + dice.below(length - a);
    order.insert(b, a);
    Some((order, format!("{a} again at {b}")))
}

/// Brings a list into another order. Waits for what is gone, or comes later now, are left out.
fn reorder<V: Clone>(list: &mut Vec<V>, waits: fn(&mut V) -> &mut Vec<u32>, order: &[usize]) {
    let old = std::mem::take(list);
    for (index, &from) in order.iter().enumerate() {
        let mut entry = old[from].clone();
        let new = |&wait: &u32| order[..index].iter().position(|&at| at == wait as usize).map(|at| at as u32);
        let kept = waits(&mut entry).iter().filter_map(new).collect();
        *waits(&mut entry) = kept;
        list.push(entry);
    }
}

fn order_items(plan: &mut Plan, dice: &mut Dice, new: NewOrder) -> Option<String> {
    let rank = dice.at(&plan.ranks)?;
    let items = &mut plan.ranks[rank].items;
    let (order, words) = new(items.len(), dice)?;
    reorder(items, |item| &mut item.1, &order);
    Some(format!("items of rank {rank}: {words}"))
}

fn order_ops(plan: &mut Plan, dice: &mut Dice, new: NewOrder) -> Option<String> {
    let number = dice.at(&plan.programs)?;
    let ops = &mut plan.programs[number].ops;
    let (order, words) = new(ops.len(), dice)?;
    reorder(ops, |op| &mut op.waits, &order);
    Some(format!("ops of program {number}: {words}"))
}

/// Some item of some rank: both by number.
fn some_item(plan: &Plan, dice: &mut Dice, wanted: impl Fn(&Item) -> bool) -> Option<(usize, usize)> {
    let rank = dice.at(&plan.ranks)?;
    let items = plan.ranks[rank].items.iter().enumerate();
    let items: Vec<usize> = items.filter(|(_, item)| wanted(item)).map(|(index, _)| index).collect();
    Some((rank, dice.one_of(&items)?))
}

/// The tasks trade places, and leave their waits and blocks where they are.
fn tasks_exchanged(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, a) = some_item(plan, dice, |_| true)?;
    let items = &mut plan.ranks[rank].items;
    // Of the same kind, so that it may be well-formed.
    let kind = |task: Task| std::mem::discriminant(&task);
    let alike: Vec<usize> = (0..items.len()).filter(|&b| kind(items[b].0) == kind(items[a].0)).collect();
    let b = dice.one_of(&alike)?;
    (items[a].0, items[b].0) = (items[b].0, items[a].0);
    Some(format!("rank {rank}: tasks of items {a} and {b} exchanged"))
}

fn event_dropped(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, item) = some_item(plan, dice, |item| !item.1.is_empty())?;
    let waits = &mut plan.ranks[rank].items[item].1;
    let gone = waits.remove(dice.at(waits)?);
    Some(format!("rank {rank}: item {item} no longer waits for {gone}"))
}

fn event_moved(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, item) = some_item(plan, dice, |item| !item.1.is_empty())?;
    let waits = &mut plan.ranks[rank].items[item].1;
    let at = dice.at(waits)?;
    let old = waits[at];
    waits[at] = dice.below(item) as u32;
    Some(format!("rank {rank}: item {item} waits for {} in place of {old}", waits[at]))
}

fn event_added(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, item) = some_item(plan, dice, |_| true)?;
    // Now and then one that cannot be.
    let awaited = dice.below(item + 2) as u32;
    plan.ranks[rank].items[item].1.push(awaited);
    Some(format!("rank {rank}: item {item} also waits for {awaited}"))
}

/// The first gradient that comes to a rank is awaited by some action that was in front of it: if it depends on that action, this is a
/// circle.
fn awaited_early(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let rank = dice.at(&plan.ranks)?;
    let items = &mut plan.ranks[rank].items;
    let first = items.iter().position(|item| matches!(item.0, Task::RecvGrad(..)))?;
    let actions: Vec<usize> = (0..first).filter(|&at| items[at].0.action().is_some()).collect();
    let place = dice.one_of(&actions)?;
    let mut order: Vec<usize> = (0..items.len()).collect();
    order[place..=first].rotate_right(1);
    reorder(items, |item| &mut item.1, &order);
    items[place + 1].1.push(place as u32);
    Some(format!("rank {rank}: item {first} is awaited by item {place}"))
}

/// Replaces the task of some item.
fn task(plan: &mut Plan, dice: &mut Dice, change: fn(Task, &Plan, &mut Dice) -> Option<Task>) -> Option<String> {
    let (rank, item) = some_item(plan, dice, |_| true)?;
    let old = plan.ranks[rank].items[item].0;
    let new = change(old, plan, dice)?;
    plan.ranks[rank].items[item].0 = new;
    Some(format!("rank {rank}: item {item} is {new} in place of {old}"))
}

fn micro_batch(task: Task, plan: &Plan, dice: &mut Dice) -> Option<Task> {
    let new = dice.below(plan.layout.micro_batches as usize) as u32;
    Some(match task {
        Task::F(s, _) => Task::F(s, new),
        Task::B(s, _) => Task::B(s, new),
        Task::I(s, _) => Task::I(s, new),
        Task::W(s, _) => Task::W(s, new),
        Task::FB(f, b) if dice.below(2) == 0 => Task::FB((f.0, new), b),
        Task::FB(f, b) => Task::FB(f, (b.0, new)),
        Task::SendAct(s, _, to) => Task::SendAct(s, new, to),
        Task::SendGrad(s, _, to) => Task::SendGrad(s, new, to),
        Task::RecvAct(s, _, from) => Task::RecvAct(s, new, from),
        Task::RecvGrad(s, _, from) => Task::RecvGrad(s, new, from),
        Task::ReduceGrads(_) | Task::Update(_) | Task::GatherParams(_) => return None,
    })
}

fn stage_number(task: Task, plan: &Plan, dice: &mut Dice) -> Option<Task> {
    let new = dice.below(plan.layout.stages as usize) as u32;
    Some(match task {
        Task::F(_, m) => Task::F(new, m),
        Task::B(_, m) => Task::B(new, m),
        Task::I(_, m) => Task::I(new, m),
        Task::W(_, m) => Task::W(new, m),
        Task::FB(f, b) if dice.below(2) == 0 => Task::FB((new, f.1), b),
        Task::FB(f, b) => Task::FB(f, (new, b.1)),
        Task::SendAct(_, m, to) => Task::SendAct(new, m, to),
        Task::SendGrad(_, m, to) => Task::SendGrad(new, m, to),
        Task::RecvAct(_, m, from) => Task::RecvAct(new, m, from),
        Task::RecvGrad(_, m, from) => Task::RecvGrad(new, m, from),
        Task::ReduceGrads(_) => Task::ReduceGrads(new),
        Task::Update(_) => Task::Update(new),
        Task::GatherParams(_) => Task::GatherParams(new),
    })
}

fn peer(task: Task, plan: &Plan, dice: &mut Dice) -> Option<Task> {
    let new = dice.below(plan.layout.ranks as usize + 1) as u32;
    Some(match task {
        Task::SendAct(s, m, _) => Task::SendAct(s, m, new),
        Task::SendGrad(s, m, _) => Task::SendGrad(s, m, new),
        Task::RecvAct(s, m, _) => Task::RecvAct(s, m, new),
        Task::RecvGrad(s, m, _) => Task::RecvGrad(s, m, new),
        _ => return None,
    })
}

fn direction(task: Task, _: &Plan, _: &mut Dice) -> Option<Task> {
    Some(match task {
        Task::SendAct(s, m, peer) => Task::RecvAct(s, m, peer),
        Task::SendGrad(s, m, peer) => Task::RecvGrad(s, m, peer),
        Task::RecvAct(s, m, peer) => Task::SendAct(s, m, peer),
        Task::RecvGrad(s, m, peer) => Task::SendGrad(s, m, peer),
        _ => return None,
    })
}

fn content(task: Task, _: &Plan, _: &mut Dice) -> Option<Task> {
    Some(match task {
        Task::SendAct(s, m, peer) => Task::SendGrad(s, m, peer),
        Task::SendGrad(s, m, peer) => Task::SendAct(s, m, peer),
        Task::RecvAct(s, m, peer) => Task::RecvGrad(s, m, peer),
        Task::RecvGrad(s, m, peer) => Task::RecvAct(s, m, peer),
        _ => return None,
    })
}

fn action(task: Task, _: &Plan, dice: &mut Dice) -> Option<Task> {
    let (s, m) = match task {
        Task::F(s, m) | Task::B(s, m) | Task::I(s, m) | Task::W(s, m) => (s, m),
        Task::FB(f, b) => return dice.one_of(&[Task::F(f.0, f.1), Task::B(b.0, b.1), Task::FB(b, f)]),
        Task::ReduceGrads(s) | Task::Update(s) | Task::GatherParams(s) => {
            return dice.one_of(&[Task::ReduceGrads(s), Task::Update(s), Task::GatherParams(s)]);
        }
        _ => return None,
    };
    dice.one_of(&[Task::F(s, m), Task::B(s, m), Task::I(s, m), Task::W(s, m)])
}

/// Another place for something in an arena: a little higher or lower, or anywhere, mostly at a multiple of the alignment.
fn other_place(at: Bytes, arena: Bytes, dice: &mut Dice) -> Bytes {
    let units = arena.0 / ALIGNMENT;
    Bytes(match dice.below(8) {
        0 => at.0 + ALIGNMENT,
        1 => at.0.saturating_sub(ALIGNMENT),
        2 => at.0 + ALIGNMENT / 2,
        _ => dice.below(units as usize + 1) as u64 * ALIGNMENT,
    })
}

fn place_moved(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, item) = some_item(plan, dice, |item| !item.2.is_empty())?;
    let there = &mut plan.ranks[rank];
    let place = dice.at(&there.items[item].2)?;
    let at = &mut there.items[item].2[place];
    let old = *at;
    *at = other_place(old, there.arena, dice);
    Some(format!("rank {rank}: place {place} of item {item} is {} in place of {}", at.0, old.0))
}

fn places_exchanged(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, a) = some_item(plan, dice, |item| !item.2.is_empty())?;
    let items = &mut plan.ranks[rank].items;
    let b = (a + 1..items.len()).find(|&b| !items[b].2.is_empty())?;
    let (place_a, place_b) = (dice.at(&items[a].2)?, dice.at(&items[b].2)?);
    (items[a].2[place_a], items[b].2[place_b]) = (items[b].2[place_b], items[a].2[place_a]);
    Some(format!("rank {rank}: place {place_a} of item {a} and {place_b} of {b} exchanged"))
}

fn place_dropped(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, item) = some_item(plan, dice, |item| !item.2.is_empty())?;
    let places = &mut plan.ranks[rank].items[item].2;
    let place = dice.at(places)?;
    places.remove(place);
    Some(format!("rank {rank}: place {place} of item {item} dropped"))
}

fn some_ring(plan: &Plan, dice: &mut Dice) -> Option<(usize, usize)> {
    let rank = dice.at(&plan.ranks)?;
    Some((rank, dice.at(&plan.ranks[rank].rings)?))
}

fn ring_moved(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, ring) = some_ring(plan, dice)?;
    let there = &mut plan.ranks[rank];
    let at = &mut there.rings[ring].at;
    let old = *at;
    *at = other_place(old, there.arena, dice);
    Some(format!("rank {rank}: ring {ring} is at {} in place of {}", at.0, old.0))
}

fn ring_slots(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, ring) = some_ring(plan, dice)?;
    let slots = &mut plan.ranks[rank].rings[ring].slots;
    let old = *slots;
    *slots = dice.one_of(&[old - 1, old + 1, 1, 0])?;
    Some(format!("rank {rank}: ring {ring} has {slots} slots in place of {old}"))
}

fn ring_bytes(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, ring) = some_ring(plan, dice)?;
    let bytes = &mut plan.ranks[rank].rings[ring].bytes.0;
    let old = *bytes;
    *bytes = dice.one_of(&[0, old - 1, old + 1, old + ALIGNMENT, 2 * old])?;
    Some(format!("rank {rank}: slots of ring {ring} have {bytes} bytes in place of {old}"))
}

fn ring_dropped(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (rank, ring) = some_ring(plan, dice)?;
    let gone = plan.ranks[rank].rings.remove(ring);
    Some(format!("rank {rank}: ring {:?} dropped", gone.of))
}

fn exchange_moved(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let rank = dice.at(&plan.ranks)?;
    let there = &mut plan.ranks[rank];
    let old = there.exchange;
    there.exchange = other_place(old, there.arena, dice);
    Some(format!("rank {rank}: exchange buffer at {} in place of {}", there.exchange.0, old.0))
}

fn arena_smaller(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let rank = dice.at(&plan.ranks)?;
    let arena = &mut plan.ranks[rank].arena.0;
    let old = *arena;
    *arena = dice.one_of(&[0, old / 2, old.saturating_sub(1), old.saturating_sub(ALIGNMENT)])?;
    Some(format!("rank {rank}: an arena of {arena} in place of {old}"))
}

fn some_stage<'a>(plan: &'a mut Plan, dice: &mut Dice) -> Option<(usize, &'a mut PlanStage)> {
    let number = dice.at(&plan.stages)?;
    Some((number, &mut plan.stages[number]))
}

fn more_held(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (number, stage) = some_stage(plan, dice)?;
    let held = &mut stage.held;
    let parts = match dice.below(3) {
        0 => &mut held.f_to_i,
        1 => &mut held.f_to_w,
        _ => &mut held.i_to_w,
    };
    let at = dice.below(parts.len().max(1));
    let (component, bytes) = parts.iter_mut().nth(at)?;
    let old = *bytes;
    *bytes = Bytes(dice.one_of(&[old.0 + 1, old.0 + ALIGNMENT, 2 * old.0])?);
    Some(format!("stage {number} holds {} bytes for {component:?} in place of {}", bytes.0, old.0))
}

fn larger_exchange_buffer(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (number, stage) = some_stage(plan, dice)?;
    let old = stage.exchange_buffer.0;
    stage.exchange_buffer = Bytes(dice.one_of(&[old + 1, old + ALIGNMENT, 2 * old])?);
    Some(format!("stage {number} has an exchange buffer of {} in place of {old}", stage.exchange_buffer.0))
}

fn workspace(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (number, program) = some_program(plan, dice, |_| true)?;
    let old = program.workspace.0;
    program.workspace = Bytes(dice.one_of(&[0, old / 2, old + ALIGNMENT, 2 * old])?);
    Some(format!("program {number} has a workspace of {} in place of {old}", program.workspace.0))
}

fn some_program<'a>(
    plan: &'a mut Plan,
    dice: &mut Dice,
    wanted: impl Fn(&Program) -> bool,
) -> Option<(usize, &'a mut Program)> {
    let number = dice.at(&plan.programs)?;
    Some((number, &mut plan.programs[number])).filter(|(_, program)| wanted(program))
}

fn some_op<'a>(
    plan: &'a mut Plan,
    dice: &mut Dice,
    wanted: impl Fn(&ProgramOp) -> bool,
) -> Option<(String, usize, &'a mut ProgramOp)> {
    let (number, program) = some_program(plan, dice, |_| true)?;
    let ops = program.ops.iter().enumerate().filter(|(_, op)| wanted(op));
    let at = dice.one_of(&ops.map(|(at, _)| at).collect::<Vec<usize>>())?;
    Some((format!("program {number}, op {at}"), at, &mut program.ops[at]))
}

fn op_wait_dropped(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (name, _, op) = some_op(plan, dice, |op| !op.waits.is_empty())?;
    let at = dice.at(&op.waits)?;
    let gone = op.waits.remove(at);
    Some(format!("{name}, {}, no longer waits for op {gone}", op.what()))
}

fn op_wait_added(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (name, at, op) = some_op(plan, dice, |_| true)?;
    let awaited = dice.below(at + 1) as u32;
    op.waits.push(awaited);
    Some(format!("{name} also waits for op {awaited}"))
}

fn op_sms(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let all = plan.machine.sms;
    let (name, _, op) = some_op(plan, dice, |_| true)?;
    let old = op.sms;
    op.sms = dice.one_of(&[0, old / 2, old + 1, old + 8, all, all + 1])?;
    Some(format!("{name} has {} SMs in place of {old}", op.sms))
}

fn op_name(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    use Component::{Attention, Combine, Dispatch, Embedding, Head, Mlp};
    let (name, _, op) = some_op(plan, dice, |_| true)?;
    let old = format!("{} of unit {}", op.what(), op.unit);
    match dice.below(4) {
        0 => op.component = dice.one_of(&[Embedding, Attention, Dispatch, Mlp, Combine, Head])?,
        1 => op.phase = dice.one_of(&[Phase::F, Phase::I, Phase::W])?,
        2 => op.step = dice.one_of(&[Step::Main, Step::Shared, Step::Again, Step::Quantise, Step::Pack])?,
        _ => op.unit = dice.below(op.unit as usize + 2) as u32,
    }
    Some(format!("{name} is {} of unit {} in place of {old}", op.what(), op.unit))
}

fn op_tokens(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (name, _, op) = some_op(plan, dice, |_| true)?;
    let old = op.tokens;
    let part = |part: u32, parts: u32| Tokens { part, parts };
    op.tokens = dice.one_of(&[part(0, 1), part(0, 2), part(1, 2), part(0, 4), part(2, 2)])?;
    Some(format!("{name} works on {:?} in place of {old:?}", op.tokens))
}

fn op_carrier(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (name, _, op) = some_op(plan, dice, |_| true)?;
    let (exchange, copy) =
        (Work::Exchange { nvlink: Bytes(1), network: Bytes(1), uplink: Bytes::ZERO }, Work::Copy { nvlink: Bytes(1) });
    op.work = [Work::Compute(vec![]), exchange, copy].into_iter().nth(dice.below(3))?;
    if dice.below(2) == 0 {
        op.sms = if matches!(op.work, Work::Copy { .. }) { 0 } else { op.sms.max(1) };
    }
    Some(format!("{name} does {:?} with {} SMs", op.work, op.sms))
}

fn stage_program(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let programs = plan.programs.len();
    let kinds: Vec<_> = plan.programs.iter().map(|program| program.kind).collect();
    let (number, stage) = some_stage(plan, dice)?;
    let program = match dice.below(4) {
        0 => &mut stage.f,
        1 => &mut stage.b,
        2 => &mut stage.i,
        _ => &mut stage.w,
    };
    let old = (*program)?;
    // Mostly one of the same kind.
    let alike: Vec<u32> = (0..programs as u32).filter(|&at| kinds[at as usize] == kinds[old as usize]).collect();
    *program = match dice.below(8) {
        0 => None,
        1 => Some(dice.below(programs) as u32),
        _ => Some(dice.one_of(&alike)?),
    };
    Some(format!("stage {number} runs program {program:?} in place of {old}"))
}

fn pair_program(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let at = dice.at(&plan.pairs)?;
    let other = plan.pairs[dice.below(plan.pairs.len())];
    let pair = &mut plan.pairs[at];
    let old = *pair;
    match dice.below(4) {
        0 => pair.f = other.f,
        1 => pair.b = other.b,
        2 => (pair.f, pair.b) = (pair.b, pair.f),
        _ => pair.program = other.program,
    }
    Some(format!("{pair:?} in place of {old:?}"))
}

fn units_moved(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (from, to) = (dice.at(&plan.stages)?, dice.at(&plan.stages)?);
    let at = dice.at(&plan.stages[from].units)?;
    let unit = plan.stages[from].units.remove(at);
    let units = &mut plan.stages[to].units;
    let place = dice.below(units.len() + 1);
    units.insert(place, unit);
    Some(format!("unit {at} of stage {from} is unit {place} of stage {to}"))
}

fn recomputation(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (number, stage) = some_stage(plan, dice)?;
    let what = match dice.below(4) {
        0 => &mut stage.recompute.norms,
        1 => &mut stage.recompute.swiglu,
        _ => &mut stage.recompute.layer,
    };
    *what = !*what;
    Some(format!("stage {number} computes `{}` again", stage.recompute))
}

fn ranks_exchanged(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let (a, b) = (dice.at(&plan.ranks)?, dice.at(&plan.ranks)?);
    plan.ranks.swap(a, b);
    Some(format!("ranks {a} and {b} exchanged"))
}

fn layout(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let layout = &mut plan.layout;
    match dice.below(2) {
        0 => {
            layout.placement =
                dice.one_of(&[Placement::Linear, Placement::Loop, Placement::V, Placement::Bidirectional])?;
        }
        _ => layout.micro_batches = (layout.micro_batches + 1).saturating_sub(2 * dice.below(2) as u32),
    }
    Some(format!("{layout:?}"))
}

fn expert_gpus(plan: &mut Plan, dice: &mut Dice) -> Option<String> {
    let old = plan.origin.ep;
    plan.origin.ep = dice.one_of(&[0, 1, 2, 3, 4, 16])?;
    Some(format!("{} GPUs share the experts in place of {old}", plan.origin.ep))
}
