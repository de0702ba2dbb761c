//! `dualweave run`: what it prints, what it refuses, and that training goes on where it was broken off.

use std::fs;
#[cfg(unix)]
use std::io::{BufRead as _, BufReader};
#[cfg(unix)]
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
#[cfg(unix)]
use std::process::Stdio;
use std::process::{Command, Output};

#[cfg(unix)]
use dualweave::runtime::checkpoint::Checkpoint;
#[cfg(unix)]
use serde_json::Value;

const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/inputs/run/small.ron");

fn dualweave(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dualweave")).current_dir(folder).args(args).output().expect("the command starts")
}

/// A folder with the plan of a job in it, with these flags.
fn folder_with_plan(flags: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let compiled = dualweave(folder.path(), &[&["compile", SMALL, "-o", "plan.ron"], flags].concat());
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    folder
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// The diagnostic of a run that must be refused, in one line.
fn refusal(folder: &Path, flags: &[&str]) -> String {
    let output = dualweave(folder, &[&["run", "plan.ron"], flags].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{flags:?}: {text}");
    assert!(output.stdout.is_empty(), "{flags:?}");
    assert!(!text.contains("panicked"), "{flags:?}: {text}");
    text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
}

#[test]
fn it_trains_and_is_checked() {
    let folder = folder_with_plan(&[]);
    let checked = dualweave(folder.path(), &["run", "plan.ron", "--steps", "2", "--check"]);
    let text = stdout(&checked);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>()[..4], ["step", "loss", "mtp", "0"], "{text}");
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!(lines[3], "every loss and gradient is the reference's, to 1e-9");
    assert!(String::from_utf8_lossy(&checked.stderr).contains("small as 4 threads: 2 steps of 64 tokens"));

    let json = stdout(&dualweave(folder.path(), &["run", "plan.ron", "--steps", "30", "--lr", "1e-2", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let loss = |step: usize| json["steps"][step]["losses"][0].as_f64().expect("a loss");
    assert!(loss(29) < loss(0) - 1.0, "{} to {}", loss(0), loss(29));
    assert_eq!(json["precision"], "as-planned");
    assert_eq!(json["gpus"], 4);
    // Other seeds begin elsewhere; the same one begins at the same place.
    let first = |seed: &str| {
        let text = stdout(&dualweave(folder.path(), &["run", "plan.ron", "--steps", "1", "--seed", seed]));
        text.lines().last().expect("a step").to_owned()
    };
    assert_eq!(first("7"), first("7"));
    assert_ne!(first("7"), first("8"));
}

#[test]
fn training_goes_on_bit_for_bit() {
    let folder = folder_with_plan(&[]);
    let run = |flags: &[&str]| {
        // The rate rises before the interruption, and falls behind it.
        let rate = ["--lr-warm-up", "2", "--lr-decay", "4"];
        let mut args = vec!["run", "plan.ron", "--precision", "f64", "--checkpoint-every", "3"];
        args.extend(rate.iter().chain(flags));
        stdout(&dualweave(folder.path(), &args))
    };
    let whole = run(&["--steps", "5", "--checkpoint", "whole"]);
    let before = run(&["--steps", "2", "--checkpoint", "parts"]);
    let after = run(&["--steps", "3", "--checkpoint", "parts", "--resume"]);
    let steps = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(steps(&whole), [steps(&before), steps(&after)].concat());
    let saved = |name: &str| fs::read(folder.path().join(name).join("checkpoint.safetensors")).expect("a checkpoint");
    assert!(saved("whole") == saved("parts"));
    assert_eq!(fs::read_dir(folder.path().join("parts")).expect("a folder").count(), 1);
    // Under a plan that spreads the model otherwise, it goes on too.
    let other = folder_with_plan(&["--schedule", "1f1b", "--dp", "1", "--ep", "1"]);
    fs::create_dir(other.path().join("parts")).expect("a folder");
    fs::write(other.path().join("parts/checkpoint.safetensors"), saved("parts")).expect("a file");
    let args = ["run", "plan.ron", "--steps", "1", "--precision", "f64", "--checkpoint", "parts", "--resume"];
    assert!(stdout(&dualweave(other.path(), &args)).lines().last().expect("a step").trim().starts_with("6 "));
}

/// Where a training has come to: the checkpoint's bytes, and the steps before it; `None` if there is none.
#[cfg(unix)]
fn saved(folder: &Path) -> Option<(Vec<u8>, u32)> {
    let bytes = fs::read(folder.join("checkpoint.safetensors")).ok()?;
    let steps = Checkpoint::read(&bytes).expect("a whole checkpoint").progress.steps;
    Some((bytes, steps))
}

/// Trains in `folder`/`name` until `when` says so, and is then killed by a signal (its name, its number). `when` sees the lines that
/// were printed and the folder.
#[cfg(unix)]
fn killed(
    folder: &Path,
    name: &str,
    (signal, number): (&str, i32),
    when: impl FnOnce(&mut dyn Iterator<Item = String>, &Path),
) {
    let args = [
        "run",
        "plan.ron",
        "--steps",
        "1000000",
        "--precision",
        "f64",
        "--checkpoint-every",
        "1",
        "--checkpoint",
        name,
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_dualweave"));
    let mut run = command.current_dir(folder).args(args).stdout(Stdio::piped()).spawn().expect("the command starts");
    // Open until the end: a closed pipe would end the run before the signal does.
    let mut printed = BufReader::new(run.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    when(&mut printed, &folder.join(name));
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", run.id())]).status().expect("a shell");
    assert!(sent.success());
    assert_eq!(run.wait().expect("it ends").signal(), Some(number), "{signal}");
}

#[cfg(unix)]
#[test]
fn a_killed_training_goes_on_bit_for_bit() {
    let folder = folder_with_plan(&[]);
    let kill = ("KILL", 9);
    // Behind so many lines, the heading's the first; a step's checkpoint is written behind its line, so mostly while it is.
    let killed_behind = [(0, kill), (1, kill), (2, kill), (3, ("TERM", 15)), (4, kill), (6, kill)];
    for (lines, signal) in killed_behind {
        killed(folder.path(), &format!("{lines}"), signal, |printed, _| assert_eq!(printed.take(lines).count(), lines));
    }
    // As soon as there is an unfinished file.
    killed(folder.path(), "writing", kill, |_, at| {
        let unfinished = |file: &fs::DirEntry| file.path() != at.join("checkpoint.safetensors");
        while !fs::read_dir(at).is_ok_and(|files| files.flatten().any(|file| unfinished(&file))) {}
    });
    let names: Vec<String> =
        killed_behind.iter().map(|(lines, _)| format!("{lines}")).chain(["writing".to_owned()]).collect();
    let before = names.iter().map(|name| saved(&folder.path().join(name)).map_or(0, |(_, steps)| steps));
    let before: Vec<u32> = before.collect();
    let end = before.iter().max().expect("runs") + 3;

    let train = |name: &str, steps: u32, flags: &[&str]| {
        let steps = steps.to_string();
        let mut args = vec!["run", "plan.ron", "--precision", "f64", "--json", "--checkpoint", name, "--steps", &steps];
        args.extend(flags);
        let json: Value = serde_json::from_str(&stdout(&dualweave(folder.path(), &args))).expect("JSON");
        let steps = json["steps"].as_array().expect("steps").iter();
        let steps = steps.map(|step| ["step", "losses", "gradient_norm"].map(|what| step[what].clone()));
        steps.collect::<Vec<_>>()
    };
    let whole = train("whole", end, &[]);
    let last = saved(&folder.path().join("whole")).expect("a checkpoint").0;
    for (name, &before) in names.iter().zip(&before) {
        let at = folder.path().join(name);
        if at.exists() {
            // What a run leaves behind that dies while it writes.
            fs::write(at.join(".dualweave-half"), &last[..last.len() / 2]).expect("a file");
        }
        let flags: &[&str] = if before > 0 { &["--resume"] } else { &[] };
        assert_eq!(train(name, end - before, flags), whole[before as usize..], "{name}");
        assert!(saved(&at).is_some_and(|(bytes, steps)| (bytes, steps) == (last.clone(), end)), "{name}");
        assert_eq!(fs::read_dir(&at).expect("a folder").count(), 1, "{name}");
    }
}

#[test]
fn what_cannot_be_run_is_refused() {
    let folder = folder_with_plan(&[]);
    let refused = |flags: &[&str]| refusal(folder.path(), flags);
    fs::write(folder.path().join("short.txt"), "too short").expect("a file");
    assert!(refused(&["--data", "short.txt"]).contains("the text has 9 bytes, fewer than a sequence"));
    assert!(refused(&["--data", "nowhere.txt"]).contains("`nowhere.txt` cannot be read"));
    assert!(refused(&["--check", "--precision", "as-planned"]).contains("check with `--precision f64` or `f32`"));
    assert!(refused(&["--steps", "0"]).contains("0 is not in 1"));
    assert!(refused(&["--lr", "-1"]).contains("a number above 0"));
    assert!(refused(&["--lr", "nan"]).contains("a number above 0"));
    assert!(refused(&["--lr-warm-up", "5", "--lr-decay", "5"]).contains("rises until step 5"));
    assert!(refused(&["--resume"]).contains("--checkpoint"));
    assert!(refused(&["--checkpoint", "none", "--resume"]).contains("begin without `--resume`"));
    assert!(refused(&["--checkpoint", "c", "--resume", "--seed", "1"]).contains("cannot be used with"));
    assert!(refused(&["--backend", "tpu"]).contains("possible values: host, cuda"));

    let train = |flags: &[&str]| {
        stdout(&dualweave(folder.path(), &[&["run", "plan.ron", "--steps", "1", "--checkpoint", "c"], flags].concat()))
    };
    train(&[]);
    assert!(refused(&["--checkpoint", "c"]).contains("go on from it with `--resume`"));
    assert!(refused(&["--checkpoint", "c", "--resume", "--precision", "f64"]).contains("--precision as-planned"));
    fs::write(folder.path().join("other.txt"), "another text, of some more bytes than the other one").expect("a file");
    assert!(refused(&["--checkpoint", "c", "--resume", "--data", "other.txt"]).contains("another text"));
    fs::write(folder.path().join("c/checkpoint.safetensors"), "nonsense").expect("a file");
    assert!(refused(&["--checkpoint", "c", "--resume"]).contains("this is no checkpoint"));
    fs::write(folder.path().join("file"), "").expect("a file");
    assert!(refused(&["--checkpoint", "file/c"]).contains("`file/c` cannot be made"));
}

#[cfg(unix)]
#[test]
fn a_full_stdout_is_an_error() {
    let folder = folder_with_plan(&[]);
    for flags in [&[][..], &["--json"], &["--check"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("the device");
        let mut run = Command::new(env!("CARGO_BIN_EXE_dualweave"));
        run.current_dir(folder.path()).args(["run", "plan.ron", "--steps", "1"]).args(flags).stdout(full);
        let output = run.output().expect("the command starts");
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("standard output cannot be written"), "{flags:?}");
    }
}

#[test]
fn plans_that_are_not_safe_or_not_small_are_refused() {
    let folder = folder_with_plan(&[]);
    let plan = fs::read_to_string(folder.path().join("plan.ron")).expect("the plan");
    let refused = |from: &str, to: &str| {
        assert!(plan.contains(from), "{from}");
        fs::write(folder.path().join("plan.ron"), plan.replacen(from, to, 1)).expect("a file");
        refusal(folder.path(), &[])
    };
    let vocabulary = refused("vocabulary: 256", "vocabulary: 255");
    assert!(
        vocabulary.contains("vocabulary of 255 tokens, but the bytes of a text are 256 different ones"),
        "{vocabulary}"
    );
    let unsafe_plan = refused("(F(0,0),", "(F(0,1),");
    assert!(unsafe_plan.contains("the plan is not safe to run") && unsafe_plan.contains("dualweave verify plan.ron"));
    let other_model = refused("layers: 4,", "layers: 5,");
    assert!(other_model.contains("the model: has 5 layers, but the stages have 4"), "{other_model}");
    let sharded = folder_with_plan(&["--tp", "2", "--dp", "1"]);
    assert!(refusal(sharded.path(), &[]).contains("tensor parallelism over 2 GPUs"));
}

/// Where there is no GPU, one sentence says what is missing.
#[test]
fn gpus_are_asked_for_where_there_are_none() {
    let doctor = dualweave(Path::new("."), &["doctor", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let can_run = found["can_run"].as_bool().expect("yes or no");
    assert_eq!(doctor.status.code(), Some(i32::from(!can_run)));
    let names: Vec<&str> =
        found["libraries"].as_array().expect("a list").iter().filter_map(|l| l["name"].as_str()).collect();
    assert_eq!(names, ["libcuda", "libnvrtc", "libcublasLt", "libcudnn", "libnccl"]);

    let folder = folder_with_plan(&[]);
    let refused = |flags: &[&str]| refusal(folder.path(), flags);
    assert!(refused(&["--gpus", "1"]).contains("for `--backend cuda`"));
    assert!(refused(&["--backend", "cuda", "--precision", "f64"]).contains("GPUs compute in the formats of the plan"));
    let trained = ["run", "plan.ron", "--steps", "1", "--precision", "f64", "--checkpoint", "c"];
    stdout(&dualweave(folder.path(), &trained));
    let text = refused(&["--backend", "cuda", "--checkpoint", "c", "--resume"]);
    assert!(text.contains("go on with `--backend host --precision f64`"), "{text}");
    assert!(refused(&["--backend", "cuda", "--checkpoint", "c"]).contains("go on from it with `--resume`"));
    if !can_run {
        let text = refused(&["--backend", "cuda"]);
        assert!(text.contains("no lib") && text.contains("the loader was asked for lib"), "{text}");
    }
}

/// A process of several, as torchrun would start it.
fn process(folder: &Path, set: &[(&str, &str)], flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dualweave"));
    command.current_dir(folder).args(["run", "plan.ron", "--backend", "cuda"]).args(flags);
    command.env("MASTER_ADDR", "127.0.0.1").envs(set.iter().copied());
    command
}

#[test]
fn what_a_launcher_says_is_checked() {
    let folder = folder_with_plan(&[]);
    let said = |set: &[(&str, &str)], flags: &[&str]| {
        let output = process(folder.path(), set, flags).output().expect("the command starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{set:?}: {text}");
        text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
    };
    let seat = |rank, world| [("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", "0"), ("MASTER_PORT", "29511")];
    let cases = [
        (seat("x", "4"), [].as_slice(), "RANK is `x`"),
        (seat("4", "4"), &[], "RANK is 4, but WORLD_SIZE says that there are 4"),
        (seat("0", "3"), &[], "WORLD_SIZE is 3, but the plan has 4 GPUs (2 ranks × 2 replicas), for a process each"),
        (seat("0", "4"), &["--gpus", "1"], "no choice for `--gpus`"),
        (seat("0", "4"), &["--checkpoint", "c"], "ranks in several processes keep no checkpoints yet"),
        (seat("2", "4"), &["--time-out", "1"], "process 2 cannot reach process 0 at 127.0.0.1:29511 within 1 s"),
        (seat("0", "4"), &["--time-out", "1"], "processes 1, 2, 3 of 4 did not come to 127.0.0.1:29511 within 1 s"),
    ];
    for (set, flags, expected) in cases {
        let text = said(&set, flags);
        assert!(text.contains(expected), "{set:?}: `{text}` does not say `{expected}`");
    }
    assert!(said(&[("WORLD_SIZE", "4")], &[]).contains("WORLD_SIZE is set, but RANK is not"));
}

/// Whatever keeps one of them from running (without a GPU the driver is missing; with some, one is, or a format) ends all, and each says
/// what.
#[test]
fn processes_end_as_one() {
    let job = fs::read_to_string(SMALL).expect("the job");
    let job = job.replace("../parts", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/inputs/parts"));
    let folder = tempfile::tempdir().expect("a folder");
    let in_fp8 = job.replace("dispatch: Bf16", "dispatch: Bf16, combine: Fp8");
    assert_ne!(job, in_fp8);
    fs::write(folder.path().join("job.ron"), in_fp8).expect("a file");
    stdout(&dualweave(folder.path(), &["compile", "job.ron", "-o", "plan.ron"]));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port().to_string();
    drop(listener);
    let start = |rank: usize, flags: &[&str]| {
        let rank = rank.to_string();
        let set = [("RANK", &*rank), ("WORLD_SIZE", "4"), ("LOCAL_RANK", &*rank), ("MASTER_PORT", &*port)];
        let mut command = process(folder.path(), &set, flags);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().expect("it starts")
    };
    let ends = |flags: [&[&str]; 4]| -> Vec<String> {
        let started: Vec<_> = flags.into_iter().enumerate().map(|(rank, flags)| start(rank, flags)).collect();
        let end = |child: std::process::Child| {
            let output = child.wait_with_output().expect("it ends");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{text}");
            text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
        };
        started.into_iter().map(end).collect()
    };
    let said = ends([&[], &[], &[], &[]]);
    // One of them says what is wrong with itself, the others which one it is.
    assert!(said.iter().filter(|text| text.contains("process ")).count() >= 3, "{said:?}");
    let said = ends([&[], &[], &["--seed", "3"], &[]]);
    let named =
        said.iter().all(|text| text.contains("process 2 (rank 1, replica 0; host ") && text.contains("has the seed 3"));
    assert!(named, "{said:?}");
}
