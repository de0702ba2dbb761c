//! Pictures of a layer pair: its steady state on the two engines, and the sweep over communication SMs.

use std::fmt::Write as _;

use crate::ir::{Component, Phase, Step, Stream};
use crate::passes::overlap::cyclic::{CyclicOp, CyclicProblem, CyclicSchedule};
use crate::units::Nanos;

/// `attn(F)`, `dispatch(B)`, `mlp(W)`. The backward of an exchange is B; of what has weights, I and W.
pub fn name(op: &CyclicOp) -> String {
    let component = match op.component {
        Component::Attention => "attn",
        Component::Dispatch => "dispatch",
        Component::Mlp => "mlp",
        Component::Combine => "combine",
        Component::Embedding => "embedding",
        Component::Head => "head",
    };
    let phase = match (op.phase, op.engine) {
        (Phase::F, _) => "F",
        (Phase::I, Stream::Comm) => "B",
        (Phase::I, Stream::Compute) => "I",
        (Phase::W, _) => "W",
    };
    let step = match op.step {
        Step::Main => "",
        Step::Shared => " shared",
        Step::Again => " again",
        Step::Quantise => " quantise",
        Step::Pack => " pack",
    };
    let tokens = match op.tokens.is_all() {
        true => String::new(),
        false => format!(" {}/{}", u64::from(op.tokens.part) + 1, op.tokens.parts),
    };
    format!("{component}({phase}){step}{tokens}")
}

/// The ops (by index) in the order in which one period launches them.
pub fn launches(problem: &CyclicProblem, schedule: &CyclicSchedule) -> Vec<usize> {
    let mut order: Vec<usize> = (0..problem.ops.len()).collect();
    order.sort_by_key(|&at| (schedule.starts[at].0 % schedule.unslowed.0.max(1), at));
    order
}

/// One period on both engines, in `width` columns. An op that goes on past the end comes in again at the start.
pub fn timeline(problem: &CyclicProblem, schedule: &CyclicSchedule, width: usize) -> String {
    let columns = width.saturating_sub(12).max(20);
    let period = schedule.period.0.max(1);
    let column = |time: Nanos| (time.0 as f64 / period as f64 * columns as f64).round() as usize;
    let runs = problem.one_period(schedule);
    let mut text = String::new();
    for (engine, label) in [(Stream::Compute, "compute"), (Stream::Comm, "comm")] {
        let mut line = vec!['·'; columns];
        for (op, span) in runs.iter().map(|&(op, span)| (&problem.ops[op], span)).filter(|(op, _)| op.engine == engine)
        {
            let from = column(span.start).min(columns - 1);
            let to = column(span.end).clamp(from + 1, columns);
            let name: Vec<char> = name(op).chars().collect();
            for (offset, place) in line[from..to].iter_mut().enumerate() {
                // The first column is the border; the name stands behind it, as far as there is room.
                let inside = offset.checked_sub(1).and_then(|letter| name.get(letter).copied());
                *place = if offset == 0 { '▏' } else { inside.unwrap_or('─') };
            }
        }
        let _ = writeln!(text, "{label:>8}  {}", line.into_iter().collect::<String>());
    }
    let _ =
        writeln!(text, "{:>8}  0{:>width$}", "", format!("{:.3} ms", schedule.period.millis()), width = columns - 1);
    text
}

/// A bar for each number of SMs, longest for the longest period; the shortest is marked.
pub fn sweep(points: &[(u32, Nanos)], width: usize) -> String {
    let columns = width.saturating_sub(34).max(10);
    let longest = points.iter().map(|(_, period)| period.0).max().unwrap_or(0).max(1);
    let shortest = points.iter().min_by_key(|(sms, period)| (*period, *sms)).map(|(sms, _)| *sms);
    let mut text = String::new();
    for &(sms, period) in points {
        let bar = "█".repeat((period.0 as f64 / longest as f64 * columns as f64).round() as usize);
        let mark = if Some(sms) == shortest { " ◀ best" } else { "" };
        let _ = writeln!(text, "{sms:>8}  {:>10.3} ms  {bar}{mark}", period.millis());
    }
    text
}
