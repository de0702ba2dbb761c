//! What GPUs put into a checkpoint, and take out of one: the host's file with numbers `as-planned`, in either direction.

use std::collections::BTreeMap;

use super::Executor;
use crate::error::{Error, Result};
use crate::runtime::checkpoint::{Checkpoint, Contents, KEPT, Progress};

impl Executor {
    /// The bytes of a checkpoint.
    ///
    /// # Errors
    /// If ranks are of other processes, the driver refuses, or the numbers of the model cannot be written as JSON.
    pub fn checkpoint(&self, progress: &Progress) -> Result<Vec<u8>> {
        self.has_all_ranks()?;
        let mut tensors: BTreeMap<&str, ([usize; 2], [Vec<f32>; KEPT.len()])> = BTreeMap::new();
        for rank in &self.ranks {
            for (number, stage) in &rank.stages {
                let store = &stage.store;
                let [first, second] = store.moments();
                let [parameters, first, second] =
                    [store.parameters(), first, second].map(|array| array.read(&rank.comm));
                let (parameters, moments) = (parameters?, [first?, second?]);
                // With a sharded optimizer each GPU has the moments of what it updates, wherever tensors begin and end.
                let updated = rank.syncs.get(number).map(|sync| sync.updated(store)).unwrap_or_default();
                for (name, place) in store.tensors() {
                    let range = place.range();
                    let (_, [_, kept @ ..]) = tensors.entry(name).or_insert_with(|| {
                        let zeros = vec![0.0; range.len()];
                        (place.shape(), [parameters[range.clone()].to_vec(), zeros.clone(), zeros])
                    });
                    for mine in &updated {
                        let (from, to) = (range.start.max(mine.start), range.end.min(mine.end));
                        if from < to {
                            let there = from - range.start..to - range.start;
                            kept.iter_mut()
                                .zip(&moments)
                                .for_each(|(kept, moment)| kept[there.clone()].copy_from_slice(&moment[from..to]));
                        }
                    }
                }
            }
        }
        let mut contents = Contents::default();
        for (name, (shape, kept)) in &tensors {
            kept.iter().enumerate().for_each(|(number, values)| contents.add(name, number, *shape, values));
        }
        contents.write(progress, &self.plan.model)
    }

    /// Goes back to a checkpoint.
    ///
    /// # Errors
    /// If it is of another model, or other numbers, ranks are of other processes, or the driver refuses. Parameters may then be partly
    /// restored.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.has_all_ranks()?;
        checkpoint.is_of(&self.plan.model)?;
        for rank in &self.ranks {
            for stage in rank.stages.values() {
                stage.store.restore(&rank.comm, |name, shape| checkpoint.tensor(name, shape))?;
            }
        }
        self.steps = checkpoint.progress.steps;
        Ok(())
    }

    fn has_all_ranks(&self) -> Result<()> {
        match self.cluster {
            None => Ok(()),
            Some(_) => Err(Error::new("checkpoints of ranks in several processes are not there yet")
                .help("run all ranks in one process")),
        }
    }
}
