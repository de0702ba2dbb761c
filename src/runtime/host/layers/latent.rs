//! Multi-head latent attention (DeepSeek-V2 report, section 2.1): k and v come from a narrow latent that all heads share,
//! q from one of its own; part of q and k is rotated, and that part of k is one for all heads.

use super::core::{self, Core};
use super::linear::{self, Linear};
use super::rmsnorm::{self, RmsNorm};
use super::rope::{Heads, Rotation};
use crate::job::model::Mla as Dims;
use crate::runtime::host::parameters::parameters;
use crate::runtime::host::precision::{Tiles, round};
use crate::runtime::host::tensor::add_to;
use crate::runtime::host::{Matrix, Real, Shape};

parameters! {
    /// Projections down to the latents, norms of these, projections up to the heads.
    pub struct Latent {
        /// To the query's latent; absent where q comes straight from the stream.
        pub q_down: Option<Linear<T>>,
        /// Of that latent.
        pub q_norm: Option<RmsNorm<T>>,
        /// To q: each head's columns without position, then those with.
        pub q_up: Linear<T>,
        /// To the latent of k and v, then the rotated part of k.
        pub kv_down: Linear<T>,
        /// Of that latent.
        pub kv_norm: RmsNorm<T>,
        /// To each head's k without position, then its v.
        pub kv_up: Linear<T>,
        /// From the heads' results.
        pub output: Linear<T>,
    }
}

/// What the gradient needs.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    q_latent: Option<(linear::Saved<T>, rmsnorm::Saved<T>)>,
    q_up: linear::Saved<T>,
    kv_down: linear::Saved<T>,
    kv_norm: rmsnorm::Saved<T>,
    kv_up: linear::Saved<T>,
    core: core::Saved<T>,
    output: linear::Saved<T>,
}

/// What the weight gradient needs.
#[derive(Clone, Debug)]
pub struct ForWeights<T> {
    q_latent: Option<(linear::ForWeights<T>, rmsnorm::ForWeights<T>)>,
    q_up: linear::ForWeights<T>,
    kv_down: linear::ForWeights<T>,
    kv_norm: rmsnorm::ForWeights<T>,
    kv_up: linear::ForWeights<T>,
    output: linear::ForWeights<T>,
}

impl<T: Real> Latent<T> {
    /// All zero.
    pub fn new(shape: &Shape, dims: &Dims) -> Self {
        let hidden = shape.hidden();
        let Widths { heads, nope, rope, value, kv_rank } = widths(dims);
        let q_rank = dims.q_rank.map(|rank| rank as usize);
        Self {
            q_down: q_rank.map(|rank| Linear::new(hidden, rank, false)),
            q_norm: q_rank.map(RmsNorm::new),
            q_up: Linear::new(q_rank.unwrap_or(hidden), heads * (nope + rope), false),
            kv_down: Linear::new(hidden, kv_rank + rope, false),
            kv_norm: RmsNorm::new(kv_rank),
            kv_up: Linear::new(kv_rank, heads * (nope + value), false),
            output: Linear::new(heads * value, hidden, false),
        }
    }

    /// `x`: normed stream.
    pub fn forward(&self, shape: &Shape, dims: &Dims, x: &Matrix<T>) -> (Matrix<T>, Saved<T>) {
        let widths = widths(dims);
        let core = widths.core(shape);
        let formats = shape.policy.products();
        let norm = |norm: &RmsNorm<T>, x| norm.forward(shape.norm_epsilon, shape.policy.stream(), x);
        let rotation = Rotation::new(shape, widths.rope);

        let (mut q, q_up, q_latent) = match (&self.q_down, &self.q_norm) {
            (Some(q_down), Some(q_norm)) => {
                let (latent, saved_down) = q_down.forward(formats, x);
                let (normed, saved_norm) = norm(q_norm, latent);
                let (q, saved) = self.q_up.forward(formats, &normed);
                (q, saved, Some((saved_down, saved_norm)))
            }
            _ => {
                let (q, saved) = self.q_up.forward(formats, x);
                (q, saved, None)
            }
        };
        rotation.turn(&mut q, widths.query_heads());

        let (down, kv_down) = self.kv_down.forward(formats, x);
        let mut shared = down.columns_of(widths.kv_rank..down.columns());
        rotation.turn(&mut shared, widths.shared_head());
        let (normed, kv_norm) = norm(&self.kv_norm, down.columns_of(0..widths.kv_rank));
        let (kv, kv_up) = self.kv_up.forward(formats, &normed);
        let (mut k, mut v) = widths.spread(&kv, &shared);

        [&mut q, &mut k, &mut v].into_iter().for_each(|x| round(x, core.format, Tiles::Rows));
        let (o, saved_core) = core.forward(q, k, v, None);
        let (y, output) = self.output.forward(shape.policy.attention_output(), &o);
        (y, Saved { q_latent, q_up, kv_down, kv_norm, kv_up, core: saved_core, output })
    }

