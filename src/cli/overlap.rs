//! `dualweave overlap`: what runs beside what in a pair of layers, and how good that can be.

use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use serde::Serialize;

use super::{Verdict, components, output};
use crate::error::{Error, Result};
use crate::ir::Stream;
use crate::job::training::PairOrder;
use crate::job::{self, Job, Overrides};
use crate::machine::Machine;
use crate::passes::overlap::budget;
use crate::passes::overlap::cyclic::{CyclicProblem, CyclicSchedule, middle_layer};
use crate::passes::overlap::report::{Steady, bound_reason, form_span, steady, steady_form};
use crate::passes::rewrite;
use crate::passes::rewrite::choose::{Asked, Choice, Choices};
use crate::units::Nanos;
use crate::view::{pair, table};

/// Columns of a report that goes into a file or a pipe.
const PLAIN_WIDTH: usize = 100;

/// Arguments of `overlap`.
#[derive(clap::Args)]
pub struct Args {
    /// The job, whose layers with experts are paired; or `--components`.
    #[arg(required_unless_present = "components", conflicts_with = "components")]
    job: Option<PathBuf>,
    /// Durations instead of a job: lines `component,phase,ms` (attn|dispatch|mlp|combine, F|I|W, or F|B for dispatch and
    /// combine).
    #[arg(long, value_name = "FILE")]
    components: Option<PathBuf>,
    /// Layers that a chunk has: the span is that of so many pairs.
    #[arg(long, value_name = "N", default_value_t = 4, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    layers: u64,
    /// Report on this order alone.
    #[arg(long, value_enum)]
    order: Option<PairOrder>,
    /// Print the order that is asked for (the search's, if none is) as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Reports on the pair.
pub(super) fn run(args: Args) -> Result<Verdict> {
    output::print(&printed(&args)?)?;
    Ok(Verdict::Yes)
}

/// What the command prints.
///
/// # Errors
/// If the job or the file of components cannot be read, does not make sense, or has nothing that overlaps.
pub fn printed(args: &Args) -> Result<String> {
    let (title, problem, job) = match (&args.components, &args.job) {
        (Some(_), _) if args.overrides != Overrides::default() => {
            return Err(Error::new("flags of the training run say nothing about `--components`")
                .help("leave them out, or name a job"));
        }
        (Some(file), _) => (file.display().to_string(), components(file)?, None),
        (None, Some(file)) => {
            let loaded = job::load(file, &args.overrides)?;
            let sweep = sweep(&loaded.job).map_err(|error| loaded.locate(error))?;
            let best = sweep.iter().min_by_key(|(sms, period)| (*period, *sms)).map(|(sms, _)| *sms);
            let sms = loaded.job.training.communication_sms.fixed().or(best).unwrap_or(2);
            let problem = of_job(&loaded.job, sms)?;
            let title =
                format!("{} on {}, {sms} SMs for communication", loaded.job.model.name, loaded.job.cluster.name);
            loaded.notes.iter().for_each(|note| output::note(format!("note: {note}")));
            // The JSON is about the plain layer.
            let of_job = match args.json {
                true => None,
                false => {
                    let rewritten = rewritten(&loaded.job, sms, args.layers).map_err(|error| loaded.locate(error))?;
                    Some(OfJob { sweep, rewritten })
                }
            };
            (title, problem, of_job)
        }
        (None, None) => return Err(Error::new("there is nothing to overlap").help("name a job, or --components FILE")),
    };
    let contradiction =
        |order: PairOrder| Error::new(format!("these components cannot run in the order `{}`", order.name()));
    let of = |order: PairOrder| steady(&problem, order, args.layers).ok_or_else(|| contradiction(order));
    if args.json {
        let found = of(args.order.unwrap_or(PairOrder::Search))?;
        return output::to_json(&json(&problem, &found));
    }
    let orders = args.order.map_or_else(|| PairOrder::ALL.to_vec(), |order| vec![order]);
    let found = orders.into_iter().map(of).collect::<Result<Vec<_>>>()?;
    let width = output::terminal_width().unwrap_or(PLAIN_WIDTH);
    let mut text = text(&title, &problem, &found, args.layers, width);
    if let Some(job) = job {
        text.push_str(&job.text(args.layers, width));
    }
    Ok(text)
}

/// The pair of a file of components.
fn components(file: &Path) -> Result<CyclicProblem> {
    let durations = components::read(file)?;
    let of = |component, phase| durations.get(&(component, phase)).copied().unwrap_or(Nanos::ZERO);
    Ok(CyclicProblem::layer_pair(of))
}

/// The pair of a job's middle layer with experts.
fn of_job(job: &Job, communication_sms: u32) -> Result<CyclicProblem> {
    let machine = Machine::new(&job.cluster, job.training.memory_limit_gb);
    CyclicProblem::of_job(job, &machine, communication_sms).ok_or_else(|| {
        Error::new("the model has no layer with experts, so nothing to overlap")
            .help("overlap a mixture of experts")
            .field("model.moe")
    })
}

/// The best period for every number of SMs that communication may have.
fn sweep(job: &Job) -> Result<Vec<(u32, Nanos)>> {
    budget::offered(job)
        .into_iter()
        .filter_map(|sms| {
            let problem = match of_job(job, sms) {
                Ok(problem) => problem,
                Err(error) => return Some(Err(error)),
            };
            steady(&problem, PairOrder::Search, 1).map(|found| Ok((sms, found.schedule.period)))
        })
        .collect()
}

#[derive(Serialize)]
struct Json {
    order_name: &'static str,
    period_ms: f64,
    span_ms: f64,
    span_bound_ms: f64,
    bound_ms: f64,
    proved: bool,
    order: Vec<String>,
}

fn json(problem: &CyclicProblem, found: &Steady) -> Json {
    Json {
        order_name: found.order.to_possible_value().map_or("", |_| found.order.name()),
        period_ms: found.schedule.period.millis(),
        span_ms: found.span.millis(),
        span_bound_ms: found.span_bound.millis(),
        bound_ms: found.schedule.bound.millis(),
        proved: found.schedule.proved(),
        order: pair::launches(problem, &found.schedule).into_iter().map(|at| pair::name(&problem.ops[at])).collect(),
    }
}

/// What is proved to be optimal, in a word.
fn proved(period: bool, span: bool) -> &'static str {
    match (period, span) {
        (true, true) => "both",
        (true, false) => "period",
        (false, true) => "span",
        (false, false) => "",
    }
}

