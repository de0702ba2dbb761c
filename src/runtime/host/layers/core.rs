//! The attention core: scores, softmax, weighted sum, causal within each sequence. As FlashAttention does (Dao et al. 2022)
//! it saves the logarithms of the softmax's sums instead of the weights, and makes those again for the gradient.

use std::ops::Range;

use crate::runtime::host::precision::{Format, Tiles, round};
use crate::runtime::host::product::{multiply, product};
use crate::runtime::host::tensor::dot;
use crate::runtime::host::{Matrix, Real};

/// Dimensions of the core.
#[derive(Clone, Copy, Debug)]
pub struct Core {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads that stand together.
    pub kv_heads: usize,
    /// Width of a head's q and k.
    pub qk_dim: usize,
    /// Width of a head's v.
    pub value_dim: usize,
    /// Tokens of a sequence: each attends to itself and to those before it.
    pub sequence: usize,
    /// Tokens that a query sees, itself included; `None`: all.
    pub window: Option<usize>,
    /// Format of q, k, v, of the attention weights and of the result.
    pub format: Format,
}

/// What the gradient needs.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    q: Matrix<T>,
    k: Matrix<T>,
    v: Matrix<T>,
    o: Matrix<T>,
    /// Tokens × heads.
    log_sums: Matrix<T>,
}

/// Gradients of the inputs.
pub struct Gradients<T> {
    /// As q.
    pub q: Matrix<T>,
    /// As k.
    pub k: Matrix<T>,
    /// As v.
    pub v: Matrix<T>,
    /// As the sinks; zero where there are none.
    pub sinks: Matrix<T>,
}

impl Core {
    /// `q`: tokens × heads · qk; `k`, `v`: tokens × kv heads · (qk, value), all in the core's format; the result: tokens × heads
    /// · value. `sinks`: one logit per head that takes part in the softmax and gives nothing (gpt-oss).
    pub fn forward<T: Real>(
        &self,
        q: Matrix<T>,
        k: Matrix<T>,
        v: Matrix<T>,
        sinks: Option<&Matrix<T>>,
    ) -> (Matrix<T>, Saved<T>) {
        let mut o = Matrix::zeros(q.rows(), self.heads * self.value_dim);
        let mut log_sums = Matrix::zeros(q.rows(), self.heads);
        for rows in self.sequences(q.rows()) {
            for head in 0..self.heads {
                let mut weights = self.scores(&q, &k, &rows, head);
                for index in 0..rows.len() {
                    let sink = sinks.map(|sinks| sinks.values()[head]);
                    log_sums.row_mut(rows.start + index)[head] =
                        softmax(weights.row_mut(index), self.seen(index), sink);
                }
                round(&mut weights, self.format, Tiles::Rows);
                let value = v.block(rows.clone(), self.value_of(self.kv_head(head)));
                multiply(weights.view(), value, T::ZERO, o.block_mut(rows.clone(), self.value_of(head)));
            }
        }
        round(&mut o, self.format, Tiles::Rows);
        (o.clone(), Saved { q, k, v, o, log_sums })
    }

    /// With weights P, `dP = do vᵀ` and `D` the row sums of `do ∘ o`: `dS = P ∘ (dP - D)`, from which the others follow.
    pub fn input_gradient<T: Real>(
        &self,
        saved: &Saved<T>,
        d_o: &Matrix<T>,
        sinks: Option<&Matrix<T>>,
    ) -> Gradients<T> {
        let Saved { q, k, v, o, log_sums } = saved;
        let scale = self.scale();
        let zeros = |like: &Matrix<T>| Matrix::zeros(like.rows(), like.columns());
        let mut gradients = Gradients { q: zeros(q), k: zeros(k), v: zeros(v), sinks: Matrix::zeros(1, self.heads) };
        for rows in self.sequences(q.rows()) {
            for head in 0..self.heads {
                let kv_head = self.kv_head(head);
                let (query, key) = (self.query_of(head), self.query_of(kv_head));
                let (value, result) = (self.value_of(kv_head), self.value_of(head));
                let mut weights = self.scores(q, k, &rows, head);
                let mut scores =
                    product(d_o.block(rows.clone(), result.clone()), v.block(rows.clone(), value.clone()).transposed());
                for index in 0..rows.len() {
                    let row = rows.start + index;
                    let along = dot(&d_o.row(row)[result.clone()], &o.row(row)[result.clone()]);
                    let log_sum = log_sums.row(row)[head];
                    let (weights, scores) = (weights.row_mut(index), scores.row_mut(index));
                    for (column, (weight, score)) in weights.iter_mut().zip(scores).enumerate() {
                        let seen = self.seen(index).contains(&column);
                        *weight = if seen { (*weight - log_sum).exp() } else { T::ZERO };
                        *score = *weight * (*score - along) * scale;
                    }
                    if let Some(sinks) = sinks {
                        gradients.sinks.values_mut()[head] -= (sinks.values()[head] - log_sum).exp() * along;
                    }
                }
                round(&mut weights, self.format, Tiles::Rows);
                round(&mut scores, self.format, Tiles::Rows);
                let d_o = d_o.block(rows.clone(), result);
                multiply(weights.transposed(), d_o, T::ONE, gradients.v.block_mut(rows.clone(), value));
                let (q, k) = (q.block(rows.clone(), query.clone()), k.block(rows.clone(), key.clone()));
                multiply(scores.view(), k, T::ZERO, gradients.q.block_mut(rows.clone(), query));
                multiply(scores.transposed(), q, T::ONE, gradients.k.block_mut(rows.clone(), key));
            }
        }
        for gradient in [&mut gradients.q, &mut gradients.k, &mut gradients.v] {
            round(gradient, self.format, Tiles::Rows);
        }
        gradients
    }

