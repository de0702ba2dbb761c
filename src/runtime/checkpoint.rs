//! Checkpoints: all parameters and moments in one file in the `safetensors` format, with how far the training has come.
//!
//! Tensors have the names that they have in the model, and the suffix of what they are; nothing depends on how the model is
//! spread, or on what trains it. So training goes on from a checkpoint under any plan of the same model, and under the same plan with the
//! same bits.

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::host::Real;
use crate::error::{Error, Result};
use crate::job::Model;

/// Key of the file's metadata under which [`Progress`] and the model stand. There is one key, since the format leaves the order
/// of several open.
const KEY: &str = "dualweave";

/// What is kept of a tensor of the model: its parameters, and the two moments of AdamW. They are suffixes of names.
pub const KEPT: [&str; 3] = ["parameters", "first_moment", "second_moment"];

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

    /// # Errors
    /// If it is of another model.
    pub fn is_of(&self, model: &Model) -> Result<()> {
        match self.model == *model {
            true => Ok(()),
            false => Err(Error::new(format!("the checkpoint is of another model, `{}`", self.model.name))
                .help("go on with a plan of the model that the checkpoint is of")),
        }
    }

    /// What is [kept](KEPT) of a tensor of this shape: rows and columns.
    ///
    /// # Errors
    /// If it lacks one of them, or has it in other numbers or another shape.
    pub fn tensor<T: Real>(&self, name: &str, shape: [usize; 2]) -> Result<[Vec<T>; 3]> {
        let [values, first, second] = KEPT.map(|kept| self.kept(&format!("{name}.{kept}"), shape));
        Ok([values?, first?, second?])
    }

    fn kept<T: Real>(&self, name: &str, shape: [usize; 2]) -> Result<Vec<T>> {
        let view = self.tensors.tensor(name).map_err(|_| Error::new(format!("the checkpoint has no `{name}`")))?;
        if view.dtype() != dtype::<T>() || view.shape() != shape {
            return Err(Error::new(format!(
                "`{name}` is {:?} of shape {:?} in the checkpoint, not {} of shape {shape:?}",
                view.dtype(),
                view.shape(),
                T::NAME,
            )));
        }
        // `deserialize` has seen to it that there are as many bytes as the shape says.
        Ok(view.data().chunks(T::BYTES).filter_map(T::read).collect())
    }
}

/// What a checkpoint is made of.
pub struct Contents<T> {
    /// By name: shape and bytes.
    tensors: BTreeMap<String, ([usize; 2], Vec<u8>)>,
    of: PhantomData<T>,
}

impl<T> Default for Contents<T> {
    fn default() -> Self {
        Self { tensors: BTreeMap::new(), of: PhantomData }
    }
}

impl<T: Real> Contents<T> {
    /// What is [kept](KEPT) of a tensor, in number `kept` of the list; of several copies the first one.
    pub fn add(&mut self, name: &str, kept: usize, shape: [usize; 2], values: &[T]) {
        let bytes = || {
            let mut bytes = Vec::with_capacity(values.len() * T::BYTES);
            values.iter().for_each(|value| value.write(&mut bytes));
            bytes
        };
        self.tensors.entry(format!("{name}.{}", KEPT[kept])).or_insert_with(|| (shape, bytes()));
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// If the numbers of the model cannot be written as JSON.
    pub fn write(&self, progress: &Progress, model: &Model) -> Result<Vec<u8>> {
        let refuse = |error: String| Error::new(format!("the checkpoint cannot be made: {error}"));
        let about = About { progress: progress.clone(), model: model.clone() };
        let about = serde_json::to_string(&about).map_err(|error| refuse(error.to_string()))?;
        let views = self.tensors.iter().map(|(name, (shape, data))| {
            let view = TensorView::new(dtype::<T>(), shape.to_vec(), data);
            Ok((name.as_str(), view.map_err(|error| refuse(error.to_string()))?))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([(KEY.to_owned(), about)]);
        serialize(views, Some(metadata)).map_err(|error| refuse(error.to_string()))
    }
}

fn dtype<T: Real>() -> Dtype {
    if T::BYTES == 4 { Dtype::F32 } else { Dtype::F64 }
}
