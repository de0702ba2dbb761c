//! `dualweave schedule`: a published timetable over equal stages with costs that are plain numbers.
//!
//! Costs are decimals in a unit of the user's own. They are scaled by a power of ten to whole numbers, so that everything
//! that is computed from them is exact, and scaled back for printing.

use std::str::FromStr;

use clap::ValueEnum;
use serde::Serialize;

use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::ir::{Hops, Layout, PairCost, Problem, StageCost, Timetable};
use crate::job::training::ScheduleKind;
use crate::passes::pipeline::{Replay, generate, lower_bound, precondition, replay};
use crate::units::Nanos;
use crate::view::chart::{Axis, Bar, Row, render_on};

/// Width of a chart that no terminal limits.
const PIPED_WIDTH: usize = 100;

/// Most decimal places of a cost.
const MOST_PLACES: u32 = 9;

/// Times stay below this, so that they are exact as JSON numbers, which many readers take for doubles.
const LARGEST_TIME: u128 = 1_000_000_000_000_000;

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The schedule.
    #[arg(long, value_enum)]
    kind: ScheduleKind,
    /// Pipeline ranks.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pp: u32,
    /// Micro-batches of a step, over both directions.
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    micro_batches: u32,
    /// Cost of a forward.
    #[arg(long, value_name = "COST", default_value = "1", allow_negative_numbers = true)]
    f: Decimal,
    /// Cost of a backward for the input.
    #[arg(long, value_name = "COST", default_value = "1", allow_negative_numbers = true)]
    i: Decimal,
    /// Cost of a weight gradient; a full backward costs i + w.
    #[arg(long, value_name = "COST", default_value = "1", allow_negative_numbers = true)]
    w: Decimal,
    /// Cost of a forward overlapped with a full backward [default: f + i + w].
    #[arg(long, value_name = "COST", allow_negative_numbers = true)]
    fb: Option<Decimal>,
    /// Time from rank to rank.
    #[arg(long, value_name = "COST", default_value = "0", allow_negative_numbers = true)]
    comm: Decimal,
    /// Stages of each rank; `interleaved` only, the others fix it [default: 2].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    stages_per_rank: Option<u32>,
    /// What to print.
    #[arg(long, value_enum, default_value = "chart")]
    format: Format,
}

/// What to print.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Drawn against time, with makespan and bound; as wide as the terminal, 100 columns when piped.
    Chart,
    /// One line per rank, in the rank's own counting, as DeepSeek's code has it: `F0.3`, `FB0.7:1.3`.
    Tokens,
    /// One line per rank, by stage and micro-batch, as PyTorch has it: `3F7`, `(0F3;7B1)OVERLAP_F_B`.
    Stage,
    /// One object: times, memory and the token list of each rank.
    Json,
}

/// Runs it.
pub fn run(args: Args) -> Result<Verdict> {
    let per_rank = stages_per_rank(&args)?;
    precondition(args.kind, args.pp, per_rank, args.micro_batches)?;
    let layout = Layout::new(args.kind.placement(), args.pp, per_rank, args.micro_batches);
    let (problem, axis) = problem(&args, layout)?;
    let timetable = generate(args.kind, &layout)?;
    let text = match args.format {
        Format::Tokens => timetable.local_tokens(),
        Format::Stage => timetable.stage_tokens(),
        Format::Chart => chart(&args, &problem, &timetable, axis)?,
        Format::Json => json(&args, &problem, &timetable, axis)?,
    };
    output::print(&text)?;
    Ok(Verdict::Yes)
}

fn stages_per_rank(args: &Args) -> Result<u32> {
    match (args.kind, args.stages_per_rank) {
        (ScheduleKind::Interleaved, given) => Ok(given.unwrap_or(2)),
        (_, None) => Ok(1),
        (kind, Some(_)) => {
            Err(Error::new(format!("{kind} fixes the stages of a rank, so --stages-per-rank says nothing"))
                .help("leave it out, or use --kind interleaved"))
        }
    }
}

/// The costs as whole numbers, and the axis that leads back to the user's unit.
fn problem(args: &Args, layout: Layout) -> Result<(Problem, Axis)> {
    for (name, cost) in [("f", Some(args.f)), ("i", Some(args.i)), ("fb", args.fb)] {
        if cost.is_some_and(|cost| cost.digits == 0) {
            return Err(Error::new(format!("--{name} must be above 0")).help("only --w and --comm may be 0"));
        }
    }
    let costs = [Some(args.f), Some(args.i), Some(args.w), args.fb, Some(args.comm)];
    let places = costs.iter().flatten().map(|cost| cost.places).max().unwrap_or(0);
    let [f, i, w, fb, comm] = costs.map(|cost| cost.map_or(0, |cost| cost.scaled(places)));
    let fb = if args.fb.is_some() { fb } else { f + i + w };
    // No makespan is above the sum of everything.
    let chunk = (f + i + w).max(fb) + 2 * comm;
    let chunks = u128::from(layout.stages) * u128::from(layout.micro_batches);
    if chunk.checked_mul(chunks).is_none_or(|total| total > LARGEST_TIME) {
        return Err(Error::new("the makespan of these costs has too many digits to be printed exactly")
            .help("use smaller costs, or fewer decimal places"));
    }
    // All below `LARGEST_TIME`.
    let [f, i, w, fb, hop] = [f, i, w, fb, comm].map(|cost| Nanos(cost as u64));
    let stages = vec![StageCost { f, i, w, b: i + w }; layout.stages as usize];
    Ok((
        Problem { layout, stages, pair: PairCost::Uniform(fb), hops: Hops::Uniform(hop), memory: None },
        Axis { places, unit: "" },
    ))
}

