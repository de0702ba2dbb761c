//! What the fullest GPU of an expert-parallel group has where experts are not evenly loaded: `training.imbalance` times the mean of tokens.
//! The others share the rest evenly. An exchange takes as long as for that GPU, which receives most in a dispatch and sends most in a combine; so all wait
//! for it in every layer, and a plan has its times and its memory.
//!
//! It bounds from above: if other GPUs are the fullest in other layers, none holds so much of all of them.

use super::exchange::Route;
use super::routing::visits;
use crate::job::Job;
use crate::job::model::Moe;

/// How many times the mean goes over each kind of link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Overload {
    pub nvlink: f64,
    pub network: f64,
    pub uplink: f64,
}

impl Overload {
    /// Loads are even.
    const NONE: Self = Self { nvlink: 1.0, network: 1.0, uplink: 1.0 };

    /// Of the GPU that receives most of what is dispatched; of combine, which goes the same way back, of the one that sends most.
    ///
    /// Copies grow with the tokens of their receiver, until every token has one there. The receiver is a GPU over NVLink, and on a flat route
    /// over the network too. In two hops the network leads to a node, where the GPUs beside the fullest have less; uplinks lead to a pod in
    /// any case.
    pub(super) fn new(job: &Job, moe: &Moe, route: Route, pod: Option<u64>) -> Self {
        let factor = job.training.imbalance;
        if factor <= 1.0 {
            return Self::NONE;
        }
        let (ep, per_node) = (job.training.ep, job.cluster.gpus_per_node);
        let gpus = f64::from(ep);
        let visits = visits(moe, ep, per_node);
        let local = f64::from(per_node.min(ep));
        // Of so many GPUs together, the fullest one of them.
        let together = |several: f64| {
            let others = if ep > 1 { (gpus - factor).max(0.0) / (gpus - 1.0) } else { 0.0 };
            (factor + (several - 1.0) * others) / several
        };
        let nvlink = factor.min(gpus / visits.gpus).max(1.0);
        let network = match route {
            Route::Flat => nvlink,
            Route::TwoHop => {
                let nodes = f64::from(ep.div_ceil(per_node.min(ep)));
                together(local).min(nodes / visits.nodes).max(1.0)
            }
        };
        let of_pod = pod.map_or(network, |pod| together((pod as f64).min(gpus)).max(1.0));
        Self { nvlink, network, uplink: network.min(of_pod) }
    }
}

/// The rows of the fullest GPU where the mean has so many.
pub(super) fn rows(job: &Job, mean: u64) -> u64 {
    match job.training.imbalance <= 1.0 {
        true => mean,
        false => (mean as f64 * job.training.imbalance).ceil() as u64,
    }
}
