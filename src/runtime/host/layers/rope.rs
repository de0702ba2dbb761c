//! Rotary position embedding (Su et al. 2021). Column `i` of a head turns with column `i + half`, as in most checkpoints;
//! turning neighbours instead is the same model with the columns of its projections in another order.

use crate::runtime::host::{Matrix, Real, Shape};

/// The angles of a width, for every position of a sequence.
pub struct Rotation<T> {
    /// Positions × half: cosine and sine.
    angles: Vec<(T, T)>,
    half: usize,
    sequence: usize,
}

/// Where the rotated columns are in a row: for each of `heads` heads, each `stride` columns wide, from `offset` on.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Heads of a row.
    pub heads: usize,
    /// Columns of a head.
    pub stride: usize,
    /// Columns of a head that stand before.
    pub offset: usize,
}

impl<T: Real> Rotation<T> {
    /// Of `width` columns; if that is odd, the last one does not turn.
    pub fn new(shape: &Shape, width: usize) -> Self {
        let half = width / 2;
        let frequency = |pair: usize| shape.rope_base.powf(-2.0 * pair as f64 / width as f64);
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        let angle = |position: usize| frequencies.iter().map(move |frequency| position as f64 * frequency);
        let turn = |angle: f64| (T::of(angle.cos()), T::of(angle.sin()));
        let angles = (0..shape.sequence).flat_map(angle).map(turn).collect();
        Self { angles, half, sequence: shape.sequence }
    }

    /// Turns each row of `x` to its position in its sequence.
    pub fn turn(&self, x: &mut Matrix<T>, heads: Heads) {
        self.turn_by(x, heads, |sine| sine);
    }

    /// Turns back: the gradient of the input from that of the result.
    pub fn turn_back(&self, x: &mut Matrix<T>, heads: Heads) {
        self.turn_by(x, heads, |sine| -sine);
    }

    fn turn_by(&self, x: &mut Matrix<T>, heads: Heads, direction: impl Fn(T) -> T) {
        for row in 0..x.rows() {
            let position = row % self.sequence;
            let angles = &self.angles[position * self.half..(position + 1) * self.half];
            for head in x.row_mut(row).chunks_exact_mut(heads.stride).take(heads.heads) {
                let (first, second) = head[heads.offset..].split_at_mut(self.half);
                for ((a, b), &(cosine, sine)) in first.iter_mut().zip(second).zip(angles) {
                    let sine = direction(sine);
                    (*a, *b) = (*a * cosine - *b * sine, *a * sine + *b * cosine);
                }
            }
        }
    }
}
