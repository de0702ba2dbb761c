//! The command line under bad weather: files that are not what they should be, and outputs that cannot be written. Each
//! time there is one diagnostic, exit code 2, nothing on stdout, and the files are as they were.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/traces/deepseek-v3.json.gz");
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny/job.ron");

fn dualweave(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dualweave")).args(args).output().expect("the command starts")
}

/// A shell line in which `"$@"` is the command.
#[cfg(unix)]
fn in_shell(line: &str, args: &[&str]) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", line, "sh", env!("CARGO_BIN_EXE_dualweave")]).args(args).output().expect("a shell")
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Stdout of a command that must do.
fn done(args: &[&str]) -> String {
    let output = dualweave(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// That a run was refused as it should be; the diagnostic in one line, without its frame.
fn refused(what: &str, output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{what}: {text}");
    assert!(!text.contains("panicked") && !text.contains('\u{1b}'), "{what}: {text}");
    let diagnostics = text.lines().filter(|line| line.starts_with("  × ") || line.starts_with("error: ")).count();
    assert_eq!(diagnostics, 1, "{what}: {text}");
    assert!(text.starts_with("  × ") || text.starts_with("error: "), "{what}: something is said before: {text}");
    text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
}

/// That arguments are refused, with nothing on stdout.
fn refusal(args: &[&str]) -> String {
    let output = dualweave(args);
    assert!(output.stdout.is_empty(), "{args:?}");
    refused(&format!("{args:?}"), &output)
}

/// The text of examples/tiny's plan.
static PLAN: LazyLock<String> = LazyLock::new(|| done(&["compile", TINY, "-o", "-"]));

/// A folder with examples/tiny's plan in it.
fn folder_with_plan() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = folder.path().join("plan.ron");
    fs::write(&plan, &*PLAN).expect("the folder can be written");
    (folder, plan)
}

/// Commands that read a plan.
const READERS: [&[&str]; 7] = [
    &["verify"],
    &["verify", "--json"],
    &["simulate"],
    &["show"],
    &["export", "--format", "tokens"],
    &["export", "--format", "stage"],
    &["export", "--format", "perfetto"],
];

/// One that reads a plan too, and takes its time.
const RUN: &[&str] = &["run"];

/// One that reads a file of costs.
const COSTS: &[&str] = &["schedule", "--kind", "gpipe", "--pp", "2", "--micro-batches", "2", "--costs"];

/// Every command that prints, given a plan.
fn printers(plan: &str) -> Vec<Vec<&str>> {
    let mut all: Vec<Vec<&str>> = READERS.iter().map(|reader| [reader, &[plan][..]].concat()).collect();
    all.extend([
        vec!["--help"],
        vec!["--version"],
        vec!["help", "schedule"],
        vec!["compile", "--help"],
        vec!["compile", TINY, "-o", "-"],
        vec!["compare", TINY],
        vec!["compare", TINY, "--json"],
        vec!["overlap", TINY],
        vec!["overlap", TINY, "--json"],
        vec!["simulate", plan, "--json"],
        vec!["simulate", plan, "--rank", "1"],
        vec!["simulate", plan, "--report", "-"],
        vec!["simulate", plan, "--svg", "-"],
        vec!["import", "--format", "kineto", TRACE],
        vec!["import", "--format", "kineto", TRACE, "--json"],
        vec!["import", "--format", "kineto", TRACE, "-o", "-"],
    ]);
    for format in ["chart", "tokens", "stage", "json"] {
        all.push(vec!["schedule", "--kind", "dualpipe", "--pp", "4", "--micro-batches", "8", "--format", format]);
    }
    all
}

#[test]
fn files_that_are_no_plans_are_refused() {
    let (folder, good) = folder_with_plan();
    let digits = |number: &str| PLAN.replacen("micro_batches:8", &format!("micro_batches:{number}"), 1).into_bytes();
    let contents: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "cannot be read"),
        ("binary", vec![0x7f, b'E', b'L', b'F', 0xff, 0xfe, 0, 0], "not text"),
        ("zeros", vec![0; 4096], "cannot be read"),
        ("truncated", PLAN.as_bytes()[..PLAN.len() / 2].to_vec(), "cannot be read"),
        ("version", PLAN.replace("version: 3", "version: 7").into_bytes(), "plan of version 7"),
        ("unknown", PLAN.replace("dp: 2,", "dp: 2, colour: 3,").into_bytes(), "named `colour`"),
        ("duplicate", PLAN.replace("dp: 2,", "dp: 2, dp: 2,").into_bytes(), "`dp`"),
        ("overflow", digits("1000000000000000000"), "cannot be read"),
        ("huge", digits("1e30"), "cannot be read"),
        ("negative", digits("-8"), "cannot be read"),
        ("nan", digits("NaN"), "cannot be read"),
        ("deep", "(".repeat(100_000).into_bytes(), "cannot be read"),
        ("job", fs::read(TINY).expect("the example is there"), "a plan is what `dualweave compile` writes"),
    ];
    for (name, content, expected) in contents {
        let path = folder.path().join(name);
        assert!(content != PLAN.as_bytes(), "{name} is no change");
        fs::write(&path, content).expect("the folder can be written");
        for reader in READERS.into_iter().chain([RUN]) {
            let said = refusal(&[reader, &[path_text(&path)]].concat());
            assert!(said.contains(expected), "{name}: {said}");
        }
    }
    for reader in READERS.into_iter().chain([RUN]) {
        assert!(refusal(&[reader, &["nowhere/plan.ron"]].concat()).contains("`nowhere/plan.ron` cannot be read"));
        assert!(refusal(&[reader, &[path_text(folder.path())]].concat()).contains("is a directory"));
        assert!(refusal(&[reader, &[""]].concat()).len() > 10);
        assert!(refusal(reader).contains("PLAN"));
    }
    assert!(refusal(&["simulate", path_text(&good), "--rank", "4"]).contains("from 0 to 3"));
    assert!(refusal(&["simulate", path_text(&good), "--rank", "-1"]).contains("-1 is not in 0"));
    assert!(refusal(&["show", path_text(&good), "--width", "39"]).contains("39 is not in 40"));
}

