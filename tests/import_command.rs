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
