//! `dualweave run`: train a model as a plan says. Here: on the host; [`cuda`] has the same on GPUs.

mod checkpoint;
pub mod cuda;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::{Verdict, output};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::runtime::checkpoint::Progress;
use crate::runtime::host::adamw::AdamW;
use crate::runtime::host::executor::compare::Difference;
use crate::runtime::host::executor::{Executor, Order};
use crate::runtime::host::precision::Policy;
use crate::runtime::host::rate::Rate;
use crate::runtime::host::reference::Step;
use crate::runtime::host::text::Text;
use crate::runtime::host::{Real, Shape};
use crate::verify::{Rule, verify};
use crate::view::numbers::{count, grouped};
use checkpoint::Folder;

/// Learning rate: usual for models as small as those that a CPU trains (Kaplan et al. 2020, appendix D, give 1 to 3e-3).
const LEARNING_RATE: f64 = 1e-3;
/// A learning rate above this is a mistake: AdamW moves every weight by about as much in each step.
const LARGEST_RATE: f64 = 1.0;

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The plan, as `dualweave compile` writes it.
    plan: PathBuf,
    /// What runs it: `host` is this computer's CPU, one thread for each GPU of the plan; `cuda` its GPUs, or those of several computers, where
    /// torchrun or srun starts a process for each GPU of the plan.
    #[arg(long, value_enum, default_value_t = Backend::Host)]
    backend: Backend,
    /// Steps to take.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Number that initial parameters and the choice of data depend on. Default: 0.
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    seed: Option<u64>,
    /// Learning rate of AdamW.
    #[arg(long, value_name = "RATE", default_value_t = LEARNING_RATE, value_parser = rate, allow_negative_numbers = true)]
    lr: f64,
    /// Step at which the learning rate is reached: until then it rises along a line.
    #[arg(long, value_name = "STEP", default_value_t = 0)]
    lr_warm_up: u32,
    /// Step at which a tenth of the learning rate is left, and stays: until then it falls along a cosine. By default it does not fall.
    #[arg(long, value_name = "STEP")]
    lr_decay: Option<u32>,
    /// Compare losses and gradients of every step with a trainer that has no pipeline; exit code 1 if they differ.
    #[arg(long)]
    check: bool,
    /// Numbers to compute with. `as-planned`: the formats of the plan's model, in f32; with `--check`, f64 by default.
    #[arg(long, value_enum)]
    precision: Option<Numbers>,
    /// Text to train on, whose bytes are the tokens; by default Genesis 1 to 25.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Folder in which the training's state is kept: written at the end, and while it goes on. A run that is interrupted leaves the last
    /// state whole.
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Steps between checkpoints.
    #[arg(long, value_name = "N", default_value_t = 100, requires = "checkpoint", value_parser = clap::value_parser!(u32).range(1..))]
    checkpoint_every: u32,
    /// Go on from the checkpoint, for `--steps` more steps.
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Print what came of each step as JSON, at the end.
    #[arg(long)]
    json: bool,
    /// GPUs to use, the first ones; ranks share them if they are more. By default all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = CUDA)]
    gpus: Option<u32>,
    /// Seconds that a rank may take for an item of the plan, or a process to come where others wait, until the run is given up.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..), help_heading = CUDA)]
    time_out: u64,
    /// Write when everything ran in the last step, for ui.perfetto.dev.
    #[arg(long, value_name = "FILE", help_heading = CUDA)]
    trace: Option<PathBuf>,
}

/// Above the options that only GPUs have.
const CUDA: &str = "With `--backend cuda`";

/// What a plan can be run by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// Threads of this computer.
    Host,
    /// Its NVIDIA GPUs.
    Cuda,
}

/// Number formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Numbers {
    F32,
    F64,
    AsPlanned,
}

impl Numbers {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::AsPlanned => "as-planned",
        }
    }

    /// The largest difference from the reference that the order of sums explains, in parts of a loss or of a gradient's norm.
    fn tolerance(self) -> f64 {
        match self {
            Self::F64 => 1e-9,
            Self::F32 | Self::AsPlanned => 1e-3,
        }
    }
}

