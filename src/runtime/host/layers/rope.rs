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
        Self::of(width, shape.sequence, shape.rope_base)
    }

    fn of(width: usize, sequence: usize, base: f64) -> Self {
        let half = width / 2;
        let frequencies: Vec<f64> = (0..half).map(|pair| base.powf(-2.0 * pair as f64 / width as f64)).collect();
        let angle = |position: usize| frequencies.iter().map(move |frequency| position as f64 * frequency);
        let turn = |angle: f64| (T::of(angle.cos()), T::of(angle.sin()));
        Self { angles: (0..sequence).flat_map(angle).map(turn).collect(), half, sequence }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::host::tensor::dot;

    /// Rows of `heads`, all alike.
    fn alike(rows: usize, heads: Heads, seed: f64) -> Matrix<f64> {
        let columns = heads.heads * heads.stride;
        let row: Vec<f64> = (0..columns).map(|column| (column as f64 * seed + seed).sin()).collect();
        Matrix::new(rows, columns, row.repeat(rows))
    }

    fn rotation(width: usize) -> Rotation<f64> {
        Rotation::of(width, 5, 100.0)
    }

    #[test]
    fn products_depend_on_the_distance_alone() {
        let heads = Heads { heads: 1, stride: 6, offset: 0 };
        let (mut q, mut k) = (alike(5, heads, 0.3), alike(5, heads, 0.8));
        rotation(6).turn(&mut q, heads);
        rotation(6).turn(&mut k, heads);
        let at = |query: usize, key: usize| dot(q.row(query), k.row(key));
        assert!((at(3, 1) - at(4, 2)).abs() < 1e-12);
        assert!((at(3, 1) - at(3, 2)).abs() > 1e-3);
    }

    #[test]
    fn turning_back_undoes_it_and_nothing_else_turns() {
        // Two sequences; of five columns behind two others, four turn.
        let heads = Heads { heads: 2, stride: 7, offset: 2 };
        let x = alike(10, heads, 0.6);
        let mut turned = x.clone();
        rotation(5).turn(&mut turned, heads);
        for row in 0..10 {
            for column in 0..14 {
                let turns = row % 5 > 0 && (2..6).contains(&(column % 7));
                assert_eq!(turned.row(row)[column] != x.row(row)[column], turns, "row {row}, column {column}");
            }
        }
        rotation(5).turn_back(&mut turned, heads);
        assert!(turned.values().iter().zip(x.values()).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}
