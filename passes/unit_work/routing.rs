//! How many copies of a token dispatch sends, and over which link.
//!
//! In two hops a token goes once to each node that has one of its experts, to the GPU there with its own index, and from
//! there by NVLink once to each GPU that has one of its experts (DeepSeek-V3 report, section 3.2.2). Flat, it goes straight
//! to each of these GPUs, over whichever link leads there. Combine goes the same way back.
//! Counts are expectations under uniform routing: the groups of a token are a uniform choice of `topk_groups`, its experts a
//! uniform choice of `top_k` within them. Experts lie on the expert-parallel GPUs in order, those GPUs on nodes in order.

use std::collections::BTreeMap;

use crate::job::model::Moe;
use crate::machine::demand::Visits;

/// Mean copies of one token that leave a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Copies {
    /// Over the network. In two hops: other nodes that the token visits, at most `topk_groups` where each group has its own
    /// node. Flat: GPUs of other nodes that it reaches.
    pub network: f64,
    /// Over NVLink. In two hops: GPUs that it reaches from the GPU where it arrived on each visited node (its own included).
    /// Flat: other GPUs of its own node that it reaches.
    pub nvlink: f64,
}

/// Mean copies per token in two hops when `ep` GPUs, `per_node` of them on a node, hold the experts.
pub fn copies(moe: &Moe, ep: u32, per_node: u32) -> Copies {
    let visits = visits(moe, ep, per_node);
    let (per_node, _) = nodes(ep, per_node);
    // The GPU where a token arrives is one that needs it with probability 1 / per_node.
    Copies { network: visits.other_nodes, nvlink: visits.gpus * f64::from(per_node - 1) / f64::from(per_node) }
}

/// The same where each copy goes straight to the GPU that wants it.
pub fn flat_copies(moe: &Moe, ep: u32, per_node: u32) -> Copies {
    let (per_node, nodes) = nodes(ep, per_node);
    let visited_gpus = visited(moe, ep);
    // A GPU that wants the token is on another node than the sender with probability (nodes - 1) / nodes, and if it is on
    // the sender's node it is another one with probability (per_node - 1) / per_node.
    let network = visited_gpus * f64::from(nodes - 1) / f64::from(nodes);
    let nvlink = visited_gpus * f64::from(per_node - 1) / (f64::from(nodes) * f64::from(per_node));
    Copies { network, nvlink }
}

/// Where a token goes on average when `ep` GPUs, `per_node` of them on a node, hold the experts.
pub fn visits(moe: &Moe, ep: u32, per_node: u32) -> Visits {
    let (_, count) = nodes(ep, per_node);
    let nodes = visited(moe, count);
    // The sender is uniformly one of the nodes, so a visited node is another one with probability (count - 1) / count.
    Visits { nodes, other_nodes: nodes * f64::from(count - 1) / f64::from(count), gpus: visited(moe, ep) }
}

/// GPUs of the group on a node, and nodes that it takes.
fn nodes(ep: u32, per_node: u32) -> (u32, u32) {
    let per_node = per_node.min(ep).max(1);
    (per_node, ep.div_ceil(per_node))
}

/// Mean number of `holders`, which have equal parts of the experts, that have one of a token's. What a part is worth is worked out once
/// for neighbours that lie in their groups in the same way: mostly all of them do.
fn visited(moe: &Moe, holders: u32) -> f64 {
    let routing = Routing::new(moe);
    let mut last: (Vec<u32>, f64) = (Vec::new(), 0.0);
    let hit = |range| {
        let parts = routing.parts(range);
        if parts != last.0 {
            let hit = 1.0 - routing.miss(&parts);
            last = (parts, hit);
        }
        last.1
    };
    shares(moe.experts, holders).map(hit).sum()
}

/// Expert ranges `first..end` of each of `parts` equal holders.
fn shares(experts: u32, parts: u32) -> impl Iterator<Item = (u32, u32)> {
    let bound = move |part: u32| (u64::from(experts) * u64::from(part) / u64::from(parts)) as u32;
    (0..parts).map(move |part| (bound(part), bound(part + 1)))
}

/// The probabilities of uniform group-limited routing.
struct Routing {
    experts_per_group: u32,
    groups: u32,
    chosen_groups: u32,
    top_k: u32,
}

impl Routing {
    fn new(moe: &Moe) -> Self {
        let groups = moe.groups.max(1);
        Self {
            experts_per_group: moe.experts / groups,
            groups,
            chosen_groups: moe.topk_groups.min(groups),
            top_k: moe.top_k,
        }
    }

    /// How many experts of `first..end` lie in each group: some groups wholly, at most two in part.
    fn parts(&self, (first, end): (u32, u32)) -> Vec<u32> {
        let size = self.experts_per_group;
        let mut parts: Vec<u32> = Vec::new();
        for group in first / size..end.div_ceil(size) {
            let inside = end.min((group + 1) * size).saturating_sub(first.max(group * size));
            if inside > 0 {
                parts.push(inside);
            }
        }
        parts
    }

    /// Probability that no expert of the range is chosen, when its experts are spread over groups as in `parts`: a sum
    /// over which of these groups are among the chosen, which matters only by how many experts they bring.
    fn miss(&self, parts: &[u32]) -> f64 {
        // ways[c][x]: in how many ways c of these groups bring x experts of the range.
        let mut ways: Vec<BTreeMap<u32, f64>> = vec![BTreeMap::new(); parts.len() + 1];
        ways[0].insert(0, 1.0);
        for (index, &part) in parts.iter().enumerate() {
            for count in (0..=index).rev() {
                let level: Vec<(u32, f64)> = ways[count].iter().map(|(&x, &n)| (x, n)).collect();
                for (x, n) in level {
                    *ways[count + 1].entry(x + part).or_default() += n;
                }
            }
        }
        let pool = self.chosen_groups * self.experts_per_group;
        let mut miss = 0.0;
        for (count, level) in ways.iter().enumerate() {
            let set = self.chosen_exactly(count as u32, parts.len() as u32);
            for (&inside, &sets) in level.iter().filter(|_| set > 0.0) {
                miss += sets * set * none_chosen(pool, inside, self.top_k);
            }
        }
        miss
    }

    /// Probability that of `of` given groups, `count` given ones are chosen and the others are not. Only products and
    /// quotients: they are the same on every machine.
    fn chosen_exactly(&self, count: u32, of: u32) -> f64 {
        let (groups, chosen) = (self.groups, self.chosen_groups);
        let all_in = (0..count).map(|i| f64::from(chosen.saturating_sub(i)) / f64::from(groups - i));
        let rest_out =
            (0..of - count).map(|i| f64::from((groups - chosen).saturating_sub(i)) / f64::from(groups - count - i));
        all_in.chain(rest_out).product()
    }
}

/// Probability that `k` drawn of `pool` without replacement avoid `marked` of them.
fn none_chosen(pool: u32, marked: u32, k: u32) -> f64 {
    (0..k).map(|drawn| f64::from((pool - marked).saturating_sub(drawn)) / f64::from(pool - drawn)).product()
}
