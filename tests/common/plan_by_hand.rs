//! Three small plans written out by hand, every item and every wait, so that the verifier is not tested against a compiler.
//! Each has exactly the memory that it needs.

use std::collections::BTreeMap;

use dualweave::ir::{
    Component, Held, Kernel, Layout, Phase, Placement, Program, ProgramKind, ProgramOp, Rate, Recompute, Step, Tokens,
    Unit, Work,
};
use dualweave::job::model::{Attention as Heads, Layers, Model, Moe, MultiHead};
use dualweave::machine::{Interference, LinkModel, Machine, Measured};
use dualweave::plan::{Certificate, Item, Origin, Pair, Plan, PlanRank, PlanStage, Ring, RingOf, Task, VERSION};
use dualweave::units::{Bytes, Flops, Nanos};

use crate::shapes;
use Component::{Attention, Combine, Dispatch, Embedding, Head, Mlp};
use Phase::{F, I, W};

/// SMs of the machine, of a kernel op and of an exchange op.
const SMS: (u32, u32, u32) = (132, 112, 20);
/// What lies in an arena takes up so many bytes: everything here is smaller.
pub const UNIT: u64 = 256;
/// Bytes of a message.
pub const MESSAGE: u64 = 8;
/// What a micro-batch holds on a stage from F to I, from F to W, and from I to W.
pub const HELD: (u64, u64, u64) = (3, 7, 4);

/// One stage a rank, 1F1B, four micro-batches. Rank 0 splits its last two backwards.
pub fn linear() -> Plan {
    use RingOf::{Inbox, Outbox};
    use Task::{B, F, GatherParams, I, RecvAct, RecvGrad, ReduceGrads, SendAct, SendGrad, Update, W};
    let rank_0 = rank(
        &[Inbox(1), Outbox(1)].map(|of| (of, 2)),
        &[
            (F(0, 0), &[], &[5, 6]),
            (SendAct(0, 0, 1), &[F(0, 0)], &[]),
            (F(0, 1), &[], &[7, 8]),
            (SendAct(0, 1, 1), &[F(0, 1)], &[]),
            (RecvGrad(1, 0, 1), &[], &[]),
            (B(0, 0), &[RecvGrad(1, 0, 1)], &[9]),
            (F(0, 2), &[SendAct(0, 0, 1)], &[5, 6]),
            (SendAct(0, 2, 1), &[F(0, 2)], &[]),
            (RecvGrad(1, 1, 1), &[], &[]),
            (B(0, 1), &[RecvGrad(1, 1, 1)], &[9]),
            (F(0, 3), &[SendAct(0, 1, 1)], &[7, 8]),
            (SendAct(0, 3, 1), &[F(0, 3)], &[]),
            (RecvGrad(1, 2, 1), &[B(0, 0)], &[]),
            (I(0, 2), &[RecvGrad(1, 2, 1)], &[9]),
            (RecvGrad(1, 3, 1), &[B(0, 1)], &[]),
            (I(0, 3), &[RecvGrad(1, 3, 1)], &[5]),
            (W(0, 2), &[], &[]),
            (W(0, 3), &[], &[]),
            (ReduceGrads(0), &[W(0, 3)], &[]),
            (Update(0), &[ReduceGrads(0)], &[]),
            (GatherParams(0), &[Update(0)], &[]),
        ],
        10,
    );
    let rank_1 = rank(
        &[Inbox(0), Outbox(0)].map(|of| (of, 2)),
        &[
            (RecvAct(0, 0, 0), &[], &[]),
            (F(1, 0), &[RecvAct(0, 0, 0)], &[5, 6]),
            (B(1, 0), &[], &[7]),
            (SendGrad(1, 0, 0), &[B(1, 0)], &[]),
            (RecvAct(0, 1, 0), &[], &[]),
            (F(1, 1), &[RecvAct(0, 1, 0)], &[5, 6]),
            (B(1, 1), &[], &[7]),
            (SendGrad(1, 1, 0), &[B(1, 1)], &[]),
            (RecvAct(0, 2, 0), &[F(1, 0)], &[]),
            (F(1, 2), &[RecvAct(0, 2, 0)], &[5, 6]),
            (B(1, 2), &[SendGrad(1, 0, 0)], &[7]),
            (SendGrad(1, 2, 0), &[B(1, 2)], &[]),
            (RecvAct(0, 3, 0), &[F(1, 1)], &[]),
            (F(1, 3), &[RecvAct(0, 3, 0)], &[5, 6]),
            (B(1, 3), &[SendGrad(1, 1, 0)], &[7]),
            (SendGrad(1, 3, 0), &[B(1, 3)], &[]),
            (ReduceGrads(1), &[B(1, 3)], &[]),
            (Update(1), &[ReduceGrads(1)], &[]),
            (GatherParams(1), &[Update(1)], &[]),
        ],
        8,
    );
    let stages = vec![
        stage(&[Unit::Embedding, Unit::Dense(0)], (0, MESSAGE), [0, 1, 2, 3], true),
        stage(&[Unit::Moe(1), Unit::Head], (MESSAGE, 0), [4, 5, 6, 7], true),
    ];
    let programs = [embedding_dense(), experts_head()].concat();
    // Rank 0: 175 for its stage; 4 messages, an exchange; at I(0,3) micro-batch 2 with f_to_w and i_to_w, 3 with all three.
    let memory = 175 + (4 + 1 + 5) * UNIT;
    plan(Layout::new(Placement::Linear, 2, 1, 4), stages, vec![], programs, vec![rank_0, rank_1], memory)
}

