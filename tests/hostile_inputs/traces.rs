//! Traces of PyTorch's profiler (`import --format kineto`), plain and packed, and files of rules.

use std::io::Read as _;

use dualweave::interop::kineto::{Rules, Selection, components, read};
use dualweave::view::breakdown::{Json, to_text};

use crate::edits::edited;
use crate::guard::{Answer, try_all};

/// One of each kind of event.
const TRACE: &str = r#"{
"schemaVersion": 1,
"deviceProperties": [{"id": 0, "name": "NVIDIA H800", "numSms": 132}],
"distributedInfo": {"backend": "nccl", "rank": 3, "world_size": 16},
"traceEvents": [
{"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#1", "pid": 438, "tid": 438, "ts": 5232568470400.131, "dur": 90.5},
{"ph": "X", "cat": "user_annotation", "name": "attn(F)", "pid": 438, "tid": 438, "ts": 5232568470418.131, "dur": 20.5},
{"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 438, "tid": 438, "ts": 5232568470420.453, "dur": 8, "args": {"cbid": 211, "correlation": 7933}},
{"ph": "s", "id": 1, "pid": 438, "tid": 438, "ts": 5232568470421.169, "cat": "fwdbwd", "name": "fwdbwd"},
{"ph": "B", "cat": "user_annotation", "name": "PP:0I3", "pid": 438, "tid": 438, "ts": 5232568470450.000},
{"ph": "X", "cat": "cpu_op", "name": "autograd::engine::evaluate_function: MmBackward0", "pid": 438, "tid": 480, "ts": 5232568470460.000, "dur": 9},
{"ph": "X", "cat": "cpu_op", "name": "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", "pid": 438, "tid": 480, "ts": 5232568470470.000, "dur": 5},
{"ph": "f", "id": 1, "pid": 438, "tid": 480, "ts": 5232568470461.169, "cat": "fwdbwd", "name": "fwdbwd", "bp": "e"},
{"ph": "X", "cat": "cuda_driver", "name": "cuLaunchKernelEx", "pid": 438, "tid": 480, "ts": 5232568470462.0, "dur": 1, "args": {"correlation": 7934}},
{"ph": "X", "cat": "cuda_runtime", "name": "cudaMemcpyAsync", "pid": 438, "tid": 480, "ts": 5232568470471.0, "dur": 1, "args": {"correlation": 7935}},
{"ph": "E", "pid": 438, "tid": 438, "ts": 5232568470480.000},
{"ph": "X", "cat": "kernel", "name": "nvjet_tst", "pid": 0, "tid": 7, "ts": 5232568470500.5, "dur": 18.25, "args": {"device": 0, "stream": 7, "correlation": 7933, "grid": [8, 12, 1], "block": [128, 1, 1], "blocks per SM": 0.727}},
{"ph": "X", "cat": "kernel", "name": "void deep_ep::internode::dispatch<false>(int4*)", "pid": 0, "tid": 27, "ts": 5232568470510.5, "dur": 28.25, "args": {"device": 0, "stream": 27, "correlation": 7934, "grid": [20, 1, 1]}},
{"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoD (Device -> Device)", "pid": 0, "tid": 7, "ts": 5232568470540.5, "dur": 1.5, "args": {"device": 0, "stream": 7, "correlation": 7935, "memory bandwidth (GB/s)": inf}},
{"ph": "X", "cat": "gpu_user_annotation", "name": "combine(B)", "pid": 0, "tid": 27, "ts": 5232568470550, "dur": 30, "args": {"External id": 1538}},
{"ph": "X", "cat": "kernel", "name": "ncclDevKernel_SendRecv", "pid": 0, "tid": 27, "ts": 5232568470551, "dur": 10, "args": {"device": 0, "stream": 27, "correlation": 9, "grid": [16, 1, 1], "Collective name": "send"}},
{"name": "process_name", "ph": "M", "ts": 0, "pid": 438, "tid": 0, "args": {"name": "python"}}
],
"traceName": "trace.json"
}
"#;

