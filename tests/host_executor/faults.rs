//! Plans that are wrong, and GPUs that fail: each time the step ends with an error that says where, and never hangs.

use std::sync::LazyLock;

use crate::cases::{Case, Heads, Kind, by_name, close, exact, executor};
use crate::plan_edit::{at, insert, remove, replace, swap};
use dualweave::ir::{Component, Phase};
use dualweave::job::training::ScheduleKind;
use dualweave::plan::{Plan, RingOf, Task};
use dualweave::runtime::host::adamw::AdamW;
use dualweave::runtime::host::executor::{Executor, Gpu, Order};
use dualweave::runtime::host::parameters::{Parameters as _, Role};
use dualweave::runtime::host::{Matrix, Shape};
use dualweave::verify::verify;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn case(schedule: ScheduleKind) -> Case {
    let kind = Kind { heads: Heads::Grouped, modules: 1, tied: true, dense_first: true, shared: true, balanced: false };
    Case {
        schedule,
        placement: None,
        pp: 2,
        ep: 2,
        dp: 2,
        micro_batches: 4,
        sequences: 1,
        kind,
        rewritten: false,
        sharded: true,
        seed: 5,
    }
}

static ONE_F_ONE_B: LazyLock<Plan> = LazyLock::new(|| case(ScheduleKind::OneFOneB).plan());
static DUALPIPE: LazyLock<Plan> = LazyLock::new(|| case(ScheduleKind::DualPipe).plan());

/// One step of a plan, whose error is given in words.
fn step(plan: &Plan, order: Order) -> Result<Executor<f64>, String> {
    let mut executor = executor(plan, AdamW::default());
    let data = case(ScheduleKind::OneFOneB).data(&exact(plan), 0);
    executor.step(&data, order).map_err(|error| error.to_string())?;
    Ok(executor)
}

/// What a changed plan ends with.
fn error(plan: &Plan, change: impl Fn(&mut Plan)) -> String {
    let mut changed = plan.clone();
    change(&mut changed);
    assert_ne!(&changed, plan);
    step(&changed, Order::List).err().expect("an error")
}

fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn a_gpu_that_panics_ends_all_others() {
    let plan = &*ONE_F_ONE_B;
    let mut executor = executor(plan, AdamW::default());
    let held = executor.parameters_mut(Gpu { rank: 1, replica: 1 }, 1).expect("its stage");
    let first = held.tensors_mut("").into_iter().find(|(_, tensor)| tensor.role == Role::Weight);
    first.expect("a matrix").1.values = Matrix::zeros(1, 1);
    let data = case(ScheduleKind::OneFOneB).data(&exact(plan), 0);
    let error = executor.step(&data, Order::List).expect_err("a matrix of another shape").to_string();
    says(&error, &["rank 1, replica 1", "F(1,0)", "Attention F of unit 0", "panicked"]);
}

#[test]
fn deadlocks_say_who_waits_for_what() {
    let plan = &*ONE_F_ONE_B;
    let lost = error(plan, |plan| remove(plan, 0, Task::SendAct(0, 3, 1)));
    says(&lost, &["deadlock", "rank 1, replica 0: ", "RecvAct(0,3) from rank 0 waits for rank 0, replica 0"]);
    let unmet = error(plan, |plan| remove(plan, 1, Task::ReduceGrads(1)));
    says(&unmet, &["deadlock", "rank 0", "Update(0) waits for the gradients of all stages"]);
    let ever = error(plan, |plan| {
        let index = at(plan, 1, Task::F(1, 0));
        plan.ranks[1].items[index].1.push(index as u32 + 1);
    });
    says(&ever, &["deadlock", "F(1,0) waits for item"]);
    // Every rank waits for a collective that the other comes to later.
    let crossed = error(&DUALPIPE, |plan| {
        let reduces = [Task::ReduceGrads(0), Task::ReduceGrads(1)];
        let mut order = reduces;
        order.sort_by_key(|&task| at(plan, 0, task));
        reduces.iter().for_each(|&task| remove(plan, 0, task));
        let last = plan.ranks[0].items.iter().rposition(|item| item.0.action().is_some()).expect("some action");
        order.iter().for_each(|&task| insert(plan, 0, last + 1, task));
        reduces.iter().for_each(|&task| {
            let index = at(plan, 0, task);
            plan.ranks[0].items[index].1 = vec![last as u32];
        });
    });
    says(
        &crossed,
        &["deadlock", "ReduceGrads(0) waits for rank 1, replica", "ReduceGrads(1) waits for rank 0, replica"],
    );
}

