//! What no order of a chunk program can beat, whatever its computations share SMs with.

use super::Budget;
use crate::ir::{Op, Work};
use crate::machine::Machine;
use crate::units::Nanos;

/// A duration that no program of these ops is below, whatever their order, whichever computations share the SMs, and which of
/// the allowed numbers of SMs each exchange gets. The largest of three bounds.
pub fn bound(ops: &[Op], machine: &Machine, budget: &Budget) -> Nanos {
    let terms = Terms::new(ops, machine, budget);
    let mut bound = chain(ops, &terms).max(taken(&terms));
    if budget.offered.is_empty() {
        bound = bound.max(trade(&terms, budget.sms));
    }
    // Sums and quotients are rounded, by less than this; a program takes whole nanoseconds.
    Nanos((bound * (1.0 - 1e-12)).ceil() as u64)
}

/// The ops of a program, as bounds need them. Times in ns.
struct Terms<'a> {
    machine: &'a Machine,
    computations: Vec<&'a Work>,
    /// Each exchange with the numbers of SMs that it may have.
    exchanges: Vec<(&'a Work, Vec<u32>)>,
    budget: &'a Budget,
}

impl<'a> Terms<'a> {
    fn new(ops: &'a [Op], machine: &'a Machine, budget: &'a Budget) -> Self {
        let (exchanges, computations): (Vec<&Work>, Vec<&Work>) =
            ops.iter().map(|op| &op.work).partition(|work| work.is_exchange());
        let exchanges = exchanges.into_iter().map(|work| (work, sms_of(work, budget))).collect();
        Self { machine, computations, exchanges, budget }
    }

    fn alone(&self, work: &Work, sms: u32) -> f64 {
        self.machine.duration(work, sms).as_f64()
    }

    /// The share of its speed alone that `work` keeps beside `other`, at most 1.
    fn speed(&self, work: &Work, sms: u32, of: f64, other: &Work, other_sms: u32) -> f64 {
        let beside = self.machine.duration_beside(work, sms, other, other_sms).as_f64();
        if beside > 0.0 { (of / beside).min(1.0) } else { 1.0 }
    }

    /// The shortest time of an exchange.
    fn shortest(&self, work: &Work) -> f64 {
        sms_of(work, self.budget).iter().map(|&sms| self.alone(work, sms)).fold(f64::INFINITY, f64::min)
    }
}

fn sms_of(work: &Work, budget: &Budget) -> Vec<u32> {
    match work {
        Work::Copy { .. } => vec![0],
        _ => [budget.sms].into_iter().chain(budget.offered.iter().copied()).collect(),
    }
}

/// The longest chain of needs, each op with all the SMs that it may have and nothing beside it.
fn chain(ops: &[Op], terms: &Terms) -> f64 {
    let mut ends: Vec<f64> = Vec::with_capacity(ops.len());
    for op in ops {
        let time = match op.work.is_exchange() {
            true => terms.shortest(&op.work),
            false => terms.alone(&op.work, terms.machine.sms),
        };
        let start = op.needs.iter().map(|&need| ends[need as usize]).fold(0.0, f64::max);
        ends.push(start + time);
    }
    ends.into_iter().fold(0.0, f64::max)
}

