//! Copies that dispatch sends, in two hops and flat, against all ways to route a token, simulated tokens and closed forms.

use dualweave::job::model::{Layers, Moe};
use dualweave::machine::demand::sms_for_links;
use dualweave::passes::unit_work::routing::{Copies, copies, flat_copies, visits};
use proptest::prelude::*;

fn moe(experts: u32, top_k: u32, groups: u32, topk_groups: u32) -> Moe {
    Moe {
        experts,
        top_k,
        groups,
        topk_groups,
        width: 1,
        shared_width: 0,
        shared_gate: false,
        router_bias: false,
        balance_bias: false,
        expert_bias: false,
        layers: Layers::All,
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u32) -> u32 {
        (self.next() % u64::from(end)) as u32
    }

    /// `count` of `pool`, without repetition.
    fn choose(&mut self, pool: &[u32], count: u32) -> Vec<u32> {
        let mut pool = pool.to_vec();
        for at in 0..count as usize {
            let other = at + self.below((pool.len() - at) as u32) as usize;
            pool.swap(at, other);
        }
        pool.truncate(count as usize);
        pool
    }
}

/// Copies of a token that goes to these GPUs (ascending, each once): in two hops over the network and NVLink, then flat.
fn count(gpus: &[u32], sender: u32, per_node: u32) -> [f64; 4] {
    let elsewhere = |gpu: &&u32| *gpu / per_node != sender / per_node;
    let mut nodes: Vec<u32> = gpus.iter().map(|gpu| gpu / per_node).collect();
    nodes.dedup();
    let network = nodes.iter().filter(|&&node| node != sender / per_node).count();
    // On each node it arrives at the GPU with the sender's index, and goes on to the others that want it.
    let nvlink = gpus.iter().filter(|&&gpu| gpu % per_node != sender % per_node).count();
    let flat_network = gpus.iter().filter(elsewhere).count();
    let flat_nvlink = gpus.iter().filter(|gpu| !elsewhere(gpu) && **gpu != sender).count();
    [network, nvlink, flat_network, flat_nvlink].map(|copies| copies as f64)
}

/// What the library expects, in the order of [`count`].
fn expected(moe: &Moe, ep: u32, per_node: u32) -> [f64; 4] {
    let (two_hop, flat) = (copies(moe, ep, per_node), flat_copies(moe, ep, per_node));
    [two_hop.network, two_hop.nvlink, flat.network, flat.nvlink]
}

const COUNTED: [&str; 4] = ["network", "nvlink", "network, flat", "nvlink, flat"];

/// Routes tokens one by one and counts their copies: means, and standard errors of the means.
fn simulate(moe: &Moe, ep: u32, per_node: u32, tokens: u32, seed: u64) -> [(f64, f64); 4] {
    let mut random = Random(seed);
    let per_gpu = moe.experts / ep;
    let size = moe.experts / moe.groups;
    let all_groups: Vec<u32> = (0..moe.groups).collect();
    let mut sums = [[0.0; 2]; 4];
    for _ in 0..tokens {
        let groups = random.choose(&all_groups, moe.topk_groups);
        let pool: Vec<u32> = groups.iter().flat_map(|group| group * size..(group + 1) * size).collect();
        let mut gpus: Vec<u32> = random.choose(&pool, moe.top_k).iter().map(|expert| expert / per_gpu).collect();
        gpus.sort_unstable();
        gpus.dedup();
        let sender = random.below(ep);
        for (sum, copies) in sums.iter_mut().zip(count(&gpus, sender, per_node)) {
            sum[0] += copies;
            sum[1] += copies * copies;
        }
    }
    let count = f64::from(tokens);
    sums.map(|[sum, squares]| {
        let mean = sum / count;
        (mean, ((squares / count - mean * mean).max(0.0) / count).sqrt())
    })
}

