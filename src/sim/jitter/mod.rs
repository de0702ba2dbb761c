//! How long steps take whose ops do not always take as long: Monte Carlo over the event simulation.
//!
//! Every op, transfer and collective takes its duration times a random factor, drawn anew each time: lognormal with mean 1, so that what is lost is
//! lost by waiting alone. GPUs may also be slow for good: their computation takes a factor longer.
//!
//! A pipeline rank stands for many GPUs. Those that meet in exchanges (the expert-parallel group, or the tensor-parallel one where that is larger)
//! go together, and whatever each does by itself takes as long as for the slowest of them, as if they met after every op. Such a group of each rank makes a
//! pipeline of its own, until gradients are reduced: that waits for the slowest pipeline. As all updates wait for all reductions, the step is the
//! longest of the steps of all pipelines.
//!
//! What is drawn is a pipeline's step. The step of all of them follows by order statistics, so thousands of replicas need no thousand times the
//! draws. Chunk programs are drawn `VARIANTS` times, and items that run one take one of these: a few thousand stand for all there could be.

mod distribution;

use std::collections::{BTreeMap, BTreeSet};

use super::meeting::{ItemId, meetings};
use super::program::{ProgramTiming, time_program};
use super::run::{self, Graph};
use super::streams::{StreamOps, run_streams};
use super::{check_references, match_transfers, programs_of_items};
use crate::error::{Error, Result};
use crate::ir::{Program, Stream};
use crate::machine::Machine;
use crate::parallel;
use crate::plan::{Plan, Task};
use crate::units::Nanos;
use distribution::{Factors, Largest, Numbers};

/// How often a program is drawn, for each speed of the ranks that run it.
const VARIANTS: usize = 4096;

/// Items that are drawn in all, at most, unless each step is one pipeline.
const MOST_ITEMS: u64 = 1 << 26;

/// Steps that can be asked for, at most.
const MOST_SAMPLES: u32 = 100_000;

/// What disturbs steps. By default nothing does.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
#[command(
    next_help_heading = "Disturbed steps",
    group = clap::ArgGroup::new("disturbances").multiple(true)
)]
#[group(skip)]
pub struct Disturbances {
    /// Coefficient of variation of what each op, transfer and collective takes: 0.05 is a standard deviation of 5 %.
    #[arg(long, value_name = "CV", value_parser = variation, allow_negative_numbers = true, group = "disturbances")]
    pub jitter: Option<f64>,
    /// Each GPU is slow with a probability, and then its computation takes so many times as long: `0.005=1.1`.
    #[arg(long, value_name = "SHARE=FACTOR", value_parser = slow_gpus, group = "disturbances")]
    pub slow_gpus: Option<SlowGpus>,
    /// How many disturbed steps are drawn.
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "disturbances",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_SAMPLES)))]
    pub samples: u32,
    /// Other seeds draw other steps.
    #[arg(long, value_name = "SEED", default_value_t = 0, requires = "disturbances")]
    pub seed: u64,
}

/// GPUs that are slow for good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowGpus {
    /// The probability that a GPU is one of them.
    pub share: f64,
    /// How many times as long its computation takes.
    pub factor: f64,
}

impl Disturbances {
    /// Whether anything is disturbed.
    pub fn any(&self) -> bool {
        self.jitter.is_some() || self.slow_gpus.is_some()
    }
}

/// What disturbed steps take.
#[derive(Clone, Debug, PartialEq)]
pub struct Disturbed {
    /// What a step takes that nothing disturbs.
    pub undisturbed: Nanos,
    /// How many steps.
    pub samples: u32,
    /// What they were drawn from.
    pub seed: u64,
    /// GPUs of a rank that go together.
    pub peers: u64,
    /// Pipelines that go by themselves: a step is the longest of theirs.
    pub pipelines: u64,
    /// Steps of a pipeline that were drawn.
    pub drawn: u64,
    /// Mean step.
    pub mean: Nanos,
    /// Its standard deviation.
    pub deviation: Nanos,
    /// Half of the steps take no longer.
    pub median: Nanos,
    /// 95 of 100 take no longer.
    pub p95: Nanos,
    /// 99 of 100 take no longer.
    pub p99: Nanos,
}

impl Disturbed {
    /// How much longer a time is than the undisturbed step: a share of that.
    pub fn slowdown(&self, time: Nanos) -> f64 {
        match self.undisturbed {
            Nanos::ZERO => 0.0,
            undisturbed => (time.as_f64() - undisturbed.as_f64()) / undisturbed.as_f64(),
        }
    }
}

