//! What each pass makes of small jobs, as text. `tests/inputs/<pass>/` has the jobs: a new case is a new file there.

#[path = "passes/text.rs"]
mod text;

use std::fs;
use std::path::Path;

use dualweave::ir::{Action, Timetable};
use dualweave::job::{Job, Overrides, load};
use dualweave::machine::Machine;
use dualweave::passes::{compile, lower, split};

fn job(path: &Path) -> Job {
    load(path, &Overrides::default()).unwrap_or_else(|error| panic!("{}: {error:?}", path.display())).job
}

/// Compares `text` with the snapshot `<pass>__<input>`.
fn snapshot(pass: &str, path: &Path, text: &str) {
    let input = path.file_stem().and_then(|stem| stem.to_str()).expect("a file name");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.remove_snapshot_suffix();
    settings.bind(|| insta::assert_snapshot!(format!("{pass}__{input}"), text));
}

#[test]
fn lower_cuts_the_model() {
    insta::glob!("inputs/lower/*.ron", |path| {
        let job = job(path);
        let machine = Machine::new(&job.cluster, None);
        let lowered = lower::lower(&job, &machine, job.training.communication_sms.fixed().unwrap_or(20))
            .expect("a model that can be cut");
        let split = split::split(&job, &lowered);
        snapshot("lower", path, &text::lowered(&job, &machine, &lowered, &split));
    });
}

#[test]
fn split_makes_ops_of_units() {
    insta::glob!("inputs/split/*.ron", |path| {
        let job = job(path);
        let machine = Machine::new(&job.cluster, None);
        let lowered = lower::lower(&job, &machine, job.training.communication_sms.fixed().unwrap_or(20))
            .expect("a model that can be cut");
        snapshot("split", path, &text::split(&lowered, &split::split(&job, &lowered)));
    });
}

#[test]
fn overlap_orders_ops() {
    insta::glob!("inputs/overlap/*.ron", |path| {
        let compiled = compile(&job(path)).expect("a job that compiles");
        snapshot("overlap", path, &text::programs(&compiled.plan));
    });
}

#[test]
fn place_lists_items() {
    insta::glob!("inputs/place/*.ron", |path| {
        let compiled = compile(&job(path)).expect("a job that compiles");
        snapshot("place", path, &text::ranks(&compiled.plan));
    });
}

#[test]
fn emit_writes_the_plan() {
    insta::glob!("inputs/emit/*.ron", |path| {
        let compiled = compile(&job(path)).expect("a job that compiles");
        snapshot("emit", path, &compiled.plan.to_ron());
    });
}

/// Where no pass finds anything better, the plan runs the published schedule, token for token.
#[test]
fn equal_layers_give_the_published_schedule() {
    insta::glob!("inputs/published/*.ron", |path| {
        let plan = compile(&job(path)).expect("a job that compiles").plan;
        let actions = |rank: &dualweave::plan::PlanRank| -> Vec<Action> {
            rank.items.iter().filter_map(|item| item.0.action()).collect()
        };
        let run = Timetable { layout: plan.layout, ranks: plan.ranks.iter().map(actions).collect() };
        let input = path.file_stem().and_then(|stem| stem.to_str()).expect("a file name");
        let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/schedules").join(format!("{input}.txt"));
        assert_eq!(run.local_tokens(), fs::read_to_string(published).expect("the published tokens"), "{input}");
    });
}
