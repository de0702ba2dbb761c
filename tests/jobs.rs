//! Job files: the examples load, and what is wrong with a broken one is shown where it stands.

use std::path::Path;

use dualweave::Error;
use dualweave::job::training::ScheduleKind;
use dualweave::job::{Loaded, Overrides, load};
use miette::{GraphicalReportHandler, GraphicalTheme};

fn rendered(error: &Error) -> String {
    let mut text = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .render_report(&mut text, error)
        .expect("a string takes everything");
    text
}

fn example(name: &str, overrides: &Overrides) -> Loaded {
    load(&Path::new("examples").join(name).join("job.ron"), overrides)
        .unwrap_or_else(|error| panic!("{name}: {}", rendered(&error)))
}

/// Every file of tests/inputs/jobs: its diagnostic, or the job and its notes.
#[test]
fn what_is_wrong_is_shown_where_it_stands() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _guard = settings.bind_to_scope();
    insta::glob!("inputs/jobs/*.ron", |path| {
        let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("a path in the package");
        let shown = match load(path, &Overrides::default()) {
            Ok(loaded) => format!("loads; notes: {:#?}", loaded.notes),
            Err(error) => rendered(&error),
        };
        insta::assert_snapshot!(shown);
    });
}

#[test]
fn the_examples_load_without_a_word() {
    for name in ["deepseek-v3", "mixtral-8x7b", "qwen3-30b-a3b", "tiny"] {
        assert_eq!(example(name, &Overrides::default()).notes, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn tiny_serves_many_shapes() {
    for (pp, dp, ep) in [(4, 2, 1), (4, 2, 2), (2, 4, 1), (2, 4, 2), (2, 4, 4), (1, 8, 8)] {
        for schedule in ScheduleKind::ALL {
            let shape = (Some(pp), Some(dp), Some(ep), Some(schedule));
            let (pp, dp, ep, schedule) = shape;
            example("tiny", &Overrides { pp, dp, ep, schedule, ..Overrides::default() });
        }
    }
}

#[test]
fn a_flag_is_named_when_its_value_is_wrong() {
    let overrides = Overrides { ep: Some(3), ..Overrides::default() };
    let error = load(Path::new("examples/tiny/job.ron"), &overrides).expect_err("3 does not divide 8");
    assert!(error.help_text().is_some_and(|help| help.contains("`--ep 3`") && help.contains("2")), "{error:?}");
    assert!(!error.has_place(), "the file is not at fault");
}

#[test]
fn later_errors_are_located_too() {
    let loaded = example("deepseek-v3", &Overrides::default());
    let shown = |field: &str| rendered(&loaded.locate(Error::new("refused").field(field)));
    // In the job file, in a file it names, in a config it imports.
    assert!(shown("training.micro_batches").contains("job.ron:14:24"), "{}", shown("training.micro_batches"));
    assert!(shown("cluster.nodes").contains("cluster.ron:14:12"), "{}", shown("cluster.nodes"));
    assert!(shown("model.moe.experts").contains("config.json:17:2"), "{}", shown("model.moe.experts"));
    // Nowhere: the part that it belongs to.
    assert!(shown("training.memory_limit_gb").contains("not written here"), "{}", shown("training.memory_limit_gb"));
    assert!(!loaded.locate(Error::new("no field")).has_place());
}

#[test]
fn paths_that_are_no_job_files_are_refused() {
    for path in ["tests/inputs", "tests/inputs/nothing.ron"] {
        let error = load(Path::new(path), &Overrides::default()).expect_err(path);
        assert!(error.message().contains(path), "{error:?}");
    }
}