fn chart(args: &Args, problem: &Problem, timetable: &Timetable, axis: Axis) -> Result<String> {
    let replay = replay(problem, timetable)?;
    let rows: Vec<Row> = (0..)
        .zip(timetable.ranks.iter().zip(&replay.spans))
        .map(|(rank, (actions, spans))| Row {
            label: format!("rank {rank}"),
            bars: actions
                .iter()
                .zip(spans)
                .map(|(&action, span)| Bar::new(&problem.layout, rank, action, span.start, span.end))
                .collect(),
        })
        .collect();
    let width = output::terminal_width().unwrap_or(PIPED_WIDTH);
    let chart = render_on(&rows, replay.makespan, width, axis);
    let title = format!("{} · {} ranks · {} micro-batches", args.kind, args.pp, args.micro_batches);
    Ok(format!("{title}\n\n{chart}\n{}\n", summary(problem, &replay, axis)))
}

/// The numbers that go under a chart.
fn summary(problem: &Problem, replay: &Replay, axis: Axis) -> String {
    let bound = lower_bound(problem);
    let bubble = replay.bubble_per_rank().into_iter().max().unwrap_or(Nanos::ZERO);
    let peak = replay.peak_activations_per_rank().iter().max().copied().unwrap_or(0);
    format!(
        "makespan {} · lower bound {} (gap {:.1} %) · largest bubble {} ({:.1} %) · peak activations {peak}",
        axis.number(replay.makespan),
        axis.number(bound),
        100.0 * gap(replay.makespan, bound),
        axis.number(bubble),
        100.0 * bubble.as_f64() / replay.makespan.as_f64(),
    )
}

fn gap(makespan: Nanos, bound: Nanos) -> f64 {
    makespan.as_f64() / bound.as_f64() - 1.0
}

/// The object that `--format json` prints. Times are in the user's unit.
#[derive(Serialize)]
struct Report {
    kind: &'static str,
    pp: u32,
    micro_batches: u32,
    makespan: serde_json::Number,
    longest_span: serde_json::Number,
    bubble_per_rank: Vec<serde_json::Number>,
    peak_activations_per_rank: Vec<u32>,
    lower_bound: serde_json::Number,
    /// makespan / lower_bound - 1.
    gap: f64,
    /// Per rank, local tokens.
    actions: Vec<Vec<String>>,
}

fn json(args: &Args, problem: &Problem, timetable: &Timetable, axis: Axis) -> Result<String> {
    let replay = replay(problem, timetable)?;
    let bound = lower_bound(problem);
    let number = |time: Nanos| number(time, axis);
    let tokens =
        |(rank, actions): (u32, &Vec<_>)| actions.iter().map(|&action| timetable.local_token(rank, action)).collect();
    let report = Report {
        kind: args.kind.name(),
        pp: args.pp,
        micro_batches: args.micro_batches,
        makespan: number(replay.makespan),
        longest_span: number(replay.longest_span()),
        bubble_per_rank: replay.bubble_per_rank().into_iter().map(number).collect(),
        peak_activations_per_rank: replay.peak_activations_per_rank().to_vec(),
        lower_bound: number(bound),
        gap: gap(replay.makespan, bound),
        actions: (0..).zip(&timetable.ranks).map(tokens).collect(),
    };
    let text = serde_json::to_string(&report).map_err(|error| Error::new(format!("no JSON can be made: {error}")))?;
    Ok(text + "\n")
}

/// A time as a JSON number in the user's unit: whole, or the double nearest to the decimal.
fn number(time: Nanos, axis: Axis) -> serde_json::Number {
    let one = 10_u64.pow(axis.places);
    if time.0.is_multiple_of(one) {
        return (time.0 / one).into();
    }
    // Both operands are exact (`LARGEST_TIME`), so the quotient is the nearest double and prints as the decimal.
    serde_json::Number::from_f64(time.as_f64() / one as f64).unwrap_or_else(|| 0.into())
}

/// A cost as it was written: `digits` / 10^`places`, without trailing zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decimal {
    digits: u64,
    places: u32,
}

impl Decimal {
    /// In units of 10^-`places`, which must not be coarser than the number's own.
    fn scaled(self, places: u32) -> u128 {
        u128::from(self.digits) * 10_u128.pow(places - self.places)
    }
}

impl FromStr for Decimal {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text.starts_with('-') {
            return Err("a cost is not negative".to_owned());
        }
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let written = format!("{whole}{part}");
        if written.is_empty() || !written.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("a cost is a decimal number, like 2.4".to_owned());
        }
        let part = part.trim_end_matches('0');
        if part.len() > MOST_PLACES as usize {
            return Err(format!("a cost has at most {MOST_PLACES} decimal places"));
        }
        let digits = format!("0{whole}{part}").parse().map_err(|_| "the cost is too large".to_owned())?;
        Ok(Self { digits, places: part.len() as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_read_exactly() {
        let read = |text: &str| text.parse::<Decimal>().map(|cost| (cost.digits, cost.places));
        assert_eq!(read("2.4"), Ok((24, 1)));
        assert_eq!(read("2.400"), Ok((24, 1)));
        assert_eq!(read("10"), Ok((10, 0)));
        assert_eq!(read(".5"), Ok((5, 1)));
        assert_eq!(read("5."), Ok((5, 0)));
        assert_eq!(read(".0"), Ok((0, 0)));
        assert_eq!(read("0.000000001"), Ok((1, 9)));
        for bad in
            ["", ".", "-1", "-0.5", "1e3", "NaN", "inf", "+1", "1.2.3", "0.0000000001", "99999999999999999999", "١"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
