//! How far the lower bound is from the optimum of small problems, and from the best published schedule of larger ones, by the
//! argument that it rests on. The tables are a snapshot; `docs/pipeline-bounds.md` quotes them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dualweave::ir::{Hops, Layout, Memory, PairCost, Placement, Problem, StageCost, StageMemory, Workspace};
use dualweave::job::training::ScheduleKind;
use dualweave::passes::pipeline::{Bounds, Exact, bounds, exact, generate, precondition, replay, tight_bound};
use dualweave::units::Nanos;

/// Per problem: enough for most of them.
const NODES: u64 = 5_000;

const PLACEMENTS: [Placement; 3] = [Placement::Linear, Placement::V, Placement::Bidirectional];

/// F, I and W.
const EQUAL: [u64; 3] = [10, 10, 10];
const UNEQUAL: [u64; 3] = [50, 60, 40];

/// One problem of the grid.
#[derive(Clone, Copy)]
struct Cell {
    placement: Placement,
    ranks: u32,
    micro_batches: u32,
    cost: [u64; 3],
    /// Of what F and B take one after the other, a pair takes so many tenths.
    pair: u64,
    /// Half as many times what a micro-batch holds on all ranks together, each rank may hold.
    memory: Option<u64>,
    /// One stage takes twice as long.
    heavy: Option<u32>,
}

impl Cell {
    fn problem(&self) -> Problem {
        let layout = Layout::new(self.placement, self.ranks, 1, self.micro_batches);
        let stages = (0..layout.stages).map(|stage| {
            let [f, i, w] = self.cost.map(|cost| Nanos(if self.heavy == Some(stage) { 2 * cost } else { cost }));
            StageCost { f, i, w, b: i + w }
        });
        let stages: Vec<StageCost> = stages.collect();
        let of_pair = |f: u32, b: u32| {
            let (f, b) = (&stages[f as usize], &stages[b as usize]);
            Nanos((f.f + b.b).0 * self.pair / 10)
        };
        let pairs = (0..layout.stages).flat_map(|f| (0..layout.stages).map(move |b| (f, b)));
        let pair = match self.pair {
            10 => PairCost::Sum,
            _ => PairCost::Table(pairs.map(|(f, b)| ((f, b), of_pair(f, b))).collect()),
        };
        let per_rank = u64::from(layout.stages / layout.ranks);
        let memory = self.memory.map(|halves| Memory {
            stages: vec![StageMemory { activation: 1, for_weights: 1 }; stages.len()],
            workspace: Workspace::default(),
            limits: vec![(halves * per_rank * u64::from(self.ranks)).div_ceil(2); self.ranks as usize],
        });
        Problem { layout, stages, pair, hops: Hops::Uniform(Nanos(0)), memory }
    }

    /// The makespan of the best published schedule that keeps the memory limits.
    fn published(&self, problem: &Problem) -> Option<Nanos> {
        let fits = |peaks: &[u32]| {
            let limits = problem.memory.as_ref().map(|memory| &memory.limits);
            limits.is_none_or(|limits| peaks.iter().zip(limits).all(|(&peak, &limit)| u64::from(peak) <= limit))
        };
        let kinds = ScheduleKind::PUBLISHED.into_iter().filter(|kind| kind.placement() == Some(self.placement));
        let makespans = kinds.filter_map(|kind| {
            precondition(kind, self.ranks, 1, self.micro_batches).ok()?;
            let replay = replay(problem, &generate(kind, &problem.layout).ok()?).ok()?;
            fits(replay.peak_activations_per_rank()).then_some(replay.makespan)
        });
        makespans.min()
    }
}

fn grid(sizes: &[(u32, u32)]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for placement in PLACEMENTS {
        for &(ranks, micro_batches) in sizes {
            for cost in [EQUAL, UNEQUAL] {
                for heavy in [None, Some(0), Some(ranks - 1)] {
                    for pair in [10, 8] {
                        for memory in [None, Some(1), Some(2), Some(3)] {
                            cells.push(Cell { placement, ranks, micro_batches, cost, pair, memory, heavy });
                        }
                    }
                }
            }
        }
    }
    cells
}

