//! What `run --trace` and `fidelity --trace` wrote ([`crate::view::perfetto::write_measured`]), with the plan that ran: when every item and op of
//! it did. Read strictly: the trace must be that plan's, with every item once on each rank, and nothing else.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::ir::Phase;
use crate::plan::Plan;
use crate::sim::{Simulation, Span};
use crate::units::Nanos;

/// Microseconds above this are not exact to the nanosecond in a double: some 52 days.
const LONGEST_US: f64 = 4.5e12;

/// A step that ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// One per rank: of several replicas in the trace the first.
    pub ranks: Vec<MeasuredRank>,
}

/// A rank of it. Times are from the start of the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredRank {
    /// One per item of the rank's list.
    pub items: Vec<Span>,
    /// For each item the ops of the program that it runs.
    pub ops: Vec<Vec<Span>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trace {
    other_data: About,
    trace_events: Vec<Event>,
}

#[derive(Deserialize)]
struct About {
    plan: String,
}

#[derive(Deserialize)]
struct Event {
    name: String,
    ph: String,
    pid: u64,
    #[serde(default)]
    ts: Option<f64>,
    #[serde(default)]
    dur: Option<f64>,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    #[serde(default)]
    name: Option<String>,
}

impl Measured {
    /// Reads a trace. `simulation` must be the plan's.
    ///
    /// # Errors
    /// If it is no such trace, or not of this plan, or lacks an item or has one that the plan has not.
    pub fn read(name: &str, text: &str, plan: &Plan, simulation: &Simulation) -> Result<Self> {
        let trace: Trace = serde_json::from_str(text).map_err(|error| {
            Error::new(format!("`{name}` is no trace of a run: {error}"))
                .help("`dualweave fidelity --trace FILE` and `dualweave run --trace FILE` write one")
        })?;
        if trace.other_data.plan != plan.digest {
            return Err(Error::new(format!("`{name}` is the trace of another plan"))
                .help("the plan must be the one that ran, unchanged since"));
        }
        let processes = processes(name, &trace, plan)?;
        let mut ranks = Vec::with_capacity(plan.ranks.len());
        for (rank, process) in processes.into_iter().enumerate() {
            let slices = trace.trace_events.iter().filter(|event| event.ph == "X" && event.pid == process);
            let mut places = Places::new(plan, simulation, rank);
            for event in slices {
                let span = span(event).ok_or_else(|| Error::new(format!("`{name}`: `{}` has no time", event.name)))?;
                places.put(&event.name, span).map_err(|what| Error::new(format!("`{name}`, rank {rank}: {what}")))?;
            }
            ranks.push(places.all().map_err(|what| Error::new(format!("`{name}`, rank {rank}: {what}")))?);
        }
        Ok(Self { ranks })
    }

    /// When the ops of a program run from its start, in the median over all items that run it; none if no item does.
    pub fn ops_of(&self, program: u32, simulation: &Simulation) -> Vec<Span> {
        let mut starts: Vec<Vec<Nanos>> = Vec::new();
        let mut ends: Vec<Vec<Nanos>> = Vec::new();
        for (rank, timing) in self.ranks.iter().zip(&simulation.ranks) {
            let runs = timing.programs.iter().enumerate().filter(|(_, of)| **of == Some(program));
            for (item, _) in runs {
                let begun = rank.items[item].start;
                starts.resize(rank.ops[item].len(), Vec::new());
                ends.resize(rank.ops[item].len(), Vec::new());
                for (op, span) in rank.ops[item].iter().enumerate() {
                    starts[op].push(span.start.saturating_sub(begun));
                    ends[op].push(span.end.saturating_sub(begun));
                }
            }
        }
        starts.into_iter().zip(ends).map(|(start, end)| Span { start: median(start), end: median(end) }).collect()
    }
}

