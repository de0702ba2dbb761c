//! The search for timetables over a grid of pipelines: how often, and by how much, it is better than the published schedules
//! that fit the same memory, and how far it is from the lower bound.
//!
//! `cargo bench --bench pipeline_grid -- CELLS [FILE]` draws so many cells (default 200) from the grid, always the same ones,
//! prints the tables of `docs/pipeline.md` and the cells with the largest gaps, and writes all cells to a CSV file.
//!
//! The grid: 1 to 16 ranks, 1 to 4P micro-batches, four placements, six sets of costs, memory for P/2, P, 3P/2 or 2P
//! micro-batches per rank, overlapped pairs at 1, 0.8 and 0.67 of F + B. A rank's share of the model is divided equally among
//! its stages, in time and in memory, before costs are made unequal.

use std::time::Instant;

use dualweave::ir::{
    Action, ChunkId, Hops, Layout, Memory, PairCost, Placement, Problem, StageCost, StageMemory, Timetable, Workspace,
};
use dualweave::job::training::ScheduleKind;
use dualweave::passes::pipeline::search::{Limits, search};
use dualweave::passes::pipeline::{generate, replay};
use dualweave::units::Nanos;

/// Cells that are listed for their gap.
const LISTED: usize = 15;

const PLACEMENTS: [Placement; 4] = [Placement::Linear, Placement::V, Placement::Loop, Placement::Bidirectional];

/// Stages of a rank in loops.
const PER_RANK: u32 = 2;

/// Costs of stages.
#[derive(Clone, Copy, PartialEq)]
enum Costs {
    /// F = I = W.
    Equal,
    /// 5, 6, 4.
    FiveSixFour,
    /// Measured by the authors of the zero-bubble schedules, with their time from rank to rank.
    Measured,
    /// F = I = W, and the last stage half as long again.
    HeavyLast,
    /// F = I = W, and the first three stages a third of that.
    LightFirst,
    /// F = I = W, each stage between a half and one and a half of that.
    Random,
}

const COSTS: [(Costs, &str); 6] = [
    (Costs::Equal, "equal"),
    (Costs::FiveSixFour, "5, 6, 4"),
    (Costs::Measured, "measured"),
    (Costs::HeavyLast, "heavy last"),
    (Costs::LightFirst, "three light"),
    (Costs::Random, "random"),
];

/// Memory of a rank, in quarters of the ranks.
const MEMORY: [(u64, &str); 4] = [(2, "P/2"), (4, "P"), (6, "3P/2"), (8, "2P")];

/// A pair, in hundredths of F + B.
const PAIRS: [u64; 3] = [100, 80, 67];

/// One pipeline of the grid.
#[derive(Clone, Copy)]
struct Cell {
    placement: Placement,
    ranks: u32,
    micro_batches: u32,
    costs: usize,
    memory: usize,
    pair: u64,
    /// For random costs.
    seed: u64,
}

