//! What a configuration cannot be better than, from some ten numbers that stand in a table: the first sieve.
//!
//! It holds for every cut of the model into stages. Of a step: a rank has at least the mean of the work; where a schedule makes each rank wait for
//! the forwards in front of it and has the backwards behind it, the best cut gives later ranks less, and leaves
//! `W / (1 - (1 - 1/M)^P)` for work `W` of a micro-batch; some rank has at least the mean number of layers of a kind, rounded
//! up; and behind the last action every rank updates its parameters. Of memory: the mean of parameters, gradients and optimizer state, and the
//! activations that the schedule holds at least.

use super::space::{Setting, Split};
use super::work::{Kind, Terms};
use crate::ir::Placement;
use crate::job::Job;
use crate::job::training::ScheduleKind;
use crate::machine::Machine;
use crate::units::{Bytes, Nanos};

/// The numbers of a setting.
#[derive(Clone, Debug)]
pub struct Table {
    /// In the order of the space's numbers of SMs.
    times: Vec<Times>,
    /// By kind of unit, how many there are.
    counts: Vec<u32>,
    /// Bytes that one micro-batch keeps between forward and backward, over all stages.
    activations: f64,
    /// Weights and gradients, bytes.
    state: f64,
    /// Bytes of optimizer state of all parameters but routed experts, and of those, on one GPU if nothing is sharded.
    optimizer: [f64; 2],
    /// Time in which one GPU updates as many parameters, ns.
    update: [f64; 2],
    /// GPUs that hold the same routed experts are so many fewer than all.
    ep: f64,
    sharded: bool,
}

/// Least times of a micro-batch with some number of SMs, in ns.
#[derive(Clone, Debug)]
struct Times {
    /// Forward and backward where no pair is overlapped: of the whole model, and of one unit of each kind.
    apart: (f64, Vec<f64>),
    /// The same where pairs are.
    together: (f64, Vec<f64>),
    /// There and back: forwards, then backwards for the input.
    way: f64,
    /// What a unit's forward takes at least of the time of all its work.
    forward: f64,
}

/// A split with a schedule: what a bound needs of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    ranks: f64,
    micro_batches: f64,
    /// Ranks that hold each stage.
    copies: u32,
    pairs: bool,
    ends: Ends,
    /// Of [`least_held`] the least over ranks, and the sum of the inverses.
    held: (f64, f64),
    /// Micro-batches of which the fullest rank holds its part, as a rule.
    likely: f64,
    /// GPUs that have a share of a parameter that all replicas hold.
    replicas: f64,
    per_node: f64,
    tp: f64,
}

/// What a rank waits for before its first action, and what comes behind its last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// The forwards of the ranks in front of it, and their backwards.
    Both,
    /// The forwards.
    Forwards,
    /// Nothing that does not depend on the cut.
    Open,
}

impl Shape {
    /// Of a split with one of its schedules.
    pub fn new(job: &Job, split: &Split, kind: ScheduleKind) -> Self {
        let copies = if kind.placement() == Some(Placement::Bidirectional) && split.pp > 1 { 2 } else { 1 };
        let held = |rank| f64::from(least_held(kind, split.pp, split.micro_batches, rank));
        Self {
            ranks: split.pp.into(),
            micro_batches: split.micro_batches.into(),
            copies,
            pairs: matches!(kind, ScheduleKind::DualPipe | ScheduleKind::DualPipeV | ScheduleKind::Auto),
            ends: match kind {
                ScheduleKind::GPipe | ScheduleKind::OneFOneB => Ends::Both,
                ScheduleKind::ZbH1 => Ends::Forwards,
                _ => Ends::Open,
            },
            held: (0..split.pp).map(held).fold((f64::INFINITY, 0.0), |(least, sum), n| (least.min(n), sum + 1.0 / n)),
            likely: match kind {
                ScheduleKind::GPipe => f64::from(split.micro_batches),
                _ => f64::from(split.micro_batches.min(split.pp)),
            },
            replicas: f64::from(split.dp),
            per_node: job.cluster.gpus_per_node.into(),
            tp: split.tp.into(),
        }
    }
}

/// The most chunks of each stage of a rank that a schedule surely holds at once. What generators make is compared with it in
/// `tests/search.rs`.
pub fn least_held(kind: ScheduleKind, ranks: u32, micro_batches: u32, rank: u32) -> u32 {
    match kind {
        ScheduleKind::GPipe => micro_batches,
        ScheduleKind::OneFOneB | ScheduleKind::ZbH1 => micro_batches.min(ranks - rank),
        // Of the stage that is nearer to the end of its direction; of the other one more.
        ScheduleKind::DualPipe => rank.min(ranks - 1 - rank) + 1,
        _ => 1,
    }
}

