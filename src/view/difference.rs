//! What changed between two plans: settings, numbers, stages, programs and the order of each rank.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::numbers::count;
use super::plan_text::{op_name, program_name};
use super::table::{finish, new as new_table};
use super::units::runs;
use crate::error::Result;
use crate::plan::{Plan, PlanRank};
use crate::sim::memory::memory;
use crate::sim::{simulate, time_program};
use crate::units::{Bytes, Nanos};

/// A number before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change<T> {
    /// In the old plan.
    pub old: T,
    /// In the new one.
    pub new: T,
}

/// All that differs between two plans. Empty lists: nothing of that kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Whether the plans are the same but for their digests.
    pub same: bool,
    /// Simulated step, ns.
    pub step_ns: Change<Nanos>,
    /// Timetable, ns.
    pub timetable_ns: Change<Nanos>,
    /// Lower bound of timetables, ns.
    pub lower_bound_ns: Change<Nanos>,
    /// Memory of the fullest rank.
    pub memory_bytes: Change<Bytes>,
    /// Settings by name (`origin.dp`): what they were compiled from and for. A name that one does not have is `null` there.
    pub settings: BTreeMap<String, Change<Value>>,
    /// By stage, what it consists of and computes again; a stage that one does not have is empty there.
    pub stages: BTreeMap<usize, Change<String>>,
    /// By name of a program.
    pub programs: BTreeMap<String, ProgramChange>,
    /// By rank.
    pub ranks: BTreeMap<usize, RankChange>,
}

/// What changed in a program.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProgramChange {
    /// What it takes, ns; none where it is not there.
    pub ns: Option<Change<Option<Nanos>>>,
    /// By op, its SMs.
    pub sms: BTreeMap<String, Change<u32>>,
    /// Ops that only the new one has.
    pub added: Vec<String>,
    /// Ops that only the old one has.
    pub removed: Vec<String>,
    /// Ops of both that stand in another order.
    pub moved: usize,
}

/// What changed in a rank's list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RankChange {
    /// Items that only the old one has at their place.
    pub removed: usize,
    /// Items that only the new one has at their place.
    pub added: usize,
    /// Of these, items of both: in another place.
    pub moved: usize,
    /// The first place where they differ, and what stands there.
    pub first: usize,
    /// See `first`; none at an end.
    pub there: Change<Option<String>>,
}

/// Compares two plans.
///
/// # Errors
/// If one cannot be simulated.
pub fn difference(old: &Plan, new: &Plan) -> Result<Difference> {
    let simulations = [simulate(old)?, simulate(new)?];
    let needs = [old, new].into_iter().zip(&simulations).map(|(plan, simulation)| {
        memory(plan, simulation).iter().map(|rank| rank.need.total()).max().unwrap_or_default()
    });
    let needs: Vec<Bytes> = needs.collect();
    let unsealed = |plan: &Plan| Plan { digest: String::new(), ..plan.clone() };
    let parts = |plan: &Plan| -> Vec<(String, Value)> {
        let value = |part: serde_json::Result<Value>| part.unwrap_or(Value::Null);
        let mut all = Vec::new();
        for (name, part) in [
            ("origin", value(serde_json::to_value(&plan.origin))),
            ("model", value(serde_json::to_value(&plan.model))),
            ("machine", value(serde_json::to_value(&plan.machine))),
            ("layout", value(serde_json::to_value(plan.layout))),
        ] {
            flatten(name.to_owned(), part, &mut all);
        }
        all
    };
    let settings = both(parts(old), parts(new), |value| value.unwrap_or(Value::Null));
    let stage = |plan: &Plan| {
        let text = plan.stages.iter().map(|stage| match stage.recompute.is_nothing() {
            true => runs(&stage.units),
            false => format!("{}; again: {}", runs(&stage.units), stage.recompute),
        });
        text.enumerate().collect::<Vec<_>>()
    };
    Ok(Difference {
        same: unsealed(old) == unsealed(new),
        step_ns: Change { old: simulations[0].step, new: simulations[1].step },
        timetable_ns: Change { old: old.timetable.makespan, new: new.timetable.makespan },
        lower_bound_ns: Change { old: old.timetable.lower_bound, new: new.timetable.lower_bound },
        memory_bytes: Change { old: needs[0], new: needs[1] },
        settings,
        stages: both(stage(old), stage(new), Option::unwrap_or_default),
        programs: programs(old, new),
        ranks: ranks(&old.ranks, &new.ranks),
    })
}

/// What is not the same in both, by name.
fn both<K: Ord, V, C: PartialEq>(
    old: Vec<(K, V)>,
    new: Vec<(K, V)>,
    or: impl Fn(Option<V>) -> C,
) -> BTreeMap<K, Change<C>> {
    let all = side_by_side(old, new).into_iter();
    let changes = all.map(|(name, [old, new])| (name, Change { old: or(old), new: or(new) }));
    changes.filter(|(_, change)| change.old != change.new).collect()
}

