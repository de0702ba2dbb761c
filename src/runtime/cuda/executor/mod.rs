//! Runs a plan on GPUs: threads launch what the plan says on the plan's streams; what has to be waited for, the
//! GPUs wait for themselves, by events ([`super::signals`]).
//!
//! A rank is a GPU; or several ranks share one, so that every plan runs on a single GPU too. Ranks of one process exchange through each
//! other's memory. Or each rank is a process, on any host, and what they exchange is moved by NCCL (`network`); what is computed is the
//! same.
//!
//! `world` and `messages` beside the runtimes say who is where and what lies in which slot; `store` are the parameters of a stage,
//! `unit` the ops of its units, `places` and `blocks` say where values lie; `build` makes ranks, `rank` launches, `sync` is the end of a step.

mod blocks;
mod build;
mod checkpoint;
mod devices;
mod formats;
mod forms;
mod heap;
mod network;
mod places;
mod rank;
mod stage;
mod store;
mod sync;
mod table;
mod timings;
mod trace;
mod unit;

pub use timings::{Spread, Timings};
pub use trace::{Span, What};

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use super::watch::Watch;
use super::{Device, Event, Slice};
use crate::error::{Error, Result};
use crate::ir::ProgramOp;
use crate::job::model::Dtype;
use crate::plan::Plan;
use crate::runtime::cluster::Cluster;
use crate::runtime::fit;
use crate::runtime::host::Shape;
use crate::runtime::host::adamw::AdamW;
use crate::runtime::host::batch::Batch;
use crate::runtime::host::reference;
use crate::runtime::world::{Gpu, World};
use build::Builder;
use devices::{open, open_own};
use rank::{Data, Done, Rank, Shared};
use store::Store;

/// How a plan is spread over this computer's GPUs.
#[derive(Clone, Debug)]
pub struct Options {
    /// GPUs to use, the first ones; all if there is no number.
    pub gpus: Option<usize>,
    /// How long an item may take until the run is given up.
    pub time_out: Duration,
    /// If each rank is a process: all of them, of which number k runs the k-th rank of [`World::gpus`].
    pub cluster: Option<Arc<Cluster>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { gpus: None, time_out: Duration::from_secs(60), cluster: None }
    }
}

/// A model that is trained as a plan says, on GPUs.
pub struct Executor {
    plan: Plan,
    shape: Shape,
    optimizer: AdamW,
    world: World,
    /// Those of this process.
    ranks: Vec<Rank>,
    cluster: Option<Arc<Cluster>>,
    steps: u32,
    time_out: Duration,
    /// After a failure the GPUs' memory is in no defined state.
    failed: bool,
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Vec<f32>>;

/// A step that was taken.
pub struct Taken {
    /// Losses and norm of the gradients.
    pub step: reference::Step,
    /// By rank: what ran when, if that was asked for. With a rank in each process, process 0 has those of all, the others their own.
    pub spans: Vec<(Gpu, Vec<Span>)>,
}

impl Executor {
    /// Before the first step, with initial parameters: the same as [`crate::runtime::host::executor::Executor`] has for this `seed`.
    ///
    /// # Errors
    /// If the plan or its model has something that this runtime has not, there is no GPU, a library is missing, or the memory does not
    /// suffice.
    pub fn new(plan: Plan, shape: Shape, optimizer: AdamW, seed: u64, options: &Options) -> Result<Self> {
        fit::check(&plan, &shape)?;
        forms::check(&plan)?;
        let world = World::new(&plan);
        let cluster = options.cluster.clone();
        if cluster.is_some() {
            forms::check_between_processes(&plan)?;
        }
        let devices = match &cluster {
            Some(cluster) => vec![open_own(cluster, world.count())?],
            None => open(world.count(), options.gpus)?,
        };
        formats::check(&shape.policy, &devices)?;
        let builder = Builder { plan: &plan, shape: &shape, world: &world, devices: &devices, seed };
        let ranks = builder.ranks(cluster.as_deref())?;
        Ok(Self { plan, shape, optimizer, world, ranks, cluster, steps: 0, time_out: options.time_out, failed: false })
    }

    /// One step. `data`: by replica, its micro-batches. `traced`: measure when everything ran.
    ///
    /// # Errors
    /// If the data does not fit the plan, or something fails; then there is no going on.
    pub fn step(&mut self, data: &[Vec<Batch>], traced: bool) -> Result<Taken> {
        if self.failed {
            return Err(Error::new("a step has failed, and its parameters are half updated"));
        }
        let result = self.try_step(data, traced);
        self.failed = result.is_err();
        if self.failed && self.cluster.is_some() {
            // A GPU may wait for a process that is gone, and to free its memory would wait for that.
            std::mem::forget(std::mem::take(&mut self.ranks));
        }
        result
    }

