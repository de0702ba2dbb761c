//! The router: which experts a token goes to, and with which weights.

use super::linear::{self, Linear};
use super::swiglu::sigmoid;
use crate::job::model::Moe;
use crate::runtime::host::parameters::{Role, Tensor, parameters};
use crate::runtime::host::shape::{RoutingRule, Scoring};
use crate::runtime::host::{Matrix, Real, Shape};

parameters! {
    /// From a normed token to a logit per expert.
    pub struct Router {
        /// The logits.
        pub logits: Linear<T>,
        /// Added to scores when experts are chosen, not when they are weighed (DeepSeek-V3).
        pub balance: Option<Tensor<T>>,
        /// Weight of the shared expert, behind a sigmoid (Qwen2-MoE).
        pub shared_gate: Option<Linear<T>>,
    }
}

/// Where the tokens go.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing<T> {
    /// By token, its experts, ascending: tokens × top-k, row after row.
    pub experts: Vec<u32>,
    /// Their weights: tokens × top-k.
    pub weights: Matrix<T>,
    /// Weight of the shared expert: tokens × 1, where it has one.
    pub shared: Option<Matrix<T>>,
}

impl<T: Real> Routing<T> {
    /// Of some of the tokens.
    pub fn rows_of(&self, tokens: std::ops::Range<usize>) -> Self {
        let top_k = self.weights.columns();
        Self {
            experts: self.experts[tokens.start * top_k..tokens.end * top_k].to_vec(),
            weights: self.weights.rows_of(tokens.clone()),
            shared: self.shared.as_ref().map(|shared| shared.rows_of(tokens)),
        }
    }

    /// Experts of a token.
    pub fn of_token(&self, token: usize) -> &[u32] {
        let top_k = self.weights.columns();
        &self.experts[token * top_k..(token + 1) * top_k]
    }
}

/// What the gradient needs.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    logits: linear::Saved<T>,
    /// Tokens × experts.
    scores: Matrix<T>,
    experts: Vec<u32>,
    shared: Option<(linear::Saved<T>, Matrix<T>)>,
}

/// Gradients of the router's results.
#[derive(Clone, Debug)]
pub struct RoutingGradient<T> {
    /// Of the weights.
    pub weights: Matrix<T>,
    /// Of the shared expert's weight, where it has one.
    pub shared: Option<Matrix<T>>,
}

/// What the weight gradient needs.
#[derive(Clone, Debug)]
pub struct ForWeights<T> {
    logits: linear::ForWeights<T>,
    loads: Matrix<T>,
    shared: Option<linear::ForWeights<T>>,
}

impl<T: Real> Router<T> {
    /// All zero.
    pub fn new(shape: &Shape, moe: &Moe) -> Self {
        let experts = moe.experts as usize;
        Self {
            logits: Linear::new(shape.hidden(), experts, moe.router_bias),
            balance: moe.balance_bias.then(|| Tensor::vector(Role::Balance, experts)),
            shared_gate: moe.shared_gate.then(|| Linear::new(shape.hidden(), 1, false)),
        }
    }

    /// `x`: normed tokens.
    pub fn forward(&self, shape: &Shape, moe: &Moe, x: &Matrix<T>) -> (Routing<T>, Saved<T>) {
        let formats = shape.policy.router();
        let (mut scores, logits) = self.logits.forward(formats, x);
        (0..scores.rows()).for_each(|row| score(shape.routing.scoring, scores.row_mut(row)));
        let top_k = moe.top_k as usize;
        let mut experts = Vec::with_capacity(x.rows() * top_k);
        let mut weights = Matrix::zeros(x.rows(), top_k);
        for token in 0..x.rows() {
            let scores = scores.row(token);
            let chosen = choose(shape.routing.scoring, moe, scores, self.balance.as_ref().map(|b| b.values.values()));
            weigh(shape.routing, scores, &chosen, weights.row_mut(token));
            experts.extend(chosen);
        }
        let shared = self.shared_gate.as_ref().map(|gate| {
            let (mut weight, saved) = gate.forward(formats, x);
            weight.values_mut().iter_mut().for_each(|value| *value = sigmoid(*value));
            (saved, weight)
        });
        let routing =
            Routing { experts: experts.clone(), weights, shared: shared.as_ref().map(|(_, weight)| weight.clone()) };
        (routing, Saved { logits, scores, experts, shared })
    }

    /// From the gradient of the weights to that of `x`. What is chosen has no gradient.
    pub fn input_gradient(
        &self,
        shape: &Shape,
        saved: Saved<T>,
        gradient: &RoutingGradient<T>,
    ) -> (Matrix<T>, ForWeights<T>) {
        let formats = shape.policy.router();
        let top_k = gradient.weights.columns();
        let mut d_logits = Matrix::zeros(saved.scores.rows(), saved.scores.columns());
        let mut loads = Matrix::zeros(1, saved.scores.columns());
        for token in 0..saved.scores.rows() {
            let chosen = &saved.experts[token * top_k..(token + 1) * top_k];
            let (scores, to) = (saved.scores.row(token), d_logits.row_mut(token));
            weigh_gradient(shape.routing, scores, chosen, gradient.weights.row(token), to);
            score_gradient(shape.routing.scoring, scores, to);
            chosen.iter().for_each(|&expert| loads.values_mut()[expert as usize] += T::ONE);
        }
        let (mut dx, logits) = self.logits.input_gradient(formats, saved.logits, &d_logits);
        let shared = match (&self.shared_gate, saved.shared, &gradient.shared) {
            (Some(gate), Some((saved, mut weight)), Some(gradient)) => {
                for (weight, &d) in weight.values_mut().iter_mut().zip(gradient.values()) {
                    *weight = d * *weight * (T::ONE - *weight);
                }
                let (d_gate, needed) = gate.input_gradient(formats, saved, &weight);
                dx.add(&d_gate);
                Some(needed)
            }
            _ => None,
        };
        (dx, ForWeights { logits, loads, shared })
    }

