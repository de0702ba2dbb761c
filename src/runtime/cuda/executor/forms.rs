//! In which form each program of a stage runs its layers: the parts into which a layer's tokens are cut between dispatch and combine, and
//! how the rows of each part travel.
//!
//! One program of a stage may cut its tokens and another one not: a chunk's forward may run in one, its backward in another. So a
//! layer's tokens are cut as finely as any program of the stage has them; an op on all tokens works on one part after the other.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::ir::{Component, Phase, Program, ProgramOp, Step, Tokens, Unit, Work};
use crate::plan::Plan;

/// How rows travel in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// An op of its own has quantised them.
    pub quantised: bool,
    /// Copy engines move them, after an op that has packed them.
    pub copied: bool,
}

/// How the rows of a part travel in a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// To the experts: dispatch in F, combine in I.
    pub there: Form,
    /// From them.
    pub back: Form,
}

/// Most parts of a layer's tokens.
const MOST_PARTS: u32 = 64;

/// The forms of a stage's units, by unit.
#[derive(Clone, Debug, Default)]
pub struct Forms {
    parts: Vec<usize>,
    /// By program: in F and in I, by unit, by part.
    programs: BTreeMap<u32, [Vec<Vec<Ways>>; 2]>,
    apart: usize,
}

impl Forms {
    /// Of a stage of a plan that [`check`] has passed.
    pub fn of(plan: &Plan, stage: u32) -> Self {
        let Some(of) = plan.stages.get(stage as usize) else { return Self::default() };
        let own = [of.f, of.b, of.i, of.w].into_iter().flatten().map(|program| (program, true, true));
        let pairs = plan.pairs.iter().map(|pair| (pair.program, pair.f == stage, pair.b == stage));
        let mine: Vec<(u32, &Program, [bool; 2])> = own
            .chain(pairs)
            .filter(|&(_, f, b)| f || b)
            .filter_map(|(number, f, b)| Some((number, plan.programs.get(number as usize)?, [f, b])))
            .collect();
        let parts = (0..of.units.len() as u32).map(|unit| {
            let ops = mine.iter().flat_map(|(_, program, of)| {
                program.ops.iter().filter(|op| op.unit == unit && of[usize::from(op.phase != Phase::F)])
            });
            ops.fold(1, |parts, op| least_common_multiple(parts, op.tokens.parts)) as usize
        });
        let parts: Vec<usize> = parts.collect();
        let backwards = mine.iter().filter(|(_, _, of)| of[1]).map(|&(_, program, _)| program);
        let apart = backwards.map(units_apart).max().unwrap_or(1);
        let mut programs: BTreeMap<u32, [Vec<Vec<Ways>>; 2]> = BTreeMap::new();
        for (number, program, of) in mine {
            let ways = programs.entry(number).or_default();
            for (phase, ways) in [Phase::F, Phase::I].into_iter().zip(ways) {
                if of[usize::from(phase != Phase::F)] {
                    *ways = (0..).zip(&parts).map(|(unit, &parts)| ways_of(program, phase, unit, parts)).collect();
                }
            }
        }
        Self { parts, programs, apart }
    }

    /// How many units in a row may be there at once, of what the backward computes again: 1, 2 or, for all, 3.
    pub fn apart(&self) -> usize {
        self.apart
    }

    /// Into how many equal parts a unit's tokens are cut.
    pub fn parts(&self, unit: usize) -> usize {
        self.parts.get(unit).copied().unwrap_or(1)
    }

    /// The parts that an op works on.
    pub fn parts_of(&self, op: &ProgramOp) -> Range<usize> {
        range(op.tokens, self.parts(op.unit as usize))
    }

    /// The parts that an op works on and none of `others`: each by itself, where there are any others.
    pub fn left(&self, op: &ProgramOp, others: &[Tokens]) -> Vec<Range<usize>> {
        let (mine, parts) = (self.parts_of(op), self.parts(op.unit as usize));
        if others.is_empty() {
            return vec![mine];
        }
        let theirs = |part: &usize| others.iter().any(|&tokens| range(tokens, parts).contains(part));
        mine.filter(|part| !theirs(part)).map(|part| part..part + 1).collect()
    }

    /// By part of a unit's tokens, how rows travel where `program` runs a phase of it.
    pub fn ways(&self, program: u32, phase: Phase, unit: usize) -> &[Ways] {
        let of = self.programs.get(&program).map(|phases| &phases[usize::from(phase != Phase::F)]);
        of.and_then(|units| units.get(unit)).map_or(&[], Vec::as_slice)
    }

    /// Whether some program has a form in a phase of a unit.
    pub fn any(&self, phase: Phase, unit: usize, has: impl Fn(&Ways) -> bool) -> bool {
        self.programs.keys().any(|&program| self.ways(program, phase, unit).iter().any(&has))
    }
}

