//! Plans changed at random: the verifier never panics, and what it passes runs.

use std::sync::LazyLock;

use dualweave::ir::Placement;
use dualweave::plan::{Item, Pair, Plan, Ring, RingOf, Task};
use dualweave::units::Bytes;
use dualweave::verify::verify;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::plan_by_hand::all;
use crate::plan_edit::{remove, swap};
use crate::plan_run::{Ranks, run};

static PLANS: LazyLock<Vec<Plan>> = LazyLock::new(all);

/// Numbers that are likely to matter: small, at the edges, or anything.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 0_u32..6, 1 => Just(u32::MAX), 1 => Just(u32::MAX - 1), 1 => Just(1 << 31), 1 => any::<u32>()]
}

fn task() -> impl Strategy<Value = Task> {
    (0..12, number(), number(), number(), number()).prop_map(|(kind, a, b, c, d)| match kind {
        0 => Task::F(a, b),
        1 => Task::B(a, b),
        2 => Task::I(a, b),
        3 => Task::W(a, b),
        4 => Task::FB((a, b), (c, d)),
        5 => Task::SendAct(a, b, c),
        6 => Task::RecvAct(a, b, c),
        7 => Task::SendGrad(a, b, c),
        8 => Task::RecvGrad(a, b, c),
        9 => Task::ReduceGrads(a),
        10 => Task::Update(a),
        _ => Task::GatherParams(a),
    })
}

fn ring_of() -> impl Strategy<Value = RingOf> {
    (0..4, number()).prop_map(|(kind, a)| match kind {
        0 => RingOf::Inbox(a),
        1 => RingOf::Outbox(a),
        2 => RingOf::HandoffAct(a),
        _ => RingOf::HandoffGrad(a),
    })
}

/// A change of any kind to any part: most leave nonsense behind.
fn vandalise(plan: &mut Plan, kind: u32, at: [usize; 2], n: [u32; 3], task: Task, of: RingOf) {
    let big = u64::from(n[0]) << 32 | u64::from(n[1]);
    let rank = at[0] % plan.ranks.len().max(1);
    let Some(there) = plan.ranks.get_mut(rank) else { return };
    let item = at[1] % there.items.len().max(1);
    let stage = at[0] % plan.stages.len().max(1);
    let program = at[0] % plan.programs.len().max(1);
    match kind {
        0..4 => {
            if let Some(item) = there.items.get_mut(item) {
                item.0 = task;
            }
        }
        4 => there.items.insert(item, Item(task, n.to_vec(), vec![])),
        5 => there.items.truncate(item),
        6 => {
            if let Some(item) = there.items.get_mut(item) {
                item.1 = n[..at[0] % 3].to_vec();
            }
        }
        7 => there.rings.push(Ring { of, slots: n[0], bytes: Bytes(big), at: Bytes(u64::from(n[2])) }),
        8 => there.rings.retain(|ring| ring.of != of),
        9 => {
            for ring in &mut there.rings {
                (ring.slots, ring.bytes) = (n[0], Bytes(big));
            }
        }
        10 => plan.layout.ranks = n[0],
        11 => plan.layout.stages = n[0],
        12 => plan.layout.micro_batches = n[0],
        13 => {
            let placements = [Placement::Linear, Placement::Loop, Placement::V, Placement::Bidirectional];
            plan.layout.placement = placements[at[0] % 4];
        }
        14 => plan.pairs.push(Pair { f: n[0], b: n[1], program: n[2] }),
        15 => {
            if let Some(stage) = plan.stages.get_mut(stage) {
                (stage.f, stage.b, stage.i, stage.w) = (Some(n[0]), Some(n[1]), Some(n[2]), None);
            }
        }
        16 => {
            if let Some(stage) = plan.stages.get_mut(stage) {
                (stage.parameters, stage.exchange_buffer, stage.output) = (Bytes(big), Bytes(big), Bytes(big));
                for bytes in stage.held.f_to_w.values_mut() {
                    *bytes = Bytes(u64::MAX - big);
                }
            }
        }
        17 => plan.stages.truncate(stage),
        18 => plan.ranks.truncate(rank),
        19 => {
            if let Some(program) = plan.programs.get_mut(program)
                && let Some(op) = program.ops.get_mut(at[1] % 4)
            {
                (op.unit, op.sms, op.waits) = (n[0], n[1], n.to_vec());
            }
        }
        20 => {
            if let Some(program) = plan.programs.get_mut(program) {
                program.ops.truncate(at[1] % 4);
            }
        }
        21 => {
            if let Some(program) = plan.programs.get_mut(program)
                && let Some(op) = program.ops.pop()
            {
                program.ops.insert(0, op);
            }
        }
        22 => {
            there.arena = Bytes(big);
            there.exchange = Bytes(u64::from(n[2]));
            for item in &mut there.items {
                item.2 = vec![Bytes(big); at[1] % 4];
            }
        }
        23 => plan.machine.sms = n[0],
        24 => plan.machine.memory = Bytes(big),
        _ => plan.origin.tp = n[0],
    }
}

