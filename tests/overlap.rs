//! Programs of random chunks: in order, with no needless wait, within the GPU, and no longer than they must be.

use std::collections::BTreeMap;

use dualweave::ir::{
    Chunk, Component, Held, Kernel, Layout, Op, Phase, Placement, Program, Rate, Step, Stream, Tokens, Work,
};
use dualweave::job::training::PairOrder;
use dualweave::machine::{ATTENTION_FORWARD_LENGTH, EXCHANGE_EFFICIENCY, Interference, LinkModel, Machine, Measured};
use dualweave::passes::overlap::{Budget, Options, Pairs, StageForms, overlap};
use dualweave::sim::time_program;
use dualweave::units::{Bytes, Flops, Nanos};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const SMS: u32 = 100;
const COMM_SMS: u32 = 20;

/// Kernels take about 1.7 ns for a FLOP on all SMs, exchanges 1 ns for a byte on their 20.
fn machine() -> Machine {
    let link = LinkModel {
        latency: Nanos::ZERO,
        byte_s: 1e9 / EXCHANGE_EFFICIENCY,
        per_sm_byte_s: 5e7 / EXCHANGE_EFFICIENCY,
        measured: vec![],
        copy_byte_s: 1e9,
    };
    Machine {
        gpu: "test".into(),
        sms: SMS,
        memory: Bytes(1),
        bf16_flop_s: 1e9,
        bf16_gemm_flop_s: 1e9,
        fp8_flop_s: 1e9,
        fp8_gemm_flop_s: vec![(64, 1e9)],
        // 587 of 989 FLOPs in a microsecond, at the length of the tests' attention.
        attention_forward_flop_s: 587e9 / 989.0 * (4096.0 + ATTENTION_FORWARD_LENGTH) / 4096.0,
        attention_backward_flop_s: 427e9 / 989.0,
        sm_share: vec![],
        hbm_byte_s: 1e9,
        launch: Nanos::ZERO,
        gpus_per_node: 8,
        nvlink: link.clone(),
        network: link,
        rails: false,
        pods: None,
        interference: Interference::NONE,
        measured: Measured::default(),
    }
}

/// An op of a random chunk: is it an exchange, its size, which earlier ops it needs (as a bit mask).
type Sketch = (bool, u64, u32);

fn chunk(sketches: &[Sketch]) -> Chunk {
    let op = |(unit, &(exchange, size, needs)): (u32, &Sketch)| Op {
        component: Component::Attention,
        phase: Phase::F,
        unit,
        step: Step::Main,
        tokens: Tokens::ALL,
        work: match exchange {
            true => Work::over_nvlink(Bytes(size)),
            false => Work::Compute(vec![Kernel {
                rate: Rate::AttentionForward { length: 4096 },
                flops: Flops(size),
                bytes: Bytes::ZERO,
                launches: 1,
            }]),
        },
        needs: (0..unit).filter(|need| needs >> need & 1 == 1).collect(),
        handed: Bytes::ZERO,
    };
    Chunk {
        f: (0..).zip(sketches).map(op).collect(),
        i: vec![],
        w: vec![],
        held: Held::default(),
        output: Bytes::ZERO,
        input: Bytes::ZERO,
        exchange_buffer: Bytes::ZERO,
    }
}

/// The program of F. Units number the ops, so the program's say which op is which.
fn program(chunk: &Chunk) -> Program {
    program_on(chunk, &machine(), Budget::fixed(COMM_SMS))
}

fn program_on(chunk: &Chunk, machine: &Machine, budget: Budget) -> Program {
    let stage = StageForms::plain(chunk.clone());
    let layout = Layout::new(Placement::Linear, 1, 1, 1);
    let options = Options { budget, workspace: None, order: PairOrder::Search, pairs: Pairs::None };
    let overlapped = overlap(&[stage], &layout, machine, options);
    overlapped.programs[overlapped.stages[0].f as usize].clone()
}