#[test]
fn what_a_plan_forgets_is_missed() {
    let plan = &*ONE_F_ONE_B;
    let unreceived = error(plan, |plan| remove(plan, 1, Task::RecvAct(0, 0, 0)));
    says(
        &unreceived,
        &["rank 1", "F(1,0): Attention F of unit 0", "reads the activation of the stage before, which is not there"],
    );
    let unreduced = error(plan, |plan| remove(plan, 0, Task::B(0, 3)));
    says(&unreduced, &["ReduceGrads(0): comes before W(0,"]);
    let twice = error(plan, |plan| replace(plan, 0, Task::F(0, 1), Task::F(0, 0)));
    says(&twice, &["rank 0", "F(0,0): runs a second time"]);
    let elsewhere = error(plan, |plan| replace(plan, 0, Task::F(0, 1), Task::F(1, 1)));
    says(&elsewhere, &["F(1,1): does not belong on this rank"]);
    let swapped = error(plan, |plan| {
        let [a, b] = [Task::RecvAct(0, 0, 0), Task::RecvAct(0, 1, 0)].map(|task| at(plan, 1, task));
        (plan.ranks[1].items[a].0, plan.ranks[1].items[b].0) = (Task::RecvAct(0, 1, 0), Task::RecvAct(0, 0, 0));
    });
    says(&swapped, &["RecvAct(0,1) from rank 0: meets the activation of F(0,0), which rank 0, replica"]);
    let never = error(plan, |plan| remove(plan, 1, Task::Update(1)));
    says(&never, &["the step ends without Update(1)"]);
    let unsent = error(plan, |plan| insert(plan, 1, 0, Task::SendGrad(1, 0, 0)));
    says(&unsent, &["SendGrad(1,0) to rank 0: reads the gradient of I(1,0)", "holds nothing yet"]);
    let nowhere = error(plan, |plan| replace(plan, 0, Task::SendAct(0, 0, 1), Task::SendAct(0, 0, 9)));
    says(&nowhere, &["F(0,0): needs a slot of Outbox(9), which the rank has not"]);
}

#[test]
fn slots_are_not_overwritten() {
    let few = error(&ONE_F_ONE_B, |plan| {
        plan.ranks[0].rings.iter_mut().for_each(|ring| ring.slots = 1);
        // Nothing waits for a slot, and messages leave last of all.
        let sends = plan.ranks[0].items.iter_mut().filter(|item| matches!(item.0, Task::SendAct(..)));
        sends.for_each(|item| item.1.clear());
        let first = at(plan, 0, Task::F(0, 1)) as u32;
        let send = at(plan, 0, Task::SendAct(0, 0, 1));
        plan.ranks[0].items[send].1 = vec![first];
    });
    says(
        &few,
        &[
            "rank 0",
            "F(0,1): writes the activation of F(0,1) into a slot of Outbox(1) that still holds the activation of F(0,0)",
        ],
    );
    let none = error(&ONE_F_ONE_B, |plan| plan.ranks[0].rings.clear());
    says(&none, &["F(0,0): needs a slot of Outbox(1), which the rank has not"]);
}

/// What lies where something else is still needed is missed when that is read, at the latest; and nothing lies where it cannot.
#[test]
fn blocks_are_not_overwritten() {
    let plan = &*ONE_F_ONE_B;
    let [first, second] = [Task::F(0, 0), Task::F(0, 1)].map(|task| at(plan, 0, task));
    let place = plan.ranks[0].items[first].2[0];
    let onto = error(plan, |plan| plan.ranks[0].items[second].2[0] = place);
    says(&onto, &["rank 0, replica", "B(0,0): needs f_to_", "of chunk (0,0)", "of chunk (0,1) has overwritten"]);
    let exchange = error(plan, |plan| plan.ranks[0].exchange = place);
    says(&exchange, &["F(0,0): needs f_to_", "of which the exchange buffer of chunk (0,0) has overwritten"]);
    let ring = error(plan, |plan| {
        plan.ranks[0].rings.iter_mut().filter(|ring| ring.of == RingOf::Inbox(1)).for_each(|ring| ring.at = place);
    });
    says(&ring, &["B(0,0): needs f_to_", "the gradient of I(1,0) in slot 0 of Inbox(1) has overwritten"]);
    let outbox = error(plan, |plan| {
        plan.ranks[0].rings.iter_mut().filter(|ring| ring.of == RingOf::Outbox(1)).for_each(|ring| ring.at = place);
    });
    says(&outbox, &["F(0,0): needs f_to_", "the activation of F(0,0) in slot 0 of Outbox(1) has overwritten"]);
    let outside = error(plan, |plan| plan.ranks[0].arena.0 = place.0);
    says(&outside, &["F(0,0): writes f_to_", &format!("but the arena has {}", place.0)]);
    let between = error(plan, |plan| plan.ranks[0].items[first].2[0].0 += 128);
    says(&between, &["F(0,0): writes f_to_", "no multiple of 256"]);
    let fewer = error(plan, |plan| _ = plan.ranks[0].items[first].2.pop());
    says(&fewer, &["F(0,0): lists", "places, but takes f_to_"]);
    let small = error(plan, |plan| plan.ranks[1].rings.iter_mut().for_each(|ring| ring.bytes.0 -= 1));
    says(
        &small,
        &["rank 1", "RecvAct(0,0) from rank 0: writes the activation of F(0,0), of", "into a slot of Inbox(0) of"],
    );
}

