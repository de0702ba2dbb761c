//! Plan files: what is written is read back, and what is no plan is refused with the reason and the place.

use std::collections::BTreeSet;
use std::path::Path;

use dualweave::job::training::ScheduleKind;
use dualweave::job::{Overrides, load};
use dualweave::passes::compile;
use dualweave::plan::{Plan, Task, VERSION};
use dualweave::units::{Bytes, Nanos};
use dualweave::{Error, ir};
use miette::Diagnostic;

fn plan(schedule: ScheduleKind) -> Plan {
    let overrides = Overrides { schedule: Some(schedule), ..Overrides::default() };
    compile(&load(Path::new("examples/tiny/job.ron"), &overrides).unwrap().job).unwrap().plan
}

#[test]
fn what_is_written_is_read_back() {
    for schedule in ScheduleKind::PUBLISHED {
        let plan = plan(schedule);
        let text = plan.to_ron();
        let read = Plan::from_ron("plan.ron", &text).unwrap_or_else(|error| panic!("{schedule}: {error:?}"));
        assert_eq!(read, plan, "{schedule}");
        assert_eq!(read.to_ron(), text);
        assert_eq!(read.digest_now(), plan.digest);
    }
}

/// Numbers that do not end in binary, and all that a measured machine may hold.
#[test]
fn odd_numbers_survive() {
    let mut plan = plan(ScheduleKind::GPipe);
    plan.machine.network.byte_s = 1e11 / 3.0;
    plan.machine.nvlink.measured = vec![(1, f64::MIN_POSITIVE), (2, 0.1 + 0.2), (132, f64::MAX)];
    plan.model.name = "a \"name\"\n// with\\every{thing".into();
    plan.stages[0].parameters = Bytes(u64::MAX);
    plan.seal();
    assert_eq!(Plan::from_ron("plan.ron", &plan.to_ron()).unwrap(), plan);
}

#[test]
fn equal_jobs_give_equal_bytes() {
    assert_eq!(plan(ScheduleKind::DualPipe).to_ron(), plan(ScheduleKind::DualPipe).to_ron());
    let texts: BTreeSet<String> = ScheduleKind::PUBLISHED.into_iter().map(|schedule| plan(schedule).to_ron()).collect();
    assert_eq!(texts.len(), ScheduleKind::PUBLISHED.len());
}

/// Line (from 1) at which an error points into `text`.
fn line(error: &Error, text: &str) -> usize {
    let label = error.labels().and_then(|mut labels| labels.next()).expect("a place");
    text[..label.offset()].matches('\n').count() + 1
}

#[test]
fn another_version_is_named() {
    let text = plan(ScheduleKind::GPipe).to_ron();
    let other = VERSION + 6;
    for (changed, why) in [
        (text.replacen(&format!("version: {VERSION}"), &format!("version: {other}"), 1), "as it is"),
        // Fields and values that this version does not have.
        (
            text.replacen(&format!("version: {VERSION},"), &format!("version: {other}, news: Some(New(1, [])),"), 1),
            "with a new field",
        ),
        (
            text.replacen(&format!("version: {VERSION}"), &format!("version: {other}"), 1).replace("F(0,0)", "Q(0)"),
            "with a new task",
        ),
    ] {
        let error = Plan::from_ron("plan.ron", &changed).expect_err(why);
        assert!(error.message().contains(&format!("version {other}")), "{why}: {error:?}");
        assert!(error.message().contains(&format!("version {VERSION}")), "{why}: {error:?}");
        assert!(error.help_text().is_some());
        assert_eq!(changed.lines().nth(line(&error, &changed) - 1).unwrap().trim().split(':').next(), Some("version"));
    }
}

/// Plans had no arenas before version 2.
#[test]
fn version_1_is_named() {
    let text = plan(ScheduleKind::GPipe).to_ron();
    let without = |line: &&str| !line.trim_start().starts_with("arena:") && !line.trim_start().starts_with("exchange:");
    let old = text
        .replacen(&format!("version: {VERSION}"), "version: 1", 1)
        .lines()
        .filter(without)
        .collect::<Vec<&str>>()
        .join("\n");
    let error = Plan::from_ron("plan.ron", &old).expect_err("an old plan");
    assert_eq!(error.message(), "this is a plan of version 1; this dualweave reads version 3");
    assert_eq!(line(&error, &old), 4);
}

