//! Who is where: the GPUs of a plan, and what each holds.

use std::fmt;
use std::ops::Range;

use crate::plan::Plan;

/// A GPU: a pipeline rank of a data-parallel replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gpu {
    /// Pipeline rank.
    pub rank: u32,
    /// Data-parallel replica.
    pub replica: u32,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}, replica {}", self.rank, self.replica)
    }
}

/// All GPUs of a plan. `ep` replicas in a row, from a multiple of `ep` on, share one set of routed experts: a group.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Pipeline ranks.
    pub ranks: u32,
    /// Data-parallel replicas; a multiple of `ep`.
    pub replicas: u32,
    /// GPUs of an expert-parallel group.
    pub ep: u32,
    /// Routed experts of a layer; a multiple of `ep`.
    experts: u32,
}

impl World {
    /// Of a plan without tensor parallelism.
    pub fn new(plan: &Plan) -> Self {
        let experts = plan.model.moe.as_ref().map_or(0, |moe| moe.experts);
        Self { ranks: plan.layout.ranks, replicas: plan.origin.dp, ep: plan.origin.ep, experts }
    }

    /// Every GPU, in the order of [`World::index`].
    pub fn gpus(&self) -> impl Iterator<Item = Gpu> + use<> {
        let replicas = self.replicas;
        (0..self.ranks).flat_map(move |rank| (0..replicas).map(move |replica| Gpu { rank, replica }))
    }

    /// GPUs.
    pub fn count(&self) -> usize {
        self.ranks as usize * self.replicas as usize
    }

    /// Number of a GPU, from 0.
    pub fn index(&self, gpu: Gpu) -> usize {
        gpu.rank as usize * self.replicas as usize + gpu.replica as usize
    }

    /// The GPUs that share experts with this one, itself included, in the order of their experts.
    pub fn group(&self, gpu: Gpu) -> impl Iterator<Item = Gpu> + use<> {
        let first = gpu.replica - gpu.replica % self.ep;
        (first..first + self.ep).map(move |replica| Gpu { replica, ..gpu })
    }

    /// Place of a GPU in its group.
    pub fn place(&self, gpu: Gpu) -> u32 {
        gpu.replica % self.ep
    }

    /// Experts of the GPU at a place of a group.
    pub fn experts_at(&self, place: u32) -> Range<u32> {
        let each = self.experts / self.ep;
        place * each..(place + 1) * each
    }

    /// The GPUs that hold a stage: of all replicas, on these ranks.
    pub fn holders(&self, ranks: &[u32]) -> Vec<Gpu> {
        ranks.iter().flat_map(|&rank| (0..self.replicas).map(move |replica| Gpu { rank, replica })).collect()
    }
}
