//! Jobs, the files that they name, and Hugging Face configs.

use std::fs;
use std::path::Path;

use dualweave::job::training::ScheduleKind;
use dualweave::job::{Job, Overrides, hf, load};
use dualweave::passes::compile;

use crate::dice::Dice;
use crate::edits::edited;
use crate::guard::{Answer, try_all};

/// A folder with a cluster, a config, and room for a job.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy("examples/deepseek-v3/cluster.ron", folder.path().join("cluster.ron")).expect("a copy");
    fs::copy("tests/data/hf/Qwen3-30B-A3B.config.json", folder.path().join("config.json")).expect("a copy");
    folder
}

/// The training run of most jobs here.
const TRAINING: &str = "training: (pp: 2, dp: 2, ep: 2, micro_batches: 4, sequence: 64, schedule: OneFOneB, \
                        overlap: Serial, communication_sms: 8, without_rewrites: [\"all\"])";

/// Jobs to start from.
fn jobs() -> Vec<Vec<u8>> {
    let tiny = fs::read_to_string("examples/tiny/job.ron").expect("the example is there");
    let small = tiny.replace("layers: 8", "layers: 3").replace("pp: 4", "pp: 2");
    let plain = small.replace("recompute: (swiglu: true)", "overlap: Serial, without_rewrites: [\"all\"]");
    let inline = &plain[plain.find("    model: (").expect("a model")..plain.find("    cluster: (").expect("a cluster")];
    vec![
        small.into_bytes(),
        plain.clone().into_bytes(),
        plain.replace("DualPipe,", "ZbV,").into_bytes(),
        plain.replace("DualPipe,", "Interleaved,").into_bytes(),
        format!("(\n{inline}cluster: file(\"cluster.ron\"),\n{TRAINING})").into_bytes(),
        format!("(model: hf(\"config.json\"), cluster: file(\"cluster.ron\"), {TRAINING})").into_bytes(),
        format!(
            "(model: hf(config: \"config.json\", name: \"x\", precision: (products: Bf16, dispatch: Bf16)),\n\
             cluster: file(\"cluster.ron\"),\n{TRAINING})"
        )
        .into_bytes(),
    ]
}

/// Whether it is compiled in milliseconds.
fn is_small(job: &Job) -> bool {
    let chunks = u64::from(job.training.stages()) * u64::from(job.training.micro_batches);
    job.model.layers + job.model.mtp_layers <= 8
        && chunks <= 64
        && job.training.pp <= 4
        && job.training.schedule != ScheduleKind::Auto
}

/// One in so many of the small jobs is compiled, and of those that are rewritten too one in so many.
const COMPILED: usize = 12;
const REWRITTEN: usize = 8;

/// Loads the job, and often compiles it if that is soon done.
fn answer(path: &Path, dice: &mut Dice) -> Answer {
    let loaded = match load(path, &Overrides::default()) {
        Ok(loaded) => loaded,
        Err(error) => return Answer::Refused(error),
    };
    assert!(loaded.notes.iter().all(|note| !note.is_empty()));
    let share = if loaded.job.training.without_rewrites.is_empty() { COMPILED * REWRITTEN } else { COMPILED };
    if !is_small(&loaded.job) || dice.below(share) > 0 {
        return Answer::Used;
    }
    match compile(&loaded.job) {
        Ok(_) => Answer::Used,
        Err(error) => Answer::Unusable(loaded.locate(error)),
    }
}

#[test]
fn job_files() {
    let folder = folder();
    let path = folder.path().join("job.ron");
    let bases = jobs();
    let tally = try_all(
        "jobs",
        20_000,
        |dice| edited(&bases, dice),
        |bytes, dice| {
            fs::write(&path, bytes).expect("the folder can be written");
            answer(&path, dice)
        },
    );
    assert!(tally.refused > 5_000 && tally.used > 2_000, "{tally}");
}

#[test]
fn files_that_jobs_name() {
    let folder = folder();
    let (job, path) = (folder.path().join("job.ron"), folder.path().join("cluster.ron"));
    fs::write(&job, &jobs()[4]).expect("the folder can be written");
    let bases = [fs::read(&path).expect("it is there")];
    let tally = try_all(
        "clusters",
        10_000,
        |dice| edited(&bases, dice),
        |bytes, dice| {
            fs::write(&path, bytes).expect("the folder can be written");
            answer(&job, dice)
        },
    );
    assert!(tally.refused > 2_000 && tally.used > 1_000, "{tally}");
}

#[test]
fn configs() {
    let folder = folder();
    let (job, path) = (folder.path().join("job.ron"), folder.path().join("config.json"));
    fs::write(&job, &jobs()[5]).expect("the folder can be written");
    let mut names: Vec<_> =
        fs::read_dir("tests/data/hf").expect("they are there").map(|file| file.expect("a file").path()).collect();
    names.sort();
    let published: Vec<Vec<u8>> = names.iter().map(|name| fs::read(name).expect("it is there")).collect();
    // With few layers they are compiled too.
    let shallow = published.iter().map(|config| {
        let text = String::from_utf8_lossy(config).into_owned();
        let key = "\"num_hidden_layers\": ";
        let (before, after) = text.split_once(key).expect("every config says it");
        let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
        format!("{before}{key}4{rest}").into_bytes()
    });
    let bases: Vec<Vec<u8>> = shallow.chain(published.iter().cloned()).collect();
    let tally = try_all(
        "configs",
        30_000,
        |dice| edited(&bases, dice),
        |bytes, dice| {
            let text = String::from_utf8_lossy(bytes);
            let Err(error) = hf::import("config.json", &text) else {
                fs::write(&path, &*text).expect("the folder can be written");
                return answer(&job, dice);
            };
            Answer::Refused(error)
        },
    );
    assert!(tally.refused > 5_000 && tally.used > 2_000, "{tally}");
}
