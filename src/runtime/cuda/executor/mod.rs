//! Runs a plan on GPUs: threads launch what the plan says on the plan's streams; what has to be waited for, the
//! GPUs wait for themselves, by events ([`super::signals`]).
//!
//! A rank is a GPU; or several ranks share one, so that every plan runs on a single GPU too. Ranks of one process exchange through each
//! other's memory. Or each rank is a process, on any host, and what they exchange is moved by NCCL (`network`); what is computed is the
//! same.
//!
//! `world` and `messages` beside the runtimes say who is where and what lies in which slot; `store` are the parameters of a stage,
//! `unit` the ops of its units, `places` and `blocks` say where values lie; `rank` launches, `sync` is the end of a step.

mod blocks;
mod formats;
mod forms;
mod heap;
mod network;
mod places;
mod rank;
mod stage;
mod store;
mod sync;
mod trace;
mod unit;

pub use trace::Span;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::exchange::packed::Window;
use super::signals::{link, meeting};
use super::stream::Priority;
use super::watch::Watch;
use super::{Device, Event, Memory, Slice, Stream, device, exchange, product};
use crate::error::{Error, Result};
use crate::ir::Recompute;
use crate::job::model::Dtype;
use crate::plan::{ALIGNMENT, Plan, StreamId, Task, rank_streams};
use crate::runtime::cluster::{Cluster, Launcher};
use crate::runtime::host::Shape;
use crate::runtime::host::adamw::AdamW;
use crate::runtime::host::batch::Batch;
use crate::runtime::host::executor::StageParameters;
use crate::runtime::host::parameters::initialise;
use crate::runtime::host::reference;
use crate::runtime::messages::{Message, uses};
use crate::runtime::world::{Gpu, World};
use crate::runtime::{fit, said};
use blocks::SCRATCH;
use network::{Links, Network};
use rank::{Data, Done, Norm, Rank, Shared};
use stage::Stage;
use store::{REGIONS, Region, Store};
use sync::{Peer, Sync, Way};
use unit::Sizes;

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
            .map(|batches| [0, 1].map(|ahead| batches.iter().flat_map(|batch| batch.ahead(ahead)).collect()))
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
        let step = reference::Step { losses: vec![losses / step_tokens as f64], gradient_norm: squares.sqrt() };
        Ok(Taken { step, spans })
    }

    /// What the ranks read in this step.
    fn shared<'a>(&'a self, watch: &'a Watch, tokens: (usize, usize), bases: Vec<Option<Arc<Event>>>) -> Shared<'a> {
        let decay = (self.optimizer.learning_rate.at(self.steps + 1) * self.optimizer.weight_decay) as f32;
        let step = (self.optimizer_step(), decay, self.optimizer.balance_rate as f32);
        Shared { plan: &self.plan, shape: &self.shape, watch, step, tokens, bases }
    }

    /// The sum of all losses, in the order of ranks and micro-batches.
    fn losses(&self, done: &[Done]) -> Result<f64> {
        let own: Vec<f64> = done.iter().flat_map(|done| &done.losses).copied().collect();
        let Some(cluster) = &self.cluster else { return Ok(own.into_iter().sum()) };
        let own = own.into_iter().flat_map(f64::to_le_bytes).collect();
        let all = cluster.share(own, "the end of a step")?.concat();
        Ok(all.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).sum())
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
                    tensors.insert(name.to_owned(), values[place].to_vec());
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

/// One GPU for each rank, neighbours on the same one if there are fewer.
fn open(ranks: usize, wanted: Option<usize>) -> Result<Vec<Arc<Device>>> {
    let there = device::count()?;
    let gpus = wanted.unwrap_or(there).min(ranks);
    if gpus == 0 || gpus > there {
        return Err(Error::new(format!("{} GPUs are wanted; this computer has {there}", wanted.unwrap_or(1))));
    }
    let devices = (0..gpus).map(Device::open).collect::<Result<Vec<_>>>()?;
    Ok((0..ranks).map(|rank| Arc::clone(&devices[rank * gpus / ranks])).collect())
}

