//! What the page's script draws, as JSON: columns in place of objects, and numbers that repeat said once. 64 ranks with 1024 micro-batches are a
//! third of a million items.
//!
//! A *shape* is all of an item but its micro-batches and its start. Micro-batches are differences from the item of the same shape before, starts
//! from the end of the item before on the same stream: both are mostly 1 and 0.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Planned;
use crate::plan::{PlanRank, StreamId, Task};
use crate::sim::memory::{Breakdown, MemoryKind, course};
use crate::sim::{Cause, RankTiming};
use crate::units::Nanos;
use crate::view::palette::Category;
use crate::view::plan_text::{op_name, program_name};

/// All of it.
#[derive(Serialize)]
pub struct Columns<'a> {
    /// Names of what memory is used for.
    kinds: Vec<String>,
    plans: Vec<PlanColumns<'a>>,
}

#[derive(Serialize)]
struct PlanColumns<'a> {
    name: &'a str,
    step: Nanos,
    /// Memory of a GPU, in bytes.
    limit: u64,
    shapes: Vec<Shape>,
    programs: Vec<ProgramColumns>,
    /// What ranks wait for, and the rank whose item it is.
    causes: Vec<(String, Option<u32>)>,
    /// What loads consist of: number in `kinds`, and bytes.
    breakdowns: Vec<Vec<(usize, u64)>>,
    ranks: Vec<RankColumns>,
}

/// Name of the task, category, stage, stage of a pair's backward, peer, program, duration in ns, and bytes of a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Shape(&'static str, usize, u32, Option<u32>, Option<u32>, Option<u32>, Nanos, Option<u64>);

#[derive(Serialize)]
struct ProgramColumns {
    name: String,
    category: usize,
    total: Nanos,
    exposed: Nanos,
    ops: Vec<OpColumns>,
}

/// What it is, category, whether it is an exchange, whether of the forward's chunk, SMs; start and end from the program's start, as predicted;
/// the same as measured.
#[derive(Serialize)]
struct OpColumns(String, usize, bool, bool, u32, Nanos, Nanos, Option<(Nanos, Nanos)>);

#[derive(Serialize)]
struct RankColumns {
    stages: Vec<u32>,
    /// By item.
    shape: Vec<usize>,
    micro: Vec<i64>,
    /// Micro-batch of a pair's backward; of pairs only.
    backward: Vec<i64>,
    start: Vec<u64>,
    /// By gap: items since that which ended the gap before; the end of the step counts as one more.
    gap: Vec<usize>,
    idle: Vec<Nanos>,
    cause: Vec<usize>,
    /// The item of the cause's rank that was waited for.
    awaited: Vec<Option<u32>>,
    /// Number of a breakdown, and bytes: what is there all the time.
    fixed: Vec<(usize, u64)>,
    /// By load: items since that which brought the load before; items from it to the one that takes it away, and 1; 0 if none does.
    load: Vec<u32>,
    until: Vec<u32>,
    breakdown: Vec<usize>,
    /// The largest sum, and when.
    peak: (u64, Nanos),
    /// Start and end of each item, as measured.
    measured: Option<(Vec<Nanos>, Vec<Nanos>)>,
}

/// Numbers things in the order in which they come first.
struct Numbered<T> {
    numbers: BTreeMap<T, usize>,
    all: Vec<T>,
}

impl<T: Clone + Ord> Numbered<T> {
    fn new() -> Self {
        Self { numbers: BTreeMap::new(), all: Vec::new() }
    }

    fn number(&mut self, of: T) -> usize {
        *self.numbers.entry(of).or_insert_with_key(|of| {
            self.all.push(of.clone());
            self.all.len() - 1
        })
    }
}

impl<'a> Columns<'a> {
    /// Of simulated plans.
    pub fn new(plans: &'a [Planned<'a>]) -> Self {
        Self {
            kinds: MemoryKind::ALL.iter().map(ToString::to_string).collect(),
            plans: plans.iter().map(plan).collect(),
        }
    }
}

