//! Gradients of whole small models against finite differences in double precision, for every kind of layer.

#[path = "host_runtime/shapes.rs"]
mod shapes;

use dualweave::runtime::host::batch::Batch;
use dualweave::runtime::host::parameters::{Parameters, Role};
use dualweave::runtime::host::reference::Model;
use dualweave::runtime::host::{Matrix, Shape};

/// Largest relative error.
const TOLERANCE: f64 = 1e-6;
/// Step of the differences. The five-point formula errs by its fourth power.
const STEP: f64 = 5e-5;
/// Entries that are tested alone, of each tensor: those of largest gradient, where the relative error means something.
const ALONE: usize = 3;

/// The loss that is minimised, and its gradients.
fn loss(shape: &Shape, model: &Model<f64>, batch: &Batch) -> (f64, Model<f64>) {
    let mut gradients = Model::zeros(shape);
    let sums = model.accumulate(shape, batch, batch.tokens(), &mut gradients);
    let mean = |sum: &f64| sum / batch.tokens() as f64;
    (sums.iter().map(mean).zip(shape.loss_weights()).map(|(loss, weight)| loss * weight).sum(), gradients)
}

/// The loss with one tensor moved by `distance` along `direction`.
fn moved(
    shape: &Shape,
    model: &Model<f64>,
    batch: &Batch,
    index: usize,
    direction: &Matrix<f64>,
    distance: f64,
) -> f64 {
    let mut model = model.clone();
    let mut tensors = model.tensors_mut("");
    let values = tensors[index].1.values.values_mut();
    values.iter_mut().zip(direction.values()).for_each(|(value, along)| *value += distance * along);
    loss(shape, &model, batch).0
}

fn check(shape: &Shape, model: &Model<f64>, batch: &Batch, index: usize, direction: &Matrix<f64>, expected: f64) {
    let at = |steps: f64| moved(shape, model, batch, index, direction, steps * STEP);
    let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * STEP);
    let name = &model.tensors("")[index].0;
    let error = (slope - expected).abs();
    assert!(error <= TOLERANCE * expected.abs(), "{name}: {expected:e}, by differences {slope:e}");
}

/// Checks each tensor along a random direction, and in its entries of largest gradient.
fn gradients_are_right(shape: &Shape) {
    let model = shapes::model(shape);
    let batch = Batch::random(shape, 3, 5, 0);
    let (_, gradients) = loss(shape, &model, &batch);
    for (index, (name, gradient)) in gradients.tensors("").into_iter().enumerate() {
        if gradient.role == Role::Balance {
            continue;
        }
        let values = gradient.values.values();
        let along = |direction: &Matrix<f64>| values.iter().zip(direction.values()).map(|(a, b)| a * b).sum::<f64>();
        let (rows, columns) = (gradient.values.rows(), gradient.values.columns());
        // All entries count, each towards where the loss grows, with random lengths; the whole has length 1.
        let lengths = shapes::noise(&name, rows * columns);
        let direction: Vec<f64> =
            values.iter().zip(lengths).map(|(value, length)| value.signum() * length.abs()).collect();
        let length = direction.iter().map(|value| value * value).sum::<f64>().sqrt();
        let direction = Matrix::new(rows, columns, direction.iter().map(|value| value / length).collect());
        assert!(along(&direction) > 0.0, "{name} has a gradient");
        check(shape, &model, &batch, index, &direction, along(&direction));
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()));
        for &entry in order.iter().take(ALONE) {
            let mut direction = Matrix::zeros(rows, columns);
            direction.values_mut()[entry] = 1.0;
            check(shape, &model, &batch, index, &direction, along(&direction));
        }
    }
}

#[test]
fn dense_multi_head() {
    gradients_are_right(&shapes::dense_multi_head());
}

#[test]
fn grouped_query_with_every_addition() {
    gradients_are_right(&shapes::grouped_query());
}

#[test]
fn latent_attention_group_limited_sigmoid_router_and_mtp() {
    gradients_are_right(&shapes::latent());
}

#[test]
fn latent_attention_without_query_rank_tied_embedding_unnormalised_softmax() {
    gradients_are_right(&shapes::latent_tied());
}

#[test]
fn loads_stand_in_the_place_of_the_balancing_bias() {
    let shape = shapes::latent();
    let batch = Batch::random(&shape, 3, 5, 0);
    let (_, gradients) = loss(&shape, &shapes::model(&shape), &batch);
    let moe = shape.model.moe.as_ref().expect("experts");
    let loads = gradients.tensors("").into_iter().filter(|(_, tensor)| tensor.role == Role::Balance);
    let mut layers = 0;
    for (name, loads) in loads {
        let all: f64 = loads.values.values().iter().sum();
        assert_eq!(all, batch.tokens() as f64 * f64::from(moe.top_k), "{name}");
        layers += 1;
    }
    assert_eq!(layers, 2 + 2, "layers with experts, and modules");
}