    fn try_step(&mut self, data: &[Vec<Batch>], traced: bool) -> Result<Taken> {
        let origin = &self.plan.origin;
        let tokens = origin.micro_batch_size as usize * self.shape.sequence;
        let micro_batches = self.plan.layout.micro_batches as usize;
        let fits = |replica: &Vec<Batch>| {
            replica.len() == micro_batches && replica.iter().all(|batch| batch.tokens() == tokens)
        };
        if data.len() != self.world.replicas as usize || !data.iter().all(fits) {
            return Err(Error::new(format!(
                "a step needs {micro_batches} micro-batches of {tokens} tokens for each of {} replicas",
                self.world.replicas
            )));
        }
        let by_replica: Vec<Data> = data
            .iter()
            .map(|batches| {
                let ahead = |ahead| batches.iter().flat_map(|batch| batch.ahead(ahead)).collect();
                (0..=self.shape.losses()).map(ahead).collect()
            })
            .collect();
        let step_tokens = tokens * micro_batches * data.len();
        let alarm = || self.cluster.as_ref().map(|cluster| Arc::clone(cluster.alarm()));
        if let Some(cluster) = &self.cluster {
            if self.steps == 0 {
                let watch = Watch::with_alarm(self.time_out, alarm());
                let shared = self.shared(&watch, (tokens, step_tokens), Vec::new());
                for rank in &self.ranks {
                    let data = &by_replica[rank.gpu.replica as usize];
                    rank.rehearse(&shared, data).map_err(|error| rank.told(&error))?;
                }
            }
            cluster.meet("the begin of a step")?;
        }
        let bases = self.bases(traced)?;
        let watch = Watch::with_alarm(self.time_out, alarm());
        let shared = self.shared(&watch, (tokens, step_tokens), bases);
        // Nobody writes to another's memory before all have cleared theirs.
        let cleared = Barrier::new(self.ranks.len());
        let done: Vec<Option<Done>> = thread::scope(|scope| {
            let (shared, by_replica, cleared) = (&shared, &by_replica, &cleared);
            let threads: Vec<_> = (self.ranks.iter())
                .map(|rank| scope.spawn(move || work(rank, shared, &by_replica[rank.gpu.replica as usize], cleared)))
                .collect();
            threads.into_iter().map(|thread| thread.join().ok().flatten()).collect()
        });
        drop(shared);
        if let Some(error) = watch.failure() {
            return Err(error);
        }
        let done: Vec<Done> = done.into_iter().flatten().collect();
        let losses = self.losses(&done)?;
        let spans = (self.ranks.iter().zip(&done)).map(|(rank, done)| {
            let spans = done.traces.iter().map(trace::Trace::spans).collect::<Result<Vec<_>>>()?;
            Ok((rank.gpu, spans.concat()))
        });
        let spans = spans.collect::<Result<Vec<_>>>()?;
        let spans = if traced { self.all_spans(spans)? } else { spans };
        self.steps += 1;
        let squares = done.first().map_or(f64::NAN, |done| done.squares);
        let losses = losses.into_iter().map(|sum| sum / step_tokens as f64).collect();
        let step = reference::Step { losses, gradient_norm: squares.sqrt() };
        Ok(Taken { step, spans })
    }

    /// What the ranks read in this step.
    fn shared<'a>(&'a self, watch: &'a Watch, tokens: (usize, usize), bases: Vec<Option<Arc<Event>>>) -> Shared<'a> {
        let decay = (self.optimizer.learning_rate.at(self.steps + 1) * self.optimizer.weight_decay) as f32;
        let step = (self.optimizer_step(), decay, self.optimizer.balance_rate as f32);
        Shared { plan: &self.plan, shape: &self.shape, watch, step, tokens, bases }
    }

    /// The sums of the model's losses and of each MTP module's, in the order of ranks and micro-batches.
    fn losses(&self, done: &[Done]) -> Result<Vec<f64>> {
        let mut all: Vec<f64> = done.iter().flat_map(|done| &done.losses).copied().collect();
        if let Some(cluster) = &self.cluster {
            let own = all.into_iter().flat_map(f64::to_le_bytes).collect();
            let bytes = cluster.share(own, "the end of a step")?.concat();
            all = bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        }
        let mut sums = vec![0.0; self.shape.losses()];
        all.chunks(sums.len()).for_each(|losses| sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss));
        Ok(sums)
    }

