//! The subcommand: what it prints, where, and with which exit code.

use std::path::Path;
use std::process::{Command, Output};

use dualweave::plan::{Plan, Task};
use dualweave::units::Bytes;

use crate::plan_by_hand::{linear, v};
use crate::plan_edit::drop_wait;

/// Runs `dualweave verify` in a folder of its own that holds `text` as `plan.ron`.
fn verify_file(text: &str, args: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plan.ron"), text).unwrap();
    verify_in(folder.path(), args)
}

fn verify_in(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dualweave"));
    command.arg("verify").arg("plan.ron").args(args).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A plan with one wait too few.
fn broken() -> Plan {
    let mut plan = linear();
    drop_wait(&mut plan, 1, Task::F(1, 2), Task::RecvAct(0, 2, 0));
    plan.seal();
    plan
}

#[test]
fn a_safe_plan_is_one_line() {
    let output = verify_file(&v().to_ron(), &[]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "plan.ron: safe: 2 ranks, 39 items, 13 programs, 14 rules\n");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_broken_plan_is_named_and_refused() {
    let output = verify_file(&broken().to_ron(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stdout),
        "plan.ron: not safe: 1 violation of 1 rule\n\
         rank 1, item 9, F(1,2): reads the activation of micro-batch 2 before RecvAct(0,2) from rank 0 (item 8) has ended \
         [read-before-write]\n"
    );
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_rest_is_counted() {
    let mut plan = linear();
    plan.layout.micro_batches = 2000;
    plan.seal();
    let output = verify_file(&plan.to_ron(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(lines.len(), 22);
    assert_eq!(lines[0], "plan.ron: not safe: 11 976 violations of 1 rule");
    assert_eq!(lines[21], "… and 11 956 more [completeness]");
}

#[test]
fn what_is_not_well_formed_is_asked_no_further() {
    let mut plan = linear();
    plan.layout.stages = 3;
    plan.seal();
    let output = verify_file(&plan.to_ron(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let last = text(&output.stdout).lines().last();
    assert_eq!(last, Some("the 13 other rules are asked once the plan is well-formed"));
}

#[test]
fn an_edited_plan_is_noted_but_not_refused() {
    let mut plan = linear();
    plan.machine.memory = Bytes(plan.machine.memory.0 + 1);
    let output = verify_file(&plan.to_ron(), &[]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "note: `plan.ron` was edited after it was compiled: its digest is another\n");
}

#[test]
fn json_says_the_same() {
    let output = verify_file(&broken().to_ron(), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({
        "plan": "plan.ron",
        "safe": false,
        "digest_matches": true,
        "checked": { "ranks": 2, "items": 40, "programs": 8, "rules": 14 },
        "counts": { "read-before-write": 1 },
        "violations": [{
            "rule": "read-before-write",
            "rank": 1,
            "item": 9,
            "action": "F(1,2)",
            "message": "reads the activation of micro-batch 2 before RecvAct(0,2) from rank 0 (item 8) has ended",
        }],
    });
    assert_eq!(value, expected);
}

#[test]
fn what_is_no_plan_is_bad_input() {
    let output = verify_file("(version: 1, and: nothing)", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    let folder = tempfile::tempdir().unwrap();
    let output = verify_in(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("`plan.ron` cannot be read"));
}
