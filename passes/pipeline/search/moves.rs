//! Changes of a rank's order: a step goes elsewhere, a backward is split or made whole, a pair is formed or taken apart.

use super::draw::Draw;
use super::model::{Model, Orders, Step};

/// How far a step may go at once.
const FARTHEST: usize = 24;

/// How far apart an F and a B may stand that become a pair.
const APART: usize = 6;

/// What a local search tries.
pub(super) trait Moves {
    /// A rank and its changed order, for the sake of the step at a rank and place; not necessarily an allowed one.
    fn propose(
        &mut self,
        model: &Model,
        orders: &Orders,
        at: (usize, usize),
        draw: &mut Draw,
    ) -> Option<(usize, Vec<Step>)>;

    /// The latest proposal was taken.
    fn take(&mut self) {}

    /// What was taken last is the best so far.
    fn is_best(&mut self) {}
}

/// One change of one order at a time.
pub(super) struct Single;

impl Moves for Single {
    fn propose(
        &mut self,
        model: &Model,
        orders: &Orders,
        (rank, at): (usize, usize),
        draw: &mut Draw,
    ) -> Option<(usize, Vec<Step>)> {
        Some((rank, change(model, &orders[rank], at, draw)?))
    }
}

/// Steps with a change that has to do with the one at `at`.
pub(super) fn change(model: &Model, steps: &[Step], at: usize, draw: &mut Draw) -> Option<Vec<Step>> {
    let step = *steps.get(at)?;
    let mut steps = steps.to_vec();
    if draw.below(4) == 0 && reshape(model, &mut steps, at, draw) {
        return Some(steps);
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
    Some(steps)
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
