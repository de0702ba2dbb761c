//! Small plans, built by hand on a machine whose times can be read off: a kernel or a message of n bytes takes n ns,
//! between nodes 10·n ns.

use std::collections::BTreeMap;

use dualweave::ir::{
    Component, Held, Kernel, Layout, Phase, Placement, Program, ProgramKind, ProgramOp, Rate, Recompute, Step, Tokens,
    Unit, Work,
};
use dualweave::job::model::{Attention, Model};
use dualweave::machine::{EXCHANGE_EFFICIENCY, Interference, LinkModel, Machine, Measured};
use dualweave::plan::{Certificate, Item, Origin, Pair, Plan, PlanRank, PlanStage, Ring, Task, VERSION};
use dualweave::units::{Bytes, Flops, Nanos};

use crate::shapes;

pub fn machine() -> Machine {
    let link = |byte_s| LinkModel {
        latency: Nanos::ZERO,
        byte_s: byte_s / EXCHANGE_EFFICIENCY,
        per_sm_byte_s: 1e12,
        measured: vec![],
        copy_byte_s: byte_s,
    };
    Machine {
        gpu: "one byte a nanosecond".into(),
        sms: 100,
        memory: Bytes(1_000_000),
        bf16_flop_s: 1e12,
        bf16_gemm_flop_s: 1e12,
        fp8_flop_s: 1e12,
        fp8_gemm_flop_s: vec![(64, 1e12)],
        attention_forward_flop_s: 1e12,
        attention_backward_flop_s: 1e12,
        sm_share: vec![],
        hbm_byte_s: 1e9,
        launch: Nanos::ZERO,
        gpus_per_node: 8,
        nvlink: link(1e9),
        network: link(1e8),
        rails: false,
        pods: None,
        interference: Interference::NONE,
        measured: Measured::default(),
    }
}

pub fn compute(ns: u64) -> Work {
    Work::Compute(vec![Kernel { rate: Rate::Memory, flops: Flops(ns), bytes: Bytes(ns), launches: 1 }])
}

pub fn exchange(ns: u64) -> Work {
    Work::over_nvlink(Bytes(ns))
}

pub fn op(component: Component, phase: Phase, work: Work, waits: &[u32]) -> ProgramOp {
    ProgramOp { component, phase, unit: 0, step: Step::Main, tokens: Tokens::ALL, work, sms: 80, waits: waits.to_vec() }
}

/// Attention, and nothing beside it.
pub fn plain(kind: ProgramKind, phase: Phase, ns: u64) -> Program {
    Program {
        kind,
        workspace: Bytes::ZERO,
        bound: Nanos::ZERO,
        ops: vec![op(Component::Attention, phase, compute(ns), &[])],
    }
}

/// A plan of `ranks` lists over a placement. Every stage: F 100 ns, I 60, W 40, B 100; FB of any two 150; messages of 10
/// bytes; reduction 30 ns, update 5, gathering 20. A full backward needs 45 bytes.
/// Programs: 0 F, 1 I, 2 W, 3 B, 4 FB.
pub fn plan(placement: Placement, micro_batches: u32, ranks: &[&[(Task, &[u32])]]) -> Plan {
    let layout = Layout::new(placement, ranks.len() as u32, 2, micro_batches);
    let stage = PlanStage {
        units: vec![Unit::Moe(0)],
        recompute: Recompute::NOTHING,
        parameters: Bytes(1000),
        gradients: Bytes(2000),
        optimizer: Bytes(3000),
        held: Held {
            f_to_i: BTreeMap::from([(Component::Attention, Bytes(100)), (Component::Combine, Bytes(10))]),
            f_to_w: BTreeMap::from([(Component::Mlp, Bytes(200))]),
            i_to_w: BTreeMap::from([(Component::Mlp, Bytes(50))]),
        },
        input: Bytes(10),
        output: Bytes(10),
        exchange_buffer: Bytes(5),
        reduce: exchange(30),
        update: compute(5),
        gather: exchange(20),
        f: Some(0),
        b: Some(3),
        i: Some(1),
        w: Some(2),
    };
    let pairs = (0..layout.stages).flat_map(|f| (0..layout.stages).map(move |b| Pair { f, b, program: 4 }));
    let fb = vec![
        op(Component::Attention, Phase::F, compute(100), &[]),
        op(Component::Dispatch, Phase::F, exchange(100), &[0]),
        op(Component::Attention, Phase::I, compute(50), &[]),
    ];
    let mut plan = Plan {
        version: VERSION,
        digest: String::new(),
        origin: Origin {
            compiler: "by hand".into(),
            cluster: "none".into(),
            schedule: "none".into(),
            gpus: 2 * u64::from(layout.ranks),
            dp: 2,
            ep: 1,
            tp: 1,
            micro_batch_size: 1,
            sequence: 10,
            tokens_per_step: 20 * u64::from(micro_batches),
            model_flops_per_token: 1000,
            imbalance: 1.0,
        },
        model: Model { name: "none".into(), ..shapes::base(Attention::Mha(shapes::heads(1, None))) },
        machine: machine(),
        layout,
        stages: vec![stage; layout.stages as usize],
        pairs: pairs.collect(),
        programs: vec![
            plain(ProgramKind::F, Phase::F, 100),
            plain(ProgramKind::I, Phase::I, 60),
            plain(ProgramKind::W, Phase::W, 40),
            Program { workspace: Bytes(45), ..plain(ProgramKind::B, Phase::I, 100) },
            Program { kind: ProgramKind::FB, workspace: Bytes(45), bound: Nanos::ZERO, ops: fb },
        ],
        timetable: Certificate { makespan: Nanos::ZERO, lower_bound: Nanos::ZERO },
        ranks: ranks.iter().map(|items| rank(vec![], items)).collect(),
    };
    plan.seal();
    plan
}

pub fn rank(rings: Vec<Ring>, items: &[(Task, &[u32])]) -> PlanRank {
    let items = items.iter().map(|(task, after)| Item(*task, after.to_vec(), vec![])).collect();
    PlanRank { arena: Bytes(0), exchange: Bytes(0), rings, items }
}
