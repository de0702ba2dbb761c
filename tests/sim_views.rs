//! What `simulate` and `export` write, on hand-built plans: text, JSON, Perfetto traces, tokens.

#[path = "sim/fixture.rs"]
mod fixture;
#[path = "host_runtime/shapes.rs"]
#[allow(dead_code, reason = "other tests have more kinds of models")]
mod shapes;

use std::process::{Command, Output};

use dualweave::ir::Placement;
use dualweave::plan::Task::{B, F, FB, I, RecvAct, RecvGrad, SendAct, SendGrad, Update, W};
use dualweave::plan::{Plan, Ring, RingOf};
use dualweave::sim::simulate;
use dualweave::units::Bytes;
use dualweave::view::perfetto;
use serde_json::Value;

/// Two micro-batches on two ranks; the last two actions of rank 1 overlap.
fn plan() -> Plan {
    let mut plan = fixture::plan(
        Placement::Linear,
        2,
        &[
            &[
                (F(0, 0), &[]),
                (SendAct(0, 0, 1), &[0]),
                (F(0, 1), &[]),
                (SendAct(0, 1, 1), &[2]),
                (RecvGrad(1, 0, 1), &[]),
                (I(0, 0), &[4]),
                (RecvGrad(1, 1, 1), &[]),
                (B(0, 1), &[6]),
                (W(0, 0), &[]),
                (Update(0), &[]),
            ],
            &[
                (RecvAct(0, 0, 0), &[]),
                (F(1, 0), &[0]),
                (RecvAct(0, 1, 0), &[]),
                (FB((1, 1), (1, 0)), &[2]),
                (SendGrad(1, 0, 0), &[3]),
                (B(1, 1), &[]),
                (SendGrad(1, 1, 0), &[5]),
            ],
        ],
    );
    for (rank, peer) in [(0, 1), (1, 0)] {
        let ring = |of| Ring { of, slots: 2, bytes: Bytes(10), at: Bytes(0) };
        plan.ranks[rank].arena = Bytes(16 * 256);
        plan.ranks[rank].rings = vec![ring(RingOf::Inbox(peer)), ring(RingOf::Outbox(peer))];
    }
    plan.seal();
    plan
}

/// Runs the command on a plan; the plan's path goes after the first argument.
fn dualweave(plan: &Plan, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("plan.ron");
    std::fs::write(&path, plan.to_ron()).expect("a plan written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dualweave"));
    command.arg(arguments[0]).arg(&path).args(&arguments[1..]);
    command.output().expect("the command runs")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[test]
fn the_report_of_a_plan() {
    insta_settings().bind(|| {
        insta::assert_snapshot!("simulate_report", stdout(&dualweave(&plan(), &["simulate"])));
        insta::assert_snapshot!("simulate_report_of_a_rank", stdout(&dualweave(&plan(), &["simulate", "--rank", "1"])));
    });
}

#[test]
fn the_report_of_a_plan_that_does_not_fit() {
    let mut plan = plan();
    plan.machine.memory = Bytes(6005 + 500);
    let text = stdout(&dualweave(&plan, &["simulate"]));
    let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("It does not fit")).collect();
    assert_eq!(lines[0], "It does not fit: rank 0 needs 10.1 kB, 3591 B more than 6505 B.");
    assert_eq!(lines[1], "  Ranks that need too much besides: 1.");
    assert_eq!(lines[2], "  Activations of 2 chunks are held at the peak; 1 would fit.");
    assert!(lines.contains(&"  Or: activations, MLP smaller by 40.0 %, all else the same."), "{lines:#?}");
}