/// Two stages a rank in a V, two micro-batches, with hand-overs on rank 1 and an overlapped pair on rank 0.
pub fn v() -> Plan {
    use RingOf::{HandoffAct, HandoffGrad, Inbox, Outbox};
    use Task::{B, F, FB, RecvAct, RecvGrad, ReduceGrads, SendAct, SendGrad, Update};
    let pair = FB((3, 1), (3, 0));
    let rank_0 = rank(
        &[Inbox(1), Outbox(1)].map(|of| (of, 2)),
        &[
            (F(0, 0), &[], &[5, 6]),
            (SendAct(0, 0, 1), &[F(0, 0)], &[]),
            (F(0, 1), &[], &[7, 8]),
            (SendAct(0, 1, 1), &[F(0, 1)], &[]),
            (RecvAct(2, 0, 1), &[], &[]),
            (F(3, 0), &[RecvAct(2, 0, 1)], &[9, 10]),
            (RecvAct(2, 1, 1), &[], &[]),
            (pair, &[RecvAct(2, 1, 1), SendAct(0, 0, 1)], &[11, 12, 13]),
            (SendGrad(3, 0, 1), &[pair], &[]),
            (B(3, 1), &[SendAct(0, 1, 1)], &[9]),
            (SendGrad(3, 1, 1), &[B(3, 1)], &[]),
            (RecvGrad(1, 0, 1), &[F(3, 0)], &[]),
            (B(0, 0), &[RecvGrad(1, 0, 1)], &[9]),
            (RecvGrad(1, 1, 1), &[pair], &[]),
            (B(0, 1), &[RecvGrad(1, 1, 1)], &[5]),
            (ReduceGrads(3), &[B(3, 1)], &[]),
            (ReduceGrads(0), &[B(0, 1)], &[]),
            (Update(3), &[ReduceGrads(3)], &[]),
            (Update(0), &[ReduceGrads(0)], &[]),
        ],
        14,
    );
    let rank_1 = rank(
        &[(HandoffAct(1), 1), (HandoffGrad(2), 1), (Inbox(0), 2), (Outbox(0), 2)],
        &[
            (RecvAct(0, 0, 0), &[], &[]),
            (F(1, 0), &[RecvAct(0, 0, 0)], &[7, 8]),
            (F(2, 0), &[], &[9, 10]),
            (SendAct(2, 0, 0), &[F(2, 0)], &[]),
            (RecvAct(0, 1, 0), &[], &[]),
            (F(1, 1), &[RecvAct(0, 1, 0)], &[11, 12]),
            (F(2, 1), &[], &[13, 14]),
            (SendAct(2, 1, 0), &[F(2, 1)], &[]),
            (RecvGrad(3, 0, 0), &[F(1, 0)], &[]),
            (B(2, 0), &[RecvGrad(3, 0, 0)], &[15]),
            (B(1, 0), &[SendAct(2, 0, 0)], &[9]),
            (SendGrad(1, 0, 0), &[B(1, 0)], &[]),
            (RecvGrad(3, 1, 0), &[F(1, 1)], &[]),
            (B(2, 1), &[RecvGrad(3, 1, 0)], &[7]),
            (B(1, 1), &[SendAct(2, 1, 0)], &[7]),
            (SendGrad(1, 1, 0), &[B(1, 1)], &[]),
            (ReduceGrads(2), &[B(2, 1)], &[]),
            (ReduceGrads(1), &[B(1, 1)], &[]),
            (Update(2), &[ReduceGrads(2)], &[]),
            (Update(1), &[ReduceGrads(1)], &[]),
        ],
        16,
    );
    let stages = vec![
        stage(&[Unit::Embedding, Unit::Dense(0)], (0, MESSAGE), [0, 1, 2, 3], false),
        stage(&[Unit::Dense(1)], (MESSAGE, MESSAGE), [8, 9, 10, 11], false),
        stage(&[Unit::Dense(2)], (MESSAGE, MESSAGE), [8, 9, 10, 11], false),
        stage(&[Unit::Moe(3), Unit::Head], (MESSAGE, 0), [4, 5, 6, 7], false),
    ];
    let mut programs = [embedding_dense(), experts_head(), dense()].concat();
    programs.push(experts_head_pair());
    let pairs = vec![Pair { f: 3, b: 3, program: 12 }];
    // Rank 1: two stages of 175; 6 messages, an exchange; at B(2,0) four chunks with f_to_i and f_to_w, and a workspace.
    let memory = 350 + (6 + 1 + 9) * UNIT;
    plan(Layout::new(Placement::V, 2, 2, 2), stages, pairs, programs, vec![rank_0, rank_1], memory)
}

