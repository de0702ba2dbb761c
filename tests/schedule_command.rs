//! `dualweave schedule`, as a person runs it.

use std::fs;
use std::process::{Command, Output};

fn schedule(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dualweave")).arg("schedule").args(args).output().unwrap()
}

/// Standard output of a run that must do.
fn stdout(args: &[&str]) -> String {
    let output = schedule(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a run that must be refused, without the diagnostic's frame and line breaks.
fn refusal(args: &[&str]) -> String {
    let output = schedule(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    assert!(output.stdout.is_empty(), "{args:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
}

fn json(args: &[&str]) -> serde_json::Value {
    let all: Vec<&str> = args.iter().copied().chain(["--format", "json"]).collect();
    serde_json::from_str(&stdout(&all)).unwrap()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn tokens_are_the_published_bytes() {
    for (kind, pp, m) in
        [("dualpipe", "4", "8"), ("dualpipe", "8", "20"), ("dualpipev", "4", "8"), ("dualpipev", "8", "20")]
    {
        for (format, ending) in [("tokens", "txt"), ("stage", "stage.txt")] {
            let path = format!("{}/tests/data/schedules/{kind}_pp{pp}_m{m}.{ending}", env!("CARGO_MANIFEST_DIR"));
            let ours = stdout(&["--kind", kind, "--pp", pp, "--micro-batches", m, "--format", format]);
            assert_eq!(ours, fs::read_to_string(&path).unwrap(), "{path}");
        }
    }
}

#[test]
fn json_has_the_published_numbers() {
    let at = |fb| json(&["--kind", "dualpipe", "--pp", "8", "--micro-batches", "20", "--fb", fb]);
    let report = at("2.4");
    assert_eq!(report["makespan"].to_string(), "57.6");
    assert_eq!(numbers(&report["bubble_per_rank"]), [3.0, 3.6, 4.2, 4.2, 4.2, 4.2, 3.6, 3.0]);
    assert_eq!(numbers(&report["peak_activations_per_rank"]), [9.0; 8]);
    let bound = report["lower_bound"].as_f64().unwrap();
    assert!(bound <= 57.6 && bound > 54.6, "{bound}");
    assert!((report["gap"].as_f64().unwrap() - (57.6 / bound - 1.0)).abs() < 1e-12);
    assert_eq!(report["actions"][0][17], "FB0.7:1.3");
    assert_eq!(report["kind"], "dualpipe");
    assert_eq!((&report["pp"], &report["micro_batches"]), (&8.into(), &20.into()));
    // Whole numbers stay whole.
    assert_eq!(at("3")["makespan"].to_string(), "66");
    let four = json(&["--kind", "dualpipe", "--pp", "4", "--micro-batches", "8", "--fb", "2.4"]);
    assert_eq!(four["makespan"].to_string(), "23.6");
}

/// The span counts from a rank's own start. 27 is the known optimum of P4 M8 at 1F1B's memory.
#[test]
fn the_longest_span_is_a_ranks_own() {
    let report = json(&["--kind", "zb-h1", "--pp", "4", "--micro-batches", "8"]);
    assert_eq!((report["makespan"].to_string(), report["longest_span"].to_string()), ("27".into(), "27".into()));
    let report = json(&["--kind", "zb-v", "--pp", "4", "--micro-batches", "8"]);
    assert_eq!((report["makespan"].to_string(), report["longest_span"].to_string()), ("51".into(), "48".into()));
}

#[test]
fn costs_and_transfers_are_exact() {
    // 8 forwards and backwards of one micro-batch, 6 transfers.
    let args = ["--kind", "gpipe", "--pp", "4", "--micro-batches", "1", "--f", "0.1", "--i", "0.2", "--w", "0"];
    let report = json(&[&args[..], &["--comm", "0.000000001"]].concat());
    assert_eq!(report["makespan"].to_string(), "1.200000006");
    assert_eq!(report["lower_bound"], report["makespan"]);
    assert_eq!(report["gap"].as_f64(), Some(0.0));
}

#[test]
fn interleaved_takes_stages_per_rank() {
    let three = ["--kind", "interleaved", "--pp", "2", "--micro-batches", "4", "--stages-per-rank", "3"];
    assert!(stdout(&[&three[..], &["--format", "stage"]].concat()).contains("5F3"));
    let default = stdout(&["--kind", "interleaved", "--pp", "2", "--micro-batches", "4", "--format", "stage"]);
    let data = include_str!("data/torch-csv/interleaved1f1b_pp2_stages4_m4.compute_only.csv");
    assert_eq!(
        default.split_whitespace().count(),
        data.split([',', '\n']).filter(|cell| !cell.trim().is_empty()).count()
    );
    assert!(
        refusal(&["--kind", "1f1b", "--pp", "2", "--micro-batches", "4", "--stages-per-rank", "2"]).contains("fixes")
    );
}

#[test]
fn the_default_is_a_chart_and_plain_when_piped() {
    let chart = stdout(&["--kind", "dualpipe", "--pp", "8", "--micro-batches", "20"]);
    assert!(!chart.contains('\u{1b}'));
    assert!(chart.contains("rank 0 FFFFFFFfiwfiwfiwfFb─...fB─"), "{chart}");
    assert!(chart.contains("makespan 66 · lower bound 63 (gap 4.8 %) · largest bubble 6 (9.1 %) · peak activations 9"));
    assert!(chart.lines().all(|line| line.chars().count() <= 100));
}

#[test]
fn what_cannot_be_is_refused_with_what_can() {
    let base =
        |extra: &[&'static str]| refusal(&[&["--kind", "1f1b", "--pp", "4", "--micro-batches", "8"], extra].concat());
    for (said, expected) in [
        (refusal(&["--kind", "dualpipe", "--pp", "7", "--micro-batches", "20"]), "not 7: use 6 or 8"),
        (refusal(&["--kind", "dualpipe", "--pp", "8", "--micro-batches", "15"]), "not 15: use 16"),
        (refusal(&["--kind", "gpipe", "--pp", "0", "--micro-batches", "1"]), "not 0: use 1"),
        (refusal(&["--kind", "gpipe", "--pp", "4097", "--micro-batches", "1"]), "not 4097: use 4096"),
        (refusal(&["--kind", "gpipe", "--pp", "4294967295", "--micro-batches", "4294967295"]), "use 4096"),
        (refusal(&["--kind", "gpipe", "--pp", "4096", "--micro-batches", "1025"]), "at most 1024 micro-batches"),
        (refusal(&["--kind", "zb-v", "--pp", "4", "--micro-batches", "4294967295"]), "at most 524288 micro-batches"),
        (refusal(&["--kind", "none", "--pp", "4", "--micro-batches", "8"]), "possible values"),
        (base(&["--f", "0"]), "--f must be above 0"),
        (base(&["--i", "0.0"]), "--i must be above 0"),
        (base(&["--fb", "0"]), "--fb must be above 0"),
        (base(&["--f", "-1"]), "not negative"),
        (base(&["--comm", "-0.5"]), "not negative"),
        (base(&["--w", "NaN"]), "decimal number"),
        (base(&["--w", "1e3"]), "decimal number"),
        (base(&["--w", "0.0000000001"]), "at most 9 decimal places"),
        (base(&["--w", "99999999999999999999"]), "too large"),
        (base(&["--w", "9999999999999999999", "--f", "0.000000001"]), "too many digits"),
    ] {
        assert!(said.contains(expected), "{said:?} should say {expected:?}");
    }
}
