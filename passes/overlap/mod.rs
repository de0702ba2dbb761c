//! `overlap`: orders the ops of chunk programs on two engines — computation and communication — and gives exchanges their SMs.
//!
//! One program for each phase of each stage, and one for each pair FB that a rank can form. Pairs can have the orders that
//! people wrote by hand, or the shortest of these, a list schedule, and the best steady state of a layer pair ([`cyclic`]),
//! improved by local search.

mod arrangement;
mod bound;
pub mod budget;
pub mod cyclic;
mod list;
mod orders;
pub mod report;
mod shop;

pub use budget::Budget;
pub use orders::launch_order;

use std::collections::{BTreeMap, BTreeSet};

use orders::Effort;

use crate::ir::{
    Chunk, Component, Hops, Layout, Op, PairCost, Phase, Problem, Program, ProgramKind, ProgramOp, StageCost,
};
use crate::job::training::PairOrder;
use crate::machine::Machine;
use crate::sim::time_program;
use crate::units::{Bytes, Nanos};

/// What the pass may choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// SMs for communication.
    pub budget: Budget,
    /// What no program should need more than; `None`: whatever it takes.
    pub workspace: Option<Bytes>,
    /// How pairs are ordered.
    pub order: PairOrder,
    /// Which pairs FB programs are wanted of.
    pub pairs: Pairs,
}

/// Pairs FB that a timetable may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// None.
    None,
    /// Of two stages of a rank, as DualPipe and DualPipeV do.
    OfTwoStages,
    /// Of any two stages of a rank, and of two micro-batches on one stage.
    All,
}

/// Every program that a timetable of these stages can need.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlapped {
    /// Each stored once.
    pub programs: Vec<Program>,
    /// For each stage the programs (by index) of F, B, I and W.
    pub stages: Vec<StagePrograms>,
    /// Program (by index) of F of one stage beside B of another.
    pub pairs: BTreeMap<(u32, u32), u32>,
    /// For each program its duration.
    pub durations: Vec<Nanos>,
}

/// Programs of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagePrograms {
    /// Forward.
    pub f: u32,
    /// Full backward.
    pub b: u32,
    /// Backward for the input.
    pub i: u32,
    /// Weight gradients.
    pub w: u32,
}

/// A stage in every form that its programs may have. They differ in their ops, not in what is held between them.
#[derive(Clone, Debug, PartialEq)]
pub struct StageForms {
    /// One op for each part of the work.
    pub plain: Chunk,
    /// What `rewrite` made of it. Two stages of one job have as many, each the counterpart of the other's.
    pub rewritten: Vec<Chunk>,
}

impl StageForms {
    /// Of a stage that only has its plain form.
    pub fn plain(chunk: Chunk) -> Self {
        Self { plain: chunk, rewritten: Vec::new() }
    }

    /// Form 0 is the plain one, and so is one that the stage has not.
    fn form(&self, form: usize) -> &Chunk {
        form.checked_sub(1).and_then(|rewritten| self.rewritten.get(rewritten)).unwrap_or(&self.plain)
    }
}

/// Orders all programs. Where the order is searched for, each program also has the form in which it is shortest.
pub fn overlap(stages: &[StageForms], layout: &Layout, machine: &Machine, options: Options) -> Overlapped {
    let wanted = options.pairs;
    let mut made = Programs {
        machine,
        options,
        programs: Vec::new(),
        durations: Vec::new(),
        known: BTreeMap::new(),
        asked: BTreeMap::new(),
    };
    let stage_programs = stages
        .iter()
        .map(|stage| StagePrograms {
            f: made.add(ProgramKind::F, Some(stage), None),
            b: made.add(ProgramKind::B, None, Some(stage)),
            i: made.add(ProgramKind::I, None, Some(stage)),
            w: made.add(ProgramKind::W, None, Some(stage)),
        })
        .collect();
    let mut pairs = BTreeMap::new();
    if wanted != Pairs::None {
        for rank in 0..layout.ranks {
            let held = layout.stages_of(rank);
            for (&f, &b) in held.iter().flat_map(|f| held.iter().map(move |b| (f, b))) {
                if (f != b || wanted == Pairs::All) && !pairs.contains_key(&(f, b)) {
                    let (forward, backward) = (&stages[f as usize], &stages[b as usize]);
                    pairs.insert((f, b), made.add(ProgramKind::FB, Some(forward), Some(backward)));
                }
            }
        }
    }
    Overlapped { programs: made.programs, stages: stage_programs, pairs, durations: made.durations }
}

