//! Rules `program-content` and `program-order`: a chunk program runs what the units of its stage call for, each op after
//! what it reads.
//!
//! Order is what streams and `waits` give. A forward passes through the components of its units one after the other, a
//! backward for the input through the same in reverse; a weight gradient comes after the backward of its component. The two
//! chunks of an overlapped pair know nothing of each other. Which of several ops of one component comes first is not
//! judged, only that they follow one another.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{Component, Phase, Program, ProgramOp, Unit};
use crate::plan::Plan;

use super::grammar::{self, Ops};
use super::precedence::Precedence;
use super::report::{Report, Rule, Violation};

/// More ops than any component may have.
const MOST_OPS: usize = 32;

/// The happens-before order of a program's ops. Streams are numbered as in [`crate::ir::Stream`].
pub fn precedence(program: &Program) -> Precedence {
    Precedence::new(2, program.ops.iter().map(|op| (op.stream() as usize, op.waits.as_slice())))
}

/// An op as messages name it.
pub fn op_name(program: usize, index: usize, op: &ProgramOp) -> String {
    format!("program {program}, op {index}, {:?} {:?} of unit {}", op.component, op.phase, op.unit)
}

/// Checks every program under every stage or pair that refers to it.
pub fn check(plan: &Plan, report: &mut Report) {
    let modules_have_experts = modules_have_experts(plan);
    // Stages with the same kinds of units ask the same of a program; each question is asked once.
    let mut numbers = BTreeMap::new();
    let mut classes: Vec<usize> = Vec::with_capacity(plan.stages.len());
    for stage in &plan.stages {
        let rows = stage.units.iter().flat_map(|&unit| grammar::rows(unit, modules_have_experts));
        let components: Vec<Component> = rows.map(|row| row.0).collect();
        let next = numbers.len();
        classes.push(*numbers.entry(components).or_insert(next));
    }
    let mut asked = BTreeSet::new();
    for question in questions(plan) {
        let class = |stage: Option<u32>| stage.map(|stage| classes[stage as usize]);
        if asked.insert((question.program, question.stages.map(class))) {
            question.check(plan, modules_have_experts, report);
        }
    }
}

/// Whether MTP modules are layers with experts, which their name does not tell: they are as soon as one dispatches.
fn modules_have_experts(plan: &Plan) -> bool {
    let mut dispatches = BTreeSet::new();
    for (number, program) in (0..).zip(&plan.programs) {
        let ops = program.ops.iter().filter(|op| op.component == Component::Dispatch);
        dispatches.extend(ops.map(|op| (number, op.phase, op.unit)));
    }
    questions(plan).any(|question| {
        let stages = [Phase::F, Phase::I].into_iter().zip(question.stages);
        stages.filter_map(|(phase, stage)| Some((phase, stage?))).any(|(phase, stage)| {
            let units = (0..).zip(&plan.stages[stage as usize].units);
            let mut modules = units.filter(|(_, unit)| matches!(unit, Unit::Mtp(_)));
            modules.any(|(unit, _)| dispatches.contains(&(question.program, phase, unit)))
        })
    })
}

/// A program, and the stage whose F, I and W it should run.
struct Question {
    program: u32,
    stages: [Option<u32>; 3],
    /// What it is for, in words.
    purpose: String,
}

/// Of every stage, then of every pair.
fn questions(plan: &Plan) -> impl Iterator<Item = Question> {
    let stages = (0..).zip(&plan.stages).flat_map(|(number, stage)| {
        let here = Some(number);
        let purposes = [
            ("F", stage.f, [here, None, None]),
            ("B", stage.b, [None, here, here]),
            ("I", stage.i, [None, here, None]),
            ("W", stage.w, [None, None, here]),
        ];
        purposes.into_iter().filter_map(move |(kind, program, stages)| {
            Some(Question { program: program?, stages, purpose: format!("{kind} of stage {number}") })
        })
    });
    let pairs = plan.pairs.iter().map(|pair| Question {
        program: pair.program,
        stages: [Some(pair.f), Some(pair.b), Some(pair.b)],
        purpose: format!("F of stage {} beside B of stage {}", pair.f, pair.b),
    });
    stages.chain(pairs)
}

/// A component of a unit in one phase: what may be there, and what is.
struct Group {
    phase: Phase,
    unit: u32,
    component: Component,
    of: Unit,
    allowed: Ops,
    /// In launch order.
    ops: Vec<usize>,
}

impl Question {
    fn check(&self, plan: &Plan, modules_have_experts: bool, report: &mut Report) {
        let program = &plan.programs[self.program as usize];
        let mut groups = self.groups(plan, modules_have_experts);
        if program.ops.len() > groups.len().saturating_mul(MOST_OPS) {
            report.add(Rule::ProgramContent, || {
                let message = format!("has {} ops for {} components", program.ops.len(), groups.len());
                self.violation(plan, Rule::ProgramContent, self.name(), message)
            });
            return;
        }
        self.sort_ops(plan, program, &mut groups, report);
        for group in &groups {
            self.count(plan, program, group, report);
        }
        self.order(plan, program, &groups, report);
    }

