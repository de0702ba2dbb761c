//! Multi-head and grouped-query attention.

use super::core::{self, Core};
use super::linear::{self, Linear};
use super::rmsnorm::{self, RmsNorm};
use super::rope::{Heads, Rotation};
use crate::job::model::MultiHead as Dims;
use crate::runtime::host::parameters::{Role, Tensor, parameters};
use crate::runtime::host::precision::{Tiles, round};
use crate::runtime::host::{Matrix, Real, Shape};

parameters! {
    /// Projections around the core, and what some models add.
    pub struct MultiHead {
        /// To q, k and v of all heads, one below the other.
        pub qkv: Linear<T>,
        /// Over each head of q (Qwen3).
        pub q_norm: Option<RmsNorm<T>>,
        /// Over each head of k.
        pub k_norm: Option<RmsNorm<T>>,
        /// One logit per head (gpt-oss).
        pub sinks: Option<Tensor<T>>,
        /// From the heads' results.
        pub output: Linear<T>,
    }
}

/// What the gradient needs.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    qkv: linear::Saved<T>,
    q_norm: Option<rmsnorm::Saved<T>>,
    k_norm: Option<rmsnorm::Saved<T>>,
    core: core::Saved<T>,
    output: linear::Saved<T>,
}

/// What the weight gradient needs.
#[derive(Clone, Debug)]
pub struct ForWeights<T> {
    qkv: linear::ForWeights<T>,
    q_norm: Option<rmsnorm::ForWeights<T>>,
    k_norm: Option<rmsnorm::ForWeights<T>>,
    sinks: Matrix<T>,
    output: linear::ForWeights<T>,
}

impl<T: Real> MultiHead<T> {
    /// All zero.
    pub fn new(shape: &Shape, dims: &Dims) -> Self {
        let width = dims.head_dim as usize;
        let (heads, kv_heads) = (dims.heads as usize, dims.kv_heads() as usize);
        let norm = || dims.qk_norm.then(|| RmsNorm::new(width));
        Self {
            qkv: Linear::new(shape.hidden(), (heads + 2 * kv_heads) * width, dims.qkv_bias),
            q_norm: norm(),
            k_norm: norm(),
            sinks: dims.sinks.then(|| Tensor::vector(Role::Bias, heads)),
            output: Linear::new(heads * width, shape.hidden(), dims.output_bias),
        }
    }

    /// `x`: normed stream; `layer` sets the window.
    pub fn forward(&self, shape: &Shape, dims: &Dims, layer: u32, x: &Matrix<T>) -> (Matrix<T>, Saved<T>) {
        let core = core(shape, dims, layer);
        let formats = shape.policy.products();
        let (qkv, saved_qkv) = self.qkv.forward(formats, x);
        let [q, k, v] = split(&core, &qkv);
        let (q, q_norm) = head_norm(shape, self.q_norm.as_ref(), q, core.qk_dim);
        let (k, k_norm) = head_norm(shape, self.k_norm.as_ref(), k, core.qk_dim);
        let rotation = Rotation::new(shape, core.qk_dim);
        let turned = |mut x: Matrix<T>, heads| {
            rotation.turn(&mut x, whole_heads(&core, heads));
            in_format(&core, x)
        };
        let (q, k, v) = (turned(q, core.heads), turned(k, core.kv_heads), in_format(&core, v));
        let (o, saved_core) = core.forward(q, k, v, self.sinks.as_ref().map(|sinks| &sinks.values));
        let (y, output) = self.output.forward(shape.policy.attention_output(), &o);
        (y, Saved { qkv: saved_qkv, q_norm, k_norm, core: saved_core, output })
    }

