//! What the host puts into a checkpoint, and takes out of one.

use std::collections::BTreeMap;

use super::Executor;
use crate::error::Result;
use crate::runtime::checkpoint::{Checkpoint, Contents, Progress};
use crate::runtime::host::{Matrix, Real};

impl<T: Real> Executor<T> {
    /// The bytes of a checkpoint.
    ///
    /// # Errors
    /// If the numbers of the model cannot be written as JSON.
    pub fn checkpoint(&self, progress: &Progress) -> Result<Vec<u8>> {
        let mut contents = Contents::default();
        for (_, held) in self.stages() {
            for (name, parameters, moments) in held.tensors() {
                for (kept, matrix) in [parameters].into_iter().chain(moments.into_iter().flatten()).enumerate() {
                    contents.add(&name, kept, [matrix.rows(), matrix.columns()], matrix.values());
                }
            }
        }
        contents.write(progress, &self.plan().model)
    }

    /// Goes back to a checkpoint.
    ///
    /// # Errors
    /// If it is of another model, or other numbers. Parameters may then be partly restored.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        checkpoint.is_of(&self.plan().model)?;
        for held in self.held.iter_mut().flat_map(BTreeMap::values_mut) {
            held.restore(checkpoint.progress.steps, |name, like| {
                let kept = checkpoint.tensor(name, [like.rows(), like.columns()])?;
                Ok(kept.map(|values| Matrix::new(like.rows(), like.columns(), values)))
            })?;
        }
        Ok(())
    }
}