/// Both directions over two ranks, four micro-batches, each stage on both ranks.
pub fn bidirectional() -> Plan {
    use RingOf::{Inbox, Outbox};
    use Task::{B, F, FB, GatherParams, RecvAct, RecvGrad, ReduceGrads, SendAct, SendGrad, Update};
    // Rank 0 sends micro-batches 0 and 1 down and gets 2 and 3; for rank 1 it is the other way round.
    let side = |other: u32, (a, b): (u32, u32), (c, d): (u32, u32)| {
        let pair = FB((1, d), (1, c));
        rank(
            &[Inbox(other), Outbox(other)].map(|of| (of, 2)),
            &[
                (F(0, a), &[], &[5, 6]),
                (SendAct(0, a, other), &[F(0, a)], &[]),
                (F(0, b), &[], &[7, 8]),
                (SendAct(0, b, other), &[F(0, b)], &[]),
                (RecvAct(0, c, other), &[], &[]),
                (F(1, c), &[RecvAct(0, c, other)], &[9, 10]),
                (RecvAct(0, d, other), &[], &[]),
                (pair, &[RecvAct(0, d, other), SendAct(0, a, other)], &[11, 12, 13]),
                (SendGrad(1, c, other), &[pair], &[]),
                (B(1, d), &[SendAct(0, b, other)], &[9]),
                (SendGrad(1, d, other), &[B(1, d)], &[]),
                (RecvGrad(1, a, other), &[F(1, c)], &[]),
                (B(0, a), &[RecvGrad(1, a, other)], &[9]),
                (RecvGrad(1, b, other), &[pair], &[]),
                (B(0, b), &[RecvGrad(1, b, other)], &[5]),
                (ReduceGrads(1), &[B(1, d)], &[]),
                (ReduceGrads(0), &[B(0, b)], &[]),
                (Update(1), &[ReduceGrads(1)], &[]),
                (Update(0), &[ReduceGrads(0)], &[]),
                (GatherParams(1), &[Update(1)], &[]),
                (GatherParams(0), &[Update(0)], &[]),
            ],
            14,
        )
    };
    let stages = vec![
        stage(&[Unit::Embedding, Unit::Dense(0)], (0, MESSAGE), [0, 1, 2, 3], true),
        stage(&[Unit::Moe(1), Unit::Head], (MESSAGE, 0), [4, 5, 6, 7], true),
    ];
    let mut programs = [embedding_dense(), experts_head()].concat();
    programs.push(experts_head_pair());
    let pairs = vec![Pair { f: 1, b: 1, program: 8 }];
    let ranks = vec![side(1, (0, 1), (2, 3)), side(0, (2, 3), (0, 1))];
    // Both: two stages of 175; 4 messages, an exchange; at their pair four chunks with f_to_i and f_to_w, and a workspace.
    let memory = 350 + (4 + 1 + 9) * UNIT;
    plan(Layout::new(Placement::Bidirectional, 2, 1, 4), stages, pairs, programs, ranks, memory)
}

/// All three.
pub fn all() -> Vec<Plan> {
    vec![linear(), v(), bidirectional()]
}

