//! What stages cost: plain numbers, the same for all, or a file with a line for each. Exact all the way.

use std::path::Path;

use super::decimal::Decimal;
use crate::cli::output;
use crate::error::{Error, Result};
use crate::ir::{Hops, Layout, Memory, PairCost, Placement, Problem, StageCost, StageMemory, Workspace};
use crate::units::Nanos;

/// More than the chunks of any step.
const MOST_ACTIVATIONS: u64 = 1 << 40;

/// First line of a file of costs.
const HEADER: [&str; 4] = ["stage", "f", "i", "w"];

/// Times stay below this, so that they are exact as JSON numbers, which many readers take for doubles.
const LARGEST_TIME: u128 = 1_000_000_000_000_000;

/// More decimal places than costs have, so that they can be divided among the stages of a rank: by 2, 4, 5, 8, ...
const PLACES_FOR_PARTS: u32 = 3;

/// F, I and W of a stage, in this order.
pub type Parts = [Decimal; 3];

/// What stages cost.
pub struct Costs {
    /// What each stage costs.
    pub stages: Stages,
    /// A forward overlapped with a full backward.
    pub pair: Option<Decimal>,
    /// From rank to rank.
    pub hop: Decimal,
}

/// What each stage costs.
pub enum Stages {
    /// All the same.
    Equal(Parts),
    /// The whole share of each rank in the model, cut into equal stages where a rank holds more than one.
    PerRank(Parts),
    /// One by one.
    Listed(Vec<Parts>),
}

impl Costs {
    /// The problem over a layout. Times are in units of 10^-`places`.
    pub fn problem(&self, layout: Layout, places: u32) -> Result<Problem> {
        let per_rank = u128::from(layout.stages / layout.ranks);
        let count = layout.stages as usize;
        let (parts, divided_by) = match &self.stages {
            Stages::Equal(parts) => (vec![*parts; count], 1),
            Stages::PerRank(parts) => (vec![*parts; count], per_rank),
            Stages::Listed(list) => (list.clone(), 1),
        };
        let part = |cost: Decimal| {
            let scaled = cost.scaled(places);
            match scaled.is_multiple_of(divided_by) {
                true => Ok(scaled / divided_by),
                false => Err(Error::new(format!("a rank's costs cannot be divided among {divided_by} stages exactly"))
                    .help("give costs that can, or those of each stage with --costs")),
            }
        };
        let hop = self.hop.scaled(places);
        let pair = self.pair.map(part).transpose()?;
        let mut stages = Vec::with_capacity(count);
        let mut total = 0_u128;
        for parts in parts {
            let [f, i, w] = [part(parts[0])?, part(parts[1])?, part(parts[2])?];
            // No makespan is above the sum of everything. Each of these is below 10^32.
            total += (f + i + w).max(pair.unwrap_or(0)) + 2 * hop;
            stages.push([f, i, w]);
        }
        if total.checked_mul(u128::from(layout.micro_batches)).is_none_or(|total| total > LARGEST_TIME) {
            return Err(Error::new("the makespan of these costs has too many digits to be printed exactly")
                .help("use smaller costs, or fewer decimal places"));
        }
        // All below `LARGEST_TIME`.
        let time = |cost: u128| Nanos(cost as u64);
        let cost = |[f, i, w]: [u128; 3]| StageCost { f: time(f), i: time(i), w: time(w), b: time(i + w) };
        Ok(Problem {
            layout,
            stages: stages.into_iter().map(cost).collect(),
            pair: pair.map_or(PairCost::Sum, |pair| PairCost::Uniform(time(pair))),
            hops: Hops::Uniform(time(hop)),
            memory: None,
        })
    }

    /// The decimal places that all costs have room in, also when a rank's are divided by each of `per_rank` (as far as
    /// [`PLACES_FOR_PARTS`] more places do).
    pub fn places(&self, per_rank: &[u32]) -> u32 {
        let (parts, divided): (Vec<Decimal>, bool) = match &self.stages {
            Stages::Equal(parts) => (parts.to_vec(), false),
            Stages::PerRank(parts) => (parts.to_vec(), true),
            Stages::Listed(list) => (list.concat(), false),
        };
        let all = || parts.iter().copied().chain(self.pair).chain([self.hop]);
        let least = all().map(|cost| cost.places).max().unwrap_or(0);
        let exact = |places: &u32| {
            let by = |cost: Decimal| per_rank.iter().all(|&n| cost.scaled(*places).is_multiple_of(u128::from(n)));
            !divided || parts.iter().copied().chain(self.pair).all(by)
        };
        (least..least + PLACES_FOR_PARTS).find(exact).unwrap_or(least + PLACES_FOR_PARTS)
    }

    /// Into how many stages the share of a rank is cut that costs were given of.
    pub fn parts(&self, layout: &Layout) -> u32 {
        if matches!(self.stages, Stages::PerRank(_)) { layout.stages / layout.ranks } else { 1 }
    }

