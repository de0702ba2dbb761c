//! The search for a short timetable under memory limits.
//!
//! Candidates are the published schedules that fit, and what a memory-bounded list scheduler (`dispatch`) makes by rules.
//! Rules are made from a few numbers (`recipes`), then changed one rank or step at a time (`tune`); the orders of the
//! best are changed in turn (`improve`). So the result is never longer than a published schedule that fits.
//!
//! Beam searches (`beam`) continue many partial timetables side by side, some from nothing, most beside the best so far.
//!
//! What repeats in them, and building blocks made to be repeated (`block`), are changed with all repetitions alike (`pattern`).
//!
//! Where there are many micro-batches, a run of fewer with the same steady state is searched instead and its repeating part
//! repeated (`unroll`); the rules that were the best there are tried on the whole as well.
//!
//! Small problems are also put to the exact search, which often shows that nothing is shorter, or finds what is.
//!
//! Micro-batches of a stage and direction run in order. Everything is timed exactly.

mod beam;
mod block;
mod clock;
mod critical;
mod dispatch;
mod draw;
mod improve;
mod model;
mod moves;
mod pattern;
mod recipes;
mod tune;
mod unroll;

use super::{Exact, exact};
use crate::error::{Error, Result};
use crate::ir::{Layout, Placement, Problem, Timetable};
use crate::job::training::ScheduleKind;
use crate::units::Nanos;
use beam::Taste;
use clock::{Clock, Score};
use dispatch::{Rule, dispatch};
use draw::Draw;
use model::{Model, Orders};
use moves::Single;
use pattern::{Pattern, PatternMoves};
use recipes::Recipes;

/// What a step costs that the list scheduler places, where timing a placed one costs 1; measured.
const SCHEDULING: u64 = 6;

/// Orders, and rules, from which local searches start.
const STARTS: usize = 4;

/// Micro-batches, per rank, of the run that stands for a longer one: they fill and drain the pipeline with time between.
const SHORT_RUN: u32 = 4;

/// The least of them.
const SHORTEST_RUN: u32 = 32;

/// Rules that are tried on the whole where a shorter run was searched.
const RULES_ON_ALL: usize = 6;

/// Patterns from which local searches start.
const PATTERNS: usize = 3;

/// Timings that go into beam searches; one part in so many of them starts from nothing, the rest from what is found.
const BEAMS: u64 = 80_000_000;
const BEAMS_FROM_NOTHING: u64 = 4;

/// Partial timetables side by side: fewer are not worth it, more are not needed.
const WIDTHS: std::ops::RangeInclusive<u64> = 24..=1536;

/// One part in so many of the work that is left goes into patterns.
const PATTERNS_SHARE: usize = 4;

/// What a step costs that a pattern repeats, where timing one costs 1, at most; 0.9 to 1.3 were measured.
const REPEATING: u64 = 2;

/// A pattern is also searched with twice and with three times as many chunks in a repetition, up to so many.
const LARGEST_PATTERN: usize = 6;

/// Chunks of the largest problem that is put to the exact search, and partial timetables that it may look at.
const EXACT: (u64, u64) = (160, 40_000);

/// How much is tried, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Timings of an action, over all timetables that are tried. The published schedules and a few rules are tried always.
    pub timings: u64,
    /// As many again go into beam searches, if the makespan is what is made short.
    pub beams: u64,
    /// Partial timetables that the exact search may look at, if the makespan is what is made short.
    pub nodes: u64,
    /// What is made short.
    pub objective: Objective,
    /// Whether it is worth some seconds to prove how short a timetable can be; else the bound is what is proved at once.
    pub proves: bool,
}

impl Limits {
    /// Some seconds for a pipeline of 8 ranks, and a time that grows with the number of chunks for large ones.
    pub fn for_problem(problem: &Problem) -> Self {
        let chunks = u64::from(problem.layout.stages) * u64::from(problem.layout.micro_batches);
        let nodes = if chunks <= EXACT.0 { EXACT.1 } else { 0 };
        Self { timings: 20_000_000 + 2_000 * chunks, beams: BEAMS, nodes, objective: Objective::Makespan, proves: true }
    }
}

/// What is made short first; the other then breaks ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// From zero to the end of the last action.
    Makespan,
    /// The longest that a rank takes from its first start to its last end.
    LongestSpan,
}

