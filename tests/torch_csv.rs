//! PyTorch's schedule files: those that PyTorch 2.13 itself wrote, and broken ones.

#[path = "common/dice.rs"]
mod dice;

use std::collections::{BTreeMap, BTreeSet};

use dualweave::interop::torch::{Cell, File, check, of_timetable, read, time, timetable, with_communication};
use dualweave::ir::{Action, Hops, Layout, PairCost, Placement, Problem, StageCost};
use dualweave::job::training::ScheduleKind;
use dualweave::passes::pipeline::{generate, replay};
use dualweave::units::Nanos;
use proptest::prelude::*;

/// Name, ranks, micro-batches.
const FILES: [(&str, u32, u32); 13] = [
    ("1f1b_pp2_m4", 2, 4),
    ("1f1b_pp4_m2", 4, 2),
    ("1f1b_pp4_m8", 4, 8),
    ("custom_overlap_I_pp2_m3", 2, 3),
    ("custom_uneven_pp2_s3_m2", 2, 2),
    ("dualpipev_pp2_m4", 2, 4),
    ("dualpipev_pp4_m8", 4, 8),
    ("gpipe_pp4_m4", 4, 4),
    ("interleaved1f1b_pp2_stages4_m4", 2, 4),
    ("izb_pp2_stages4_m4", 2, 4),
    ("loopedbfs_pp2_m4", 2, 4),
    ("zbv_pp2_m4", 2, 4),
    ("zbv_pp4_m8", 4, 8),
];

fn text(name: &str, form: &str) -> Option<String> {
    let path = format!("{}/tests/data/torch-csv/{name}.{form}.csv", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).ok()
}

fn file(name: &str, form: &str, ranks: u32, micro_batches: u32) -> Option<File> {
    let text = text(name, form)?;
    Some(read(name, &text, ranks, micro_batches).unwrap_or_else(|error| panic!("{name}.{form}: {error}")))
}

#[test]
fn every_file_is_read_and_written_back() {
    let mut forms = [0, 0];
    for (name, ranks, micro_batches) in FILES {
        for (form, count) in ["compute_only", "compute_comms"].into_iter().zip(&mut forms) {
            let Some(file) = file(name, form, ranks, micro_batches) else { continue };
            *count += 1;
            assert_eq!(file.schedule.to_string(), text(name, form).unwrap().replace('\r', ""), "{name}.{form}");
            assert_eq!(file.schedule.communicates(), form == "compute_comms", "{name}.{form}");
        }
    }
    assert_eq!(forms, [13, 9], "every file of the folder is read");
}

