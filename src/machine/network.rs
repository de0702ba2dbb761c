//! The levels of the network above nodes: which part of the traffic between GPUs leaves its pod, and how contiguous messages travel.
//!
//! GPUs are numbered through: pipeline rank after pipeline rank, within a rank replica after replica with tensor-parallel peers next to each
//! other, so that expert-parallel groups are runs of `ep` numbers; nodes are filled in that order, and pods with nodes. A pod's GPUs share its
//! uplinks, and all GPUs do the same kind of thing at the same time: so what counts is the bytes that leave (or enter) a pod, as a mean over
//! its GPUs, against a GPU's share of the uplinks. It is the largest over pods.

use serde::{Deserialize, Serialize};

use super::Machine;
use super::link::LinkModel;
use crate::job::Cluster;
use crate::units::{Bytes, Nanos};

/// The pods of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PodModel {
    /// GPUs of a pod.
    pub gpus: u64,
    /// A GPU's share of its pod's uplinks, bytes/s in each direction.
    pub byte_s: f64,
}

impl PodModel {
    /// A cluster's, whose network is `network`; `None` where it is one pod.
    pub(super) fn new(cluster: &Cluster, network: &LinkModel) -> Option<Self> {
        let (gpus, pods) = (cluster.gpus_per_pod()?, cluster.pods?);
        Some(Self { gpus, byte_s: network.rate(u32::MAX) / pods.oversubscription })
    }
}

/// How a message between peers of two pipeline ranks travels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hop {
    /// Over NVLink.
    Node,
    /// Over the network.
    Network {
        /// First (or last) over NVLink too, since the peers are on different rails.
        over_nvlink: bool,
        /// Share of a pod's GPUs whose peers are in other pods.
        crossing: f64,
    },
}

impl Machine {
    /// How neighbours of two pipeline ranks reach each other. Rank r with all its peers occupies the GPUs from r · `gpus_per_rank` to
    /// (r+1) · `gpus_per_rank`, and talks peer by peer: GPU i of one rank to GPU i of the other.
    pub fn hop(&self, gpus_per_rank: u64, r: u32, q: u32) -> Hop {
        if self.ranks_share_node(gpus_per_rank, r, q) {
            return Hop::Node;
        }
        let apart = u128::from(r.abs_diff(q)) * u128::from(gpus_per_rank.max(1));
        let over_nvlink = self.rails && !apart.is_multiple_of(u128::from(self.gpus_per_node.max(1)));
        let crossing = self.pods.map_or(0.0, |pods| peers_crossing(pods.gpus, gpus_per_rank, (r, q)));
        Hop::Network { over_nvlink, crossing }
    }

    /// Whether neighbours of two pipeline ranks reach each other over NVLink: whether each pair of peers shares a node.
    ///
    /// Two different ranks never straddle a node boundary at the same i unless they are whole nodes apart, so all pairs
    /// share a node exactly if everything from the first GPU of the lower rank to the last GPU of the higher one does.
    pub fn ranks_share_node(&self, gpus_per_rank: u64, r: u32, q: u32) -> bool {
        r == q || share(u64::from(self.gpus_per_node), gpus_per_rank, (r, q))
    }

    /// How long a contiguous transfer between neighbouring pipeline ranks takes. It goes by copy engine or network card, without SMs;
    /// in pieces, so that of several links the slowest decides.
    pub fn transfer(&self, bytes: Bytes, hop: Hop) -> Nanos {
        let nvlink = || self.nvlink.duration_at(bytes, self.nvlink.copy_byte_s);
        let Hop::Network { over_nvlink, crossing } = hop else { return nvlink() };
        let network = self.network.duration_at(bytes, self.network.copy_byte_s);
        let uplink = self.pods.map_or(Nanos::ZERO, |pods| self.network.duration_at(part(bytes, crossing), pods.byte_s));
        network.max(uplink).max(if over_nvlink { nvlink() } else { Nanos::ZERO })
    }

