//! `dualweave fidelity`: what a plan takes on GPUs, beside what the machine model says.

use std::path::PathBuf;

use serde::Serialize;

use super::measure::{Bench, Timed, before_cuda};
use super::run::cuda::write_trace;
use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::plan::StreamId;
use crate::runtime::cuda::executor::{Span as Ran, Spread, Timings, What};
use crate::runtime::world::Gpu;
use crate::sim::memory::memory;
use crate::sim::{Covered, RankTiming, Simulation, Span, simulate};
use crate::units::{Bytes, Nanos};
use crate::view::plan_text::{op_name, program_name};
use crate::view::table;

/// Steps in front of those that are timed.
const WARM_UP: u32 = 3;

/// Arguments of `fidelity`.
#[derive(clap::Args)]
pub struct Args {
    /// The plan, as `dualweave compile` writes it.
    plan: PathBuf,
    /// Steps that are timed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Rows of a table; 0: all.
    #[arg(long, value_name = "N", default_value_t = 20)]
    rows: usize,
    /// GPUs to use, the first ones; ranks share them if they are more. By default all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    gpus: Option<u32>,
    /// Write when everything ran in the last step, for ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print everything as JSON: nanoseconds.
    #[arg(long)]
    json: bool,
}

/// Something of a plan, as the model has it and as it was.
#[derive(Serialize)]
struct Row {
    what: String,
    predicted_ns: Nanos,
    measured_ns: Nanos,
    quartiles_ns: (Nanos, Nanos),
    /// In all timed steps.
    runs: u32,
}

/// What a GPU does with a step, as shares of it, in the mean over GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Shares {
    /// A compute op runs.
    busy: f64,
    /// Communication runs, but no compute op.
    exposed: f64,
    /// Nothing runs.
    bubble: f64,
}

#[derive(Serialize)]
struct Told {
    step: Row,
    predicted: Shares,
    /// In the last of the timed steps.
    measured: Shares,
    /// Of the rank that needs most.
    predicted_bytes: Bytes,
    /// What is allocated for the rank that has most.
    taken_bytes: Bytes,
    /// Then the times say nothing about the plan.
    ranks_share_gpus: bool,
    chunks: Vec<Row>,
    ops: Vec<Row>,
}

/// Runs and compares.
///
/// # Errors
/// If the plan cannot be read, or run here.
pub fn run(args: &Args) -> Result<Verdict> {
    let plan = Plan::from_ron(&args.plan.display().to_string(), &output::read(&args.plan)?)?;
    before_cuda(false);
    let simulation = simulate(&plan)?;
    let mut bench = Bench::new(plan.clone(), args.gpus)?;
    if let Some(warning) = bench.warning() {
        output::note(warning);
    }
    let Timed { timings, last } = bench.time(WARM_UP, args.steps)?;
    if let Some(path) = &args.trace {
        write_trace(path, &plan, &last)?;
    }
    let taken = bench.executor().places().map(|(_, _, bytes)| bytes).max().unwrap_or_default();
    let mut told = told(&plan, &simulation, &timings, &last)?;
    (told.taken_bytes, told.ranks_share_gpus) = (Bytes(taken as u64), bench.warning().is_some());
    match args.json {
        true => output::print(&output::to_json(&told)?)?,
        false => output::print(&text(&plan, &told, args.rows, output::report_width()))?,
    }
    Ok(Verdict::Yes)
}

