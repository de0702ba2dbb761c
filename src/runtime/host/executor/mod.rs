//! Runs a plan: one thread for each GPU, tensors that really move between them, and the arithmetic of [`super::unit`].
//!
//! The plan is taken at its word ([`crate::plan::Plan`]): streams, events, rendezvous, rings. Where it is wrong, an op finds what
//! it reads missing, a slot or a block of the arena is overwritten, or all GPUs wait; each is an error that says where. A plan that is
//! right gives the same bits in whatever order its streams and events allow.
//!
//! `rank` is what one GPU does, `running` one of its programs; `chunk` are the ops, `rows` what experts
//! get; `fabric` and `rings` carry what moves; `arena` follows where everything lies; `sync` is the end of a step. There is no tensor
//! parallelism here.

mod arena;
mod checkpoint;
mod chunk;
pub mod compare;
mod fabric;
mod order;
mod rank;
mod rings;
mod rows;
mod running;
mod stage;
mod stamps;
mod sync;

pub use crate::runtime::world::Gpu;
pub use order::Order;
pub use stage::{StageParameters, is_expert, reads_table};

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::adamw::AdamW;
use super::batch::Batch;
use super::parameters::{Parameters as _, Tensor, initialise};
use super::reference::Step;
use super::{Real, Shape};
use crate::error::{Error, Result};
use crate::plan::{Plan, Task};
use crate::runtime::messages::{Uses, uses};
use crate::runtime::world::World;
use crate::runtime::{fit, said};
use fabric::Fabric;
use order::Chooser;
use rank::{Losses, Shared, Worker};
use sync::HeldStage;

/// Result of what happens on a GPU. The message says what is wrong; whoever knows where, says so in front of it.
type Run<V> = std::result::Result<V, String>;

/// Most parameters that are held, over all GPUs: with gradients and moments in `f64` 32 bytes each, so 128 GiB. More is a mistake.
const MOST_PARAMETERS: u64 = 1 << 32;

/// Most GPUs: each is a thread.
const MOST_GPUS: u64 = 4096;

/// A model that is trained as a plan says.
pub struct Executor<T> {
    plan: Plan,
    shape: Shape,
    optimizer: AdamW,
    world: World,
    /// What items do with slots, by rank.
    uses: Vec<Vec<Uses>>,
    /// By GPU: its stages.
    held: Vec<BTreeMap<u32, HeldStage<T>>>,
}

impl<T: Real> Executor<T> {
    /// Before the first step, with initial parameters. `shape` is the plan's, or differs in what models leave open.
    ///
    /// # Errors
    /// If the plan uses tensor parallelism, its stages are not its model, its numbers do not fit each other, or the model is far
    /// too large for one computer.
    pub fn new(plan: Plan, shape: Shape, optimizer: AdamW, seed: u64) -> Result<Self> {
        check(&plan, &shape)?;
        let world = World::new(&plan);
        let uses = (0..).zip(&plan.ranks).map(|(number, rank)| uses(rank, number, &plan.layout)).collect();
        let held = world.gpus().map(|gpu| {
            let stages = plan.layout.stages_of(gpu.rank).into_iter();
            stages.map(|stage| (stage, held(&plan, &shape, &world, gpu, stage, seed))).collect()
        });
        let held = held.collect();
        Ok(Self { plan, shape, optimizer, world, uses, held })
    }

    /// One step. `data`: by replica, its micro-batches.
    ///
    /// # Errors
    /// If there are not as many micro-batches as the plan has, or they are not of its size; or if the plan is wrong. Then some
    /// parameters may be updated and others not: there is no going on but from a checkpoint.
    pub fn step(&mut self, data: &[Vec<Batch>], order: Order) -> Result<Step> {
        let origin = &self.plan.origin;
        let micro_batch = origin.micro_batch_size as usize * self.shape.sequence;
        let fits = |replica: &Vec<Batch>| {
            replica.len() == self.plan.layout.micro_batches as usize
                && replica.iter().all(|batch| batch.tokens() == micro_batch)
        };
        if data.len() != self.world.replicas as usize || !data.iter().all(fits) {
            return Err(Error::new(format!(
                "a step needs {} micro-batches of {micro_batch} tokens for each of {} replicas",
                self.plan.layout.micro_batches, self.world.replicas
            )));
        }
        let step_tokens = data.iter().flatten().map(Batch::tokens).sum();
        let fabric = Fabric::new(self.world, self.plan.stages.len() * self.world.ep as usize);
        let shared = Shared {
            plan: &self.plan,
            shape: &self.shape,
            world: &self.world,
            optimizer: &self.optimizer,
            fabric: &fabric,
            data,
            tokens: (micro_batch as u32, step_tokens),
            uses: &self.uses,
        };
        let losses: Vec<Losses> = thread::scope(|scope| {
            let threads: Vec<_> = (self.world.gpus().zip(&mut self.held))
                .map(|(gpu, held)| {
                    let shared = &shared;
                    let run = move || work(shared, gpu, held, Chooser::new(order, gpu));
                    let thread = thread::Builder::new().name(gpu.to_string()).spawn_scoped(scope, run);
                    thread.map_err(|error| fabric.fail(Error::new(format!("no thread for {gpu}: {error}"))))
                })
                .collect();
            // A panic is caught in the thread.
            threads.into_iter().flatten().map(|thread| thread.join().unwrap_or_default()).collect()
        });
        let squares = fabric.total().map_or(f64::NAN, |total| total.squares);
        if let Some(error) = fabric.failure() {
            return Err(error);
        }
        let mut means = vec![0.0; self.shape.losses()];
        for sums in losses.iter().flat_map(Losses::values) {
            means.iter_mut().zip(sums).for_each(|(mean, sum)| *mean += sum / step_tokens as f64);
        }
        Ok(Step { losses: means, gradient_norm: squares.sqrt() })
    }

