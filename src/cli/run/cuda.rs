//! `dualweave run --backend cuda`: all ranks in this process, or, where a launcher says so, one in each of several.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::checkpoint::{Folder, admitted};
use super::{Args, Backend, Numbers, OnHost, Summary, Taken, Verdict, heading, line, print_line, progress_bar};
use crate::cli::{measure, output};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::runtime::checkpoint::Progress;
use crate::runtime::cluster::{self, Cluster, Launcher, Seat};
use crate::runtime::cuda::executor::{Executor, Options, Span};
use crate::runtime::cuda::nccl::end_process;
use crate::runtime::host::Shape;
use crate::runtime::host::adamw::AdamW;
use crate::runtime::host::executor::{Executor as HostExecutor, Order};
use crate::runtime::host::reference::Step;
use crate::runtime::host::text::Text;
use crate::runtime::world::{Gpu, World};
use crate::sim;
use crate::view::numbers::{count, grouped};
use crate::view::perfetto;

/// How far a loss may be from that of the host in the same formats, as a part of it. Both round to bf16 in every layer, but add up in
/// another order, so steps drift apart; see `docs/gpu.md` for what was measured.
const LOSS_TOLERANCE: f64 = 5e-3;

/// How long the thread that trains may take to end after another process has failed.
const GRACE: Duration = Duration::from_secs(2);

/// Trains on GPUs. With `--check`, losses that differ from the host's are the verdict `No`.
pub fn run(args: &Args, plan: Plan) -> Result<Verdict> {
    debug_assert_eq!(args.backend, Backend::Cuda, "called for it alone");
    if args.precision.is_some() {
        return Err(Error::new("GPUs compute in the formats of the plan; `--precision` is for `--backend host`"));
    }
    let seat = cluster::seat(|name| std::env::var(name).ok())?;
    if seat.is_some() && args.checkpoint.is_some() {
        return Err(Error::new("ranks in several processes keep no checkpoints yet")
            .help("run all ranks in one process, which several GPUs of one host can share"));
    }
    if seat.is_some() && args.gpus.is_some() {
        return Err(Error::new("each process has one GPU, so there is no choice for `--gpus`")
            .help("start as many processes as the plan has ranks; CUDA_VISIBLE_DEVICES says which GPUs they see"));
    }
    measure::before_cuda(seat.is_some());
    let shape = Shape::of_plan(&plan);
    let text = match &args.data {
        Some(path) => Text::new(&shape, output::read(path)?.into_bytes())?,
        None => Text::genesis(&shape)?,
    };
    let optimizer = AdamW { learning_rate: args.rate()?, ..AdamW::default() };
    let run = Run { args, plan, shape, text, optimizer };
    match seat {
        None => train(run, None),
        Some(seat) => in_processes(run, seat),
    }
}

/// What is run.
struct Run<'a> {
    args: &'a Args,
    plan: Plan,
    shape: Shape,
    text: Text,
    optimizer: AdamW,
}

/// Trains with a rank in each process. Whoever fails tells the others, and so every process ends with an error that says who has failed.
fn in_processes(run: Run, seat: Seat) -> Result<Verdict> {
    let Run { args, plan, text, optimizer, .. } = &run;
    let world = World::new(plan);
    if seat.processes as usize != world.count() {
        let (variable, given) = match seat.launcher {
            Launcher::Torchrun => ("WORLD_SIZE", "`--nnodes` times `--nproc-per-node`"),
            Launcher::Slurm => ("SLURM_NTASKS", "`--ntasks`"),
        };
        return Err(Error::new(format!(
            "{variable} is {}, but the plan has {} GPUs ({} ranks × {} replicas), for a process each",
            seat.processes,
            world.count(),
            world.ranks,
            world.replicas
        ))
        .help(format!("start {} processes ({given})", world.count())));
    }
    let name = world.gpus().nth(seat.process as usize).map_or_else(String::new, |gpu| gpu.to_string());
    let terms = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("plan", plan.digest.clone()),
        ("text", text.digest()),
        ("seed", args.seed.unwrap_or_default().to_string()),
        ("steps", args.steps.to_string()),
        ("learning rate", optimizer.learning_rate.most.to_string()),
        ("warm-up", optimizer.learning_rate.warm_up.to_string()),
        ("decay", optimizer.learning_rate.decayed.map_or_else(|| "none".to_owned(), |step| step.to_string())),
        ("trace", if args.trace.is_some() { "wanted" } else { "not wanted" }.to_owned()),
    ];
    let terms = terms.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let cluster = Arc::new(Cluster::join(seat, name, terms, Duration::from_secs(args.time_out))?);
    // The thread that trains may hear of a failure late: while it computes on the host, or in a call that does not return.
    let ending = Arc::new(Mutex::new(()));
    let other = Arc::clone(&ending);
    cluster.watch_over(GRACE, move |error| end(&other, error));
    let trained = train(run, Some(&cluster));
    match trained.and_then(|verdict| cluster.leave().map(|()| verdict)) {
        Ok(verdict) => Ok(verdict),
        Err(error) => end(&ending, cluster.fail(error)),
    }
}

