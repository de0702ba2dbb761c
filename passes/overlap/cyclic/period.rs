//! The shortest period of a system of cyclic precedences, exactly: its largest cycle ratio.

use crate::units::Nanos;

/// `to` starts at least `weight` after `from` of `distance` repetitions before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Index of the op before.
    pub from: usize,
    /// Index of the op after.
    pub to: usize,
    /// Nanoseconds, not negative.
    pub weight: i64,
    /// Repetitions; may be negative.
    pub distance: i64,
}

/// A period and start times that keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The shortest, rounded up to a nanosecond.
    pub period: Nanos,
    /// Earliest start of each op in repetition 0, from 0.
    pub starts: Vec<i64>,
}

/// The shortest period, at least `least`, with which all edges can be kept; `None` if there is none.
///
/// At a given period, starts exist exactly if no cycle has more weight than period · distance. Such a cycle, once found, says
/// how long the period must at least be (or, with no distance, that none will do), so few rounds are needed.
pub fn period(ops: usize, edges: &[Edge], least: Nanos) -> Option<Timing> {
    let mut period = i64::try_from(least.0).ok()?;
    loop {
        match starts(ops, edges, period) {
            Ok(starts) => return Some(Timing { period: Nanos(period as u64), starts }),
            Err(Cycle { distance, .. }) if distance <= 0 => return None,
            Err(Cycle { weight, distance }) => period = (weight + distance - 1) / distance,
        }
    }
}

/// A cycle that contradicts the period.
struct Cycle {
    weight: i64,
    distance: i64,
}

/// Longest paths from everywhere (Bellman–Ford), or a cycle of positive length.
fn starts(ops: usize, edges: &[Edge], period: i64) -> Result<Vec<i64>, Cycle> {
    let mut starts = vec![0i64; ops];
    let mut through: Vec<Option<usize>> = vec![None; ops];
    for round in 0..=ops {
        let mut moved = None;
        for (number, edge) in edges.iter().enumerate() {
            let start = starts[edge.from] + edge.weight - period * edge.distance;
            if start > starts[edge.to] {
                starts[edge.to] = start;
                through[edge.to] = Some(number);
                moved = Some(edge.to);
            }
        }
        match moved {
            None => return Ok(starts),
            Some(op) if round == ops => return Err(cycle(edges, &through, op, ops)),
            Some(_) => {}
        }
    }
    Ok(starts)
}

/// The cycle that the last improvements run through.
fn cycle(edges: &[Edge], through: &[Option<usize>], mut op: usize, ops: usize) -> Cycle {
    let before = |op: usize| through[op].map(|number| edges[number]);
    // After so many steps back one is on the cycle.
    for _ in 0..ops {
        op = before(op).map_or(op, |edge| edge.from);
    }
    let start = op;
    let mut cycle = Cycle { weight: 0, distance: 0 };
    while let Some(edge) = before(op) {
        cycle.weight += edge.weight;
        cycle.distance += edge.distance;
        op = edge.from;
        if op == start {
            break;
        }
    }
    cycle
}