#[test]
fn files_that_are_no_jobs_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let job = fs::read_to_string(TINY).expect("the example is there");
    let with = |from: &str, to: &str| {
        assert!(job.contains(from), "{from}");
        job.replacen(from, to, 1).into_bytes()
    };
    let contents: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "the file is empty"),
        ("binary", vec![0x7f, b'E', b'L', b'F', 0xff, 0xfe, 0, 0], "not text"),
        ("truncated", job.as_bytes()[..job.len() / 2].to_vec(), "the file ends too early"),
        ("unknown", with("dp: 2,", "dp: 2, colour: 3,"), "`colour`"),
        ("layers", with("layers: 8", "layers: 1000000000000000000"), "layers"),
        ("huge", with("nodes: 1", "nodes: 1e30"), "nodes"),
        ("rate", with("gb_s: 367", "gb_s: 1e300"), "gb_s"),
        ("negative", with("micro_batches: 8", "micro_batches: -8"), "micro_batches"),
        ("nan", with("memory_gb: 80", "memory_gb: NaN"), "memory_gb"),
        ("plan", PLAN.clone().into_bytes(), "version"),
    ];
    for (name, content, expected) in contents {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("the folder can be written");
        let plan = folder.path().join("never.ron");
        for command in [
            vec!["compile", path_text(&path), "-o", path_text(&plan)],
            vec!["compare", path_text(&path)],
            vec!["overlap", path_text(&path)],
        ] {
            let said = refusal(&command);
            assert!(said.contains(expected), "{name}: {said}");
            assert!(!plan.exists(), "{name}");
        }
    }
    for command in ["compile", "compare", "overlap"] {
        assert!(refusal(&[command, "nowhere/job.ron"]).contains("`nowhere/job.ron` cannot be read"));
        assert!(refusal(&[command, path_text(folder.path())]).contains("is a directory"));
    }
}

