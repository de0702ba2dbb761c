//! Plans.

use std::fs;

use dualweave::Error;
use dualweave::job::training::ScheduleKind;
use dualweave::job::{Overrides, load};
use dualweave::passes::compile;

use crate::edits::edited;
use crate::guard::{Answer, try_all};
use crate::made_profiles::by_factor;
use crate::plan_readers::{Reached, everything};

/// The plan of examples/tiny, cut down as far as it goes, under a schedule; with times as measured, if they are.
fn plan(schedule: ScheduleKind, micro_batches: u32, profiled: bool) -> Vec<u8> {
    let job = fs::read_to_string("examples/tiny/job.ron").expect("the example is there");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("job.ron");
    fs::write(&path, job.replace("layers: 8", "layers: 2")).expect("the folder can be written");
    let flags = Overrides {
        pp: Some(2),
        dp: Some(2),
        micro_batches: Some(micro_batches),
        schedule: Some(schedule),
        ..Overrides::default()
    };
    let mut job = load(&path, &flags).expect("the example loads").job;
    let mut plan = compile(&job).expect("the example compiles").plan;
    if profiled {
        job.cluster.gpu.measured.profile = Some(by_factor(&plan, |_, _| 1.5, &[100, 132]));
        plan = compile(&job).expect("the example compiles").plan;
    }
    plan.to_ron().into_bytes()
}

/// A small plan.
pub fn small() -> String {
    String::from_utf8(plan(ScheduleKind::GPipe, 2, false)).expect("text")
}

/// What is no text does not come as far as the reader of plans; [`dualweave::job::read_text`] refuses it.
fn answer(bytes: &[u8]) -> Answer {
    let Ok(text) = std::str::from_utf8(bytes) else { return Answer::Refused(Error::new("not text")) };
    match everything(text) {
        Reached::Unread(error) => Answer::Refused(error),
        Reached::Unsimulated(error) => Answer::Unusable(error),
        Reached::Unsafe | Reached::Safe => Answer::Used,
    }
}

#[test]
fn plans() {
    let bases = [
        plan(ScheduleKind::GPipe, 2, false),
        plan(ScheduleKind::DualPipeV, 4, false),
        plan(ScheduleKind::ZbH1, 2, false),
        plan(ScheduleKind::OneFOneB, 2, true),
    ];
    let tally = try_all("plans", 15_000, |dice| edited(&bases, dice), |bytes, _| answer(bytes));
    assert!(tally.refused > 1_000 && tally.unusable > 300 && tally.used > 1_000, "{tally}");
}
