//! Small jobs of every kind, compiled and run, and the same without a pipeline.

use std::collections::BTreeMap;
use std::path::Path;

use dualweave::ir::Placement;
use dualweave::job::model::{Attention, Layers, Mla, Moe, Precision};
use dualweave::job::sms::CommunicationSms;
use dualweave::job::training::{Recompute, ScheduleKind};
use dualweave::job::{Job, Model as JobModel, Overrides, load};
use dualweave::passes::compile;
use dualweave::plan::Plan;
use dualweave::runtime::host::adamw::AdamW;
use dualweave::runtime::host::batch::Batch;
use dualweave::runtime::host::executor::{Executor, Gpu, Order};
use dualweave::runtime::host::parameters::{Parameters, Role, Tensor};
use dualweave::runtime::host::precision::Policy;
use dualweave::runtime::host::rate::Rate;
use dualweave::runtime::host::reference::{Model, Trainer};
use dualweave::runtime::host::{Matrix, Shape};

use crate::shapes;

/// Attention of a small model.
#[derive(Clone, Copy, Debug)]
pub enum Heads {
    Multi,
    Grouped,
    Latent,
}

/// What a small model is like.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub heads: Heads,
    /// MTP modules.
    pub modules: u32,
    pub tied: bool,
    /// The first layer has no experts.
    pub dense_first: bool,
    pub shared: bool,
    /// As DeepSeek-V3's router, with groups.
    pub balanced: bool,
}

/// A small job.
#[derive(Clone, Debug)]
pub struct Case {
    pub schedule: ScheduleKind,
    pub placement: Option<Placement>,
    pub pp: u32,
    pub ep: u32,
    pub dp: u32,
    pub micro_batches: u32,
    /// Of a micro-batch.
    pub sequences: u32,
    pub kind: Kind,
    /// With the programs of much larger layers, where the rewrite rules are worth something.
    pub rewritten: bool,
    /// The optimizer's work is divided.
    pub sharded: bool,
    pub seed: u64,
}

/// Optimizer steps that are compared.
const STEPS: u64 = 2;

impl Case {
    /// The job whose model is run.
    pub fn job(&self) -> Job {
        let mut job = load(Path::new("examples/tiny/job.ron"), &Overrides::default()).expect("the example").job;
        let stages = self.pp
            * self.schedule.placement().or(self.placement).map_or(2, |placement| match placement {
                Placement::Linear | Placement::Bidirectional => 1,
                Placement::Loop | Placement::V => 2,
            });
        let kind = self.kind;
        let attention = match kind.heads {
            Heads::Multi => Attention::Mha(shapes::heads(2, None)),
            Heads::Grouped => Attention::Gqa(shapes::heads(4, Some(2))),
            Heads::Latent => {
                Attention::Mla(Mla { heads: 2, q_rank: Some(5), kv_rank: 6, nope_dim: 4, rope_dim: 2, value_dim: 3 })
            }
        };
        let groups = if kind.balanced { 2 } else { 1 };
        let moe = Moe {
            experts: 8,
            shared_width: if kind.shared { 6 } else { 0 },
            groups,
            topk_groups: 1,
            balance_bias: kind.balanced,
            layers: if kind.dense_first { Layers::From(1) } else { Layers::All },
            ..shapes::experts()
        };
        job.model = JobModel {
            // A stage holds at least one unit; embedding and head are two.
            layers: stages.max(2),
            tied_embedding: kind.tied,
            dense_width: kind.dense_first.then_some(7),
            moe: Some(moe),
            mtp_layers: kind.modules,
            precision: Precision::default(),
            ..shapes::base(attention)
        };
        job.cluster.nodes = 64;
        let training = &mut job.training;
        training.schedule = self.schedule;
        training.placement = self.placement;
        training.stages_per_rank = None;
        (training.pp, training.ep, training.dp, training.tp) = (self.pp, self.ep, self.dp, 1);
        training.micro_batches = self.micro_batches;
        training.micro_batch_size = self.sequences;
        training.sequence = 4;
        training.sharded_optimizer = self.sharded;
        // Ops that compute again, exchanges among them, are in every other plan.
        training.recompute.layer = !self.rewritten && self.micro_batches.is_multiple_of(2);
        training.communication_sms = CommunicationSms::Fixed(8);
        training.without_rewrites = if self.rewritten { Vec::new() } else { vec!["all".to_owned()] };
        job.check().unwrap_or_else(|error| panic!("{self:?}: {error:?}"));
        job
    }

    /// The job whose programs are run: that one, or the same with layers of another size.
    fn compiled(&self) -> Job {
        let mut job = self.job();
        if self.rewritten {
            job.model.hidden = 4096;
            job.model.dense_width = job.model.dense_width.map(|_| 8192);
            match &mut job.model.attention {
                Attention::Mha(dims) | Attention::Gqa(dims) => dims.head_dim = 1024,
                Attention::Mla(dims) => dims.value_dim = 1024,
            }
            if let Some(moe) = &mut job.model.moe {
                moe.width = 2048;
                moe.shared_width = 2048 * moe.shared_width.min(1);
            }
            job.training.sequence = 4096;
            job.training.recompute = Recompute { norms: true, mla_up: true, swiglu: true, layer: false };
            // Two nodes share the experts where four GPUs do.
            job.cluster.gpus_per_node = 2;
            job.cluster.nodes = 256;
            job.cluster.gpu.memory_gb = 1e6;
        }
        job
    }

    /// What is run.
    pub fn plan(&self) -> Plan {
        let mut plan = compile(&self.compiled()).unwrap_or_else(|error| panic!("{self:?}: {error:?}")).plan;
        let job = self.job();
        plan.model = job.model;
        plan.origin.sequence = job.training.sequence;
        plan
    }