impl Args {
    fn rate(&self) -> Result<Rate> {
        match self.lr_decay {
            Some(decayed) if decayed <= self.lr_warm_up => Err(Error::new(format!(
                "a learning rate that rises until step {} cannot have fallen at step {decayed}",
                self.lr_warm_up
            ))
            .help("steps are counted from the first of the training: `--lr-decay` must be behind `--lr-warm-up`")),
            decayed => Ok(Rate { most: self.lr, warm_up: self.lr_warm_up, decayed }),
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= LARGEST_RATE => Ok(rate),
        _ => Err(format!("a number above 0, and at most {LARGEST_RATE}")),
    }
}

/// Runs it. Steps that differ from the reference are the verdict `No`.
pub fn run(args: Args) -> Result<Verdict> {
    let plan = Plan::from_ron(&args.plan.display().to_string(), &output::read(&args.plan)?)?;
    safe(&plan, &args.plan)?;
    if args.backend == Backend::Cuda {
        return cuda::run(&args, plan);
    }
    if args.gpus.is_some() || args.trace.is_some() {
        return Err(Error::new("`--gpus` and `--trace` are for `--backend cuda`"));
    }
    let numbers = args.precision.unwrap_or(if args.check { Numbers::F64 } else { Numbers::AsPlanned });
    if args.check && numbers == Numbers::AsPlanned {
        return Err(Error::new(
            "formats of few bits round sums in another order to other numbers, so they cannot be compared",
        )
        .help("check with `--precision f64` or `f32`"));
    }
    let planned = Shape::of_plan(&plan);
    let exact = Shape { policy: Policy::EXACT, ..planned.clone() };
    match numbers {
        Numbers::F64 => train::<f64>(&args, plan, exact, numbers),
        Numbers::F32 => train::<f32>(&args, plan, exact, numbers),
        Numbers::AsPlanned => train::<f32>(&args, plan, planned, numbers),
    }
}

/// Only what the verifier passes is run. How much memory the plan's GPUs have does not matter here.
fn safe(plan: &Plan, path: &Path) -> Result<()> {
    let report = verify(plan);
    match report.violations.iter().find(|violation| violation.rule != Rule::Memory) {
        None => Ok(()),
        Some(violation) => Err(Error::new(format!("the plan is not safe to run: {violation}"))
            .help(format!("`dualweave verify {}` says all that is wrong with it", path.display()))),
    }
}

/// A step that was taken.
#[derive(Serialize)]
struct Taken {
    step: u32,
    losses: Vec<f64>,
    gradient_norm: f64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Apart>,
    /// What the host made of the same step, where GPUs took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<OnHost>,
}

/// A step on the host.
#[derive(Serialize)]
struct OnHost {
    losses: Vec<f64>,
    gradient_norm: f64,
}

/// How far it is from the reference.
#[derive(Serialize)]
struct Apart {
    loss: f64,
    gradient: f64,
    tensor: String,
}

#[derive(Serialize)]
struct Summary<'a> {
    plan: &'a str,
    model: &'a str,
    gpus: u64,
    precision: &'static str,
    tokens_per_step: u64,
    tokens_per_second: f64,
    same_as_reference: Option<bool>,
    steps: &'a [Taken],
}

