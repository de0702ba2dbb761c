//! Traces that PyTorch wrote on a GPU (`tests/data/kineto/make_traces.py`), against PyTorch's own sums, and against another way to find
//! what a kernel belongs to: by the numbers that operators and kernels bear, where dualweave goes by launches and arrows.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;

use dualweave::interop::kineto::{Breakdown, Part, Phase, Rules, Selection, read};
use serde_json::Value;

use super::{breakdown, row};

fn packed(name: &str) -> Vec<u8> {
    fs::read(format!("tests/data/kineto/{name}.json.gz")).expect("the trace is there")
}

fn unpacked(name: &str) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed(name)[..]).read_to_string(&mut text).expect("it is packed");
    text
}

/// PyTorch's sum of the time in kernels under an annotation, in nanoseconds.
fn total(trace: &str, name: &str) -> u64 {
    let text = fs::read_to_string("tests/data/kineto/totals.json").expect("the sums are there");
    let totals: Value = serde_json::from_str(&text).expect("JSON");
    (totals[trace][name][1].as_f64().expect("a number") * 1e3).round() as u64
}

/// A training step with annotations in the forward pass alone.
#[test]
fn forward_sums_are_pytorchs() {
    let found = breakdown(&packed("whole")).expect("a trace");
    for (name, part) in
        [("attn", Part::Attention), ("dispatch", Part::Dispatch), ("mlp", Part::Mlp), ("combine", Part::Combine)]
    {
        let row = row(&found, part, Some(Phase::F));
        assert_eq!((row.total.0, row.runs), (total("whole", name), 4), "{name}");
    }
    let optimizer = total("whole", "Optimizer.step#AdamW.step") + total("whole", "Optimizer.zero_grad#AdamW.zero_grad");
    assert_eq!(row(&found, Part::Optimizer, None).total.0, optimizer);
    assert_eq!((found.gpu.as_deref(), found.sms, found.rank), (Some("NVIDIA H200"), Some(132), Some((0, 1))));
    assert_eq!((found.steps.as_slice(), found.unusable), (&[1, 2][..], 0));
}

/// What of an event is needed for the other way.
struct Event {
    cat: String,
    name: String,
    thread: String,
    start: f64,
    end: f64,
    args: Value,
}

fn events(text: &str) -> Vec<Event> {
    let trace: Value = serde_json::from_str(text).expect("JSON");
    // Relative to the first, so that floats tell nanoseconds apart.
    let all = trace["traceEvents"].as_array().expect("a list");
    let base = all.iter().filter_map(|event| event["ts"].as_f64()).fold(f64::MAX, f64::min);
    let one = |event: &Value| {
        let start = event["ts"].as_f64()? - base;
        Some(Event {
            cat: event["cat"].as_str()?.to_owned(),
            name: event["name"].as_str()?.to_owned(),
            thread: event["tid"].to_string(),
            start,
            end: start + event["dur"].as_f64()?,
            args: event["args"].clone(),
        })
    };
    all.iter().filter_map(one).collect()
}

/// The component that an annotation or a module of these traces stands for.
fn component(event: &Event) -> Option<&'static str> {
    let modules = ["TransformerBlock", "Attention", "GroupedExperts"].map(|name| event.name.contains(name));
    match (event.cat.as_str(), modules) {
        ("user_annotation", _) => ["attn", "dispatch", "mlp", "combine"].into_iter().find(|name| *name == event.name),
        ("python_function", [true, _, _] | [_, true, _]) => Some("attn"),
        ("python_function", [_, _, true]) => Some("mlp"),
        _ => None,
    }
}

/// What a kernel belongs to, and whether it is backward: by the operator that bears its number; within autograd, by the operator of
/// the forward pass that bears the node's number.
fn second_way(events: &[Event], kernel: &Event) -> (Option<&'static str>, bool) {
    let within = |event: &Event, outer: &Event| {
        event.thread == outer.thread && outer.start <= event.start && event.end <= outer.end
    };
    let annotation = |event: &Event| {
        let around = events.iter().filter(|outer| component(outer).is_some() && within(event, outer));
        let innermost = around.min_by(|one, other| (one.end - one.start).total_cmp(&(other.end - other.start)));
        innermost.and_then(component)
    };
    let number = &kernel.args["External id"];
    let Some(operator) = events.iter().find(|event| event.cat == "cpu_op" && event.args["External id"] == *number)
    else {
        return (None, false);
    };
    let mut nodes = events.iter().filter(|event| event.name.starts_with("autograd::engine") && within(operator, event));
    let Some(node) = nodes.next() else { return (annotation(operator), false) };
    let mut sequence = &node.args["Sequence number"];
    if node.name.ends_with("AccumulateGrad") {
        // It adds what the node before it made.
        let before = events.iter().filter(|event| {
            event.name.starts_with("autograd::engine")
                && !event.name.ends_with("AccumulateGrad")
                && event.thread == node.thread
                && event.start < node.start
        });
        let last = before.max_by(|one, other| one.start.total_cmp(&other.start)).expect("a node before");
        sequence = &last.args["Sequence number"];
    }
    // Operators within operators bear the same number until one of them is recorded: the last of them is it.
    let forward = events.iter().filter(|event| {
        event.cat == "cpu_op"
            && event.args["Sequence number"] == *sequence
            && event.thread != node.thread
            && event.start < node.start
    });
    (forward.filter_map(annotation).next_back(), true)
}

