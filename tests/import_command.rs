//! `dualweave import` and the ways to PyTorch's files, as a person runs them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn dualweave(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dualweave")).current_dir(folder).args(args).output().expect("the command starts")
}

fn stdout(folder: &Path, args: &[&str]) -> String {
    let output = dualweave(folder, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Standard error of a run that must be refused, without the diagnostic's frame and line breaks.
fn refusal(folder: &Path, args: &[&str]) -> String {
    let output = dualweave(folder, args);
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    assert!(output.stdout.is_empty(), "{args:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
}

/// A folder with a file of PyTorch's as `file.csv`.
fn folder_with(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let from = format!("{}/tests/data/torch-csv/{name}.csv", env!("CARGO_MANIFEST_DIR"));
    fs::copy(from, folder.path().join("file.csv")).expect("a copy");
    folder
}

const IMPORT: [&str; 4] = ["import", "--format", "torch-csv", "file.csv"];

/// Under unequal costs something shorter is found in the same memory; what is written is read again, and says the same.
#[test]
fn schedules_are_improved_in_their_memory() {
    for (name, pp, micro_batches, stages) in
        [("interleaved1f1b_pp2_stages4_m4.compute_comms", "2", "4", 4), ("zbv_pp4_m8.compute_only", "4", "8", 8)]
    {
        let folder = folder_with(name);
        let costs: String = (0..stages).map(|s| format!("{s},{},{},{}\n", 1 + s % 3, 2 - s % 2, 1 + s / 3)).collect();
        fs::write(folder.path().join("costs.csv"), format!("stage,f,i,w\n{costs}")).expect("a file");
        let of = ["--pp", pp, "--micro-batches", micro_batches, "--costs", "costs.csv", "--json"];
        let json = |args: &[&str]| -> serde_json::Value {
            let args = [&["import", "--format", "torch-csv"], args, &of].concat();
            serde_json::from_str(&stdout(folder.path(), &args)).expect("JSON")
        };
        let report = json(&["file.csv", "--improve", "-o", "better.csv"]);
        let number = |value: &serde_json::Value| value.as_f64().expect("a number");
        let (before, after) = (number(&report["read"]["makespan"]), number(&report["improved"]["makespan"]));
        assert!(after < before, "{name}: {before} to {after}");
        assert!(number(&report["lower_bound"]) <= after, "{name}");
        let peaks = |of: &str| -> Vec<u64> {
            let list = report[of]["peak_activations_per_rank"].as_array().expect("a list");
            list.iter().map(|peak| peak.as_u64().expect("a number")).collect()
        };
        let (read, improved) = (peaks("read"), peaks("improved"));
        assert!(
            improved.iter().zip(&read).all(|(improved, read)| improved <= read),
            "{name}: {read:?} to {improved:?}"
        );

        json(&["file.csv", "--improve", "-o", "whole.csv", "--with-communication"]);
        for (file, communication) in [("better.csv", false), ("whole.csv", true)] {
            let report = json(&[file]);
            assert_eq!(number(&report["read"]["makespan"]).to_bits(), after.to_bits(), "{name}: {file}");
            assert_eq!(report["communication"], communication, "{name}: {file}");
        }
    }
}

#[test]
fn the_report_says_what_is_there() {
    let folder = folder_with("zbv_pp2_m4.compute_only");
    let text = stdout(folder.path(), &[&IMPORT[..], &["--pp", "2", "--micro-batches", "4"]].concat());
    insta::assert_snapshot!(text, @r"
    file.csv: 4 stages on 2 ranks (v), 4 micro-batches, 48 actions, compute-only
    Every chunk is computed once, on one rank, with what it reads there; no rank waits for ever.
    ┌─────────┬──────────┬────────────────┬──────────────────┐
    │         ┆ makespan ┆ largest bubble ┆ activations held │
    ╞═════════╪══════════╪════════════════╪══════════════════╡
    │ as read ┆       25 ┆      1 (4.0 %) ┆                4 │
    └─────────┴──────────┴────────────────┴──────────────────┘
    No schedule over these stages and in this memory is shorter than 25.
    ");
}

#[test]
fn what_is_no_schedule_is_refused_at_its_cell() {
    let folder = folder_with("1f1b_pp2_m4.compute_only");
    let import = |text: &str| {
        fs::write(folder.path().join("file.csv"), text).expect("a file");
        refusal(folder.path(), &[&IMPORT[..], &["--pp", "2", "--micro-batches", "1"]].concat())
    };
    let said = import("0F0,0B0\n1F0xyz,1B0\n");
    assert!(said.contains("row 2, cell 1: `1F0xyz` is no action") && said.contains("file.csv:2:1"), "{said}");
    assert!(import("0F0,0B0\n1F0,1F0,1B0\n").contains("row 2, cell 2: `1F0` does again what cell 1 has done"));
    assert!(import("0F0,0B0\n1B0,1F0\n").contains("row 2, cell 1: `1B0` reads what `1F0` makes"));
    assert!(import("0F0,0B0\n").contains("1 row for 2 ranks"));
    assert!(import("0F0,0B0\n1F0,1B0\n2F0,2B0\n").contains("a row 3 for 2 ranks"));
}

/// Stages that are laid out otherwise than ours are read and timed, but not searched.
#[test]
fn other_layouts_are_read() {
    let folder = folder_with("custom_uneven_pp2_s3_m2.compute_only");
    let of = ["--pp", "2", "--micro-batches", "2"];
    let report: serde_json::Value =
        serde_json::from_str(&stdout(folder.path(), &[&IMPORT[..], &of, &["--json"]].concat())).expect("JSON");
    assert_eq!((&report["placement"], &report["lower_bound"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    // By hand: rank 0 runs without a gap to 2B1, which ends at 8; 1B1 ends at 10, and 0B1 two later.
    assert_eq!(report["read"]["makespan"], 12);
    let said = refusal(folder.path(), &[&IMPORT[..], &of, &["--improve"]].concat());
    assert!(said.contains("laid out in a way of their own"), "{said}");
}

#[test]
fn plans_and_timetables_are_exported() {
    let folder = tempfile::tempdir().expect("a folder");
    let job = format!("{}/examples/tiny/job.ron", env!("CARGO_MANIFEST_DIR"));
    for (schedule, stages) in [("1f1b", 4), ("zb-v", 8), ("dualpipev", 8)] {
        stdout(folder.path(), &["compile", &job, "--schedule", schedule, "-o", "plan.ron"]);
        let export = |flags: &[&str]| {
            stdout(folder.path(), &[&["export", "plan.ron", "--format", "torch-csv", "-o", "out.csv"], flags].concat());
            let read = ["import", "--format", "torch-csv", "out.csv", "--pp", "4", "--micro-batches", "8", "--json"];
            let report: serde_json::Value = serde_json::from_str(&stdout(folder.path(), &read)).expect("JSON");
            assert_eq!(report["stages"], stages, "{schedule}");
            report["communication"].clone()
        };
        assert_eq!((export(&[]), export(&["--with-communication"])), (false.into(), true.into()));
    }
    stdout(folder.path(), &["compile", &job, "--schedule", "dualpipe", "-o", "plan.ron"]);
    let said = refusal(folder.path(), &["export", "plan.ron", "--format", "torch-csv"]);
    assert!(said.contains("each stage would stand on two ranks") && said.contains("--schedule dualpipev"), "{said}");
    let said = refusal(folder.path(), &["export", "plan.ron", "--format", "stage", "--with-communication"]);
    assert!(said.contains("is for `--format torch-csv`"), "{said}");
    let text = stdout(
        folder.path(),
        &["schedule", "--kind", "1f1b", "--pp", "2", "--micro-batches", "4", "--format", "torch-csv"],
    );
    let theirs = format!("{}/tests/data/torch-csv/1f1b_pp2_m4.compute_only.csv", env!("CARGO_MANIFEST_DIR"));
    assert_eq!(text, fs::read_to_string(theirs).expect("a file"));
}

/// A folder with the example of a trace as `trace.json.gz`.
fn folder_with_a_trace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let from = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/traces/deepseek-v3.json.gz");
    fs::copy(from, folder.path().join("trace.json.gz")).expect("a copy");
    folder
}

const TRACE: [&str; 4] = ["import", "--format", "kineto", "trace.json.gz"];

#[test]
fn a_trace_is_reported_by_components() {
    let folder = folder_with_a_trace();
    insta::assert_snapshot!(stdout(folder.path(), &TRACE), @r"
    trace.json.gz · NVIDIA H800 · GPU 0 · 1 007 events · 963 kernels

      span          129.0 ms   100.0 %   from the first kernel to the last
      busy          122.0 ms    94.5 %   computation runs
      exposed      6524.0 µs     5.1 %   only communication runs
      bubble        509.0 µs     0.4 %   nothing runs
      all comm      114.5 ms    88.8 %   communication runs

    ┌───────────┬───────┬──────┬───────────┬───────────┬─────────┬───────────┬─────────┬─────────┬─────┐
    │ component ┆ phase ┆ runs ┆      mean ┆      busy ┆ of span ┆   exposed ┆ kernels ┆ streams ┆ SMs │
    ╞═══════════╪═══════╪══════╪═══════════╪═══════════╪═════════╪═══════════╪═════════╪═════════╪═════╡
    │ attn      ┆ F     ┆    4 ┆ 4362.8 µs ┆   17.5 ms ┆  13.5 % ┆           ┆     260 ┆ 7       ┆ 112 │
    │ attn      ┆ I     ┆    4 ┆ 9340.8 µs ┆   37.4 ms ┆  29.0 % ┆           ┆     400 ┆ 7       ┆ 112 │
    │ attn      ┆ W     ┆    4 ┆ 2388.5 µs ┆ 9554.0 µs ┆   7.4 % ┆           ┆      20 ┆ 7       ┆ 112 │
    │ dispatch  ┆ F     ┆    4 ┆ 6690.2 µs ┆   26.8 ms ┆  20.7 % ┆  782.0 µs ┆      12 ┆ 27      ┆  20 │
    │ dispatch  ┆ B     ┆    4 ┆ 7486.8 µs ┆   29.9 ms ┆  23.2 % ┆ 3448.0 µs ┆       8 ┆ 27      ┆  20 │
    │ mlp       ┆ F     ┆    4 ┆ 4603.8 µs ┆   18.4 ms ┆  14.3 % ┆           ┆      79 ┆ 7       ┆ 112 │
    │ mlp       ┆ I     ┆    4 ┆ 5306.0 µs ┆   21.2 ms ┆  16.5 % ┆           ┆     116 ┆ 7       ┆ 112 │
    │ mlp       ┆ W     ┆    4 ┆ 4493.0 µs ┆   18.0 ms ┆  13.9 % ┆           ┆      48 ┆ 7, 23   ┆ 112 │
    │ combine   ┆ F     ┆    4 ┆ 8684.0 µs ┆   34.7 ms ┆  26.9 % ┆  732.0 µs ┆       8 ┆ 27      ┆  20 │
    │ combine   ┆ B     ┆    4 ┆ 5769.2 µs ┆   23.1 ms ┆  17.9 % ┆ 1562.0 µs ┆      12 ┆ 27      ┆  20 │
    └───────────┴───────┴──────┴───────────┴───────────┴─────────┴───────────┴─────────┴─────────┴─────┘

    ┌────────┬──────────┬─────────┬─────────┐
    │ stream ┆     busy ┆ of span ┆ kernels │
    ╞════════╪══════════╪═════════╪═════════╡
    │      7 ┆ 118.2 ms ┆  91.6 % ┆     907 │
    │     23 ┆  11.4 ms ┆   8.8 % ┆      16 │
    │     27 ┆ 114.5 ms ┆  88.8 % ┆      40 │
    └────────┴──────────┴─────────┴─────────┘
    0.0 % of the time in kernels is in no component. A kernel that waits for other GPUs counts as running.
    SMs: at most as many as a kernel has thread blocks; fewer where blocks share one. Median over the time.
    Gap between kernels that were launched in time: 2142 ns; for a job's GPU `measured: (launch_us: 2.142)`.
    ");
}

/// What is written of a trace is what `overlap` reads: its durations are those of the report.
#[test]
fn a_traces_layer_is_overlapped() {
    let folder = folder_with_a_trace();
    let json =
        |args: &[&str]| -> serde_json::Value { serde_json::from_str(&stdout(folder.path(), args)).expect("JSON") };
    let report = json(&[&TRACE[..], &["--json", "-o", "components.csv"]].concat());
    let mut computation = 0;
    for row in report["components"].as_array().expect("a list") {
        let mean = row["mean_ns"].as_u64().expect("a number");
        computation += if row["communicates"] == false { mean } else { 0 };
    }
    let overlap = json(&["overlap", "--components", "components.csv", "--json"]);
    let bound = overlap["bound_ms"].as_f64().expect("a number");
    assert!((bound * 1e6 - computation as f64).abs() < 1.0, "{bound} and {computation}");
    let same = stdout(folder.path(), &[&TRACE[..], &["-o", "-"]].concat());
    assert_eq!(same, fs::read_to_string(folder.path().join("components.csv")).expect("a file"));
}

#[test]
fn rules_and_steps_are_for_traces() {
    let folder = folder_with_a_trace();
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/traces/rules.ron"), folder.path().join("rules.ron"))
        .expect("a copy");
    let with = |more: &[&'static str]| [&TRACE[..], more].concat();
    assert_eq!(stdout(folder.path(), &with(&["--rules", "rules.ron"])), stdout(folder.path(), &TRACE));
    for (more, message) in [
        (&["--pp", "4"][..], "`--pp` is for `--format torch-csv`"),
        (&["--improve"], "`--improve` is for `--format torch-csv`"),
        (&["--steps", "3..2"], "the last step is before the first"),
        (&["--steps", "x"], "write one number, or two as `7..9`"),
        (&["--steps", "3"], "has no step from 3 to 3"),
        (&["--device", "1"], "has nothing on GPU 1"),
        (&["--rules", "nowhere.ron"], "`nowhere.ron` cannot be read"),
        (&["-o", "trace.json.gz"], "would be overwritten"),
    ] {
        let said = refusal(folder.path(), &with(more));
        assert!(said.contains(message), "{more:?}: {said}");
    }
    let said = refusal(folder.path(), &["import", "--format", "torch-csv", "x.csv"]);
    assert!(said.contains("--pp <P>") && said.contains("--micro-batches <M>"), "{said}");
    let csv = ["import", "--format", "torch-csv", "x.csv", "--pp", "1", "--micro-batches", "1", "--steps", "1"];
    assert!(refusal(folder.path(), &csv).contains("`--steps` is for `--format kineto`"));
    fs::write(folder.path().join("part.json"), "[{}]").expect("a file");
    let said = refusal(folder.path(), &["import", "--format", "kineto", "part.json"]);
    assert!(said.contains("`part.json` has no GPU kernels"), "{said}");
}
