//! What a configuration gives, by all passes and the simulation.

use crate::error::Result;
use crate::job::Job;
use crate::passes::{self, Compiled, rewrite};
use crate::sim;
use crate::units::{Bytes, Nanos};

/// A simulated step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its time.
    pub step: Nanos,
    /// What the fullest rank needs.
    pub need: Bytes,
}

impl Outcome {
    /// Of a plan.
    ///
    /// # Errors
    /// If it cannot be simulated.
    pub fn of(compiled: &Compiled) -> Result<Self> {
        let simulation = sim::simulate(&compiled.plan)?;
        let memory = sim::memory::memory(&compiled.plan, &simulation);
        let need = memory.iter().map(|rank| rank.need.total()).max().unwrap_or_default();
        Ok(Self { step: simulation.step, need })
    }

    /// Of a job with layers in their plain form: what configurations are compared by before a few are compiled in full.
    ///
    /// # Errors
    /// If the job cannot be compiled.
    pub fn plain(job: &Job) -> Result<Self> {
        let mut plain = job.clone();
        plain.training.without_rewrites = vec![rewrite::ALL.to_owned()];
        plain.check()?;
        Self::of(&passes::compile(&plain)?)
    }

    /// Whether it is at least as good in both, and not the same.
    pub fn dominates(&self, other: &Self) -> bool {
        self.step <= other.step && self.need <= other.need && self != other
    }
}
