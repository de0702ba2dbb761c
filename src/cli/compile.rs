//! `dualweave compile`: a job to a plan.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::job::{self, Overrides};
use crate::passes::{self, Compiled, StageLoad};
use crate::plan::Plan;
use crate::sim::memory::memory;
use crate::sim::simulate;
use crate::units::Nanos;
use crate::view::numbers::count;
use crate::view::{self, table};

/// Arguments of `compile`.
#[derive(clap::Args)]
pub struct Args {
    /// The job: a RON file with model, cluster and training.
    job: PathBuf,
    /// Where the plan goes; `-` is standard output.
    #[arg(short, long, value_name = "PLAN", default_value = "plan.ron")]
    output: PathBuf,
    /// Print the stage summary as JSON on standard output, instead of a table on standard error.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Compiles and writes.
///
/// # Errors
/// If the job cannot be read or does not make sense, or the plan cannot be written.
pub fn run(args: Args) -> Result<Verdict> {
    if args.json && output::is_stdout(&args.output) {
        return Err(Error::new("the plan and the summary of --json cannot both go to standard output")
            .help("name a file for the plan with `-o`"));
    }
    output::keep_apart(&args.job, &args.output)?;
    let loaded = job::load(&args.job, &args.overrides)?;
    let compiled = passes::compile(&loaded.job).map_err(|error| loaded.locate(error))?;
    output::write(&args.output, &compiled.plan.to_ron())?;
    for note in &loaded.notes {
        output::note(format!("note: {note}"));
    }
    if let Some(warning) = memory_warning(&compiled.plan)? {
        output::note(warning);
    }
    match args.json {
        true => output::print(&json(&compiled)?)?,
        false => output::note(summary(&compiled, &args.output, output::talk_width())),
    }
    Ok(Verdict::Yes)
}

/// What to say if the plan needs more memory than there is. It is written all the same: `simulate` says what takes the room.
fn memory_warning(plan: &Plan) -> Result<Option<String>> {
    let simulation = simulate(plan)?;
    let needs = memory(plan, &simulation).into_iter().map(|rank| rank.need.total());
    let Some((rank, need)) = needs.enumerate().max_by_key(|&(rank, need)| (need, std::cmp::Reverse(rank))) else {
        return Ok(None);
    };
    let limit = plan.machine.memory;
    Ok((need > limit).then(|| {
        format!(
            "warning: the plan does not fit: rank {rank} needs {need}, {} more than {limit}; `dualweave simulate` says what \
             takes the room",
            need - limit
        )
    }))
}

#[derive(Serialize)]
struct Summary<'a> {
    digest: &'a str,
    makespan_ns: u64,
    lower_bound_ns: u64,
    pairs_over_bound: Option<f64>,
    stages: Vec<Stage>,
}

#[derive(Serialize)]
struct Stage {
    stage: usize,
    units: Vec<String>,
    /// Where it is not the same on all stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    recompute: Option<Vec<&'static str>>,
    ranks: Vec<u32>,
    parameters_bytes: u64,
    computation_ns: u64,
    communication_ns: u64,
    computation_to_communication: Option<f64>,
}

fn json(compiled: &Compiled) -> Result<String> {
    let stages = compiled.loads.iter().enumerate().map(|(number, load)| Stage {
        stage: number,
        units: load.stage.units.iter().map(ToString::to_string).collect(),
        recompute: compiled.plan.recompute_differs().then(|| load.stage.recompute.names().collect()),
        ranks: compiled.plan.layout.holders(number as u32),
        parameters_bytes: compiled.plan.stages[number].parameters.0,
        computation_ns: load.computation.0,
        communication_ns: load.communication.0,
        computation_to_communication: ratio(load),
    });
    output::to_json(&Summary {
        digest: &compiled.plan.digest,
        makespan_ns: compiled.plan.timetable.makespan.0,
        lower_bound_ns: compiled.plan.timetable.lower_bound.0,
        pairs_over_bound: compiled.pair_gap.map(|(_, all)| all),
        stages: stages.collect(),
    })
}

/// Computation per communication of a chunk; `None` if it communicates nothing.
fn ratio(load: &StageLoad) -> Option<f64> {
    (load.communication > Nanos::ZERO).then(|| load.computation.as_f64() / load.communication.as_f64())
}

fn summary(compiled: &Compiled, written_to: &Path, width: usize) -> String {
    let plan = &compiled.plan;
    let differs = plan.recompute_differs();
    let mut columns = vec!["stage", "units", "ranks", "weights", "computation", "dispatch + combine", "ratio"];
    if differs {
        columns.push("computed again");
    }
    let mut table = table::new(&columns, width);
    for (number, load) in compiled.loads.iter().enumerate() {
        let ranks: Vec<String> = plan.layout.holders(number as u32).iter().map(ToString::to_string).collect();
        let mut row = vec![
            number.to_string(),
            view::units::runs(&load.stage.units),
            ranks.join(", "),
            plan.stages[number].parameters.to_string(),
            load.computation.to_string(),
            load.communication.to_string(),
            ratio(load).map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
        ];
        if differs {
            row.push(load.stage.recompute.to_string());
        }
        table.add_row(row);
    }
    table::finish(&mut table, &[0, 3, 4, 5, 6]);
    let items: usize = plan.ranks.iter().map(|rank| rank.items.len()).sum();
    let written_to = match output::is_stdout(written_to) {
        true => "the plan".to_owned(),
        false => written_to.display().to_string(),
    };
    let pairs = compiled.pair_gap.map_or_else(String::new, |(most, all)| {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        format!("Pairs: {} over what any order could take, {} at most.\n", percent(all), percent(most))
    });
    format!(
        "{} on {}: {} over {}, {}\n{table}\n\
         Times: one micro-batch, F, I and W together; computation on {} SMs, communication on {}. Ratio: computation to communication.\n\
         {pairs}Timetable: {}; with these programs and this placement none is shorter than {}.\n\
         Wrote {written_to}: {}, {}.",
        plan.model.name,
        plan.origin.cluster,
        plan.origin.schedule,
        count(u64::from(plan.layout.ranks), "rank"),
        count(u64::from(plan.layout.micro_batches), "micro-batch"),
        plan.machine.sms - compiled.communication_sms,
        compiled.communication_sms,
        plan.timetable.makespan,
        plan.timetable.lower_bound,
        count(items as u64, "item"),
        count(plan.programs.len() as u64, "program"),
    )
}
