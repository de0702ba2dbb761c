//! `dualweave search`: what it prints, that it prints the same on any number of threads, that what it writes can be used, and what it refuses.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const TINY: &str = "examples/tiny/job.ron";

fn search(arguments: &[&str]) -> Output {
    command(&[&["search"], arguments].concat())
}

fn command(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dualweave"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("it runs")
}

fn done(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&done(&search(&[arguments, &["--json"]].concat()))).expect("JSON")
}

fn refused(arguments: &[&str]) -> String {
    let output = search(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    // Diagnostics are broken into lines.
    String::from_utf8_lossy(&output.stderr).split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
}

fn snapshot(name: &str, text: &str) {
    insta::with_settings!({snapshot_path => "../snapshots", prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!(format!("search-{name}"), text);
    });
}

#[test]
fn the_tiny_job() {
    let text = done(&search(&[TINY, "--explain", "--price", "2", "--watts", "700", "--threads", "1"]));
    assert_eq!(text, done(&search(&[TINY, "--explain", "--price", "2", "--watts", "700", "--threads", "3"])));
    snapshot("tiny", &text);
    snapshot("tiny-what-if", &done(&search(&[TINY, "--what-if", "--without-rewrites", "all"])));
}

/// Mixtral on fewer layers and GPUs, what is quick to compile kept.
#[test]
fn a_job_in_the_middle() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = std::fs::read_to_string("examples/mixtral-8x7b/config.json").expect("the example");
    let fewer = config.replace("\"num_hidden_layers\": 32", "\"num_hidden_layers\": 8");
    assert_ne!(config, fewer);
    let job = std::fs::read_to_string("examples/mixtral-8x7b/job.ron").expect("the example");
    std::fs::write(folder.path().join("config.json"), fewer).expect("the folder can be written");
    let path = folder.path().join("job.ron");
    std::fs::write(&path, job).expect("the folder can be written");
    let path = path.to_str().expect("a path");
    let flags =
        [path, "--pp", "4", "--gpus", "16", "--keep", "micro-batch-size,recompute,sms", "--communication-sms", "20"];
    let text = done(&search(&flags));
    snapshot("mixtral", &text);
    let found = json(&flags);
    let step = |row: &Value| row["step_ns"].as_u64().expect("a time");
    let need = |row: &Value| row["memory_bytes"].as_u64().expect("bytes");
    let front = found["front"].as_array().expect("rows");
    for (faster, slower) in front.iter().zip(&front[1..]) {
        assert!(step(faster) < step(slower) && need(faster) > need(slower), "{text}");
    }
    for row in front {
        assert!(row["bound_ns"].as_u64().expect("a bound") <= step(row));
        assert!(found["bound_ns"].as_u64().expect("a bound") <= step(row));
        assert!(need(row) <= found["memory_limit_bytes"].as_u64().expect("bytes"));
        assert_eq!(row["configuration"]["communication_sms"], 20);
        assert_eq!(row["configuration"]["micro_batch_size"], found["given"]["configuration"]["micro_batch_size"]);
    }
}

/// The plan is safe, takes what was said, and the job gives the same plan.
#[test]
fn what_is_written_is_what_was_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let (plan, job, again) = (path("plan.ron"), path("job.ron"), path("again.ron"));
    let found = json(&[TINY, "--memory-limit-gb", "70", "-o", &plan, "--write-job", &job]);
    done(&command(&["verify", &plan]));
    let simulated: Value = serde_json::from_str(&done(&command(&["simulate", &plan, "--json"]))).expect("JSON");
    assert_eq!(simulated["step_ns"], found["front"][0]["step_ns"]);
    assert_eq!(simulated["tokens_per_step"], found["tokens_per_step"]);
    done(&command(&["compile", &job, "-o", &again]));
    assert_eq!(std::fs::read(plan).expect("a plan"), std::fs::read(again).expect("a plan"));
    // Nothing of a job is lost: the search begins where it ended.
    let next = json(&[&job]);
    assert_eq!(next["given"]["configuration"], found["front"][0]["configuration"]);
    assert!(next["front"][0]["step_ns"].as_u64() <= found["front"][0]["step_ns"].as_u64());
}

#[test]
fn jobs_survive_writing() {
    for name in ["tiny", "deepseek-v3", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-layer"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).join("job.ron");
        let job = dualweave::job::load(&path, &dualweave::job::Overrides::default()).expect("the example").job;
        let folder = tempfile::tempdir().expect("a folder");
        let written = folder.path().join("job.ron");
        std::fs::write(&written, job.to_ron()).expect("the folder can be written");
        let read = dualweave::job::load(&written, &dualweave::job::Overrides::default());
        assert_eq!(read.unwrap_or_else(|error| panic!("{name}: {error:?}\n{}", job.to_ron())).job, job, "{name}");
    }
}

#[test]
fn prices_are_told_by_simulate() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = folder.path().join("plan.ron");
    let plan = plan.to_str().expect("a path");
    done(&command(&["compile", TINY, "-o", plan]));
    let text = done(&command(&["simulate", plan, "--price", "2.5", "--watts", "700"]));
    assert!(text.contains("USD") && text.contains("MWh"), "{text}");
    let told: Value =
        serde_json::from_str(&done(&command(&["simulate", plan, "--price", "2.5", "--json"]))).expect("JSON");
    let hours = told["gpu_hours_per_trillion_tokens"].as_f64().expect("hours");
    assert_eq!(told["usd_per_trillion_tokens"].as_f64(), Some(2.5 * hours));
    assert!(told.get("mwh_per_trillion_tokens").is_none());
}