/// Draws disturbed steps, over so many threads. What comes out does not depend on their number. `slow_ranks`: pipeline ranks, all of whose GPUs
/// take so many times as long for computation.
///
/// # Errors
/// As [`super::simulate`]; if a slow rank is none of the plan; or if there are more pipelines than can be drawn.
pub fn disturb(
    plan: &Plan,
    disturbances: &Disturbances,
    slow_ranks: &[(u32, f64)],
    threads: usize,
) -> Result<Disturbed> {
    let ranks = plan.ranks.len();
    if let Some((rank, _)) = slow_ranks.iter().find(|(rank, _)| *rank as usize >= ranks) {
        return Err(Error::new(format!("there is no rank {rank} that could be slow: the plan has {ranks}"))
            .help(format!("ranks are counted from 0 to {}", ranks.saturating_sub(1))));
    }
    let drawing = Drawing::new(plan, disturbances, slow_ranks, threads)?;
    let pipelines = drawing.pipelines;
    let items = drawing.leaders.len().max(1) as u64;
    let samples = u64::from(disturbances.samples);
    let drawn = samples.saturating_mul(pipelines).min(samples.max(MOST_ITEMS / items));
    if drawn < pipelines {
        let error = Error::new(format!("the plan has {pipelines} pipelines side by side, and {drawn} can be drawn"));
        return Err(match pipelines <= u64::from(MOST_SAMPLES) {
            true => error.help(format!("give `--samples {pipelines}`, which takes a while")),
            false => error,
        });
    }
    let streams: Vec<u64> = (0..drawn).collect();
    let steps = parallel::map(threads, &streams, |&stream| drawing.step(stream));
    let steps = steps.into_iter().map(|step| Ok(step?.as_f64())).collect::<Result<Vec<f64>>>()?;
    let undisturbed = drawing.undisturbed()?;
    let largest = Largest::new(steps, pipelines);
    let nanos = |time: f64| Nanos(time.round() as u64);
    let (mean, deviation) = largest.mean();
    Ok(Disturbed {
        undisturbed,
        samples: disturbances.samples,
        seed: disturbances.seed,
        peers: drawing.peers,
        pipelines,
        drawn,
        mean: nanos(mean),
        deviation: nanos(deviation),
        median: nanos(largest.quantile(0.5)),
        p95: nanos(largest.quantile(0.95)),
        p99: nanos(largest.quantile(0.99)),
    })
}

/// How fast the GPUs of a rank compute: all of them, and the slowest besides.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Speed {
    all: f64,
    one: f64,
}

/// What draws share.
struct Drawing<'a> {
    plan: &'a Plan,
    seed: u64,
    peers: u64,
    pipelines: u64,
    /// Of one GPU (or of what happens to all peers together); of the slowest peer; of the slowest but one GPU.
    factors: [Factors; 3],
    /// Probability that one of a group's GPUs is slow, and its factor.
    slow: (f64, f64),
    /// By rank, the factor of all its GPUs.
    slow_ranks: Vec<f64>,
    graph: Graph,
    meetings: Vec<super::meeting::Meeting>,
    /// How long items take undisturbed.
    durations: Vec<Nanos>,
    /// Items that take time of their own: number, place, task, program.
    leaders: Vec<(usize, ItemId, Task, Option<u32>)>,
    /// By program, and by the bits of both factors of a [`Speed`]: what it takes, drawn.
    variants: BTreeMap<(u32, u64, u64), Vec<Nanos>>,
}

