//! The same step without a pipeline: how far losses and gradients are from the reference trainer's.

use std::collections::{BTreeMap, BTreeSet};

use super::Executor;
use crate::runtime::host::batch::Batch;
use crate::runtime::host::parameters::{Parameters as _, Role};
use crate::runtime::host::reference::{Model, Step};
use crate::runtime::host::{Matrix, Real};

/// What the reference makes of a step.
pub struct Expected<T> {
    losses: Vec<f64>,
    gradients: Model<T>,
}

/// How far a step is from what is expected.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The largest of the losses', in parts of the loss.
    pub loss: f64,
    /// The largest of the gradients': the norm of a tensor's difference, in parts of its norm.
    pub gradient: f64,
    /// The tensor that it is of.
    pub tensor: String,
}

/// Gradients whose norm is below this part of the norm of all are compared with that: what is left where terms cancel is
/// rounding.
const NOTHING: f64 = 1e-6;

impl<T: Real> Executor<T> {
    /// What the reference trainer makes of a step from the present parameters. To be asked before the step is taken.
    pub fn expected(&self, data: &[Vec<Batch>]) -> Expected<T> {
        let shape = self.shape();
        let held: BTreeMap<String, &Matrix<T>> =
            self.parameters().map(|(_, name, tensor)| (name, &tensor.values)).collect();
        let mut model = Model::zeros(shape);
        for (name, tensor) in model.tensors_mut("") {
            if let Some(&values) = held.get(&name) {
                tensor.values = values.clone();
            }
        }
        let (mut losses, mut gradients) = (vec![0.0; shape.losses()], Model::zeros(shape));
        let step_tokens = data.iter().flatten().map(Batch::tokens).sum();
        for batch in data.iter().flatten() {
            let sums = model.accumulate(shape, batch, step_tokens, &mut gradients);
            losses.iter_mut().zip(sums).for_each(|(loss, sum)| *loss += sum / step_tokens as f64);
        }
        Expected { losses, gradients }
    }

    /// The largest differences of the last step, on any GPU. A tensor that is missing, or not a number, is infinitely far.
    pub fn difference(&self, step: &Step, expected: &Expected<T>) -> Difference {
        let losses = step.losses.iter().zip(&expected.losses).map(|(ours, theirs)| relative(ours - theirs, *theirs));
        let loss = losses.fold(0.0, f64::max);
        let theirs: BTreeMap<String, _> = expected.gradients.tensors("").into_iter().collect();
        let counted = theirs.values().filter(|tensor| tensor.role != Role::Balance);
        let least =
            NOTHING * counted.map(|tensor| norm(tensor.values.values().iter().copied()).powi(2)).sum::<f64>().sqrt();
        let mut worst = Difference { loss, gradient: 0.0, tensor: String::new() };
        let mut seen = BTreeSet::new();
        for (_, name, ours) in self.gradients() {
            let gradient = theirs.get(&name).map_or(f64::INFINITY, |theirs| {
                let apart =
                    ours.values.values().iter().zip(theirs.values.values()).map(|(&ours, &theirs)| ours - theirs);
                relative(norm(apart), norm(theirs.values.values().iter().copied()).max(least))
            });
            if gradient > worst.gradient {
                (worst.gradient, worst.tensor) = (gradient, name.clone());
            }
            seen.insert(name);
        }
        if let Some(missing) = theirs.keys().find(|name| !seen.contains(*name)) {
            (worst.gradient, worst.tensor) = (f64::INFINITY, missing.clone());
        }
        worst
    }
}

fn norm<T: Real>(values: impl Iterator<Item = T>) -> f64 {
    values.map(|value| value.to_f64() * value.to_f64()).sum::<f64>().sqrt()
}

/// A difference in parts of a size; infinite if it is no number.
fn relative(difference: f64, size: f64) -> f64 {
    match difference {
        0.0 => 0.0,
        _ => Some((difference / size).abs()).filter(|part| !part.is_nan()).unwrap_or(f64::INFINITY),
    }
}