    /// Scaled scores of one head in one sequence: queries × keys, also where a query does not see the key.
    fn scores<T: Real>(&self, q: &Matrix<T>, k: &Matrix<T>, rows: &Range<usize>, head: usize) -> Matrix<T> {
        let query = q.block(rows.clone(), self.query_of(head));
        let key = k.block(rows.clone(), self.query_of(self.kv_head(head)));
        let mut scores = product(query, key.transposed());
        let scale = self.scale();
        scores.values_mut().iter_mut().for_each(|score| *score *= scale);
        scores
    }

    fn scale<T: Real>(&self) -> T {
        T::ONE / T::of(self.qk_dim as f64).sqrt()
    }

    /// Rows of each sequence.
    fn sequences(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let length = self.sequence;
        (0..rows / length).map(move |index| index * length..(index + 1) * length)
    }

    /// Keys that the query at `position` of a sequence sees.
    fn seen(&self, position: usize) -> Range<usize> {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// Columns of a head in q or k.
    fn query_of(&self, head: usize) -> Range<usize> {
        head * self.qk_dim..(head + 1) * self.qk_dim
    }

    /// Columns of a head in v or o.
    fn value_of(&self, head: usize) -> Range<usize> {
        head * self.value_dim..(head + 1) * self.value_dim
    }
}

/// Softmax in place over what is `seen`, and over the sink; zero elsewhere. Returns the logarithm of the sum.
fn softmax<T: Real>(scores: &mut [T], seen: Range<usize>, sink: Option<T>) -> T {
    let all = scores[seen.clone()].iter().copied().chain(sink);
    let largest = all.clone().fold(scores[seen.start], T::max);
    let log_sum = largest + all.map(|score| (score - largest).exp()).sum::<T>().ln();
    for (column, score) in scores.iter_mut().enumerate() {
        *score = if seen.contains(&column) { (*score - log_sum).exp() } else { T::ZERO };
    }
    log_sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rows: usize, columns: usize, seed: f64) -> Matrix<f64> {
        Matrix::new(rows, columns, (0..rows * columns).map(|index| (index as f64 * seed + seed).sin()).collect())
    }

    /// The definition, one query at a time.
    fn by_definition(core: &Core, [q, k, v]: [&Matrix<f64>; 3], sinks: Option<&Matrix<f64>>) -> Matrix<f64> {
        let mut o = Matrix::zeros(q.rows(), core.heads * core.value_dim);
        for query in 0..q.rows() {
            let start = query / core.sequence * core.sequence;
            let first = start.max((query + 1).saturating_sub(core.window.unwrap_or(usize::MAX)));
            for head in 0..core.heads {
                let kv_head = head * core.kv_heads / core.heads;
                let score = |key: usize| {
                    let product: f64 = (0..core.qk_dim)
                        .map(|i| q.row(query)[head * core.qk_dim + i] * k.row(key)[kv_head * core.qk_dim + i])
                        .sum();
                    (product / (core.qk_dim as f64).sqrt()).exp()
                };
                let sink = sinks.map_or(0.0, |sinks| sinks.values()[head].exp());
                let sum: f64 = (first..=query).map(score).sum::<f64>() + sink;
                for column in 0..core.value_dim {
                    o.row_mut(query)[head * core.value_dim + column] = (first..=query)
                        .map(|key| score(key) / sum * v.row(key)[kv_head * core.value_dim + column])
                        .sum();
                }
            }
        }
        o
    }

    #[test]
    fn is_the_definition() {
        for (kv_heads, window, sinks) in [(4, None, false), (2, Some(3), false), (1, None, true), (2, Some(1), true)] {
            let core = Core { heads: 4, kv_heads, qk_dim: 3, value_dim: 2, sequence: 5, window, format: None };
            let (q, k, v) = (noise(10, 12, 0.7), noise(10, 3 * kv_heads, 1.3), noise(10, 2 * kv_heads, 2.1));
            let sinks = sinks.then(|| noise(1, 4, 0.4));
            let expected = by_definition(&core, [&q, &k, &v], sinks.as_ref());
            let (o, _) = core.forward(q, k, v, sinks.as_ref());
            for (ours, expected) in o.values().iter().zip(expected.values()) {
                assert!((ours - expected).abs() < 1e-12);
            }
        }
    }
}
