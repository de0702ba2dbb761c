//! What a person writes: a model, a cluster and a training run.
//!
//! Here are the types and everything that reads and checks them. What the numbers *mean* (how many FLOPs, how long) is
//! not here: see [`arithmetic`] for counting, `machine` for time.

pub mod arithmetic;
mod check;
pub mod cluster;
pub mod hf;
mod load;
pub mod model;
mod overrides;
pub mod profile;
pub mod sms;
mod source;
pub mod training;
mod write;

pub use check::MOST_LAYERS;
pub use cluster::Cluster;
pub use load::{Loaded, load};
pub use model::Model;
pub use overrides::Overrides;
pub use training::Training;

/// A checked description of a model, a cluster and a training run: what the compiler takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The network that is trained.
    pub model: Model,
    /// The machines it is trained on.
    pub cluster: Cluster,
    /// How it is spread over them.
    pub training: Training,
}

impl Job {
    /// With another number of expert-parallel GPUs: the imbalance stays, as far as one of so many GPUs can get so much.
    pub fn limit_imbalance(&mut self) {
        let most = self.model.moe.as_ref().map_or(1.0, |moe| moe.most_imbalance(self.training.ep));
        self.training.imbalance = self.training.imbalance.min(most);
    }
}

/// The text of a file, for jobs and plans alike.
///
/// # Errors
/// If it is not there, not a regular file or pipe, larger than `limit` bytes, or not UTF-8.
pub fn read_text(path: &std::path::Path, limit: u64) -> crate::Result<String> {
    use std::io::Read as _;

    use crate::Error;

    let name = path.display();
    let refuse = |error: std::io::Error| Error::new(format!("`{name}` cannot be read: {error}"));
    let too_large =
        || Error::new(format!("`{name}` is larger than {limit} bytes")).help("give the file that was meant");
    let file = open(path)?;
    if file.metadata().map_err(refuse)?.len() > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(refuse)?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        // The replacement character stands where the first wrong byte was.
        let shown = String::from_utf8_lossy(error.as_bytes());
        Error::new(format!("`{name}` is not text: byte {at} is not UTF-8"))
            .help("save it as UTF-8, or give the file that was meant")
            .at(&name.to_string(), &shown, at..at + char::REPLACEMENT_CHARACTER.len_utf8(), "here")
    })
}

/// A file or pipe, to be read.
///
/// # Errors
/// If it is not there, or is neither.
pub fn open(path: &std::path::Path) -> crate::Result<std::fs::File> {
    use crate::Error;

    let name = path.display();
    let refuse = |error: std::io::Error| Error::new(format!("`{name}` cannot be read: {error}"));
    let file = std::fs::File::open(path).map_err(refuse)?;
    let about = file.metadata().map_err(refuse)?;
    if about.is_dir() {
        return Err(Error::new(format!("`{name}` is a directory")).help("name a file in it"));
    }
    if is_device(&about) {
        return Err(Error::new(format!("`{name}` is a device")).help("give a file or a pipe"));
    }
    Ok(file)
}

/// Devices never end (`/dev/zero`) or wait for somebody to type.
#[cfg(unix)]
fn is_device(about: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    about.file_type().is_char_device() || about.file_type().is_block_device()
}

#[cfg(not(unix))]
fn is_device(_: &std::fs::Metadata) -> bool {
    false
}