fn ways_of(program: &Program, phase: Phase, unit: u32, parts: usize) -> Vec<Ways> {
    let (there, back) = match phase {
        Phase::F => (Component::Dispatch, Component::Combine),
        Phase::I | Phase::W => (Component::Combine, Component::Dispatch),
    };
    let form = |component, part| {
        let mut of_it = program.ops.iter().filter(|op| {
            (op.component, op.phase, op.unit) == (component, phase, unit) && range(op.tokens, parts).contains(&part)
        });
        let mut form = Form::default();
        of_it.by_ref().for_each(|op| match op.step {
            Step::Quantise => form.quantised = true,
            Step::Main => form.copied |= matches!(op.work, Work::Copy { .. }),
            Step::Shared | Step::Again | Step::Pack => {}
        });
        form
    };
    (0..parts).map(|part| Ways { there: form(there, part), back: form(back, part) }).collect()
}

/// How many units in a row are there at once, of what a backward computes again: 1, 2, or 3 for any number. A layer is there from its first
/// op of I that computes to its last; all of them are on one stream, in the order of the list.
fn units_apart(program: &Program) -> usize {
    let computes = |op: &ProgramOp| {
        op.phase == Phase::I
            && !op.work.is_exchange()
            && !matches!(op.component, Component::Embedding | Component::Head)
    };
    let mut spans: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
    for (at, op) in program.ops.iter().enumerate().filter(|(_, op)| computes(op)) {
        spans.entry(op.unit).or_insert((at, at)).1 = at;
    }
    let meet = |distance: u32| {
        spans.iter().any(|(unit, one)| {
            let mut others =
                spans.iter().filter(|(other, _)| *other > unit && (*other - unit).is_multiple_of(distance));
            others.any(|(_, other)| one.0 < other.1 && other.0 < one.1)
        })
    };
    if !meet(1) {
        return 1;
    }
    if meet(2) { 3 } else { 2 }
}

fn range(tokens: Tokens, parts: usize) -> Range<usize> {
    let bound = |part: u32| part as usize * parts / tokens.parts.max(1) as usize;
    bound(tokens.part)..bound(tokens.part.saturating_add(1))
}

fn least_common_multiple(one: u32, other: u32) -> u32 {
    let (mut a, mut b) = (one, other);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    one.checked_div(a).unwrap_or(1).saturating_mul(other)
}

/// Whether a program computes again all layers whose I it does.
fn computes_layers_again(program: &Program) -> bool {
    let has = |unit: u32, component: Component, step: Step| {
        program.ops.iter().any(|op| (op.phase, op.unit, op.component, op.step) == (Phase::I, unit, component, step))
    };
    let mut layers = program.ops.iter().filter(|op| op.phase == Phase::I && op.component == Component::Attention);
    layers.all(|op| {
        let again = |component| has(op.unit, component, Step::Again);
        again(Component::Attention)
            && again(Component::Mlp)
            && (again(Component::Dispatch) || !has(op.unit, Component::Dispatch, Step::Main))
    })
}

/// Whether all ops of a plan have a form that this runtime has.
///
/// # Errors
/// If not; says which one.
pub fn check(plan: &Plan) -> Result<()> {
    let refused = |op: &ProgramOp, why: &str| {
        Err(Error::new(format!("the plan has the op {} of unit {}: {why}", op.what(), op.unit))
            .help("compile the job with `--without-rewrites all`"))
    };
    let tokens = u64::from(plan.origin.micro_batch_size) * u64::from(plan.origin.sequence);
    for op in plan.programs.iter().flat_map(|program| &program.ops) {
        let Tokens { part, parts } = op.tokens;
        if !op.tokens.is_all() {
            let cut = matches!(op.component, Component::Dispatch | Component::Mlp | Component::Combine)
                && op.step != Step::Shared;
            if !cut {
                return refused(op, "only routed experts and their exchanges can be cut along their tokens");
            }
            if part >= parts || parts > MOST_PARTS {
                return refused(op, "there is no such part of the tokens");
            }
        }
        let exchange = matches!(op.component, Component::Dispatch | Component::Combine);
        if !exchange && matches!(op.step, Step::Quantise | Step::Pack) || exchange && op.step == Step::Shared {
            return refused(op, "there is no such step of that component");
        }
    }
    for (stage, of) in plan.stages.iter().enumerate() {
        let forms = Forms::of(plan, stage as u32);
        let pairs = plan.pairs.iter().filter(|pair| pair.b as usize == stage).map(|pair| pair.program);
        let mut backwards = [of.b, of.i].into_iter().flatten().chain(pairs).filter(|_| of.recompute.layer);
        let lacks =
            |number: &u32| plan.programs.get(*number as usize).is_some_and(|program| !computes_layers_again(program));
        if let Some(program) = backwards.find(lacks) {
            return Err(Error::new(format!(
                "stage {stage} computes its layers again, but program {program} has no op that does so"
            ))
            .help("`dualweave verify` says what is wrong with the plan"));
        }
        let has_experts = |unit: &Unit| match unit {
            Unit::Moe(_) => true,
            Unit::Mtp(_) => plan.model.mtp_is_moe(),
            Unit::Embedding | Unit::Dense(_) | Unit::Head => false,
        };
        let cut = of.units.iter().zip(&forms.parts).find(|&(unit, &parts)| parts > 1 && !has_experts(unit));
        if let Some((unit, _)) = cut {
            return Err(Error::new(format!(
                "stage {stage} cuts the tokens of {unit:?}: only those of experts can be cut"
            ))
            .help("compile the job with `--without-rewrites split-tokens`"));
        }
        let uneven = forms.parts.iter().find(|&&parts| parts > MOST_PARTS as usize || tokens % parts as u64 != 0);
        if let Some(parts) = uneven {
            return Err(Error::new(format!(
                "stage {stage} cuts the {tokens} tokens of a micro-batch into {parts} parts: only equal ones, at most {MOST_PARTS}"
            ))
            .help("compile the job with `--without-rewrites split-tokens`"));
        }
    }
    Ok(())
}

