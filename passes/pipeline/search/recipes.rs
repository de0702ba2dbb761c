//! Recipes: the few numbers that rules are made from, and a descent over them.
//!
//! Every number of a recipe is tried at each of its values while the others stand still, as long as that helps. A handful of
//! starts, one for each way to treat backwards and pairs, makes up for the descent's short sight.

use std::collections::BTreeMap;

use super::clock::{Clock, Score};
use super::dispatch::{Pairing, Rule, Whole, dispatch};
use super::model::{Guard, Model};
use super::{Objective, Work};

/// Chunks in flight: quarters of what keeps the busiest rank at work, and how many more. The first is no cap at all.
const CAPS: [(u64, u64); 9] = [(1 << 20, 0), (4, 0), (5, 0), (6, 0), (6, 1), (8, 0), (8, 1), (12, 0), (16, 1)];

/// Quarters of the busiest rank's work for one micro-batch: with none, what is first on the way of a micro-batch is due
/// first; with many, what is of the oldest micro-batch.
const PERIODS: [u64; 8] = [0, 2, 3, 4, 6, 8, 16, 1 << 12];

/// Backwards whose W may be due before a W goes first.
const BEHIND: [u32; 5] = [u32::MAX, 2, 1, 0, 4];

/// Quarters of the longest part.
const SLACKS: [u64; 4] = [0, 1, 2, 1 << 20];

/// Quarters of the longest part.
const PATIENCES: [u64; 3] = [0, 1, 2];

/// `Within` counts halves of the longest part.
const PAIRINGS: [Pairing; 4] = [Pairing::Ready, Pairing::Within(1), Pairing::Within(2), Pairing::Never];

const WHOLES: [Whole; 3] = [Whole::Never, Whole::WhileForwards, Whole::Always];

/// Quarters of a micro-batch's way to the last stage and back, by which the micro-batches of each direction start later.
const RELEASES: [[u64; 2]; 5] = [[0, 0], [0, 4], [4, 0], [0, 2], [2, 0]];

/// Values of caps and period that a descent starts from: nothing held back; 1F1B; GPipe.
const STARTS: [(usize, usize); 3] = [(0, 3), (3, 7), (0, 0)];

/// How often a descent goes over all numbers.
const ROUNDS: usize = 3;

/// By place in the tables above: caps, period, behind, slack, patience, pairing, whole, release, and the
/// model's guards.
pub(super) type Recipe = [usize; 9];

/// What makes rules from recipes, for one problem.
pub(super) struct Recipes {
    /// Per lane, start of F where nothing is in the way of a micro-batch.
    forward: Vec<u64>,
    /// Per lane, start of I there.
    backward: Vec<u64>,
    /// Work of the busiest rank for one micro-batch (bidirectional: for one of each direction).
    period: u64,
    /// Per lane, from the start of F to the end of I.
    round: Vec<u64>,
    /// Per lane: it is of the second direction.
    second: Vec<bool>,
    /// The longest F, I or W.
    longest: u64,
    ranks: usize,
    guards: &'static [Guard],
    /// Per number of a recipe, how many values it has.
    sizes: Recipe,
}

impl Recipes {
    pub fn new(model: &Model) -> Self {
        let lanes = &model.lanes;
        let mut forward = vec![0; lanes.len()];
        let mut backward = vec![0; lanes.len()];
        for (at, lane) in lanes.iter().enumerate() {
            if let Some((before, hop)) = lane.before {
                forward[at] = forward[before] + lanes[before].f + hop;
            }
        }
        for (at, lane) in lanes.iter().enumerate().rev() {
            backward[at] = match lane.after {
                Some((after, hop)) => backward[after] + lanes[after].i + hop,
                None => forward[at] + lane.f,
            };
        }
        let period = model.of_rank.iter().map(|held| held.iter().map(|&at| lanes[at].work()).sum()).max();
        let round = (0..lanes.len()).map(|at| backward[at] + lanes[at].i - forward[at]).collect();
        let longest = lanes.iter().map(|lane| lane.f.max(lane.i).max(lane.w)).max();
        let releases = if lanes.iter().any(|lane| lane.first > 0) { RELEASES.len() } else { 1 };
        let pairings = if model.pairs_help() { PAIRINGS.len() } else { 1 };
        Self {
            forward,
            backward,
            period: period.unwrap_or(0).max(1),
            round,
            second: lanes.iter().map(|lane| lane.first > 0).collect(),
            longest: longest.unwrap_or(0),
            ranks: model.of_rank.len(),
            guards: model.guards,
            sizes: [
                CAPS.len(),
                PERIODS.len(),
                BEHIND.len(),
                SLACKS.len(),
                PATIENCES.len(),
                pairings,
                WHOLES.len(),
                releases,
                model.guards.len(),
            ],
        }
    }

