//! Programs whose ops are finer than components: parts of the tokens, the shared expert by itself, what is computed again,
//! payloads that are quantised or packed, and copy engines.

use dualweave::ir::{Component, Phase, ProgramOp, Step, Tokens, Work};
use dualweave::plan::Plan;
use dualweave::units::Bytes;
use dualweave::verify::verify;

use crate::finds;
use crate::plan_by_hand::v;
use Component::{Attention, Combine, Dispatch, Head, Mlp};
use Phase::{F, I, W};

fn op(component: Component, phase: Phase, unit: u32, step: Step, tokens: (u32, u32), waits: &[u32]) -> ProgramOp {
    let exchange = matches!(component, Dispatch | Combine) && matches!(step, Step::Main | Step::Again);
    let work = match exchange {
        true => Work::Exchange { nvlink: Bytes(50), network: Bytes(50), uplink: Bytes::ZERO },
        false => Work::Compute(vec![]),
    };
    let tokens = Tokens { part: tokens.0, parts: tokens.1 };
    ProgramOp { component, phase, unit, step, tokens, work, sms: 1, waits: waits.to_vec() }
}

const ALL: (u32, u32) = (0, 1);
const HALVES: [(u32, u32); 2] = [(0, 2), (1, 2)];

/// F of a layer with experts and the head: the shared expert beside the exchanges, the chain in two halves of the tokens,
/// the second half quantised in front.
fn forward() -> Vec<ProgramOp> {
    let [first, second] = HALVES;
    vec![
        op(Attention, F, 0, Step::Main, ALL, &[]),
        op(Dispatch, F, 0, Step::Main, first, &[0]),
        op(Dispatch, F, 0, Step::Quantise, second, &[]),
        op(Dispatch, F, 0, Step::Main, second, &[2]),
        op(Mlp, F, 0, Step::Shared, ALL, &[]),
        op(Mlp, F, 0, Step::Main, first, &[1]),
        op(Combine, F, 0, Step::Main, first, &[5]),
        op(Mlp, F, 0, Step::Main, second, &[3]),
        op(Combine, F, 0, Step::Main, second, &[7]),
        op(Head, F, 1, Step::Main, ALL, &[8]),
    ]
}

/// I of the same: what F did not keep is computed again beside the first exchange, and a copy engine brings the last.
fn backward() -> Vec<ProgramOp> {
    let mut ops = vec![
        op(Head, I, 1, Step::Main, ALL, &[]),
        op(Combine, I, 0, Step::Main, ALL, &[0]),
        op(Mlp, I, 0, Step::Again, ALL, &[]),
        op(Mlp, I, 0, Step::Shared, ALL, &[]),
        op(Mlp, I, 0, Step::Main, ALL, &[1]),
        op(Dispatch, I, 0, Step::Pack, ALL, &[]),
        op(Dispatch, I, 0, Step::Main, ALL, &[5]),
        op(Attention, I, 0, Step::Again, ALL, &[]),
        op(Attention, I, 0, Step::Main, ALL, &[6]),
    ];
    ops[6].work = Work::Copy { nvlink: Bytes(100) };
    ops[6].sms = 0;
    ops
}

fn weights() -> Vec<ProgramOp> {
    let [first, second] = HALVES;
    vec![
        op(Head, W, 1, Step::Main, ALL, &[]),
        op(Mlp, W, 0, Step::Shared, ALL, &[]),
        op(Mlp, W, 0, Step::Main, first, &[]),
        op(Mlp, W, 0, Step::Main, second, &[]),
        op(Attention, W, 0, Step::Main, ALL, &[]),
    ]
}

/// Programs of F, I and W of the stage with experts.
fn programs(plan: &Plan) -> [usize; 3] {
    let stage = &plan.stages[3];
    [stage.f, stage.i, stage.w].map(|program| program.expect("all three") as usize)
}

/// The plan with these programs for the stage with experts.
fn with(forward: Vec<ProgramOp>, backward: Vec<ProgramOp>, weights: Vec<ProgramOp>) -> Plan {
    let mut plan = v();
    let numbers = programs(&plan);
    for (number, ops) in numbers.into_iter().zip([forward, backward, weights]) {
        plan.programs[number].ops = ops;
    }
    plan
}

