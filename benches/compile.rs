//! How long the compiler takes, and how that grows: compare the items per second (stages × micro-batches) down a column.

use std::path::Path;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use dualweave::ir::{Hops, Layout, Memory, PairCost, Placement, Problem, StageCost, StageMemory, Workspace};
use dualweave::job::training::ScheduleKind;
use dualweave::job::{Job, Overrides, load};
use dualweave::machine::Machine;
use dualweave::passes::pipeline::{generate, lower_bound, replay};
use dualweave::passes::{across_ranks, compile, inside_chunks, lower, split};
use dualweave::plan::Plan;
use dualweave::units::Nanos;

fn main() {
    divan::main();
}

/// Ranks and micro-batches.
const SIZES: [(u32, u32); 7] = [(8, 64), (8, 256), (16, 64), (16, 256), (32, 256), (64, 256), (64, 1024)];

/// DeepSeek-V3 on so many pipeline ranks.
fn job(pp: u32, micro_batches: u32) -> Job {
    let overrides = Overrides {
        pp: Some(pp),
        dp: Some(2),
        ep: Some(2),
        micro_batches: Some(micro_batches),
        ..Overrides::default()
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deepseek-v3/job.ron");
    load(&path, &overrides).unwrap_or_else(|error| panic!("{error:?}")).job
}

fn chunks_of((pp, micro_batches): (u32, u32)) -> ItemsCount {
    ItemsCount::new(pp as usize * micro_batches as usize)
}

/// All passes.
#[divan::bench(args = SIZES, sample_count = 5)]
fn job_to_plan(bencher: Bencher, size: (u32, u32)) {
    let job = job(size.0, size.1);
    bencher.counter(chunks_of(size)).bench(|| compile(divan::black_box(&job)));
}

/// The passes in front of the chunk programs.
#[divan::bench(args = [8, 16, 32, 64], sample_count = 5)]
fn job_to_chunks(bencher: Bencher, pp: u32) {
    let job = job(pp, 2 * pp);
    let machine = Machine::new(&job.cluster, None);
    bencher.bench(|| {
        let lowered = lower::lower(divan::black_box(&job), &machine, 20).expect("layers enough");
        split::split(&job, &lowered)
    });
}

/// The passes up to the chunk programs, with the search of pairs: they do not depend on the number of micro-batches, and are
/// slowest where chunks have most layers.
#[divan::bench(args = [8, 16, 32, 64], sample_count = 5)]
fn job_to_programs(bencher: Bencher, pp: u32) {
    let job = job(pp, 2 * pp);
    bencher.bench(|| inside_chunks(divan::black_box(&job)));
}

/// The passes from there to the plan: these should be linear in ranks × micro-batches.
#[divan::bench(args = SIZES, sample_count = 5)]
fn programs_to_plan(bencher: Bencher, size: (u32, u32)) {
    let job = job(size.0, size.1);
    let chunks = inside_chunks(&job).expect("programs");
    bencher.counter(chunks_of(size)).with_inputs(|| chunks.clone()).bench_values(|chunks| across_ranks(&job, chunks));
}

/// A timetable, its times and its bound, with equal costs.
#[divan::bench(args = SIZES, sample_count = 5)]
fn timetable(bencher: Bencher, size: (u32, u32)) {
    let kind = ScheduleKind::DualPipe;
    let layout = Layout::new(kind.placement().expect("a published one"), size.0, 1, size.1);
    let cost = StageCost { f: Nanos(10), i: Nanos(10), w: Nanos(10), b: Nanos(20) };
    let problem = Problem {
        layout,
        stages: vec![cost; layout.stages as usize],
        pair: PairCost::Uniform(Nanos(27)),
        hops: Hops::Uniform(Nanos(1)),
        memory: None,
    };
    bencher.counter(chunks_of(size)).bench(|| {
        let timetable = generate(kind, divan::black_box(&layout)).expect("a schedule of this size");
        (replay(&problem, &timetable), lower_bound(&problem))
    });
}

/// A bound where memory counts: it is reached by more arguments than one without.
#[divan::bench(args = SIZES, sample_count = 5)]
fn bound(bencher: Bencher, size: (u32, u32)) {
    let layout = Layout::new(Placement::Bidirectional, size.0, 1, size.1);
    let cost = StageCost { f: Nanos(10_000), i: Nanos(12_000), w: Nanos(8_000), b: Nanos(20_000) };
    let memory = Memory {
        stages: vec![StageMemory { activation: 3, for_weights: 2 }; layout.stages as usize],
        workspace: Workspace::default(),
        limits: vec![3 * u64::from(size.0); size.0 as usize],
    };
    let problem = Problem {
        layout,
        stages: vec![cost; layout.stages as usize],
        pair: PairCost::Uniform(Nanos(25_000)),
        hops: Hops::Uniform(Nanos(500)),
        memory: Some(memory),
    };
    bencher.counter(chunks_of(size)).bench(|| lower_bound(divan::black_box(&problem)));
}

/// Plan to text.
#[divan::bench(args = SIZES, sample_count = 5)]
fn write(bencher: Bencher, size: (u32, u32)) {
    let plan = compile(&job(size.0, size.1)).expect("a plan").plan;
    let bytes = plan.to_ron().len();
    bencher.counter(BytesCount::new(bytes)).counter(chunks_of(size)).bench(|| divan::black_box(&plan).to_ron());
}

/// Text to plan.
#[divan::bench(args = SIZES, sample_count = 5)]
fn read(bencher: Bencher, size: (u32, u32)) {
    let text = compile(&job(size.0, size.1)).expect("a plan").plan.to_ron();
    let counted = bencher.counter(BytesCount::of_str(&text)).counter(chunks_of(size));
    counted.bench(|| Plan::from_ron("plan.ron", divan::black_box(&text)));
}