/// What a schedule does not allow names the flag, and values that would do.
#[test]
fn flags_that_do_not_go_together_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = folder.path().join("plan.ron");
    for (flags, expected) in [
        (&["--micro-batches", "15"][..], "even number of micro-batches, at least 8, not 15: use 14 or 16"),
        (&["--micro-batches", "15"], "it was set by `--micro-batches 15` on the command line"),
        (&["--pp", "3"], "even number of ranks, at least 2, not 3: use 2 or 4"),
        (&["--ep", "5"], "nearest `ep` that would do: 2"),
        (&["--placement", "v"], "dualpipe lays its stages bidirectional, not v"),
        (&["--stages-per-rank", "2"], "choose the interleaved schedule"),
        (&["--schedule", "interleaved", "--stages-per-rank", "3"], "make `pp` at most 3"),
        (&["--tp", "3"], "nearest `tp` that would do: 2 or 4"),
        (&["--dp", "3"], "make `dp` at most 2"),
        (&["--pp", "0"], "give a number from 1 to 4096"),
        (&["--pp", "-1"], "-1 is not in 0"),
        (&["--pp", "1e30"], "invalid digit"),
        (&["--pp", "99999999999999999999999"], "too large"),
        (&["--micro-batches", "4294967295"], "give a number from 1 to"),
        (&["--sequence", "4294967295", "--micro-batch-size", "4294967295"], "give a number from 1 to"),
        (&["--communication-sms", "7"], "6 or 8"),
        (&["--memory-limit-gb", "NaN"], "give 0.001 to 80 GB"),
        (&["--memory-limit-gb", "1e30"], "give 0.001 to 80 GB"),
        (&["--memory-limit-gb", "-3"], "give 0.001 to 80 GB"),
        (&["--recompute", "everything"], "`everything` is none of"),
        (&["--sharded-optimizer", "maybe"], "[possible values: true, false]"),
        (&["--schedule", "none"], "[possible values: gpipe"),
    ] {
        let said = refusal(&[&["compile", TINY, "-o", path_text(&plan)], flags].concat());
        assert!(said.contains(expected), "{flags:?}: {said}");
    }
    assert!(refusal(&["compile", TINY, "--json", "-o", "-"]).contains("cannot both go to standard output"));
    assert!(fs::read_dir(folder.path()).expect("the folder").next().is_none(), "nothing was written");
}

/// Every field of `training` can be set from the command line, for `compile` and for `compare`.
#[test]
fn every_training_flag_works() {
    let flags: [&[&str]; 13] = [
        &["--pp", "2", "--dp", "4"],
        &["--ep", "1"],
        &["--tp", "2", "--dp", "1"],
        &["--micro-batches", "12"],
        &["--micro-batch-size", "2"],
        &["--sequence", "128"],
        &["--schedule", "zb-v"],
        &["--schedule", "interleaved", "--stages-per-rank", "2"],
        &["--placement", "bidirectional"],
        &["--recompute", "none"],
        &["--overlap", "serial"],
        &["--communication-sms", "12"],
        &["--sharded-optimizer", "false"],
    ];
    for flags in flags.into_iter().chain([&["--memory-limit-gb", "40.5"][..]]) {
        let plan = done(&[&["compile", TINY, "-o", "-"], flags].concat());
        // These say what is so already.
        assert!(plan != *PLAN || flags[0] == "--placement", "{flags:?}");
    }
    let rows = ["compare", TINY, "--pp", "2", "--dp", "4", "--micro-batches", "4", "--json", "--price", "2"];
    let rows: serde_json::Value = serde_json::from_str(&done(&rows)).expect("JSON");
    for row in rows["equal_devices"].as_array().expect("rows") {
        // 2 USD an hour: 1e12 tokens over the tokens of a GPU in an hour.
        let rate = row["result"]["tokens_per_s_per_gpu"].as_f64().expect("a rate");
        let usd = row["result"]["usd_per_trillion_tokens"].as_f64().expect("a cost");
        assert!((usd * rate / (2e12 / 3600.0) - 1.0).abs() < 1e-9, "{row}");
        assert_eq!(row["result"]["ranks"], 2, "{row}");
        assert_eq!(row["result"]["gpus"], 8, "{row}");
    }
}