/// A rank from its rings, its items, each with the items that it waits for and the units of the arena where its blocks lie, and the units
/// that its arena has. Rings and exchange buffer lie at its start.
fn rank(rings: &[(RingOf, u32)], items: &[(Task, &[Task], &[u64])], arena: u64) -> PlanRank {
    let index =
        |task: &Task| items.iter().position(|item| item.0 == *task).expect("waits for an item of the list") as u32;
    let mut slots = 0;
    let mut ring = |&(of, count): &(RingOf, u32)| {
        let at = Bytes(slots * UNIT);
        slots += u64::from(count);
        Ring { of, slots: count, bytes: Bytes(MESSAGE), at }
    };
    PlanRank {
        arena: Bytes(arena * UNIT),
        rings: rings.iter().map(&mut ring).collect(),
        exchange: Bytes(slots * UNIT),
        items: items
            .iter()
            .map(|(task, waits, places)| {
                let places = places.iter().map(|place| Bytes(place * UNIT)).collect();
                Item(*task, waits.iter().map(index).collect(), places)
            })
            .collect(),
    }
}

fn stage(units: &[Unit], (input, output): (u64, u64), [f, b, i, w]: [u32; 4], sharded: bool) -> PlanStage {
    let exchange = |bytes| Work::over_nvlink(Bytes(bytes));
    PlanStage {
        units: units.to_vec(),
        recompute: Recompute::NOTHING,
        parameters: Bytes(100),
        gradients: Bytes(50),
        optimizer: Bytes(25),
        held: Held {
            f_to_i: BTreeMap::from([(Attention, Bytes(HELD.0))]),
            f_to_w: BTreeMap::from([(Attention, Bytes(HELD.1 - 2)), (Mlp, Bytes(2))]),
            i_to_w: BTreeMap::from([(Mlp, Bytes(HELD.2))]),
        },
        input: Bytes(input),
        output: Bytes(output),
        exchange_buffer: Bytes(11),
        reduce: exchange(50),
        update: Work::Compute(vec![kernel()]),
        gather: if sharded { exchange(100) } else { Work::Compute(vec![]) },
        f: Some(f),
        b: Some(b),
        i: Some(i),
        w: Some(w),
    }
}

fn kernel() -> Kernel {
    Kernel { rate: Rate::Memory, flops: Flops(0), bytes: Bytes(1000), launches: 1 }
}