/// What is compiled with `auto` too is never slower, and can be written and compiled again.
#[test]
fn the_first_rows_are_compiled_with_auto() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let (plan, job, again) = (path("plan.ron"), path("job.ron"), path("again.ron"));
    let flags = [TINY, "--keep", "pp,ep,dp,tp,micro-batch-size,recompute,sms,payload"];
    let without = json(&flags);
    let with = json(&[&flags[..], &["--auto", "1", "-o", &plan, "--write-job", &job]].concat());
    let first = |found: &Value| found["front"][0].clone();
    let count = |found: &Value| found["compiled_in_full"].as_u64().expect("a number");
    assert_eq!(count(&with), count(&without) + 1);
    assert!(first(&with)["step_ns"].as_u64() < first(&without)["step_ns"].as_u64());
    assert_eq!(
        (first(&with)["configuration"]["schedule"].as_str(), &first(&with)["bound_ns"]),
        (Some("auto"), &Value::Null)
    );
    done(&command(&["verify", &plan]));
    done(&command(&["compile", &job, "-o", &again]));
    assert_eq!(std::fs::read(plan).expect("a plan"), std::fs::read(again).expect("a plan"));
}

/// Rows are what they are without it, with two columns more; and changes have those that pods and uneven loads make worth a look.
#[test]
fn disturbed_uneven_and_between_pods() {
    let kept = ["--keep", "pp,dp,tp,micro-batch-size,recompute,sms,payload", "--without-rewrites", "all"];
    let of = |more: &[&str]| json(&[&[TINY], &kept[..], more].concat());
    let (plain, disturbed) = (of(&[]), of(&["--jitter", "0.1", "--samples", "100"]));
    let rows = |of: &Value| [&of["given"]].into_iter().chain(of["front"].as_array().expect("rows")).cloned().collect();
    let (plain, disturbed): (Vec<Value>, Vec<Value>) = (rows(&plain), rows(&disturbed));
    assert_eq!(plain.len(), disturbed.len());
    for (plain, disturbed) in plain.iter().zip(&disturbed) {
        assert_eq!(plain["step_ns"], disturbed["step_ns"]);
        assert!(plain.get("disturbed").is_none());
        assert!(disturbed["disturbed"]["mean_ns"].as_u64() > disturbed["step_ns"].as_u64());
    }
    let text = done(&search(&[&[TINY], &kept[..], &["--jitter", "0.1", "--samples", "100"]].concat()));
    assert!(text.contains("┆ disturbed ┆") && text.contains("mean of 100 steps"), "{text}");

    let folder = tempfile::tempdir().expect("a folder");
    let job = folder.path().join("job.ron");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TINY);
    let overrides = dualweave::job::Overrides { imbalance: Some(1.5), ..Default::default() };
    let mut tiny = dualweave::job::load(&path, &overrides).expect("the example").job;
    (tiny.cluster.gpus_per_node, tiny.cluster.nodes, tiny.cluster.network.gb_s) = (1, 8, 1.0);
    tiny.cluster.pods = Some(dualweave::job::cluster::Pods { nodes: 1, oversubscription: 8.0 });
    std::fs::write(&job, tiny.to_ron()).expect("the folder can be written");
    let flags = [job.to_str().expect("a path"), "--what-if", "--without-rewrites", "all"];
    let told = done(&search(&flags));
    let gain = |change: &str| {
        let line = told.lines().find(|line| line.contains(change)).unwrap_or_else(|| panic!("{change}: {told}"));
        line.split('┆').nth(2).expect("a cell").trim().trim_end_matches(" %").parse::<f64>().expect("a number")
    };
    for change in ["pods without oversubscription", "experts evenly loaded", "twice the network"] {
        assert!(gain(change) > 0.5, "{change}: {told}");
    }
}

#[test]
fn what_cannot_be_searched_is_refused() {
    for (flags, expected) in [
        (&["--gpus", "12"][..], "12 GPUs are no whole nodes of 8"),
        (&["--gpus", "0"], "use 8"),
        (&["--gpus", "3"], "use 8"),
        (&["--gpus", "-8"], "invalid"),
        (&["--gpus", "8589934592"], "cluster.nodes"),
        (&["--gpus", "99999999999999999999"], "too large"),
        // 16 sequences cannot be divided over more than half of so many.
        (&["--gpus", "8000000"], "16 sequences a step cannot be divided"),
        (&["--memory-limit-gb", "0.001"], "fits in 1000.0 kB: the nearest needs at least"),
        (&["--keep", "colour"], "[possible values: pp"),
        (&["--keep", "schedule", "--schedule", "auto"], "give a published schedule"),
        (&["--price", "0"], "above 0"),
        (&["--watts", "nan"], "above 0"),
        (&["--threads", "0"], "0"),
        (&["--what-if", "--explain"], "cannot be used with"),
        (&["--what-if", "--jitter", "0.1"], "compared undisturbed"),
        (&["--samples", "5"], "--jitter"),
        (&["--imbalance", "3"], "from 1, even loads, to 2"),
        (&["--json", "-o", "-"], "only one of plan, job and JSON"),
        (&["-o", "same.ron", "--write-job", "same.ron"], "cannot both be written to one file"),
        (&["-o", TINY], "would be overwritten"),
        (&["--pp", "3"], "even number of ranks"),
    ] {
        let said = refused(&[&[TINY], flags].concat());
        assert!(said.contains(expected), "{flags:?}: {said}");
    }
    assert!(refused(&["nowhere/job.ron"]).contains("cannot be read"));
}
