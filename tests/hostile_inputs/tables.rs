//! Tables: costs of stages (`schedule --costs`), durations of a layer's components (`overlap --components`), and PyTorch's schedules
//! (`import`). The first two are given to the commands as a person gives them.

use std::fs;
use std::path::Path;

use clap::Parser;
use dualweave::Result;
use dualweave::cli::{overlap, schedule};
use dualweave::interop::torch::{read, with_communication};

use crate::edits::edited;
use crate::guard::{Answer, try_all};

#[derive(Parser)]
struct Schedule {
    #[command(flatten)]
    args: schedule::Args,
}

#[derive(Parser)]
struct Overlap {
    #[command(flatten)]
    args: overlap::Args,
}

fn answer(printed: Result<String>) -> Answer {
    match printed {
        Ok(text) => {
            assert!(!text.is_empty());
            Answer::Used
        }
        Err(error) => Answer::Refused(error),
    }
}

fn write(path: &Path, bytes: &[u8]) -> String {
    fs::write(path, bytes).expect("the folder can be written");
    path.to_str().expect("a plain path").to_owned()
}

/// Costs of so many stages.
fn costs(stages: u32) -> Vec<u8> {
    let lines = (0..stages).map(|stage| format!("{stage},1.{stage},{},0.5\n", 1 + stage % 3));
    format!("stage,f,i,w\n{}", lines.collect::<String>()).into_bytes()
}

/// Schedules, with ranks and the stages that those need.
const SCHEDULES: [(&str, &str, u32); 9] = [
    ("gpipe", "2", 2),
    ("1f1b", "3", 3),
    ("interleaved", "2", 4),
    ("zb-h1", "4", 4),
    ("zb-v", "2", 4),
    ("dualpipe", "2", 2),
    ("dualpipev", "2", 4),
    ("auto", "2", 2),
    ("auto", "2", 4),
];

/// One in so many that could be searched for is.
const SEARCHED: usize = 32;

#[test]
fn costs_of_stages() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("costs.csv");
    let bases: Vec<Vec<u8>> = [2, 3, 4].map(costs).to_vec();
    let tally = try_all(
        "costs",
        30_000,
        |dice| edited(&bases, dice),
        |bytes, dice| {
            let file = write(&path, bytes);
            // Of those schedules that the lines fit, if any.
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u32;
            let fitting: Vec<_> = SCHEDULES.iter().filter(|(_, _, stages)| stages + 1 == lines).collect();
            let (kind, ranks, _) = fitting.get(dice.below(fitting.len())).copied().unwrap_or(&SCHEDULES[0]);
            // The search takes a hundred times as long.
            let (kind, ranks) = match (*kind, dice.below(SEARCHED)) {
                ("auto", 1..) => ("gpipe", if lines == 3 { "2" } else { "4" }),
                _ => (*kind, *ranks),
            };
            let micro_batches = ["4", "6"][dice.below(2)];
            let format = ["chart", "tokens", "stage", "json"][dice.below(4)];
            let arguments =
                ["schedule", "--kind", kind, "--pp", ranks, "--micro-batches", micro_batches, "--costs", &file];
            let arguments = arguments.into_iter().chain(["--format", format]);
            let arguments = Schedule::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}"));
            answer(schedule::printed(&arguments.args))
        },
    );
    assert!(tally.refused > 5_000 && tally.used > 2_000, "{tally}");
}

#[test]
fn durations_of_components() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("components.csv");
    let bases = [
        fs::read("examples/deepseek-v3/components.csv").expect("the example is there"),
        b"component,phase,ms\nattn,F,1\ndispatch,F,0.5\nmlp,F,2\n".to_vec(),
        b"attention,I,3\nattention,W,1.5\ncombine,B,2\ncombine,F,1e-3\n".to_vec(),
    ];
    let tally = try_all(
        "components",
        20_000,
        |dice| edited(&bases, dice),
        |bytes, dice| {
            let file = write(&path, bytes);
            let layers = ["1", "4", "10000"][dice.below(3)];
            let mut arguments = vec!["overlap", "--components", &file, "--layers", layers];
            match dice.below(SEARCHED) {
                0 => {}
                1 => arguments.push("--json"),
                order => arguments.extend(["--order", ["serial", "deepseek", "megatron"][order % 3]]),
            }
            let arguments = Overlap::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}"));
            answer(overlap::printed(&arguments.args))
        },
    );
    assert!(tally.refused > 5_000 && tally.used > 2_000, "{tally}");
}

#[test]
fn schedules_of_pytorch() {
    let folder = fs::read_dir("tests/data/torch-csv").expect("the files are there");
    let mut paths: Vec<_> = folder.map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let bases: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("a file")).collect();
    let tally = try_all(
        "schedules of PyTorch",
        30_000,
        |dice| edited(&bases, dice),
        |bytes, dice| {
            // What is not UTF-8 is refused before.
            let text = String::from_utf8_lossy(bytes);
            let ranks = match dice.below(8) {
                0 => u32::MAX,
                _ => text.lines().count() as u32,
            };
            // Mostly as many as the file has.
            let numbers = text.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
            let most: u32 = numbers.filter(|number| *number < 8).max().unwrap_or(0);
            let micro_batches = if dice.below(8) == 0 { [1, u32::MAX][dice.below(2)] } else { most + 1 };
            match read("file.csv", &text, ranks, micro_batches) {
                Err(error) => Answer::Refused(error),
                Ok(file) => {
                    let whole = with_communication(&file.schedule, micro_batches).expect("what is read is safe");
                    let again = read("whole.csv", &whole.to_string(), ranks, micro_batches);
                    assert_eq!(again.expect("what is written is read").schedule, whole);
                    Answer::Used
                }
            }
        },
    );
    assert!(tally.refused > 15_000 && tally.used > 500, "{tally}");
}