impl Overlapped {
    /// See [`super::Compiled::pair_gap`].
    pub fn pair_gap(&self) -> Option<(f64, f64)> {
        let pairs =
            || self.pairs.values().map(|&pair| (self.durations[pair as usize], self.programs[pair as usize].bound));
        let over = |(time, bound): (Nanos, Nanos)| time.as_f64() / bound.as_f64().max(1.0) - 1.0;
        let all = pairs().fold((Nanos::ZERO, Nanos::ZERO), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
        (!self.pairs.is_empty()).then(|| (pairs().map(over).fold(0.0, f64::max), over(all)))
    }

    /// The pipeline problem that these programs pose.
    pub fn problem(&self, layout: Layout, hops: Hops) -> Problem {
        let time = |program: u32| self.durations[program as usize];
        let cost = |p: &StagePrograms| StageCost { f: time(p.f), i: time(p.i), w: time(p.w), b: time(p.b) };
        Problem {
            layout,
            stages: self.stages.iter().map(cost).collect(),
            pair: PairCost::Table(self.pairs.iter().map(|(&pair, &program)| (pair, time(program))).collect()),
            hops,
            memory: None,
        }
    }
}

/// How many rewritten forms of a program are searched for an order: those that look shortest at a glance. On the examples, more
/// shorten a step by less than 0.1 %.
const WORTH_SEARCHING: usize = 8;

/// Programs so far, without repetition.
struct Programs<'a> {
    machine: &'a Machine,
    options: Options,
    programs: Vec<Program>,
    durations: Vec<Nanos>,
    known: BTreeMap<Program, u32>,
    /// Of stages that are alike, what was asked before: the ops of each form.
    asked: BTreeMap<(ProgramKind, Vec<Vec<Op>>), u32>,
}

impl Programs<'_> {
    /// The program of a forward, a backward, or both, in the form in which it is shortest; its number.
    fn add(&mut self, kind: ProgramKind, forward: Option<&StageForms>, backward: Option<&StageForms>) -> u32 {
        let sides = [forward, backward].into_iter().flatten();
        let rewritten = sides.map(|stage| stage.rewritten.len()).max().unwrap_or(0);
        let last = if self.options.order == PairOrder::Search { rewritten } else { 0 };
        let mut forms: Vec<Vec<Op>> = Vec::new();
        for form in 0..=last {
            let [forward, backward] = [forward, backward].map(|stage| Some(stage?.form(form)));
            let ops = dependencies(kind, forward, backward);
            if !forms.contains(&ops) {
                forms.push(ops);
            }
        }
        let asked = (kind, forms);
        if let Some(&index) = self.asked.get(&asked) {
            return index;
        }
        let (time, program) = self.shortest(kind, &asked.1);
        let next = self.programs.len() as u32;
        let index = *self.known.entry(program).or_insert_with_key(|program| {
            self.durations.push(time);
            self.programs.push(program.clone());
            next
        });
        self.asked.insert(asked, index);
        index
    }

    /// The shortest program that is found in any of these forms, of those that keep to the workspace, if any does; and how long
    /// it takes.
    fn shortest(&self, kind: ProgramKind, forms: &[Vec<Op>]) -> (Nanos, Program) {
        let mut glanced: Vec<(Nanos, usize)> = Vec::new();
        let mut bound = Nanos(u64::MAX);
        for (form, ops) in forms.iter().enumerate() {
            let (time, program) = self.arrange(kind, ops, Effort::Glance);
            bound = bound.min(program.bound);
            glanced.push((time, form));
        }
        // The plain form is always searched; of equals it is the first.
        glanced[1..].sort_unstable();
        let worth = glanced.iter().take(1 + WORTH_SEARCHING);
        let searched = worth.map(|&(_, form)| self.arrange(kind, &forms[form], Effort::Search));
        let limit = self.options.workspace.unwrap_or(Bytes(u64::MAX));
        let over = |program: &Program| program.workspace.saturating_sub(limit);
        let best = searched.min_by_key(|(time, program)| (over(program), *time));
        let (time, program) = best.unwrap_or_else(|| self.arrange(kind, &[], Effort::Search));
        (time, Program { bound, ..program })
    }

    fn arrange(&self, kind: ProgramKind, ops: &[Op], effort: Effort) -> (Nanos, Program) {
        let Options { budget, order, .. } = &self.options;
        let bound = bound::bound(ops, self.machine, budget);
        let order = orders::arrange(kind, ops, self.machine, budget, *order, effort);
        let program = Program { kind, workspace: workspace(ops, &order), bound, ops: order };
        (time_program(&program, self.machine).total, program)
    }
}