    /// What ran on all ranks, for process 0.
    fn all_spans(&self, own: Vec<(Gpu, Vec<Span>)>) -> Result<Vec<(Gpu, Vec<Span>)>> {
        let Some(cluster) = &self.cluster else { return Ok(own) };
        let strange = |error: serde_json::Error| Error::new(format!("times of a rank cannot be told: {error}"));
        let spans: Vec<&Span> = own.iter().flat_map(|(_, spans)| spans).collect();
        let text = serde_json::to_vec(&spans).map_err(strange)?;
        let Some(all) = cluster.gather(text, "the end of a traced step")? else { return Ok(own) };
        let read = |(gpu, text): (Gpu, Vec<u8>)| Ok((gpu, serde_json::from_slice(&text).map_err(strange)?));
        self.world.gpus().zip(all).map(read).collect()
    }

    /// From the next step on ops run with these SMs, whatever the plan says: to measure what they make of them.
    pub fn give_sms(&mut self, sms: impl Fn(&ProgramOp) -> u32) {
        for op in self.plan.programs.iter_mut().flat_map(|program| &mut program.ops) {
            op.sms = sms(op);
        }
    }

    /// The plan that is run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The shape of its model.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// By rank of this process: which GPU it is on, and bytes that it has there.
    pub fn places(&self) -> impl Iterator<Item = (Gpu, &Device, usize)> {
        self.ranks.iter().map(|rank| (rank.gpu, &*rank.device, rank.bytes()))
    }

    /// The gradients of the last step, by rank of this process and name: reduced, not clipped. With a sharded optimizer a rank has only its share of
    /// them, and the rest is what it made itself.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn gradients(&self) -> Result<Vec<(Gpu, Tensors)>> {
        self.arrays(|store| store.gradients())
    }

    /// The parameters of each rank of this process by name, in fp32; with a sharded optimizer those that another one updates as they were gathered.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn parameters(&self) -> Result<Vec<(Gpu, Tensors)>> {
        self.arrays(Store::parameters)
    }

    fn arrays(&self, of: impl Fn(&Store) -> Slice<f32>) -> Result<Vec<(Gpu, Tensors)>> {
        let rank = |rank: &Rank| {
            let mut tensors = BTreeMap::new();
            for stage in rank.stages.values() {
                let values = of(&stage.store).read(&rank.comm)?;
                for (name, place) in stage.store.tensors() {
                    tensors.insert(name.to_owned(), values[place.range()].to_vec());
                }
            }
            Ok((rank.gpu, tensors))
        };
        self.ranks.iter().map(rank).collect()
    }

    fn optimizer_step(&self) -> super::ops::optimizer::Step {
        let power = |beta: f64| beta.powi(i32::try_from(self.steps + 1).unwrap_or(i32::MAX));
        let of = &self.optimizer;
        super::ops::optimizer::Step {
            rate: of.learning_rate.at(self.steps + 1) as f32,
            beta1: of.beta1 as f32,
            beta2: of.beta2 as f32,
            epsilon: of.epsilon as f32,
            correction1: (1.0 / (1.0 - power(of.beta1))) as f32,
            correction2: (1.0 / (1.0 - power(of.beta2))) as f32,
            clip: of.clip.map(|most| most as f32),
            narrow_moments: self.shape.policy.moments() == Some(Dtype::Bf16),
        }
    }

    /// By GPU: an event that has happened, if times are measured.
    fn bases(&self, traced: bool) -> Result<Vec<Option<Arc<Event>>>> {
        let most = self.ranks.iter().map(|rank| rank.device.ordinal).max().unwrap_or_default();
        let mut bases = vec![None; most + 1];
        for rank in self.ranks.iter().filter(|_| traced) {
            let base = &mut bases[rank.device.ordinal];
            if base.is_none() {
                let event = Event::new(&rank.device, true)?;
                event.record(&rank.comm)?;
                event.synchronize()?;
                *base = Some(Arc::new(event));
            }
        }
        Ok(bases)
    }
}

/// A thread: runs the step of one rank, and ends the others if that fails.
fn work(rank: &Rank, shared: &Shared, data: &Data, cleared: &Barrier) -> Option<Done> {
    const WHO: &str = "begin";
    shared.watch.at(WHO, || "clearing sums".to_owned());
    let begun = rank.begin(data);
    shared.watch.done(WHO);
    cleared.wait();
    match begun.and_then(|()| rank.step(shared)) {
        Ok(done) => Some(done),
        Err(error) => {
            shared.watch.fail(rank.told(&error));
            None
        }
    }
}
