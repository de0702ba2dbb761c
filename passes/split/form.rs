//! The form of a unit: which ops its work is done by.

use crate::ir::{Component, Step, Tokens, Work};
use crate::passes::unit_work::{UnitOp, UnitWork};
use crate::units::Bytes;

/// The ops of a unit, F, I and W, and what they need of each other. As [`UnitForm::plain`] has them, or as `rewrite` makes them.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitForm {
    /// Forward. What needs no op of the unit reads what comes into it; what no op needs makes what goes out.
    pub f: Vec<FormOp>,
    /// Backward for the input; likewise, but that what is computed again ([`Step::Again`]) reads only what is held.
    pub i: Vec<FormOp>,
    /// Weight gradients.
    pub w: Vec<FormOp>,
    /// Largest exchange buffer of its ops, sent and received together.
    pub exchange_buffer: Bytes,
}

/// An op of a unit.
#[derive(Clone, Debug, PartialEq)]
pub struct FormOp {
    /// What it is.
    pub component: Component,
    /// Which part of the component's work.
    pub step: Step,
    /// On which tokens.
    pub tokens: Tokens,
    /// What it does.
    pub work: Work,
    /// In F and I: earlier ops of the same list. In W: ops of I; none if all of I must be done.
    pub needs: Vec<u32>,
}

/// Whether an op of a list reads what comes into the unit: if it reads no op of the unit but what is computed again. That reads what is held.
pub fn reads_input(ops: &[FormOp], op: &FormOp) -> bool {
    op.step != Step::Again && op.needs.iter().all(|&need| ops[need as usize].step == Step::Again)
}

impl UnitForm {
    /// One op for each part of the work, one after the other; weight gradients after the backward of their component.
    pub fn plain(work: &UnitWork) -> Self {
        let op = |op: &UnitOp, needs: Vec<u32>| FormOp {
            component: op.component,
            step: Step::Main,
            tokens: Tokens::ALL,
            work: op.work.clone(),
            needs,
        };
        let chain = |ops: &[UnitOp]| -> Vec<FormOp> {
            let before = (0..).map(|at: u32| at.checked_sub(1).into_iter().collect());
            ops.iter().zip(before).map(|(unit_op, needs)| op(unit_op, needs)).collect()
        };
        let i = chain(&work.i);
        let last_of = |component| i.iter().rposition(|op| op.component == component);
        let w = work
            .w
            .iter()
            .map(|unit_op| op(unit_op, last_of(unit_op.component).map(|at| at as u32).into_iter().collect()));
        let w = w.collect();
        Self { f: chain(&work.f), i, w, exchange_buffer: work.exchange_buffer }.after(&work.again)
    }

    /// The form where these ops, one after the other, compute the layer again before I reads what they make.
    pub fn after(mut self, again: &[UnitOp]) -> Self {
        let added = again.len() as u32;
        let made = |component: Component| again.iter().rposition(|op| op.component == component);
        for op in &mut self.i {
            op.needs.iter_mut().for_each(|need| *need += added);
            if !op.work.is_exchange() {
                op.needs.extend(made(op.component).map(|at| at as u32));
                op.needs.sort_unstable();
            }
        }
        self.w.iter_mut().for_each(|op| op.needs.iter_mut().for_each(|need| *need += added));
        let ops = (0..).zip(again).map(|(at, op): (u32, &UnitOp)| FormOp {
            component: op.component,
            step: Step::Again,
            tokens: Tokens::ALL,
            work: op.work.clone(),
            needs: at.checked_sub(1).into_iter().collect(),
        });
        self.i.splice(0..0, ops);
        self
    }
}
