//! A launch order of a chunk program with its SM numbers, how long it takes, and how small changes shorten it.

use std::cell::Cell;

use super::orders::by_key;
use super::{Budget, list};
use crate::ir::{Component, Op, Phase, ProgramOp, Stream, Work};
use crate::machine::Machine;
use crate::sim::{StreamOps, run_streams};
use crate::units::{Bytes, Nanos};

/// How many arrangements the local search may look at, times the number of ops, from each start: long programs take no
/// longer than short ones.
const LOCAL_SEARCH: usize = 100_000;

/// Ops in a launch order, with needs beyond their own: two ops that are kept apart do not share the SMs. The ops' work is
/// left out, since arrangements are copied by the thousand; only what kind of work it is, is kept.
#[derive(Clone)]
pub struct Arrangement {
    ops: Vec<Op>,
    order: Vec<usize>,
    /// SMs of each op, if it is an exchange by SMs; zero for the others.
    sms: Vec<u32>,
}

impl Arrangement {
    /// Of `ops` in an order, each exchange with `sms`.
    pub fn new(ops: &[Op], order: Vec<usize>, sms: u32) -> Self {
        let without_work = |op: &Op| Op {
            work: match op.work {
                Work::Compute(_) => Work::Compute(Vec::new()),
                Work::Exchange { .. } => Work::over_nvlink(Bytes::ZERO),
                Work::Copy { .. } => Work::Copy { nvlink: Bytes::ZERO },
            },
            needs: op.needs.clone(),
            ..*op
        };
        let sms = |op: &Op| if matches!(op.work, Work::Exchange { .. }) { sms } else { 0 };
        Self { ops: ops.iter().map(without_work).collect(), order, sms: ops.iter().map(sms).collect() }
    }

    /// The same order, each op after the end of the one before it.
    pub fn one_after_the_other(mut self) -> Self {
        for pair in self.order.windows(2) {
            self.ops[pair[1]].needs.push(pair[0] as u32);
        }
        self
    }

    /// The program. `ops` are those that it was made of.
    pub fn launch(&self, ops: &[Op], table: &TimeTable) -> Vec<ProgramOp> {
        let mut program = self.outline(table);
        for (op, &at) in program.iter_mut().zip(&self.order) {
            op.work = ops[at].work.clone();
        }
        program
    }

    /// The program, work left out.
    fn outline(&self, table: &TimeTable) -> Vec<ProgramOp> {
        list::launch(&self.ops, &self.order, &self.sms, table.machine.sms)
    }

    /// How long the program takes: as `sim` times it, from the table of times.
    pub fn length(&self, table: &TimeTable) -> Nanos {
        let timed = Timed { arrangement: self, program: &self.outline(table), table };
        run_streams(&timed).into_iter().map(|span| span.end).max().unwrap_or_default()
    }

    /// The steps that can be taken from here, where exchanges may be given the numbers of SMs `offered`.
    fn steps(&self, table: &TimeTable, offered: &[u32]) -> Vec<Step> {
        let mut steps = Vec::new();
        for exchange in [false, true] {
            let line = || self.order.iter().copied().filter(|&op| self.ops[op].work.is_exchange() == exchange);
            steps.extend(line().zip(line().skip(1)).map(|(one, other)| Step::Swap(one, other)));
        }
        let beside = list::beside(&self.outline(table));
        steps.extend(beside.into_iter().map(|(before, after)| Step::Part(self.order[before], self.order[after])));
        for &sms in offered {
            let mut kinds: Vec<(Component, Phase, u32)> = Vec::new();
            for (op, &now) in self.ops.iter().zip(&self.sms).filter(|(_, now)| **now > 0) {
                if !kinds.contains(&(op.component, op.phase, now)) {
                    kinds.push((op.component, op.phase, now));
                }
            }
            let other = kinds.into_iter().filter(|&(_, _, now)| now != sms);
            steps.extend(other.map(|(component, phase, _)| Step::Budget(component, phase, sms)));
        }
        steps
    }

    fn take(&self, step: Step) -> Self {
        let mut next = self.clone();
        match step {
            Step::Swap(one, other) => {
                let mut keys = vec![0; self.ops.len()];
                for (place, &op) in self.order.iter().enumerate() {
                    keys[op] = place;
                }
                keys.swap(one, other);
                next.order = by_key(&self.ops, &keys);
            }
            Step::Part(before, after) => next.ops[after].needs.push(before as u32),
            Step::Budget(component, phase, sms) => {
                for (op, now) in self.ops.iter().zip(&mut next.sms).filter(|(_, now)| **now > 0) {
                    if (op.component, op.phase) == (component, phase) {
                        *now = sms;
                    }
                }
            }
        }
        next
    }
}

/// A small change of an arrangement.
#[derive(Clone, Copy)]
enum Step {
    /// Neighbours of a stream, exchanged.
    Swap(usize, usize),
    /// A computation and an exchange that could run at the same time, kept apart as they are launched.
    Part(usize, usize),
    /// All exchanges of a component in a phase get so many SMs.
    Budget(Component, Phase, u32),
}

