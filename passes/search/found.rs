//! What a search gives back.

use super::configuration::{Configuration, Decision};
use super::exact::Outcome;
use crate::job::Job;
use crate::passes::Compiled;
use crate::units::{Bytes, Nanos};

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The job as it is.
    pub given: Row,
    /// What is the fastest in how much memory: the fastest first. Of two, the slower needs less. All fit.
    pub front: Vec<Row>,
    /// Neighbours of the fastest, and what speaks against them.
    pub neighbours: Vec<Neighbour>,
    /// GPUs that there are.
    pub gpus: u64,
    /// Memory of each.
    pub memory: Bytes,
    /// How many configurations there are; each was bounded.
    pub configurations: u64,
    /// Of them, how many were looked at more closely.
    pub looked_at: u64,
    /// How many were compiled, with layers in their plain form.
    pub compiled: u64,
    /// How many with rewritten layers.
    pub compiled_in_full: u64,
    /// The job on this cluster; a configuration of the front [applies](Configuration::apply) to it.
    pub job: Job,
    /// No plan of any configuration of the space that fits takes less.
    pub bound: Nanos,
}

/// A configuration with its plan.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was decided.
    pub configuration: Configuration,
    /// What it gives.
    pub outcome: Outcome,
    /// What no plan of it is below; `None` where the schedule is searched for.
    pub bound: Option<Nanos>,
    /// The plan.
    pub compiled: Compiled,
}

/// A configuration next to the fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbour {
    /// What is different.
    pub decision: Decision,
    /// The configuration.
    pub configuration: Configuration,
    /// What speaks against it.
    pub reason: Reason,
}

/// What speaks against a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no such configuration.
    Invalid(String),
    /// Whatever its plan, it needs so much more than there is.
    Memory(Bytes),
    /// Whatever its plan, it takes so much longer than the fastest does.
    Bound(Nanos),
    /// Its plan needs so much more than there is.
    PlanMemory(Bytes),
    /// Its plan takes so much longer than the fastest one's; both with layers in their plain form.
    Plan(Nanos),
    /// Its plan takes so much longer than the fastest one's.
    FullPlan(Nanos),
    /// With layers in their plain form its plan takes so much less, or as long. It was not among those compiled with rewritten layers.
    Near(Nanos),
}
