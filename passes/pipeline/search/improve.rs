//! Local search over orders: simulated annealing, in whole numbers.
//!
//! A move changes the order of one rank, mostly around a step that the length hangs on: a step goes elsewhere, a backward is
//! split or made whole, a pair is formed or taken apart. What breaks memory or leaves ranks waiting for each other is not
//! taken. A move is an exact trial: everything is timed anew.

use super::clock::{Clock, Score};
use super::critical::critical_path;
use super::draw::Draw;
use super::model::{Model, Orders, Step};
use super::{Goal, Work};

/// The search is heated and cooled down once for each: the most that a move may lose at first, in quarters of the longest
/// part. Cool rounds polish, hot ones find other ways.
const HEATS: [u64; 8] = [1, 4, 2, 8, 1, 4, 2, 1];

/// How far a step may go at once.
const FARTHEST: usize = 24;

/// How far apart an F and a B may stand that become a pair.
const APART: usize = 6;

/// The best orders found from `orders` on, and their score. Stops where the goal is reached.
pub(super) fn improve(
    model: &Model,
    goal: Goal,
    orders: Orders,
    work: &mut Work,
    draw: &mut Draw,
) -> Option<(Score, Orders)> {
    let mut clock = Clock::new(model);
    let mut current = clock.score(model, &orders, goal.objective)?;
    let mut critical = critical_path(model, &clock, &orders, goal.next(current));
    let mut best = (current, orders.clone());
    let mut orders = orders;
    let round = (work.left / HEATS.len() as u64).max(1);
    let quarter = quarter(model);
    while !goal.reached(best.0) && !critical.is_empty() && work.time(model) {
        let Some((rank, changed)) = propose(model, &orders, &critical, draw) else { continue };
        if !model.allows(rank, &changed) {
            continue;
        }
        let old = std::mem::replace(&mut orders[rank], changed);
        let hottest = quarter.saturating_mul(HEATS[(work.left / round) as usize % HEATS.len()]);
        // The quotient is below `hottest`.
        let heat = (u128::from(hottest) * u128::from(work.left % round) / u128::from(round)) as u64;
        let limit = energy(model, current) + u128::from(draw.below_time(heat + 1));
        match clock.score(model, &orders, goal.objective).filter(|&score| energy(model, score) <= limit) {
            Some(score) => {
                current = score;
                critical = critical_path(model, &clock, &orders, goal.next(current));
                if current < best.0 {
                    best = (current, orders.clone());
                }
            }
            None => orders[rank] = old,
        }
    }
    Some(best)
}

/// One number for a score, so that small losses of one part can be weighed against gains of another. The first part counts as
/// much as if every rank ended so much later, 8 times; the second, twice.
fn energy(model: &Model, score: Score) -> u128 {
    let ranks = model.of_rank.len() as u128;
    u128::from(score.first) * 8 * ranks + u128::from(score.second) * 2 * ranks + u128::from(score.ends)
}

/// What a quarter of the longest part is worth as the first part of a score.
fn quarter(model: &Model) -> u64 {
    let longest = model.lanes.iter().map(|lane| lane.f.max(lane.i).max(lane.w)).max().unwrap_or(0);
    longest.saturating_mul(2 * model.of_rank.len() as u64)
}

/// A rank and its changed order; not necessarily an allowed one.
fn propose(model: &Model, orders: &Orders, critical: &[(usize, usize)], draw: &mut Draw) -> Option<(usize, Vec<Step>)> {
    // Seven of eight moves are around what is critical.
    let (rank, at) = match draw.below(8) {
        0 => {
            let rank = draw.below(orders.len());
            (rank, draw.below(orders[rank].len().max(1)))
        }
        _ => draw.one_of(critical),
    };
    let mut steps = orders[rank].clone();
    let step = *steps.get(at)?;
    if draw.below(4) == 0 && reshape(model, &mut steps, at, draw) {
        return Some((rank, steps));
    }
    // Short ways are tried more often.
    let reach = 1 + draw.below(FARTHEST);
    let way = 1 + draw.below(reach);
    let to = if draw.coin() { at.saturating_sub(way) } else { (at + way).min(steps.len() - 1) };
    if to == at {
        return None;
    }
    steps.remove(at);
    steps.insert(to, step);
    Some((rank, steps))
}

/// Splits or joins the step at `at` with others of its rank; false where there is nothing to do.
fn reshape(model: &Model, steps: &mut Vec<Step>, at: usize, draw: &mut Draw) -> bool {
    match steps[at] {
        Step::Pair(f, b) => {
            let parts = if draw.coin() { [Step::F(f), Step::B(b)] } else { [Step::B(b), Step::F(f)] };
            steps.splice(at..=at, parts);
            true
        }
        Step::B(lane) => {
            if draw.coin() && pair_up(model, steps, at, draw) {
                return true;
            }
            steps.splice(at..=at, [Step::I(lane), Step::W(lane)]);
            true
        }
        Step::I(lane) => {
            let Some(weight) = steps[at..].iter().position(|&step| step == Step::W(lane)) else { return false };
            steps[at] = Step::B(lane);
            steps.remove(at + weight);
            if draw.coin() {
                pair_up(model, steps, at, draw);
            }
            true
        }
        Step::F(_) => pair_up(model, steps, at, draw),
        Step::W(_) => false,
    }
}

/// Overlaps the F or B at `at` with a B or F near it, where that is shorter. The pair stands where one of the two stood.
fn pair_up(model: &Model, steps: &mut Vec<Step>, at: usize, draw: &mut Draw) -> bool {
    let pair = |other: usize| match (steps[at], steps[other]) {
        (Step::F(f), Step::B(b)) | (Step::B(b), Step::F(f)) => {
            (model.saving(f as usize, b as usize) > 0).then_some(Step::Pair(f, b))
        }
        _ => None,
    };
    let near = at.saturating_sub(APART)..(at + APART + 1).min(steps.len());
    let pairs: Vec<(usize, Step)> = near.filter_map(|other| Some((other, pair(other)?))).collect();
    if pairs.is_empty() {
        return false;
    }
    let (other, pair) = draw.one_of(&pairs);
    let (stays, goes) = if draw.coin() { (at, other) } else { (other, at) };
    steps[stays] = pair;
    steps.remove(goes);
    true
}