#[test]
fn what_cannot_be_written_leaves_everything_as_it_was() {
    let (folder, plan) = folder_with_plan();
    let old = folder.path().join("old.ron");
    fs::write(&old, "precious").expect("the folder can be written");
    let plan = path_text(&plan);
    let commands: [&[&str]; 3] = [
        &["compile", TINY, "-o"],
        &["export", plan, "--format", "tokens", "-o"],
        &["export", plan, "--format", "perfetto", "-o"],
    ];
    for command in commands {
        let to = |path: &Path| refusal(&[command, &[path_text(path)]].concat());
        let said = to(&folder.path().join("nowhere/new.ron"));
        assert!(said.contains("there is no such directory") && !said.contains(".dualweave-"), "{said}");
        assert!(to(folder.path()).contains("is a directory"));
        assert!(to(Path::new("")).contains("-output <"));
        if cfg!(target_os = "linux") {
            assert!(to(Path::new("/dev/full")).contains("No space left"));
            assert!(to(Path::new("/proc/new.ron")).contains("cannot be written"));
        }
        #[cfg(unix)]
        {
            // A file may not grow beyond a block: it fails in the middle.
            let line = "trap '' XFSZ; ulimit -f 0; exec \"$@\"";
            let output = in_shell(line, &[command, &[path_text(&old)]].concat());
            assert!(output.stdout.is_empty());
            assert!(refused("ulimit", &output).contains("cannot be written"));
        }
        assert_eq!(fs::read_to_string(&old).expect("it is there"), "precious", "{command:?}");
    }
    // A command does not eat its own input.
    let job = folder.path().join("job.ron");
    fs::copy(TINY, &job).expect("the folder can be written");
    assert!(refusal(&["compile", path_text(&job), "-o", path_text(&job)]).contains("would be overwritten"));
    assert!(refusal(&["export", plan, "--format", "tokens", "-o", plan]).contains("would be overwritten"));
    assert_eq!(fs::read_to_string(plan).expect("it is there"), *PLAN);

    let mut names: Vec<_> =
        fs::read_dir(folder.path()).expect("the folder").map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["job.ron", "old.ron", "plan.ron"]);
}

#[test]
fn a_file_is_replaced_whole_and_links_are_followed() {
    let (folder, plan) = folder_with_plan();
    let (target, link) = (folder.path().join("target.txt"), folder.path().join("link.txt"));
    fs::write(&target, "old").expect("the folder can be written");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&target, &link).expect("a link");
    #[cfg(not(unix))]
    fs::copy(&target, &link).expect("a copy");
    let tokens = done(&["export", path_text(&plan), "--format", "tokens"]);
    assert_eq!(done(&["export", path_text(&plan), "--format", "tokens", "-o", path_text(&link)]), "");
    assert_eq!(fs::read_to_string(&link).expect("it is there"), tokens);
    #[cfg(unix)]
    assert_eq!(fs::read_to_string(&target).expect("it is there"), tokens);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_is_an_error_of_every_command_that_prints() {
    let (_folder, plan) = folder_with_plan();
    for command in printers(path_text(&plan)) {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let mut child = Command::new(env!("CARGO_BIN_EXE_dualweave"));
        let output = child.args(&command).stdout(full).stderr(Stdio::piped()).output().expect("the command starts");
        let said = refused(&format!("{command:?}"), &output);
        assert!(said.contains("standard output cannot be written"), "{command:?}: {said}");
    }
}

#[test]
fn a_closed_stdout_is_an_error_of_every_command_that_prints() {
    let (_folder, plan) = folder_with_plan();
    for command in printers(path_text(&plan)) {
        // Closed before anything can be written, so that short outputs notice too.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut child = Command::new(env!("CARGO_BIN_EXE_dualweave"));
        let output = child.args(&command).stdout(writer).stderr(Stdio::piped()).output().expect("the command starts");
        let said = refused(&format!("{command:?}"), &output);
        assert!(said.contains("standard output cannot be written"), "{command:?}: {said}");
    }
}