/// Whether ranks of different processes can exchange rows as a plan says.
///
/// # Errors
/// If copy engines are to move them: they reach no memory of another process.
pub fn check_between_processes(plan: &Plan) -> Result<()> {
    let copies = |op: &&ProgramOp| matches!(op.work, Work::Copy { .. });
    match plan.programs.iter().flat_map(|program| &program.ops).find(copies).filter(|_| plan.origin.ep > 1) {
        None => Ok(()),
        Some(op) => Err(Error::new(format!(
            "the plan has the op {} of unit {} for copy engines, which reach no memory of other processes",
            op.what(),
            op.unit
        ))
        .help("compile the job with `--without-rewrites copy-engine`, or run all ranks in one process")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::ProgramKind;
    use crate::units::{Bytes, Nanos};

    const NVLINK: Bytes = Bytes(1);

    fn op(component: Component, phase: Phase, unit: u32, step: Step, part: [u32; 2]) -> ProgramOp {
        let exchange = matches!(component, Component::Dispatch | Component::Combine) && step == Step::Main;
        let work = if exchange { Work::over_nvlink(NVLINK) } else { Work::Compute(Vec::new()) };
        let tokens = Tokens { part: part[0], parts: part[1] };
        ProgramOp { component, phase, unit, step, tokens, work, sms: 1, waits: Vec::new() }
    }

    fn program(ops: Vec<ProgramOp>) -> Program {
        Program { kind: ProgramKind::B, workspace: Bytes::ZERO, bound: Nanos::ZERO, ops }
    }

    #[test]
    fn each_part_has_the_form_of_the_ops_that_are_for_it() {
        let main = |component, part| op(component, Phase::F, 2, Step::Main, part);
        let mut copy = main(Component::Dispatch, [1, 2]);
        copy.work = Work::Copy { nvlink: NVLINK };
        let ops = vec![
            main(Component::Dispatch, [0, 2]),
            op(Component::Dispatch, Phase::F, 2, Step::Pack, [1, 2]),
            copy,
            op(Component::Combine, Phase::F, 2, Step::Quantise, [0, 1]),
            main(Component::Combine, [0, 1]),
            op(Component::Combine, Phase::F, 1, Step::Quantise, [0, 1]),
        ];
        let ways = ways_of(&program(ops), Phase::F, 2, 4);
        let (copied, quantised) =
            (Form { copied: true, ..Form::default() }, Form { quantised: true, ..Form::default() });
        let plain = Ways { back: quantised, ..Ways::default() };
        let by_engines = Ways { there: copied, back: quantised };
        assert_eq!(ways, [plain, plain, by_engines, by_engines]);
        assert_eq!(range(Tokens { part: 1, parts: 2 }, 4), 2..4);
        assert_eq!([(1, 2), (2, 2), (2, 3), (4, 6)].map(|(a, b)| least_common_multiple(a, b)), [2, 2, 6, 12]);
    }

    #[test]
    fn units_are_apart_by_the_order_of_their_ops() {
        let again = |unit| op(Component::Mlp, Phase::I, unit, Step::Again, [0, 1]);
        let last = |unit| op(Component::Attention, Phase::I, unit, Step::Main, [0, 1]);
        let apart = |ops: Vec<ProgramOp>| units_apart(&program(ops));
        assert_eq!(apart(vec![again(2), last(2), again(1), last(1), again(0), last(0)]), 1);
        assert_eq!(apart(vec![again(2), again(1), last(2), again(0), last(1), last(0)]), 2);
        assert_eq!(apart(vec![again(2), again(1), again(0), last(2), last(1), last(0)]), 3);
        // Of the head nothing is computed again, and an exchange computes nothing.
        let (mut head, exchange) = (last(3), op(Component::Combine, Phase::I, 1, Step::Main, [0, 1]));
        head.component = Component::Head;
        assert_eq!(apart(vec![again(2), head, exchange, last(2), again(1), last(1)]), 1);
    }
}