#[test]
fn the_json_holds_everything() {
    let json: Value = serde_json::from_str(&stdout(&dualweave(&plan(), &["simulate", "--json"]))).expect("JSON");
    let simulation = simulate(&plan()).expect("a simulation");
    assert_eq!(json["step_ns"], simulation.step.0);
    assert_eq!(json["mfu_peak_flop_per_s"], 1e12);
    assert_eq!(json["fits"], true);
    for (rank, timing) in simulation.ranks.iter().enumerate() {
        let of = &json["ranks"][rank];
        assert_eq!(of["bubble_ns"], timing.bubble.0);
        assert_eq!(of["items"].as_array().map(Vec::len), Some(timing.items.len()));
        assert_eq!(of["items"][1]["end_ns"], timing.items[1].end.0);
        assert_eq!(of["waits"].as_array().map(Vec::len), Some(timing.waits.len()));
    }
    assert_eq!(json["ranks"][1]["items"][3]["task"], "FB(1,1;1,0)");
    assert_eq!(json["programs"][4]["exposed_ns"], 50);

    let one: Value =
        serde_json::from_str(&stdout(&dualweave(&plan(), &["simulate", "--json", "--rank", "1"]))).expect("JSON");
    assert_eq!(one["ranks"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["ranks"][0], json["ranks"][1]);
}

#[test]
fn a_rank_that_is_not_there_is_refused() {
    let output = dualweave(&plan(), &["simulate", "--rank", "2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("there is no rank 2: the plan has 2"), "{stderr}");
}

#[test]
fn a_trace_has_every_item_and_every_op() {
    let plan = plan();
    let simulation = simulate(&plan).expect("a simulation");
    let mut bytes = Vec::new();
    perfetto::write(&plan, &simulation, &mut bytes).expect("memory takes it");
    let trace: Value = serde_json::from_slice(&bytes).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    let of_phase = |phase: &str| events.iter().filter(|event| event["ph"] == phase).collect::<Vec<_>>();

    let slices = of_phase("X");
    let items: usize = plan.ranks.iter().map(|rank| rank.items.len()).sum();
    // Seven programs of one op, and a pair of three.
    assert_eq!(slices.len(), items + 7 + 3);
    assert_eq!((of_phase("s").len(), of_phase("f").len()), (4, 4));

    // The pair on rank 1 starts at 210 ns: its exchange is on a thread of its own, from 310 to 410.
    let exchange = slices.iter().find(|slice| slice["name"] == "Dispatch F").expect("the exchange");
    assert_eq!((exchange["ts"].to_string(), exchange["dur"].to_string()), ("0.31".into(), "0.1".into()));
    assert_eq!((&exchange["pid"], &exchange["tid"]), (&Value::from(2), &Value::from(2)));
    assert_eq!((&exchange["args"]["micro_batch"], &exchange["args"]["nvlink_bytes"]), (&1.into(), &100.into()));

    // Every thread that has events has a name, and ops lie inside the item before them.
    for slice in &slices {
        let named = |event: &&&Value| {
            event["name"] == "thread_name" && event["pid"] == slice["pid"] && event["tid"] == slice["tid"]
        };
        assert_eq!(of_phase("M").iter().filter(named).count(), 1, "{slice}");
    }
    assert!(String::from_utf8(bytes).expect("text").contains("\"displayTimeUnit\":\"ms\""));
}

#[test]
fn the_chart_shows_simulated_times() {
    let text = stdout(&dualweave(&plan(), &["show", "--width", "80"]));
    insta_settings().bind(|| insta::assert_snapshot!("show_chart", text));
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn tokens_are_the_compute_items() {
    let text = stdout(&dualweave(&plan(), &["export", "--format", "tokens"]));
    assert_eq!(text, "F0.0 F0.1 B0.0 BW0.1 W0.0\nF0.0 FB0.1:0.0 BW0.1\n");
    let text = stdout(&dualweave(&plan(), &["export", "--format", "stage"]));
    assert_eq!(text, "0F0 0F1 0I0 0B1 0W0\n1F0 (1F1;1B0)OVERLAP_F_B 1B1\n");
}

#[test]
fn a_trace_goes_into_a_file_whole() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("trace.json");
    let name = path.display().to_string();
    let output = dualweave(&plan(), &["export", "--format", "perfetto", "-o", &name]);
    assert!(stdout(&output).is_empty());
    let trace: Value = serde_json::from_slice(&std::fs::read(&path).expect("the trace")).expect("JSON");
    assert!(trace["traceEvents"].is_array());
    let piped = dualweave(&plan(), &["export", "--format", "perfetto"]);
    assert_eq!(std::fs::read(&path).expect("the trace"), piped.stdout);
}

fn insta_settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings
}
