//! AdamW (Loshchilov and Hutter 2019), and the update of balancing biases.

use super::layers::router::balance;
use super::parameters::{Parameters, Role, Tensor};
use super::precision::{Policy, Tiles, round};
use super::rate::Rate;
use super::{Matrix, Real};

/// How parameters are updated. The default is DeepSeek-V3's (technical report, section 4.2), with the learning rate that it has for most of the training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Size of each step.
    pub learning_rate: Rate,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second.
    pub beta2: f64,
    /// Added to the root of the second.
    pub epsilon: f64,
    /// Decay of weights, in units of the learning rate; norms and biases do not decay.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; `None`: any.
    pub clip: Option<f64>,
    /// By how much balancing biases move.
    pub balance_rate: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            learning_rate: Rate::constant(2.2e-4),
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip: Some(1.0),
            balance_rate: 0.001,
        }
    }
}

/// The optimizer's state for a set of parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct State<T> {
    /// Steps taken.
    steps: u32,
    /// By tensor, in their order: first and second moment.
    moments: Vec<[Matrix<T>; 2]>,
}

impl<T: Real> State<T> {
    /// Before the first step.
    pub fn new<P: Parameters<T>>(parameters: &P) -> Self {
        let zeros = |tensor: &Tensor<T>| Matrix::zeros(tensor.values.rows(), tensor.values.columns());
        let tensors = parameters.tensors("");
        Self { steps: 0, moments: tensors.into_iter().map(|(_, tensor)| [zeros(tensor), zeros(tensor)]).collect() }
    }
}

impl<T> State<T> {
    /// Steps taken.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// By tensor, in their order: first and second moment.
    pub fn moments(&self) -> &[[Matrix<T>; 2]] {
        &self.moments
    }

    /// As it was after some steps. `moments`: of the same tensors.
    pub fn restore(&mut self, steps: u32, moments: Vec<[Matrix<T>; 2]>) {
        assert_eq!(moments.len(), self.moments.len(), "the moments of the same tensors");
        (self.steps, self.moments) = (steps, moments);
    }
}

/// The sum of the squares of gradients, in their order. Those of several ranks add up.
pub fn square_sum<T: Real, P: Parameters<T>>(gradients: &P) -> f64 {
    let tensors = gradients.tensors("").into_iter().filter(|(_, tensor)| tensor.role != Role::Balance);
    tensors.flat_map(|(_, tensor)| tensor.values.values()).map(|value| value.to_f64() * value.to_f64()).sum()
}

impl AdamW {
    /// Takes a step. `square_sum` is that of all gradients of the model, wherever they are.
    pub fn step<T: Real, P: Parameters<T>>(
        &self,
        policy: &Policy,
        parameters: &mut P,
        gradients: &P,
        state: &mut State<T>,
        square_sum: f64,
    ) {
        state.steps += 1;
        let update = self.update(state.steps, square_sum);
        let decay = self.learning_rate.at(state.steps) * self.weight_decay;
        let gradients = gradients.tensors("");
        for (((_, tensor), (_, gradient)), moments) in
            parameters.tensors_mut("").into_iter().zip(gradients).zip(&mut state.moments)
        {
            match tensor.role {
                Role::Balance => balance(&mut tensor.values, &gradient.values, self.balance_rate),
                Role::Weight => update.apply(tensor, gradient, moments, decay),
                Role::Gain | Role::Bias => update.apply(tensor, gradient, moments, 0.0),
            }
            moments.iter_mut().for_each(|moment| round(moment, policy.moments(), Tiles::Rows));
            round(&mut tensor.values, policy.master(), Tiles::Rows);
        }
    }

    fn update<T: Real>(&self, step: u32, square_sum: f64) -> Update<T> {
        let norm = square_sum.sqrt();
        let clipped = self.clip.filter(|&most| norm > most).map_or(1.0, |most| most / norm);
        let power = |beta: f64| beta.powi(step.try_into().unwrap_or(i32::MAX));
        Update {
            gradient: T::of(clipped),
            betas: [T::of(self.beta1), T::of(self.beta2)],
            corrections: [self.beta1, self.beta2].map(|beta| T::of(1.0 / (1.0 - power(beta)))),
            epsilon: T::of(self.epsilon),
            rate: T::of(self.learning_rate.at(step)),
        }
    }
}

/// The numbers of one step.
struct Update<T> {
    /// Factor of the gradients.
    gradient: T,
    betas: [T; 2],
    /// Of the moments, for having started at zero.
    corrections: [T; 2],
    epsilon: T,
    rate: T,
}

impl<T: Real> Update<T> {
    fn apply(&self, tensor: &mut Tensor<T>, gradient: &Tensor<T>, [first, second]: &mut [Matrix<T>; 2], decay: f64) {
        let kept = T::ONE - T::of(decay);
        let moments = first.values_mut().iter_mut().zip(second.values_mut());
        let values = tensor.values.values_mut().iter_mut().zip(gradient.values.values());
        for ((value, &gradient), (m, v)) in values.zip(moments) {
            let gradient = gradient * self.gradient;
            *m = self.betas[0] * *m + (T::ONE - self.betas[0]) * gradient;
            *v = self.betas[1] * *v + (T::ONE - self.betas[1]) * gradient * gradient;
            let step = *m * self.corrections[0] / ((*v * self.corrections[1]).sqrt() + self.epsilon);
            *value = *value * kept - self.rate * step;
        }
    }
}
