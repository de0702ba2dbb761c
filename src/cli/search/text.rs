//! The tables of `dualweave search`.

use std::cmp::Reverse;
use std::fmt::Write as _;

use super::{Besides, hours, rate};
use crate::job::Job;
use crate::job::training::ScheduleKind;
use crate::machine::Machine;
use crate::passes::search::what_if::{Change, WhatIf};
use crate::passes::search::{Configuration, Decision, Found, Reason, Row};
use crate::sim::Prices;
use crate::units::{Bytes, Nanos};
use crate::view::numbers::{self, count, grouped, percent};
use crate::view::table;

/// What the search found, in at most `width` columns where that is possible.
pub(super) fn of_search(found: &Found, besides: &Besides, width: usize) -> String {
    let training = &found.job.training;
    let sequences = training.step_tokens() / u64::from(training.sequence.max(1));
    let mut text = format!(
        "{} on {}: {}, {} of {} a step\n\n{}\n",
        found.job.model.name,
        found.job.cluster.name,
        count(found.gpus, "GPU"),
        count(sequences, "sequence"),
        count(training.sequence.into(), "token"),
        front(found, besides, width),
    );
    text += "dp: replicas × micro-batches. size: sequences of a micro-batch. payload: dispatch/combine. left: memory that is not needed.\n\
             over bound: of the step over what no plan of its configuration is below.\n";
    if let Some(disturbed) = besides.disturbed.first() {
        let steps = count(disturbed.samples.into(), "step");
        let _ = writeln!(
            text,
            "disturbed: mean of {steps}; 99 of 100 take no longer than p99. Rows are ordered by undisturbed steps."
        );
    }
    text.push('\n');
    if let Some(best) = found.front.first() {
        text += &said(found, best);
    }
    let _ = writeln!(
        text,
        "{} bounded, {} looked at closely, {} compiled, of them {} with rewritten layers.",
        count(found.configurations, "configuration"),
        grouped(found.looked_at),
        grouped(found.compiled),
        grouped(found.compiled_in_full),
    );
    if !found.neighbours.is_empty() {
        text += "\nNeighbours of the fastest, and what speaks against them\n";
        text += &neighbours(found, width);
    }
    text
}

fn front(found: &Found, Besides { prices, disturbed }: &Besides, width: usize) -> String {
    let tokens = found.job.training.step_tokens();
    let mut columns = vec!["", "tokens/s/GPU", "step", "memory", "left", "over bound"];
    if !disturbed.is_empty() {
        columns.extend(["disturbed", "p99"]);
    }
    columns.extend(Decision::ALL.map(|decision| match decision {
        Decision::MicroBatchSize => "size",
        Decision::Sms => "SMs",
        other => other.name(),
    }));
    columns.extend(prices.price.map(|_| "USD/T"));
    columns.extend(prices.watts.map(|_| "MWh/T"));
    let mut table = table::new(&columns, width);
    let mut disturbed = disturbed.iter();
    let mut add = |name: String, row: &Row, gpus: u64| {
        let rate = rate(tokens, row.outcome.step, gpus);
        let over = row.bound.map(|bound| percent(row.outcome.step.saturating_sub(bound).as_f64(), bound.as_f64()));
        let left = match row.outcome.need <= found.memory {
            true => (found.memory - row.outcome.need).to_string(),
            false => format!("-{}", row.outcome.need - found.memory),
        };
        let mut cells = vec![
            name,
            grouped(rate.round() as u64),
            row.outcome.step.to_string(),
            row.outcome.need.to_string(),
            left,
            over.unwrap_or_else(|| "–".to_owned()),
        ];
        if let Some(disturbed) = disturbed.next() {
            cells.extend([disturbed.mean, disturbed.p99].map(|time| time.to_string()));
        }
        cells.extend(Decision::ALL.map(|decision| row.configuration.said(decision)));
        let hours = hours(rate);
        cells.extend([prices.usd(hours), prices.mwh(hours)].into_iter().flatten().map(numbers::rate));
        table.add_row(cells);
    };
    add("given".to_owned(), &found.given, found.given.configuration.gpus());
    for (at, row) in (1..).zip(&found.front) {
        let name = if row.configuration == found.given.configuration { format!("{at}: given") } else { at.to_string() };
        add(name, row, found.gpus);
    }
    let numbers: Vec<usize> =
        (1..columns.len()).filter(|at| !matches!(columns[*at], "schedule" | "recompute" | "payload")).collect();
    table::finish(&mut table, &numbers);
    format!("{table}")
}

/// How the fastest differs from what was given, and how much faster anything could be.
fn said(found: &Found, best: &Row) -> String {
    let mut text = String::new();
    let tokens = found.job.training.step_tokens();
    let [now, before] = [(best, found.gpus), (&found.given, found.given.configuration.gpus())]
        .map(|(row, gpus)| rate(tokens, row.outcome.step, gpus));
    let changes = changes(&found.given.configuration, &best.configuration);
    if changes.is_empty() {
        text += "The job is the fastest that was found.\n";
    } else {
        let gain = 100.0 * (now / before - 1.0);
        let _ = writeln!(text, "The fastest has {gain:+.1} % tokens/s/GPU. It changes {changes}.");
        let idle = found.gpus - best.configuration.gpus();
        if idle > 0 {
            let _ = writeln!(text, "It leaves {} idle, which count in its tokens/s/GPU.", count(idle, "GPU"));
        }
    }
    match found.bound >= best.outcome.step {
        // Bounds are those of published schedules.
        true if best.configuration.schedule == ScheduleKind::Auto => {
            text += "Nothing in this space is faster with a published schedule: it is proved.\n";
        }
        true => text += "Nothing in this space is faster: it is proved.\n",
        false => {
            let more = 100.0 * (best.outcome.step.as_f64() / found.bound.as_f64() - 1.0);
            let _ = writeln!(
                text,
                "No plan of any of these configurations takes less than {}: nothing is more than {more:.1} % faster.",
                found.bound
            );
        }
    }
    text
}