fn plan<'a>(planned: &'a Planned<'a>) -> PlanColumns<'a> {
    let simulated = &planned.simulated;
    let (plan, simulation) = (simulated.plan, simulated.simulation);
    let mut tables = Tables { shapes: Numbered::new(), causes: Numbered::new(), breakdowns: Numbered::new() };
    let ranks = (0..plan.ranks.len()).map(|rank| rank_columns(planned, rank, &mut tables)).collect();
    let cause = |cause: &Cause| match cause {
        Cause::Item { rank, .. } => (cause.to_string(), Some(*rank)),
        Cause::Transfers | Cause::End => (cause.to_string(), None),
    };
    PlanColumns {
        name: planned.name,
        step: simulation.step,
        limit: plan.machine.memory.0,
        programs: (0..plan.programs.len()).map(|program| program_columns(planned, program)).collect(),
        ranks,
        shapes: tables.shapes.all,
        causes: tables.causes.all.iter().map(cause).collect(),
        breakdowns: tables.breakdowns.all.iter().map(breakdown).collect(),
    }
}

fn program_columns(planned: &Planned, number: usize) -> ProgramColumns {
    let simulated = &planned.simulated;
    let (program, timing) = (&simulated.plan.programs[number], &simulated.simulation.programs[number]);
    let measured = planned.measured.map(|measured| measured.ops_of(number as u32, simulated.simulation));
    let op = |(at, op): (usize, &crate::ir::ProgramOp)| {
        let span = timing.ops[at];
        let is_forward = op.phase == crate::ir::Phase::F;
        let measured = measured.as_ref().and_then(|ops| ops.get(at)).map(|span| (span.start, span.end));
        let is_exchange = op.work.is_exchange();
        let category = Category::of_op(op) as usize;
        OpColumns(op_name(op), category, is_exchange, is_forward, op.sms, span.start, span.end, measured)
    };
    ProgramColumns {
        name: program_name(simulated.plan, number),
        category: Category::of_program(program.kind) as usize,
        total: timing.total,
        exposed: timing.exposed,
        ops: program.ops.iter().enumerate().map(op).collect(),
    }
}

/// What ranks share.
struct Tables {
    shapes: Numbered<Shape>,
    causes: Numbered<Cause>,
    breakdowns: Numbered<Breakdown>,
}

fn rank_columns(planned: &Planned, rank: usize, tables: &mut Tables) -> RankColumns {
    let simulated = &planned.simulated;
    let (list, timing) = (&simulated.plan.ranks[rank], &simulated.simulation.ranks[rank]);
    let memory = &simulated.memory[rank];
    let measured = planned.measured.map(|measured| &measured.ranks[rank].items);
    let course = course(simulated.plan, simulated.simulation, rank as u32);
    let mut columns = RankColumns {
        stages: simulated.plan.layout.stages_of(rank as u32),
        shape: Vec::with_capacity(list.items.len()),
        micro: Vec::with_capacity(list.items.len()),
        backward: Vec::new(),
        start: Vec::with_capacity(list.items.len()),
        gap: Vec::with_capacity(timing.gaps.len()),
        idle: timing.gaps.iter().map(|gap| gap.idle).collect(),
        cause: timing.gaps.iter().map(|gap| tables.causes.number(gap.cause)).collect(),
        awaited: timing.gaps.iter().map(|gap| gap.item.map(|(_, item)| item)).collect(),
        fixed: breakdown(&course.fixed),
        load: Vec::with_capacity(course.loads.len()),
        until: Vec::with_capacity(course.loads.len()),
        breakdown: Vec::with_capacity(course.loads.len()),
        peak: (memory.peak.0, memory.at),
        measured: measured.map(|spans| spans.iter().map(|span| (span.start, span.end)).unzip()),
    };
    items(list, timing, &bytes_of_messages(planned, rank), &mut tables.shapes, &mut columns);
    let mut before = 0;
    for gap in &timing.gaps {
        let item = gap.before.map_or(list.items.len(), |item| item as usize);
        columns.gap.push(item - before);
        before = item;
    }

    let mut loads = course.loads;
    loads.sort_by_key(|load| load.item);
    let mut before = 0;
    for load in &loads {
        columns.load.push(load.item - before);
        columns.until.push(load.until.map_or(0, |until| until.saturating_sub(load.item) + 1));
        columns.breakdown.push(tables.breakdowns.number(course.breakdowns[load.breakdown].clone()));
        before = load.item;
    }
    columns
}