/// Takes ops out of all programs.
fn without(plan: &mut Plan, component: Component, phase: Phase) {
    for program in &mut plan.programs {
        while let Some(at) = program.ops.iter().position(|op| (op.component, op.phase) == (component, phase)) {
            program.ops.remove(at);
            for op in &mut program.ops {
                op.waits.retain(|&wait| wait != at as u32);
                op.waits.iter_mut().filter(|wait| **wait > at as u32).for_each(|wait| *wait -= 1);
            }
        }
    }
}

#[test]
fn an_op_says_what_it_misses() {
    for (component, phase, parts) in [
        (Component::Attention, Phase::F, &["Mlp F of unit", "reads the residual stream behind the attention"][..]),
        (Component::Dispatch, Phase::F, &["Mlp F of unit", "reads the rows that dispatch brings"]),
        (Component::Combine, Phase::F, &["reads the rows that combine brings back"]),
        (Component::Combine, Phase::I, &["Mlp I of unit", "reads the gradients that combine's backward brings"]),
        (
            Component::Dispatch,
            Phase::I,
            &["Attention I of unit", "reads the gradients that dispatch's backward brings back"],
        ),
        (Component::Mlp, Phase::I, &["reads what the experts' backward hands on"]),
        (Component::Attention, Phase::I, &["reads"]),
        (
            Component::Attention,
            Phase::W,
            &["is the end of the chunk, but nothing has read what the attention's backward hands on"],
        ),
        (Component::Mlp, Phase::W, &["is the end of the chunk, but nothing has read what the"]),
    ] {
        let said = error(&ONE_F_ONE_B, |plan| without(plan, component, phase));
        says(&said, parts);
        says(&said, &["rank", "replica", "item"]);
    }
}

#[test]
fn plans_that_cannot_be_run_are_refused() {
    let refused = |change: &dyn Fn(&mut Plan)| {
        let mut plan = ONE_F_ONE_B.clone();
        change(&mut plan);
        let shape = Shape::of_plan(&plan);
        Executor::<f32>::new(plan, shape, AdamW::default(), 0).err().expect("refused").to_string()
    };
    says(&refused(&|plan| plan.origin.tp = 2), &["tensor parallelism over 2 GPUs"]);
    says(&refused(&|plan| plan.origin.ep = 3), &["`ep` must divide `dp` and the experts"]);
    says(&refused(&|plan| plan.origin.dp = 0), &["`ep` must divide"]);
    says(&refused(&|plan| plan.stages.swap(0, 1)), &["stages together are not its model"]);
    says(&refused(&|plan| plan.model.layers += 1), &["stages together are not its model"]);
    says(&refused(&|plan| plan.layout.stages = 5), &["do not fit its layout"]);
    says(&refused(&|plan| plan.layout.ranks = 0), &["do not fit its layout"]);
    says(&refused(&|plan| plan.origin.sequence = 0), &["have 0 tokens"]);
    says(&refused(&|plan| plan.model.hidden = 0), &["hidden"]);
    says(&refused(&|plan| (plan.model.hidden, plan.model.vocabulary) = (1 << 14, 1 << 23)), &["far too many"]);
    // Nothing is allocated for replicas that only a number in the file speaks of.
    says(&refused(&|plan| plan.origin.dp = 1 << 20), &["for 2097152 GPUs", "at most 4096"]);
    says(&refused(&|plan| (plan.origin.dp, plan.model.hidden) = (2048, 4096)), &["far too many"]);
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(37), failure_persistence: None, cases: 200, ..ProptestConfig::default() })]
    /// Plans changed at random never hang or bring the process down; what the verifier passes runs, to the same numbers.
    #[test]
    fn changed_plans_end(
        changes in prop::collection::vec((any::<bool>(), 0..4_u32, any::<[prop::sample::Index; 3]>()), 1..3),
        dualpipe in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let original = if dualpipe { &*DUALPIPE } else { &*ONE_F_ONE_B };
        let mut plan = original.clone();
        for (first, kind, [a, b, c]) in changes {
            let rank = usize::from(first);
            let items = plan.ranks[rank].items.len();
            let (a, b) = (a.index(items), b.index(items));
            let task = plan.ranks[rank].items[a].0;
            match kind {
                0 => remove(&mut plan, rank, task),
                1 => swap(&mut plan, rank, a, b),
                2 => plan.ranks[rank].items[a].1.clear(),
                _ => {
                    let rings = &mut plan.ranks[rank].rings;
                    let ring = c.index(rings.len());
                    rings[ring].slots = 1;
                }
            }
        }
        let ended = step(&plan, Order::Random(seed));
        if verify(&plan).is_safe() {
            let ended = ended.map_err(TestCaseError::fail)?;
            let expected = step(original, Order::List).map_err(TestCaseError::fail)?;
            let (ours, theirs) = (by_name(ended.gradients()), by_name(expected.gradients()));
            close("gradient", &ours.map_err(TestCaseError::fail)?, &theirs.map_err(TestCaseError::fail)?)
                .map_err(TestCaseError::fail)?;
        }
    }
}