/// A kernel op and an exchange op.
type Op = (Component, Phase, u32, bool, &'static [u32]);
const fn k(component: Component, phase: Phase, unit: u32, waits: &'static [u32]) -> Op {
    (component, phase, unit, false, waits)
}
const fn x(component: Component, phase: Phase, unit: u32, waits: &'static [u32]) -> Op {
    (component, phase, unit, true, waits)
}

fn program(kind: ProgramKind, ops: &[Op]) -> Program {
    let op = |&(component, phase, unit, exchange, waits): &Op| ProgramOp {
        component,
        phase,
        unit,
        step: Step::Main,
        tokens: Tokens::ALL,
        work: match exchange {
            true => Work::Exchange { nvlink: Bytes(100), network: Bytes(100), uplink: Bytes::ZERO },
            false => Work::Compute(vec![kernel()]),
        },
        sms: if exchange { SMS.2 } else { SMS.1 },
        waits: waits.to_vec(),
    };
    // Of all ops only the MLP's hands something on.
    let workspace = Bytes(if matches!(kind, ProgramKind::B | ProgramKind::FB) { HELD.2 } else { 0 });
    Program { kind, workspace, bound: Nanos::ZERO, ops: ops.iter().map(op).collect() }
}

/// F, B, I, W of a stage of the embedding and a dense layer.
fn embedding_dense() -> Vec<Program> {
    vec![
        program(ProgramKind::F, &[k(Embedding, F, 0, &[]), k(Attention, F, 1, &[]), k(Mlp, F, 1, &[])]),
        program(
            ProgramKind::B,
            &[
                k(Mlp, I, 1, &[]),
                k(Mlp, W, 1, &[]),
                k(Attention, I, 1, &[]),
                k(Attention, W, 1, &[]),
                k(Embedding, W, 0, &[]),
            ],
        ),
        program(ProgramKind::I, &[k(Mlp, I, 1, &[]), k(Attention, I, 1, &[])]),
        program(ProgramKind::W, &[k(Mlp, W, 1, &[]), k(Attention, W, 1, &[]), k(Embedding, W, 0, &[])]),
    ]
}

/// F, B, I, W of a stage of one dense layer.
fn dense() -> Vec<Program> {
    vec![
        program(ProgramKind::F, &[k(Attention, F, 0, &[]), k(Mlp, F, 0, &[])]),
        program(
            ProgramKind::B,
            &[k(Mlp, I, 0, &[]), k(Attention, I, 0, &[]), k(Mlp, W, 0, &[]), k(Attention, W, 0, &[])],
        ),
        program(ProgramKind::I, &[k(Mlp, I, 0, &[]), k(Attention, I, 0, &[])]),
        program(ProgramKind::W, &[k(Mlp, W, 0, &[]), k(Attention, W, 0, &[])]),
    ]
}

/// F, B, I, W of a stage of a layer with experts and the head. In B, weight gradients hide the exchanges.
fn experts_head() -> Vec<Program> {
    vec![
        program(
            ProgramKind::F,
            &[
                k(Attention, F, 0, &[]),
                x(Dispatch, F, 0, &[0]),
                k(Mlp, F, 0, &[1]),
                x(Combine, F, 0, &[2]),
                k(Head, F, 1, &[3]),
            ],
        ),
        program(
            ProgramKind::B,
            &[
                k(Head, I, 1, &[]),
                x(Combine, I, 0, &[0]),
                k(Head, W, 1, &[]),
                k(Mlp, I, 0, &[1]),
                x(Dispatch, I, 0, &[3]),
                k(Mlp, W, 0, &[]),
                k(Attention, I, 0, &[4]),
                k(Attention, W, 0, &[]),
            ],
        ),
        program(
            ProgramKind::I,
            &[
                k(Head, I, 1, &[]),
                x(Combine, I, 0, &[0]),
                k(Mlp, I, 0, &[1]),
                x(Dispatch, I, 0, &[2]),
                k(Attention, I, 0, &[3]),
            ],
        ),
        program(ProgramKind::W, &[k(Head, W, 1, &[]), k(Mlp, W, 0, &[]), k(Attention, W, 0, &[])]),
    ]
}

/// F beside B of a stage of a layer with experts and the head: each one's exchanges under the other's kernels.
fn experts_head_pair() -> Program {
    program(
        ProgramKind::FB,
        &[
            k(Attention, F, 0, &[]),
            k(Head, I, 1, &[]),
            x(Dispatch, F, 0, &[0]),
            x(Combine, I, 0, &[1]),
            k(Head, W, 1, &[]),
            k(Mlp, F, 0, &[2]),
            k(Mlp, I, 0, &[3]),
            x(Combine, F, 0, &[5]),
            x(Dispatch, I, 0, &[6]),
            k(Mlp, W, 0, &[]),
            k(Head, F, 1, &[7]),
            k(Attention, I, 0, &[8]),
            k(Attention, W, 0, &[]),
        ],
    )
}

fn plan(
    layout: Layout,
    stages: Vec<PlanStage>,
    pairs: Vec<Pair>,
    programs: Vec<Program>,
    ranks: Vec<PlanRank>,
    memory: u64,
) -> Plan {
    // One stage, one layer, in all of them.
    let layers = stages.len() as u32;
    let link = LinkModel { latency: Nanos(0), byte_s: 1e9, per_sm_byte_s: 1e9, measured: vec![], copy_byte_s: 1e9 };
    let mut plan = Plan {
        version: VERSION,
        digest: String::new(),
        origin: Origin {
            compiler: "by hand".to_owned(),
            cluster: "small".to_owned(),
            schedule: layout.placement.to_string(),
            gpus: 2 * u64::from(layout.ranks),
            dp: 2,
            ep: 2,
            tp: 1,
            micro_batch_size: 1,
            sequence: 16,
            tokens_per_step: 2 * 16 * u64::from(layout.micro_batches),
            model_flops_per_token: 1000,
            imbalance: 1.0,
        },
        model: Model {
            layers,
            hidden: 8,
            vocabulary: 16,
            dense_width: Some(8),
            moe: Some(Moe {
                experts: 2,
                top_k: 1,
                width: 8,
                layers: Layers::Only(vec![layers - 1]),
                ..shapes::experts()
            }),
            ..shapes::base(Heads::Mha(MultiHead { head_dim: 8, ..shapes::heads(1, None) }))
        },
        machine: Machine {
            gpu: "small".to_owned(),
            sms: SMS.0,
            memory: Bytes(memory),
            bf16_flop_s: 1e12,
            bf16_gemm_flop_s: 1e12,
            fp8_flop_s: 1e12,
            fp8_gemm_flop_s: vec![(64, 1e12)],
            attention_forward_flop_s: 1e12,
            attention_backward_flop_s: 1e12,
            sm_share: vec![],
            hbm_byte_s: 1e12,
            launch: Nanos(0),
            gpus_per_node: 8,
            nvlink: link.clone(),
            network: link,
            rails: false,
            pods: None,
            interference: Interference::NONE,
            measured: Measured::default(),
        },
        layout,
        stages,
        pairs,
        programs,
        timetable: Certificate { makespan: Nanos(0), lower_bound: Nanos(0) },
        ranks,
    };
    plan.seal();
    plan
}
