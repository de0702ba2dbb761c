//! Job files: the examples load, and what is wrong with a broken one is shown where it stands.

use std::path::Path;

use dualweave::Error;
use dualweave::job::sms::CommunicationSms;
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
        for schedule in ScheduleKind::PUBLISHED {
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
    assert!(shown("training.micro_batches").contains("job.ron:13:24"), "{}", shown("training.micro_batches"));
    assert!(shown("cluster.nodes").contains("cluster.ron:14:12"), "{}", shown("cluster.nodes"));
    assert!(shown("model.moe.experts").contains("config.json:16:2"), "{}", shown("model.moe.experts"));
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

/// Whatever the file holds, loading it answers; and an error in its text points into it.
#[test]
fn no_text_makes_it_panic() {
    let text = include_str!("../examples/tiny/job.ron");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("job.ron");
    let check = |text: &str| {
        std::fs::write(&path, text).expect("the folder can be written");
        if let Err(error) = load(&path, &Overrides::default()) {
            assert!(!rendered(&error).is_empty());
            assert!(error.has_place(), "{error:?} in\n{text}");
        }
    };
    let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    for &at in places.iter().step_by(13) {
        check(&text[..at]);
    }
    for (i, &at) in places.iter().enumerate().step_by(5) {
        let strange = ["(", ")", "\"", "-", "é", "9999999999", "/*", "[", ",", ":", "x", "#", "'", "NaN", "\n//", "\\"];
        let (before, after) = text.split_at(at);
        check(&format!("{before}{}{after}", strange[i / 5 % strange.len()]));
        let rest = after.chars().next().map_or(0, char::len_utf8);
        check(&format!("{before}{}", &after[rest..]));
    }
    check(&"(".repeat(100_000));
    check(&text.replace("model: (", &format!("model: {}", "file(".repeat(1000))));
}

/// The values that an error offers are values that are not refused again for the same field.
#[test]
fn what_an_error_offers_would_do() {
    type Set = fn(&mut Overrides, u32);
    let fields: [(&str, Set); 3] = [
        ("ep", |overrides, value| overrides.ep = Some(value)),
        ("tp", |overrides, value| overrides.tp = Some(value)),
        ("communication_sms", |overrides, value| overrides.communication_sms = Some(CommunicationSms::Fixed(value))),
    ];
    let mut followed = 0;
    for (field, set) in fields {
        for value in 1..=140 {
            // ep and tp are free to be 8 here.
            let refused = |value| {
                let mut overrides = Overrides { pp: Some(1), dp: Some(8), ep: Some(1), ..Overrides::default() };
                if field == "tp" {
                    overrides.dp = Some(1);
                }
                set(&mut overrides, value);
                load(Path::new("examples/tiny/job.ron"), &overrides).err()
            };
            let Some(error) = refused(value) else { continue };
            let help = error.help_text().expect("a way out");
            let offered = help.split("would do: ").nth(1).and_then(|rest| rest.split(';').next()).expect("an offer");
            for offer in offered.split(" or ") {
                let offer = offer.parse().expect("a number");
                assert!(refused(offer).is_none(), "{field} {value}: {offer} would not do");
                followed += 1;
            }
        }
    }
    assert!(followed > 300, "{followed}");
}
