//! Runs plans. [`host`] is the reference, in plain Rust on one CPU: slow, exact in what it does, and made so that whatever else
//! runs a plan can be compared with it. [`cuda`] runs plans on GPUs.
//!
//! Like `verify` and `sim`, they do not know the passes.

pub mod cuda;
pub mod host;
