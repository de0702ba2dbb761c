//! The MLP op of a layer: dense with its norm, routed experts, or the shared expert.

use std::collections::BTreeMap;

use super::layer::{Experts, Layer, Mlp};
use crate::runtime::host::layers::permutation::ExpertRows;
use crate::runtime::host::layers::rmsnorm;
use crate::runtime::host::layers::router::Routing;
use crate::runtime::host::layers::swiglu::{self, Swiglu};
use crate::runtime::host::precision::{Tiles, round};
use crate::runtime::host::tensor::dot;
use crate::runtime::host::{Matrix, Real, Shape};

/// What the gradient of the dense MLP needs.
#[derive(Clone, Debug)]
pub struct DenseSaved<T> {
    norm: rmsnorm::Saved<T>,
    mlp: swiglu::Saved<T>,
}

/// What the weight gradient of the dense MLP needs.
#[derive(Clone, Debug)]
pub struct DenseForWeights<T> {
    norm: rmsnorm::ForWeights<T>,
    mlp: swiglu::ForWeights<T>,
}

/// What the gradient of the routed experts needs, by expert.
pub type ExpertsSaved<T> = BTreeMap<u32, swiglu::Saved<T>>;

/// What the weight gradient of the routed experts needs, by expert.
pub type ExpertsForWeights<T> = BTreeMap<u32, swiglu::ForWeights<T>>;

/// What the gradient of the shared expert needs.
#[derive(Clone, Debug)]
pub struct SharedSaved<T> {
    mlp: swiglu::Saved<T>,
    /// Its result in front of the gate, where there is one.
    ungated: Option<Matrix<T>>,
}

/// What the weight gradient of the shared expert needs.
pub type SharedForWeights<T> = swiglu::ForWeights<T>;

/// The gradient of what the shared expert reads.
#[derive(Clone, Debug)]
pub struct SharedGradient<T> {
    /// By the normed stream.
    pub tokens: Matrix<T>,
    /// By its weight: tokens × 1, where it has one.
    pub gate: Option<Matrix<T>>,
}

impl<T: Real> Layer<T> {
    /// F of the dense MLP: norm, MLP, residual.
    ///
    /// # Panics
    /// As everything for the dense MLP, if the layer has experts.
    pub fn dense_forward(&self, shape: &Shape, x: Matrix<T>) -> (Matrix<T>, DenseSaved<T>) {
        let format = shape.policy.stream();
        let mut y = x.clone();
        let (normed, norm) = self.mlp_norm.forward(shape.norm_epsilon, format, x);
        let (result, mlp) = self.dense().forward(shape.policy.mlp(), &normed);
        y.add(&result);
        round(&mut y, format, Tiles::Rows);
        (y, DenseSaved { norm, mlp })
    }

    /// I of the dense MLP.
    pub fn dense_input_gradient(
        &self,
        shape: &Shape,
        saved: DenseSaved<T>,
        dy: Matrix<T>,
    ) -> (Matrix<T>, DenseForWeights<T>) {
        let format = shape.policy.stream();
        let (d_normed, mlp) = self.dense().input_gradient(shape.policy.mlp(), saved.mlp, &dy);
        let (d_stream, norm) = self.mlp_norm.input_gradient(format, saved.norm, &d_normed);
        let mut dx = dy;
        dx.add(&d_stream);
        round(&mut dx, format, Tiles::Rows);
        (dx, DenseForWeights { norm, mlp })
    }

    /// W of the dense MLP.
    pub fn accumulate_dense(&mut self, shape: &Shape, needed: &DenseForWeights<T>) {
        self.mlp_norm.accumulate(shape.policy.gradients(), &needed.norm);
        match &mut self.mlp {
            Mlp::Dense(mlp) => mlp.accumulate(shape.policy.mlp(), &needed.mlp),
            Mlp::Experts(_) => unreachable!("{NOT_DENSE}"),
        }
    }

    /// F of the routed experts that this place has: `rows` of each, and as many results.
    ///
    /// # Panics
    /// As everything for experts, if the layer has none, or not those that rows are for.
    pub fn experts_forward(&self, shape: &Shape, rows: ExpertRows<T>) -> (ExpertRows<T>, ExpertsSaved<T>) {
        let experts = &self.experts().experts;
        let each = rows.into_iter().map(|(expert, rows)| {
            let (y, saved) = experts[&expert].forward(shape.policy.expert(), &rows);
            ((expert, y), (expert, saved))
        });
        each.unzip()
    }