/// The argument with the largest bound, the simplest if several have it.
fn argument(bounds: &Bounds) -> &'static str {
    let of = [("work", bounds.work), ("way", bounds.way), ("machine", bounds.machine), ("refuted", bounds.refuted)];
    of.into_iter().find(|(_, bound)| *bound == bounds.best()).map_or("none", |(name, _)| name)
}

/// Per group of problems, what argument the bound of each rests on, and its gap.
type Gaps = BTreeMap<String, Vec<(&'static str, f64)>>;

/// One line per group: how many problems, how many meet the bound, the gaps, and on what how many bounds rest.
fn table(gaps: &Gaps) -> String {
    let mut text = String::from("problems, bound met, gap: median, mean, largest; bounds by argument\n");
    for (group, of_group) in gaps {
        let mut gaps: Vec<f64> = of_group.iter().map(|&(_, gap)| gap).collect();
        gaps.sort_by(f64::total_cmp);
        let met = gaps.iter().filter(|gap| **gap == 0.0).count();
        let [median, mean, largest] =
            [gaps[gaps.len() / 2], gaps.iter().sum::<f64>() / gaps.len() as f64, gaps[gaps.len() - 1]]
                .map(|gap| format!("{:.1} %", 100.0 * gap));
        let mut arguments: BTreeMap<&str, u32> = BTreeMap::new();
        of_group.iter().for_each(|&(argument, _)| *arguments.entry(argument).or_default() += 1);
        let arguments: Vec<String> = arguments.iter().map(|(argument, count)| format!("{argument} {count}")).collect();
        writeln!(text, "{group} | {} | {met} | {median} | {mean} | {largest} | {}", gaps.len(), arguments.join(", "))
            .expect("a string takes it");
    }
    text
}

/// What sets a problem apart, as far as the bound is concerned.
fn group(cell: &Cell) -> String {
    let pairs = if cell.pair == 10 { "no pairs" } else { "pairs 0.8" };
    let memory = match cell.memory {
        None => "any memory".to_owned(),
        Some(halves) => format!("memory {:.1} P", halves as f64 / 2.0),
    };
    format!("{} | {pairs} | {memory}", cell.placement)
}

#[test]
fn against_the_optimum() {
    let mut gaps = Gaps::new();
    let (mut open, mut total) = (0, 0);
    for cell in grid(&[(2, 2), (2, 5), (3, 3), (4, 4)]) {
        let problem = cell.problem();
        let bounds = bounds(&problem);
        let published = cell.published(&problem);
        let below = published.map_or(Nanos(u64::MAX), |published| published + Nanos(1));
        total += 1;
        let optimum = match exact(&problem, below, NODES) {
            Exact::Optimal(timetable) => replay(&problem, &timetable).unwrap().makespan,
            Exact::NoneShorter => panic!("there is a timetable"),
            Exact::Open { .. } => {
                open += 1;
                continue;
            }
        };
        let bound = tight_bound(&problem);
        assert!(bounds.best() <= bound && bound <= optimum);
        let gap = optimum.as_f64() / bound.as_f64() - 1.0;
        let argument = if bounds.best() < bound { "orders" } else { argument(&bounds) };
        gaps.entry(group(&cell)).or_default().push((argument, gap));
    }
    snapshot("bound_optimum", format!("optimum not known: {open} of {total}\n{}", table(&gaps)));
}

#[test]
fn against_published_schedules() {
    let mut gaps = Gaps::new();
    for cell in grid(&[(4, 16), (8, 16), (8, 32), (16, 64)]) {
        let problem = cell.problem();
        let Some(published) = cell.published(&problem) else { continue };
        let bounds = bounds(&problem);
        assert!(bounds.best() <= published);
        let gap = published.as_f64() / bounds.best().as_f64() - 1.0;
        gaps.entry(group(&cell)).or_default().push((argument(&bounds), gap));
    }
    snapshot("bound_published", table(&gaps));
}

fn snapshot(name: &str, text: String) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}