/// What exchanges take from computation. While one runs, computation goes on at a share v of its full speed, and the exchange
/// at a share w of its own; so of its time d at least (1 - v) d / w is lost to computation, or all of d if nothing runs beside
/// it. The program takes at least all computation at full speed and what is lost, and at least all exchanges one after the
/// other; so at least any mean of the two, whichever SMs each exchange gets.
fn taken(terms: &Terms) -> f64 {
    let full: Vec<f64> = terms.computations.iter().map(|work| terms.alone(work, terms.machine.sms)).collect();
    let computation: f64 = full.iter().sum();
    // Of each exchange and number of SMs: its time, and what of it is lost.
    let mut choices: Vec<Vec<(f64, f64)>> = Vec::with_capacity(terms.exchanges.len());
    for (exchange, numbers) in &terms.exchanges {
        let choice = |&sms: &u32| {
            let time = terms.alone(exchange, sms);
            let rest = terms.machine.sms - sms;
            let (mut v, mut w) = (0.0_f64, 0.0_f64);
            for (work, &full) in terms.computations.iter().zip(&full) {
                v = v.max(terms.speed(work, rest, full, exchange, sms));
                w = w.max(terms.speed(exchange, sms, time, work, rest));
            }
            let lost = if w > 0.0 { time.min((1.0 - v) * time / w) } else { time };
            (time, lost)
        };
        choices.push(numbers.iter().map(choice).collect());
    }
    let mean = |weight: f64| {
        let least = |choices: &Vec<(f64, f64)>| {
            let mixed = choices.iter().map(|(time, lost)| weight * lost + (1.0 - weight) * time);
            mixed.fold(f64::INFINITY, f64::min)
        };
        weight * computation + choices.iter().map(least).sum::<f64>()
    };
    (0..=8).map(|eighths| mean(f64::from(eighths) / 8.0)).fold(0.0, f64::max)
}

/// A trade, where all exchanges have the same SMs: a computation either runs beside no exchange, with all SMs, and all
/// exchanges need time besides; or it may run beside some, with the SMs that they leave.
///
/// If the computations apart take p together, the others r with fewer SMs, and the exchanges x, then the program takes p and
/// at least the time in which r and x are done side by side. While both run, r loses at least a share a of its speed and x a
/// share b; so that is at least r + a x / (1 - b) if x is done first, else x + b r / (1 - a). The best choice, of parts of
/// computations even, is a bound.
fn trade(terms: &Terms, comm_sms: u32) -> f64 {
    let exchanges: f64 = terms.exchanges.iter().map(|(work, sms)| terms.alone(work, sms[0])).sum();
    let all = terms.machine.sms;
    let mut times: Vec<(f64, f64)> = Vec::with_capacity(terms.computations.len());
    let (mut a, mut b) = (1.0_f64, 1.0_f64);
    for work in &terms.computations {
        // Copy engines leave all SMs.
        let copies = terms.exchanges.iter().any(|(_, sms)| sms[0] == 0);
        let rest = if copies { all } else { all - comm_sms };
        let beside = terms.alone(work, rest);
        times.push((terms.alone(work, all).min(beside), beside));
        for (exchange, sms) in &terms.exchanges {
            a = a.min(1.0 - terms.speed(work, all - sms[0], terms.alone(work, all - sms[0]), exchange, sms[0]));
            b = b.min(1.0 - terms.speed(exchange, sms[0], terms.alone(exchange, sms[0]), work, all - sms[0]));
        }
    }
    if exchanges == 0.0 {
        return times.iter().map(|(alone, _)| alone).sum();
    }
    if times.is_empty() || a >= 1.0 || b >= 1.0 {
        return exchanges;
    }
    // Where the exchanges decide, nothing is won by moving a computation apart.
    let cheapest = times.iter().map(|(alone, beside)| alone / beside.max(1e-9)).fold(1.0, f64::min);
    b = b.min((1.0 - a) * cheapest);
    // Those first that gain most for their time.
    times.sort_by(|one, other| (other.1 * one.0).total_cmp(&(one.1 * other.0)));
    let mut apart = 0.0;
    let mut rest: f64 = times.iter().map(|(_, beside)| beside).sum();
    // What is left beside the exchanges when both take equally long.
    let even = exchanges * (1.0 - a) / (1.0 - b);
    for (alone, beside) in times {
        if rest <= even {
            break;
        }
        let share = if beside > 0.0 { ((rest - even) / beside).min(1.0) } else { 1.0 };
        apart += share * alone;
        rest -= share * beside;
    }
    let together = (rest + a * exchanges / (1.0 - b)).max(exchanges + b * rest / (1.0 - a));
    apart + together
}
