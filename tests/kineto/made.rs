//! Small traces made by hand, one for each thing that a real one may or may not have.

use dualweave::interop::kineto::{Part, Phase, Rules, Selection, read};
use dualweave::units::Nanos;

use super::writer::{AUTOGRAD, Kernel, MAIN, Writer};
use super::{breakdown, row};

fn kernel(name: &str, stream: u64, start: u64, time: u64) -> Kernel<'_> {
    Kernel { name, stream, start, time, blocks: 264 }
}

/// An exchange of 10 beside a computation of 6: 4 are exposed; another computation beside both changes nothing.
#[test]
fn exposed_time_is_that_of_no_computation() {
    let mut writer = Writer::default();
    writer.gpu_annotation("dispatch(F)", 1, 27, 100, 10);
    writer.kernel(kernel("a", 27, 100, 10));
    writer.gpu_annotation("mlp(F)", 2, 7, 102, 6);
    writer.kernel(kernel("b", 7, 102, 6));
    writer.kernel(kernel("c", 23, 103, 2));
    writer.kernel(kernel("d", 7, 120, 5));
    let found = breakdown(writer.finish().as_bytes()).expect("a trace");
    let micros = |count: u64| Nanos(1000 * count);
    assert_eq!((found.span, found.busy, found.communication), (micros(25), micros(11), micros(10)));
    assert_eq!((found.exposed, found.bubble, found.total), (micros(4), micros(10), micros(23)));
    assert_eq!(row(&found, Part::Dispatch, Some(Phase::F)).exposed, micros(4));
    assert_eq!(row(&found, Part::Mlp, Some(Phase::F)).sms, Some(132));
    assert_eq!(found.unnamed(), micros(7));
    let busy: Vec<_> = found.streams.iter().map(|stream| (stream.stream, stream.busy)).collect();
    assert_eq!(busy, [(7, micros(11)), (23, micros(2)), (27, micros(10))]);
}

/// A collective within a module that only computes is no computation; where nobody says which exchange it is, it is none of them.
#[test]
fn communication_is_no_computation() {
    let mut writer = Writer::default();
    writer.annotation("nn.Module: MoE_0", MAIN, 0, 100);
    writer.launched(kernel("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", 13, 200, 10), MAIN, 10);
    writer.launched(kernel("void deep_ep::intranode::dispatch<8, 768>(int4*)", 13, 220, 10), MAIN, 20);
    writer.launched(kernel("nvjet_tst", 7, 240, 10), MAIN, 30);
    let found = breakdown(writer.finish().as_bytes()).expect("a trace");
    assert!(row(&found, Part::Other, None).communicates);
    assert_eq!(row(&found, Part::Dispatch, Some(Phase::F)).ops, 1);
    assert_eq!((row(&found, Part::Mlp, Some(Phase::F)).ops, found.exposed), (1, Nanos(20_000)));
}

/// In the backward pass of a dispatch DeepEP's combine kernel brings gradients home.
#[test]
fn deepep_goes_the_other_way_in_the_backward() {
    let mut writer = Writer::default();
    writer.node("DispatchBackward", AUTOGRAD, 0, 50);
    writer.launched(kernel("void deep_ep::intranode::combine<8, 768>(int4*)", 13, 60, 10), AUTOGRAD, 10);
    writer.launched(kernel("void deep_ep::intranode::dispatch<8, 768>(int4*)", 13, 80, 10), AUTOGRAD, 20);
    let found = breakdown(writer.finish().as_bytes()).expect("a trace");
    assert_eq!(row(&found, Part::Dispatch, Some(Phase::B)).ops, 1);
    assert_eq!(row(&found, Part::Combine, Some(Phase::B)).ops, 1);
}

/// A forward of one thread beside the backward of another, which calls autograd: each kernel goes to its own.
#[test]
fn two_threads_do_not_mix() {
    let mut writer = Writer::default();
    writer.annotation("attn(F)", MAIN, 0, 20);
    writer.flow(1, (MAIN, 5), (AUTOGRAD, 105));
    writer.launched(kernel("f", 7, 1000, 1), MAIN, 5);
    // The other thread's forward, while autograd runs.
    writer.annotation("mlp(F)", MAIN, 90, 100);
    writer.annotation("backward_stage_0_mb_0", MAIN + 1, 80, 200);
    writer.launched(kernel("g", 7, 1010, 1), MAIN, 110);
    writer.node("MmBackward0", AUTOGRAD, 100, 20);
    writer.launched(kernel("b", 7, 1020, 1), AUTOGRAD, 110);
    writer.node("torch::autograd::AccumulateGrad", AUTOGRAD, 125, 5);
    writer.launched(kernel("w", 7, 1030, 1), AUTOGRAD, 126);
    let found = breakdown(writer.finish().as_bytes()).expect("a trace");
    assert_eq!(row(&found, Part::Attention, Some(Phase::F)).ops, 1);
    assert_eq!(row(&found, Part::Mlp, Some(Phase::F)).ops, 1);
    let backward = row(&found, Part::Attention, Some(Phase::B));
    assert_eq!((backward.ops, backward.runs), (2, 1));
}