/// Means over every choice of groups, of experts in them, and of the sender.
fn enumerate(moe: &Moe, ep: u32, per_node: u32) -> [f64; 4] {
    let (per_gpu, size) = (moe.experts / ep, moe.experts / moe.groups);
    let chosen = |of: u32, count: u32| (0_u32..1 << of).filter(move |set| set.count_ones() == count);
    let (mut sums, mut ways) = ([0.0; 4], 0.0);
    for groups in chosen(moe.groups, moe.topk_groups) {
        let outside = |set: u32| (0..moe.experts).any(|e| set >> e & 1 == 1 && groups >> (e / size) & 1 == 0);
        for experts in chosen(moe.experts, moe.top_k).filter(|&set| !outside(set)) {
            let mut gpus: Vec<u32> = (0..moe.experts).filter(|e| experts >> e & 1 == 1).map(|e| e / per_gpu).collect();
            gpus.dedup();
            for sender in 0..ep {
                ways += 1.0;
                for (sum, copies) in sums.iter_mut().zip(count(&gpus, sender, per_node)) {
                    *sum += copies;
                }
            }
        }
    }
    sums.map(|sum| sum / ways)
}

#[test]
fn expectations_are_the_means_over_all_routings() {
    let cases = [
        ("two of eight on 2 nodes", moe(8, 2, 1, 1), 4, 2),
        ("an expert a GPU", moe(12, 3, 1, 1), 12, 4),
        ("two of four groups", moe(12, 3, 4, 2), 6, 2),
        ("a group on two nodes", moe(12, 4, 2, 1), 12, 3),
        ("groups across node borders", moe(12, 3, 6, 3), 6, 3),
        ("one node", moe(8, 3, 4, 2), 4, 8),
        ("a GPU a node", moe(8, 3, 4, 2), 4, 1),
    ];
    for (name, moe, ep, per_node) in cases {
        let means = enumerate(&moe, ep, per_node);
        for ((what, expected), mean) in COUNTED.iter().zip(expected(&moe, ep, per_node)).zip(means) {
            assert!((expected - mean).abs() < 1e-12, "{name}, {what}: {expected} expected, {mean} counted");
        }
    }
}

#[test]
fn expectations_are_those_of_simulated_tokens() {
    // (experts, top_k, groups, topk_groups), ep, GPUs of a node
    let cases = [
        ("DeepSeek-V3 on 8 nodes", moe(256, 8, 8, 4), 64, 8),
        ("DeepSeek-V3 on 4 nodes: two groups a node", moe(256, 8, 8, 4), 32, 8),
        ("DeepSeek-V3 on 16 nodes: half a group a node", moe(256, 8, 8, 4), 128, 8),
        ("DeepSeek-V3 within a node: 32 experts a GPU", moe(256, 8, 8, 4), 8, 8),
        ("Mixtral", moe(8, 2, 1, 1), 8, 8),
        ("Mixtral on 2 nodes", moe(8, 2, 1, 1), 8, 4),
        ("Qwen3 on 2 nodes", moe(128, 8, 1, 1), 16, 8),
        ("DeepSeek-V2: 160 experts, 3 of 8 groups, top 6", moe(160, 6, 8, 3), 40, 8),
        ("groups across node borders", moe(24, 3, 6, 2), 12, 3),
        ("one group, top 1", moe(64, 1, 8, 1), 16, 8),
        ("all of a group", moe(16, 4, 4, 1), 16, 4),
    ];
    for (seed, (name, moe, ep, per_node)) in (1..).zip(cases) {
        let simulated = simulate(&moe, ep, per_node, 40_000, seed);
        for ((what, expected), (mean, error)) in COUNTED.iter().zip(expected(&moe, ep, per_node)).zip(simulated) {
            let off = (mean - expected).abs();
            assert!(off <= 4.0 * error + 1e-9, "{name}, {what}: {expected} expected, {mean} ± {error} simulated");
        }
    }
}

/// Probability that none of `marked` of `of` is among `k` drawn: C(of - marked, k) / C(of, k).
fn missed(of: u32, marked: u32, k: u32) -> f64 {
    let binomial = |n: u32| (0..k).map(|i| f64::from(n - i) / f64::from(i + 1)).product::<f64>();
    binomial(of - marked) / binomial(of)
}

