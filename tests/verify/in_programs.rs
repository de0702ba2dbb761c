//! Rules about chunk programs: `program-content`, `program-order`, `sms`.

use dualweave::ir::{Component, Phase, ProgramOp, Step, Tokens, Unit, Work};
use dualweave::job::model::Layers;
use dualweave::plan::Plan;
use dualweave::units::Bytes;
use dualweave::verify::{Rule, verify};

use crate::finds;
use crate::plan_by_hand::{all, linear, v};

/// Takes an op out of a program, and out of the lists of those that wait for it.
fn drop_op(plan: &mut Plan, program: usize, gone: u32) {
    let ops = &mut plan.programs[program].ops;
    ops.remove(gone as usize);
    for op in ops {
        op.waits.retain(|&wait| wait != gone);
        for wait in &mut op.waits {
            *wait -= u32::from(*wait > gone);
        }
    }
}

fn op(component: Component, phase: Phase, unit: u32, exchange: bool) -> ProgramOp {
    let work = match exchange {
        true => Work::Exchange { nvlink: Bytes(1), network: Bytes(1), uplink: Bytes::ZERO },
        false => Work::Compute(vec![]),
    };
    ProgramOp { component, phase, unit, step: Step::Main, tokens: Tokens::ALL, work, sms: 1, waits: vec![] }
}

#[test]
fn missing_ops() {
    let mut plan = linear();
    drop_op(&mut plan, 0, 2);
    finds(
        &plan,
        &[
            "rank 0, item 0, F(0,0), program 0 (F of stage 0): has 0 kernel ops for Mlp F of unit 1 (dense 0) where it needs 1 [program-content]",
        ],
    );
    // The weight gradient of the head, in B.
    let mut plan = linear();
    drop_op(&mut plan, 5, 2);
    finds(
        &plan,
        &[
            "rank 1, item 2, B(1,0), program 5 (B of stage 1): has 0 kernel ops for Head W of unit 1 (head) where it needs 1 [program-content]",
        ],
    );
    // The backward's all-to-all of a pair.
    let mut plan = v();
    drop_op(&mut plan, 12, 8);
    finds(
        &plan,
        &[
            "rank 0, item 7, FB(3,1;3,0), program 12 (F of stage 3 beside B of stage 3): has 0 exchange ops for Dispatch I of unit 0 (moe 3) where it needs 1 [program-content]",
        ],
    );
}

#[test]
fn doubled_ops() {
    let mut plan = linear();
    let again = plan.programs[3].ops[2].clone();
    plan.programs[3].ops.push(again);
    finds(
        &plan,
        &[
            "rank 0, item 16, W(0,2), program 3 (W of stage 0): has 2 kernel ops for Embedding W of unit 0 (embedding) where it needs 1 [program-content]",
        ],
    );
}

#[test]
fn foreign_ops() {
    // The embedding has no backward for the input; it may gather a gradient, but not from one GPU.
    let mut plan = linear();
    plan.programs[2].ops.push(op(Component::Embedding, Phase::I, 0, false));
    finds(
        &plan,
        &[
            "rank 0, item 13, I(0,2), program 2, op 2, Embedding I of unit 0: does not belong in I of stage 0 [program-content]",
        ],
    );
    // An all-to-all has no weights.
    let mut plan = linear();
    plan.programs[7].ops.push(op(Component::Dispatch, Phase::W, 0, true));
    finds(&plan, &["program 7, op 3, Dispatch W of unit 0: does not belong in W of stage 1 [program-content]"]);
    // A forward op in a backward, and a unit that the stage does not have.
    let mut plan = linear();
    plan.programs[6].ops.push(op(Component::Attention, Phase::F, 0, false));
    plan.programs[6].ops.push(op(Component::Mlp, Phase::I, u32::MAX, false));
    finds(
        &plan,
        &[
            "program 6, op 5, Attention F of unit 0: does not belong in I of stage 1 [program-content]",
            "program 6, op 6, Mlp I of unit 4294967295: does not belong in I of stage 1 [program-content]",
        ],
    );
}