    /// Data of a step, by replica.
    pub fn data(&self, shape: &Shape, step: u64) -> Vec<Vec<Batch>> {
        let batch = |replica: u32, micro_batch: u32| {
            let number = (step * u64::from(self.dp) + u64::from(replica)) * u64::from(self.micro_batches);
            Batch::random(shape, self.sequences as usize, self.seed, number + u64::from(micro_batch))
        };
        (0..self.dp).map(|replica| (0..self.micro_batches).map(|number| batch(replica, number)).collect()).collect()
    }
}

/// Without rounding, which would turn the last bits of sums into visible differences.
pub fn exact(plan: &Plan) -> Shape {
    Shape { policy: Policy::EXACT, ..Shape::of_plan(plan) }
}

/// Values far from initial ones, so that every part of the arithmetic matters.
pub fn scatter<P: Parameters<f64>>(parameters: &mut P) {
    for (name, tensor) in parameters.tensors_mut("") {
        let (mean, scale) = match tensor.role {
            Role::Weight => (0.0, 0.4),
            Role::Gain => (1.0, 0.3),
            Role::Bias => (0.0, 0.3),
            Role::Balance => (0.0, 0.1),
        };
        let noise = shapes::noise(&name, tensor.values.values().len());
        tensor.values.values_mut().iter_mut().zip(noise).for_each(|(value, noise)| *value = mean + scale * noise);
    }
}

/// A plan at its start, with scattered parameters.
pub fn executor(plan: &Plan, optimizer: AdamW) -> Executor<f64> {
    let mut executor = Executor::new(plan.clone(), exact(plan), optimizer, 0).expect("a plan that can be run");
    for rank in 0..plan.layout.ranks {
        for (stage, replica) in plan
            .layout
            .stages_of(rank)
            .into_iter()
            .flat_map(|stage| (0..plan.origin.dp).map(move |replica| (stage, replica)))
        {
            scatter(executor.parameters_mut(Gpu { rank, replica }, stage).expect("a stage of the rank"));
        }
    }
    executor
}

/// By name.
pub type Tensors<'a> = BTreeMap<String, &'a Matrix<f64>>;

/// Tensors by name; an error if two GPUs do not have the same.
pub fn by_name<'a>(tensors: impl Iterator<Item = (Gpu, String, &'a Tensor<f64>)>) -> Result<Tensors<'a>, String> {
    let mut all = BTreeMap::new();
    for (gpu, name, tensor) in tensors {
        if *all.entry(name.clone()).or_insert(&tensor.values) != &tensor.values {
            return Err(format!("{gpu} has another {name} than the others"));
        }
    }
    Ok(all)
}

/// What must be the same, up to the order of sums.
pub fn close(what: &str, ours: &Tensors, theirs: &Tensors) -> Result<(), String> {
    if ours.len() != theirs.len() {
        return Err(format!("{} {what}, not {}", ours.len(), theirs.len()));
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    for (name, theirs) in theirs {
        let ours = ours.get(name).ok_or(format!("no {what} of {name}"))?;
        let size = norm(&mut theirs.values().iter().copied());
        let error = norm(&mut ours.values().iter().zip(theirs.values()).map(|(a, b)| a - b));
        // Gradients that cancel leave some last bits.
        if error > 1e-9 * size + 1e-15 || error.is_nan() {
            return Err(format!("{what} of {name}: off by {error:e} of {size:e}"));
        }
    }
    Ok(())
}

/// Of the reference.
pub fn of_model(model: &Model<f64>) -> Tensors<'_> {
    model.tensors("").into_iter().map(|(name, tensor)| (name, &tensor.values)).collect()
}

/// Runs a case in the order of its lists and in a random one, and compares with the reference.
pub fn same_as_the_reference(case: &Case) -> Result<(), String> {
    let plan = case.plan();
    let shape = exact(&plan);
    let optimizer = AdamW { learning_rate: Rate::constant(1e-2), ..AdamW::default() };
    let mut reference = Trainer::<f64>::new(shape.clone(), optimizer, 0);
    scatter(&mut reference.model);
    let mut in_order = executor(&plan, optimizer);
    let mut at_random = executor(&plan, optimizer);
    for step in 0..STEPS {
        let data = case.data(&shape, step);
        let batches: Vec<Batch> = data.iter().flatten().cloned().collect();
        let gradients = reference.gradients(&batches).1;
        let expected = reference.step(&batches);
        let ours = in_order.step(&data, Order::List).map_err(|error| format!("in order: {error:?}"))?;
        let other = at_random.step(&data, Order::Random(case.seed)).map_err(|error| format!("at random: {error:?}"))?;
        for (mine, theirs) in ours.losses.iter().zip(&expected.losses) {
            if (mine - theirs).abs() > 1e-9 * theirs {
                return Err(format!("loss {mine} is not {theirs}"));
            }
        }
        if (ours.gradient_norm / expected.gradient_norm - 1.0).abs() > 1e-9 {
            return Err(format!("gradient norm {} is not {}", ours.gradient_norm, expected.gradient_norm));
        }
        close("gradient", &by_name(in_order.gradients())?, &of_model(&gradients))?;
        close("parameters", &by_name(in_order.parameters())?, &of_model(&reference.model))?;
        if ours != other
            || by_name(in_order.gradients())? != by_name(at_random.gradients())?
            || by_name(in_order.parameters())? != by_name(at_random.parameters())?
        {
            return Err("another order gives other bits".to_owned());
        }
    }
    Ok(())
}