    /// I of the routed experts.
    pub fn experts_input_gradient(
        &self,
        shape: &Shape,
        saved: ExpertsSaved<T>,
        dy: &ExpertRows<T>,
    ) -> (ExpertRows<T>, ExpertsForWeights<T>) {
        let experts = &self.experts().experts;
        let each = saved.into_iter().map(|(expert, saved)| {
            let (dx, needed) = experts[&expert].input_gradient(shape.policy.expert(), saved, &dy[&expert]);
            ((expert, dx), (expert, needed))
        });
        each.unzip()
    }

    /// W of the routed experts.
    pub fn accumulate_experts(&mut self, shape: &Shape, needed: &ExpertsForWeights<T>) {
        let experts = &mut self.experts_mut().experts;
        for (expert, needed) in needed {
            if let Some(expert) = experts.get_mut(expert) {
                expert.accumulate(shape.policy.expert(), needed);
            }
        }
    }

    /// F of the shared expert, `None` if there is none: of all tokens, times its weight if it has one.
    pub fn shared_forward(
        &self,
        shape: &Shape,
        tokens: &Matrix<T>,
        routing: &Routing<T>,
    ) -> Option<(Matrix<T>, SharedSaved<T>)> {
        let formats = shape.policy.mlp();
        let (mut y, mlp) = self.experts().shared.as_ref()?.forward(formats, tokens);
        let ungated = routing.shared.as_ref().map(|weights| {
            let ungated = y.clone();
            scale_rows(&mut y, weights);
            round(&mut y, formats.down.results, Tiles::Rows);
            ungated
        });
        Some((y, SharedSaved { mlp, ungated }))
    }

    /// I of the shared expert, `None` if there is none.
    pub fn shared_input_gradient(
        &self,
        shape: &Shape,
        saved: SharedSaved<T>,
        routing: &Routing<T>,
        dy: &Matrix<T>,
    ) -> Option<(SharedGradient<T>, SharedForWeights<T>)> {
        let formats = shape.policy.mlp();
        let shared = self.experts().shared.as_ref()?;
        let gate = saved.ungated.map(|ungated| {
            let by_token = (0..dy.rows()).map(|token| dot(dy.row(token), ungated.row(token))).collect();
            Matrix::new(dy.rows(), 1, by_token)
        });
        let mut d_ungated = dy.clone();
        if let Some(weights) = &routing.shared {
            scale_rows(&mut d_ungated, weights);
            round(&mut d_ungated, formats.down.results, Tiles::Rows);
        }
        let (tokens, needed) = shared.input_gradient(formats, saved.mlp, &d_ungated);
        Some((SharedGradient { tokens, gate }, needed))
    }

    /// W of the shared expert.
    pub fn accumulate_shared(&mut self, shape: &Shape, needed: &SharedForWeights<T>) {
        if let Some(shared) = &mut self.experts_mut().shared {
            shared.accumulate(shape.policy.mlp(), needed);
        }
    }

    fn dense(&self) -> &Swiglu<T> {
        match &self.mlp {
            Mlp::Dense(mlp) => mlp,
            Mlp::Experts(_) => unreachable!("{NOT_DENSE}"),
        }
    }

    fn experts(&self) -> &Experts<T> {
        match &self.mlp {
            Mlp::Experts(experts) => experts,
            Mlp::Dense(_) => unreachable!("{NO_EXPERTS}"),
        }
    }

    fn experts_mut(&mut self) -> &mut Experts<T> {
        match &mut self.mlp {
            Mlp::Experts(experts) => experts,
            Mlp::Dense(_) => unreachable!("{NO_EXPERTS}"),
        }
    }
}

const NOT_DENSE: &str = "a dense MLP's op is of a layer without experts";
const NO_EXPERTS: &str = "an expert's op is of a layer with experts";

/// Each row times its weight.
fn scale_rows<T: Real>(matrix: &mut Matrix<T>, weights: &Matrix<T>) {
    for (row, &weight) in weights.values().iter().enumerate() {
        matrix.row_mut(row).iter_mut().for_each(|value| *value *= weight);
    }
}