fn changes(from: &Configuration, to: &Configuration) -> String {
    let change = |decision: Decision| format!("{} {} → {}", decision.name(), from.said(decision), to.said(decision));
    to.differs(from).map(change).collect::<Vec<_>>().join(", ")
}

fn neighbours(found: &Found, width: usize) -> String {
    let mut table = table::new(&["decision", "to", "because"], width);
    for neighbour in &found.neighbours {
        let (decision, to) = (neighbour.decision, &neighbour.configuration);
        // What had to move with it.
        let moved = found.front.first().map(|best| to.differs(&best.configuration)).into_iter().flatten();
        let moved =
            moved.filter(|other| *other != decision).map(|other| format!(", {} {}", other.name(), to.said(other)));
        table.add_row(vec![
            decision.name().to_owned(),
            [to.said(decision)].into_iter().chain(moved).collect::<String>(),
            because(&neighbour.reason),
        ]);
    }
    table::finish(&mut table, &[]);
    format!("{table}\n")
}

fn because(reason: &Reason) -> String {
    match reason {
        Reason::Invalid(why) => why.clone(),
        Reason::Memory(over) => format!("any plan of it needs at least {over} more than there is"),
        Reason::Bound(over) => format!("any plan of it takes at least {over} longer"),
        Reason::PlanMemory(over) => format!("its plan needs {over} more than there is"),
        Reason::Plan(over) => format!("its plan takes {over} longer, layers in their plain form"),
        Reason::FullPlan(over) => format!("its plan takes {over} longer"),
        Reason::Near(Nanos::ZERO) => "its plan takes as long, layers in their plain form".to_owned(),
        Reason::Near(less) => {
            format!(
                "its plan takes {less} less with layers in their plain form; it was not compiled with rewritten ones"
            )
        }
    }
}

/// What changes would give, best first.
pub fn of_changes(job: &Job, told: &WhatIf, prices: &Prices, width: usize) -> String {
    let gpus = u64::from(job.training.pp) * u64::from(job.training.dp) * u64::from(job.training.tp);
    let limit = Machine::new(&job.cluster, job.training.memory_limit_gb).memory;
    let mut columns = vec!["change", "tokens/s/GPU", "gain", "step", "memory", "change of it", "fits"];
    columns.extend(prices.price.map(|_| "USD/T"));
    columns.extend(prices.watts.map(|_| "MWh/T"));
    let mut table = table::new(&columns, width);
    let before = told.given.outcome.as_ref().map(|outcome| (rate(told.given.tokens, outcome.step, gpus), outcome.need));
    let (rate_before, need_before) = before.unwrap_or((0.0, Bytes::ZERO));
    let mut refused = String::new();
    for change in [&told.given].into_iter().chain(ranked(told, gpus)) {
        let outcome = match &change.outcome {
            Ok(outcome) => outcome,
            Err(why) => {
                let _ = writeln!(refused, "  {}: {why}", change.what);
                continue;
            }
        };
        let rate = rate(change.tokens, outcome.step, gpus);
        let more = match outcome.need >= need_before {
            true => format!("+{}", outcome.need - need_before),
            false => format!("-{}", need_before - outcome.need),
        };
        let mut cells = vec![
            change.what.clone(),
            grouped(rate.round() as u64),
            format!("{:+.2} %", 100.0 * (rate / rate_before.max(f64::MIN_POSITIVE) - 1.0)),
            outcome.step.to_string(),
            outcome.need.to_string(),
            more,
            if outcome.need <= limit { "yes" } else { "no" }.to_owned(),
        ];
        let hours = hours(rate);
        cells.extend([prices.usd(hours), prices.mwh(hours)].into_iter().flatten().map(numbers::rate));
        table.add_row(cells);
    }
    let numbers: Vec<usize> = (1..columns.len()).filter(|at| columns[*at] != "fits").collect();
    table::finish(&mut table, &numbers);
    format!(
        "{} on {}: single changes, each with a plan made anew\n\n{table}\n{refused}",
        job.model.name, job.cluster.name
    )
}

/// The changes with most tokens a second first; those that cannot be had last.
pub fn ranked(told: &WhatIf, gpus: u64) -> Vec<&Change> {
    let mut all: Vec<&Change> = told.changes.iter().collect();
    let of = |change: &Change| match &change.outcome {
        // In thousandths of a token: floats have no order.
        Ok(outcome) => (rate(change.tokens, outcome.step, gpus) * 1e3) as u64,
        Err(_) => 0,
    };
    all.sort_by_key(|change| (change.outcome.is_err(), Reverse(of(change))));
    all
}