#[test]
fn what_is_no_plan_is_refused_where_it_stands() {
    let text = plan(ScheduleKind::DualPipe).to_ron();
    let number = |needle: &str, text: &str| text.lines().position(|line| line.contains(needle)).expect("the line") + 1;
    for (from, to, said) in [
        ("    layout: (", "    lay_out: (", "lay_out"),
        ("rings: [", "wrings: [", "wrings"),
        ("(F(0,0),[],", "(F(0,-1),[],", ""),
        ("(F(0,0),[],", "(F(0),[],", ""),
        ("(F(0,0),[],", "(G(0,0),[],", "G"),
        ("    pairs: [", "    pairs: [7, ", ""),
        ("exchange_buffer: ", "exchange_buffer: 1, exchange_buffer: ", "exchange_buffer"),
        ("arena: ", "arena: -1, was: ", ""),
        ("sms: 132, waits", "sms: 4294967296, waits", ""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let error = Plan::from_ron("plan.ron", &changed).expect_err(to);
        assert!(error.message().contains(said), "{to}: {error:?}");
        assert_eq!(line(&error, &changed), number(to, &changed), "{to}: {error:?}");
    }
    for (broken, why) in
        [("", "empty"), ("(", "cut off"), ("()", "nothing in it"), ("version: 2", "no struct"), ("[1]", "a list")]
    {
        assert!(Plan::from_ron("plan.ron", broken).is_err(), "{why}");
    }
    // Cut off anywhere.
    for end in (0..text.len() - 3).step_by(997) {
        if let Some(part) = text.get(..end) {
            assert!(Plan::from_ron("plan.ron", part).is_err(), "cut at {end}");
        }
    }
}

/// Everything but the digest itself is under the digest.
#[test]
fn any_change_changes_the_digest() {
    let plan = plan(ScheduleKind::DualPipe);
    assert_eq!(plan.digest, plan.digest_now());
    assert_eq!(plan.digest.len(), 64);
    let mut digests = BTreeSet::from([plan.digest.clone()]);
    let mut changes = 1;
    let mut changed = |change: &dyn Fn(&mut Plan)| {
        let mut other = plan.clone();
        change(&mut other);
        assert_eq!(other.digest, plan.digest);
        digests.insert(other.digest_now());
        changes += 1;
    };
    changed(&|plan| plan.origin.tokens_per_step += 1);
    changed(&|plan| plan.origin.compiler.push('x'));
    changed(&|plan| plan.model.hidden += 1);
    changed(&|plan| plan.machine.launch = Nanos(1));
    changed(&|plan| plan.machine.network.measured.push((1, 1.0)));
    changed(&|plan| plan.layout.micro_batches += 1);
    changed(&|plan| plan.stages[1].held.f_to_w.clear());
    changed(&|plan| plan.stages.swap(0, 1));
    changed(&|plan| plan.stages[1].recompute.layer ^= true);
    changed(&|plan| _ = plan.pairs.pop());
    changed(&|plan| plan.programs[0].workspace += Bytes(1));
    changed(&|plan| plan.programs[0].ops[0].phase = ir::Phase::W);
    changed(&|plan| plan.timetable.lower_bound += Nanos(1));
    changed(&|plan| plan.ranks.swap(0, 1));
    changed(&|plan| plan.ranks[0].rings[0].slots += 1);
    changed(&|plan| plan.ranks[0].rings[0].at.0 += 256);
    changed(&|plan| plan.ranks[0].arena.0 += 256);
    changed(&|plan| plan.ranks[0].exchange.0 += 256);
    for (rank, list) in plan.ranks.iter().enumerate() {
        for at in (rank..list.items.len()).step_by(7) {
            changed(&|plan| plan.ranks[rank].items[at].0 = Task::Update(99));
            changed(&|plan| plan.ranks[rank].items[at].1.push(99));
            changed(&|plan| plan.ranks[rank].items[at].2.push(Bytes(99)));
            changed(&|plan| _ = plan.ranks[rank].items.remove(at));
        }
    }
    assert_eq!(digests.len(), changes);
    let mut other = plan.clone();
    other.digest = "none".into();
    assert_eq!(other.digest_now(), plan.digest);
    other.seal();
    assert_eq!(other, plan);
}

/// A field that nobody reads would be lost without a word, whichever part of a plan it stands in.
#[test]
fn a_field_that_is_not_known_is_refused_everywhere() {
    let text = plan(ScheduleKind::DualPipe).to_ron();
    let mut tried = BTreeSet::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        for (at, _) in line.match_indices(':').filter(|_| !line.trim_start().starts_with("//")) {
            let name = line[..at].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            if tried.insert(name) {
                let mut changed = text.clone();
                changed.insert_str(start + at - name.len(), "surplus: 0, ");
                assert!(Plan::from_ron("plan.ron", &changed).is_err(), "in front of {name}: {line}");
            }
        }
        start += line.len();
    }
    for within in ["version", "tokens_per_step", "launches", "workspace", "depth", "network", "sms", "slots"] {
        assert!(tried.contains(within), "{within} is not in\n{tried:?}");
    }
}
