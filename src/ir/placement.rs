//! Which stages a pipeline rank holds.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ChunkId;

/// How stages are laid over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Placement {
    /// Stage = rank.
    Linear,
    /// Stage s on rank s mod P.
    Loop,
    /// Rank r holds stages r and 2P-1-r.
    V,
    /// Rank r holds stage r for direction 0 and stage P-1-r for direction 1.
    ///
    /// So every stage stands on two ranks. The first half of the micro-batches (the larger, if odd) goes in direction 0.
    Bidirectional,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Linear => "linear",
            Self::Loop => "loop",
            Self::V => "v",
            Self::Bidirectional => "bidirectional",
        })
    }
}

/// A placement with its numbers: answers which rank runs what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The rule.
    pub placement: Placement,
    /// Pipeline ranks, P.
    pub ranks: u32,
    /// Stages that the model is cut into.
    pub stages: u32,
    /// Micro-batches of a step, over both directions.
    pub micro_batches: u32,
}

impl Layout {
    /// Lays `per_rank` stages per rank (`Loop` only; the other placements fix it).
    pub fn new(placement: Placement, ranks: u32, per_rank: u32, micro_batches: u32) -> Self {
        let stages = match placement {
            Placement::Linear | Placement::Bidirectional => ranks,
            Placement::V => 2 * ranks,
            Placement::Loop => per_rank * ranks,
        };
        Self { placement, ranks, stages, micro_batches }
    }

    /// The direction in which a micro-batch travels: 0, or 1 for the second half of a bidirectional run.
    pub fn direction(&self, micro_batch: u32) -> u32 {
        let first = self.micro_batches - self.micro_batches / 2;
        u32::from(self.placement == Placement::Bidirectional && micro_batch >= first)
    }

    /// The rank that runs `chunk`. `chunk.stage` must be below `stages`.
    pub fn rank_of(&self, chunk: ChunkId) -> u32 {
        let (stage, ranks) = (chunk.stage, self.ranks);
        match self.placement {
            Placement::Linear => stage,
            Placement::Loop => stage % ranks,
            Placement::V if stage < ranks => stage,
            Placement::V => 2 * ranks - 1 - stage,
            Placement::Bidirectional if self.direction(chunk.micro_batch) == 0 => stage,
            Placement::Bidirectional => ranks - 1 - stage,
        }
    }

    /// Stages whose parameters `rank` holds, in the order of their local phases (phase 0 first).
    ///
    /// For `Bidirectional` the local phases are those of the DualPipe code: on the lower half of the ranks phase 0 is
    /// direction 0, on the upper half it is direction 1. With one rank, both directions are the same stage, named once.
    pub fn stages_of(&self, rank: u32) -> Vec<u32> {
        let ranks = self.ranks;
        match self.placement {
            Placement::Linear => vec![rank],
            Placement::Loop => (0..self.stages / ranks).map(|k| k * ranks + rank).collect(),
            Placement::V => vec![rank, 2 * ranks - 1 - rank],
            Placement::Bidirectional => {
                let (down, up) = (rank, ranks - 1 - rank);
                match (down == up, rank < ranks.div_ceil(2)) {
                    (true, _) => vec![down],
                    (false, true) => vec![down, up],
                    (false, false) => vec![up, down],
                }
            }
        }
    }

    /// Ranks that hold `stage`, ascending: one, or two when bidirectional.
    pub fn holders(&self, stage: u32) -> Vec<u32> {
        let first = self.rank_of(ChunkId { stage, micro_batch: 0 });
        match self.placement {
            Placement::Bidirectional => {
                let mut both = vec![first, self.ranks - 1 - first];
                both.sort_unstable();
                both.dedup();
                both
            }
            _ => vec![first],
        }
    }
}
