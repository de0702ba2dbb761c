//! Where a GPU's time went, as a trace tells it: as text for people and as JSON for programs. The words are those of `simulate`.

use std::fmt::Write as _;

use anstyle::Style;
use serde::Serialize;

use crate::interop::kineto::{Breakdown, Part, Row};
use crate::units::Nanos;
use crate::view::numbers::{count, grouped, percent};
use crate::view::table::{finish, new as new_table};

const BOLD: Style = Style::new().bold();

/// The whole report, in at most `width` columns where that is possible. `name` is the trace's.
pub fn to_text(name: &str, breakdown: &Breakdown, width: usize) -> String {
    let gpu = breakdown.gpu.as_deref().map_or(String::new(), |gpu| format!(" · {gpu}"));
    let rank = breakdown.rank.map_or(String::new(), |(rank, ranks)| format!(" · rank {rank} of {ranks}"));
    let steps = match breakdown.steps[..] {
        [] => String::new(),
        [only] => format!(" · step {only}"),
        [first, .., last] => format!(" · {} from {first} to {last}", count(breakdown.steps.len() as u64, "step")),
    };
    let mut text = format!(
        "{BOLD}{name}{BOLD:#}{gpu} · GPU {}{rank}{steps} · {} · {}\n\n",
        breakdown.device,
        count(breakdown.events, "event"),
        count(breakdown.ops, "kernel"),
    );
    let mut line = |name: &str, time: Nanos, what: &str| {
        let share = percent(time.as_f64(), breakdown.span.as_f64());
        let _ = writeln!(text, "  {name:<12}{:>10}{share:>10}   {what}", time.to_string());
    };
    line("span", breakdown.span, "from the first kernel to the last");
    line("busy", breakdown.busy, "computation runs");
    line("exposed", breakdown.exposed, "only communication runs");
    line("bubble", breakdown.bubble, "nothing runs");
    line("all comm", breakdown.communication, "communication runs");
    let _ = write!(text, "\n{}\n{}", rows(breakdown, width), streams(breakdown, width));
    let _ = writeln!(
        text,
        "{} of the time in kernels is in no component. A kernel that waits for other GPUs counts as running.",
        percent(breakdown.unnamed().as_f64(), breakdown.total.as_f64()),
    );
    if breakdown.rows.iter().any(|row| row.sms.is_some()) {
        text.push_str(
            "SMs: at most as many as a kernel has thread blocks; fewer where blocks share one. Median over the time.\n",
        );
    }
    if let Some(gap) = breakdown.gap {
        let us = gap.as_f64() / 1e3;
        let _ = writeln!(
            text,
            "Gap between kernels that were launched in time: {gap}; for a job's GPU `measured: (launch_us: {us})`."
        );
    }
    match breakdown.unusable {
        0 => {}
        1 => text.push_str("1 event lacks a time or a place, and does not count.\n"),
        many => {
            let _ = writeln!(text, "{} lack a time or a place, and do not count.", count(many, "event"));
        }
    }
    text
}

/// `attn`, `other communication`.
fn name(row: &Row) -> String {
    match row.part {
        Part::Other if row.communicates => "other communication".to_owned(),
        Part::Other => "other computation".to_owned(),
        // Copies in and out, which run as computation.
        part if part.communicates() && !row.communicates => format!("{}: computation", part.name()),
        part => part.name().to_owned(),
    }
}

fn rows(breakdown: &Breakdown, width: usize) -> String {
    let columns = ["component", "phase", "runs", "mean", "busy", "of span", "exposed", "kernels", "streams", "SMs"];
    let mut table = new_table(&columns, width);
    for row in &breakdown.rows {
        let dash = || "–".to_owned();
        let is_run = row.part != Part::Other;
        table.add_row(vec![
            name(row),
            row.phase.map_or(String::new(), |phase| phase.letter().to_owned()),
            if is_run { grouped(row.runs) } else { dash() },
            if is_run { row.mean().to_string() } else { dash() },
            row.busy.to_string(),
            percent(row.busy.as_f64(), breakdown.span.as_f64()),
            if row.communicates { row.exposed.to_string() } else { String::new() },
            grouped(row.ops),
            row.streams.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
            row.sms.map_or_else(dash, |sms| sms.to_string()),
        ]);
    }
    finish(&mut table, &[2, 3, 4, 5, 6, 7, 9]);
    format!("{table}\n")
}

