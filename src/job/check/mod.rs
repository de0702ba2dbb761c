//! Whether a job can be trained at all: every rule that is about the job alone, whatever schedule runs it.
//!
//! Each error names the field at fault and, where there are some, the nearest values that would do. The limits are far
//! above anything that exists, and low enough that no count, byte or FLOP of a micro-batch comes near 2^63. What a schedule
//! asks of the number of micro-batches is not checked here: its generator knows.

mod bounds;
mod cluster;
mod model;
mod training;

pub use model::MOST_LAYERS;

use super::Job;
use super::model::Attention;
use crate::error::Result;

impl Job {
    /// Checks every rule.
    ///
    /// # Errors
    /// At the first that is broken, naming the field.
    pub fn check(&self) -> Result<()> {
        self.model.check()?;
        self.cluster.check()?;
        training::check(self)
    }

    /// What is allowed and yet may not be meant: one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let training = &self.training;
        let mut notes = Vec::new();
        let (used, all) = (training::gpus(training), self.cluster.gpus());
        if used < all {
            notes.push(format!("{used} of the cluster's {all} GPUs are used (pp × dp × tp)"));
        }
        if let Some(pods) = self.cluster.pods.filter(|pods| pods.nodes >= self.cluster.nodes) {
            notes.push(format!(
                "`pods` has no effect: the cluster has {} nodes, and a pod {}",
                self.cluster.nodes, pods.nodes
            ));
        }
        if training.recompute.mla_up && !matches!(self.model.attention, Attention::Mla(_)) {
            notes.push("`recompute.mla_up` has no effect: the model has no latent attention".into());
        }
        notes
    }
}