fn told(plan: &Plan, simulation: &Simulation, timings: &Timings, last: &[(Gpu, Vec<Ran>)]) -> Result<Told> {
    let row = |what: String, predicted_ns: Nanos, times: &[Nanos]| {
        let Spread { median, quartiles, runs } = Spread::of(times)?;
        Some(Row { what, predicted_ns, measured_ns: median, quartiles_ns: quartiles, runs })
    };
    let chunk = |(&program, times): (&u32, &Vec<Nanos>)| {
        row(program_name(plan, program as usize), simulation.programs[program as usize].total, times)
    };
    let op = |(&(program, op), times): (&(u32, u32), &Vec<Nanos>)| {
        let of = &plan.programs[program as usize].ops[op as usize];
        let what = format!("{}, {}, {} SMs", op_name(of), program_name(plan, program as usize), of.sms);
        row(what, simulation.programs[program as usize].ops[op as usize].duration(), times)
    };
    let worst = |mut rows: Vec<Row>| {
        rows.sort_by_key(|row| std::cmp::Reverse(row.measured_ns.0.abs_diff(row.predicted_ns.0) * u64::from(row.runs)));
        rows
    };
    let step = row("step".to_owned(), simulation.step, &timings.steps);
    Ok(Told {
        step: step.ok_or_else(|| Error::new("no step was timed"))?,
        predicted: predicted_shares(simulation),
        measured: measured_shares(last),
        predicted_bytes: memory(plan, simulation).iter().map(|rank| rank.need.total()).max().unwrap_or_default(),
        taken_bytes: Bytes::ZERO,
        ranks_share_gpus: false,
        chunks: worst(timings.programs.iter().filter_map(chunk).collect()),
        ops: worst(timings.ops.iter().filter_map(op).collect()),
    })
}

fn predicted_shares(simulation: &Simulation) -> Shares {
    let whole = simulation.step.as_f64() * simulation.ranks.len() as f64;
    let share = |of: fn(&RankTiming) -> Nanos| simulation.ranks.iter().map(of).sum::<Nanos>().as_f64() / whole.max(1.0);
    Shares { busy: share(|rank| rank.busy), exposed: share(|rank| rank.exposed), bubble: share(|rank| rank.bubble) }
}

/// From what ran when, by GPU.
fn measured_shares(last: &[(Gpu, Vec<Ran>)]) -> Shares {
    let whole = Span {
        start: Nanos::ZERO,
        end: last.iter().flat_map(|(_, ran)| ran).map(|ran| ran.end).max().unwrap_or_default(),
    };
    let (mut busy, mut exposed) = (Nanos::ZERO, Nanos::ZERO);
    for (_, ran) in last {
        // A program is told by its ops.
        let ops = ran.iter().filter(|ran| !matches!(ran.what, What::Program(_)));
        let span = |ran: &Ran| Span { start: ran.start, end: ran.end };
        let compute = ops.clone().filter(|ran| ran.stream == StreamId::Compute && !ran.exchange).map(span).collect();
        let computed = Covered::new(compute).within(whole);
        busy += computed;
        exposed += Covered::new(ops.map(span).collect()).within(whole).saturating_sub(computed);
    }
    let all = (whole.duration().as_f64() * last.len() as f64).max(1.0);
    let (busy, exposed) = (busy.as_f64() / all, exposed.as_f64() / all);
    Shares { busy, exposed, bubble: (1.0 - busy - exposed).max(0.0) }
}

