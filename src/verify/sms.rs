//! Rule `sms`: every op has SMs, and ops of a program that may run at the same time have no more than the GPU has.
//!
//! A copy engine needs no SMs, so a copy has none, and every other op has some.
//!
//! Ops of one stream never run at the same time, so what counts are pairs of a kernel and an exchange of which neither
//! precedes the other.

use std::collections::VecDeque;

use crate::ir::{Program, Stream, Work};
use crate::plan::Plan;

use super::programs::{op_name, precedence};
use super::report::{Report, Rule, Violation};

const RULE: Rule = Rule::Sms;

/// Checks all programs.
pub fn check(plan: &Plan, report: &mut Report) {
    let all = plan.machine.sms;
    for (number, program) in plan.programs.iter().enumerate() {
        for (index, op) in program.ops.iter().enumerate() {
            let copy = matches!(op.work, Work::Copy { .. });
            if op.sms > all || copy != (op.sms == 0) {
                report.add(RULE, || {
                    let message = match copy {
                        true => format!("may use {} SMs where a copy engine needs none", op.sms),
                        false => format!("may use {} SMs of a GPU that has {all}", op.sms),
                    };
                    Violation::program(RULE, plan, number as u32, None, op_name(number, index, op), message)
                });
            }
        }
        for (kernel, exchange) in crowded(program, all) {
            report.add(RULE, || {
                let (first, second) = (&program.ops[kernel], &program.ops[exchange]);
                let message = format!(
                    "has {} SMs and may run beside op {exchange} ({} of unit {}) with {}: {} SMs on a GPU that has {all}",
                    first.sms,
                    second.what(),
                    second.unit,
                    second.sms,
                    u64::from(first.sms) + u64::from(second.sms)
                );
                Violation::program(RULE, plan, number as u32, None, op_name(number, kernel, first), message)
            });
        }
    }
}

/// For each kernel that may run beside an exchange with which it has more than `all` SMs: the kernel, and the exchange with
/// the most SMs of those.
///
/// The exchanges that may run beside a kernel are a run of the communication stream: after those that precede it, before
/// those that it precedes. Both ends only move forward from kernel to kernel, so the largest is kept in a sliding window.
fn crowded(program: &Program, all: u32) -> Vec<(usize, usize)> {
    let precedence = precedence(program);
    let on = |stream| (0..program.ops.len()).filter(move |&op| program.ops[op].stream() == stream);
    let exchanges: Vec<usize> = on(Stream::Comm).collect();
    let mut found = Vec::new();
    // Exchanges of the window (as places on their stream) that are larger than all later ones of it.
    let mut window: VecDeque<usize> = VecDeque::new();
    let mut end = 0;
    for kernel in on(Stream::Compute) {
        while end < exchanges.len() && !precedence.ended_before(kernel, exchanges[end]) {
            let sms = |place: usize| program.ops[exchanges[place]].sms;
            while window.back().is_some_and(|&place| sms(place) <= sms(end)) {
                window.pop_back();
            }
            window.push_back(end);
            end += 1;
        }
        let start = precedence.clock(kernel)[Stream::Comm as usize] as usize;
        while window.front().is_some_and(|&place| place < start) {
            window.pop_front();
        }
        let Some(&largest) = window.front() else { continue };
        let exchange = exchanges[largest];
        if u64::from(program.ops[kernel].sms) + u64::from(program.ops[exchange].sms) > u64::from(all) {
            found.push((kernel, exchange));
        }
    }
    found
}