/// The middle of some times, of an even number the later; 0 of none.
pub fn median(mut times: Vec<Nanos>) -> Nanos {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The process of each rank.
fn processes(name: &str, trace: &Trace, plan: &Plan) -> Result<Vec<u64>> {
    let mut of_rank: BTreeMap<usize, u64> = BTreeMap::new();
    for event in trace.trace_events.iter().filter(|event| event.ph == "M" && event.name == "process_name") {
        let process = event.args.name.as_deref().unwrap_or_default();
        let rank = process.strip_prefix("rank ").and_then(|rest| rest.split_once(", replica "));
        let rank = rank.and_then(|(rank, _)| rank.parse().ok()).filter(|&rank: &usize| rank < plan.ranks.len());
        let rank = rank.ok_or_else(|| {
            let ranks = plan.ranks.len();
            Error::new(format!("`{name}`: the process `{process}` is no rank of the plan, which has {ranks}"))
        })?;
        of_rank.entry(rank).or_insert(event.pid);
    }
    let process = |rank: usize| {
        of_rank.get(&rank).copied().ok_or_else(|| {
            Error::new(format!("`{name}` has nothing of rank {rank}"))
                .help("where several processes ran the plan, each wrote the trace of its own ranks")
        })
    };
    (0..plan.ranks.len()).map(process).collect()
}

fn span(event: &Event) -> Option<Span> {
    let nanos = |us: f64| (0.0..LONGEST_US).contains(&us).then(|| Nanos((us * 1e3).round() as u64));
    let start = nanos(event.ts?)?;
    Some(Span { start, end: start + nanos(event.dur?)? })
}

/// The items and ops of a rank, by name, as they are still to come.
struct Places {
    /// By name: item, and of an op its place in the program. Reversed, so that the next is the last.
    places: BTreeMap<String, Vec<(usize, Option<usize>)>>,
    items: Vec<Option<Span>>,
    ops: Vec<Vec<Option<Span>>>,
}

impl Places {
    fn new(plan: &Plan, simulation: &Simulation, rank: usize) -> Self {
        let mut places: BTreeMap<String, Vec<(usize, Option<usize>)>> = BTreeMap::new();
        let mut ops = Vec::new();
        for (index, item) in plan.ranks[rank].items.iter().enumerate() {
            places.entry(item.0.to_string()).or_default().push((index, None));
            let program = simulation.ranks[rank].programs[index].map(|number| &plan.programs[number as usize]);
            let of_program = program.map_or(&[][..], |program| &program.ops);
            let chunk = |of: Phase| item.0.action()?.parts().find_map(|(phase, chunk)| (phase == of).then_some(chunk));
            for (at, op) in of_program.iter().enumerate() {
                let name = chunk(op.phase).map_or(op.what(), |chunk| op.within(chunk));
                places.entry(name).or_default().push((index, Some(at)));
            }
            ops.push(vec![None; of_program.len()]);
        }
        places.values_mut().for_each(|places| places.reverse());
        Self { places, items: vec![None; ops.len()], ops }
    }

    fn put(&mut self, name: &str, span: Span) -> Result<(), String> {
        let place = self.places.get_mut(name).and_then(Vec::pop);
        match place.ok_or_else(|| format!("`{name}` is not in the plan, or not as often"))? {
            (item, None) => self.items[item] = Some(span),
            (item, Some(op)) => self.ops[item][op] = Some(span),
        }
        Ok(())
    }

    fn all(self) -> Result<MeasuredRank, String> {
        let missing = self.places.iter().find(|(_, places)| !places.is_empty());
        match (
            missing,
            self.items.into_iter().collect(),
            self.ops.into_iter().map(|ops| ops.into_iter().collect()).collect(),
        ) {
            (None, Some(items), Some(ops)) => Ok(MeasuredRank { items, ops }),
            (Some((name, _)), ..) => Err(format!("`{name}` did not run")),
            _ => Err("something did not run".to_owned()),
        }
    }
}