#[test]
fn a_program_that_another_stage_calls_for() {
    let mut plan = linear();
    plan.stages[0].f = Some(4);
    finds(
        &plan,
        &[
            "rank 0, item 0, F(0,0), program 4, op 0, Attention F of unit 0: does not belong in F of stage 0 [program-content]",
            "rank 0, item 0, F(0,0), program 4, op 1, Dispatch F of unit 0: does not belong in F of stage 0 [program-content]",
            "rank 0, item 0, F(0,0), program 4, op 2, Mlp F of unit 0: does not belong in F of stage 0 [program-content]",
            "rank 0, item 0, F(0,0), program 4, op 3, Combine F of unit 0: does not belong in F of stage 0 [program-content]",
            "rank 0, item 0, F(0,0), program 4, op 4, Head F of unit 1: does not belong in F of stage 0 [program-content]",
            "rank 0, item 0, F(0,0), program 4 (F of stage 0): has 0 kernel ops for Embedding F of unit 0 (embedding) where it needs 1 [program-content]",
            "rank 0, item 0, F(0,0), program 4 (F of stage 0): has 0 kernel ops for Attention F of unit 1 (dense 0) where it needs 1 [program-content]",
            "rank 0, item 0, F(0,0), program 4 (F of stage 0): has 0 kernel ops for Mlp F of unit 1 (dense 0) where it needs 1 [program-content]",
        ],
    );
}

#[test]
fn exchanges_of_cut_weights_belong_to_tensor_parallel_plans() {
    let mut plan = linear();
    let mut exchange = op(Component::Mlp, Phase::F, 1, true);
    exchange.waits = vec![2];
    plan.programs[0].ops.push(exchange);
    plan.origin.tp = 2;
    finds(&plan, &[]);
    plan.origin.tp = 1;
    finds(
        &plan,
        &[
            "rank 0, item 0, F(0,0), program 0 (F of stage 0): has 1 exchange ops for Mlp F of unit 1 (dense 0) where it needs 0 [program-content]",
        ],
    );
}

#[test]
fn far_too_many_ops() {
    let mut plan = linear();
    plan.programs[0].ops = vec![plan.programs[0].ops[0].clone(); 100_000];
    finds(
        &plan,
        &["rank 0, item 0, F(0,0), program 0 (F of stage 0): has 100000 ops for 3 components [program-content]"],
    );
}

#[test]
fn ops_before_what_they_read() {
    // The experts before the tokens have come.
    let mut plan = linear();
    plan.programs[4].ops[2].waits.clear();
    finds(
        &plan,
        &[
            "rank 1, item 1, F(1,0), program 4, op 2, Mlp F of unit 0: may start before op 1 (Dispatch F of unit 0), whose result it reads, has ended [program-order]",
        ],
    );
    // The all-to-all before its tokens.
    let mut plan = linear();
    plan.programs[4].ops[1].waits.clear();
    finds(
        &plan,
        &[
            "rank 1, item 1, F(1,0), program 4, op 1, Dispatch F of unit 0: may start before op 0 (Attention F of unit 0), whose result it reads, has ended [program-order]",
        ],
    );
    // A weight gradient before its output gradient. All on one stream: launched too early.
    let mut plan = linear();
    plan.programs[1].ops.swap(0, 1);
    finds(
        &plan,
        &[
            "rank 0, item 5, B(0,0), program 1, op 0, Mlp W of unit 1: may start before op 1 (Mlp I of unit 1), whose result it reads, has ended [program-order]",
        ],
    );
    // The embedding's weight gradient needs the last of the backward.
    let mut plan = linear();
    plan.programs[1].ops.swap(2, 4);
    finds(
        &plan,
        &[
            "rank 0, item 5, B(0,0), program 1, op 2, Embedding W of unit 0: may start before op 4 (Attention I of unit 1), whose result it reads, has ended [program-order]",
            "rank 0, item 5, B(0,0), program 1, op 3, Attention W of unit 1: may start before op 4 (Attention I of unit 1), whose result it reads, has ended [program-order]",
        ],
    );
    // A backward in model order.
    let mut plan = linear();
    plan.programs[2].ops.swap(0, 1);
    finds(
        &plan,
        &[
            "rank 0, item 13, I(0,2), program 2, op 0, Attention I of unit 1: may start before op 1 (Mlp I of unit 1), whose result it reads, has ended [program-order]",
        ],
    );
    // In a pair, a wait that the other chunk's op stands in for is not enough.
    let mut plan = v();
    plan.programs[12].ops[6].waits = vec![2];
    finds(
        &plan,
        &[
            "rank 0, item 7, FB(3,1;3,0), program 12, op 6, Mlp I of unit 0: may start before op 3 (Combine I of unit 0), whose result it reads, has ended [program-order]",
        ],
    );
}

