//! A stage: a contiguous run of the model's units.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Recompute;

/// The pieces that a model is cut between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Unit {
    /// Token embedding.
    Embedding,
    /// Decoder layer with a dense MLP; its number.
    Dense(u32),
    /// Decoder layer with experts; its number.
    Moe(u32),
    /// Multi-token-prediction module; its number.
    Mtp(u32),
    /// Final norm, output head and loss (once for the model and once for each MTP module).
    Head,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Dense(layer) => write!(f, "dense {layer}"),
            Self::Moe(layer) => write!(f, "moe {layer}"),
            Self::Mtp(module) => write!(f, "mtp {module}"),
            Self::Head => f.write_str("head"),
        }
    }
}

/// A contiguous run of units, in model order. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its units.
    pub units: Vec<Unit>,
    /// What its layers compute again.
    pub recompute: Recompute,
}
