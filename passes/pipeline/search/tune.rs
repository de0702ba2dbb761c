//! Local search over rules.
//!
//! A change of one rank's order seldom helps alone: others have to follow. Here the rule is changed instead, for one rank, one
//! lane or one step, and the list scheduler lets everything follow.

use super::clock::{Clock, Score};
use super::critical::critical_path;
use super::dispatch::{Exception, Rule, dispatch};
use super::draw::Draw;
use super::model::{Model, Orders};
use super::{Goal, Work};

/// A change is kept if what it makes is no worse than what stood so many changes ago (late acceptance).
const LATENESS: usize = 20;

/// An exception is made at most so many steps before the step that the makespan hangs on.
const BEFORE: usize = 4;

/// Nominal times stay below this, longer than any timetable, so that they can be added up.
const LATEST: u64 = 1 << 60;

/// The best orders that rules near `rule` make, and their score. Stops where the goal is reached.
pub(super) fn tune(model: &Model, goal: Goal, rule: Rule, work: &mut Work, draw: &mut Draw) -> Option<(Score, Orders)> {
    let mut clock = Clock::new(model);
    let mut rule = rule;
    let mut orders = dispatch(model, &rule)?;
    let mut current = clock.score(model, &orders, goal.objective)?;
    let mut critical = critical_path(model, &clock, &orders, goal.next(current));
    let mut best = (current, orders.clone());
    let mut before = [current; LATENESS];
    let mut changes = 0;
    while !goal.reached(best.0) && work.schedule(model) {
        changes += 1;
        let mut next = rule.clone();
        change(model, &orders, &critical, &mut next, draw);
        let Some(made) = dispatch(model, &next) else { continue };
        let Some(score) = clock.score(model, &made, goal.objective) else { continue };
        let late = &mut before[changes % LATENESS];
        if score <= current.max(*late) {
            (current, rule, orders) = (score, next, made);
            critical = critical_path(model, &clock, &orders, goal.next(current));
            if current < best.0 {
                best = (current, orders.clone());
            }
        }
        *late = current.min(*late);
    }
    Some(best)
}

/// Changes one thing about a rule.
fn change(model: &Model, orders: &Orders, critical: &[(usize, usize)], rule: &mut Rule, draw: &mut Draw) {
    let rank = draw.below(model.of_rank.len());
    let at = draw.below(model.lanes.len());
    let lane = &model.lanes[at];
    match draw.below(9) {
        0 => {
            let cap = rule.caps[at].min(lane.count as u32);
            rule.caps[at] = if draw.coin() { cap + 1 } else { cap.saturating_sub(1).max(1) };
        }
        1 => rule.behind[rank] = draw.one_of(&[0, 1, 2, 3, 4, u32::MAX]),
        2 => rule.slack[lane.rank] = draw.one_of(&[0, lane.w / 4, lane.w / 2, lane.w, u64::MAX / 4]),
        3 => rule.patience[lane.rank] = draw.one_of(&[0, lane.f / 4, lane.f / 2, lane.i / 2]),
        4 => {
            let by = lane.f.max(lane.i) / 2;
            let times = if draw.coin() { &mut rule.forward } else { &mut rule.backward };
            times[at] = if draw.coin() { (times[at] + by).min(LATEST) } else { times[at].saturating_sub(by) };
        }
        5 => rule.release[at] = draw.one_of(&[0, lane.f / 2, lane.f, 2 * lane.f]),
        _ => {
            let (rank, at) = match draw.below(4) {
                0 => (rank, draw.below(orders[rank].len().max(1))),
                _ if critical.is_empty() => return,
                _ => draw.one_of(critical),
            };
            let at = at.saturating_sub(draw.below(BEFORE));
            let exceptions = &mut rule.exceptions[rank];
            if exceptions.len() <= at {
                exceptions.resize(at + 1, Exception::None);
            }
            exceptions[at] = match exceptions[at] {
                Exception::None => draw.one_of(&Exception::ALL),
                _ => Exception::None,
            };
        }
    }
}