fn text(plan: &Plan, told: &Told, most: usize, width: usize) -> String {
    let off = |row: &Row| 100.0 * (row.predicted_ns.as_f64() / row.measured_ns.as_f64().max(1.0) - 1.0);
    let rows = |title: &str, rows: &[Row]| {
        let mut table = table::new(&[title, "measured", "quartiles", "predicted", "off", "runs"], width);
        for row in rows.iter().take(if most == 0 { usize::MAX } else { most }) {
            table.add_row([
                row.what.clone(),
                row.measured_ns.to_string(),
                format!("{} to {}", row.quartiles_ns.0, row.quartiles_ns.1),
                row.predicted_ns.to_string(),
                format!("{:+.1} %", off(row)),
                row.runs.to_string(),
            ]);
        }
        table::finish(&mut table, &[1, 2, 3, 4, 5]);
        let left = rows.len().saturating_sub(table.row_count());
        let more =
            if left > 0 { format!("\n{left} more that are nearer (`--rows 0` shows all)") } else { String::new() };
        format!("{table}{more}\n")
    };
    let median = |rows: &[Row]| {
        let mut apart: Vec<f64> = rows.iter().map(|row| off(row).abs()).collect();
        apart.sort_by(f64::total_cmp);
        apart.get(apart.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
    };
    let [predicted, measured] = [told.predicted, told.measured].map(|Shares { busy, exposed, bubble }| {
        format!("{:.1} % computing, {:.1} % exposed, {:.1} % idle", 100.0 * busy, 100.0 * exposed, 100.0 * bubble)
    });
    format!(
        "{} under {}: a step takes {}, predicted {} ({:+.1} %).\n{measured}; predicted {predicted}. The fullest rank takes {}, \
         predicted {}.\nOff by, in the median: chunks {:.1} %, ops {:.1} %. Worst first, by time in all:\n{}{}",
        plan.model.name,
        plan.origin.schedule,
        told.step.measured_ns,
        told.step.predicted_ns,
        off(&told.step),
        told.taken_bytes,
        told.predicted_bytes,
        median(&told.chunks),
        median(&told.ops),
        rows("chunk", &told.chunks),
        rows("op", &told.ops),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Overrides, load};
    use crate::passes::compile;

    /// Every op of a plan takes as long as predicted, and a microsecond for each op before it.
    #[test]
    fn the_worst_comes_first() {
        let job = load("examples/tiny/job.ron".as_ref(), &Overrides::default()).expect("the example").job;
        let plan = compile(&job).expect("a plan").plan;
        let simulation = simulate(&plan).expect("times");
        let mut timings = Timings { steps: vec![simulation.step], ..Timings::default() };
        for (program, timing) in (0..).zip(&simulation.programs) {
            timings.programs.insert(program, vec![timing.total]);
            for (op, span) in (0..).zip(&timing.ops) {
                timings.ops.insert((program, op), vec![span.duration() + Nanos(1_000) * u64::from(op); 3]);
            }
        }
        let told = told(&plan, &simulation, &timings, &[]).expect("a comparison");
        assert!(told.chunks.iter().all(|row| row.measured_ns == row.predicted_ns && row.runs == 1));
        let off = |row: &Row| row.measured_ns.0 - row.predicted_ns.0;
        let most = plan.programs.iter().map(|program| program.ops.len()).max().expect("programs");
        assert_eq!((told.ops[0].runs, off(&told.ops[0])), (3, 1_000 * (most as u64 - 1)));
        assert!(told.ops.is_sorted_by_key(|row| std::cmp::Reverse(off(row))));
        assert_eq!(told.ops.len(), plan.programs.iter().map(|program| program.ops.len()).sum::<usize>());
        assert!(super::told(&plan, &simulation, &Timings::default(), &[]).is_err());
        let text = text(&plan, &told, 2, 120);
        assert!(text.contains("a step takes") && text.contains(&format!("{} more", told.ops.len() - 2)), "{text}");
    }

    /// A rank that computes for 4 of 10 µs, 1 of them beside an exchange of 3, and one that does nothing.
    #[test]
    fn shares_add_up() {
        let ran = |exchange, what, start, end| Ran {
            stream: StreamId::Compute,
            exchange,
            name: String::new(),
            what,
            start: Nanos(start),
            end: Nanos(end),
        };
        let ops = vec![
            ran(false, What::Program(0), 0, 6_000),
            ran(false, What::Op(0, 0), 0, 4_000),
            ran(true, What::Op(0, 1), 3_000, 6_000),
            Ran { stream: StreamId::Sync, ..ran(false, What::Item, 9_000, 10_000) },
        ];
        let (one, other) = (Gpu { rank: 0, replica: 0 }, Gpu { rank: 1, replica: 0 });
        let shares = measured_shares(&[(one, ops), (other, Vec::new())]);
        let within = |share: f64, expected: f64| (share - expected).abs() < 1e-12;
        assert!(within(shares.busy, 0.2) && within(shares.exposed, 0.15) && within(shares.bubble, 0.65), "{shares:?}");
        let nothing = measured_shares(&[]);
        assert_eq!((nothing.busy, nothing.exposed), (0.0, 0.0));
    }
}