/// What is made short, and how short it can be at best.
#[derive(Clone, Copy)]
struct Goal {
    objective: Objective,
    /// What the first and the second part of a score cannot be below.
    least: [u64; 2],
}

impl Goal {
    fn new(model: &Model, objective: Objective, makespan: u64) -> Self {
        let span = model.of_rank.iter().map(|held| model.least_work(held)).max().unwrap_or(0);
        let least = match objective {
            Objective::Makespan => [makespan, span],
            Objective::LongestSpan => [span, makespan],
        };
        Self { objective, least }
    }

    /// Nothing is better.
    fn reached(self, score: Score) -> bool {
        score.first <= self.least[0] && score.second <= self.least[1]
    }

    /// What to make shorter next: the first part until nothing is shorter, then the second.
    fn next(self, score: Score) -> Objective {
        match (self.objective, score.first <= self.least[0]) {
            (Objective::Makespan, false) | (Objective::LongestSpan, true) => Objective::Makespan,
            (Objective::Makespan, true) | (Objective::LongestSpan, false) => Objective::LongestSpan,
        }
    }
}

/// A timetable that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// It.
    pub timetable: Timetable,
    /// Where it comes from.
    pub origin: Origin,
    /// No timetable within the problem's memory has a shorter makespan.
    pub bound: Nanos,
}

/// Where a timetable comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A published schedule, as it is.
    Published(ScheduleKind),
    /// A timetable that was known before, as it is.
    Known,
    /// A rule of the list scheduler.
    Rule,
    /// A beam search.
    Beam,
    /// A pattern that repeats.
    Pattern,
    /// A local search.
    Improved,
    /// The repeated part of a shorter run.
    Unrolled,
    /// The exact search.
    Exact,
}

impl Origin {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Published(kind) => kind.name(),
            Self::Known => "known",
            Self::Rule => "rule",
            Self::Beam => "beam search",
            Self::Pattern => "pattern",
            Self::Improved => "local search",
            Self::Unrolled => "unrolled",
            Self::Exact => "exact search",
        }
    }
}

/// The shortest timetable found under the problem's memory limits.
///
/// # Errors
/// If a rank may not even hold what one micro-batch needs there: then there is none. If the problem's parts are not of one
/// size, or its costs cannot be added up.
pub fn search(problem: &Problem, limits: &Limits) -> Result<Found> {
    search_from(problem, limits, &[])
}

/// As [`search`], where timetables are known: what is found is not longer than any of them that fits.
///
/// # Errors
/// As [`search`].
pub fn search_from(problem: &Problem, limits: &Limits, known: &[Timetable]) -> Result<Found> {
    check(problem)?;
    let model = Model::new(problem)?;
    let bound = if limits.proves { super::tight_bound(problem) } else { super::lower_bound(problem) };
    let goal = Goal::new(&model, limits.objective, bound.0);
    let beams = limits.beams;
    let mut pool = Pool { model: &model, goal, clock: Clock::new(&model), best: None, patterns: Vec::new(), beams };
    pool.offer_published(problem);
    for timetable in known.iter().filter(|timetable| timetable.layout == problem.layout) {
        pool.offer_timetable(timetable, Origin::Known);
    }
    let mut work = Work { left: limits.timings };
    match short_run(&problem.layout) {
        None => drop(pool.search(&mut work)),
        Some(few) => pool.unroll(problem, few, &mut work)?,
    }
    let Some((_, orders, origin)) = pool.best else {
        return Err(Error::new("no rule of the search makes a timetable for this pipeline"));
    };
    let found = Found { timetable: model.timetable(problem, &orders), origin, bound };
    if limits.nodes == 0 || limits.objective != Objective::Makespan {
        Ok(found)
    } else {
        exactly(problem, found, limits.nodes)
    }
}

/// What the exact search makes of what was found.
fn exactly(problem: &Problem, found: Found, nodes: u64) -> Result<Found> {
    let makespan = |timetable: &Timetable| super::replay(problem, timetable).map(|replay| replay.makespan);
    let below = makespan(&found.timetable)?;
    if below <= found.bound {
        return Ok(found);
    }
    Ok(match exact(problem, below, nodes) {
        Exact::NoneShorter => Found { bound: below, ..found },
        Exact::Optimal(timetable) => Found { bound: makespan(&timetable)?, origin: Origin::Exact, timetable },
        Exact::Open { found: Some(timetable), bound } => Found { timetable, origin: Origin::Exact, bound },
        Exact::Open { found: None, bound } => Found { bound, ..found },
    })
}

