//! What `simulate` found, as text for people and as JSON for programs.

mod facts;
mod json;
mod text;

pub use facts::{Fact, facts, title};
pub(crate) use json::DisturbedJson;
pub use json::to_json;
pub use text::{RANK_COLUMNS, rank_cells, rank_text, to_text};

use crate::plan::Plan;
use crate::sim::jitter::Disturbed;
use crate::sim::memory::RankMemory;
use crate::sim::{Prices, Simulation};

/// A simulated plan and all that was found.
pub struct Simulated<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its times.
    pub simulation: &'a Simulation,
    /// What its ranks hold.
    pub memory: &'a [RankMemory],
    /// What its GPUs cost.
    pub prices: Prices,
    /// What its steps take where they are disturbed, if that was asked.
    pub disturbed: Option<&'a Disturbed>,
}

impl Simulated<'_> {
    /// The rank that needs most memory; the first of several.
    pub fn fullest(&self) -> usize {
        (0..self.memory.len()).rev().max_by_key(|&rank| self.memory[rank].need.total()).unwrap_or(0)
    }

    /// A time of all ranks together, as a share of their steps.
    fn share(&self, of_rank: impl Fn(&crate::sim::RankTiming) -> crate::units::Nanos) -> Option<f64> {
        let sum: f64 = self.simulation.ranks.iter().map(|rank| of_rank(rank).as_f64()).sum();
        let whole = self.simulation.step.as_f64() * self.simulation.ranks.len() as f64;
        (whole > 0.0).then(|| sum / whole)
    }
}
