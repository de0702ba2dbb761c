//! Rules `program-content` and `program-order`: a chunk program runs what the units of its stage call for, each op after
//! what it reads.
//!
//! Order is what streams and `waits` give. A forward passes through the components of its units one after the other, a
//! backward for the input through the same in reverse; a weight gradient comes after the backward of its component. The two
//! chunks of an overlapped pair know nothing of each other. Which of several ops of one component comes first is not
//! judged, only that they follow one another.
//!
//! An op may work on part of the tokens: the parts cover them exactly once, and order is asked where tokens meet. A shared
//! expert that is an op of its own stands beside dispatch, experts and combine, between the attentions. What is computed
//! again comes before the backward that reads it. Where a stage computes whole layers again, attention, dispatch and MLP are there a second
//! time, one after the other as in F.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{Component, Phase, Program, ProgramOp, Step, Tokens, Unit};
use crate::plan::{Plan, PlanStage};

use super::grammar::{self, Ops};
use super::precedence::Precedence;
use super::report::{Report, Rule, Violation};

/// More ops than any component may have.
const MOST_OPS: usize = 32;

/// Divisible by 1 to 16, the most parts that tokens can be cut into.
const COMMON_PARTS: u64 = 720_720;

/// The happens-before order of a program's ops. Streams are numbered as in [`crate::ir::Stream`].
pub fn precedence(program: &Program) -> Precedence {
    Precedence::new(2, program.ops.iter().map(|op| (op.stream() as usize, op.waits.as_slice())))
}

/// An op as messages name it.
pub fn op_name(program: usize, index: usize, op: &ProgramOp) -> String {
    format!("program {program}, op {index}, {} of unit {}", op.what(), op.unit)
}