#[test]
fn sm_budgets() {
    let mut plan = linear();
    plan.programs[4].ops[0].sms = 0;
    finds(
        &plan,
        &["rank 1, item 1, F(1,0), program 4, op 0, Attention F of unit 0: may use 0 SMs of a GPU that has 132 [sms]"],
    );
    let mut plan = linear();
    plan.programs[4].ops[0].sms = 133;
    finds(
        &plan,
        &[
            "rank 1, item 1, F(1,0), program 4, op 0, Attention F of unit 0: may use 133 SMs of a GPU that has 132 [sms]",
        ],
    );
    // The attention of a forward may have the whole GPU: nothing runs beside it.
    let mut plan = linear();
    plan.programs[4].ops[0].sms = 132;
    finds(&plan, &[]);
    // The head's weight gradient hides an all-to-all of 20 SMs.
    let mut plan = linear();
    plan.programs[5].ops[2].sms = 113;
    finds(
        &plan,
        &[
            "rank 1, item 2, B(1,0), program 5, op 2, Head W of unit 1: has 113 SMs and may run beside op 1 (Combine I of unit 0) with 20: 133 SMs on a GPU that has 132 [sms]",
        ],
    );
    // In the pair, the backward's combine (op 3) runs beside what comes after the head's I and before the MLP's.
    let mut plan = v();
    plan.programs[12].ops[3].sms = 21;
    finds(
        &plan,
        &[
            "rank 0, item 7, FB(3,1;3,0), program 12, op 4, Head W of unit 1: has 112 SMs and may run beside op 3 (Combine I of unit 0) with 21: 133 SMs on a GPU that has 132 [sms]",
            "rank 0, item 7, FB(3,1;3,0), program 12, op 5, Mlp F of unit 0: has 112 SMs and may run beside op 3 (Combine I of unit 0) with 21: 133 SMs on a GPU that has 132 [sms]",
        ],
    );
}

/// The pairs that may overlap, by brute force over all paths, for every program of the plans by hand.
#[test]
fn sms_agree_with_brute_force() {
    for plan in all() {
        for number in 0..plan.programs.len() {
            let ops = &plan.programs[number].ops;
            // precedes[a][b]: there is a path of stream order and waits from a to b.
            let count = ops.len();
            let mut precedes = vec![vec![false; count]; count];
            for b in 0..count {
                for a in 0..b {
                    precedes[a][b] = ops[a].stream() == ops[b].stream() || ops[b].waits.contains(&(a as u32));
                }
            }
            for k in 0..count {
                for a in 0..count {
                    for b in 0..count {
                        precedes[a][b] |= precedes[a][k] && precedes[k][b];
                    }
                }
            }
            // One kernel and one exchange take all SMs, all others next to none: a violation if and only if they overlap.
            for a in 0..count {
                for b in 0..count {
                    if ops[a].work.is_exchange() || !ops[b].work.is_exchange() {
                        continue;
                    }
                    let mut plan = plan.clone();
                    for op in &mut plan.programs[number].ops {
                        op.sms = 1;
                    }
                    plan.programs[number].ops[a].sms = 70;
                    plan.programs[number].ops[b].sms = 70;
                    let report = verify(&plan);
                    let overlap = !precedes[a][b] && !precedes[b][a];
                    assert_eq!(report.is_safe(), !overlap, "program {number}, ops {a} and {b}");
                }
            }
        }
    }
}

