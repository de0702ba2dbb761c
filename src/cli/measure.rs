//! Steps on GPUs that are timed: what `tune` and `fidelity` share.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::runtime::cuda::executor::{Executor, Options, Span, Timings};
use crate::runtime::cuda::inventory;
use crate::runtime::host::Shape;
use crate::runtime::host::adamw::AdamW;
use crate::runtime::host::batch::Batch;
use crate::runtime::world::{Gpu, World};
use crate::verify::verify;

/// Data and parameters of measurements depend on it.
const SEED: u64 = 1;

/// Sets variables of the environment that CUDA reads when it is first called. `in_processes`: each rank is a process. Called on the main
/// thread, before there is another one.
pub fn before_cuda(in_processes: bool) {
    // SAFETY: no other thread has been started: commands call this on the main thread, before the first bar, process or rank.
    #[allow(unsafe_code)] // variables of the environment are the process's
    unsafe {
        inventory::ask_for_connections();
        if in_processes {
            inventory::ask_for_loading();
        }
    }
}

/// Steps that were timed.
pub struct Timed {
    /// All of them.
    pub timings: Timings,
    /// What ran when in the last one.
    pub last: Vec<(Gpu, Vec<Span>)>,
}

/// A plan on GPUs, that is run on random tokens.
pub struct Bench {
    executor: Executor,
    shape: Shape,
    taken: u64,
}

impl Bench {
    /// # Errors
    /// If the plan is not safe, or cannot run here.
    pub fn new(plan: Plan, gpus: Option<u32>) -> Result<Self> {
        if let Some(violation) = verify(&plan).violations.first() {
            return Err(Error::new(format!("the plan is not safe to run: {}", violation.message))
                .help("`dualweave verify` says all that is wrong with it"));
        }
        let shape = Shape::of_plan(&plan);
        let options =
            Options { gpus: gpus.map(|gpus| gpus as usize), time_out: Duration::from_secs(60), ..Options::default() };
        let executor = Executor::new(plan, shape.clone(), AdamW::default(), SEED, &options)?;
        Ok(Self { executor, shape, taken: 0 })
    }

    /// What runs.
    pub fn executor(&mut self) -> &mut Executor {
        &mut self.executor
    }

    /// Takes `warm_up` steps and then `steps` that are timed.
    ///
    /// # Errors
    /// If a step fails.
    pub fn time(&mut self, warm_up: u32, steps: u32) -> Result<Timed> {
        let (mut timings, mut last) = (Timings::default(), Vec::new());
        for step in 0..warm_up + steps {
            let data = self.data();
            let spans = self.executor.step(&data, step >= warm_up)?.spans;
            if step >= warm_up {
                timings.add(&spans);
                last = spans;
            }
        }
        Ok(Timed { timings, last })
    }

    /// Data of the next step, by replica.
    fn data(&mut self) -> Vec<Vec<Batch>> {
        let plan = self.executor.plan();
        let (micro_batches, sequences) = (plan.layout.micro_batches, plan.origin.micro_batch_size as usize);
        let first = self.taken * u64::from(plan.origin.dp) * u64::from(micro_batches);
        self.taken += 1;
        let of = |replica: u32| {
            let number = |micro_batch: u32| first + u64::from(replica * micro_batches + micro_batch);
            (0..micro_batches).map(|m| Batch::random(&self.shape, sequences, SEED, number(m))).collect()
        };
        (0..plan.origin.dp).map(of).collect()
    }

    /// What to know about the times, if ranks share GPUs.
    pub fn warning(&self) -> Option<String> {
        let mut gpus: Vec<usize> = self.executor.places().map(|(_, device, _)| device.ordinal).collect();
        let ranks = World::new(self.executor.plan()).count();
        gpus.sort_unstable();
        gpus.dedup();
        (gpus.len() < ranks)
            .then(|| format!("warning: {ranks} ranks share {} GPUs, so these are no times of the plan", gpus.len()))
    }

    /// The first GPU: its name and SMs.
    ///
    /// # Errors
    /// If there is none.
    pub fn gpu(&self) -> Result<(String, u32)> {
        let first = self.executor.places().next().map(|(_, device, _)| (device.name.clone(), device.sms));
        first.ok_or_else(|| Error::new("the plan runs on no GPU"))
    }
}
