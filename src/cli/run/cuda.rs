//! `dualweave run --backend cuda`.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Args, Backend, Summary, Taken, Verdict, heading, line, print_line, progress_bar};
use crate::cli::output;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::runtime::cuda::executor::{Executor, Options, Span};
use crate::runtime::cuda::inventory;
use crate::runtime::host::Shape;
use crate::runtime::host::adamw::AdamW;
use crate::runtime::host::executor::{Executor as HostExecutor, Order};
use crate::runtime::host::reference::Step;
use crate::runtime::host::text::Text;
use crate::runtime::world::Gpu;
use crate::sim;
use crate::view::numbers::{count, grouped};
use crate::view::perfetto;

/// How far a loss may be from that of the host in the same formats, as a part of it. Both round to bf16 in every layer, but add up in
/// another order, so steps drift apart; see `docs/gpu.md` for what was measured.
const LOSS_TOLERANCE: f64 = 5e-3;

/// Trains on GPUs. With `--check`, losses that differ from the host's are the verdict `No`.
pub fn run(args: &Args, plan: Plan) -> Result<Verdict> {
    debug_assert_eq!(args.backend, Backend::Cuda, "called for it alone");
    if args.precision.is_some() {
        return Err(Error::new("GPUs compute in the formats of the plan; `--precision` is for `--backend host`"));
    }
    if args.checkpoint.is_some() {
        return Err(Error::new("the CUDA runtime keeps no checkpoints yet").help("`--backend host` does"));
    }
    // SAFETY: no other thread has been started: this runs on the main thread, before the first bar or rank.
    #[allow(unsafe_code)] // a variable of the environment, which CUDA reads when it is first called
    unsafe {
        inventory::ask_for_connections();
    }
    let shape = Shape::of_plan(&plan);
    let text = match &args.data {
        Some(path) => Text::new(&shape, output::read(path)?.into_bytes())?,
        None => Text::genesis(&shape)?,
    };
    let optimizer = AdamW { learning_rate: args.rate()?, ..AdamW::default() };
    let seed = args.seed.unwrap_or_default();
    let options = Options { gpus: args.gpus.map(|gpus| gpus as usize), time_out: Duration::from_secs(args.time_out) };
    let mut executor = Executor::new(plan.clone(), shape.clone(), optimizer, seed, &options)?;
    let mut host = match args.check {
        true => Some(HostExecutor::<f32>::new(plan, shape.clone(), optimizer, seed)?),
        false => None,
    };

    let bar = progress_bar(args.steps, args.json);
    if !args.json {
        print_line(&bar, &heading(&shape, false))?;
    }
    let (mut taken, mut time, mut worst) = (Vec::new(), Duration::ZERO, 0.0f64);
    for number in 0..args.steps {
        let data = text.step(&shape, executor.plan(), seed, u64::from(number))?;
        let traced = args.trace.is_some() && number + 1 == args.steps;
        let start = Instant::now();
        let step = executor.step(&data, traced)?;
        let seconds = start.elapsed();
        time += seconds;
        if let Some(path) = args.trace.as_ref().filter(|_| traced) {
            write_trace(path, executor.plan(), &step.spans)?;
        }
        let Step { losses, gradient_norm } = step.step;
        let mut text = line(number + 1, &Step { losses: losses.clone(), gradient_norm }, None);
        if let Some(host) = &mut host {
            let expected = host.step(&data, Order::List)?;
            let apart = (losses[0] - expected.losses[0]).abs() / expected.losses[0];
            // NaN is apart, and stays so.
            worst = if apart <= worst || worst.is_nan() { worst } else { apart };
            text += &format!("  host {:>8.4} {:>9.4}", expected.losses[0], expected.gradient_norm);
        }
        if !args.json {
            print_line(&bar, &text)?;
        }
        taken.push(Taken { step: number + 1, losses, gradient_norm, seconds: seconds.as_secs_f64(), difference: None });
        bar.inc(1);
    }
    bar.finish_and_clear();

    let same = worst <= LOSS_TOLERANCE;
    let plan = executor.plan();
    let rate = plan.origin.tokens_per_step as f64 * f64::from(args.steps) / time.as_secs_f64();
    if args.json {
        output::print(&output::to_json(&Summary {
            plan: &plan.digest,
            model: &plan.model.name,
            gpus: plan.origin.gpus,
            precision: "as-planned",
            tokens_per_step: plan.origin.tokens_per_step,
            tokens_per_second: rate,
            same_as_reference: args.check.then_some(same),
            steps: &taken,
        })?)?;
    } else {
        if args.check {
            let said = if same { "every loss is the host's" } else { "not the host's losses" };
            output::print(&format!("{said}: off by {worst:.1e} at most, {LOSS_TOLERANCE:.0e} is allowed\n"))?;
        }
        output::note(format!(
            "{} on {}: {} of {} tokens, {} tokens/s",
            plan.model.name,
            spread(&executor),
            count(u64::from(args.steps), "step"),
            grouped(plan.origin.tokens_per_step),
            grouped(rate.round() as u64)
        ));
    }
    Ok(if same { Verdict::Yes } else { Verdict::No })
}

/// Which GPUs have how many ranks, and how much memory these take.
fn spread(executor: &Executor) -> String {
    let mut gpus: Vec<(usize, String, u64, usize)> = Vec::new();
    for (_, device, bytes) in executor.places() {
        match gpus.iter_mut().find(|(ordinal, ..)| *ordinal == device.ordinal) {
            Some((_, _, ranks, all)) => (*ranks, *all) = (*ranks + 1, *all + bytes),
            None => gpus.push((device.ordinal, device.name.clone(), 1, bytes)),
        }
    }
    let each = gpus.into_iter().map(|(ordinal, name, ranks, bytes)| {
        let mib = bytes as f64 / f64::from(1 << 20);
        format!("GPU {ordinal} ({name}: {}, {mib:.0} MiB)", count(ranks, "rank"))
    });
    each.collect::<Vec<_>>().join(" and ")
}

fn write_trace(path: &Path, plan: &Plan, spans: &[(Gpu, Vec<Span>)]) -> Result<()> {
    let measured = |span: &Span| perfetto::Measured {
        stream: span.stream,
        exchange: span.exchange,
        name: span.name.clone(),
        span: sim::Span { start: span.start, end: span.end },
    };
    let processes: Vec<(String, Vec<perfetto::Measured>)> =
        spans.iter().map(|(gpu, spans)| (gpu.to_string(), spans.iter().map(measured).collect())).collect();
    output::write_with(path, |out| perfetto::write_measured(plan, &processes, out))
}
