//! How a GPU's time was spent: sums over ops, by what they belong to.

use std::collections::{BTreeMap, BTreeSet};

use super::attribute::Owner;
use super::rules::{Part, Phase};
use super::trace::{GpuOp, RangeKind, Trace};
use crate::error::{Error, Result};
use crate::units::Nanos;

/// What to look at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection {
    /// The GPU; needed if there are ops of several.
    pub device: Option<u32>,
    /// Steps of the profiler, first and last; otherwise all that is there.
    pub steps: Option<(u64, u64)>,
}

/// How a GPU's time was spent. The words are those of `simulate`.
#[derive(Clone, Debug, PartialEq)]
pub struct Breakdown {
    /// Number of the GPU.
    pub device: u32,
    /// Its name.
    pub gpu: Option<String>,
    /// Its SMs.
    pub sms: Option<u64>,
    /// Rank and ranks of the training run.
    pub rank: Option<(u64, u64)>,
    /// Steps of the profiler that are looked at; empty if the trace has none.
    pub steps: Vec<u64>,
    /// Events of the trace, also those that nothing is made of.
    pub events: u64,
    /// Of them, those that should count but lack a time or a place.
    pub unusable: u64,
    /// Kernels, copies and fills that count.
    pub ops: u64,
    /// From the start of the first to the end of the last.
    pub span: Nanos,
    /// Time in which a computation runs: any op that does not communicate.
    pub busy: Nanos,
    /// Time in which communication runs.
    pub communication: Nanos,
    /// Time in which only communication runs.
    pub exposed: Nanos,
    /// Time in which nothing runs.
    pub bubble: Nanos,
    /// Time in ops, all together.
    pub total: Nanos,
    /// Gap between two kernels of one stream, where the GPU did not wait for the CPU: the median over runs of their means.
    pub gap: Option<Nanos>,
    /// By part, phase, and whether it communicates.
    pub rows: Vec<Row>,
    /// By stream.
    pub streams: Vec<StreamRow>,
}

/// Ops of one part in one phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What they belong to.
    pub part: Part,
    /// In which phase, where the part has phases.
    pub phase: Option<Phase>,
    /// Whether they count as communication.
    pub communicates: bool,
    /// Runs: annotations, or stretches of a stream where there are none.
    pub runs: u64,
    /// Time of runs in which one of their ops runs, on whichever stream.
    pub busy: Nanos,
    /// Ops.
    pub ops: u64,
    /// Time in ops; more than `busy` where some run at once.
    pub total: Nanos,
    /// Of that, time in which no computation runs; none of what computes.
    pub exposed: Nanos,
    /// Streams that they run on.
    pub streams: BTreeSet<u64>,
    /// SMs that their kernels can be on, the median over their time: a kernel's thread blocks, at most all SMs. `None` where the trace
    /// does not tell.
    pub sms: Option<u64>,
}

/// Ops of one stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRow {
    /// Its number.
    pub stream: u64,
    /// Ops.
    pub ops: u64,
    /// Time in which one runs.
    pub busy: Nanos,
}

impl Row {
    /// Time of a run.
    pub fn mean(&self) -> Nanos {
        Nanos(self.busy.0 / self.runs.max(1))
    }
}

impl Breakdown {
    /// Time in ops that no rule names.
    pub fn unnamed(&self) -> Nanos {
        self.rows.iter().filter(|row| row.part == Part::Other).map(|row| row.total).sum()
    }