/// A place a few units higher or lower, or one that is no multiple of them.
fn shifted(place: u64, by: usize) -> u64 {
    match by % 9 {
        8 => place + 1,
        by => (place + 256 * by as u64).saturating_sub(4 * 256),
    }
}

/// A change of one thing that leaves the plan well-formed.
pub fn disturb(plan: &mut Plan, kind: u32, at: [usize; 3]) {
    let rank = at[0] % plan.ranks.len();
    let items = plan.ranks[rank].items.len();
    let (a, b) = (at[1] % items, at[2] % items);
    match kind {
        0 => remove(plan, rank, plan.ranks[rank].items[a].0),
        1 => swap(plan, rank, a, (a + 1) % items),
        2 => swap(plan, rank, a, b),
        3 => {
            let waits = &mut plan.ranks[rank].items[a].1;
            if !waits.is_empty() {
                waits.remove(at[2] % waits.len());
            }
        }
        4 => plan.ranks[rank].items[a.max(b)].1.extend((a != b).then_some(a.min(b) as u32)),
        5 => {
            let ring = at[1] % plan.ranks[rank].rings.len();
            let ring = &mut plan.ranks[rank].rings[ring];
            ring.slots = if at[2].is_multiple_of(2) { ring.slots + 1 } else { (ring.slots - 1).max(1) };
        }
        6 => {
            let places = plan.ranks[rank].items.iter_mut().flat_map(|item| &mut item.2);
            let mut places: Vec<&mut Bytes> = places.collect();
            let place = at[1] % places.len().max(1);
            if let Some(place) = places.get_mut(place) {
                place.0 = shifted(place.0, at[2]);
            }
        }
        7 => plan.ranks[rank].arena.0 = shifted(plan.ranks[rank].arena.0, at[2]),
        8 => {
            let rings = &mut plan.ranks[rank].rings;
            match at[1] % (rings.len() + 1) {
                ring if ring < rings.len() => rings[ring].at.0 = shifted(rings[ring].at.0, at[2]),
                _ => plan.ranks[rank].exchange.0 = shifted(plan.ranks[rank].exchange.0, at[2]),
            }
        }
        9 => {
            let ring = at[1] % plan.ranks[rank].rings.len();
            plan.ranks[rank].rings[ring].bytes.0 -= 1;
        }
        // A little more room, for changes that only need more memory.
        _ => plan.machine.memory.0 = plan.machine.memory.0.saturating_add((at[1] % 20) as u64),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn never_panics(
        base in 0..3_usize,
        changes in prop::collection::vec(
            (0..26_u32, any::<[usize; 2]>(), [number(), number(), number()], task(), ring_of()), 1..8),
    ) {
        let mut plan = PLANS[base].clone();
        for (kind, at, n, task, of) in changes {
            vandalise(&mut plan, kind, at, n, task, of);
        }
        let report = verify(&plan);
        prop_assert_eq!(report.is_safe(), report.violations.is_empty());
    }

    #[test]
    fn what_passes_runs(base in 0..3_usize, changes in prop::collection::vec((0..11_u32, any::<[usize; 3]>()), 0..3), seed: u64) {
        let mut plan = PLANS[base].clone();
        for (kind, at) in changes {
            disturb(&mut plan, kind, at);
        }
        if verify(&plan).is_safe() {
            for seed in [seed, !seed] {
                prop_assert_eq!(run(&plan, Ranks::Together, seed), Ok(()));
                prop_assert_eq!(run(&plan, Ranks::Apart, seed), Ok(()));
            }
        }
    }
}

/// The other way round: without any of its waits the verifier refuses a plan by hand, and, the ranks apart, some order of
/// events goes wrong.
#[test]
fn every_wait_is_needed() {
    for plan in PLANS.iter() {
        for rank in 0..plan.ranks.len() {
            for index in 0..plan.ranks[rank].items.len() {
                for wait in 0..plan.ranks[rank].items[index].1.len() {
                    let mut plan = plan.clone();
                    plan.ranks[rank].items[index].1.remove(wait);
                    let place = format!("{}, rank {rank}, item {index}, wait {wait}", plan.layout.placement);
                    assert!(!verify(&plan).is_safe(), "{place}");
                    assert!((0..200).any(|seed| run(&plan, Ranks::Apart, seed).is_err()), "{place}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    /// So it is with any small change (but of a slot's size, which a run does not see): the verifier refuses nothing that
    /// goes well in whatever order.
    #[test]
    fn what_is_refused_goes_wrong(base in 0..3_usize, kind in 0..9_u32, at: [usize; 3]) {
        let mut plan = PLANS[base].clone();
        disturb(&mut plan, kind, at);
        let goes_wrong = |seed| run(&plan, Ranks::Apart, seed).is_err() || run(&plan, Ranks::Together, seed).is_err();
        prop_assert_eq!(verify(&plan).is_safe(), !(0..100).any(goes_wrong));
    }
}