fn train<T: Real>(args: &Args, plan: Plan, shape: Shape, numbers: Numbers) -> Result<Verdict> {
    let text = match &args.data {
        Some(path) => Text::new(&shape, output::read(path)?.into_bytes())?,
        None => Text::genesis(&shape)?,
    };
    let optimizer = AdamW { learning_rate: args.rate()?, ..AdamW::default() };
    let mut progress = Progress {
        steps: 0,
        seed: args.seed.unwrap_or_default(),
        precision: numbers.name().to_owned(),
        text: text.digest(),
    };
    let folder = Folder::of(args);
    let saved = folder.as_ref().map(Folder::read).transpose()?.flatten();
    let mut executor = Executor::<T>::new(plan, shape.clone(), optimizer, progress.seed)?;
    if let Some(bytes) = &saved {
        let checkpoint = checkpoint::admitted(bytes, &progress)?;
        executor.restore(&checkpoint)?;
        progress = checkpoint.progress;
    }
    folder.as_ref().map(Folder::make).transpose()?;

    let last = progress.steps.checked_add(args.steps).ok_or_else(|| Error::new("these are too many steps"))?;
    let bar = progress_bar(args.steps, args.json);
    if !args.json {
        print_line(&bar, &heading(&shape, args.check))?;
    }
    let (mut taken, mut time, mut same) = (Vec::new(), Duration::ZERO, true);
    while progress.steps < last {
        let data = text.step(&shape, executor.plan(), progress.seed, u64::from(progress.steps))?;
        let expected = args.check.then(|| executor.expected(&data));
        let start = Instant::now();
        let step = executor.step(&data, Order::List)?;
        let seconds = start.elapsed();
        time += seconds;
        progress.steps += 1;
        let difference = expected.map(|expected| executor.difference(&step, &expected));
        same &= difference.as_ref().is_none_or(|apart| apart.loss.max(apart.gradient) <= numbers.tolerance());
        if !args.json {
            print_line(&bar, &line(progress.steps, &step, difference.as_ref()))?;
        }
        let difference = difference.map(|Difference { loss, gradient, tensor }| Apart { loss, gradient, tensor });
        let Step { losses, gradient_norm } = step;
        let seconds = seconds.as_secs_f64();
        taken.push(Taken { step: progress.steps, losses, gradient_norm, seconds, difference, host: None });
        bar.inc(1);
        if let Some(folder) = folder.as_ref().filter(|folder| folder.is_due(progress.steps, last)) {
            folder.write(&executor.checkpoint(&progress)?)?;
        }
    }
    bar.finish_and_clear();

    let plan = executor.plan();
    let rate = plan.origin.tokens_per_step as f64 * f64::from(args.steps) / time.as_secs_f64();
    if args.json {
        output::print(&output::to_json(&Summary {
            plan: &plan.digest,
            model: &plan.model.name,
            gpus: plan.origin.gpus,
            precision: numbers.name(),
            tokens_per_step: plan.origin.tokens_per_step,
            tokens_per_second: rate,
            same_as_reference: args.check.then_some(same),
            steps: &taken,
        })?)?;
    } else {
        if args.check {
            output::print(&conclusion(same, numbers, &taken))?;
        }
        output::note(format!(
            "{} as {}: {} of {} tokens, {} tokens/s",
            plan.model.name,
            count(plan.origin.gpus, "thread"),
            count(u64::from(args.steps), "step"),
            grouped(plan.origin.tokens_per_step),
            grouped(rate.round() as u64)
        ));
    }
    Ok(if same { Verdict::Yes } else { Verdict::No })
}

/// On a terminal, a bar that stays below the lines that are printed.
fn progress_bar(steps: u32, json: bool) -> ProgressBar {
    let terminal = std::io::stderr().is_terminal() && (json || std::io::stdout().is_terminal());
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(steps.into()), target);
    match ProgressStyle::with_template("{wide_bar} {pos}/{len} steps, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn print_line(bar: &ProgressBar, line: &str) -> Result<()> {
    bar.suspend(|| output::print(&format!("{line}\n")))
}

fn heading(shape: &Shape, check: bool) -> String {
    let modules = (0..shape.model.mtp_layers).map(|module| format!("  {:>8}", format!("mtp {module}")));
    let check = if check { "  off: loss  gradients" } else { "" };
    format!("{:>6}  {:>8}{}  {:>13}{check}", "step", "loss", modules.collect::<String>(), "gradient norm")
}

fn line(number: u32, step: &Step, difference: Option<&Difference>) -> String {
    let losses: String = step.losses.iter().map(|loss| format!("  {loss:>8.4}")).collect();
    let apart =
        difference.map_or_else(String::new, |apart| format!("  {:>9.1e}  {:>9.1e}", apart.loss, apart.gradient));
    format!("{number:>6}{losses}  {:>13.4}{apart}", step.gradient_norm)
}

/// What the comparison with the reference came to.
fn conclusion(same: bool, numbers: Numbers, taken: &[Taken]) -> String {
    let tolerance = numbers.tolerance();
    if same {
        return format!("every loss and gradient is the reference's, to {tolerance:.0e}\n");
    }
    let differences = taken.iter().filter_map(|taken| Some((taken.step, taken.difference.as_ref()?)));
    let worst = differences.max_by(|(_, a), (_, b)| a.loss.max(a.gradient).total_cmp(&b.loss.max(b.gradient)));
    worst.map_or_else(String::new, |(step, apart)| {
        format!(
            "not the reference's: in step {step} the loss is off by {:.1e}, the gradient of {} by {:.1e}; {tolerance:.0e} is allowed\n",
            apart.loss, apart.tensor, apart.gradient
        )
    })
}