/// Takes the best step as long as there is one that shortens the program: first with the SMs as they are, then, where
/// exchanges may have others, with all steps. So a choice of SMs never makes a program longer.
pub fn improve(arrangement: Arrangement, table: &TimeTable) -> (Nanos, Arrangement) {
    let (time, arrangement) = descend(arrangement, table, &[]);
    match table.offered.is_empty() {
        true => (time, arrangement),
        false => descend(arrangement, table, &table.offered),
    }
}

fn descend(mut arrangement: Arrangement, table: &TimeTable, offered: &[u32]) -> (Nanos, Arrangement) {
    let mut best = arrangement.length(table);
    let mut tries = LOCAL_SEARCH / arrangement.ops.len().max(1);
    while tries > 0 {
        let mut found = None;
        for step in arrangement.steps(table, offered).into_iter().take(tries) {
            tries -= 1;
            let next = arrangement.take(step);
            let time = next.length(table);
            if time < best {
                (best, found) = (time, Some(next));
            }
        }
        match found {
            Some(next) => arrangement = next,
            None => break,
        }
    }
    (best, arrangement)
}

/// How long the ops of a program take, looked up: layers repeat, and arrangements are timed by the thousand.
pub struct TimeTable<'a> {
    machine: &'a Machine,
    /// Each work once.
    works: Vec<&'a Work>,
    /// Of each op, which.
    work_of: Vec<usize>,
    /// Numbers of SMs that occur, ascending.
    numbers: Vec<u32>,
    /// Place in `numbers` of each number of SMs.
    place: Vec<usize>,
    /// What exchanges may be given instead of what they have; none if their number is fixed.
    offered: Vec<u32>,
    /// By work and number.
    alone: Vec<Cell<Option<Nanos>>>,
    /// By work and number, and what is beside it.
    beside: Vec<Cell<Option<Nanos>>>,
}

impl<'a> TimeTable<'a> {
    /// Of `ops` on a machine, where exchanges have what `budget` allows.
    pub fn new(ops: &'a [Op], machine: &'a Machine, budget: &Budget) -> Self {
        let mut works: Vec<&Work> = ops.iter().map(|op| &op.work).collect();
        works.sort_unstable();
        works.dedup();
        let work_of = ops.iter().map(|op| works.partition_point(|work| **work < op.work)).collect();
        let exchanges = budget.offered.iter().copied().chain([budget.sms]);
        let mut numbers: Vec<u32> =
            exchanges.flat_map(|sms| [sms, machine.sms - sms]).chain([0, machine.sms]).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let place = (0..=machine.sms).map(|sms| numbers.partition_point(|&number| number < sms)).collect();
        let times = works.len() * numbers.len();
        Self {
            machine,
            work_of,
            place,
            offered: budget.offered.clone(),
            alone: vec![Cell::new(None); times],
            beside: vec![Cell::new(None); times * times],
            works,
            numbers,
        }
    }

    fn cell(&self, op: usize, sms: u32) -> usize {
        self.work_of[op] * self.numbers.len() + self.place[sms as usize]
    }

    fn alone(&self, op: usize, sms: u32) -> Nanos {
        let known = &self.alone[self.cell(op, sms)];
        known.get().unwrap_or_else(|| {
            let time = self.machine.duration(self.works[self.work_of[op]], sms);
            known.set(Some(time));
            time
        })
    }

    fn beside(&self, (op, sms): (usize, u32), (other, other_sms): (usize, u32)) -> Nanos {
        let known = &self.beside[self.cell(op, sms) * self.alone.len() + self.cell(other, other_sms)];
        known.get().unwrap_or_else(|| {
            let [work, beside] = [op, other].map(|op| self.works[self.work_of[op]]);
            let time = self.machine.duration_beside(work, sms, beside, other_sms);
            known.set(Some(time));
            time
        })
    }
}

/// An arrangement's program, timed from the table.
struct Timed<'a> {
    arrangement: &'a Arrangement,
    program: &'a [ProgramOp],
    table: &'a TimeTable<'a>,
}

impl Timed<'_> {
    fn op(&self, place: usize) -> (usize, u32) {
        (self.arrangement.order[place], self.program[place].sms)
    }
}

impl StreamOps for Timed<'_> {
    fn count(&self) -> usize {
        self.program.len()
    }

    fn stream(&self, op: usize) -> Stream {
        self.program[op].stream()
    }

    fn waits(&self, op: usize) -> &[u32] {
        &self.program[op].waits
    }

    fn alone(&self, op: usize) -> Nanos {
        let (op, sms) = self.op(op);
        self.table.alone(op, sms)
    }

    fn beside(&self, op: usize, other: usize) -> Nanos {
        self.table.beside(self.op(op), self.op(other))
    }
}