/// Checks every program under every stage or pair that refers to it.
pub fn check(plan: &Plan, report: &mut Report) {
    let modules_have_experts = plan.model.mtp_is_moe();
    // Stages with the same kinds of units, computed again or not, ask the same of a program; each question is asked once.
    let mut numbers = BTreeMap::new();
    let mut classes: Vec<usize> = Vec::with_capacity(plan.stages.len());
    for stage in &plan.stages {
        let rows = stage.units.iter().flat_map(|&unit| grammar::rows(unit, modules_have_experts));
        let components: Vec<Component> = rows.map(|row| row.0).collect();
        let next = numbers.len();
        classes.push(*numbers.entry((components, stage.recompute.layer)).or_insert(next));
    }
    let mut asked = BTreeSet::new();
    for question in questions(plan) {
        let class = |stage: Option<u32>| stage.map(|stage| classes[stage as usize]);
        if asked.insert((question.program, question.stages.map(class))) {
            question.check(plan, modules_have_experts, report);
        }
    }
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
    /// What must be repeated of the forward.
    again: Ops,
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
            let PlanStage { units, recompute, .. } = &plan.stages[stage as usize];
            for (unit, &of) in (0..).zip(units) {
                for row in grammar::rows(of, modules_have_experts) {
                    let allowed = grammar::ops(row, phase, &plan.origin);
                    let again = match phase {
                        Phase::I if recompute.layer => grammar::again(row, &plan.origin),
                        _ => Ops::NONE,
                    };
                    if !allowed.is_none() {
                        groups.push(Group { phase, unit, component: row.0, of, allowed, again, ops: Vec::new() });
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
            let group = place.get(&(op.phase, op.unit, op.component)).copied();
            match group.filter(|&at| grammar::step_belongs(op, groups[at].of, groups[at].again)) {
                Some(at) => groups[at].ops.push(index),
                None => report.add(Rule::ProgramContent, || {
                    let message = format!("does not belong in {}", self.purpose);
                    let action = op_name(self.program as usize, index, op);
                    self.violation(plan, Rule::ProgramContent, action, message)
                }),
            }
        }
    }

    fn count(&self, plan: &Plan, program: &Program, group: &Group, report: &mut Report) {
        let Group { phase, unit, component, of, allowed, again, .. } = group;
        let name = || format!("{component:?} {phase:?} of unit {unit} ({of})");
        let mut refuse = |message: String| {
            report.add(Rule::ProgramContent, || self.violation(plan, Rule::ProgramContent, self.name(), message));
        };
        let shares = |wanted: &dyn Fn(&ProgramOp) -> bool| -> Vec<Tokens> {
            let ops = group.ops.iter().map(|&op| &program.ops[op]);
            ops.filter(|op| wanted(op)).map(|op| op.tokens).collect()
        };
        let mut wanted =
            vec![(Step::Main, "kernel", false, allowed.compute), (Step::Main, "exchange", true, allowed.exchange)];
        if !again.is_none() {
            wanted.push((Step::Again, "repeated kernel", false, again.compute));
            wanted.push((Step::Again, "repeated exchange", true, again.exchange));
        }
        for (step, what, exchange, limits) in wanted {
            let (fewest, most) = limits;
            let found = shares(&|op| op.step == step && op.work.is_exchange() == exchange);
            let whole = found.iter().all(Tokens::is_all);
            if limits == (1, 1) && !whole {
                if !cover(&found) {
                    refuse(format!("does not run every token exactly once in the {what} ops for {}", name()));
                }
            } else if !whole || found.len() < fewest as usize || found.len() > most as usize {
                let limits = if fewest == most { fewest.to_string() } else { format!("{fewest} to {most}") };
                refuse(format!("has {} {what} ops for {} where it needs {limits}", found.len(), name()));
            }
        }
        for step in [Step::Shared, Step::Again, Step::Quantise, Step::Pack] {
            if step == Step::Again && !again.is_none() {
                continue;
            }
            let found = shares(&|op| op.step == step);
            // A shared expert, if it is there by itself, is there for all tokens.
            if !(found.is_empty() || cover(&found) || (step != Step::Shared && apart(&found))) {
                refuse(format!("does not run every token exactly once in the {step:?} ops for {}", name()));
            }
        }
    }

    fn order(&self, plan: &Plan, program: &Program, groups: &[Group], report: &mut Report) {
        let precedence = precedence(program);
        // Reports every op of `later` that may start before one of `earlier` that works on tokens of its own has ended.
        let mut follow = |earlier: &[usize], later: &[usize]| {
            // Beyond that, `program-content` has spoken.
            let (earlier, later) = (&earlier[..earlier.len().min(MOST_OPS)], &later[..later.len().min(MOST_OPS)]);
            for &op in later {
                let read = |first: &usize| program.ops[*first].tokens.meet(program.ops[op].tokens);
                let mut read = earlier.iter().filter(|first| **first != op && read(first));
                if let Some(&first) = read.find(|&&first| !precedence.ended_before(first, op)) {
                    report.add(Rule::ProgramOrder, || {
                        let before = &program.ops[first];
                        let message = format!(
                            "may start before op {first} ({} of unit {}), whose result it reads, has ended",
                            before.what(),
                            before.unit
                        );
                        let action = op_name(self.program as usize, op, &program.ops[op]);
                        self.violation(plan, Rule::ProgramOrder, action, message)
                    });
                }
            }
        };
        // Ops of a group: those on the way through it, the shared expert beside, and what is computed again.
        let of = |group: &Group, wanted: &dyn Fn(&ProgramOp) -> bool| -> Vec<usize> {
            group.ops.iter().copied().filter(|&op| wanted(&program.ops[op])).collect()
        };
        let through = |group: &Group| of(group, &|op| !matches!(op.step, Step::Shared | Step::Again));
        let shared = |group: &Group| of(group, &|op| op.step == Step::Shared);
        let again = |group: &Group| of(group, &|op| op.step == Step::Again);

        let backward: BTreeMap<_, _> = groups
            .iter()
            .filter(|group| group.phase == Phase::I)
            .map(|group| ((group.unit, group.component), group))
            .collect();
        // What is repeated of a layer's forward passes through it once more, in the order of F: the groups of I the other way round.
        let mut repeated: Option<(u32, Vec<usize>)> = None;
        for group in groups.iter().rev().filter(|group| !group.again.is_none()) {
            let mine = again(group);
            for (at, &first) in mine.iter().enumerate().take(MOST_OPS) {
                follow(&[first], &mine[at + 1..]);
            }
            if let Some((_, earlier)) = repeated.filter(|(unit, _)| *unit == group.unit) {
                follow(&earlier, &mine);
            }
            follow(&mine, &shared(group));
            repeated = Some((group.unit, mine));
        }
        // What the next group on the way reads, and what the next attention (or the end of the layer) reads besides.
        let mut before: Option<(Phase, Vec<usize>)> = None;
        let mut beside: Vec<usize> = Vec::new();
        // What a layer's own attention made (F), or what came into the layer (I): that a shared expert reads.
        let mut source: Vec<usize> = Vec::new();
        let mut last_backward: Vec<usize> = Vec::new();
        for group in groups.iter().filter(|group| !group.ops.is_empty()) {
            let mine = through(group);
            for (at, &first) in mine.iter().enumerate().take(MOST_OPS) {
                follow(&[first], &mine[at + 1..]);
            }
            follow(&again(group), &of(group, &|op| op.step == Step::Main && !op.work.is_exchange()));
            if group.phase == Phase::W {
                // The embedding's gradient comes from the last backward, if it has none of its own to gather it.
                let made = match group.component {
                    Component::Embedding => last_backward.clone(),
                    component => backward.get(&(group.unit, component)).map_or_else(Vec::new, |group| through(group)),
                };
                let made_beside = backward.get(&(group.unit, group.component)).map_or_else(Vec::new, |g| shared(g));
                // Where one side has the shared expert by itself and the other has not, the main op is both.
                follow(&made, &mine);
                if shared(group).is_empty() {
                    follow(&made_beside, &mine);
                }
                follow(if made_beside.is_empty() { &made } else { &made_beside }, &shared(group));
                continue;
            }
            if before.as_ref().is_none_or(|(phase, _)| *phase != group.phase) {
                (before, beside, source) = (None, Vec::new(), Vec::new());
            }
            let earlier = before.map_or_else(Vec::new, |(_, ops)| ops);
            follow(&earlier, &mine);
            // A layer begins with its attention and ends with it on the way back; what stands beside joins there.
            let joins = !matches!(group.component, Component::Dispatch | Component::Mlp | Component::Combine);
            if joins {
                follow(&beside, &mine);
                beside.clear();
                source = mine.clone();
            }
            let here = shared(group);
            follow(&source, &here);
            beside.extend(here);
            if group.phase == Phase::I {
                last_backward = if joins { mine.clone() } else { [mine.as_slice(), &beside].concat() };
            }
            // A group of which only the shared expert is there has nothing on the way.
            before = Some((group.phase, if mine.is_empty() { earlier } else { mine }));
        }
    }

    fn violation(&self, plan: &Plan, rule: Rule, action: String, message: String) -> Violation {
        Violation::program(rule, plan, self.program, Some(self.stages), action, message)
    }

    fn name(&self) -> String {
        format!("program {} ({})", self.program, self.purpose)
    }
}

/// Whether these parts are all tokens, each once.
fn cover(shares: &[Tokens]) -> bool {
    // In parts of a number that all allowed numbers of parts divide.
    let part = |tokens: &Tokens| COMMON_PARTS.checked_div(u64::from(tokens.parts)).unwrap_or(0);
    apart(shares) && shares.iter().map(part).sum::<u64>() == COMMON_PARTS
}

/// Whether no token is in two of these parts.
fn apart(shares: &[Tokens]) -> bool {
    shares.iter().enumerate().all(|(at, one)| shares[at + 1..].iter().all(|other| !one.meet(*other)))
}