/// ended[a][b]: op b has certainly ended when op a starts, by the streams and the waits alone.
fn ended(program: &Program) -> Vec<Vec<bool>> {
    let count = program.ops.len();
    let mut ended = vec![vec![false; count]; count];
    for (at, op) in program.ops.iter().enumerate() {
        let before = (0..at).rev().find(|&other| program.ops[other].stream() == op.stream());
        for other in before.into_iter().chain(op.waits.iter().map(|&wait| wait as usize)) {
            assert!(other < at, "op {at} waits for {other}");
            let known = ended[other].clone();
            ended[at].iter_mut().zip(known).for_each(|(mine, theirs)| *mine |= theirs);
            ended[at][other] = true;
        }
    }
    ended
}

/// Whether every op starts after what it needs.
fn in_order(chunk: &Chunk, program: &Program) -> bool {
    let place: BTreeMap<u32, usize> = program.ops.iter().enumerate().map(|(at, op)| (op.unit, at)).collect();
    let ended = ended(program);
    chunk.f.iter().all(|op| op.needs.iter().all(|need| ended[place[&op.unit]][place[need]]))
}

/// Ops of the other stream that may run at the same time as op `at`.
fn beside(program: &Program, at: usize) -> Vec<usize> {
    let ended = ended(program);
    let other_stream = |other: &usize| program.ops[*other].stream() != program.ops[at].stream();
    (0..program.ops.len()).filter(other_stream).filter(|&other| !ended[at][other] && !ended[other][at]).collect()
}

/// Whether what may run together has no more SMs than there are.
fn fits(program: &Program) -> bool {
    let sms = |at: usize| program.ops[at].sms;
    (0..program.ops.len()).all(|at| beside(program, at).into_iter().all(|other| sms(at) + sms(other) <= SMS))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::default() })]

    #[test]
    fn programs_are_right(sketches in prop::collection::vec((any::<bool>(), 0u64..100, any::<u32>(), any::<u32>()), 1..14)) {
        // Half of the masks' bits are enough needs, a quarter leaves more to choose.
        let sketches: Vec<Sketch> = sketches.into_iter().map(|(exchange, size, a, b)| (exchange, size, a & b)).collect();
        let chunk = chunk(&sketches);
        let program = program(&chunk);
        let machine = machine();

        let mut units: Vec<u32> = program.ops.iter().map(|op| op.unit).collect();
        units.sort_unstable();
        prop_assert!(units.into_iter().eq(0..sketches.len() as u32), "each op once");
        prop_assert!(in_order(&chunk, &program), "{:#?}", program);

        // No wait can go: without it something is out of order, or too much may run together. Two ops that could share
        // the SMs may be kept apart, so that the computation has all of them.
        for at in 0..program.ops.len() {
            for wait in &program.ops[at].waits {
                prop_assert_ne!(program.ops[*wait as usize].stream(), program.ops[at].stream());
                let mut without = program.clone();
                without.ops[at].waits.retain(|other| other != wait);
                let right = in_order(&chunk, &without) && fits(&without);
                prop_assert!(!right, "op {} waits for {} in vain", at, wait);
            }
        }

        // What nothing can run beside has the whole GPU.
        prop_assert!(fits(&program));
        for (at, op) in program.ops.iter().enumerate() {
            match op.stream() {
                Stream::Comm => prop_assert_eq!(op.sms, COMM_SMS),
                Stream::Compute if beside(&program, at).is_empty() => prop_assert_eq!(op.sms, SMS),
                Stream::Compute => prop_assert_eq!(op.sms, SMS - COMM_SMS),
            }
        }

        // Between one thing after the other, and what an engine or a chain of needs takes alone.
        let timing = time_program(&program, &machine);
        let mut duration = vec![Nanos::ZERO; sketches.len()];
        for op in &program.ops {
            duration[op.unit as usize] = machine.duration(&op.work, op.sms);
        }
        let mut path = vec![Nanos::ZERO; sketches.len()];
        for (at, op) in chunk.f.iter().enumerate() {
            path[at] = op.needs.iter().map(|&need| path[need as usize]).max().unwrap_or_default() + duration[at];
        }
        // One thing after the other each op has all the SMs that it can use.
        let alone = |op: &Op| machine.duration(&op.work, if op.work.is_exchange() { COMM_SMS } else { SMS });
        let serial: Nanos = chunk.f.iter().map(alone).sum();
        let engine = |exchange: bool| -> Nanos {
            sketches.iter().zip(&duration).filter(|(sketch, _)| sketch.0 == exchange).map(|(_, d)| *d).sum()
        };
        prop_assert!(timing.total <= serial);
        prop_assert!(timing.total >= program.bound, "{} {}", timing.total, program.bound);
        prop_assert!(timing.total >= engine(true).max(engine(false)));
        prop_assert!(timing.total >= path.into_iter().max().unwrap());
        prop_assert_eq!((timing.busy, timing.communication), (engine(false), engine(true)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, rng_seed: RngSeed::Fixed(12), failure_persistence: None, ..ProptestConfig::default() })]

    /// Where ops slow each other, much more than on any GPU, and each kind of exchange may have its own SMs: the program still
    /// fits, takes no longer than with the same SMs for all, and never less than its bound.
    #[test]
    fn bounds_hold_where_ops_slow_each_other(
        sketches in prop::collection::vec((any::<bool>(), 0u64..100, any::<u32>(), any::<u32>()), 1..12),
        tensor in 0.0..2.0,
        sms in 0.0..0.5,
    ) {
        let sketches: Vec<Sketch> = sketches.into_iter().map(|(exchange, size, a, b)| (exchange, size, a & b)).collect();
        let chunk = chunk(&sketches);
        let machine = Machine { interference: Interference { tensor, sms, ..Interference::H100 }, hbm_byte_s: 3e9, ..machine() };
        let fixed = program_on(&chunk, &machine, Budget::fixed(COMM_SMS));
        let each = program_on(&chunk, &machine, Budget { sms: COMM_SMS, offered: vec![10, 30, 50] });
        let time = |program: &Program| time_program(program, &machine).total;
        prop_assert!(time(&fixed) >= fixed.bound, "{} {}", time(&fixed), fixed.bound);
        prop_assert!(time(&each) >= each.bound, "{} {}", time(&each), each.bound);
        prop_assert!(time(&each) <= time(&fixed), "{} {}", time(&each), time(&fixed));
        // More to choose from cannot raise what nothing is below.
        prop_assert!(each.bound <= fixed.bound, "{} {}", each.bound, fixed.bound);
        for program in [&fixed, &each] {
            prop_assert!(fits(program) && in_order(&chunk, program), "{program:#?}");
        }
        for op in each.ops.iter().filter(|op| op.work.is_exchange()) {
            prop_assert!([COMM_SMS, 10, 30, 50].contains(&op.sms));
        }
    }
}