impl<'a> Drawing<'a> {
    fn new(plan: &'a Plan, disturbances: &Disturbances, slow: &[(u32, f64)], threads: usize) -> Result<Self> {
        check_references(plan)?;
        let meetings = meetings(plan, &match_transfers(plan)?)?;
        let programs: Vec<ProgramTiming> = plan.programs.iter().map(|p| time_program(p, &plan.machine)).collect();
        let program_of = programs_of_items(plan)?;
        let input = run::Input { programs: &programs, program_of: &program_of, meetings: &meetings };
        let graph = Graph::new(plan, &meetings);
        let durations = graph.durations(plan, &input);
        let leaders = graph.leaders().map(|(number, id, task)| {
            let (rank, item) = id;
            (number, id, task, program_of[rank as usize][item as usize])
        });
        let leaders = leaders.collect();

        let meets = plan.programs.iter().flat_map(|program| &program.ops).any(|op| op.work.is_exchange());
        let (tp, ep) = (u64::from(plan.origin.tp), u64::from(plan.origin.ep));
        let peers = if meets { tp.max(ep).max(1) } else { 1 };
        let gpus = u64::from(plan.origin.dp).saturating_mul(tp);
        let cv = disturbances.jitter.unwrap_or(0.0);
        let mut slow_ranks = vec![1.0; plan.ranks.len()];
        for &(rank, factor) in slow {
            slow_ranks[rank as usize] *= factor;
        }
        let slow = disturbances.slow_gpus.unwrap_or(SlowGpus { share: 0.0, factor: 1.0 });
        let mut drawing = Self {
            plan,
            seed: disturbances.seed,
            peers,
            pipelines: (gpus / peers).max(1),
            factors: [1, peers, peers - 1].map(|of| Factors::slowest(cv, of)),
            slow: (1.0 - libm::pow(1.0 - slow.share, peers as f64), slow.factor),
            slow_ranks,
            graph,
            meetings,
            durations,
            leaders,
            variants: BTreeMap::new(),
        };
        drawing.draw_programs(if cv == 0.0 { 1 } else { VARIANTS }, threads);
        Ok(drawing)
    }

    fn undisturbed(&self) -> Result<Nanos> {
        self.longest(&self.durations)
    }

    /// Of a rank whose GPUs are as given, or one of them slow.
    fn speed(&self, rank: u32, slow: bool) -> Speed {
        Speed { all: self.slow_ranks[rank as usize], one: if slow { self.slow.1 } else { 1.0 } }
    }

    /// Draws each program at each speed that it can run at.
    fn draw_programs(&mut self, variants: usize, threads: usize) {
        let mut wanted: BTreeSet<(u32, u64, u64)> = BTreeSet::new();
        for &(_, (rank, _), _, program) in &self.leaders {
            let Some(program) = program else { continue };
            let slow = if self.slow.0 > 0.0 { &[false, true][..] } else { &[false] };
            wanted.extend(slow.iter().map(|&slow| key(program, self.speed(rank, slow))));
        }
        let wanted: Vec<(u32, u64, u64)> = wanted.into_iter().collect();
        let drawn = parallel::map(threads, &wanted, |&(program, all, one)| {
            let speed = Speed { all: f64::from_bits(all), one: f64::from_bits(one) };
            let ops = Ops::new(&self.plan.programs[program as usize], &self.plan.machine);
            // Draws of programs and of steps are apart: steps count from 0, programs from the other end.
            let mut numbers = Numbers::new(self.seed, u64::MAX - u64::from(program));
            let factors = ops.program.ops.iter().map(|op| self.of_op(op.stream(), speed, variants, &mut numbers));
            let factors: Vec<Vec<f64>> = factors.collect();
            (0..variants).map(|variant| ops.total(factors.iter().map(|of_op| of_op[variant]).collect())).collect()
        });
        self.variants = wanted.into_iter().zip(drawn).collect();
    }

    /// Factors of an op, so many: of an exchange, in which peers meet, or of what each of them does until then.
    fn of_op(&self, stream: Stream, speed: Speed, count: usize, numbers: &mut Numbers) -> Vec<f64> {
        let [one, slowest, others] = &self.factors;
        match stream {
            Stream::Comm => one.of_each_share(count, numbers),
            Stream::Compute if speed.one == 1.0 => {
                slowest.of_each_share(count, numbers).into_iter().map(|factor| speed.all * factor).collect()
            }
            Stream::Compute => {
                let slow = one.of_each_share(count, numbers);
                let others = others.of_each_share(count, numbers);
                slow.into_iter()
                    .zip(others)
                    .map(|(slow, other)| speed.all * f64::max(speed.one * slow, other))
                    .collect()
            }
        }
    }

    /// The factor of an item that runs no program.
    fn of_item(&self, task: Task, speed: Speed, numbers: &mut Numbers) -> f64 {
        let [one, slowest, others] = &self.factors;
        match task {
            Task::Update(_) if speed.one == 1.0 => speed.all * slowest.draw(numbers),
            Task::Update(_) => speed.all * f64::max(speed.one * one.draw(numbers), others.draw(numbers)),
            // All that hold a stage meet in these.
            Task::ReduceGrads(_) | Task::GatherParams(_) => one.draw(numbers),
            _ => slowest.draw(numbers),
        }
    }