impl Table {
    /// Of a setting, with each of these numbers of SMs.
    pub fn new(job: &Job, machine: &Machine, setting: &Setting, sms: &[u32]) -> Self {
        let job = &setting.apply(job);
        let kinds = Kind::all(job);
        let counts: Vec<f64> = kinds.iter().map(|kind| kind.count.into()).collect();
        let times =
            sms.iter().map(|&sms| Times::new(&Terms::new(job, machine, &kinds, sms), &kinds, &counts)).collect();
        let precision = &job.model.precision;
        let sum = |of: &dyn Fn(&Kind) -> u64| kinds.iter().map(|kind| of(kind) * u64::from(kind.count)).sum::<u64>();
        // A tied head beside the embedding has no matrix of its own.
        let tied = if job.model.tied_embedding { crate::passes::unit_work::embedding_parameters(job) } else { 0 };
        let shared = sum(&|kind| kind.parameters().shared).saturating_sub(tied);
        let expert = sum(&|kind| kind.parameters().expert);
        let master = precision.master.bytes(1) + 2 * precision.moments.bytes(1);
        let updated = 2 * master + precision.gradients.bytes(1) + precision.weights.bytes(1);
        let fastest = machine.measured.least();
        let of = |bytes: u64, parameters: u64| bytes as f64 * parameters as f64;
        let update = |parameters: u64| of(updated, parameters) / machine.hbm_byte_s * 1e9 * fastest;
        Self {
            times,
            counts: kinds.iter().map(|kind| kind.count).collect(),
            activations: kinds.iter().map(|kind| kind.activation().as_f64() * f64::from(kind.count)).sum(),
            state: (precision.weights.bytes(shared + expert) + precision.gradients.bytes(shared + expert)) as f64,
            optimizer: [of(master, shared), of(master, expert)],
            update: [update(shared), update(expert)],
            ep: job.training.ep.into(),
            sharded: job.training.sharded_optimizer,
        }
    }

    /// What no step is below, with the number of SMs that stands at `sms`.
    pub fn step(&self, shape: &Shape, sms: usize) -> Nanos {
        let times = &self.times[sms];
        let (work, of_units) = if shape.pairs { &times.together } else { &times.apart };
        let (ranks, micro_batches) = (shape.ranks, shape.micro_batches);
        let spread = match shape.ends {
            Ends::Open => work * micro_batches / ranks,
            Ends::Both => spread(*work, 1.0, shape),
            Ends::Forwards => spread(*work, times.forward, shape),
        };
        let copies = shape.copies;
        let whole = |(count, time): (&u32, &f64)| {
            let units = (f64::from(count * copies) / ranks).ceil() / f64::from(copies);
            units * time * micro_batches
        };
        let most = self.counts.iter().zip(of_units).map(whole).fold(0.0, f64::max);
        let [shared, expert] = self.owned(shape);
        let update = (self.update[0] * shared + self.update[1] * expert) * f64::from(copies) / ranks;
        Nanos((spread.max(most).max(times.way) + update) as u64)
    }

    /// What the fullest rank cannot do with less of.
    pub fn memory(&self, shape: &Shape) -> Bytes {
        let activations = self.activations * f64::from(shape.copies);
        let (held, inverses) = shape.held;
        let mean = self.mean_state(shape) + held * activations / shape.ranks;
        Bytes(mean.max(activations / inverses) as u64)
    }

    /// What the fullest rank is likely to need: with this, those that are not likely to fit are looked at after the others.
    pub fn likely_memory(&self, shape: &Shape) -> Bytes {
        Bytes((self.mean_state(shape) + shape.likely * self.activations / shape.ranks) as u64)
    }

    /// Parameters, gradients and optimizer state of a rank, the mean over ranks.
    fn mean_state(&self, shape: &Shape) -> f64 {
        let [shared, expert] = self.owned(shape);
        let optimizer = self.optimizer[0] * shared + self.optimizer[1] * expert;
        (self.state + optimizer) * f64::from(shape.copies) / shape.ranks
    }

    /// The least share of the parameters that a GPU updates: of those that all replicas hold, and of routed experts. Replicas are counted
    /// by whole nodes, which can make them one node more.
    fn owned(&self, shape: &Shape) -> [f64; 2] {
        let copies = f64::from(shape.copies);
        let share = |replicas: f64| 1.0 / ((replicas + shape.per_node) * copies);
        match self.sharded {
            true => [share(shape.replicas), share((shape.replicas * shape.tp / self.ep).max(1.0))],
            false => [1.0; 2],
        }
    }
}

/// The least makespan over all cuts: rank r runs M times its work x(r), and waits for what stands in front of it, which is the share `waits` of
/// the work of the ranks there. It is the least where all ranks end at once: then each has 1 - `waits`/M of what the one before it has.
fn spread(work: f64, waits: f64, shape: &Shape) -> f64 {
    let left = (1.0 - waits / shape.micro_batches).powi(shape.ranks as i32);
    match waits > 0.0 {
        true => (waits * work / (1.0 - left)).max(work * shape.micro_batches / shape.ranks),
        false => work * shape.micro_batches / shape.ranks,
    }
}

impl Times {
    fn new(terms: &Terms, kinds: &[Kind], counts: &[f64]) -> Self {
        let one =
            |kind: usize| -> Vec<f64> { (0..kinds.len()).map(|other| f64::from(u8::from(other == kind))).collect() };
        let apart = |counts: &[f64]| {
            let least = terms.least(counts);
            least.f + least.b
        };
        let of_units = |of: &dyn Fn(&[f64]) -> f64| (0..kinds.len()).map(|kind| of(&one(kind))).collect::<Vec<f64>>();
        let model = terms.least(counts);
        let apart_of_units = of_units(&apart);
        let share = |kind: usize| {
            let all = apart_of_units[kind];
            if all > 0.0 { terms.forward_computation(kind) / all } else { 1.0 }
        };
        Self {
            forward: (0..kinds.len()).map(share).fold(1.0, f64::min),
            apart: (apart(counts), apart_of_units),
            together: (terms.all(counts), of_units(&|counts| terms.all(counts))),
            way: model.f + model.i,
        }
    }
}