/// The GPU of a process that has one rank.
fn open_own(cluster: &Cluster, ranks: usize) -> Result<Arc<Device>> {
    let seat = cluster.seat();
    if seat.processes as usize != ranks {
        return Err(Error::new(format!(
            "the plan has {ranks} ranks, for a process each; there are {}",
            seat.processes
        )));
    }
    let there = device::count()?;
    // srun can give each process a GPU, which is then the only one that it sees.
    let bound = seat.launcher == Launcher::Slurm && there == 1 && std::env::var_os("CUDA_VISIBLE_DEVICES").is_some();
    let ordinal = if bound { 0 } else { seat.local as usize };
    if ordinal >= there {
        let (variable, per_host) = match seat.launcher {
            Launcher::Torchrun => ("LOCAL_RANK", "`--nproc-per-node`"),
            Launcher::Slurm => ("SLURM_LOCALID", "`--ntasks-per-node`"),
        };
        return Err(Error::new(format!("{variable} is {ordinal}, but this process sees {there} GPUs"))
            .help(format!("a host can have as many processes as GPUs ({per_host}, CUDA_VISIBLE_DEVICES)")));
    }
    Device::open(ordinal)
}

/// Builds ranks.
struct Builder<'a> {
    plan: &'a Plan,
    shape: &'a Shape,
    world: &'a World,
    /// By rank of this process.
    devices: &'a [Arc<Device>],
    seed: u64,
}

/// What is between the ranks of this process, or between one and those of others; each by rank of this process.
struct Between {
    syncs: Vec<BTreeMap<u32, Sync>>,
    members: Vec<Option<exchange::Member>>,
    links: Vec<Links>,
    /// `None`: they meet, which is made when their tables are there.
    norms: Vec<Option<Norm>>,
}