#[test]
fn finer_ops_are_safe() {
    let plan = with(forward(), backward(), weights());
    let report = verify(&plan);
    assert!(report.is_safe(), "{:#?}", report.violations);
    let again = Plan::from_ron("plan.ron", &plan.to_ron()).expect("it reads what it wrote");
    assert_eq!(again, plan);
}

/// Breaks the programs; what is found ends in these words.
#[track_caller]
fn broken(change: impl Fn(&mut Vec<ProgramOp>, &mut Vec<ProgramOp>, &mut Vec<ProgramOp>), expected: &[&str]) {
    let (mut f, mut i, mut w) = (forward(), backward(), weights());
    change(&mut f, &mut i, &mut w);
    let plan = with(f, i, w);
    let found: Vec<String> = verify(&plan).violations.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.ends_with(expected), "{found}\ndoes not end with\n{expected}");
    }
}

#[test]
fn tokens_are_covered_once() {
    broken(
        |f, _, _| f[7].tokens = Tokens { part: 0, parts: 2 },
        &[
            "does not run every token exactly once in the kernel ops for Mlp F of unit 0 (moe 3) [program-content]",
            "may start before op 7 (Mlp F, tokens 1/2 of unit 0), whose result it reads, has ended [program-order]",
        ],
    );
    broken(
        |f, _, _| f[3].tokens = Tokens { part: 1, parts: 3 },
        &[
            "does not run every token exactly once in the exchange ops for Dispatch F of unit 0 (moe 3) [program-content]",
            "may start before op 3 (Dispatch F, tokens 2/3 of unit 0), whose result it reads, has ended [program-order]",
        ],
    );
    broken(
        |f, _, _| f[4].tokens = Tokens { part: 0, parts: 2 },
        &["does not run every token exactly once in the Shared ops for Mlp F of unit 0 (moe 3) [program-content]"],
    );
    let mut plan = with(forward(), backward(), weights());
    let number = programs(&plan)[0];
    plan.programs[number].ops[1].tokens = Tokens { part: 2, parts: 2 };
    finds(
        &plan,
        &[
            "rank 0, item 5, F(3,0), program 4, op 1, Dispatch F, tokens 3/2 of unit 0: works on part 2 of 2; parts count from 0, up to 16 [well-formed]",
        ],
    );
}

#[test]
fn parts_wait_for_their_own_tokens() {
    // The second half's experts wait for the first half's tokens only.
    broken(
        |f, _, _| f[7].waits = vec![],
        &["may start before op 3 (Dispatch F, tokens 2/2 of unit 0), whose result it reads, has ended [program-order]"],
    );
    // What is not quantised yet is sent.
    broken(
        |f, _, _| f[3].waits = vec![0],
        &[
            "may start before op 2 (Dispatch F (quantise), tokens 2/2 of unit 0), whose result it reads, has ended [program-order]",
        ],
    );
}

#[test]
fn steps_are_in_order() {
    // The shared expert before the attention whose output it reads.
    broken(
        |f, _, _| {
            *f = vec![
                op(Mlp, F, 0, Step::Shared, ALL, &[]),
                op(Attention, F, 0, Step::Main, ALL, &[]),
                op(Dispatch, F, 0, Step::Main, ALL, &[1]),
                op(Mlp, F, 0, Step::Main, ALL, &[2]),
                op(Combine, F, 0, Step::Main, ALL, &[3]),
                op(Head, F, 1, Step::Main, ALL, &[4]),
            ];
        },
        &["may start before op 1 (Attention F of unit 0), whose result it reads, has ended [program-order]"],
    );
    // The next unit (here the head) waits for the first half's combine only.
    broken(
        |f, _, _| f[9].waits = vec![6],
        &["may start before op 8 (Combine F, tokens 2/2 of unit 0), whose result it reads, has ended [program-order]"],
    );
    // The experts' backward reads what is computed again after it.
    broken(
        |_, i, _| {
            i.swap(2, 4);
            i[2].waits = vec![1];
            i[4].waits = vec![];
        },
        &["may start before op 4 (Mlp I (again) of unit 0), whose result it reads, has ended [program-order]"],
    );
    // The copy engine takes what is not packed yet.
    broken(
        |_, i, _| i[6].waits = vec![4],
        &["may start before op 5 (Dispatch I (pack) of unit 0), whose result it reads, has ended [program-order]"],
    );
}

