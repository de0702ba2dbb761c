//! An ordered chunk program: which op is launched when, on which stream, with how many SMs.

use serde::{Deserialize, Serialize};

use super::{ChunkId, Component, Phase, Step, Tokens, Work};
use crate::units::{Bytes, Nanos};

/// What a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ProgramKind {
    /// Forward.
    F,
    /// Full backward.
    B,
    /// Backward for the input.
    I,
    /// Weight gradients.
    W,
    /// Forward beside another micro-batch's full backward.
    FB,
}

/// The two streams of a chunk program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Kernels.
    Compute,
    /// Exchanges among GPUs.
    Comm,
}

/// Ops in launch order. Ops of one stream run in this order; across streams only `waits` order them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// What it runs.
    pub kind: ProgramKind,
    /// Most bytes that I ops have handed to W ops of the program that have not ended yet: what a full backward holds of
    /// `held.i_to_w` at any moment. Zero where the program has not both.
    pub workspace: Bytes,
    /// No order of these ops takes less time, with the SMs that communication gets; ops that nothing runs beside have all.
    pub bound: Nanos,
    /// In launch order.
    pub ops: Vec<ProgramOp>,
}

impl Program {
    /// Whether the main op of an MLP does the shared expert's work too: there is no op that does it by itself.
    pub fn with_shared(&self, op: usize) -> bool {
        let main = &self.ops[op];
        let apart = |other: &ProgramOp| {
            (other.component, other.step) == (Component::Mlp, Step::Shared)
                && (other.phase, other.unit) == (main.phase, main.unit)
        };
        main.step == Step::Main && main.component == Component::Mlp && !self.ops.iter().any(apart)
    }

    /// Of which tokens other ops compute again what an op of I reads and was not kept. The main op of an attention or MLP does so by
    /// itself for all others that it works on.
    pub fn again_apart(&self, op: usize) -> Vec<Tokens> {
        let main = &self.ops[op];
        let apart = |other: &&ProgramOp| {
            other.step == Step::Again
                && (other.component, other.phase, other.unit) == (main.component, main.phase, main.unit)
        };
        self.ops.iter().filter(apart).map(|other| other.tokens).collect()
    }
}

/// One op of a program. In an FB program ops of phase F belong to the forward chunk, the others to the backward chunk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ProgramOp {
    /// What it is.
    pub component: Component,
    /// Which part of training it belongs to.
    pub phase: Phase,
    /// Which unit of the stage, from 0.
    pub unit: u32,
    /// Which part of the component's work.
    #[serde(default, skip_serializing_if = "is_main")]
    pub step: Step,
    /// On which tokens.
    #[serde(default, skip_serializing_if = "Tokens::is_all")]
    pub tokens: Tokens,
    /// What it does.
    pub work: Work,
    /// SMs that it may use.
    pub sms: u32,
    /// Earlier ops of the program (by index) of the other stream whose end it waits for, by an event.
    pub waits: Vec<u32>,
}

impl ProgramOp {
    /// The stream that it runs on.
    pub fn stream(&self) -> Stream {
        if self.work.is_exchange() { Stream::Comm } else { Stream::Compute }
    }

    /// What it is, but for its unit: `Mlp F`, `Mlp F (shared)`, `Dispatch I, tokens 2/2`.
    pub fn what(&self) -> String {
        let step = match self.step {
            Step::Main => "",
            Step::Shared => " (shared)",
            Step::Again => " (again)",
            Step::Quantise => " (quantise)",
            Step::Pack => " (pack)",
        };
        let Tokens { part, parts } = self.tokens;
        let tokens = match self.tokens.is_all() {
            true => String::new(),
            false => format!(", tokens {}/{parts}", u64::from(part) + 1),
        };
        format!("{:?} {:?}{step}{tokens}", self.component, self.phase)
    }

    /// What it is in the run of a chunk, as traces name it: `Mlp F of unit 2 of (3,7)`.
    pub fn within(&self, chunk: ChunkId) -> String {
        format!("{} of unit {} of ({},{})", self.what(), self.unit, chunk.stage, chunk.micro_batch)
    }
}

fn is_main(step: &Step) -> bool {
    *step == Step::Main
}