    /// The plan that is run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The shape of its model.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The parameters that each GPU holds, by name.
    pub fn parameters(&self) -> impl Iterator<Item = (Gpu, String, &Tensor<T>)> {
        self.stages().flat_map(|(gpu, held)| named(gpu, &held.parameters))
    }

    /// The parameters of a stage on a GPU, to be changed.
    pub fn parameters_mut(&mut self, gpu: Gpu, stage: u32) -> Option<&mut StageParameters<T>> {
        let held = self.held.get_mut(self.world.index(gpu))?.get_mut(&stage)?;
        Some(&mut held.parameters)
    }

    /// The gradients of the last step that each GPU holds, by name: reduced, not clipped.
    pub fn gradients(&self) -> impl Iterator<Item = (Gpu, String, &Tensor<T>)> {
        self.stages().flat_map(|(gpu, held)| named(gpu, &held.gradients))
    }

    fn stages(&self) -> impl Iterator<Item = (Gpu, &HeldStage<T>)> {
        self.world.gpus().zip(&self.held).flat_map(|(gpu, stages)| stages.values().map(move |held| (gpu, held)))
    }
}

fn named<T: Real>(gpu: Gpu, stage: &StageParameters<T>) -> impl Iterator<Item = (Gpu, String, &Tensor<T>)> {
    stage.tensors("").into_iter().map(move |(name, tensor)| (gpu, name, tensor))
}

/// A stage on a GPU before the first step.
fn held<T: Real>(plan: &Plan, shape: &Shape, world: &World, gpu: Gpu, stage: u32, seed: u64) -> HeldStage<T> {
    let experts = world.experts_at(world.place(gpu));
    let units = plan.stages.get(stage as usize).map_or(&[][..], |stage| &stage.units);
    let mut parameters = StageParameters::zeros(shape, units, &experts);
    initialise(&mut parameters, "", seed, shape.policy.master());
    let sharded = plan.ranks.iter().flat_map(|rank| &rank.items).any(|item| item.0 == Task::GatherParams(stage));
    HeldStage::new(parameters, world, world.holders(&plan.layout.holders(stage)), gpu, sharded)
}

/// A thread: runs the step of one GPU, and tells the others if that fails.
fn work<T: Real>(shared: &Shared<T>, gpu: Gpu, held: &mut BTreeMap<u32, HeldStage<T>>, chooser: Chooser) -> Losses {
    let mut worker = Worker::new(shared, gpu, held, chooser);
    // After a panic nothing of the step is used.
    let ended = catch_unwind(AssertUnwindSafe(|| worker.run()));
    let problem = match ended {
        Ok(Ok(losses)) => {
            shared.fabric.end(gpu);
            return losses;
        }
        Ok(Err(problem)) => problem,
        Err(panic) => format!("{}panicked: {}", worker.place(), said(&*panic)),
    };
    shared.fabric.fail(Error::new(format!("{gpu}: {problem}")));
    Losses::default()
}

/// Whether a plan can be run on one computer's CPU.
fn check(plan: &Plan, shape: &Shape) -> Result<()> {
    fit::check(plan, shape)?;
    let (origin, layout) = (&plan.origin, &plan.layout);
    let gpus = u64::from(layout.ranks).saturating_mul(origin.dp.into());
    if gpus > MOST_GPUS {
        return Err(Error::new(format!(
            "the plan is for {gpus} GPUs; at most {MOST_GPUS} can be threads of one computer"
        ))
        .help("compile the job with a smaller `--dp`"));
    }
    let count = shape.model.parameters();
    let (routed, dp) = (count.routed, u64::from(origin.dp));
    let uncut = count.total().saturating_add(count.mtp).saturating_sub(routed);
    let copies = if layout.holders(0).len() > 1 { 2 } else { 1 };
    let groups = dp / u64::from(origin.ep);
    let held = uncut.saturating_mul(dp).saturating_add(routed.saturating_mul(groups)).saturating_mul(copies);
    if held > MOST_PARAMETERS {
        return Err(Error::new(format!("the plan's GPUs hold {held} parameters, far too many to train on a CPU"))
            .help("run a plan of a small model, such as examples/tiny, on few GPUs"));
    }
    Ok(())
}