/// Of two ready ops the one with the longer way behind it goes first: its exchange hides the other.
#[test]
fn the_longest_path_goes_first() {
    // 0: nothing follows. 1: an exchange follows, which needs it.
    let chunk = chunk(&[(false, 40, 0), (false, 40, 0), (true, 50, 0b10)]);
    let program = program(&chunk);
    let order: Vec<u32> = program.ops.iter().map(|op| op.unit).collect();
    assert!(order.iter().position(|&op| op == 1) < order.iter().position(|&op| op == 0), "{order:?}");
    let timing = time_program(&program, &machine());
    assert_eq!(timing.exposed.0, timing.total.0 - timing.busy.0);
    assert!(timing.exposed < Nanos(50));
}

/// A computation of 100 FLOPs (about 168 ns on 100 SMs, 211 on 80) and an exchange of 50 ns that do not need each other: side
/// by side they take 211. Were the computation divisible, part of it could have all SMs: that is the bound.
#[test]
fn the_bound_trades_sms_for_time() {
    let program = program(&chunk(&[(false, 100, 0), (true, 50, 0)]));
    let (alone, beside, exchange) = (168.0_f64, 211.0_f64, 50.0_f64);
    assert_eq!(time_program(&program, &machine()).total, Nanos(211));
    // x of the computation apart: x·alone + exchange = beside - x·(beside - alone).
    let x = (beside - exchange) / beside;
    assert_eq!(program.bound, Nanos((exchange + x * alone).ceil() as u64));
    // Where one needs the other there is nothing to trade.
    let chained = self::program(&chunk(&[(false, 100, 0), (true, 50, 1)]));
    assert_eq!(time_program(&chained, &machine()).total, Nanos(168 + 50));
    assert_eq!(chained.bound, Nanos(168 + 50));
}
