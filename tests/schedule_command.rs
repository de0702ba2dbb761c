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

/// P4 M8 with equal costs at 1F1B's memory: 27 is optimal. Without the limit the two directions reach the bound, 25.
#[test]
fn auto_finds_known_optima() {
    let base = ["--kind", "auto", "--pp", "4", "--micro-batches", "8"];
    let linear = json(&[&base[..], &["--placement", "linear", "--memory", "4"]].concat());
    assert_eq!((linear["makespan"].to_string(), linear["longest_span"].to_string()), ("27".into(), "27".into()));
    assert!(numbers(&linear["peak_memory_per_rank"]).iter().all(|peak| *peak <= 4.0));
    assert_eq!(numbers(&linear["memory_per_rank"]), [4.0; 4]);
    let more = json(&[&base[..], &["--placement", "linear", "--memory", "7"]].concat());
    assert_eq!(more["longest_span"], 24);
    assert_eq!((&linear["kind"], &linear["placement"]), (&"auto".into(), &"linear".into()));
    let any = json(&base);
    assert_eq!((any["makespan"].to_string(), any["lower_bound"].to_string()), ("25".into(), "25".into()));
    assert_eq!(any["placement"], "bidirectional");
}

/// Where the placement is to be chosen, costs are those of a rank: one rank works as long, whatever it is. Where it is given, they are
/// those of a stage, as for the other kinds.
#[test]
fn costs_are_of_a_rank_or_of_a_stage() {
    for (extra, expected) in [
        (&[][..], "9.3"),
        (&["--placement", "linear"], "9.3"),
        (&["--placement", "v"], "18.6"),
        (&["--placement", "loop", "--stages-per-rank", "4"], "37.2"),
    ] {
        let base = ["--kind", "auto", "--pp", "1", "--micro-batches", "3", "--f", "1.1"];
        let report = json(&[&base[..], extra].concat());
        assert_eq!(report["makespan"].to_string(), expected, "{extra:?}");
    }
    // As much memory, in chunks of half the size: two of them are one activation.
    let base = ["--kind", "auto", "--pp", "2", "--micro-batches", "8", "--memory", "2"];
    let any = json(&base);
    assert!(numbers(&any["peak_memory_per_rank"]).iter().all(|peak| *peak <= 2.0), "{any}");
    let linear = json(&[&base[..], &["--placement", "linear"]].concat());
    assert!(any["makespan"].as_f64() <= linear["makespan"].as_f64());
}

#[test]
fn costs_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        let path = folder.path().join("costs.csv");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // By hand: down 1 + 0.5 + 2, back 2 + 1 + 4, the first stage's W at the end; hops of 0.25.
    let path = write("stage,f,i,w\n0,1,4,3\n1,0.5,1,1\n2,2,2,0\n");
    let args = ["--pp", "3", "--micro-batches", "1", "--comm", "0.25", "--costs", &path];
    for kind in ["gpipe", "auto"] {
        let report = json(&[&["--kind", kind, "--placement", "linear"], &args[..]].concat());
        // GPipe's backward of the middle stage is whole: its W stands in the way.
        let expected = if kind == "auto" { "14.5" } else { "15.5" };
        assert_eq!(report["makespan"].to_string(), expected, "{kind}");
    }
    // As many stages as two for each rank are a V or a loop.
    let path = write("stage,f,i,w\n0,1,1,1\n1,1,1,1\n2,1,1,1\n3,1,1,1\n");
    let two = json(&["--kind", "auto", "--pp", "2", "--micro-batches", "3", "--costs", &path]);
    assert!(two["placement"] == "v" || two["placement"] == "loop");
    assert_eq!(two["stages_per_rank"], 2);
    assert_eq!(json(&["--kind", "zb-v", "--pp", "2", "--micro-batches", "4", "--costs", &path])["kind"], "zb-v");
}

#[test]
fn memory_is_kept_or_refused() {
    let base = |kind: &'static str, memory: &'static str| {
        ["--kind", kind, "--pp", "4", "--micro-batches", "8", "--placement", "linear", "--memory", memory]
    };
    assert!(json(&base("zb-h1", "4"))["makespan"] == 27);
    let said = refusal(&base("gpipe", "4"));
    assert!(said.contains("gpipe holds 8 activations on rank 0, which may hold 4"), "{said}");
    assert!(said.contains("--memory 8"), "{said}");
    assert_eq!(numbers(&json(&base("auto", "2,3,4,1"))["memory_per_rank"]), [2.0, 3.0, 4.0, 1.0]);
    for (memory, expected) in [
        ("0", "rank 0 may hold 0, but a micro-batch alone holds 1 there"),
        ("4,4", "--memory has 2 numbers, but there are 4 ranks"),
        ("x", "invalid"),
    ] {
        let said = refusal(&base("auto", memory));
        assert!(said.contains(expected), "{said:?} should say {expected:?}");
    }
    let said = refusal(&["--kind", "auto", "--pp", "4", "--micro-batches", "8", "--placement", "v", "--memory", "1"]);
    assert!(said.contains("a micro-batch alone holds 2 there"), "{said}");
}

#[test]
fn a_bad_file_of_costs_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("costs.csv");
    let path = path.to_str().unwrap();
    let base = ["--kind", "auto", "--pp", "2", "--micro-batches", "8", "--costs", path];
    let said = refusal(&base);
    assert!(said.contains("cannot be read"), "{said}");
    for (text, expected) in [
        (&b""[..], "does not start with the line `stage,f,i,w`"),
        (b"stage,f,i\n0,1,1\n", "does not start with the line `stage,f,i,w`"),
        (b"stage,f,i,w\n", "has no stages"),
        (b"stage,f,i,w\n0,1,1,1\n1,1,1\n", "line 3: 3 columns, not 4"),
        (b"stage,f,i,w\n0,1,1,1\n2,1,1,1\n", "line 3: column `stage` is `2`, but this is the line of stage 1"),
        (b"stage,f,i,w\n0,1,x,1\n", "line 2: column `i` is `x`: a cost is a decimal number"),
        (b"stage,f,i,w\n\n0,1,1,-1\n", "line 3: column `w` is `-1`: a cost is not negative"),
        (b"stage,f,i,w\n0,0.0,1,1\n", "line 2: column `f` must be above 0"),
        (b"stage,f,i,w\n0,1,1,1\n1,1,1,1\n2,1,1,1\n", "costs of 3 stages cannot be laid over 2 ranks"),
        (b"stage,f,i,w\n\xff", "is not text: byte 12 is not UTF-8"),
    ] {
        fs::write(path, text).unwrap();
        let said = refusal(&base);
        assert!(said.contains(expected), "{said:?} should say {expected:?}");
    }
    fs::write(path, "stage,f,i,w\n0,1,1,1\n1,1,1,1\n").unwrap();
    for (args, expected) in [
        (&["--kind", "zb-v"][..], "costs of 2 stages, but zb-v over 2 ranks has 4"),
        (&["--kind", "auto", "--placement", "v"], "another number of stages"),
        (&["--kind", "1f1b", "--placement", "v"], "lays its stages out as `linear`"),
        (&["--kind", "1f1b", "--f", "2"], "cannot be used with"),
        (&["--kind", "auto", "--pp", "0"], "not 0: use 1"),
    ] {
        let rest = ["--pp", "2", "--micro-batches", "8", "--costs", path];
        let rest = if args.contains(&"--pp") { &rest[2..] } else { &rest[..] };
        let said = refusal(&[args, rest].concat());
        assert!(said.contains(expected), "{said:?} should say {expected:?}");
    }
}