#[test]
fn steps_stand_where_they_belong() {
    let foreign = |f: &mut Vec<ProgramOp>, component, phase, unit, step| {
        f.push(op(component, phase, unit, step, ALL, &[]));
    };
    for (component, unit, step) in
        [(Mlp, 0, Step::Again), (Attention, 0, Step::Shared), (Mlp, 0, Step::Pack), (Head, 1, Step::Shared)]
    {
        broken(|f, _, _| foreign(f, component, F, unit, step), &["does not belong in F of stage 3 [program-content]"]);
    }
}

#[test]
fn copy_engines_take_no_sms() {
    let mut plan = with(forward(), backward(), weights());
    let number = programs(&plan)[1];
    plan.programs[number].ops[6].sms = 4;
    let found: Vec<String> = verify(&plan).violations.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("may use 4 SMs where a copy engine needs none [sms]"), "{}", found[0]);
    // And kernels that have none run nowhere.
    let mut plan = with(forward(), backward(), weights());
    let number = programs(&plan)[0];
    plan.programs[number].ops[1].sms = 0;
    let found: Vec<String> = verify(&plan).violations.iter().map(ToString::to_string).collect();
    assert!(found[0].contains("may use 0 SMs of a GPU that has"), "{}", found[0]);
}

/// I of a layer that is computed again as a whole, beside combine's backward.
fn repeating() -> Vec<ProgramOp> {
    vec![
        op(Head, I, 1, Step::Main, ALL, &[]),
        op(Attention, I, 0, Step::Again, ALL, &[]),
        op(Dispatch, I, 0, Step::Again, ALL, &[1]),
        op(Combine, I, 0, Step::Main, ALL, &[0]),
        op(Mlp, I, 0, Step::Again, ALL, &[2]),
        op(Mlp, I, 0, Step::Main, ALL, &[3]),
        op(Dispatch, I, 0, Step::Main, ALL, &[5]),
        op(Attention, I, 0, Step::Main, ALL, &[6]),
    ]
}

/// What is found in I of a stage with experts that computes whole layers again, or does not say so, by the ends of its words.
#[track_caller]
fn repeats(layer: bool, i: Vec<ProgramOp>, expected: &[&str]) {
    let mut plan = with(forward(), i, weights());
    plan.stages[3].recompute.layer = layer;
    // Its full backwards repeat nothing.
    let [_, number, _] = programs(&plan);
    let names = [format!("program {number} ("), format!("program {number}, ")];
    let found: Vec<String> = verify(&plan).violations.iter().map(ToString::to_string).collect();
    let found: Vec<String> = found.into_iter().filter(|found| names.iter().any(|name| found.contains(name))).collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.ends_with(expected), "{found}\ndoes not end with\n{expected}");
    }
}

#[test]
fn whole_layers_are_computed_again_in_order() {
    repeats(true, repeating(), &[]);
    // Nothing is repeated, though all of it must be.
    let mut kept: Vec<ProgramOp> = repeating().into_iter().filter(|op| op.step != Step::Again).collect();
    let waits: [&[u32]; 5] = [&[], &[0], &[1], &[2], &[3]];
    kept.iter_mut().zip(waits).for_each(|(op, waits)| op.waits = waits.to_vec());
    repeats(false, kept.clone(), &[]);
    repeats(
        true,
        kept,
        &[
            "has 0 repeated kernel ops for Mlp I of unit 0 (moe 3) where it needs 1 [program-content]",
            "has 0 repeated exchange ops for Dispatch I of unit 0 (moe 3) where it needs 1 [program-content]",
            "has 0 repeated kernel ops for Attention I of unit 0 (moe 3) where it needs 1 [program-content]",
        ],
    );
    // Tokens are sent to their experts a second time only where the stage says so.
    repeats(false, repeating(), &["does not belong in I of stage 3 [program-content]"]);
    // The experts work on tokens that have not come.
    let mut early = repeating();
    early[4].waits = vec![];
    repeats(
        true,
        early,
        &["may start before op 2 (Dispatch I (again) of unit 0), whose result it reads, has ended [program-order]"],
    );
    // And the tokens leave before it is known where to.
    let mut blind = repeating();
    blind[2].waits = vec![];
    repeats(
        true,
        blind,
        &["may start before op 1 (Attention I (again) of unit 0), whose result it reads, has ended [program-order]"],
    );
}