impl Builder<'_> {
    fn ranks(&self, cluster: Option<&Cluster>) -> Result<Vec<Rank>> {
        let mut gpus: Vec<Gpu> = self.world.gpus().collect();
        if let Some(cluster) = cluster {
            gpus = gpus.into_iter().skip(cluster.seat().process as usize).take(1).collect();
        }
        // In threads: a large model has many initial values.
        let stages = thread::scope(|scope| {
            let on = gpus.iter().zip(self.devices);
            let threads: Vec<_> = on.map(|(&gpu, device)| scope.spawn(move || self.stages(gpu, device))).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| Err(Error::new(format!("panicked: {}", said(&*panic)))))
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        });
        let mut stages = stages?;
        let mut between = match cluster {
            Some(cluster) => match self.to_processes(cluster, gpus[0], &stages[0]) {
                Ok(between) => between,
                Err(error) => {
                    // As after a step that fails.
                    std::mem::forget(stages);
                    return Err(error);
                }
            },
            None => Between {
                syncs: self.syncs(&gpus, &stages)?,
                members: self.members(&gpus)?,
                links: self.links(&gpus)?,
                norms: gpus.iter().map(|_| None).collect(),
            },
        };
        let mut ranks = Vec::new();
        for (own, &gpu) in gpus.iter().enumerate() {
            let device = &self.devices[own];
            let of = &self.plan.ranks[gpu.rank as usize];
            let stages = std::mem::take(&mut stages[own]);
            let (places, bytes) = places::blocks(&of.items, &stages);
            let memory_of = |block| stages.values().map(|stage: &Stage| stage.bytes(block)).max().unwrap_or_default();
            let bytes_of = SCRATCH.map(|block| memory_of(block).next_multiple_of(ALIGNMENT as usize));
            let memory = Memory::new(device, bytes + bytes_of.iter().sum::<usize>())?;
            let mut next = bytes;
            let scratch = bytes_of.map(|bytes| {
                next += bytes;
                memory.all::<u8>().part(next - bytes..next)
            });
            let (slots, ring_bytes) = places::rings(of);
            let (senders, receivers) = std::mem::take(&mut between.links[own]);
            let ops = self.plan.programs.iter().map(|program| program.ops.len()).max().unwrap_or_default();
            let events = |count: usize| (0..count).map(|_| Event::new(device, false)).collect::<Result<Vec<_>>>();
            let mut streams = BTreeMap::new();
            // What the end of a step and its start need is always there.
            for id in rank_streams(&of.items).into_iter().chain([StreamId::Compute, StreamId::Sync]) {
                let priority = if id == StreamId::Compute { Priority::Low } else { Priority::High };
                streams.insert(id, Stream::new(device, priority)?);
            }
            let tokens = self.tokens() * self.plan.layout.micro_batches as usize;
            ranks.push(Rank {
                gpu,
                comm: Stream::new(device, Priority::High)?,
                products: product::Products::new(device)?,
                member: Mutex::new(between.members[own].take()),
                exchanges: self.world.ep > 1,
                syncs: std::mem::take(&mut between.syncs[own]),
                senders,
                receivers,
                targets: vec![Slice::none(); of.items.len()],
                message: self.tokens() * self.shape.hidden(),
                memory,
                places,
                scratch,
                rings: Memory::new(device, ring_bytes)?,
                slots,
                uses: uses(of, gpu.rank, &self.plan.layout),
                ended: events(of.items.len())?.into_iter().map(|event| (event, AtomicBool::new(false))).collect(),
                op_ended: events(ops)?,
                joints: [Event::new(device, false)?, Event::new(device, false)?],
                data: [Memory::of::<u32>(device, tokens)?, Memory::of::<u32>(device, tokens)?],
                losses: Memory::of::<f32>(device, self.plan.layout.micro_batches as usize)?,
                squares: [
                    Memory::of::<f32>(device, 1)?,
                    Memory::of::<f32>(device, self.world.count())?,
                    Memory::of::<f32>(device, 1)?,
                ],
                norm: between.norms[own].take(),
                index: self.world.index(gpu),
                streams,
                stages,
                device: Arc::clone(device),
            });
        }
        if cluster.is_none() {
            let boards: Vec<Slice<f32>> = ranks.iter().map(|rank| rank.squares[1].all()).collect();
            for (rank, meeting) in ranks.iter_mut().zip(meeting(self.devices)?) {
                rank.norm = Some(Norm::Memory(Mutex::new(meeting), boards.clone()));
            }
        }
        self.aim(&mut ranks)?;
        if cluster.is_none() {
            self.open_windows(&mut ranks);
        }
        Ok(ranks)
    }

    /// Members of an exchange know where blocks and scratch of the others lie.
    fn open_windows(&self, ranks: &mut [Rank]) {
        let memory: Vec<Slice<u8>> = ranks.iter().map(|rank| rank.memory.all()).collect();
        for rank in ranks {
            let all = self.world.group(rank.gpu).map(|gpu| memory[self.world.index(gpu)]).collect();
            let window = Window { own: memory[self.world.index(rank.gpu)], all };
            if let Some(member) = rank.member.get_mut().unwrap_or_else(PoisonError::into_inner) {
                member.open(vec![window]);
            }
        }
    }

    /// What is between the one rank of this process and those of others.
    fn to_processes(&self, cluster: &Cluster, gpu: Gpu, stages: &BTreeMap<u32, Stage>) -> Result<Between> {
        let device = &self.devices[0];
        let others = stages.keys().flat_map(|&stage| REGIONS.map(|region| self.members_of(gpu, stage, region)));
        let mut partners: Vec<usize> = others.flatten().map(|other| self.world.index(other)).collect();
        partners.sort_unstable();
        partners.dedup();
        partners.retain(|&partner| partner != self.world.index(gpu));
        let Network { links, group, sync, norm } = Network::new(cluster, device, self.plan, self.world, &partners)?;

        let stream = Stream::new(device, Priority::Low)?;
        let needed = stages.iter().flat_map(|(&stage, held)| {
            REGIONS.map(|region| {
                let members = self.members_of(gpu, stage, region).len();
                sync::staging(region, held.store.region(region).len(), members)
            })
        });
        let staging = Arc::new(Memory::of::<f32>(device, needed.max().unwrap_or_default())?);
        let mut syncs = BTreeMap::new();
        for (&stage, held) in stages {
            let members = REGIONS.map(|region| {
                let members = self.members_of(gpu, stage, region);
                let mine = members.iter().position(|&member| member == gpu).unwrap_or_default();
                let processes = members.into_iter().map(|member| self.world.index(member)).collect();
                (sync::Members::Network(processes), mine)
            });
            let way = Way::Network(Arc::clone(&sync), Arc::clone(&staging));
            let sharded = self.is_sharded(stage);
            syncs.insert(stage, Sync::new(device, &stream, &held.store, members, way, sharded)?);
        }
        let member = match (&self.shape.model.moe, group) {
            (None, _) => None,
            (Some(moe), Some(group)) => {
                let (experts, top_k) = (moe.experts as usize, moe.top_k as usize);
                Some(exchange::member(group, experts, self.tokens(), top_k, self.shape.hidden())?)
            }
            (Some(moe), None) => {
                let devices = [Arc::clone(device)];
                exchange::group(&devices, moe.experts as usize, self.tokens(), moe.top_k as usize)?.pop()
            }
        };
        let norm = Norm::Network(Mutex::new(norm));
        Ok(Between { syncs: vec![syncs], members: vec![member], links: vec![links], norms: vec![Some(norm)] })
    }

    /// Whether the optimizer's work on a stage is shared.
    fn is_sharded(&self, stage: u32) -> bool {
        let gathers = |item: &crate::plan::Item| item.0 == Task::GatherParams(stage);
        self.plan.ranks.iter().flat_map(|rank| &rank.items).any(gathers)
    }

    /// Tokens of a micro-batch.
    fn tokens(&self) -> usize {
        self.plan.origin.micro_batch_size as usize * self.shape.sequence
    }

    fn sizes(&self, gpu: Gpu) -> Sizes {
        let local = self.world.experts_at(self.world.place(gpu));
        let (experts, top_k) =
            self.shape.model.moe.as_ref().map_or((0, 0), |moe| (moe.experts as usize, moe.top_k as usize));
        let tokens = self.tokens();
        let capacity = exchange::most_rows(self.world.ep as usize, experts, tokens, top_k);
        let places = self.world.ep as usize;
        Sizes { tokens, capacity, local_experts: local.len(), first_expert: local.start, places, experts, top_k }
    }

    fn stages(&self, gpu: Gpu, device: &Arc<Device>) -> Result<BTreeMap<u32, Stage>> {
        let stream = Stream::new(device, Priority::Low)?;
        let mut stages = BTreeMap::new();
        for stage in self.plan.layout.stages_of(gpu.rank) {
            let of = &self.plan.stages[stage as usize];
            let (units, forms) = (&of.units, forms::Forms::of(self.plan, stage));
            // A whole layer has all else in it.
            let recompute = of.recompute.and(Recompute::NOTHING);
            let experts = self.world.experts_at(self.world.place(gpu));
            let mut initial = StageParameters::<f32>::zeros(self.shape, units, &experts);
            initialise(&mut initial, "", self.seed, self.shape.policy.master());
            let members = REGIONS.map(|region| self.members_of(gpu, stage, region).len());
            let store = Store::new(device, &stream, &initial, members)?;
            stages.insert(stage, Stage::new(self.shape, units, (self.sizes(gpu), forms, recompute), store)?);
        }
        Ok(stages)
    }

    /// The GPUs that have the same parameters of a region.
    fn members_of(&self, gpu: Gpu, stage: u32, region: Region) -> Vec<Gpu> {
        let holders = self.world.holders(&self.plan.layout.holders(stage)).into_iter();
        let same = |other: &Gpu| region != Region::Experts || self.world.place(*other) == self.world.place(gpu);
        holders.filter(same).collect()
    }

    /// By GPU and stage.
    fn syncs(&self, gpus: &[Gpu], stages: &[BTreeMap<u32, Stage>]) -> Result<Vec<BTreeMap<u32, Sync>>> {
        let mut syncs: Vec<BTreeMap<u32, Sync>> = gpus.iter().map(|_| BTreeMap::new()).collect();
        for stage in 0..self.plan.layout.stages {
            let holders = self.world.holders(&self.plan.layout.holders(stage));
            let devices: Vec<Arc<Device>> =
                holders.iter().map(|&gpu| Arc::clone(&self.devices[self.world.index(gpu)])).collect();
            let sharded = self.is_sharded(stage);
            for (&gpu, meeting) in holders.iter().zip(meeting(&devices)?) {
                let index = self.world.index(gpu);
                let store = |gpu: Gpu| stages[self.world.index(gpu)].get(&stage).map(|stage| &stage.store);
                let Some(own) = store(gpu) else { continue };
                let peers = REGIONS.map(|region| {
                    let members = self.members_of(gpu, stage, region);
                    let mine = members.iter().position(|&member| member == gpu).unwrap_or_default();
                    (sync::Members::Memory(members.into_iter().filter_map(store).map(Peer::of).collect()), mine)
                });
                let device = &self.devices[index];
                let stream = Stream::new(device, Priority::Low)?;
                let way = Way::Memory(Mutex::new(meeting));
                syncs[index].insert(stage, Sync::new(device, &stream, own, peers, way, sharded)?);
            }
        }
        Ok(syncs)
    }

    /// By GPU: its place in the exchange of its group.
    fn members(&self, gpus: &[Gpu]) -> Result<Vec<Option<exchange::Member>>> {
        let mut members: Vec<Option<exchange::Member>> = gpus.iter().map(|_| None).collect();
        let Some(moe) = &self.shape.model.moe else { return Ok(members) };
        for &first in gpus.iter().filter(|&&gpu| self.world.place(gpu) == 0) {
            let group: Vec<usize> = self.world.group(first).map(|gpu| self.world.index(gpu)).collect();
            let devices: Vec<Arc<Device>> = group.iter().map(|&index| Arc::clone(&self.devices[index])).collect();
            let made = exchange::group(&devices, moe.experts as usize, self.tokens(), moe.top_k as usize)?;
            for (index, member) in group.into_iter().zip(made) {
                members[index] = Some(member);
            }
        }
        Ok(members)
    }

    /// By GPU: links to and from the other ranks of its replica that it exchanges messages with.
    fn links(&self, gpus: &[Gpu]) -> Result<Vec<Links>> {
        let mut links: Vec<Links> = gpus.iter().map(|_| Links::default()).collect();
        for &gpu in gpus {
            for peer in network::receivers(self.plan, self.world.ranks, gpu.rank) {
                let (from, to) = (self.world.index(gpu), self.world.index(Gpu { rank: peer, ..gpu }));
                let (sender, receiver) = link(&self.devices[from], &self.devices[to])?;
                links[from].0.insert(peer, Mutex::new(sender));
                links[to].1.insert(gpu.rank, Mutex::new(receiver));
            }
        }
        Ok(links)
    }

    /// Sends know where the receive that they meet puts things, if it is of this process: the k-th to a rank meets the k-th there.
    fn aim(&self, ranks: &mut [Rank]) -> Result<()> {
        for index in 0..ranks.len() {
            let gpu = ranks[index].gpu;
            let mut sent: BTreeMap<u32, usize> = BTreeMap::new();
            for (item, of) in self.plan.ranks[gpu.rank as usize].items.iter().enumerate() {
                let Some((message, peer, true)) = Message::of(of.0) else { continue };
                let count = sent.entry(peer).or_default();
                let meets = self.plan.ranks.get(peer as usize).and_then(|rank| {
                    let mut receives = rank.items.iter().enumerate().filter(|(_, item)| {
                        Message::of(item.0).is_some_and(|(_, from, sent)| !sent && from == gpu.rank)
                    });
                    receives.nth(*count)
                });
                *count += 1;
                let unmet = || Error::new(format!("{} meets no receive", of.0));
                let (at, receive) = meets.ok_or_else(unmet)?;
                if Message::of(receive.0).is_none_or(|(theirs, _, _)| theirs != message) {
                    return Err(Error::new(format!("{} meets {}", of.0, receive.0)));
                }
                let there = Gpu { rank: peer, ..gpu };
                if let Some(other) = ranks.iter().find(|rank| rank.gpu == there) {
                    let value = other.uses[at].written.first().ok_or_else(unmet)?;
                    ranks[index].targets[item] = other.slot(value, other.message).cast();
                }
            }
        }
        Ok(())
    }
}
