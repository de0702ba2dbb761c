//! What no order of a chunk program can beat, with the SMs that communication gets.

use crate::ir::Op;
use crate::machine::Machine;
use crate::units::Nanos;

/// A duration that no program of these ops is below, whatever their order and whichever computations share the SMs.
///
/// The larger of two. The longest chain of needs, each op with all the SMs that it may have. And a trade: a computation either
/// runs beside no exchange, with all SMs, and all exchanges need time besides; or it may run beside some, with the SMs that
/// they leave. If the computations apart take `a` together, the program takes at least `a` plus all exchanges, and at least `a`
/// plus the others' longer times. The best choice, of parts of ops even, is a bound.
pub fn bound(ops: &[Op], machine: &Machine, comm_sms: u32) -> Nanos {
    chain(ops, machine, comm_sms).max(trade(ops, machine, comm_sms))
}

fn chain(ops: &[Op], machine: &Machine, comm_sms: u32) -> Nanos {
    let mut ends: Vec<Nanos> = Vec::with_capacity(ops.len());
    for op in ops {
        let sms = if op.work.is_exchange() { comm_sms } else { machine.sms };
        let start = op.needs.iter().map(|&need| ends[need as usize]).max().unwrap_or_default();
        ends.push(start + machine.duration(&op.work, sms));
    }
    ends.into_iter().max().unwrap_or_default()
}

fn trade(ops: &[Op], machine: &Machine, comm_sms: u32) -> Nanos {
    let exchanges = ops.iter().filter(|op| op.work.is_exchange());
    // The time that exchanges and what is apart from them take, and the time of all computations.
    let mut apart = exchanges.map(|op| machine.duration(&op.work, comm_sms).0).sum::<u64>();
    let computations = ops.iter().filter(|op| !op.work.is_exchange());
    let mut times: Vec<(u64, u64)> = computations
        .map(|op| {
            let beside = machine.duration(&op.work, machine.sms - comm_sms).0;
            (machine.duration(&op.work, machine.sms).0.min(beside), beside)
        })
        .collect();
    if apart == 0 {
        return times.iter().map(|(alone, _)| Nanos(*alone)).sum();
    }
    let mut all: u64 = times.iter().map(|(_, beside)| beside).sum();
    // Those first that gain most for their time: gain / alone, compared without division.
    times.sort_by(|a, b| {
        let (gain_a, gain_b) = (u128::from(a.1 - a.0), u128::from(b.1 - b.0));
        (gain_b * u128::from(a.0)).cmp(&(gain_a * u128::from(b.0)))
    });
    for (alone, beside) in times {
        let gain = beside - alone;
        if all <= apart {
            break;
        }
        if all - gain >= apart + alone {
            (all, apart) = (all - gain, apart + alone);
            continue;
        }
        // Part of this op makes both equal.
        let share = u128::from(all - apart) * u128::from(alone) / u128::from(gain + alone).max(1);
        return Nanos(apart + share as u64);
    }
    Nanos(all.max(apart))
}