    /// From the gradient of the result to that of `x`.
    pub fn input_gradient(
        &self,
        shape: &Shape,
        dims: &Dims,
        layer: u32,
        saved: Saved<T>,
        dy: &Matrix<T>,
    ) -> (Matrix<T>, ForWeights<T>) {
        let core = core(shape, dims, layer);
        let formats = shape.policy.products();
        let (d_o, output) = self.output.input_gradient(shape.policy.attention_output(), saved.output, dy);
        let sinks = self.sinks.as_ref().map(|sinks| &sinks.values);
        let gradients = core.input_gradient(&saved.core, &in_format(&core, d_o), sinks);
        let rotation = Rotation::new(shape, core.qk_dim);
        let turned_back = |mut x: Matrix<T>, heads| {
            rotation.turn_back(&mut x, whole_heads(&core, heads));
            x
        };
        let (dq, dk) = (turned_back(gradients.q, core.heads), turned_back(gradients.k, core.kv_heads));
        let (dq, q_norm) = head_norm_gradient(shape, self.q_norm.as_ref(), saved.q_norm, dq, core.qk_dim);
        let (dk, k_norm) = head_norm_gradient(shape, self.k_norm.as_ref(), saved.k_norm, dk, core.qk_dim);
        let d_qkv = Matrix::beside(&[&dq, &dk, &gradients.v]);
        let (dx, qkv) = self.qkv.input_gradient(formats, saved.qkv, &d_qkv);
        (dx, ForWeights { qkv, q_norm, k_norm, sinks: gradients.sinks, output })
    }

    /// Adds to the gradients, which `self` has the place of.
    pub fn accumulate(&mut self, shape: &Shape, needed: &ForWeights<T>) {
        let formats = shape.policy.products();
        self.output.accumulate(shape.policy.attention_output(), &needed.output);
        self.qkv.accumulate(formats, &needed.qkv);
        for (norm, needed) in [(&mut self.q_norm, &needed.q_norm), (&mut self.k_norm, &needed.k_norm)] {
            if let (Some(norm), Some(needed)) = (norm, needed) {
                norm.accumulate(formats.gradients, needed);
            }
        }
        if let Some(sinks) = &mut self.sinks {
            sinks.accumulate(&needed.sinks, formats.gradients);
        }
    }
}

fn core(shape: &Shape, dims: &Dims, layer: u32) -> Core {
    let width = dims.head_dim as usize;
    Core {
        heads: dims.heads as usize,
        kv_heads: dims.kv_heads() as usize,
        qk_dim: width,
        value_dim: width,
        sequence: shape.sequence,
        window: dims.window.as_ref().filter(|window| window.layers.contains(layer)).map(|window| window.size as usize),
        format: shape.policy.core(),
    }
}

fn split<T: Real>(core: &Core, qkv: &Matrix<T>) -> [Matrix<T>; 3] {
    let (q, kv) = (core.heads * core.qk_dim, core.kv_heads * core.qk_dim);
    [qkv.columns_of(0..q), qkv.columns_of(q..q + kv), qkv.columns_of(q + kv..q + 2 * kv)]
}

/// Heads that are rotated in all columns.
fn whole_heads(core: &Core, heads: usize) -> Heads {
    Heads { heads, stride: core.qk_dim, offset: 0 }
}

fn in_format<T: Real>(core: &Core, mut x: Matrix<T>) -> Matrix<T> {
    round(&mut x, core.format, Tiles::Rows);
    x
}

/// The norm of each head, if there is one.
fn head_norm<T: Real>(
    shape: &Shape,
    norm: Option<&RmsNorm<T>>,
    x: Matrix<T>,
    width: usize,
) -> (Matrix<T>, Option<rmsnorm::Saved<T>>) {
    let Some(norm) = norm else { return (x, None) };
    let (rows, columns) = (x.rows(), x.columns());
    let heads = x.reshaped(rows * columns / width, width);
    let (y, saved) = norm.forward(shape.norm_epsilon, shape.policy.stream(), heads);
    (y.reshaped(rows, columns), Some(saved))
}

fn head_norm_gradient<T: Real>(
    shape: &Shape,
    norm: Option<&RmsNorm<T>>,
    saved: Option<rmsnorm::Saved<T>>,
    dy: Matrix<T>,
    width: usize,
) -> (Matrix<T>, Option<rmsnorm::ForWeights<T>>) {
    let (Some(norm), Some(saved)) = (norm, saved) else { return (dy, None) };
    let (rows, columns) = (dy.rows(), dy.columns());
    let heads = dy.reshaped(rows * columns / width, width);
    let (dx, needed) = norm.input_gradient(shape.policy.stream(), saved, &heads);
    (dx.reshaped(rows, columns), Some(needed))
}