/// What stands under each name in the one and in the other.
fn side_by_side<K: Ord, V>(old: Vec<(K, V)>, new: Vec<(K, V)>) -> BTreeMap<K, [Option<V>; 2]> {
    let mut all: BTreeMap<K, [Option<V>; 2]> = BTreeMap::new();
    for (at, list) in [old, new].into_iter().enumerate() {
        for (name, value) in list {
            all.entry(name).or_default()[at] = Some(value);
        }
    }
    all
}

/// Numbers and texts within a value, each under its path.
fn flatten(path: String, value: Value, to: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(format!("{path}.{name}"), value, to);
            }
        }
        value => to.push((path, value)),
    }
}

fn programs(old: &Plan, new: &Plan) -> BTreeMap<String, ProgramChange> {
    let named = |plan: &Plan| -> Vec<(String, usize)> {
        (0..plan.programs.len()).map(|program| (program_name(plan, program), program)).collect()
    };
    let mut changed = BTreeMap::new();
    for (name, [before, after]) in side_by_side(named(old), named(new)) {
        let of = |plan: &Plan, program: Option<usize>| program.map(|program| plan.programs[program].clone());
        let (before, after) = (of(old, before), of(new, after));
        let times = [(old, &before), (new, &after)]
            .map(|(plan, program)| program.as_ref().map(|program| time_program(program, &plan.machine).total));
        let mut change = ProgramChange::default();
        if times[0] != times[1] {
            change.ns = Some(Change { old: times[0], new: times[1] });
        }
        if let (Some(before), Some(after)) = (before, after) {
            let ops = |program: &crate::ir::Program| -> Vec<(String, u32)> {
                program.ops.iter().map(|op| (op_name(op), op.sms)).collect()
            };
            let (before, after) = (ops(&before), ops(&after));
            let [was, is] = [&before, &after].map(|ops| ops.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
            let sms = |ops: &[(String, u32)]| ops.iter().cloned().collect::<BTreeMap<String, u32>>();
            let (old_sms, new_sms) = (sms(&before), sms(&after));
            for (op, &old) in &old_sms {
                if let Some(&new) = new_sms.get(op).filter(|&&new| new != old) {
                    change.sms.insert(op.clone(), Change { old, new });
                }
            }
            change.added = is.iter().filter(|op| !old_sms.contains_key(*op)).cloned().collect();
            change.removed = was.iter().filter(|op| !new_sms.contains_key(*op)).cloned().collect();
            let kept = |ops: &[String], other: &BTreeMap<String, u32>| -> Vec<String> {
                ops.iter().filter(|op| other.contains_key(*op)).cloned().collect()
            };
            change.moved = edits(&kept(&was, &new_sms), &kept(&is, &old_sms)).map_or(0, |edits| edits.removed);
        }
        if change != ProgramChange::default() {
            changed.insert(name, change);
        }
    }
    changed
}

/// How one list becomes another.
struct Edits {
    removed: usize,
    added: usize,
    /// Where they first differ.
    first: usize,
}

/// By the longest common subsequence, as `similar` finds it; none if they are the same.
fn edits<T: Ord + std::hash::Hash>(old: &[T], new: &[T]) -> Option<Edits> {
    let (mut removed, mut added) = (0, 0);
    for op in capture_diff_slices(Algorithm::Myers, old, new) {
        match op {
            DiffOp::Equal { .. } => {}
            DiffOp::Delete { old_len, .. } => removed += old_len,
            DiffOp::Insert { new_len, .. } => added += new_len,
            DiffOp::Replace { old_len, new_len, .. } => (removed, added) = (removed + old_len, added + new_len),
        }
    }
    let first = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    (removed + added > 0).then_some(Edits { removed, added, first })
}

fn ranks(old: &[PlanRank], new: &[PlanRank]) -> BTreeMap<usize, RankChange> {
    let tasks = |ranks: &[PlanRank], rank: usize| {
        ranks.get(rank).map(|rank| rank.items.iter().map(|item| item.0).collect::<Vec<_>>()).unwrap_or_default()
    };
    let change = |rank: usize| {
        let (old, new) = (tasks(old, rank), tasks(new, rank));
        let Edits { removed, added, first } = edits(&old, &new)?;
        let mut sorted = [old.clone(), new.clone()];
        sorted.iter_mut().for_each(|tasks| tasks.sort_unstable());
        let in_both = sorted[0].iter().filter(|task| sorted[1].binary_search(task).is_ok()).count();
        let moved = removed.saturating_sub(old.len() - in_both);
        let at = |tasks: &[crate::plan::Task]| tasks.get(first).map(ToString::to_string);
        Some((rank, RankChange { removed, added, moved, first, there: Change { old: at(&old), new: at(&new) } }))
    };
    (0..old.len().max(new.len())).filter_map(change).collect()
}

/// Rows of a list that are told; the rest is counted.
const TOLD: usize = 12;

/// The difference in words.
pub fn to_text(of: &Difference, width: usize) -> String {
    if of.same {
        return "The plans are the same.\n".to_owned();
    }
    let mut text = numbers(of, width);
    let mut list = |title: &str, rows: Vec<String>| {
        if rows.is_empty() {
            return;
        }
        text += &format!("\n{title}\n");
        for row in rows.iter().take(TOLD) {
            text += &format!("  {row}\n");
        }
        if rows.len() > TOLD {
            text += &format!("  and {} more\n", rows.len() - TOLD);
        }
    };
    let absent = |text: &str| if text.is_empty() { "–".to_owned() } else { text.to_owned() };
    let value = |value: &Value| match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let settings = of.settings.iter();
    list("Compiled from", settings.map(|(name, c)| format!("{name}: {} → {}", value(&c.old), value(&c.new))).collect());
    let stages = of.stages.iter();
    list("Stages", stages.map(|(stage, c)| format!("{stage}: {} → {}", absent(&c.old), absent(&c.new))).collect());
    list("Programs", of.programs.iter().map(|(name, change)| format!("{name}: {}", program_text(change))).collect());
    let ranks = of.ranks.iter().map(|(rank, change)| {
        let at = |task: &Option<String>| task.clone().unwrap_or_else(|| "the end".to_owned());
        format!(
            "rank {rank}: {} moved, {} removed, {} added; the first at {}: {} → {}",
            change.moved,
            change.removed - change.moved,
            change.added.saturating_sub(change.moved),
            change.first,
            at(&change.there.old),
            at(&change.there.new)
        )
    });
    list("Order of items", ranks.collect());
    if of.settings.is_empty() && of.stages.is_empty() && of.programs.is_empty() && of.ranks.is_empty() {
        text +=
            "\nWhat differs is where blocks lie, or what items wait for; order, programs and settings are the same.\n";
    }
    text
}

fn numbers(of: &Difference, width: usize) -> String {
    let mut table = new_table(&["", "old", "new", "change"], width);
    let mut row = |name: &str, [old, new]: [String; 2], [before, after]: [f64; 2]| {
        let percent = if before > 0.0 { format!("{:+.2} %", 100.0 * (after / before - 1.0)) } else { "–".to_owned() };
        table.add_row([name.to_owned(), old, new, percent]);
    };
    for (name, c) in [("step", &of.step_ns), ("timetable", &of.timetable_ns), ("lower bound", &of.lower_bound_ns)] {
        row(name, [c.old.to_string(), c.new.to_string()], [c.old.as_f64(), c.new.as_f64()]);
    }
    let c = &of.memory_bytes;
    row("memory of the fullest rank", [c.old.to_string(), c.new.to_string()], [c.old.as_f64(), c.new.as_f64()]);
    finish(&mut table, &[1, 2, 3]);
    format!("{table}\n")
}

fn program_text(change: &ProgramChange) -> String {
    let mut parts = Vec::new();
    match &change.ns {
        Some(Change { old: Some(old), new: Some(new) }) if old.to_string() == new.to_string() => {
            parts.push(format!("{new}, {:+} ns", new.0 as i128 - old.0 as i128));
        }
        Some(Change { old: Some(old), new: Some(new) }) => parts.push(format!("{old} → {new}")),
        Some(Change { old: None, new: Some(new) }) => parts.push(format!("new, {new}")),
        Some(Change { old: Some(old), new: None }) => parts.push(format!("gone, {old}")),
        _ => {}
    }
    // Ops whose SMs changed alike are told together.
    let mut alike: BTreeMap<(u32, u32), Vec<&str>> = BTreeMap::new();
    for (op, c) in &change.sms {
        alike.entry((c.old, c.new)).or_default().push(op);
    }
    for ((old, new), ops) in alike {
        let more =
            if ops.len() > 1 { format!(" and {}", count(ops.len() as u64 - 1, "more op")) } else { String::new() };
        parts.push(format!("{old} → {new} SMs for {}{more}", ops[0]));
    }
    if change.moved > 0 {
        parts.push(format!("{} in another order", count(change.moved as u64, "op")));
    }
    for (what, ops) in [("without", &change.removed), ("with", &change.added)] {
        if let Some(first) = ops.first() {
            let more = if ops.len() > 1 { format!(" and {} more", ops.len() - 1) } else { String::new() };
            parts.push(format!("{what} {first}{more}"));
        }
    }
    parts.join("; ")
}