/// Ends this process with an error. Whoever comes first says it.
fn end(ending: &Mutex<()>, error: Error) -> ! {
    let _first = ending.lock().unwrap_or_else(PoisonError::into_inner);
    output::report(error);
    end_process(2)
}

/// Trains; with several processes, number 0 says how it goes.
fn train(run: Run, cluster: Option<&Arc<Cluster>>) -> Result<Verdict> {
    let Run { args, plan, shape, text, optimizer } = run;
    let speaks = cluster.is_none_or(|cluster| cluster.seat().process == 0);
    let mut progress = Progress {
        steps: 0,
        seed: args.seed.unwrap_or_default(),
        precision: Numbers::AsPlanned.name().to_owned(),
        text: text.digest(),
    };
    let folder = Folder::of(args);
    let saved = folder.as_ref().map(Folder::read).transpose()?.flatten();
    let checkpoint = saved.as_ref().map(|bytes| admitted(bytes, &progress)).transpose()?;
    let options = Options {
        gpus: args.gpus.map(|gpus| gpus as usize),
        time_out: Duration::from_secs(args.time_out),
        cluster: cluster.map(Arc::clone),
    };
    let mut executor = Executor::new(plan.clone(), shape.clone(), optimizer, progress.seed, &options)?;
    let mut host = match args.check && speaks {
        true => Some(HostExecutor::<f32>::new(plan, shape.clone(), optimizer, progress.seed)?),
        false => None,
    };
    if let Some(checkpoint) = checkpoint {
        executor.restore(&checkpoint)?;
        host.as_mut().map(|host| host.restore(&checkpoint)).transpose()?;
        progress = checkpoint.progress;
    }
    folder.as_ref().map(Folder::make).transpose()?;
    let last = progress.steps.checked_add(args.steps).ok_or_else(|| Error::new("these are too many steps"))?;

    let bar = progress_bar(args.steps, args.json || !speaks);
    if !args.json && speaks {
        let beside = if host.is_some() { "  host: loss       norm" } else { "" };
        print_line(&bar, &(heading(&shape, false) + beside))?;
    }
    let (mut taken, mut time, mut worst) = (Vec::new(), Duration::ZERO, 0.0f64);
    while progress.steps < last {
        let data = text.step(&shape, executor.plan(), progress.seed, u64::from(progress.steps))?;
        let traced = args.trace.is_some() && progress.steps + 1 == last;
        let start = Instant::now();
        let step = executor.step(&data, traced)?;
        let seconds = start.elapsed();
        time += seconds;
        progress.steps += 1;
        if let Some(path) = args.trace.as_ref().filter(|_| traced && speaks) {
            write_trace(path, executor.plan(), &step.spans)?;
        }
        let Step { losses, gradient_norm } = step.step;
        let mut said = line(progress.steps, &Step { losses: losses.clone(), gradient_norm }, None);
        let mut on_host = None;
        if let Some(host) = &mut host {
            let expected = host.step(&data, Order::List)?;
            for (loss, expected) in losses.iter().zip(&expected.losses) {
                let apart = (loss - expected).abs() / expected;
                // NaN is apart, and stays so.
                worst = if apart <= worst || worst.is_nan() { worst } else { apart };
            }
            said += &format!("  {:>10.4}  {:>9.4}", expected.losses[0], expected.gradient_norm);
            on_host = Some(OnHost { losses: expected.losses, gradient_norm: expected.gradient_norm });
        }
        if !args.json && speaks {
            print_line(&bar, &said)?;
        }
        let seconds = seconds.as_secs_f64();
        taken.push(Taken { step: progress.steps, losses, gradient_norm, seconds, difference: None, host: on_host });
        bar.inc(1);
        if let Some(folder) = folder.as_ref().filter(|folder| folder.is_due(progress.steps, last)) {
            folder.write(&executor.checkpoint(&progress)?)?;
        }
    }
    bar.finish_and_clear();

    let same = worst <= LOSS_TOLERANCE;
    if !speaks {
        return Ok(Verdict::Yes);
    }
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
            spread(&executor, cluster.map(|cluster| &**cluster)),
            count(u64::from(args.steps), "step"),
            grouped(plan.origin.tokens_per_step),
            grouped(rate.round() as u64)
        ));
    }
    Ok(if same { Verdict::Yes } else { Verdict::No })
}

/// Which GPUs have how many ranks, and how much memory these take; of several processes, that of this one.
fn spread(executor: &Executor, cluster: Option<&Cluster>) -> String {
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
    let here = each.collect::<Vec<_>>().join(" and ");
    match cluster {
        None => here,
        Some(cluster) => {
            let mut hosts: Vec<&str> = cluster.all().iter().map(|who| who.host.as_str()).collect();
            hosts.sort_unstable();
            hosts.dedup();
            let (processes, hosts) = (cluster.all().len() as u64, hosts.len() as u64);
            format!("{} of {}, the first on {here}", count(processes, "process"), count(hosts, "host"))
        }
    }
}

/// Writes what ran when, for ui.perfetto.dev.
pub fn write_trace(path: &Path, plan: &Plan, spans: &[(Gpu, Vec<Span>)]) -> Result<()> {
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