/// Kernels and microseconds in them.
type Sums = BTreeMap<(Option<&'static str>, bool), (u64, f64)>;

fn sums(trace: &str) -> Sums {
    let events = events(&unpacked(trace));
    let mut sums = Sums::new();
    let gpu = ["kernel", "gpu_memcpy", "gpu_memset"];
    for kernel in events.iter().filter(|event| gpu.contains(&event.cat.as_str())) {
        let sum = sums.entry(second_way(&events, kernel)).or_default();
        *sum = (sum.0 + 1, sum.1 + kernel.end - kernel.start);
    }
    sums
}

/// That the rows of these components are these sums.
fn check(trace: &str, parts: &[(&'static str, Part)]) {
    let (sums, found) = (sums(trace), breakdown(&packed(trace)).expect("a trace"));
    for &(name, part) in parts {
        for (backward, phase) in [(false, Phase::F), (true, Phase::B)] {
            let (kernels, time) = sums[&(Some(name), backward)];
            let row = row(&found, part, Some(phase));
            assert_eq!((row.ops, row.runs), (kernels, 4), "{name} {phase:?}");
            assert!((row.total.0 as f64 / 1e3 - time).abs() < 0.05, "{name} {phase:?}: {} and {time}", row.total);
        }
    }
}

#[test]
fn backward_kernels_find_their_forward_annotations() {
    let parts =
        [("attn", Part::Attention), ("dispatch", Part::Dispatch), ("mlp", Part::Mlp), ("combine", Part::Combine)];
    check("whole", &parts);
}

/// The same step without annotations, but with modules, named as torchtitan's are.
#[test]
fn modules_are_as_good_as_annotations() {
    check("modules", &[("attn", Part::Attention), ("mlp", Part::Mlp)]);
    let found = breakdown(&packed("modules")).expect("a trace");
    assert_eq!(row(&found, Part::Mlp, Some(Phase::F)).total.0, total("modules", "mlp"));
}

/// Annotations of the backward pass stand on the thread that waits for autograd, not on the one that launches.
#[test]
fn annotated_backwards_reach_into_autograd() {
    let found = breakdown(&packed("parts")).expect("a trace");
    for (name, part) in [("attn(F)", Part::Attention), ("dispatch(F)", Part::Dispatch), ("mlp(F)", Part::Mlp)] {
        let row = row(&found, part, Some(Phase::F));
        assert_eq!((row.total.0, row.runs), (total("parts", name), 2), "{name}");
    }
    // All of autograd, and what `attn(B)` and `mlp(B)` launch themselves.
    let text = fs::read_to_string("tests/data/kineto/totals.json").expect("the sums are there");
    let totals: Value = serde_json::from_str(&text).expect("JSON");
    let nodes = totals["parts"].as_object().expect("a table").keys();
    let nodes: u64 = nodes.filter(|name| name.starts_with("autograd::engine")).map(|name| total("parts", name)).sum();
    let backward = [Part::Attention, Part::Mlp].map(|part| row(&found, part, Some(Phase::B)));
    let own = total("parts", "attn(B)") + total("parts", "mlp(B)");
    assert_eq!(backward[0].total.0 + backward[1].total.0, nodes + own);
    assert_eq!(backward.map(|row| row.runs), [2, 2]);
    assert_eq!(found.unnamed().0, 0);
}

/// Kernels of a replayed graph belong to the annotation around the replay.
#[test]
fn graphs_are_launched_at_once() {
    let found = breakdown(&packed("graph")).expect("a trace");
    let row = row(&found, Part::Attention, Some(Phase::F));
    assert_eq!((row.ops, row.runs, found.ops), (12, 2, 12));
    assert!(found.gap.is_some_and(|gap| (500..5_000).contains(&gap.0)), "{:?}", found.gap);
}

#[test]
fn steps_are_told_apart() {
    let of = |steps| -> Breakdown {
        let selection = Selection { device: Some(0), steps };
        read("whole.json.gz", &packed("whole")[..], &Rules::default(), selection).expect("a trace")
    };
    let (all, first, second) = (of(None), of(Some((1, 1))), of(Some((2, 2))));
    assert_eq!(of(Some((1, 2))).rows, all.rows);
    assert_eq!((&first.steps[..], &second.steps[..]), (&[1][..], &[2][..]));
    assert_eq!(first.ops + second.ops, all.ops);
    assert_eq!(row(&first, Part::Attention, Some(Phase::B)).runs, 2);
}

/// Of a CPU alone nothing is to be said; but its file is read.
#[test]
fn a_trace_without_a_gpu_is_said_to_be_one() {
    let error = breakdown(&packed("cpu")).expect_err("no GPU");
    assert!(error.message().contains("has no GPU kernels: 126 events, 2 of them annotations and modules"), "{error}");
}

/// Packed or not, with or without the document around them, events say the same.
#[test]
fn forms_of_the_file_do_not_matter() {
    let wanted = breakdown(&packed("whole")).expect("a trace");
    let text = unpacked("whole");
    assert_eq!(breakdown(text.as_bytes()).expect("a trace"), wanted);
    let start = text.find("\"traceEvents\": [").expect("there") + "\"traceEvents\": ".len();
    let end = text.rfind("],\n  \"traceName\"").expect("there");
    let bare = breakdown(&text.as_bytes()[start..=end]).expect("a list");
    assert_eq!((bare.busy, bare.exposed, bare.events), (wanted.busy, wanted.exposed, wanted.events));
    assert_eq!((bare.sms, bare.gpu, bare.rank), (None, None, None));
    // Two members in one file, as tools that pack in parallel write them.
    let (one, other) = text.split_at(text.len() / 3);
    let packed: Vec<u8> = [one, other].iter().flat_map(|part| pack(part.as_bytes())).collect();
    assert_eq!(breakdown(&packed).expect("a trace"), wanted);
}

fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut packed).expect("it is packed");
    packed
}