    /// A step of one pipeline.
    fn step(&self, stream: u64) -> Result<Nanos> {
        let mut numbers = Numbers::new(self.seed, stream);
        let is_slow = |_| self.slow.0 > 0.0 && numbers.share() < self.slow.0;
        let slow: Vec<bool> = (0..self.plan.ranks.len()).map(is_slow).collect();
        let mut durations = vec![Nanos::ZERO; self.durations.len()];
        for &(number, (rank, _), task, program) in &self.leaders {
            let speed = self.speed(rank, slow[rank as usize]);
            let variants = program.and_then(|program| self.variants.get(&key(program, speed)));
            durations[number] = match variants {
                Some(variants) => variants[numbers.below(variants.len())],
                None => scaled(self.durations[number], self.of_item(task, speed, &mut numbers)),
            };
        }
        self.longest(&durations)
    }

    /// The step where items take so long.
    fn longest(&self, durations: &[Nanos]) -> Result<Nanos> {
        let times = run::times(&self.graph, &self.meetings, durations)?;
        Ok(times.spans.iter().map(|span| span.end).max().unwrap_or_default())
    }
}

fn key(program: u32, speed: Speed) -> (u32, u64, u64) {
    (program, speed.all.to_bits(), speed.one.to_bits())
}

/// A time by a factor.
fn scaled(time: Nanos, factor: f64) -> Nanos {
    if factor == 1.0 { time } else { Nanos((time.as_f64() * factor).round() as u64) }
}

/// A program's ops, and what they take.
struct Ops<'a> {
    program: &'a Program,
    alone: Vec<Nanos>,
    /// By op and op of the other stream.
    beside: Vec<Vec<Nanos>>,
}

impl<'a> Ops<'a> {
    fn new(program: &'a Program, machine: &Machine) -> Self {
        let ops = &program.ops;
        let beside = ops.iter().map(|op| {
            let times = ops.iter().map(|other| match op.stream() == other.stream() {
                true => Nanos::ZERO,
                false => machine.duration_beside(&op.work, op.sms, &other.work, other.sms),
            });
            times.collect()
        });
        let beside = beside.collect();
        Self { program, alone: ops.iter().map(|op| machine.duration(&op.work, op.sms)).collect(), beside }
    }

    /// When the last op ends, with a factor for each.
    fn total(&self, factors: Vec<f64>) -> Nanos {
        let spans = run_streams(&Disturbing { ops: self, factors });
        spans.iter().map(|span| span.end).max().unwrap_or_default()
    }
}

struct Disturbing<'a> {
    ops: &'a Ops<'a>,
    factors: Vec<f64>,
}

impl StreamOps for Disturbing<'_> {
    fn count(&self) -> usize {
        self.ops.program.ops.len()
    }

    fn stream(&self, op: usize) -> Stream {
        self.ops.program.ops[op].stream()
    }

    fn waits(&self, op: usize) -> &[u32] {
        &self.ops.program.ops[op].waits
    }

    fn alone(&self, op: usize) -> Nanos {
        scaled(self.ops.alone[op], self.factors[op])
    }

    fn beside(&self, op: usize, other: usize) -> Nanos {
        scaled(self.ops.beside[op][other], self.factors[op])
    }
}

/// Reads the value of `--jitter`.
fn variation(text: &str) -> Result<f64, String> {
    number(text, 0.0, 2.0)
}

/// Reads the value of `--slow-gpus`.
fn slow_gpus(text: &str) -> Result<SlowGpus, String> {
    let (share, factor) = text.split_once('=').ok_or("expected a share and a factor, like 0.005=1.1")?;
    Ok(SlowGpus { share: number(share, 0.0, 1.0)?, factor: number(factor, 1.0, 1e3)? })
}

/// Reads the value of `--slow-rank`.
///
/// # Errors
/// If it is not a rank and a factor of at least 1.
pub fn slow_rank(text: &str) -> Result<(u32, f64), String> {
    let (rank, factor) = text.split_once('=').ok_or("expected a rank and a factor, like 3=1.2")?;
    let rank = rank.trim().parse().map_err(|_| format!("`{rank}` is no rank"))?;
    Ok((rank, number(factor, 1.0, 1e3)?))
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number: f64 = text.trim().parse().map_err(|_| format!("`{text}` is no number"))?;
    match (least..=most).contains(&number) {
        true => Ok(number),
        false => Err(format!("expected a number from {least} to {most}")),
    }
}