fn streams(breakdown: &Breakdown, width: usize) -> String {
    let mut table = new_table(&["stream", "busy", "of span", "kernels"], width);
    for stream in &breakdown.streams {
        table.add_row(vec![
            stream.stream.to_string(),
            stream.busy.to_string(),
            percent(stream.busy.as_f64(), breakdown.span.as_f64()),
            grouped(stream.ops),
        ]);
    }
    finish(&mut table, &[0, 1, 2, 3]);
    format!("{table}\n")
}

/// What `--json` prints. Times are nanoseconds, shares go from 0 to 1.
#[derive(Serialize)]
pub struct Json<'a> {
    gpu: Option<&'a str>,
    device: u32,
    sms: Option<u64>,
    rank: Option<u64>,
    ranks: Option<u64>,
    steps: &'a [u64],
    events: u64,
    unusable_events: u64,
    kernels: u64,
    span_ns: u64,
    busy_ns: u64,
    communication_ns: u64,
    exposed_ns: u64,
    bubble_ns: u64,
    busy_share: Option<f64>,
    exposed_share: Option<f64>,
    bubble_share: Option<f64>,
    in_kernels_ns: u64,
    in_no_component_ns: u64,
    kernel_gap_ns: Option<u64>,
    components: Vec<Component>,
    streams: Vec<Stream>,
}

#[derive(Serialize)]
struct Component {
    component: &'static str,
    phase: Option<&'static str>,
    communicates: bool,
    /// None of what is in no component.
    runs: Option<u64>,
    mean_ns: Option<u64>,
    busy_ns: u64,
    exposed_ns: Option<u64>,
    kernels: u64,
    in_kernels_ns: u64,
    streams: Vec<u64>,
    sms: Option<u64>,
}

#[derive(Serialize)]
struct Stream {
    stream: u64,
    busy_ns: u64,
    kernels: u64,
}

impl<'a> Json<'a> {
    /// Of a breakdown.
    pub fn new(breakdown: &'a Breakdown) -> Self {
        let share = |time: Nanos| (breakdown.span > Nanos::ZERO).then(|| time.as_f64() / breakdown.span.as_f64());
        Self {
            gpu: breakdown.gpu.as_deref(),
            device: breakdown.device,
            sms: breakdown.sms,
            rank: breakdown.rank.map(|rank| rank.0),
            ranks: breakdown.rank.map(|rank| rank.1),
            steps: &breakdown.steps,
            events: breakdown.events,
            unusable_events: breakdown.unusable,
            kernels: breakdown.ops,
            span_ns: breakdown.span.0,
            busy_ns: breakdown.busy.0,
            communication_ns: breakdown.communication.0,
            exposed_ns: breakdown.exposed.0,
            bubble_ns: breakdown.bubble.0,
            busy_share: share(breakdown.busy),
            exposed_share: share(breakdown.exposed),
            bubble_share: share(breakdown.bubble),
            in_kernels_ns: breakdown.total.0,
            in_no_component_ns: breakdown.unnamed().0,
            kernel_gap_ns: breakdown.gap.map(|gap| gap.0),
            components: breakdown.rows.iter().map(component).collect(),
            streams: breakdown
                .streams
                .iter()
                .map(|row| Stream { stream: row.stream, busy_ns: row.busy.0, kernels: row.ops })
                .collect(),
        }
    }
}

fn component(row: &Row) -> Component {
    let is_run = row.part != Part::Other;
    Component {
        component: row.part.name(),
        phase: row.phase.map(|phase| phase.letter()),
        communicates: row.communicates,
        runs: is_run.then_some(row.runs),
        mean_ns: is_run.then_some(row.mean().0),
        busy_ns: row.busy.0,
        exposed_ns: row.communicates.then_some(row.exposed.0),
        kernels: row.ops,
        in_kernels_ns: row.total.0,
        streams: row.streams.iter().copied().collect(),
        sms: row.sms,
    }
}