/// That the parts of a problem are of one size.
fn check(problem: &Problem) -> Result<()> {
    let layout = &problem.layout;
    let refuse = |what: &str| Err(Error::new(format!("the pipeline problem has {what}")));
    if super::stages_per_rank(layout).is_none() || layout.micro_batches == 0 {
        return refuse("a layout that cannot be");
    }
    if u64::from(layout.stages) * u64::from(layout.micro_batches) > super::MAX_CHUNKS {
        return refuse("too many chunks");
    }
    if problem.stages.len() != layout.stages as usize {
        return refuse("costs of another number of stages than its layout");
    }
    let Some(memory) = &problem.memory else { return Ok(()) };
    if memory.stages.len() != layout.stages as usize || memory.limits.len() != layout.ranks as usize {
        return refuse("memory of another number of stages or ranks than its layout");
    }
    Ok(())
}

/// Micro-batches of a run that can stand for this one, if it is much shorter.
fn short_run(layout: &Layout) -> Option<u32> {
    let directions = if layout.placement == Placement::Bidirectional { 2 } else { 1 };
    let few = directions * (SHORT_RUN * layout.ranks).max(SHORTEST_RUN);
    // Both directions stay as unequal as they are.
    let few = few + layout.micro_batches % directions;
    (layout.micro_batches / 3 > few / 2).then_some(few)
}

/// What is left of [`Limits::timings`].
struct Work {
    left: u64,
}

impl Work {
    fn take(&mut self, timings: u64) -> bool {
        let enough = self.left >= timings;
        self.left = self.left.saturating_sub(timings);
        enough
    }

    /// For timing orders once.
    fn time(&mut self, model: &Model) -> bool {
        self.take(model.steps())
    }

    /// For making orders of a pattern, and timing them.
    fn repeat(&mut self, model: &Model) -> bool {
        self.take((REPEATING + 1) * model.steps())
    }

    /// For making orders by a rule, and timing them.
    fn schedule(&mut self, model: &Model) -> bool {
        self.take((SCHEDULING + 1) * model.steps())
    }

    /// A part of what is left, given away.
    fn share(&mut self, parts: usize) -> Self {
        let share = self.left / parts.max(1) as u64;
        self.left -= share;
        Self { left: share }
    }
}

/// Leaves the best few patterns, the best first, no two with the same score.
fn keep_best(scored: &mut Vec<(Score, Pattern)>) {
    scored.sort_by_key(|(score, _)| *score);
    scored.dedup_by_key(|(score, _)| *score);
    scored.truncate(PATTERNS);
}

/// The best orders so far.
struct Pool<'a> {
    model: &'a Model,
    goal: Goal,
    clock: Clock,
    best: Option<(Score, Orders, Origin)>,
    /// The best patterns, the best first.
    patterns: Vec<(Score, Pattern)>,
    /// What is left of [`Limits::beams`].
    beams: u64,
}