    /// Sums up what is selected of a trace. `owners` are its ops'.
    pub(super) fn new(name: &str, trace: &Trace, owners: &[Owner], selection: Selection) -> Result<Self> {
        let device = device(name, trace, selection.device)?;
        let steps = Steps::new(name, trace, selection.steps)?;
        let chosen: Vec<Counted> = trace
            .ops
            .iter()
            .zip(owners)
            .filter(|(op, owner)| op.device == device && steps.within(owner.launched))
            .map(|(op, owner)| Counted { op, owner })
            .collect();
        if chosen.is_empty() {
            return Err(Error::new(format!("`{name}` has nothing on GPU {device} in these steps"))
                .help("leave --steps out to see all"));
        }
        let about = trace.devices.get(&device).cloned().unwrap_or_default();
        let sweep = Sweep::new(&chosen);
        let mut rows: BTreeMap<RowKey, Row> = BTreeMap::new();
        for (counted, &exposed) in chosen.iter().zip(&sweep.exposed_of) {
            let Owner { part, phase, communicates, .. } = *counted.owner;
            let row = rows.entry((part, phase, communicates)).or_insert_with(|| Row {
                part,
                phase,
                communicates,
                runs: 0,
                busy: Nanos::ZERO,
                ops: 0,
                total: Nanos::ZERO,
                exposed: Nanos::ZERO,
                streams: BTreeSet::new(),
                sms: None,
            });
            row.ops += 1;
            row.total += counted.time();
            row.exposed += exposed;
            row.streams.insert(counted.op.stream);
        }
        let gap = sum_runs(&chosen, &mut rows);
        sum_sms(&chosen, about.sms, &mut rows);
        // What is left of a backward where weight gradients are told apart is that for the input.
        let rows = with_input_backwards(rows.into_values().collect());
        Ok(Self {
            device,
            gpu: about.name,
            sms: about.sms,
            rank: trace.rank,
            steps: steps.numbers,
            events: trace.events,
            unusable: trace.unusable,
            ops: chosen.len() as u64,
            span: sweep.span,
            busy: sweep.busy,
            communication: sweep.communication,
            exposed: sweep.exposed,
            bubble: sweep.bubble,
            total: chosen.iter().map(Counted::time).sum(),
            gap,
            rows,
            streams: streams(&chosen),
        })
    }
}

/// What a row is of, and whether it communicates.
type RowKey = (Part, Option<Phase>, bool);

/// An op that counts.
#[derive(Clone, Copy)]
struct Counted<'a> {
    op: &'a GpuOp,
    owner: &'a Owner,
}

impl Counted<'_> {
    fn time(&self) -> Nanos {
        between(self.op.start, self.op.end)
    }
}

fn between(start: i64, end: i64) -> Nanos {
    Nanos(end.saturating_sub(start).max(0) as u64)
}

/// The GPU that is asked for, or the only one.
fn device(name: &str, trace: &Trace, asked: Option<u32>) -> Result<u32> {
    let there: BTreeSet<u32> = trace.ops.iter().map(|op| op.device).collect();
    let listed = there.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    match (asked, there.first()) {
        (_, None) => Err(Error::new(format!(
            "`{name}` has no GPU kernels: {} events, {} of them annotations and modules",
            trace.events,
            trace.ranges.iter().filter(|range| range.kind == RangeKind::Named).count()
        ))
        .help("profile with `activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]`")),
        (Some(asked), _) if there.contains(&asked) => Ok(asked),
        (Some(asked), _) => {
            Err(Error::new(format!("`{name}` has nothing on GPU {asked}")).help(format!("it has GPUs {listed}")))
        }
        (None, Some(&only)) if there.len() == 1 => Ok(only),
        (None, _) => Err(Error::new(format!("`{name}` has kernels of {} GPUs", there.len()))
            .help(format!("choose one with --device: {listed}"))),
    }
}

/// The steps that count.
struct Steps {
    numbers: Vec<u64>,
    /// When they were launched, merged; `None`: always.
    windows: Option<Vec<(i64, i64)>>,
}

