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
mod source;
pub mod training;

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

/// The text of a file, for jobs and plans alike.
///
/// # Errors
/// If it is not there, not a regular file or pipe, larger than `limit` bytes, or not UTF-8.
pub fn read_text(path: &std::path::Path, limit: u64) -> crate::Result<String> {
    use std::io::Read as _;

    use crate::Error;

    let name = path.display();
    let refuse = |error: std::io::Error| Error::new(format!("`{name}` cannot be read: {error}"));
    let file = std::fs::File::open(path).map_err(refuse)?;
    if file.metadata().map_err(refuse)?.is_dir() {
        return Err(Error::new(format!("`{name}` is a directory")).help("name a file in it"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(refuse)?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(format!("`{name}` is larger than {limit} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::new(format!("`{name}` is not text: byte {at} is not UTF-8"))
    })
}