    /// Everything that must be there: F in model order, I in reverse, then W.
    fn groups(&self, plan: &Plan, modules_have_experts: bool) -> Vec<Group> {
        let mut groups = Vec::new();
        for (phase, stage) in [Phase::F, Phase::I, Phase::W].into_iter().zip(self.stages) {
            let Some(stage) = stage else { continue };
            let before = groups.len();
            for (unit, &of) in (0..).zip(&plan.stages[stage as usize].units) {
                for row in grammar::rows(of, modules_have_experts) {
                    let allowed = grammar::ops(row, phase, &plan.origin);
                    if !allowed.is_none() {
                        groups.push(Group { phase, unit, component: row.0, of, allowed, ops: Vec::new() });
                    }
                }
            }
            if phase == Phase::I {
                groups[before..].reverse();
            }
        }
        groups
    }

    /// Puts each op into its group; one that has none is foreign.
    fn sort_ops(&self, plan: &Plan, program: &Program, groups: &mut [Group], report: &mut Report) {
        let place: BTreeMap<_, _> =
            groups.iter().enumerate().map(|(at, group)| ((group.phase, group.unit, group.component), at)).collect();
        for (index, op) in program.ops.iter().enumerate() {
            match place.get(&(op.phase, op.unit, op.component)) {
                Some(&at) => groups[at].ops.push(index),
                None => report.add(Rule::ProgramContent, || {
                    let message = format!("does not belong in {}", self.purpose);
                    let action = op_name(self.program as usize, index, op);
                    self.violation(plan, Rule::ProgramContent, action, message)
                }),
            }
        }
    }

    fn count(&self, plan: &Plan, program: &Program, group: &Group, report: &mut Report) {
        let exchanges = group.ops.iter().filter(|&&op| program.ops[op].work.is_exchange()).count();
        for (what, found, (fewest, most)) in [
            ("kernel", group.ops.len() - exchanges, group.allowed.compute),
            ("exchange", exchanges, group.allowed.exchange),
        ] {
            if found < fewest as usize || found > most as usize {
                report.add(Rule::ProgramContent, || {
                    let Group { phase, unit, component, of, .. } = group;
                    let limits = if fewest == most { fewest.to_string() } else { format!("{fewest} to {most}") };
                    let message = format!(
                        "has {found} {what} ops for {component:?} {phase:?} of unit {unit} ({of}) where it needs {limits}"
                    );
                    self.violation(plan, Rule::ProgramContent, self.name(), message)
                });
            }
        }
    }

    fn order(&self, plan: &Plan, program: &Program, groups: &[Group], report: &mut Report) {
        let precedence = precedence(program);
        // Reports every op of `later` that may start before one of `earlier` has ended.
        let mut follow = |earlier: &[usize], later: &[usize]| {
            // Beyond that, `program-content` has spoken.
            let (earlier, later) = (&earlier[..earlier.len().min(MOST_OPS)], &later[..later.len().min(MOST_OPS)]);
            for &op in later {
                if let Some(&first) = earlier.iter().find(|&&first| first != op && !precedence.ended_before(first, op))
                {
                    report.add(Rule::ProgramOrder, || {
                        let before = &program.ops[first];
                        let message = format!(
                            "may start before op {first} ({:?} {:?} of unit {}), whose result it reads, has ended",
                            before.component, before.phase, before.unit
                        );
                        let action = op_name(self.program as usize, op, &program.ops[op]);
                        self.violation(plan, Rule::ProgramOrder, action, message)
                    });
                }
            }
        };
        let backward: BTreeMap<_, _> = groups
            .iter()
            .filter(|group| group.phase == Phase::I)
            .map(|group| ((group.unit, group.component), group))
            .collect();
        let mut before: Option<&Group> = None;
        let mut last_backward: Option<&Group> = None;
        for group in groups.iter().filter(|group| !group.ops.is_empty()) {
            for pair in group.ops.windows(2).take(MOST_OPS) {
                follow(&pair[..1], &pair[1..]);
            }
            if group.phase == Phase::W {
                // The embedding's gradient comes from the last backward, if it has none of its own to gather it.
                let source = match group.component {
                    Component::Embedding => last_backward,
                    component => backward.get(&(group.unit, component)).copied(),
                };
                if let Some(source) = source {
                    follow(&source.ops, &group.ops);
                }
            } else if let Some(before) = before.filter(|before| before.phase == group.phase) {
                follow(&before.ops, &group.ops);
            }
            before = Some(group);
            if group.phase == Phase::I {
                last_backward = before;
            }
        }
    }

    fn violation(&self, plan: &Plan, rule: Rule, action: String, message: String) -> Violation {
        Violation::program(rule, plan, self.program, Some(self.stages), action, message)
    }

    fn name(&self) -> String {
        format!("program {} ({})", self.program, self.purpose)
    }
}