const RULES: &str = "(\n    annotations: [\n        (name: \"attn(?)\", component: Attention),\n        (name: \"PP:#I#\", phase: I),\n    \
                     ],\n    kernels: [(name: \"*deep_ep*\", collective: \"send\", component: Dispatch, in_backward: Combine)],\n    \
                     communication: [\"nccl*\"],\n    defaults: false,\n)\n";

/// What the command goes on to do with a trace.
fn used(bytes: &[u8], rules: &Rules, selection: Selection) -> Answer {
    match read("trace.json", bytes, rules, selection) {
        Err(error) => Answer::Refused(error),
        Ok(found) => {
            assert!(found.busy + found.exposed + found.bubble == found.span, "{found:?}");
            assert!(
                found.busy <= found.span
                    && found.communication <= found.span
                    && found.span <= found.total + found.bubble
            );
            assert!(!to_text("trace.json", &found, 120).is_empty());
            serde_json::to_string(&Json::new(&found)).expect("finite numbers");
            components("trace.json", &found).map_or_else(Answer::Unusable, |_| Answer::Used)
        }
    }
}

fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut packed).expect("it is packed");
    packed
}

/// Everything that is missing for a layer, so that some traces can be used to the end.
fn layer() -> Vec<u8> {
    let names =
        ["attn(F)", "attn(B)", "dispatch(F)", "dispatch(B)", "mlp(F)", "mlp(B)", "mlp(W)", "combine(F)", "combine(B)"];
    let events = (0..).zip(names).map(|(at, name)| {
        let at = 10 * at;
        format!(
            "{{\"ph\": \"X\", \"cat\": \"gpu_user_annotation\", \"name\": \"{name}\", \"pid\": 0, \"tid\": 7, \"ts\": {at}, \"dur\": 9}},\n\
             {{\"ph\": \"X\", \"cat\": \"kernel\", \"name\": \"k\", \"pid\": 0, \"tid\": 7, \"ts\": {at}.5, \"dur\": 8}}"
        )
    });
    format!("[\n{}\n]\n", events.collect::<Vec<_>>().join(",\n")).into_bytes()
}

#[test]
fn traces() {
    let bases = [TRACE.as_bytes().to_vec(), layer()];
    let rules = Rules::default();
    let tally = try_all(
        "traces",
        20_000,
        |dice| {
            let bytes = edited(&bases, dice);
            match dice.below(8) {
                // Edited within what is packed, or packed and then edited.
                0 => pack(&bytes),
                1 => edited(&[pack(&bytes)], dice),
                _ => bytes,
            }
        },
        |bytes, dice| {
            // Mostly what a person gives: nothing.
            let device = [Some(0), Some(u32::MAX)].get(dice.below(16)).copied().flatten();
            let steps = [Some((1, 1)), Some((0, u64::MAX))].get(dice.below(16)).copied().flatten();
            used(bytes, &rules, Selection { device, steps })
        },
    );
    assert!(tally.refused > 3_000 && tally.unusable > 1_000 && tally.used > 1_000, "{tally}");
}

#[test]
fn rules_of_traces() {
    let defaults = include_bytes!("../../src/interop/kineto/defaults.ron").to_vec();
    let bases = [RULES.as_bytes().to_vec(), RULES.as_bytes().to_vec(), defaults];
    let tally = try_all(
        "rules of traces",
        10_000,
        |dice| edited(&bases, dice),
        |bytes, _| match Rules::read("rules.ron", &String::from_utf8_lossy(bytes)) {
            Err(error) => Answer::Refused(error),
            Ok(rules) => used(TRACE.as_bytes(), &rules, Selection::default()),
        },
    );
    assert!(tally.refused > 2_000 && tally.unusable > 500, "{tally}");
}