fn text(title: &str, problem: &CyclicProblem, found: &[Steady], layers: u64, width: usize) -> String {
    let span = format!("span of {layers}");
    let mut table = table::new(&["order", "period", &span, "over the bound", "proved optimal"], width);
    for steady in found {
        let schedule = &steady.schedule;
        let over = schedule.period.as_f64() / schedule.bound.as_f64().max(1.0) - 1.0;
        table.add_row(vec![
            steady.order.name().to_owned(),
            format!("{:.3} ms", schedule.period.millis()),
            format!("{:.3} ms", steady.span.millis()),
            format!("{:.2} %", 100.0 * over),
            proved(schedule.proved(), steady.span_proved()).to_owned(),
        ]);
    }
    table::finish(&mut table, &[1, 2, 3]);
    let (compute, comm) = (problem.load(Stream::Compute), problem.load(Stream::Comm));
    let mut text = format!(
        "{title}: one layer's forward beside another's backward, repeated\n\n\
         computation {:.3} ms, communication {:.3} ms; no period is below {:.3} ms, {}\n{table}\n",
        compute.millis(),
        comm.millis(),
        problem.bound().millis(),
        bound_reason(problem),
    );
    // Of equals the last, which is the search.
    if let Some(best) = found.iter().rev().min_by_key(|steady| steady.schedule.period) {
        text.push_str(&format!(
            "\nOne period of `{}`\n{}",
            best.order.name(),
            pair::timeline(problem, &best.schedule, width)
        ));
    }
    text
}

