//! `tune` and `fidelity` where there is no GPU: what they refuse. With one, `docs/gpu.md` says what they print.

use std::path::Path;
use std::process::{Command, Output};

fn dualweave(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dualweave"));
    // A GPU that is there is not seen.
    command.current_dir(folder).args(args).env("CUDA_VISIBLE_DEVICES", "");
    command.output().expect("the command starts")
}

/// What a command says that ends with exit code 2, on one line.
fn refusal(folder: &Path, args: &[&str]) -> String {
    let output = dualweave(folder, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
}

#[test]
fn without_a_gpu_nothing_is_measured_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy("examples/tiny/job.ron", folder.path().join("job.ron")).expect("the example");
    let no_gpu =
        |text: &str| text.contains("no lib") || text.contains("no GPU") || text.contains("no CUDA-capable device");
    let tune =
        refusal(folder.path(), &["tune", "job.ron", "--pp", "1", "--dp", "1", "--ep", "1", "--schedule", "1f1b"]);
    assert!(no_gpu(&tune), "{tune}");
    assert!(!folder.path().join("profile.ron").exists());
    assert!(dualweave(folder.path(), &["compile", "job.ron"]).status.success());
    let fidelity = refusal(folder.path(), &["fidelity", "plan.ron", "--trace", "trace.json"]);
    assert!(no_gpu(&fidelity), "{fidelity}");
    assert!(!folder.path().join("trace.json").exists());
}

#[test]
fn what_cannot_be_measured_is_said_first() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy("examples/tiny/job.ron", folder.path().join("job.ron")).expect("the example");
    let said = |args: &[&str]| refusal(folder.path(), args);
    assert!(said(&["tune", "job.ron", "-o", "-", "--json"]).contains("cannot both go to standard output"));
    assert!(said(&["tune", "job.ron", "-o", "job.ron"]).contains("would be overwritten"));
    assert!(said(&["tune", "job.ron", "--budgets", "0"]).contains("0 is not in 1.."));
    assert!(said(&["tune", "missing.ron"]).contains("cannot be read"));
    assert!(said(&["fidelity", "job.ron"]).contains("a plan is what `dualweave compile` writes"));
    // An unsafe plan is not run.
    assert!(dualweave(folder.path(), &["compile", "job.ron", "-o", "plan.ron"]).status.success());
    let plan = std::fs::read_to_string(folder.path().join("plan.ron")).expect("the plan");
    std::fs::write(folder.path().join("wrong.ron"), plan.replacen("(F(0,0),", "(F(0,1),", 1)).expect("a file");
    assert!(said(&["fidelity", "wrong.ron"]).contains("not safe to run"));
}

/// The published trace, as a profile: nothing is measured here, and a plan takes what the trace says.
#[test]
fn a_trace_makes_a_profile_without_a_gpu() {
    let folder = tempfile::tempdir().expect("a folder");
    let there = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deepseek-v3").join(name);
        path.to_str().expect("a name").to_owned()
    };
    let (job, spans) = (there("job.ron"), there("spans.csv"));
    let made = dualweave(folder.path(), &["tune", &job, "--components", &spans, "--json"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let told: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let ops = told["profile"]["ops"].as_array().expect("ops");
    let time = |name: &str| {
        let op = ops.iter().find(|op| op["op"] == name).unwrap_or_else(|| panic!("{name} is not in {told}"));
        (op["points"][0]["sms"].as_u64(), op["points"][0]["time"].as_u64())
    };
    assert_eq!(time("Attention I"), (Some(112), Some(9_540_000)));
    // Both send tokens to the experts in FP8: one work, the mean of 6.74 and 5.78 ms.
    assert_eq!(time("Dispatch F and Combine I"), (Some(20), Some(6_260_000)));
    assert_eq!(ops.len(), 8);

    // What is no trace of the job is refused, and leaves nothing.
    let said = |args: &[&str]| refusal(folder.path(), args);
    let tune = |more: &[&str]| said(&[&["tune", &job, "--components", &spans, "-o", "other.ron"], more].concat());
    assert!(tune(&["--sms"]).contains("cannot be used with"));
    assert!(tune(&["--communication-sms", "each"]).contains("had some number"));
    assert!(tune(&["--ep", "1"]).contains("does not have"));
    std::fs::write(folder.path().join("wrong.csv"), "attn,F,none\n").expect("a file");
    assert!(said(&["tune", &job, "--components", "wrong.csv", "-o", "other.ron"]).contains("no duration"));
    assert!(!folder.path().join("other.ron").exists());
}
