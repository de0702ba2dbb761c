//! Not written yet.

use super::Verdict;
use crate::error::{Error, Result};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {}

/// Runs it.
pub fn run(_: Args) -> Result<Verdict> {
    Err(Error::new("not written yet"))
}
