//! Charts: what they show, and that they fit.

use anstream::adapter::strip_str;
use dualweave::ir::{Action, ChunkId, Hops, Layout, PairCost, Placement, Problem, StageCost};
use dualweave::job::training::ScheduleKind;
use dualweave::passes::pipeline::{generate, precondition, replay};
use dualweave::units::Nanos;
use dualweave::view::chart::{Axis, Bar, Row, render, render_on};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Rows and makespan of a schedule; I and W cost the same as F, a pair what is given.
fn rows(kind: ScheduleKind, ranks: u32, micro_batches: u32, cost: u64, pair: u64) -> (Vec<Row>, Nanos) {
    let layout = Layout::new(kind.placement().expect("a published one"), ranks, 2, micro_batches);
    let timetable = generate(kind, &layout).unwrap();
    let stage = StageCost { f: Nanos(cost), i: Nanos(cost), w: Nanos(cost), b: Nanos(2 * cost) };
    let stages = vec![stage; layout.stages as usize];
    let problem =
        Problem { layout, stages, pair: PairCost::Uniform(Nanos(pair)), hops: Hops::Uniform(Nanos(0)), memory: None };
    let replay = replay(&problem, &timetable).unwrap();
    let lists = (0..).zip(timetable.ranks.iter().zip(&replay.spans));
    let row = |(rank, (actions, spans)): (u32, (&Vec<Action>, &Vec<_>))| Row {
        label: format!("rank {rank}"),
        bars: std::iter::zip(actions, spans)
            .map(|(&action, span): (_, &dualweave::passes::pipeline::Span)| {
                Bar::new(&layout, rank, action, span.start, span.end)
            })
            .collect(),
    };
    (lists.map(row).collect(), replay.makespan)
}

fn plain(text: &str) -> String {
    strip_str(text).to_string()
}

fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn dualpipe_at_three_widths() {
    let (rows, makespan) = rows(ScheduleKind::DualPipe, 8, 20, 1, 3);
    for width in [80, 120, 200] {
        let chart = render_on(&rows, makespan, width, Axis { places: 0, unit: "" });
        snapshot(&format!("chart-dualpipe-pp8-m20-width-{width}"), &plain(&chart));
    }
}

/// Pairs of 2.4 do not fall on columns.
#[test]
fn dualpipev_with_pairs_of_broken_length() {
    let (rows, makespan) = rows(ScheduleKind::DualPipeV, 4, 10, 10, 24);
    let chart = render_on(&rows, makespan, 120, Axis { places: 1, unit: "" });
    snapshot("chart-dualpipev-pp4-m10-pairs-2.4", &plain(&chart));
}

/// A column covers several actions.
#[test]
fn many_micro_batches() {
    let (rows, makespan) = rows(ScheduleKind::ZbV, 4, 100, 1_234_567, 3_703_701);
    snapshot("chart-zb-v-pp4-m100", &plain(&render(&rows, makespan, 100)));
}

#[test]
fn interleaved_in_colour() {
    let (rows, makespan) = rows(ScheduleKind::Interleaved, 2, 2, 1000, 3000);
    let codes = render(&rows, makespan, 60).replace('\u{1b}', "ESC");
    snapshot("chart-interleaved-pp2-m2-colour", &codes);
}

/// Where each slot is one column, the column's letter is that of the action that runs then.
#[test]
fn a_column_shows_what_runs_then() {
    let (rows, makespan) = rows(ScheduleKind::DualPipe, 8, 20, 1, 3);
    let chart = plain(&render(&rows, makespan, 80));
    for (row, line) in rows.iter().zip(chart.lines()) {
        let cells: Vec<char> = line[row.label.len() + 1..].chars().collect();
        assert_eq!(cells.len() as u64, makespan.0);
        for (time, cell) in (0..).map(Nanos).zip(cells) {
            let running = row.bars.iter().find(|bar| bar.start <= time && time < bar.end);
            let starts = running.is_some_and(|bar| bar.start == time);
            match running.map(|bar| bar.action) {
                None => assert_eq!(cell, '.'),
                Some(Action::F(_) | Action::FB(..)) if starts => assert_eq!(cell.to_ascii_uppercase(), 'F'),
                Some(Action::B(_)) if starts => assert_eq!(cell.to_ascii_uppercase(), 'B'),
                Some(Action::I(_)) => assert_eq!(cell.to_ascii_uppercase(), 'I'),
                Some(Action::W(_)) => assert_eq!(cell.to_ascii_uppercase(), 'W'),
                Some(_) => assert!(cell == '─' || cell.is_ascii_alphanumeric()),
            }
        }
    }
}

#[test]
fn nothing_and_next_to_nothing_can_be_drawn() {
    assert!(render(&[], Nanos(0), 80).contains("idle"));
    let layout = Layout::new(Placement::Linear, 1, 1, 1);
    let bar = Bar::new(&layout, 0, Action::W(ChunkId::new(0, 0)), Nanos(5), Nanos(5));
    let row = Row { label: String::new(), bars: vec![bar] };
    assert!(render(std::slice::from_ref(&row), Nanos(5), 0).lines().count() >= 3);
    let (start, end) = (Nanos(0), Nanos(u64::MAX));
    let row = Row { bars: vec![Bar { start, end, ..row.bars[0].clone() }], ..row };
    assert!(render(&[row], end, 80).starts_with(' '));
}

#[test]
fn axis_numbers_are_exact() {
    assert_eq!(Axis { places: 1, unit: "" }.number(Nanos(576)), "57.6");
    assert_eq!(Axis { places: 3, unit: "" }.number(Nanos(5)), "0.005");
    assert_eq!(Axis { places: 0, unit: "" }.number(Nanos(66)), "66");
    assert_eq!(Axis { places: 2, unit: "" }.number(Nanos(6600)), "66");
    let milli = Axis::of(Nanos(12_345_678));
    assert_eq!((milli.number(Nanos(12_345_678)), milli.unit), ("12.345678".to_owned(), "ms"));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        rng_seed: RngSeed::Fixed(0),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_line_is_wider_than_asked(
        kind in prop::sample::select(&ScheduleKind::PUBLISHED[..]),
        ranks in 1..12_u32,
        micro_batches in 1..60_u32,
        cost in 1..10_000_000_u64,
        pair in 1..10_000_000_u64,
        width in 40..250_usize,
    ) {
        prop_assume!(precondition(kind, ranks, 2, micro_batches).is_ok());
        let (rows, makespan) = rows(kind, ranks, micro_batches, cost, pair);
        let chart = plain(&render(&rows, makespan, width));
        for line in chart.lines() {
            prop_assert!(line.chars().count() <= width, "{line}");
        }
    }
}