fn items(
    list: &PlanRank,
    timing: &RankTiming,
    bytes: &BTreeMap<u32, u64>,
    shapes: &mut Numbered<Shape>,
    columns: &mut RankColumns,
) {
    let mut ends: BTreeMap<StreamId, Nanos> = BTreeMap::new();
    let mut micros: BTreeMap<usize, (i64, i64)> = BTreeMap::new();
    for (index, (item, span)) in list.items.iter().zip(&timing.items).enumerate() {
        let program = timing.programs[index];
        let shape = shape(item.0, program, span.duration(), bytes.get(&(index as u32)).copied());
        let number = shapes.number(shape);
        let (micro, backward) = micro_batches(item.0);
        let last = micros.entry(number).or_default();
        columns.shape.push(number);
        columns.micro.push(micro - last.0);
        if let Some(backward) = backward {
            columns.backward.push(backward - last.1);
            last.1 = backward;
        }
        last.0 = micro;
        let end = ends.entry(item.0.stream()).or_default();
        columns.start.push(span.start.saturating_sub(*end).0);
        *end = span.end;
    }
}

fn shape(task: Task, program: Option<u32>, duration: Nanos, bytes: Option<u64>) -> Shape {
    let (name, stage, backward, peer) = match task {
        Task::F(s, _) => ("F", s, None, None),
        Task::B(s, _) => ("B", s, None, None),
        Task::I(s, _) => ("I", s, None, None),
        Task::W(s, _) => ("W", s, None, None),
        Task::FB(f, b) => ("FB", f.0, Some(b.0), None),
        Task::SendAct(s, _, peer) => ("SendAct", s, None, Some(peer)),
        Task::SendGrad(s, _, peer) => ("SendGrad", s, None, Some(peer)),
        Task::RecvAct(s, _, peer) => ("RecvAct", s, None, Some(peer)),
        Task::RecvGrad(s, _, peer) => ("RecvGrad", s, None, Some(peer)),
        Task::ReduceGrads(s) => ("ReduceGrads", s, None, None),
        Task::Update(s) => ("Update", s, None, None),
        Task::GatherParams(s) => ("GatherParams", s, None, None),
    };
    Shape(name, Category::of(task) as usize, stage, backward, peer, program, duration, bytes)
}

/// That of the item, and of the backward of a pair. What has none has 0.
fn micro_batches(task: Task) -> (i64, Option<i64>) {
    match task {
        Task::F(_, m) | Task::B(_, m) | Task::I(_, m) | Task::W(_, m) => (m.into(), None),
        Task::SendAct(_, m, _) | Task::SendGrad(_, m, _) | Task::RecvAct(_, m, _) | Task::RecvGrad(_, m, _) => {
            (m.into(), None)
        }
        Task::FB(f, b) => (f.1.into(), Some(b.1.into())),
        Task::ReduceGrads(_) | Task::Update(_) | Task::GatherParams(_) => (0, None),
    }
}

/// By item of the rank.
fn bytes_of_messages(planned: &Planned, rank: usize) -> BTreeMap<u32, u64> {
    let transfers = &planned.simulated.simulation.transfers;
    let ends =
        transfers.iter().flat_map(|transfer| [(transfer.send, transfer.bytes), (transfer.receive, transfer.bytes)]);
    ends.filter(|((of, _), _)| *of as usize == rank).map(|((_, item), bytes)| (item, bytes.0)).collect()
}

fn breakdown(of: &Breakdown) -> Vec<(usize, u64)> {
    let number = |kind| MemoryKind::ALL.iter().position(|&other| other == kind).unwrap_or_default();
    of.iter().map(|&(kind, bytes)| (number(kind), bytes.0)).collect()
}