#[test]
fn layers_that_are_lost_or_repeated() {
    let mut plan = linear();
    plan.stages[1].units[0] = Unit::Moe(2);
    finds(&plan, &["rank 1, stage 1: has unit `moe 2` where `moe 1` of the model should be [completeness]"]);
    let mut plan = linear();
    plan.stages[1].units[0] = Unit::Moe(0);
    finds(&plan, &["rank 1, stage 1: has unit `moe 0` where `moe 1` of the model should be [completeness]"]);
    let mut plan = linear();
    plan.stages[1].units[0] = Unit::Mtp(1);
    finds(&plan, &["rank 1, stage 1: has unit `mtp 1` where `mtp 0` of the model should be [completeness]"]);
    let mut plan = linear();
    plan.stages[0].units[0] = Unit::Head;
    let report = verify(&plan);
    let found = report.violations.iter().find(|violation| violation.rule == Rule::Completeness);
    assert_eq!(
        found.map(ToString::to_string).as_deref(),
        Some("rank 0, stage 0: has unit `head` where `embedding` of the model should be [completeness]")
    );
}

/// Of which kind each layer is, and how many there are, the plan's model says.
#[test]
fn stages_of_another_model() {
    let mut plan = linear();
    plan.model.layers = 3;
    plan.model.mtp_layers = 1;
    finds(
        &plan,
        &[
            "the model: has 3 layers, but the stages have 2 [completeness]",
            "the model: has 1 MTP modules, but the stages have 0 [completeness]",
        ],
    );
    for layers in [Layers::All, Layers::From(0), Layers::Only(vec![0, 1])] {
        let mut plan = linear();
        plan.model.moe.as_mut().expect("experts").layers = layers;
        finds(&plan, &["rank 0, stage 0: has unit `dense 0`, but that layer of the model has experts [completeness]"]);
    }
    let mut plan = linear();
    plan.model.moe.as_mut().expect("experts").layers = Layers::From(1);
    finds(&plan, &[]);
    plan.model.moe = None;
    finds(&plan, &["rank 1, stage 1: has unit `moe 1`, but that layer of the model has none [completeness]"]);
}

/// The name of an MTP module does not say whether it has experts: it has if the model's last layer has.
#[test]
fn modules_with_experts_and_without() {
    let mut plan = linear();
    plan.stages[1].units[0] = Unit::Mtp(0);
    (plan.model.layers, plan.model.mtp_layers) = (1, 1);
    let mut with_experts = plan.clone();
    with_experts.model.moe.as_mut().expect("experts").layers = Layers::All;
    let dense_0 = "rank 0, stage 0: has unit `dense 0`, but that layer of the model has experts [completeness]";
    finds(&with_experts, &[dense_0]);
    let exchange =
        |plan: &Plan, program: usize| plan.programs[program].ops.iter().rposition(|op| op.work.is_exchange());
    for program in [4, 5, 6] {
        while let Some(gone) = exchange(&plan, program) {
            assert!(verify(&plan).violations.iter().any(|violation| violation.rule == Rule::ProgramContent));
            // Attention and MLP are left, on one stream and in order.
            drop_op(&mut plan, program, gone as u32);
        }
    }
    finds(&plan, &[]);
    plan.model = with_experts.model;
    assert!(verify(&plan).violations.iter().any(|violation| violation.rule == Rule::ProgramContent));
}

/// One expert-parallel GPU has all experts: nothing is dispatched.
#[test]
fn experts_that_are_all_there_are_sent_nothing() {
    let mut plan = linear();
    plan.origin.ep = 1;
    let violations = verify(&plan).violations;
    assert!(!violations.is_empty());
    for violation in violations {
        assert_eq!(violation.rule, Rule::ProgramContent);
        assert!(violation.message.contains("does not belong"), "{violation}");
    }
}