/// What came of it.
struct Outcome {
    cell: Cell,
    found: u64,
    bound: u64,
    published: Option<u64>,
    seconds: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let cells = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(200);
    let file = arguments.iter().find(|argument| argument.parse::<u64>().is_err());
    let mut draw = Draw(1);
    let cells: Vec<Cell> = (0..cells).map(|_| Cell::draw(&mut draw)).collect();
    // As many cells at a time as there are cores.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let of_thread = |first: usize| cells.iter().enumerate().skip(first).step_by(threads);
    let mut outcomes: Vec<(usize, Outcome)> = std::thread::scope(|scope| {
        let start = |first: usize| {
            scope.spawn(move || {
                of_thread(first).filter_map(|(at, cell)| Some((at, cell.outcome()?))).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..threads).map(start).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread ends")).collect()
    });
    outcomes.sort_by_key(|(at, _)| *at);
    let mut outcomes: Vec<Outcome> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    tables(&outcomes);
    if let Some(file) = file {
        std::fs::write(file, csv(&outcomes)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    outcomes.sort_by(|a, b| b.gap().total_cmp(&a.gap()));
    println!("\nThe largest gaps");
    for outcome in outcomes.iter().take(LISTED) {
        println!("{:7.2} %  {}", 100.0 * outcome.gap(), outcome.cell.name());
    }
}

impl Cell {
    fn draw(draw: &mut Draw) -> Self {
        let ranks = 1 + draw.below(16);
        Self {
            placement: PLACEMENTS[draw.below(4) as usize],
            // At most 16, and at most 64.
            ranks: ranks as u32,
            micro_batches: 1 + draw.below(4 * ranks) as u32,
            costs: draw.below(6) as usize,
            memory: draw.below(4) as usize,
            pair: PAIRS[draw.below(3) as usize],
            seed: draw.below(1 << 30),
        }
    }

    /// What comes of it. With one rank and half a micro-batch's room there is no timetable.
    fn outcome(&self) -> Option<Outcome> {
        let problem = self.problem();
        let start = Instant::now();
        let found = search(&problem, &Limits::for_problem(&problem)).ok()?;
        let seconds = start.elapsed().as_secs_f64();
        let bound = found.bound.0;
        let found = makespan(&problem, &found.timetable);
        let published = ScheduleKind::PUBLISHED.into_iter().filter(|kind| kind.placement() == Some(self.placement));
        let published = published
            .filter_map(|kind| generate(kind, &problem.layout).ok())
            .filter(|timetable| fits(&problem, timetable))
            .map(|timetable| makespan(&problem, &timetable))
            .min();
        Some(Outcome { cell: *self, found, bound, published, seconds })
    }

    fn name(&self) -> String {
        let (costs, memory) = (COSTS[self.costs].1, MEMORY[self.memory].1);
        let Self { placement, ranks, micro_batches, pair, .. } = self;
        format!("{placement}, P {ranks}, M {micro_batches}, {costs}, memory {memory}, pairs at 0.{pair:02}")
            .replace("0.100", "1")
    }

    fn problem(&self) -> Problem {
        let layout = Layout::new(self.placement, self.ranks, PER_RANK, self.micro_batches);
        let per_rank = u64::from(layout.stages / layout.ranks);
        let mut draw = Draw(self.seed);
        let costs = COSTS[self.costs].0;
        let [f, i, w] = match costs {
            Costs::FiveSixFour => [50_000, 60_000, 40_000],
            Costs::Measured => [29_718, 29_444, 19_927],
            _ => [60_000; 3],
        };
        let stage = |stage: u32| {
            let hundredths = match costs {
                Costs::HeavyLast if stage + 1 == layout.stages => 150,
                Costs::LightFirst if stage < 3 => 33,
                Costs::Random => 50 + draw.below(101),
                _ => 100,
            };
            let [f, i, w] = [f, i, w].map(|cost| Nanos(cost * hundredths / 100 / per_rank));
            StageCost { f, i, w, b: i + w }
        };
        let stages: Vec<StageCost> = (0..layout.stages).map(stage).collect();
        let cost = |f: u32, b: u32| Nanos((stages[f as usize].f + stages[b as usize].b).0 * self.pair / 100);
        let pairs = (0..layout.stages).flat_map(|f| (0..layout.stages).map(move |b| (f, b)));
        let pair = PairCost::Table(pairs.map(|(f, b)| ((f, b), cost(f, b))).collect());
        let hop = if costs == Costs::Measured { 527 } else { 0 };
        // In units of a quarter of a stage: a stage holds 4, a rank's share of a micro-batch 4 × per_rank.
        let limit = MEMORY[self.memory].0 * u64::from(self.ranks) * per_rank;
        let memory = Memory {
            stages: vec![StageMemory { activation: 4, for_weights: 4 }; stages.len()],
            workspace: Workspace::default(),
            limits: vec![limit; self.ranks as usize],
        };
        Problem { layout, stages, pair, hops: Hops::Uniform(Nanos(hop)), memory: Some(memory) }
    }
}

impl Outcome {
    fn gap(&self) -> f64 {
        self.found as f64 / self.bound as f64 - 1.0
    }

    /// How much shorter than the best published schedule.
    fn gain(&self) -> Option<f64> {
        Some(self.published? as f64 / self.found as f64 - 1.0)
    }

    /// The part of the published schedule's gap that is closed.
    fn closed(&self) -> Option<f64> {
        let published = self.published?;
        (published > self.bound).then(|| (published - self.found) as f64 / (published - self.bound) as f64)
    }
}

/// One line per cell. Times in ns.
fn csv(outcomes: &[Outcome]) -> String {
    let line = |outcome: &Outcome| {
        let Cell { placement, ranks, micro_batches, costs, memory, pair, .. } = outcome.cell;
        let (costs, memory) = (COSTS[costs].1.replace(", ", "-"), MEMORY[memory].1);
        let published = outcome.published.map(|time| time.to_string()).unwrap_or_default();
        let (found, bound, gap) = (outcome.found, outcome.bound, 100.0 * outcome.gap());
        format!("{placement},{ranks},{micro_batches},{costs},{memory},{pair},{published},{found},{bound},{gap:.2}\n")
    };
    let header = "placement,ranks,micro_batches,costs,memory,pair_percent,published,found,bound,gap_percent\n";
    std::iter::once(header.to_owned()).chain(outcomes.iter().map(line)).collect()
}

fn tables(outcomes: &[Outcome]) {
    println!(
        "| cells | number | gap ≤ 1 % | median gap | 90th | published fits | better | gain, median | closed, median | worse | s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    row("all", outcomes, |_| true);
    for placement in PLACEMENTS {
        row(&placement.to_string(), outcomes, |cell| cell.placement == placement);
    }
    for (at, (_, name)) in COSTS.into_iter().enumerate() {
        row(name, outcomes, |cell| cell.costs == at);
    }
    for (at, (_, name)) in MEMORY.into_iter().enumerate() {
        row(&format!("memory {name}"), outcomes, |cell| cell.memory == at);
    }
    for pair in PAIRS {
        row(&format!("pairs at {}", pair as f64 / 100.0), outcomes, |cell| cell.pair == pair);
    }
}

fn row(name: &str, outcomes: &[Outcome], of: impl Fn(&Cell) -> bool) {
    let rows: Vec<&Outcome> = outcomes.iter().filter(|outcome| of(&outcome.cell)).collect();
    let sorted = |values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        values
    };
    let at = |values: &[f64], tenths: usize| values.get(values.len() * tenths / 10).copied().unwrap_or(0.0);
    let gaps = sorted(rows.iter().map(|row| row.gap()).collect());
    let gains = sorted(rows.iter().filter_map(|row| row.gain()).filter(|gain| *gain > 0.0).collect());
    let closed = sorted(rows.iter().filter_map(|row| row.closed()).collect());
    let fits = rows.iter().filter(|row| row.published.is_some()).count();
    let worse = rows.iter().filter(|row| row.published.is_some_and(|published| published < row.found)).count();
    println!(
        "| {name} | {} | {:.1} % | {:.2} % | {:.1} % | {fits} | {} | {:.1} % | {:.0} % | {worse} | {:.2} |",
        rows.len(),
        100.0 * gaps.iter().filter(|gap| **gap <= 0.01).count() as f64 / gaps.len().max(1) as f64,
        100.0 * at(&gaps, 5),
        100.0 * at(&gaps, 9),
        gains.len(),
        100.0 * at(&gains, 5),
        100.0 * at(&closed, 5),
        rows.iter().map(|row| row.seconds).sum::<f64>() / rows.len().max(1) as f64,
    );
}

fn makespan(problem: &Problem, timetable: &Timetable) -> u64 {
    replay(problem, timetable).unwrap_or_else(|error| panic!("{error:?}")).makespan.0
}

/// Whether every rank holds at most what it may.
fn fits(problem: &Problem, timetable: &Timetable) -> bool {
    let Some(memory) = &problem.memory else { return true };
    let held = |chunk: Option<ChunkId>| chunk.map_or(0, |chunk| memory.stages[chunk.stage as usize].activation);
    let peak = |actions: &Vec<Action>| {
        let (mut now, mut peak) = (0, 0);
        for action in actions {
            now += held(action.forward());
            peak = peak.max(now);
            now -= held(action.weight_gradient());
        }
        peak
    };
    timetable.ranks.iter().zip(&memory.limits).all(|(actions, limit)| peak(actions) <= *limit)
}

/// A fixed stream of numbers.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