    /// How long an exchange takes that sends so much to other pods.
    pub(super) fn over_uplinks(&self, uplink: Bytes) -> Nanos {
        match self.pods {
            Some(pods) => self.network.exchange_at(uplink, pods.byte_s),
            // A plan from elsewhere may say so: then uplinks are like the network.
            None => self.network.exchange_at(uplink, self.network.rate(u32::MAX)),
        }
    }
}

/// A part of so many bytes.
pub fn part(bytes: Bytes, share: f64) -> Bytes {
    Bytes((bytes.as_f64() * share).round() as u64)
}

/// Whether everything from the first GPU of one rank to the last of the other lies in one of the runs of `size` GPUs.
fn share(size: u64, gpus_per_rank: u64, (r, q): (u32, u32)) -> bool {
    let (gpus, size) = (u128::from(gpus_per_rank.max(1)), u128::from(size.max(1)));
    let first = u128::from(r.min(q)) * gpus;
    let last = (u128::from(r.max(q)) + 1) * gpus - 1;
    first / size == last / size
}

/// Share of a pod's GPUs whose peers, on the other of two ranks, are in other pods: in the pod with the largest, on either side.
fn peers_crossing(pod: u64, gpus_per_rank: u64, (r, q): (u32, u32)) -> f64 {
    let (pod, gpus) = (u128::from(pod.max(1)), u128::from(gpus_per_rank.max(1)));
    let (low, high) = (u128::from(r.min(q)) * gpus, u128::from(r.max(q)) * gpus);
    let apart = high - low;
    // Seen from the pod that begins at `start`: those of a rank from `first` whose peers are `apart` further, or nearer.
    let of_pod = |start: u128, first: u128, upwards: bool| -> u128 {
        let (from, to) = (first.max(start), (first + gpus).min(start + pod));
        let (from, to) = match upwards {
            true => (from.max((start + pod).saturating_sub(apart)), to),
            false => (from, to.min(start + apart)),
        };
        to.saturating_sub(from)
    };
    // If a rank is longer than three pods, one of the first three lies wholly within it, and so do all after it but the last.
    let of_rank = |first: u128, upwards: bool| {
        let starts = (first / pod..).take(3).map(|number| number * pod);
        starts.map(|start| of_pod(start, first, upwards)).max().unwrap_or(0)
    };
    of_rank(low, true).max(of_rank(high, false)) as f64 / pod as f64
}

/// Of what the GPUs of expert-parallel groups send to other nodes, the part that leaves a pod of `pod` GPUs, over what all the pod's GPUs send
/// there: the largest over the pods of a cluster with `gpus` of them. A GPU sends as much to each GPU of other nodes. Groups are runs of
/// `ep`, of which `per_node` are on a node.
pub fn groups_crossing(pod: u64, ep: u64, per_node: u64, gpus: u64) -> f64 {
    let (pod, ep, gpus) = (pod.max(1), ep.max(1), gpus.max(1));
    let others = ep - per_node.clamp(1, ep);
    if others == 0 {
        return 0.0;
    }
    // Of a group with `inside` of its GPUs in the pod: each sends to those outside.
    let leaves = |inside: u64| inside as f64 * ((ep - inside) as f64 / others as f64).min(1.0);
    let of_pod = |start: u64| {
        let end = (start + pod).min(gpus);
        let inside = |group: u64| ((group + 1) * ep).min(end).saturating_sub((group * ep).max(start));
        // Only the groups at both ends have GPUs outside; a last group that the cluster has not all of is none.
        let ends = [start / ep, (end - 1) / ep];
        let whole = |group: &&u64| (**group + 1) * ep <= gpus;
        let ends = if ends[0] == ends[1] { &ends[..1] } else { &ends[..] };
        ends.iter().filter(whole).map(|&group| leaves(inside(group))).sum::<f64>() / (end - start) as f64
    };
    // After so many, pods see groups in the same way again; but the last pod may be smaller.
    let different = ep / greatest_common_divisor(ep, pod);
    let starts = (0..different).map(|number| number * pod).take_while(|&start| start < gpus);
    starts.chain([gpus.saturating_sub(1) / pod * pod]).map(of_pod).fold(0.0, f64::max)
}