impl Pool<'_> {
    /// Takes orders that are allowed, end, and are better; says how good they are.
    fn offer(&mut self, orders: &Orders, origin: Origin) -> Option<Score> {
        if !orders.iter().enumerate().all(|(rank, steps)| self.model.allows(rank, steps)) {
            return None;
        }
        let score = self.clock.score(self.model, orders, self.goal.objective)?;
        if self.best.as_ref().is_none_or(|(best, ..)| score < *best) {
            self.best = Some((score, orders.clone(), origin));
        }
        Some(score)
    }

    fn offer_published(&mut self, problem: &Problem) {
        for kind in
            ScheduleKind::PUBLISHED.into_iter().filter(|kind| kind.placement() == Some(problem.layout.placement))
        {
            if let Ok(timetable) = super::generate(kind, &problem.layout) {
                self.offer_timetable(&timetable, Origin::Published(kind));
            }
        }
    }

    fn offer_timetable(&mut self, timetable: &Timetable, origin: Origin) {
        if let Some(orders) = self.model.orders(timetable) {
            self.offer(&orders, origin);
        }
    }

    fn done(&self) -> bool {
        self.best.as_ref().is_some_and(|(score, ..)| self.goal.reached(*score))
    }

    /// Rules, rules near them, and orders near theirs. Gives the best rules.
    fn search(&mut self, work: &mut Work) -> Vec<Rule> {
        let recipes = Recipes::new(self.model);
        let mut draw = Draw::new();
        let mut starts: Vec<(Score, Orders)> = Vec::new();
        starts.extend(self.best.as_ref().map(|(score, orders, _)| (*score, orders.clone())));
        starts.extend(self.search_beams());
        let scores = recipes.descend(self.model, self.goal.objective, &mut work.share(2));
        let rules: Vec<Rule> = scores.iter().take(RULES_ON_ALL).map(|&(_, recipe)| recipes.rule(recipe)).collect();
        for rule in rules.iter().take(STARTS) {
            if let Some(orders) = dispatch(self.model, rule)
                && let Some(score) = self.offer(&orders, Origin::Rule)
            {
                starts.push((score, orders));
            }
        }
        for (at, rule) in rules.iter().take(STARTS).enumerate() {
            if self.done() {
                return rules;
            }
            let mut share = work.share(2 * (STARTS - at));
            if let Some((score, orders)) = tune::tune(self.model, self.goal, rule.clone(), &mut share, &mut draw) {
                self.offer(&orders, Origin::Improved);
                starts.push((score, orders));
            }
        }
        self.search_patterns(&starts, &mut work.share(PATTERNS_SHARE), &mut draw);
        starts.extend(self.patterns.iter().map(|(score, pattern)| (*score, pattern.orders(self.model))));
        self.beams_from_best(Work { left: self.beams / 3 * 2 });
        starts.extend(self.best.as_ref().map(|(score, orders, _)| (*score, orders.clone())));
        starts.sort();
        starts.dedup_by_key(|(score, _)| *score);
        starts.truncate(STARTS);
        for (left, (_, orders)) in (1..=starts.len()).rev().zip(starts) {
            if self.done() {
                break;
            }
            let mut share = work.share(left);
            if let Some((_, orders)) =
                improve::improve(self.model, self.goal, orders, &mut Single, &mut share, &mut draw)
            {
                self.offer(&orders, Origin::Improved);
            }
        }
        self.beams_from_best(Work { left: self.beams });
        rules
    }

    /// Beam searches from nothing, if there is work for wide ones; the best orders of them.
    fn search_beams(&mut self) -> Option<(Score, Orders)> {
        let mut share = Work { left: self.beams / BEAMS_FROM_NOTHING };
        let mut best: Option<(Score, Orders)> = None;
        let tastes = beam::tastes(self.model);
        for (left, taste) in (1..=tastes.len() as u64).rev().zip(tastes) {
            let width = (share.left / left / beam::cost(self.model)).max(*WIDTHS.start());
            let Some(orders) = self.beam(width, taste, false, &mut share) else { continue };
            if let Some(score) = self.offer(&orders, Origin::Beam)
                && best.as_ref().is_none_or(|(least, _)| score < *least)
            {
                best = Some((score, orders));
            }
        }
        best
    }

    /// Beam searches beside the best orders so far, wider ones where those find nothing.
    fn beams_from_best(&mut self, mut share: Work) {
        let tastes = beam::tastes(self.model);
        let mut width = *WIDTHS.start();
        while width <= *WIDTHS.end() {
            let before = self.best.as_ref().map(|(score, ..)| *score);
            for taste in tastes {
                let Some(orders) = self.beam(width, taste, true, &mut share) else { return };
                self.offer(&orders, Origin::Beam);
            }
            if self.best.as_ref().map(|(score, ..)| *score) == before {
                width *= 2;
            }
        }
    }

    /// One beam search, of a share of the work for all; `None` if there is no need for it, or not enough work.
    fn beam(&mut self, width: u64, taste: Taste, from_best: bool, share: &mut Work) -> Option<Orders> {
        let width = width.min(*WIDTHS.end());
        let cost = width * beam::cost(self.model);
        if self.done() || self.goal.objective != Objective::Makespan || !share.take(cost) {
            return None;
        }
        self.beams -= cost.min(self.beams);
        let known = match &self.best {
            Some((_, orders, _)) if from_best && self.clock.run(self.model, orders) => {
                Some(beam::known(self.model, &self.clock, orders))
            }
            _ => None,
        };
        beam::beam(self.model, width as usize, taste, known.as_ref())
    }

    /// Looks for patterns: those of orders that are known, and building blocks; and then near the best of them.
    fn search_patterns(&mut self, known: &[(Score, Orders)], work: &mut Work, draw: &mut Draw) {
        let mut patterns: Vec<Pattern> = Vec::new();
        for (_, orders) in known {
            if self.clock.run(self.model, orders) {
                let loops = unroll::loops(self.model, &self.clock, orders);
                patterns.extend(loops.first().map(|part| Pattern::of_loop(self.model, orders, part)));
            }
        }
        patterns.extend(block::blocks(self.model));
        let mut scored: Vec<(Score, Pattern)> = Vec::new();
        for pattern in patterns {
            if work.repeat(self.model)
                && let Some(score) = self.offer(&pattern.orders(self.model), Origin::Pattern)
            {
                scored.push((score, pattern));
            }
        }
        keep_best(&mut scored);
        let longer = scored.iter().flat_map(|(_, pattern)| [1, 2, 3].map(|times| pattern.times(times)));
        let longer: Vec<Pattern> = longer.filter(|pattern| pattern.chunks() <= LARGEST_PATTERN).collect();
        for (left, pattern) in (1..=longer.len()).rev().zip(longer) {
            if self.done() {
                break;
            }
            let mut share = work.share(left);
            let mut moves = PatternMoves::new(self.model, pattern);
            let orders = moves.best.orders(self.model);
            if let Some((score, orders)) = improve::improve(self.model, self.goal, orders, &mut moves, &mut share, draw)
            {
                self.offer(&orders, Origin::Pattern);
                scored.push((score, moves.best));
            }
        }
        keep_best(&mut scored);
        self.patterns = scored;
    }

    /// Searches a run of `few` micro-batches and repeats its steady state. If that repeats only every so many micro-batches
    /// that it does not come out even, a second run is searched that makes up for it.
    fn unroll(&mut self, problem: &Problem, few: u32, work: &mut Work) -> Result<()> {
        let mut few = few;
        for parts in [2, 1] {
            let layout = Layout { micro_batches: few, ..problem.layout };
            let shorter = Problem { layout, ..problem.clone() };
            let model = Model::new(&shorter)?;
            let goal = Goal::new(&model, self.goal.objective, super::lower_bound(&shorter).0);
            let beams = self.beams / parts as u64;
            let mut pool =
                Pool { model: &model, goal, clock: Clock::new(&model), best: None, patterns: Vec::new(), beams };
            pool.offer_published(&shorter);
            let rules = pool.search(&mut work.share(parts));
            self.beams -= beams - pool.beams;
            let lanes = self.model.lanes.iter().zip(&model.lanes);
            let more = lanes.map(|(all, few)| all.count - few.count).min().unwrap_or(0);
            let mut fastest = None;
            let of_rules = rules.iter().filter_map(|rule| dispatch(&model, rule));
            for orders in pool.best.take().map(|(_, orders, _)| orders).into_iter().chain(of_rules) {
                if pool.clock.score(&model, &orders, goal.objective).is_none() {
                    continue;
                }
                let loops = unroll::loops(&model, &pool.clock, &orders);
                if let Some(part) = loops.iter().find(|part| more.is_multiple_of(part.chunks)) {
                    self.offer(&unroll::unroll(&orders, part, more / part.chunks), Origin::Unrolled);
                }
                fastest = fastest.or(loops.first().map(|part| more % part.chunks));
            }
            for (_, pattern) in &pool.patterns {
                self.offer(&pattern.orders(self.model), Origin::Pattern);
            }
            for rule in &rules {
                if let Some(orders) = dispatch(self.model, rule) {
                    self.offer(&orders, Origin::Rule);
                }
            }
            match fastest {
                Some(rest) if rest > 0 && !self.done() => {
                    let directions = if problem.layout.placement == Placement::Bidirectional { 2 } else { 1 };
                    few += rest as u32 * directions;
                }
                _ => break,
            }
        }
        Ok(())
    }
}