    /// Recipes by the score of what they make, the best first, no two with the same score; as many as `work` allows, but at
    /// least those that descents start from.
    pub fn descend(&self, model: &Model, objective: Objective, work: &mut Work) -> Vec<(Score, Recipe)> {
        let mut taste = Taste { recipes: self, model, objective, clock: Clock::new(model), known: BTreeMap::new() };
        let starts = self.starts();
        for &start in &starts {
            work.schedule(model);
            taste.score(start);
        }
        'descents: for start in starts {
            let Some(mut best) = taste.score(start) else { continue };
            let mut recipe = start;
            for _ in 0..ROUNDS {
                let before = recipe;
                for number in 0..recipe.len() {
                    for value in 0..self.sizes[number] {
                        let mut next = recipe;
                        next[number] = value;
                        if !taste.known.contains_key(&next) && !work.schedule(model) {
                            break 'descents;
                        }
                        if let Some(score) = taste.score(next).filter(|&score| score < best) {
                            (best, recipe) = (score, next);
                        }
                    }
                }
                if recipe == before {
                    break;
                }
            }
        }
        let mut scores: Vec<(Score, Recipe)> =
            taste.known.into_iter().filter_map(|(recipe, score)| Some((score?, recipe))).collect();
        scores.sort_unstable();
        scores.dedup_by_key(|(score, _)| *score);
        scores
    }

    /// Recipes to start from.
    fn starts(&self) -> Vec<Recipe> {
        let mut starts = Vec::new();
        for (caps, period) in STARTS {
            for whole in 0..self.sizes[6] {
                starts.extend((0..self.sizes[5]).map(|pairing| [caps, period, 0, 0, 0, pairing, whole, 0, 0]));
            }
        }
        starts
    }

    pub fn rule(&self, recipe: Recipe) -> Rule {
        let [caps, period, behind, slack, patience, pairing, whole, release, guard] = recipe;
        let (quarters, more) = CAPS[caps];
        let cap = |round: &u64| {
            let chunks = u128::from(*round) * u128::from(quarters) / 4;
            let chunks = chunks.div_ceil(u128::from(self.period)) + u128::from(more);
            chunks.clamp(1, u128::from(u32::MAX)) as u32
        };
        // Times are below 2^52 and the tables below 2^21: a product that is cut off here is longer than any timetable.
        let quarters = |of: u64, quarters: u64| (u128::from(of) * u128::from(quarters) / 4).min(1 << 52) as u64;
        Rule {
            forward: self.forward.clone(),
            backward: self.backward.clone(),
            guard: self.guards[guard],
            period: quarters(self.period, PERIODS[period]),
            release: self
                .second
                .iter()
                .map(|&second| quarters(self.round[0], RELEASES[release][usize::from(second)]))
                .collect(),
            caps: self.round.iter().map(cap).collect(),
            whole: WHOLES[whole],
            pairing: match PAIRINGS[pairing] {
                Pairing::Within(halves) => Pairing::Within(self.longest * halves / 2),
                pairing => pairing,
            },
            behind: vec![BEHIND[behind]; self.ranks],
            slack: vec![quarters(self.longest, SLACKS[slack]); self.ranks],
            patience: vec![quarters(self.longest, PATIENCES[patience]); self.ranks],
            exceptions: vec![Vec::new(); self.ranks],
        }
    }
}

/// Scores of recipes, each worked out once.
struct Taste<'a> {
    recipes: &'a Recipes,
    model: &'a Model,
    objective: Objective,
    clock: Clock,
    known: BTreeMap<Recipe, Option<Score>>,
}

impl Taste<'_> {
    fn score(&mut self, recipe: Recipe) -> Option<Score> {
        if let Some(score) = self.known.get(&recipe) {
            return *score;
        }
        let orders = dispatch(self.model, &self.recipes.rule(recipe));
        let score = orders.and_then(|orders| self.clock.score(self.model, &orders, self.objective));
        self.known.insert(recipe, score);
        score
    }
}