#[test]
fn output_is_plain_when_piped_and_json_is_json() {
    let (_folder, plan) = folder_with_plan();
    for command in printers(path_text(&plan)) {
        let text = done(&command);
        assert!(!text.contains('\u{1b}') && text.ends_with('\n'), "{command:?}: {text}");
        if !command.iter().any(|word| word.contains("help")) {
            assert!(text.lines().all(|line| line == line.trim_end()), "{command:?} has trailing blanks:\n{text}");
        }
        if command.contains(&"--json") || command.contains(&"json") || command.contains(&"perfetto") {
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{command:?}");
        }
        assert_eq!(text, done(&command), "{command:?} differs from run to run");
    }
    let summary = dualweave(&["compile", TINY, "-o", path_text(&plan), "--json"]);
    assert!(summary.stderr.is_empty());
    assert!(serde_json::from_slice::<serde_json::Value>(&summary.stdout).is_ok());
    assert_eq!(fs::read_to_string(&plan).expect("it is there"), *PLAN, "two compilations give the same bytes");
}

#[test]
fn verify_answers_by_exit_code() {
    let (folder, plan) = folder_with_plan();
    let safe = dualweave(&["verify", path_text(&plan)]);
    assert_eq!((safe.status.code(), safe.stderr.is_empty()), (Some(0), true));

    let edited = folder.path().join("edited.ron");
    fs::write(&edited, PLAN.replacen("F(0,2)", "F(0,1)", 1)).expect("the folder can be written");
    let unsafe_plan = dualweave(&["verify", path_text(&edited)]);
    assert_eq!(unsafe_plan.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unsafe_plan.stdout).contains("F(0,2): is never run"));
    assert!(String::from_utf8_lossy(&unsafe_plan.stderr).contains("edited after it was compiled"));
    let json = dualweave(&["verify", "--json", path_text(&edited)]);
    assert_eq!(json.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&json["safe"], &json["digest_matches"]), (&false.into(), &false.into()));

    // A comment is no edit: the digest is of what the plan says.
    fs::write(&edited, format!("// mine\n{}", *PLAN)).expect("the folder can be written");
    let commented = dualweave(&["verify", path_text(&edited)]);
    assert_eq!((commented.status.code(), commented.stderr.is_empty()), (Some(0), true));
}

/// Absurd numbers are answered within a gigabyte of memory: nothing is allocated because a file says so.
#[cfg(target_os = "linux")]
#[test]
fn absurd_numbers_take_no_memory() {
    let (folder, _) = folder_with_plan();
    let path = folder.path().join("absurd.ron");
    let most = u32::MAX.to_string();
    let edits: Vec<(&str, String)> = vec![
        ("ranks:4", format!("ranks:{most}")),
        ("stages:4", format!("stages:{most}")),
        ("micro_batches:8", format!("micro_batches:{most}")),
        ("slots:2", format!("slots:{most}")),
        ("sms: 132", format!("sms: {most}")),
        ("gpus_per_node: 8", format!("gpus_per_node: {most}")),
        ("F(0,0)", format!("F({most},{most})")),
        ("ReduceGrads(0)", format!("ReduceGrads({most})")),
        ("placement:Bidirectional", "placement:V".to_owned()),
        ("placement:Bidirectional", "placement:Loop".to_owned()),
        ("hbm_byte_s: 2830750000000.0", "hbm_byte_s: 0.0".to_owned()),
        ("hbm_byte_s: 2830750000000.0", "hbm_byte_s: NaN".to_owned()),
        ("hbm_byte_s: 2830750000000.0", "hbm_byte_s: 1e-300".to_owned()),
    ];
    for (from, to) in edits {
        assert!(PLAN.contains(from), "{from}");
        fs::write(&path, PLAN.replace(from, &to)).expect("the folder can be written");
        for reader in READERS {
            let output =
                in_shell("ulimit -v 1000000; ulimit -t 20; exec \"$@\"", &[reader, &[path_text(&path)]].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(matches!(output.status.code(), Some(0..=2)), "{reader:?} with {to}: {}: {said}", output.status);
            assert!(!said.contains("panicked"), "{reader:?} with {to}: {said}");
        }
    }
    for endless in ["/dev/zero", "/dev/random"] {
        for command in
            [&READERS[..], &[&["compile"], &["compare"], &["overlap"], &["overlap", "--components"], COSTS]].concat()
        {
            let output = in_shell("ulimit -v 1000000; ulimit -t 20; exec \"$@\"", &[command, &[endless]].concat());
            assert!(refused(endless, &output).contains("is a device"), "{command:?}");
        }
    }
}
