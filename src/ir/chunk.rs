//! The split form of a stage: its ops in F, I and W, and the memory that each micro-batch holds between them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Component, Op};
use crate::units::Bytes;

/// One stage's work for one micro-batch, as operations. F, I and W are separate DAGs; I starts when its F has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Forward, in model order.
    pub f: Vec<Op>,
    /// Backward for the input, in reverse model order.
    pub i: Vec<Op>,
    /// Weight gradients, in the order of `i`. Independent of each other: their `needs` are ops of `i`.
    pub w: Vec<Op>,
    /// Memory that the chunk holds.
    pub held: Held,
    /// Bytes of the activation that it sends on (and of the gradient that it gets back).
    pub output: Bytes,
    /// Bytes of the activation that it receives.
    pub input: Bytes,
    /// Largest exchange buffer, sent and received together, that an op of the chunk needs while it runs.
    pub exchange_buffer: Bytes,
}

/// Activation memory of one micro-batch on one stage, by component. An entry lives from the first to the second of the
/// actions that it is named for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// From F to I: what only the input gradient needs.
    pub f_to_i: BTreeMap<Component, Bytes>,
    /// From F to W: inputs of matrix products.
    pub f_to_w: BTreeMap<Component, Bytes>,
    /// From I to W: output gradients of matrix products.
    pub i_to_w: BTreeMap<Component, Bytes>,
}
