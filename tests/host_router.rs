//! The router's choice against all choices that there are.

#[path = "host_runtime/shapes.rs"]
mod shapes;

use dualweave::job::Model as JobModel;
use dualweave::job::model::{Attention, Moe};
use dualweave::runtime::host::layers::router::{Router, balance};
use dualweave::runtime::host::shape::{RoutingRule, Scoring};
use dualweave::runtime::host::{Matrix, Shape};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const EXPERTS: u32 = 8;

/// A router that has its input as logits.
fn router(shape: &Shape, moe: &Moe, bias: &[f64]) -> Router<f64> {
    let mut router = Router::new(shape, moe);
    for expert in 0..EXPERTS as usize {
        router.logits.weight.values.row_mut(expert)[expert] = 1.0;
    }
    if let Some(balance) = &mut router.balance {
        balance.values.values_mut().copy_from_slice(bias);
    }
    router
}

/// All sets of `count` out of `of`, each ascending.
fn sets(of: u32, count: u32) -> Vec<Vec<u32>> {
    let masks = (0..1_u32 << of).filter(|mask| mask.count_ones() == count);
    masks.map(|mask| (0..of).filter(|place| mask >> place & 1 == 1).collect()).collect()
}

/// The set of largest total value.
fn best(sets: Vec<Vec<u32>>, value: impl Fn(&[u32]) -> f64) -> Vec<u32> {
    sets.into_iter().max_by(|a, b| value(a).total_cmp(&value(b))).expect("a set")
}

/// DeepSeek-V3 report, section 2.1.2, by trying everything.
fn expected(moe: &Moe, scoring: Scoring, scores: &[f64], bias: &[f64]) -> Vec<u32> {
    let value =
        |set: &[u32]| -> f64 { set.iter().map(|&expert| scores[expert as usize] + bias[expert as usize]).sum() };
    let size = moe.experts / moe.groups;
    let counted = if scoring == Scoring::Sigmoid { 2.min(size) } else { 1 };
    let of_group = |group: u32| -> f64 {
        let within = sets(size, counted).into_iter().map(|set| set.iter().map(|e| group * size + e).collect());
        value(&best(within.collect(), value))
    };
    let groups = best(sets(moe.groups, moe.topk_groups), |groups| groups.iter().map(|&group| of_group(group)).sum());
    let within = |set: &Vec<u32>| set.iter().all(|expert| groups.contains(&(expert / size)));
    best(sets(moe.experts, moe.top_k).into_iter().filter(within).collect(), value)
}

fn shape_with(moe: &Moe, scoring: Scoring, normalised: bool) -> Shape {
    let model =
        JobModel { hidden: EXPERTS, moe: Some(moe.clone()), ..shapes::base(Attention::Mha(shapes::heads(2, None))) };
    shapes::shape(model, RoutingRule { scoring, normalised, factor: 2.5 })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        rng_seed: RngSeed::Fixed(11),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn is_the_best_of_all(
        logits in prop::collection::vec(-3.0..3.0, EXPERTS as usize),
        bias in prop::collection::vec(0.0..0.5, EXPERTS as usize),
        (groups, topk_groups) in prop::sample::select(vec![(1, 1), (2, 1), (2, 2), (4, 2), (4, 3), (8, 5)]),
        top_k in 1_u32..=4,
        sigmoid in any::<bool>(),
        normalised in any::<bool>(),
    ) {
        prop_assume!(top_k <= EXPERTS / groups * topk_groups);
        let moe =
            Moe { experts: EXPERTS, top_k, groups, topk_groups, balance_bias: sigmoid, ..shapes::experts() };
        let scoring = if sigmoid { Scoring::Sigmoid } else { Scoring::Softmax };
        let bias = if sigmoid { bias } else { vec![0.0; EXPERTS as usize] };
        let shape = shape_with(&moe, scoring, normalised);
        let x = Matrix::new(1, EXPERTS as usize, logits.clone());
        let (routing, _) = router(&shape, &moe, &bias).forward(&shape, &moe, &x);

        let all: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let score = |logit: &f64| if sigmoid { 1.0 / (1.0 + (-logit).exp()) } else { logit.exp() / all };
        let scores: Vec<f64> = logits.iter().map(score).collect();
        let chosen = expected(&moe, scoring, &scores, &bias);
        prop_assert_eq!(&routing.experts, &chosen);
        let sum: f64 = if normalised { chosen.iter().map(|&expert| scores[expert as usize]).sum() } else { 1.0 };
        for (&expert, &weight) in chosen.iter().zip(routing.weights.values()) {
            prop_assert!((weight - 2.5 * scores[expert as usize] / sum).abs() < 1e-12);
        }
    }
}

#[test]
fn of_equal_experts_the_first_are_chosen() {
    let moe = Moe { experts: EXPERTS, groups: 4, topk_groups: 2, top_k: 3, ..shapes::experts() };
    let shape = shape_with(&moe, Scoring::Sigmoid, true);
    let x = Matrix::zeros(1, EXPERTS as usize);
    let (routing, _) = router(&shape, &moe, &[]).forward(&shape, &moe, &x);
    assert_eq!(routing.experts, [0, 1, 2]);
}

#[test]
fn balancing_biases_move_against_the_load() {
    let mut bias = Matrix::new(1, 4, vec![0.0, 0.5, 0.0, -0.5]);
    balance(&mut bias, &Matrix::new(1, 4, vec![9.0, 1.0, 5.0, 5.0]), 0.25);
    assert_eq!(bias.values(), &[-0.25, 0.75, 0.0, -0.5]);
}
