//! Runs plans. [`host`] is the reference, in plain Rust on one CPU: slow, exact in what it does, and made so that whatever else
//! runs a plan can be compared with it.
//!
//! Like `verify` and `sim`, it does not know the passes.

pub mod host;