/// How long a program of this chunk, on either side, takes in the best of a few simple orders, where exchanges have `sms` SMs:
/// for whoever compares many chunks.
pub fn glance(kind: ProgramKind, chunk: &Chunk, machine: &Machine, sms: u32) -> Nanos {
    orders::glance(kind, &dependencies(kind, Some(chunk), Some(chunk)), machine, &Budget::fixed(sms))
}

/// The ops of a program in one list, with `needs` pointing into it. Weight gradients without the backward that they read find
/// that it was done before.
fn dependencies(kind: ProgramKind, forward: Option<&Chunk>, backward: Option<&Chunk>) -> Vec<Op> {
    let mut ops: Vec<Op> = Vec::new();
    if let (ProgramKind::F | ProgramKind::FB, Some(chunk)) = (kind, forward) {
        ops.extend(chunk.f.iter().cloned());
    }
    let Some(chunk) = backward else { return ops };
    let first = ops.len() as u32;
    let inputs = matches!(kind, ProgramKind::I | ProgramKind::B | ProgramKind::FB);
    if inputs {
        ops.extend(chunk.i.iter().cloned());
    }
    if matches!(kind, ProgramKind::W | ProgramKind::B | ProgramKind::FB) {
        ops.extend(chunk.w.iter().cloned());
    }
    for op in &mut ops[first as usize..] {
        match inputs {
            true => op.needs.iter_mut().for_each(|need| *need += first),
            false => op.needs.clear(),
        }
    }
    ops
}

/// See [`Program::workspace`]. I and W ops that compute run on one stream, so launch order is their order in time.
fn workspace(ops: &[Op], order: &[ProgramOp]) -> Bytes {
    // Of each part the bytes that it hands on, and the ops of W that have yet to read them.
    let mut handed: BTreeMap<(u32, Component), (Bytes, u32)> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.phase == Phase::W) {
        let (bytes, readers) = handed.entry((op.unit, op.component)).or_default();
        *bytes += op.handed;
        *readers += 1;
    }
    let mut pending: BTreeSet<(u32, Component)> = BTreeSet::new();
    let (mut now, mut most) = (Bytes::ZERO, Bytes::ZERO);
    for op in order.iter().filter(|op| !op.work.is_exchange()) {
        let part = (op.unit, op.component);
        let Some((bytes, readers)) = handed.get_mut(&part) else { continue };
        let bytes = *bytes;
        if op.phase == Phase::W {
            *readers -= 1;
            if *readers > 0 {
                continue;
            }
        }
        match op.phase {
            Phase::I if pending.insert(part) => now += bytes,
            // What no I op of its own component made (the embedding's gradient) was there all along.
            Phase::W if !pending.remove(&part) => most = most.max(now + bytes),
            Phase::W => now = now - bytes,
            _ => {}
        }
        most = most.max(now);
    }
    if order.iter().any(|op| op.phase == Phase::I) { most } else { Bytes::ZERO }
}
