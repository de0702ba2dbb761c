//! dualweave: a schedule compiler for training mixture-of-experts models.
//!
//! A [`job`] (model, cluster, training run) is lowered by the [`passes`] to a [`plan`]: which operation runs when, on
//! which rank and stream, with how many SMs. [`verify`] proves a plan safe, [`sim`] predicts how long it takes.
//!
//! `docs/ARCHITECTURE.md` is the map.

pub mod cli;
pub mod error;
pub mod interop;
pub mod ir;
pub mod job;
pub mod machine;
pub mod parallel;
#[path = "../passes/mod.rs"]
pub mod passes;
pub mod plan;
#[cfg(test)]
mod reference;
pub mod runtime;
pub mod sim;
pub mod units;
pub mod verify;
pub mod view;

pub use error::{Error, Result};

/// What the guide shows of the library is what compiles.
#[cfg(doctest)]
#[doc = include_str!("../docs/snapshot-tests.md")]
mod guide {}
