//! `dualweave diff`: what it says of plans that differ in one thing, and the text of a plan that others' snapshot tests can keep.

use std::path::Path;
use std::process::{Command, Output};

use dualweave::job::{Overrides, load};
use dualweave::passes::compile;
use dualweave::view::plan_text::render;

fn dualweave(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dualweave"));
    command.current_dir(folder).args(args).output().expect("the command starts")
}

/// A folder with plans of the smallest example, each compiled with these flags besides.
fn plans(of: &[(&str, &[&str])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy("examples/tiny/job.ron", folder.path().join("job.ron")).expect("the example");
    for (name, flags) in of {
        let args = [&["compile", "job.ron", "--pp", "2", "--micro-batches", "4", "-o", name], *flags].concat();
        assert!(dualweave(folder.path(), &args).status.success(), "{name}");
    }
    folder
}

fn told(folder: &Path, args: &[&str], code: i32) -> String {
    let output = dualweave(folder, &[&["diff"], args].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_same_plan_is_the_same() {
    let folder = plans(&[("a.ron", &[]), ("b.ron", &[])]);
    assert_eq!(told(folder.path(), &["a.ron", "b.ron"], 0), "The plans are the same.\n");
    assert_eq!(told(folder.path(), &["a.ron", "b.ron", "--full"], 0), "");
    assert!(told(folder.path(), &["a.ron", "b.ron", "--json"], 0).contains("\"same\": true"));
}

#[test]
fn other_sms_are_told_by_op() {
    let rules = ["--without-rewrites", "all", "--overlap", "deepseek"];
    let eight = [&["--communication-sms", "8"], &rules[..]].concat();
    let twelve = [&["--communication-sms", "12"], &rules[..]].concat();
    let folder = plans(&[("a.ron", &eight), ("b.ron", &twelve)]);
    let text = told(folder.path(), &["a.ron", "b.ron"], 1);
    let programs = text.split("Programs\n").nth(1).expect("programs");
    assert!(programs.contains("FB of stages 1 and 0:") && programs.contains("8 → 12 SMs for Combine"), "{text}");
    assert!(!text.contains("Stages\n") && !text.contains("Compiled from"), "{text}");
    // The other way round it is the other way round.
    let back = told(folder.path(), &["b.ron", "a.ron"], 1);
    assert!(back.contains("12 → 8 SMs for Combine"), "{back}");
    let full = told(folder.path(), &["a.ron", "b.ron", "--full"], 1);
    assert!(full.starts_with("--- a.ron\n+++ b.ron\n"), "{full}");
    let count =
        |sign: &str, what: &str| full.lines().filter(|line| line.starts_with(sign) && line.contains(what)).count();
    assert!(count("-", ", 8 SMs") > 0, "{full}");
    assert_eq!(count("-", ", 8 SMs"), count("+", ", 12 SMs"), "{full}");
}

#[test]
fn another_schedule_and_another_machine_are_told() {
    let folder = plans(&[
        ("a.ron", &["--schedule", "1f1b"]),
        ("b.ron", &["--schedule", "gpipe"]),
        ("c.ron", &["--memory-limit-gb", "40", "--schedule", "1f1b"]),
    ]);
    let text = told(folder.path(), &["a.ron", "b.ron"], 1);
    assert!(text.contains("origin.schedule: 1f1b → gpipe"), "{text}");
    // Rank 0 runs F0 F1 B0 F2 ... under 1F1B and all forwards first under GPipe; rank 1 too.
    assert!(
        text.contains("rank 0: ") && text.contains("rank 1: ") && text.contains(" moved, 0 removed, 0 added"),
        "{text}"
    );
    let text = told(folder.path(), &["a.ron", "c.ron"], 1);
    assert!(text.contains("machine.memory: 80000000000 → 40000000000"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&told(folder.path(), &["a.ron", "b.ron", "--json"], 1)).expect("JSON");
    assert_eq!(json["same"], false);
    assert_eq!(json["settings"]["origin.schedule"]["new"], "gpipe");
    let (old, new) = (json["timetable_ns"]["old"].as_u64(), json["timetable_ns"]["new"].as_u64());
    assert!(old.is_some() && new.is_some() && json["ranks"]["0"]["moved"].as_u64() > Some(0), "{json}");
}

#[test]
fn other_stages_and_shapes_are_told() {
    let folder = plans(&[("a.ron", &["--schedule", "1f1b"]), ("b.ron", &["--schedule", "zb-v"])]);
    let text = told(folder.path(), &["a.ron", "b.ron"], 1);
    // A V has four stages where two ranks had two.
    assert!(text.contains("layout.stages: 2 → 4") && text.contains("\n  3: – → "), "{text}");
    assert!(text.contains("new, ") && text.contains("gone, "), "{text}");
}

#[test]
fn what_is_no_plan_is_refused() {
    let folder = plans(&[("a.ron", &[])]);
    let output = dualweave(folder.path(), &["diff", "a.ron", "job.ron"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("a plan is what `dualweave compile` writes"));
    assert_eq!(dualweave(folder.path(), &["diff", "a.ron"]).status.code(), Some(2));
}

#[test]
fn a_plan_as_text() {
    let overrides = Overrides {
        pp: Some(2),
        dp: Some(2),
        ep: Some(2),
        micro_batches: Some(4),
        without_rewrites: Some(vec!["all".to_owned()]),
        ..Overrides::default()
    };
    let mut job = load(Path::new("examples/tiny/job.ron"), &overrides).expect("the example").job;
    job.model.layers = 2;
    let plan = compile(&job).expect("a plan").plan;
    assert_eq!(render(&plan), render(&plan.clone()));
    insta::with_settings!({snapshot_path => "../snapshots", prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!("plan_as_text", render(&plan));
    });
}