impl Steps {
    fn new(name: &str, trace: &Trace, asked: Option<(u64, u64)>) -> Result<Self> {
        let mut all: Vec<(u64, i64, i64)> = trace
            .ranges
            .iter()
            .filter_map(|range| match range.kind {
                RangeKind::Step(number) => Some((number, range.start, range.end)),
                _ => None,
            })
            .collect();
        all.sort_unstable();
        let numbers = |steps: &[(u64, i64, i64)]| -> Vec<u64> {
            let numbers: BTreeSet<u64> = steps.iter().map(|step| step.0).collect();
            numbers.into_iter().collect()
        };
        let Some((first, last)) = asked else { return Ok(Self { numbers: numbers(&all), windows: None }) };
        let there = numbers(&all);
        all.retain(|step| (first..=last).contains(&step.0));
        if all.is_empty() {
            let help = match (there.first(), there.last()) {
                (Some(first), Some(last)) => format!("it has steps {first} to {last}"),
                _ => "call `step()` of the profiler to mark steps".to_owned(),
            };
            return Err(Error::new(format!("`{name}` has no step from {first} to {last}")).help(help));
        }
        let mut windows: Vec<(i64, i64)> = all.iter().map(|step| (step.1, step.2)).collect();
        windows.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::new();
        for (start, end) in windows {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        Ok(Self { numbers: numbers(&all), windows: Some(merged) })
    }

    fn within(&self, launched: i64) -> bool {
        let Some(windows) = &self.windows else { return true };
        let before = windows.partition_point(|window| window.0 <= launched);
        before.checked_sub(1).is_some_and(|at| launched < windows[at].1)
    }
}

/// Who ran when, by going through all starts and ends.
struct Sweep {
    span: Nanos,
    busy: Nanos,
    communication: Nanos,
    exposed: Nanos,
    bubble: Nanos,
    /// By op: its exposed time.
    exposed_of: Vec<Nanos>,
}

impl Sweep {
    fn new(chosen: &[Counted]) -> Self {
        // Ends before starts of the same time.
        let mut moments: Vec<(i64, bool, u32)> = Vec::with_capacity(2 * chosen.len());
        for (at, counted) in (0..).zip(chosen) {
            // What takes no time is never there.
            if counted.op.end > counted.op.start {
                moments.push((counted.op.start, true, at));
                moments.push((counted.op.end, false, at));
            }
        }
        moments.sort_unstable();
        let mut sweep = Self {
            span: Nanos::ZERO,
            busy: Nanos::ZERO,
            communication: Nanos::ZERO,
            exposed: Nanos::ZERO,
            bubble: Nanos::ZERO,
            exposed_of: vec![Nanos::ZERO; chosen.len()],
        };
        let (mut computing, mut communicating) = (0_u64, 0_u64);
        let mut last = moments.first().map_or(0, |moment| moment.0);
        for (time, starts, at) in moments {
            let passed = between(last, time);
            sweep.span += passed;
            match (computing > 0, communicating > 0) {
                (true, other) => {
                    sweep.busy += passed;
                    sweep.communication += if other { passed } else { Nanos::ZERO };
                }
                (false, true) => {
                    sweep.communication += passed;
                    sweep.exposed += passed;
                }
                (false, false) => sweep.bubble += passed,
            }
            last = time;
            let counted = &chosen[at as usize];
            let running = if counted.owner.communicates { &mut communicating } else { &mut computing };
            if starts {
                *running += 1;
            } else {
                *running -= 1;
            }
            if counted.owner.communicates {
                // While it runs, all exposed time is its own too.
                let exposed = &mut sweep.exposed_of[at as usize];
                *exposed = if starts { sweep.exposed } else { sweep.exposed.saturating_sub(*exposed) };
            }
        }
        sweep
    }
}

/// Adds runs and their times to the rows; gives the gap between kernels.
fn sum_runs(chosen: &[Counted], rows: &mut BTreeMap<RowKey, Row>) -> Option<Nanos> {
    let mut order: Vec<&Counted> = chosen.iter().collect();
    let key = |counted: &Counted| (counted.owner.run, counted.owner.communicates);
    order.sort_by_key(|counted| (key(counted), counted.op.start, counted.op.end));
    let mut gaps: Vec<u64> = Vec::new();
    for run in order.chunk_by(|one, other| key(one) == key(other)) {
        let Owner { part, phase, communicates, .. } = *run[0].owner;
        let busy = union(run.iter().map(|counted| (counted.op.start, counted.op.end)));
        if let Some(row) = rows.get_mut(&(part, phase, communicates)) {
            row.runs += 1;
            row.busy += busy;
        }
        if part != Part::Other {
            gaps.extend(gaps_of(run));
        }
    }
    gaps.sort_unstable();
    gaps.get(gaps.len() / 2).map(|&gap| Nanos(gap))
}

/// By stream of a run, which is in order of starts: the mean gap in front of kernels that were launched before the one in front had
/// ended. Where the launch came later the GPU waited for the CPU.
fn gaps_of(run: &[&Counted]) -> Vec<u64> {
    let mut last: BTreeMap<u64, &Counted> = BTreeMap::new();
    let mut sums: BTreeMap<u64, (Nanos, u64)> = BTreeMap::new();
    for &counted in run {
        let stream = counted.op.stream;
        if let Some(before) = last.insert(stream, counted)
            && (counted.owner.launched < before.op.end || counted.owner.launched == counted.op.start)
        {
            let sum = sums.entry(stream).or_default();
            *sum = (sum.0 + between(before.op.end, counted.op.start), sum.1 + 1);
        }
    }
    sums.into_values().map(|(sum, count)| sum.0 / count).collect()
}

/// How long at least one of these ranges, by start, lasts.
fn union(ranges: impl Iterator<Item = (i64, i64)>) -> Nanos {
    let (mut sum, mut until) = (Nanos::ZERO, i64::MIN);
    for (start, end) in ranges {
        sum += between(start.max(until), end);
        until = until.max(end);
    }
    sum
}

/// Adds SMs to the rows: the median over the time in kernels whose blocks are known.
fn sum_sms(chosen: &[Counted], sms: Option<u64>, rows: &mut BTreeMap<RowKey, Row>) {
    let Some(sms) = sms else { return };
    let mut times: BTreeMap<RowKey, BTreeMap<u64, Nanos>> = BTreeMap::new();
    for Counted { op, owner } in chosen {
        let Some(blocks) = op.blocks else { continue };
        let times = times.entry((owner.part, owner.phase, owner.communicates)).or_default();
        *times.entry(blocks.min(sms)).or_default() += between(op.start, op.end);
    }
    for (key, times) in times {
        let half = times.values().sum::<Nanos>().0.div_ceil(2);
        let mut before = 0_u64;
        // From the largest down, until half of the time is reached.
        let median = times.iter().rev().find(|(_, time)| {
            before = before.saturating_add(time.0);
            before >= half
        });
        if let Some(row) = rows.get_mut(&key) {
            row.sms = median.map(|(&sms, _)| sms);
        }
    }
}

/// Calls the backward of parts whose weight gradients are told apart what it is.
fn with_input_backwards(mut rows: Vec<Row>) -> Vec<Row> {
    let has = |rows: &[Row], part: Part, phase: Phase| {
        rows.iter().any(|row| row.part == part && row.phase == Some(phase) && !row.communicates)
    };
    for at in 0..rows.len() {
        let part = rows[at].part;
        if rows[at].phase == Some(Phase::B)
            && !part.is_exchange()
            && has(&rows, part, Phase::W)
            && !has(&rows, part, Phase::I)
        {
            rows[at].phase = Some(Phase::I);
        }
    }
    rows
}

fn streams(chosen: &[Counted]) -> Vec<StreamRow> {
    let mut order: Vec<&Counted> = chosen.iter().collect();
    order.sort_by_key(|counted| (counted.op.stream, counted.op.start, counted.op.end));
    order
        .chunk_by(|one, other| one.op.stream == other.op.stream)
        .map(|ops| StreamRow {
            stream: ops[0].op.stream,
            ops: ops.len() as u64,
            busy: union(ops.iter().map(|counted| (counted.op.start, counted.op.end))),
        })
        .collect()
}
