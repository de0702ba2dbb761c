//! Runs plans. [`host`] is the reference, in plain Rust on one CPU: slow, exact in what it does, and made so that whatever else
//! runs a plan can be compared with it. [`cuda`] runs plans on GPUs.
//!
//! Where a plan's GPUs are of several processes, [`cluster`] is what these tell each other.
//!
//! Both read a plan in the same way: `fit` says whether its numbers fit each other, [`world`] who is where, `messages` what lies in
//! which slot; [`checkpoint`] is the file that both write and go on from. Like `verify` and `sim`, they do not know the passes.

pub mod checkpoint;
pub mod cluster;
pub mod cuda;
mod fit;
pub mod host;
mod messages;
pub mod world;

use std::any::Any;

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}
