//! Local search over orders: simulated annealing, in whole numbers.
//!
//! A move changes the order of one rank, mostly around a step that the length hangs on (`moves`). What breaks memory or leaves ranks
//! waiting for each other is not taken. A move is an exact trial: everything is timed anew.

use super::clock::{Clock, Score};
use super::critical::critical_path;
use super::draw::Draw;
use super::model::{Model, Orders};
use super::moves::Moves;
use super::{Goal, Work};

/// The search is heated and cooled down once for each: the most that a move may lose at first, in quarters of the longest
/// part. Cool rounds polish, hot ones find other ways.
const HEATS: [u64; 8] = [1, 4, 2, 8, 1, 4, 2, 1];

/// The best orders found from `orders` on by such moves, and their score. Stops where the goal is reached.
pub(super) fn improve(
    model: &Model,
    goal: Goal,
    orders: Orders,
    moves: &mut impl Moves,
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
        // Seven of eight moves are around what is critical.
        let (rank, at) = match draw.below(8) {
            0 => {
                let rank = draw.below(orders.len());
                (rank, draw.below(orders[rank].len().max(1)))
            }
            _ => draw.one_of(&critical),
        };
        let Some((rank, changed)) = moves.propose(model, &orders, (rank, at), draw) else { continue };
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
                moves.take();
                current = score;
                critical = critical_path(model, &clock, &orders, goal.next(current));
                if current < best.0 {
                    moves.is_best();
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