    /// From the gradient of the result to that of `x`.
    pub fn input_gradient(
        &self,
        shape: &Shape,
        dims: &Dims,
        saved: Saved<T>,
        dy: &Matrix<T>,
    ) -> (Matrix<T>, ForWeights<T>) {
        let widths = widths(dims);
        let core = widths.core(shape);
        let formats = shape.policy.products();
        let stream = shape.policy.stream();
        let rotation = Rotation::new(shape, widths.rope);

        let (mut d_o, output) = self.output.input_gradient(shape.policy.attention_output(), saved.output, dy);
        round(&mut d_o, core.format, Tiles::Rows);
        let mut gradients = core.input_gradient(&saved.core, &d_o, None);

        let (d_kv, mut d_shared) = widths.gather(&gradients.k, &gradients.v);
        let (d_normed, kv_up) = self.kv_up.input_gradient(formats, saved.kv_up, &d_kv);
        let (d_latent, kv_norm) = self.kv_norm.input_gradient(stream, saved.kv_norm, &d_normed);
        rotation.turn_back(&mut d_shared, widths.shared_head());
        let d_down = Matrix::beside(&[&d_latent, &d_shared]);
        let (mut dx, kv_down) = self.kv_down.input_gradient(formats, saved.kv_down, &d_down);

        rotation.turn_back(&mut gradients.q, widths.query_heads());
        let (d_query, q_up) = self.q_up.input_gradient(formats, saved.q_up, &gradients.q);
        let q_latent = match (&self.q_down, &self.q_norm, saved.q_latent) {
            (Some(q_down), Some(q_norm), Some((saved_down, saved_norm))) => {
                let (d_latent, norm) = q_norm.input_gradient(stream, saved_norm, &d_query);
                let (d_query, down) = q_down.input_gradient(formats, saved_down, &d_latent);
                dx.add(&d_query);
                Some((down, norm))
            }
            _ => {
                dx.add(&d_query);
                None
            }
        };
        (dx, ForWeights { q_latent, q_up, kv_down, kv_norm, kv_up, output })
    }

    /// Adds to the gradients, which `self` has the place of.
    pub fn accumulate(&mut self, shape: &Shape, needed: &ForWeights<T>) {
        let formats = shape.policy.products();
        self.output.accumulate(shape.policy.attention_output(), &needed.output);
        self.kv_up.accumulate(formats, &needed.kv_up);
        self.kv_norm.accumulate(formats.gradients, &needed.kv_norm);
        self.kv_down.accumulate(formats, &needed.kv_down);
        self.q_up.accumulate(formats, &needed.q_up);
        if let (Some(q_down), Some(q_norm), Some((down, norm))) = (&mut self.q_down, &mut self.q_norm, &needed.q_latent)
        {
            q_norm.accumulate(formats.gradients, norm);
            q_down.accumulate(formats, down);
        }
    }
}

/// The dimensions, as sizes.
#[derive(Clone, Copy)]
struct Widths {
    heads: usize,
    nope: usize,
    rope: usize,
    value: usize,
    kv_rank: usize,
}

fn widths(dims: &Dims) -> Widths {
    Widths {
        heads: dims.heads as usize,
        nope: dims.nope_dim as usize,
        rope: dims.rope_dim as usize,
        value: dims.value_dim as usize,
        kv_rank: dims.kv_rank as usize,
    }
}

impl Widths {
    fn core(self, shape: &Shape) -> Core {
        Core {
            heads: self.heads,
            kv_heads: self.heads,
            qk_dim: self.nope + self.rope,
            value_dim: self.value,
            sequence: shape.sequence,
            window: None,
            format: shape.policy.core(),
        }
    }

    fn query_heads(self) -> Heads {
        Heads { heads: self.heads, stride: self.nope + self.rope, offset: self.nope }
    }

    fn shared_head(self) -> Heads {
        Heads { heads: 1, stride: self.rope, offset: 0 }
    }

    /// k and v of all heads, from what is projected up (`kv`) and the `shared` part of k.
    fn spread<T: Real>(self, kv: &Matrix<T>, shared: &Matrix<T>) -> (Matrix<T>, Matrix<T>) {
        let Self { heads, nope, rope, value, .. } = self;
        let mut k = Matrix::zeros(kv.rows(), heads * (nope + rope));
        let mut v = Matrix::zeros(kv.rows(), heads * value);
        for row in 0..kv.rows() {
            let from = kv.row(row).chunks_exact(nope + value);
            let to = k.row_mut(row).chunks_exact_mut(nope + rope).zip(v.row_mut(row).chunks_exact_mut(value));
            for (from, (k, v)) in from.zip(to) {
                k[..nope].copy_from_slice(&from[..nope]);
                k[nope..].copy_from_slice(shared.row(row));
                v.copy_from_slice(&from[nope..]);
            }
        }
        (k, v)
    }

    /// The reverse of [`Self::spread`] for gradients: those of the shared part add up over the heads.
    fn gather<T: Real>(self, dk: &Matrix<T>, dv: &Matrix<T>) -> (Matrix<T>, Matrix<T>) {
        let Self { heads, nope, rope, value, .. } = self;
        let mut d_kv = Matrix::zeros(dk.rows(), heads * (nope + value));
        let mut d_shared = Matrix::zeros(dk.rows(), rope);
        for row in 0..dk.rows() {
            let from = dk.row(row).chunks_exact(nope + rope).zip(dv.row(row).chunks_exact(value));
            for ((dk, dv), to) in from.zip(d_kv.row_mut(row).chunks_exact_mut(nope + value)) {
                to[..nope].copy_from_slice(&dk[..nope]);
                to[nope..].copy_from_slice(dv);
                add_to(d_shared.row_mut(row), &dk[nope..], T::ONE);
            }
        }
        (d_kv, d_shared)
    }
}