#[test]
fn closed_forms() {
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
    // An expert a GPU: two copies, one in eight of them stays.
    let mixtral = copies(&moe(8, 2, 1, 1), 8, 8);
    assert_eq!(mixtral, Copies { network: 0.0, nvlink: 1.75 });
    // A node is a group: it is chosen half the time, and then missed by all eight experts with some probability.
    let deepseek = copies(&moe(256, 8, 8, 4), 64, 8);
    close(deepseek.network, 8.0 * 0.5 * (1.0 - missed(128, 32, 8)) * 7.0 / 8.0);
    close(deepseek.nvlink, 64.0 * 0.5 * (1.0 - missed(128, 4, 8)) * 7.0 / 8.0);
    let qwen = copies(&moe(128, 8, 1, 1), 16, 8);
    close(qwen.network, 2.0 * (1.0 - missed(128, 64, 8)) / 2.0);
    close(qwen.nvlink, 16.0 * (1.0 - missed(128, 8, 8)) * 7.0 / 8.0);
    // Nothing leaves a GPU that has everything.
    assert_eq!(copies(&moe(256, 8, 8, 4), 1, 8), Copies { network: 0.0, nvlink: 0.0 });
    // `topk_groups` of all groups is no restriction.
    let (free, all) = (copies(&moe(64, 6, 1, 1), 16, 4), copies(&moe(64, 6, 8, 8), 16, 4));
    close(free.network, all.network);
    close(free.nvlink, all.nvlink);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]

    /// A token visits no more nodes than it has groups (where each lies on one node) or experts, and there are.
    #[test]
    fn no_more_copies_than_there_can_be(groups in 0u32..4, chosen in 1u32..8, size in 0u32..4, k in 1u32..9, gpus in 0u32..6, node in 0u32..4) {
        let (groups, size, node) = (1 << groups, 1 << size, 1 << node);
        let chosen = chosen.min(groups);
        let moe = moe(groups * size, k.min(chosen * size), groups, chosen);
        let ep = (1 << gpus).min(moe.experts);
        let Copies { network, nvlink } = copies(&moe, ep, node);
        let nodes = ep.div_ceil(node);
        let most = |limit: u32| f64::from(limit) + 1e-9;
        prop_assert!((0.0..=most((nodes - 1).min(moe.top_k))).contains(&network), "{network}");
        prop_assert!((0.0..=most(moe.top_k)).contains(&nvlink), "{nvlink}");
        if groups % nodes == 0 {
            prop_assert!(network <= most(chosen), "{network}");
        }
    }

    /// Two hops never send more over the network than straight copies, nor fewer over NVLink; and straight copies are one
    /// for each GPU that a token reaches and is not on.
    #[test]
    fn two_hops_save_network(groups in 0u32..4, chosen in 1u32..8, size in 0u32..4, k in 1u32..9, gpus in 0u32..6, node in 0u32..4) {
        let (groups, size, node) = (1 << groups, 1 << size, 1 << node);
        let chosen = chosen.min(groups);
        let moe = moe(groups * size, k.min(chosen * size), groups, chosen);
        let ep = (1 << gpus).min(moe.experts);
        let [network, nvlink, flat_network, flat_nvlink] = expected(&moe, ep, node);
        prop_assert!(network <= flat_network + 1e-9, "{network} {flat_network}");
        prop_assert!(flat_nvlink <= nvlink + 1e-9, "{flat_nvlink} {nvlink}");
        // On nodes of one GPU every copy goes over the network.
        let all = expected(&moe, ep, 1)[2];
        prop_assert!((flat_network + flat_nvlink - all).abs() < 1e-9, "{flat_network} {flat_nvlink} {all}");
        if ep <= node {
            prop_assert_eq!([network, flat_network], [0.0, 0.0]);
            prop_assert_eq!(nvlink, flat_nvlink);
        }
    }
}

/// DeepEP's analytic counts: 256 experts, top-8, a network of 50 GB/s and NVLink of 400 GB/s give 12 SMs for two nodes of eight
/// GPUs, and 6 for four, where the network takes longer. Where nothing leaves the node, NVLink decides: its 400 GB/s are what
/// 8 SMs write, and with the margin and the buffer in front 12.
#[test]
fn deepep_s_own_sm_counts() {
    let sms = |ep, network| sms_for_links(visits(&moe(256, 8, 1, 1), ep, 8), 400.0, network);
    assert_eq!(sms(16, 50.0), 12);
    assert_eq!(sms(32, 50.0), 6);
    assert_eq!(sms(8, 50.0), 12);
    // A slower network needs no more than the fewest; a faster one needs more, until NVLink is the slower link.
    assert_eq!(sms(32, 12.5), 4);
    assert!(sms(32, 100.0) > sms(32, 50.0));
    assert_eq!(sms(32, 1000.0), sms(32, 10_000.0));
}