    /// Adds to the gradients, which `self` has the place of; in the balancing bias's, to the experts' loads.
    pub fn accumulate(&mut self, shape: &Shape, needed: &ForWeights<T>) {
        let formats = shape.policy.router();
        self.logits.accumulate(formats, &needed.logits);
        if let Some(loads) = &mut self.balance {
            // Counts, which are not rounded.
            loads.accumulate(&needed.loads, None);
        }
        if let (Some(gate), Some(needed)) = (&mut self.shared_gate, &needed.shared) {
            gate.accumulate(formats, needed);
        }
    }
}

/// Moves a balancing bias by `rate`: up where the load of an expert was below the mean, down where it was above (DeepSeek-V3
/// report, section 2.1.2).
pub fn balance<T: Real>(bias: &mut Matrix<T>, loads: &Matrix<T>, rate: f64) {
    let mean = loads.values().iter().copied().sum::<T>() / T::of(loads.values().len() as f64);
    for (bias, &load) in bias.values_mut().iter_mut().zip(loads.values()) {
        if load < mean {
            *bias += T::of(rate);
        } else if load > mean {
            *bias -= T::of(rate);
        }
    }
}

fn score<T: Real>(scoring: Scoring, logits: &mut [T]) {
    match scoring {
        Scoring::Sigmoid => logits.iter_mut().for_each(|logit| *logit = sigmoid(*logit)),
        Scoring::Softmax => {
            let largest = logits.iter().copied().fold(logits[0], T::max);
            logits.iter_mut().for_each(|logit| *logit = (*logit - largest).exp());
            let sum: T = logits.iter().copied().sum();
            logits.iter_mut().for_each(|logit| *logit /= sum);
        }
    }
}

/// From the gradient of scores, in place, to that of logits.
fn score_gradient<T: Real>(scoring: Scoring, scores: &[T], gradient: &mut [T]) {
    match scoring {
        Scoring::Sigmoid => gradient.iter_mut().zip(scores).for_each(|(d, &score)| *d *= score * (T::ONE - score)),
        Scoring::Softmax => {
            let along = crate::runtime::host::tensor::dot(scores, gradient);
            gradient.iter_mut().zip(scores).for_each(|(d, &score)| *d = score * (*d - along));
        }
    }
}

/// The experts of a token, ascending: the best by score and bias within the best groups; of equal ones the first.
fn choose<T: Real>(scoring: Scoring, moe: &Moe, scores: &[T], bias: Option<&[T]>) -> Vec<u32> {
    let biased: Vec<T> = match bias {
        Some(bias) => scores.iter().zip(bias).map(|(&score, &bias)| score + bias).collect(),
        None => scores.to_vec(),
    };
    let size = (moe.experts / moe.groups) as usize;
    let group_scores: Vec<T> = biased.chunks(size).map(|group| group_score(scoring, group)).collect();
    let groups = largest(&group_scores, 0..moe.groups, moe.topk_groups as usize);
    let allowed = groups.iter().flat_map(|&group| group * size as u32..(group + 1) * size as u32);
    largest(&biased, allowed, moe.top_k as usize)
}

fn group_score<T: Real>(scoring: Scoring, group: &[T]) -> T {
    let counted = match scoring {
        Scoring::Softmax => 1,
        Scoring::Sigmoid => 2,
    };
    largest(group, 0..group.len() as u32, counted).iter().map(|&index| group[index as usize]).sum()
}

/// The `count` candidates of largest value, ascending by index; of equal ones the first.
fn largest<T: Real>(values: &[T], candidates: impl Iterator<Item = u32>, count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = candidates.collect();
    let value = |index: &u32| values[*index as usize].to_f64();
    order.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.cmp(b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Weights of the chosen, from their scores.
fn weigh<T: Real>(rule: RoutingRule, scores: &[T], chosen: &[u32], weights: &mut [T]) {
    let factor = weight_factor(rule, scores, chosen);
    weights.iter_mut().zip(chosen).for_each(|(weight, &expert)| *weight = scores[expert as usize] * factor);
}

/// What scores are multiplied with.
fn weight_factor<T: Real>(rule: RoutingRule, scores: &[T], chosen: &[u32]) -> T {
    let factor = T::of(rule.factor);
    if rule.normalised { factor / chosen.iter().map(|&expert| scores[expert as usize]).sum() } else { factor }
}

/// From the gradient of weights to that of scores. With sum S: `ds = (factor / S) (dw - Σ dw s / S)`.
fn weigh_gradient<T: Real>(rule: RoutingRule, scores: &[T], chosen: &[u32], d_weights: &[T], d_scores: &mut [T]) {
    let factor = weight_factor(rule, scores, chosen);
    let along = if rule.normalised {
        let weighted = chosen.iter().zip(d_weights).map(|(&expert, &d)| d * scores[expert as usize]);
        weighted.sum::<T>() * factor / T::of(rule.factor)
    } else {
        T::ZERO
    };
    for (&expert, &d) in chosen.iter().zip(d_weights) {
        d_scores[expert as usize] = factor * (d - along);
    }
}
