//! Routers: which experts a token goes to, with which weights, and the gradient. Means the same as the host's router.

use super::{count, looping};
use crate::error::Result;
use crate::runtime::cuda::kernel::{Grid, arguments};
use crate::runtime::cuda::{Bf16, Slice, Stream};
use crate::runtime::host::shape::Scoring;

/// How experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Experts, at most 1024.
    pub experts: usize,
    /// Groups of equally many experts.
    pub groups: usize,
    /// Groups that a token's experts may come from.
    pub topk_groups: usize,
    /// Experts of a token, at most 16.
    pub top_k: usize,
    /// From logits to scores.
    pub scoring: Scoring,
    /// A token's weights are divided by their sum.
    pub normalised: bool,
    /// Factor of the weights after that.
    pub factor: f32,
}

/// The most experts that there may be.
pub const MOST_EXPERTS: usize = 1024;

/// The most experts that a token may go to.
pub const MOST_CHOSEN: usize = 16;

/// Warps of a block, each with a token.
const WARPS: usize = 4;

/// Shared memory of an SM that blocks are planned with, bytes: what every GPU since compute capability 8.6 has.
const SHARED: usize = 96 << 10;

impl Rule {
    fn check(&self) {
        let Self { experts, groups, topk_groups, top_k, .. } = *self;
        assert!((1..=MOST_EXPERTS).contains(&experts), "1 to {MOST_EXPERTS} experts, not {experts}");
        assert!(groups >= 1 && experts.is_multiple_of(groups), "{experts} experts in {groups} equal groups");
        assert!((1..=groups).contains(&topk_groups), "{topk_groups} of {groups} groups");
        let allowed = topk_groups * (experts / groups);
        assert!((1..=MOST_CHOSEN.min(allowed)).contains(&top_k), "{top_k} of {allowed} experts, at most {MOST_CHOSEN}");
    }

    fn softmax(&self) -> u32 {
        u32::from(self.scoring == Scoring::Softmax)
    }

    /// One warp for each token, with so many values of 4 bytes.
    fn grid(tokens: usize, sms: u32, values: usize) -> Grid {
        let shared = 4 * values * WARPS;
        let per_sm = (SHARED / shared).clamp(1, 8);
        looping(tokens.div_ceil(WARPS), sms, count(per_sm), count(32 * WARPS)).shared(count(shared))
    }
}

/// Scores tokens and chooses their experts. `logits`, tokens × experts, become the scores. Biases, one value for each expert or
/// [`Slice::none`]: `added` to the logits; and `balance` when experts are chosen, not when they are weighed. `experts`, ascending for each token, and `weights`
/// are tokens × top-k. Of equal scores the lower expert is chosen.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or the rule is none.
pub fn forward(
    stream: &Stream,
    sms: u32,
    rule: &Rule,
    logits: Slice<f32>,
    [added, balance]: [Slice<f32>; 2],
    (experts, weights): (Slice<u32>, Slice<f32>),
) -> Result<()> {
    rule.check();
    let tokens = logits.len() / rule.experts;
    let chosen = tokens * rule.top_k;
    assert_eq!(logits.len(), tokens * rule.experts, "one logit for each token and expert");
    let fits = |bias: Slice<f32>| bias.is_empty() || bias.len() == rule.experts;
    assert!(fits(added) && fits(balance), "one bias for each expert");
    assert!(experts.len() == chosen && weights.len() == chosen, "{tokens} × {} are chosen", rule.top_k);
    let grid = Rule::grid(tokens, sms, 2 * rule.experts + rule.groups);
    let shape = [rule.experts, rule.groups, rule.topk_groups, rule.top_k].map(count);
    let [all, groups, topk_groups, top_k] = shape;
    let (softmax, normalised) = (rule.softmax(), u32::from(rule.normalised));
    let kernel = stream.device().kernel("router_forward");
    // SAFETY: the kernel changes all logits, reads all biases if there are some, and writes all experts and weights; lengths and
    // what it can hold were checked.
    unsafe {
        kernel.launch(
            stream,
            grid,
            arguments![
                logits,
                added,
                balance,
                experts,
                weights,
                count(tokens),
                all,
                groups,
                topk_groups,
                top_k,
                softmax,
                normalised,
                rule.factor,
            ],
        )
    }
}

/// From the gradient of the weights (tokens × top-k) to that of the logits (tokens × experts). `scores` and `experts` are what
/// [`forward`] has made. What is chosen has no gradient.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or the rule is none.
pub fn input_gradient(
    stream: &Stream,
    sms: u32,
    rule: &Rule,
    (scores, experts): (Slice<f32>, Slice<u32>),
    d_weights: Slice<f32>,
    d_logits: Slice<Bf16>,
) -> Result<()> {
    rule.check();
    let tokens = scores.len() / rule.experts;
    let chosen = tokens * rule.top_k;
    assert!(scores.len() == tokens * rule.experts && d_logits.len() == scores.len(), "as many gradients as scores");
    assert!(experts.len() == chosen && d_weights.len() == chosen, "{tokens} × {} are chosen", rule.top_k);
    let grid = Rule::grid(tokens, sms, rule.experts);
    let (all, top_k) = (count(rule.experts), count(rule.top_k));
    let (softmax, normalised) = (rule.softmax(), u32::from(rule.normalised));
    let kernel = stream.device().kernel("router_input_gradient");
    // SAFETY: the kernel reads all scores, experts and gradients of weights, and writes all of `d_logits`; lengths were checked.
    unsafe {
        kernel.launch(
            stream,
            grid,
            arguments![
                scores,
                experts,
                d_weights,
                d_logits,
                count(tokens),
                all,
                top_k,
                softmax,
                normalised,
                rule.factor
            ],
        )
    }
}

/// Adds to `loads` how many tokens went to each expert. `experts`: of any number of tokens. Uses one SM.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If there are more than [`MOST_EXPERTS`].
pub fn loads(stream: &Stream, experts: Slice<u32>, loads: Slice<f32>) -> Result<()> {
    assert!(loads.len() <= MOST_EXPERTS, "at most {MOST_EXPERTS} experts, not {}", loads.len());
    let kernel = stream.device().kernel("router_loads");
    let grid = Grid::of(1, count(MOST_EXPERTS));
    // SAFETY: the kernel reads all of `experts`, and changes all loads.
    unsafe { kernel.launch(stream, grid, arguments![experts, loads, count(experts.len()), count(loads.len())]) }
}