/// Of what a GPU sends around rings, the part that leaves a pod of `pod` GPUs: a ring has `spacing` GPUs between its members, and goes
/// through a rank of `gpus_per_rank` GPUs (through two, one after the other, where both hold the parameters). From each pod it leaves once.
pub fn rings_crossing(pod: u64, gpus_per_rank: u64, spacing: u64, holders: (u32, u32)) -> f64 {
    if share(pod, gpus_per_rank, holders) {
        return 0.0;
    }
    let members = (pod.min(gpus_per_rank) / spacing.max(1)).max(1);
    1.0 / members as f64
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest mean over pods, by asking each pair of GPUs.
    fn counted(pod: u64, gpus: u64, leaving: impl Fn(u64) -> f64) -> f64 {
        let of_pod = |start: u64| {
            let end = (start + pod).min(gpus);
            (start..end).map(&leaving).sum::<f64>() / (end - start) as f64
        };
        (0..gpus).step_by(pod as usize).map(of_pod).fold(0.0, f64::max)
    }

    #[test]
    fn groups_cross_as_their_pairs_of_gpus_do() {
        for pod in [1, 4, 6, 8, 12, 16, 32] {
            for (ep, node) in [(2, 1), (4, 2), (8, 4), (6, 2), (12, 4), (16, 8), (24, 4), (4, 4)] {
                // Pods are whole nodes.
                if pod % node != 0 {
                    continue;
                }
                for groups in [1, 2, 3, 5, 8] {
                    let gpus = groups * ep;
                    let leaving = |gpu: u64| {
                        let group = gpu / ep * ep..(gpu / ep + 1) * ep;
                        let others: Vec<u64> = group.filter(|other| other / node != gpu / node).collect();
                        let out = others.iter().filter(|&&other| other / pod != gpu / pod).count();
                        if others.is_empty() { 0.0 } else { out as f64 / others.len() as f64 }
                    };
                    let (said, counted) = (groups_crossing(pod, ep, node, gpus), counted(pod, gpus, leaving));
                    assert!((said - counted).abs() < 1e-9, "pods of {pod}, ep {ep} of {gpus}: {said}, not {counted}");
                }
            }
        }
        // Two pods of two nodes, one group over all four: of three other nodes two are in the other pod.
        assert_eq!(groups_crossing(16, 32, 8, 32), 2.0 / 3.0);
    }

    #[test]
    fn peers_cross_as_they_are_counted() {
        for pod in 1..=20_u64 {
            for gpus in 1..=24 {
                for (r, q) in [(0_u32, 1), (1, 2), (2, 1), (0, 3), (3, 5), (4, 0)] {
                    let (low, apart) = (u64::from(r.min(q)) * gpus, u64::from(r.abs_diff(q)) * gpus);
                    let pairs = (low..low + gpus).filter(|gpu| gpu / pod != (gpu + apart) / pod);
                    let (mut out, mut into) = (vec![0; 400], vec![0; 400]);
                    for gpu in pairs {
                        out[(gpu / pod) as usize] += 1;
                        into[((gpu + apart) / pod) as usize] += 1;
                    }
                    let most = out.iter().chain(&into).max().map_or(0.0, |&most| f64::from(most) / pod as f64);
                    let said = peers_crossing(pod, gpus, (r, q));
                    assert_eq!(said, most, "pods of {pod}, ranks {r} and {q} of {gpus}");
                }
            }
        }
    }

    #[test]
    fn rings_leave_each_pod_once() {
        // 128 GPUs of a rank in pods of 64: a ring through 16 nodes of 8 has 8 members in each pod, one of which sends on.
        assert_eq!(rings_crossing(64, 128, 8, (3, 3)), 1.0 / 8.0);
        // Experts over 64 GPUs: each member is in another pod than the next.
        assert_eq!(rings_crossing(64, 128, 64, (3, 3)), 1.0);
        // The rank is within a pod; two mirrored ranks are within it, or not.
        assert_eq!(rings_crossing(256, 128, 8, (1, 1)), 0.0);
        assert_eq!(rings_crossing(256, 128, 8, (0, 1)), 0.0);
        assert_eq!(rings_crossing(256, 128, 8, (0, 3)), 1.0 / 16.0);
    }
}