/// What only a job has.
struct OfJob {
    /// Best period by the SMs of communication.
    sweep: Vec<(u32, Nanos)>,
    rewritten: Rewritten,
}

/// The layer as the rewrite rules make it.
#[derive(Default)]
struct Rewritten {
    /// The shortest periods first; none if no rule may be used.
    forms: Vec<Form>,
    /// See [`rewrite::choose::Choices::bound`].
    bound: Nanos,
}

/// A program of the layer.
struct Form {
    problem: CyclicProblem,
    schedule: CyclicSchedule,
    choice: Choice,
}

/// How many forms are shown.
const FORMS: usize = 4;

/// Layers of the chunks that forms are chosen for, at most: more would only take longer.
const CHUNK: u64 = 4;

/// The programs that are worth scheduling, each with its steady state.
fn rewritten(job: &Job, sms: u32, layers: u64) -> Result<Rewritten> {
    let machine = Machine::new(&job.cluster, job.training.memory_limit_gb);
    let Some(unit) = middle_layer(job).filter(|_| !rewrite::none_allowed(job)) else {
        return Ok(Rewritten::default());
    };
    let asked = Asked {
        job,
        machine: &machine,
        comm_sms: sms,
        unit,
        recompute: job.training.recompute,
        layers: layers.min(CHUNK) as u32,
    };
    let form = |choice: Choice| {
        let problem = CyclicProblem::of_form(&choice.form, &machine, sms);
        let schedule = steady_form(&problem)?;
        Some(Form { problem, schedule, choice })
    };
    let Choices { choices, bound } = asked.choose(&rewrite::options(job))?;
    let mut forms: Vec<Form> = choices.into_iter().filter_map(form).collect();
    forms.sort_by_key(|form| form.schedule.period);
    forms.truncate(FORMS);
    Ok(Rewritten { forms, bound })
}

impl OfJob {
    fn text(&self, layers: u64, width: usize) -> String {
        let mut text = String::new();
        if let [best, ..] = self.rewritten.forms.as_slice() {
            text.push_str(&self.rewritten.table(layers, width));
            text.push_str("\nForm 1 differs from one op after the other, each copy straight to its GPU:\n");
            best.choice.words.iter().for_each(|words| text.push_str(&format!("  {words}\n")));
            text.push_str(&pair::timeline(&best.problem, &best.schedule, width));
        }
        text.push_str(&format!(
            "\nBest period by the SMs that communication gets\n{}",
            pair::sweep(&self.sweep, width)
        ));
        text
    }
}

impl Rewritten {
    fn table(&self, layers: u64, width: usize) -> String {
        let span = format!("span of {layers}");
        let mut table =
            table::new(&["form", "ops", "least", "period", &span, "over the bound", "proved optimal"], width);
        for (number, Form { problem, schedule, choice }) in (1..).zip(&self.forms) {
            let Some(span) = form_span(problem, schedule, layers) else { continue };
            let over = schedule.period.as_f64() / schedule.bound.as_f64().max(1.0) - 1.0;
            table.add_row(vec![
                number.to_string(),
                problem.ops.len().to_string(),
                format!("{:.3} ms", choice.least.millis()),
                format!("{:.3} ms", schedule.period.millis()),
                format!("{:.3} ms", span.span.millis()),
                format!("{:.2} %", 100.0 * over),
                proved(schedule.proved(), span.proved()).to_owned(),
            ]);
        }
        table::finish(&mut table, &[0, 1, 2, 3, 4, 5]);
        format!(
            "\nRewritten, the layer may also run as\n{table}\nLeast: what the busiest engine or the longest chain takes if \
             nothing slows it; {:.3} ms for any program that the rules reach.\n",
            self.bound.millis()
        )
    }
}