/// What is computed again within the backward pass is part of it, and weight gradients have their own call.
#[test]
fn recomputation_is_backward() {
    let mut writer = Writer::default();
    writer.annotation("attn(F)", MAIN, 0, 20);
    writer.launched(kernel("f", 7, 1000, 1), MAIN, 5);
    writer.annotation("PP:0I3", MAIN, 100, 100);
    writer.node("CheckpointBackward", AUTOGRAD, 110, 50);
    writer.annotation("attn(F)", AUTOGRAD, 115, 20);
    writer.launched(kernel("again", 7, 1010, 1), AUTOGRAD, 120);
    let found = breakdown(writer.finish().as_bytes()).expect("a trace");
    assert_eq!(row(&found, Part::Attention, Some(Phase::F)).ops, 1);
    assert_eq!(row(&found, Part::Attention, Some(Phase::I)).ops, 1);
}

/// Norms of a block and its attention are one run; an annotation on two streams is one too.
#[test]
fn runs_are_counted_once() {
    let mut writer = Writer::default();
    for layer in 0..3 {
        let at = 1000 * layer;
        writer.annotation(&format!("nn.Module: TransformerBlock_{layer}"), MAIN, at, 900);
        writer.launched(kernel("norm", 7, at, 5), MAIN, at + 1);
        writer.annotation(&format!("nn.Module: Attention_{layer}"), MAIN, at + 10, 100);
        writer.launched(kernel("attention", 7, at + 20, 10), MAIN, at + 20);
        writer.annotation(&format!("nn.Module: MoE_{layer}"), MAIN, at + 200, 100);
        writer.annotation(&format!("nn.Module: TokenChoiceTopKRouter_{layer}"), MAIN, at + 210, 20);
        writer.launched(kernel("router", 7, at + 220, 5), MAIN, at + 220);
        writer.launched(kernel("experts", 7, at + 240, 30), MAIN, at + 240);
        writer.launched(kernel("shared", 23, at + 250, 30), MAIN, at + 250);
    }
    let found = breakdown(writer.finish().as_bytes()).expect("a trace");
    let attention = row(&found, Part::Attention, Some(Phase::F));
    assert_eq!((attention.runs, attention.ops, attention.mean()), (3, 9, Nanos(20_000)));
    let experts = row(&found, Part::Mlp, Some(Phase::F));
    assert_eq!((experts.runs, experts.mean(), experts.total), (3, Nanos(40_000), Nanos(180_000)));
}

/// Halves of an event, numbers in quotes or with an exponent, numbers that are none, names with escapes, and what lacks a time.
#[test]
fn odd_events_are_read() {
    let mut writer = Writer::default();
    writer.event(r#"{"ph": "B", "cat": "user_annotation", "name": "attn(F)", "pid": "1", "tid": "main", "ts": "0"}"#);
    writer.event(r#"{"ph": "B", "cat": "counter", "name": "x", "pid": "1", "tid": "main", "ts": 1}"#);
    writer.event(
        r#"{"ph": "X", "cat": "cuda_driver", "name": "cuLaunchKernelEx", "pid": "1", "tid": "main", "ts": 2e0, "dur": 1,
        "args": {"correlation": "77"}}"#,
    );
    writer.event(r#"{"ph": "E", "pid": "1", "tid": "main", "ts": 3}"#);
    writer.event(r#"{"ph": "E", "pid": "1", "tid": "main", "ts": 4}"#);
    writer.event(
        r#"{"ph": "X", "cat": "kernel", "name": "a \"\u00e9\" \\ inf", "pid": 0, "tid": 7, "ts": 5232568470418.131,
        "dur": 1.0005, "args": {"correlation": 77, "memory bandwidth (GB/s)": inf, "other": [nan, -inf]}}"#,
    );
    writer.event(r#"{"ph": "X", "cat": "kernel", "name": "late", "pid": 0, "tid": 7, "ts": 5232568470420, "dur": 1, "args": null}"#);
    writer.event(r#"{"ph": "X", "cat": "kernel", "name": "no time", "pid": 0, "tid": 7}"#);
    writer.event(r#"{"ph": "X", "cat": "kernel", "name": "no place", "ts": 1, "dur": 1}"#);
    writer.event(r#"{"ph": "B", "cat": "user_annotation", "name": "no end", "pid": 1, "tid": 1, "ts": 1}"#);
    writer.event(r#"{"name": "process_name", "ph": "M", "pid": 0, "args": {"name": "python"}}"#);
    writer.event("{}");
    let found = breakdown(writer.finish().as_bytes()).expect("a trace");
    assert_eq!((found.ops, found.unusable, found.events), (2, 3, 12));
    // To the nanosecond, of times for which a float has no room.
    assert_eq!(row(&found, Part::Attention, Some(Phase::F)).total, Nanos(1001));
    assert_eq!(found.span, Nanos(2869));
}

#[test]
fn rules_of_a_file_count() {
    let mut writer = Writer::default();
    writer.annotation("my_block/self_attention", MAIN, 0, 10);
    writer.launched(kernel("x", 7, 10, 5), MAIN, 5);
    writer.launched(kernel("my_exchange", 13, 20, 5), MAIN, 15);
    let text = writer.finish();
    let rules = "(annotations: [(name: \"*/self_attention\", component: Attention, phase: W)], \
                 kernels: [(name: \"my_ex*\", component: Combine)])";
    let rules = Rules::read("rules.ron", rules).expect("rules");
    let found = read("trace.json", text.as_bytes(), &rules, Selection::default()).expect("a trace");
    assert_eq!(row(&found, Part::Attention, Some(Phase::W)).ops, 1);
    assert!(row(&found, Part::Combine, Some(Phase::F)).communicates);
    assert_eq!(breakdown(text.as_bytes()).expect("a trace").unnamed(), Nanos(10_000));
}