/// What PyTorch made of a compute-only schedule is what we make of it, to the last cell.
#[test]
fn communication_is_added_as_by_pytorch() {
    let mut compared = 0;
    for (name, ranks, micro_batches) in FILES {
        let Some(theirs) = file(name, "compute_comms", ranks, micro_batches) else { continue };
        let computed = file(name, "compute_only", ranks, micro_batches).expect("both forms");
        let ours = with_communication(&computed.schedule, micro_batches).expect("a safe schedule");
        assert_eq!(ours.to_string(), theirs.schedule.to_string(), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 9);
}

/// A timetable, its schedule, and back.
#[test]
fn timetables_go_there_and_back() {
    for (kind, placement, per_rank) in [
        (ScheduleKind::OneFOneB, Placement::Linear, 1),
        (ScheduleKind::Interleaved, Placement::Loop, 3),
        (ScheduleKind::ZbV, Placement::V, 2),
        (ScheduleKind::DualPipeV, Placement::V, 2),
    ] {
        let layout = Layout::new(placement, 4, per_rank, 12);
        let ours = generate(kind, &layout).expect("a timetable");
        let schedule = of_timetable(&ours).expect("no bidirectional one");
        let owners = check(&schedule, 12).expect("a safe schedule");
        assert_eq!(timetable(&schedule, &owners, 12).expect("the same layout"), ours, "{kind}");
        let whole = with_communication(&schedule, 12).expect("a safe schedule");
        assert_eq!(timetable(&whole, &owners, 12).expect("the same layout"), ours, "{kind}, with communication");
        // Times are those of the replay.
        let stages: Vec<StageCost> = (0..u64::from(layout.stages))
            .map(|s| StageCost {
                f: Nanos(5 + s),
                i: Nanos(6 + 2 * s),
                w: Nanos(4 + s % 3),
                b: Nanos(10 + 2 * s + s % 3),
            })
            .collect();
        let problem = Problem { layout, stages, pair: PairCost::Sum, hops: Hops::Uniform(Nanos(3)), memory: None };
        let expected = replay(&problem, &ours).expect("a safe timetable");
        let cost = |cell: Cell| {
            let action = |work: dualweave::interop::torch::Work| match work.compute {
                dualweave::interop::torch::Compute::F => Action::F(work.chunk),
                dualweave::interop::torch::Compute::B => Action::B(work.chunk),
                dualweave::interop::torch::Compute::I => Action::I(work.chunk),
                dualweave::interop::torch::Compute::W => Action::W(work.chunk),
            };
            cell.works().map(|work| problem.cost(action(work))).sum()
        };
        let times = time(&whole, &owners, &cost, Nanos(3)).expect("a safe schedule");
        assert_eq!(times.makespan, expected.makespan, "{kind}");
        let spans: Vec<Vec<(Nanos, Nanos)>> =
            expected.spans.iter().map(|row| row.iter().map(|span| (span.start, span.end)).collect()).collect();
        assert_eq!(times.spans, spans, "{kind}");
    }
}

#[test]
fn a_bidirectional_pipeline_is_offered_another_placement() {
    let ours = generate(ScheduleKind::DualPipe, &Layout::new(Placement::Bidirectional, 4, 1, 8)).expect("a timetable");
    let error = of_timetable(&ours).expect_err("two ranks for a stage");
    assert!(error.message().contains("each stage would stand on two ranks"));
    assert!(error.help_text().expect("what to do").contains("dualpipev"));
}

/// Broken files of two ranks and two micro-batches: text, and what is said.
const BROKEN: [(&str, &str); 36] = [
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n", ""),
    ("0F0xyz,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n", "row 1, cell 1: `0F0xyz` is no action: `xyz` follows the micro-batch"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1G1,1B1\n", "row 2, cell 3: `1G1` is no action: behind the stage stands what it does"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,F1,1B1\n", "row 2, cell 3: `F1` is no action: a number is missing"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F,1B1\n", "row 2, cell 3: `1F` is no action: a number is missing"),
    (
        "0F0,0F1,0B0,0B1\n1F0,1B0,1F99999999999,1B1\n",
        "row 2, cell 3: `1F99999999999` is no action: 99999999999 is too large",
    ),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F-1,1B1\n", "row 2, cell 3: `1F-1` is no action: a number is missing"),
    ("0F0,0F1,0B0,0B1\n1F0,(1F1;1B0),1B1\n", "row 2, cell 2: `(1F1;1B0)` is no action: what begins with `(`"),
    ("0F0,0F1,0B0,0B1\n1F0,(1F1)OVERLAP_F_B,1B1\n", "row 2, cell 2: `(1F1)OVERLAP_F_B` is no action: two actions"),
    (
        "0F0,0F1,0B0,0B1\n1F0,(1B0;1F1)OVERLAP_F_B,1B1\n",
        "row 2, cell 2: `(1B0;1F1)OVERLAP_F_B` is no action: a forward is overlapped",
    ),
    (
        "0F0,0F1,0B0,0B1\n1F0,(1F1;1B0;1B1)OVERLAP_F_B\n",
        "row 2, cell 2: `(1F1;1B0;1B1)OVERLAP_F_B` is no action: `;1B1` follows",
    ),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1,1UNSHARD3\n", "row 2, cell 5: `1UNSHARD3` is no action: it is of a stage"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1,0RECV_F1\n", "row 2, cell 5: `0RECV_F1` is no action: there is no stage before"),
    ("\n0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n", "row 1 is blank"),
    ("0F0,0F1,0B0,0B1\n\n1F0,1B0,1F1,1B1\n", "row 2 is blank"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n\n", "row 3 is blank"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n2F0\n", "a row 3 for 2 ranks"),
    ("0F0,0F1,0B0,0B1\n", "1 row for 2 ranks"),
    ("", "0 rows for 2 ranks"),
    (",,\n,\n", "row 1: nothing is computed"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1F1,1B1\n", "row 2, cell 4: `1F1` does again what cell 3 has done"),
    ("0F0,0F1,0B0,0B1,0W1\n1F0,1B0,1F1,1B1\n", "row 1, cell 5: `0W1` does again what cell 4 has done"),
    ("0F0,0F1,0B0\n1F0,1B0,1F1,1B1\n", "row 1: `0B1` is missing"),
    ("0F0,0F1,0B0,0I1\n1F0,1B0,1F1,1B1\n", "row 1: `0W1` is missing"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F2,1B1\n", "row 2, cell 3: `1F2`: micro-batch 2 of 2"),
    ("0F0,0F1,0B0,0B1\n3F0,3B0,3F1,3B1\n", "row 2, cell 1: stage 3, but no rank has stage 1"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,0B1,1B1\n", "row 2, cell 4: `0B1`: stage 0 is on rank 0"),
    ("0F0,0B0,0F1,0B1\n1B0,1F0,1F1,1B1\n", "row 2, cell 1: `1B0` reads what `1F0` makes, which comes no sooner"),
    ("0F0,0W0,0I0,0F1,0B1\n1F0,1B0,1F1,1B1\n", "row 1, cell 2: `0W0` reads what `0I0` makes, which comes no sooner"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1,1RECV_B0\n", "row 2, cell 5: `1RECV_B0`: no other rank has what it is for"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1,1SEND_F0\n", "row 2, cell 5: `1SEND_F0`: no other rank has what it is for"),
    // Rank 0 wants a backward before it has sent what rank 1 waits for.
    (
        "0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n",
        "row 1, cell 2: ranks wait for each other: rank 0 at `0B0`, rank 1 at `1F1`, which waits for `0F1`",
    ),
    (
        "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1,0REDUCE_GRAD\n1RECV_F0,1F0,1RECV_F1,1F1,1B0,1SEND_B0,1B1,1SEND_B1,1REDUCE_GRAD\n",
        "",
    ),
    (
        "0F0,0SEND_F0,0F1,0SEND_F1,0B0,0RECV_B1,0B1,0REDUCE_GRAD\n1RECV_F0,1F0,1RECV_F1,1F1,1B0,1SEND_B0,1B1,1SEND_B1,1REDUCE_GRAD\n",
        "row 1, cell 5: `0B0` reads what no `0RECV_B0` has received",
    ),
    (
        "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1,0REDUCE_GRAD\n1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1,1REDUCE_GRAD\n",
        "row 2, cell 4: ranks 0 and 1 come to their transfers in different orders: `1SEND_B0` here, `0SEND_F1` on rank 0",
    ),
    (
        "0UNSHARD,0F0,0SEND_F0,0RESHARD,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1,0REDUCE_GRAD\n1RECV_F0,1F0,1RECV_F1,1F1,1B0,1SEND_B0,1B1,1SEND_B1,1REDUCE_GRAD\n",
        "row 1, cell 5: `0F1`: the parameters of stage 0 are not gathered",
    ),
];

#[test]
fn broken_files_are_refused_with_their_cell() {
    for (text, said) in BROKEN {
        match read("file.csv", text, 2, 2) {
            Ok(_) => assert_eq!(said, "", "{text} is no schedule"),
            Err(error) => {
                assert!(!said.is_empty() && error.message().starts_with(said), "{text} gives {}", error.message());
                assert!(error.has_place(), "{text}");
            }
        }
    }
}

/// Files with one thing changed, and whether that leaves them whole. With communication everything counts.
fn mutated() -> impl Strategy<Value = (usize, String, u32, u32)> {
    let whole = |index: usize| {
        let (name, ranks, micro_batches) = FILES[index];
        let text = text(name, "compute_comms").or_else(|| text(name, "compute_only")).expect("a file");
        (text, ranks, micro_batches)
    };
    (0..FILES.len(), any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..5_usize).prop_map(
        move |(file, one, other, how)| {
            let (text, ranks, micro_batches) = whole(file);
            let mut rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
            let row = one.index(rows.len());
            let (a, b) = (one.index(rows[row].len()), other.index(rows[row].len()));
            match how {
                0 => rows[row].swap(a, b),
                1 => drop(rows[row].remove(a)),
                2 => {
                    let cell = rows[row][a];
                    rows[row].insert(b, cell);
                }
                3 => {
                    let from = other.index(rows.len());
                    let cell = rows[row].remove(a);
                    rows[from].push(cell);
                }
                _ => {
                    let to = other.index(rows.len());
                    rows.swap(row, to);
                }
            }
            let text = rows.iter().map(|row| row.join(",") + "\n").collect();
            (file, text, ranks, micro_batches)
        },
    )
}

/// Whether ranks that go on in a random order come to the end of a file, each cell as PyTorch runs it: transfers between two ranks are
/// queued on both and run when the same one is first on both; only a computation waits. Reads the text by itself.
fn ends(text: &str, seed: u64) -> bool {
    type Work = (char, u32, u32);
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).count();
    let one = |cell: &str| {
        let (stage, rest) = cell.split_at(digits(cell));
        let at = rest.len() - digits(&rest.chars().rev().collect::<String>());
        let number = |text: &str| text.parse::<u32>().unwrap_or_default();
        (rest[..at].to_owned(), number(stage), number(&rest[at..]))
    };
    let parts = |cell: &str| -> Vec<(String, u32, u32)> {
        cell.trim_start_matches('(').trim_end_matches(")OVERLAP_F_B").split(';').map(one).collect()
    };
    let rows: Vec<Vec<&str>> =
        text.lines().map(|row| row.split(',').filter(|cell| !cell.is_empty()).collect()).collect();
    let mut owner: BTreeMap<u32, usize> = BTreeMap::new();
    for (rank, row) in rows.iter().enumerate() {
        for (what, stage, _) in row.iter().flat_map(|cell| parts(cell)) {
            if what.len() == 1 {
                owner.insert(stage, rank);
            }
        }
    }
    let last = owner.len() as u32 - 1;
    let communicates = text.contains("SEND");
    let mut dice = dice::Dice(seed);
    let mut at = vec![0; rows.len()];
    let mut done: BTreeSet<Work> = BTreeSet::new();
    let mut queued: BTreeMap<(usize, usize), Vec<Work>> = BTreeMap::new();
    loop {
        let open: Vec<usize> = (0..rows.len()).filter(|&rank| at[rank] < rows[rank].len()).collect();
        if open.is_empty() {
            return true;
        }
        let start = dice.below(open.len());
        let moved = (0..open.len()).map(|turn| open[(start + turn) % open.len()]).find(|&rank| {
            let cell = rows[rank][at[rank]];
            let works = parts(cell);
            let (what, stage, micro_batch) = &works[0];
            let transfer = match what.as_str() {
                "SEND_F" => Some((('F', *stage, *micro_batch), owner[&(stage + 1)])),
                "RECV_F" => Some((('F', stage - 1, *micro_batch), owner[&(stage - 1)])),
                "SEND_B" => Some((('I', *stage, *micro_batch), owner[&(stage - 1)])),
                "RECV_B" => Some((('I', stage + 1, *micro_batch), owner[&(stage + 1)])),
                _ => None,
            };
            if let Some((message, peer)) = transfer {
                // What is sent has been made.
                if what.starts_with("SEND") && !done.contains(&message) {
                    return false;
                }
                queued.entry((rank, peer)).or_default().push(message);
                return true;
            }
            if what.len() > 1 {
                return true;
            }
            let there = |made: Work, from: usize| {
                if from == rank || !communicates {
                    return done.contains(&made);
                }
                let (mine, theirs) = (queued.get(&(rank, from)), queued.get(&(from, rank)));
                let place = mine.and_then(|mine| mine.iter().position(|&message| message == made));
                place.is_some_and(|place| {
                    theirs.is_some_and(|theirs| theirs.get(..=place) == mine.map(|mine| &mine[..=place]))
                })
            };
            let ready = works.iter().all(|(what, stage, m)| match what.as_str() {
                "F" => *stage == 0 || there(('F', stage - 1, *m), owner[&(stage - 1)]),
                "W" => done.contains(&('I', *stage, *m)),
                _ => {
                    done.contains(&('F', *stage, *m))
                        && (*stage == last || there(('I', stage + 1, *m), owner[&(stage + 1)]))
                }
            });
            if ready {
                let letter = |what: &str| if what == "B" { 'I' } else { what.chars().next().unwrap_or(' ') };
                done.extend(works.iter().map(|(what, stage, m)| (letter(what), *stage, *m)));
            }
            ready
        });
        match moved {
            Some(rank) => at[rank] += 1,
            None => return false,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is read still does all that the file does, and comes to an end on ranks that go on in any order.
    #[test]
    fn changed_files_are_whole_or_refused((index, text, ranks, micro_batches) in mutated(), seed in any::<u64>()) {
        if let Ok(file) = read("file.csv", &text, ranks, micro_batches) {
            let (name, ..) = FILES[index];
            let form = if file.schedule.communicates() { "compute_comms" } else { "compute_only" };
            let original = self::file(name, form, ranks, micro_batches).expect("a file");
            // Parameters may be gathered more often, and kept.
            let sorted = |file: &File| {
                let cells = file.schedule.rows.iter().flatten().copied().flatten();
                let mut cells: Vec<Cell> = cells.filter(|cell| !matches!(cell, Cell::Unshard(_) | Cell::Reshard(_))).collect();
                cells.sort();
                cells
            };
            prop_assert_eq!(sorted(&file), sorted(&original));
            prop_assert!(ends(&text, seed), "{} does not end", text);
        }
    }
}