    /// Placements that have as many stages as there are costs of, and how many of them a rank then holds; `per_rank` is for
    /// loops over equal stages.
    pub fn placements(&self, ranks: u32, per_rank: u32) -> Result<Vec<(Placement, u32)>> {
        let Stages::Listed(list) = &self.stages else {
            return Ok(vec![
                (Placement::Linear, 1),
                (Placement::V, 2),
                (Placement::Loop, per_rank),
                (Placement::Bidirectional, 1),
            ]);
        };
        let (stages, ranks) = (list.len() as u64, u64::from(ranks));
        // At most the stages of the file.
        let per_rank = stages.checked_div(ranks).unwrap_or(0) as u32;
        match (stages.is_multiple_of(ranks.max(1)), per_rank) {
            (true, 1) => Ok(vec![(Placement::Linear, 1), (Placement::Bidirectional, 1)]),
            (true, 2) => Ok(vec![(Placement::V, 2), (Placement::Loop, 2)]),
            (true, 3..) => Ok(vec![(Placement::Loop, per_rank)]),
            _ => Err(Error::new(format!("costs of {stages} stages cannot be laid over {ranks} ranks"))
                .help(format!("give a line for each stage: {ranks} lines, or {} for two stages per rank", 2 * ranks))),
        }
    }
}

/// Halves of an activation: what a chunk holds until the end of its I, and then until the end of its W.
pub const HALVES: u64 = 2;

/// Activations that a rank may hold, one number for all ranks or one for each; of stages of which so many make one that was given a
/// cost. A chunk counts as the public zero-bubble scheduler counts it: one until the end of its I, half until the end of its W.
/// In halves.
pub fn memory(limits: &[u64], layout: &Layout, parts: u32) -> Result<Memory> {
    let ranks = layout.ranks as usize;
    if let Some(limit) = limits.iter().find(|limit| **limit > MOST_ACTIVATIONS) {
        return Err(Error::new(format!("--memory {limit} is more than any pipeline holds"))
            .help(format!("give at most {MOST_ACTIVATIONS}, or leave it out")));
    }
    let limits = match limits {
        [limit] => vec![*limit; ranks],
        limits if limits.len() == ranks => limits.to_vec(),
        limits => {
            return Err(Error::new(format!("--memory has {} numbers, but there are {ranks} ranks", limits.len()))
                .help("give one number for all ranks, or one for each"));
        }
    };
    let limits = limits.into_iter().map(|limit| limit * HALVES * u64::from(parts)).collect();
    let stage = StageMemory { activation: HALVES, for_weights: HALVES / 2 };
    Ok(Memory { stages: vec![stage; layout.stages as usize], workspace: Workspace::default(), limits })
}

/// That each rank may hold what one micro-batch needs there, in activations as --memory counts them.
pub fn check_room(memory: &Memory, layout: &Layout, parts: u32) -> Result<()> {
    let per_rank = u64::from(layout.stages / layout.ranks) * HALVES;
    let activations = |halves: u64| halves as f64 / (HALVES as f64 * f64::from(parts));
    match (0..).zip(&memory.limits).find(|(_, limit)| **limit < per_rank) {
        None => Ok(()),
        Some((rank, &limit)) => {
            let (limit, needed): (f64, f64) = (activations(limit), activations(per_rank));
            let message = format!("rank {rank} may hold {limit}, but a micro-batch alone holds {needed} there");
            let rank: u32 = rank;
            Err(Error::new(message).help(format!("give rank {rank} a --memory of at least {}", needed.ceil())))
        }
    }
}

/// Reads a file of costs: the header `stage,f,i,w`, then a line for each stage, in order from stage 0.
pub fn read(path: &Path) -> Result<Vec<Parts>> {
    let name = path.display().to_string();
    let text = output::read(path)?;
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let header: Vec<&str> = lines.next().map_or(Vec::new(), |(_, line)| cells(line));
    if header != HEADER {
        return Err(Error::new(format!("{name} does not start with the line `{}`", HEADER.join(","))));
    }
    let mut stages = Vec::new();
    for (number, line) in lines {
        let refuse = |message: String| Err(Error::new(format!("{name}, line {number}: {message}")));
        let cells = cells(line);
        let &[stage, f, i, w] = cells.as_slice() else {
            return refuse(format!("{} columns, not {}: {}", cells.len(), HEADER.len(), HEADER.join(", ")));
        };
        if stage.parse() != Ok(stages.len()) {
            return refuse(format!("column `stage` is `{stage}`, but this is the line of stage {}", stages.len()));
        }
        let mut parts = Vec::new();
        for (column, cell) in HEADER[1..].iter().zip([f, i, w]) {
            match cell.parse::<Decimal>() {
                Ok(cost) if cost.digits == 0 && *column != "w" => {
                    return refuse(format!("column `{column}` must be above 0"));
                }
                Ok(cost) => parts.push(cost),
                Err(why) => return refuse(format!("column `{column}` is `{cell}`: {why}")),
            }
        }
        stages.push([parts[0], parts[1], parts[2]]);
    }
    match stages.is_empty() {
        true => Err(Error::new(format!("{name} has no stages"))),
        false => Ok(stages),
    }
}

fn cells(line: &str) -> Vec<&str> {
    line.split(',').map(str::trim).collect()
}
