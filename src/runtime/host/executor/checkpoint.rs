//! Checkpoints: all parameters and moments in one file in the `safetensors` format, with how far the training has come.
//!
//! Tensors have the names that they have in the model, and the suffix of what they are; nothing depends on how the model is
//! spread. So training goes on from a checkpoint under any plan of the same model, and under the same plan with the same bits.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::Executor;
use crate::error::{Error, Result};
use crate::job::Model;
use crate::runtime::host::{Matrix, Real};

/// Key of the file's metadata under which [`Progress`] and the model stand. There is one key, since the format leaves the order
/// of several open.
const KEY: &str = "dualweave";
/// Suffixes of a tensor's name: its parameters, and the two moments of AdamW.
const SUFFIXES: [&str; 3] = ["parameters", "first_moment", "second_moment"];

/// How far a training has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps taken.
    pub steps: u32,
    /// Of the data.
    pub seed: u64,
    /// Number formats, as the command line names them.
    pub precision: String,
    /// SHA-256 of the text.
    pub text: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    progress: Progress,
    model: Model,
}

/// A file that was read, still to be put into an executor.
pub struct Checkpoint<'a> {
    /// How far it had come.
    pub progress: Progress,
    model: Model,
    tensors: SafeTensors<'a>,
}

impl<'a> Checkpoint<'a> {
    /// From the bytes of a file.
    ///
    /// # Errors
    /// If they are not a checkpoint.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let refuse = |why: String| Error::new(format!("this is no checkpoint: {why}"));
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| refuse(error.to_string()))?;
        let about = metadata.metadata().as_ref().and_then(|entries| entries.get(KEY));
        let about = about.ok_or_else(|| refuse(format!("its metadata have no `{KEY}`")))?;
        let About { progress, model } = serde_json::from_str(about).map_err(|error| refuse(error.to_string()))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| refuse(error.to_string()))?;
        Ok(Self { progress, model, tensors })
    }

    fn tensor<T: Real>(&self, name: &str, like: &Matrix<T>) -> Result<Matrix<T>> {
        let view = self.tensors.tensor(name).map_err(|_| Error::new(format!("the checkpoint has no `{name}`")))?;
        if view.dtype() != dtype::<T>() || view.shape() != [like.rows(), like.columns()] {
            return Err(Error::new(format!(
                "`{name}` is {:?} of shape {:?} in the checkpoint, not {} of shape {:?}",
                view.dtype(),
                view.shape(),
                T::NAME,
                [like.rows(), like.columns()]
            )));
        }
        // `deserialize` has seen to it that there are as many bytes as the shape says.
        let values: Vec<T> = view.data().chunks(T::BYTES).filter_map(T::read).collect();
        Ok(Matrix::new(like.rows(), like.columns(), values))
    }
}

impl<T: Real> Executor<T> {
    /// The bytes of a checkpoint.
    ///
    /// # Errors
    /// If the numbers of the model cannot be written as JSON.
    pub fn checkpoint(&self, progress: &Progress) -> Result<Vec<u8>> {
        let mut bytes: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
        let mut add = |name: &str, suffix: &str, matrix: &Matrix<T>| {
            let entry = bytes.entry(format!("{name}.{suffix}"));
            entry.or_insert_with(|| (vec![matrix.rows(), matrix.columns()], little_endian(matrix)));
        };
        for (_, held) in self.stages() {
            for (name, parameters, moments) in held.tensors() {
                add(&name, SUFFIXES[0], parameters);
                for (suffix, moment) in SUFFIXES[1..].iter().zip(moments.into_iter().flatten()) {
                    add(&name, suffix, moment);
                }
            }
        }
        let about = About { progress: progress.clone(), model: self.plan().model.clone() };
        let refuse = |error: String| Error::new(format!("the checkpoint cannot be made: {error}"));
        let about = serde_json::to_string(&about).map_err(|error| refuse(error.to_string()))?;
        let views = bytes.iter().map(|(name, (shape, data))| {
            Ok((
                name.as_str(),
                TensorView::new(dtype::<T>(), shape.clone(), data).map_err(|error| refuse(error.to_string()))?,
            ))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([(KEY.to_owned(), about)]);
        serialize(views, Some(metadata)).map_err(|error| refuse(error.to_string()))
    }

    /// Goes back to a checkpoint.
    ///
    /// # Errors
    /// If it is of another model, or other numbers. Parameters may then be partly restored.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        if checkpoint.model != self.plan().model {
            return Err(Error::new(format!("the checkpoint is of another model, `{}`", checkpoint.model.name))
                .help("go on with a plan of the model that the checkpoint is of"));
        }
        for held in self.held.iter_mut().flat_map(BTreeMap::values_mut) {
            held.restore(checkpoint.progress.steps, |name, like| {
                let [values, first, second] =
                    SUFFIXES.map(|suffix| checkpoint.tensor(&format!("{name}.{suffix}"), like));
                Ok([values?, first?, second?])
            })?;
        }
        Ok(())
    }
}

fn little_endian<T: Real>(matrix: &Matrix<T>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(matrix.values().len() * T::BYTES);
    matrix.values().iter().for_each(|value| value.write(&mut bytes));
    bytes
}

fn dtype<T: Real>() -> Dtype {
    if T::BYTES == 4 { Dtype::F32 } else { Dtype::F64 }
}
