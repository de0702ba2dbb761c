//! A plan file that was edited by a careless or hostile hand: whatever it says now, every command that reads it answers,
//! soon, and without taking memory that the file's own size does not call for.

#[path = "common/dice.rs"]
mod dice;
#[path = "common/plan_readers.rs"]
mod plan_readers;

use std::fs;
use std::time::{Duration, Instant};

use dualweave::job::training::ScheduleKind;
use dualweave::job::{Overrides, load};
use dualweave::passes::compile;

use dice::Dice;
use plan_readers::{Reached, everything};

/// Edits that are tried on each plan.
const EDITS: u64 = 600;
/// No plan here has more than some hundred items: what takes longer than this counts by a number in the file.
const SOON: Duration = Duration::from_secs(5);

/// Numbers that counts, indices and quantities are not expected to be.
const STRANGE: [&str; 12] = [
    "0",
    "1",
    "2",
    "-1",
    "4294967295",
    "4294967294",
    "2147483648",
    "18446744073709551615",
    "9223372036854775808",
    "1e300",
    "-1e300",
    "NaN",
];

/// The plan of examples/tiny, cut down to three layers, under a schedule.
fn plan_text(schedule: ScheduleKind) -> String {
    let job = fs::read_to_string("examples/tiny/job.ron").expect("the example is there");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("job.ron");
    fs::write(&path, job.replace("layers: 8", "layers: 3")).expect("the folder can be written");
    let flags = Overrides {
        pp: Some(2),
        dp: Some(4),
        micro_batches: Some(4),
        schedule: Some(schedule),
        ..Overrides::default()
    };
    let job = load(&path, &flags).expect("the example loads").job;
    compile(&job).expect("the example compiles").plan.to_ron()
}

/// One to three edits: a number replaced, a line removed, doubled, or swapped with another.
fn edited(text: &str, dice: &mut Dice) -> String {
    let mut text = text.to_owned();
    for _ in 0..=dice.below(3) {
        let mut lines: Vec<&str> = text.lines().collect();
        let (at, other) = (dice.below(lines.len()), dice.below(lines.len()));
        let line;
        match dice.below(8) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at]),
            2 => lines.swap(at, other),
            _ => {
                line = with_strange_number(lines[at], dice);
                lines[at] = &line;
            }
        }
        text = lines.join("\n");
    }
    text
}

/// The line with one of its numbers replaced; as it is if it has none.
fn with_strange_number(line: &str, dice: &mut Dice) -> String {
    let code = line.split("//").next().unwrap_or(line);
    let mut numbers: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, _) in code.char_indices().filter(|(_, c)| c.is_ascii_digit() || *c == '.') {
        match numbers.last_mut() {
            Some(last) if last.end == at => last.end = at + 1,
            _ => numbers.push(at..at + 1),
        }
    }
    if numbers.is_empty() {
        return line.to_owned();
    }
    let number = numbers.swap_remove(dice.below(numbers.len()));
    format!("{}{}{}", &line[..number.start], STRANGE[dice.below(STRANGE.len())], &line[number.end..])
}

/// How many edits the reader refused, the simulator refused, were simulated though unsafe, were safe.
fn tally(schedule: ScheduleKind) -> [u64; 4] {
    let plan = plan_text(schedule);
    assert!(matches!(everything(&plan), Reached::Safe), "the plan itself is safe");
    let mut dice = Dice(schedule as u64);
    let mut tally = [0; 4];
    for edit in 0..EDITS {
        let text = edited(&plan, &mut dice);
        let start = Instant::now();
        let Ok(reached) = std::panic::catch_unwind(|| everything(&text)) else {
            panic!("edit {edit} of the plan under {schedule}:\n{text}")
        };
        assert!(start.elapsed() < SOON, "edit {edit} of the plan under {schedule} took {:?}", start.elapsed());
        if let Reached::Unread(error) | Reached::Unsimulated(error) = &reached {
            assert!(!error.message().is_empty(), "edit {edit} of the plan under {schedule}");
        }
        tally[match reached {
            Reached::Unread(_) => 0,
            Reached::Unsimulated(_) => 1,
            Reached::Unsafe => 2,
            Reached::Safe => 3,
        }] += 1;
    }
    tally
}

#[test]
fn no_edit_of_a_plan_is_answered_with_a_panic() {
    let schedules = [ScheduleKind::DualPipe, ScheduleKind::ZbV, ScheduleKind::Interleaved, ScheduleKind::OneFOneB];
    let tallies = std::thread::scope(|scope| {
        let running = schedules.map(|schedule| scope.spawn(move || tally(schedule)));
        running.map(|thread| thread.join().expect("no panic"))
    });
    // The edits are neither all refused at once nor all harmless.
    for reached in 0..4 {
        let edits: u64 = tallies.iter().map(|tally| tally[reached]).sum();
        assert!(edits > 50, "{tallies:?}");
    }
}
