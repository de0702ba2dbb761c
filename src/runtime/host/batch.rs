//! The tokens of a micro-batch.

use super::Shape;
use super::random::Random;
use crate::error::{Error, Result};

/// Sequences of equal length, each with the tokens that follow it: one that the last position predicts, and one more for
/// each MTP module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Positions of a sequence.
    length: usize,
    /// By sequence: `length` + 1 + MTP modules.
    sequences: Vec<Vec<u32>>,
}

impl Batch {
    /// From sequences with the tokens that follow them.
    ///
    /// # Errors
    /// If one is not as long as `shape` needs, or has a token outside the vocabulary.
    pub fn new(shape: &Shape, sequences: Vec<Vec<u32>>) -> Result<Self> {
        let (width, vocabulary) = (width(shape), shape.model.vocabulary);
        for (number, sequence) in sequences.iter().enumerate() {
            if sequence.len() != width {
                return Err(Error::new(format!("sequence {number} has {} tokens", sequence.len()))
                    .help(format!("{width} are needed: with those that the last position predicts")));
            }
            if let Some(token) = sequence.iter().find(|&&token| token >= vocabulary) {
                return Err(Error::new(format!("sequence {number} has the token {token}"))
                    .help(format!("tokens are numbered from 0 to {}", vocabulary - 1)));
            }
        }
        Ok(Self { length: shape.sequence, sequences })
    }

    /// `count` sequences of random tokens for `shape`, number `number` of the run with this seed.
    pub fn random(shape: &Shape, count: usize, seed: u64, number: u64) -> Self {
        let width = width(shape);
        let random = Random::new(seed, &format!("tokens.{number}"));
        let token = |place: usize| (random.bits(place as u64) % u64::from(shape.model.vocabulary)) as u32;
        let sequence = |index: usize| (index * width..(index + 1) * width).map(token).collect();
        Self { length: shape.sequence, sequences: (0..count).map(sequence).collect() }
    }

    /// Both, one after the other.
    pub fn joined(&self, other: &Self) -> Self {
        Self { length: self.length, sequences: [self.sequences.clone(), other.sequences.clone()].concat() }
    }

    /// Positions, of all sequences together.
    pub fn tokens(&self) -> usize {
        self.length * self.sequences.len()
    }

    /// By position, the token that stands `ahead` further on. The model reads those 0 ahead and predicts those 1 ahead; MTP
    /// module `k` reads those `k + 1` ahead too and predicts those `k + 2` ahead.
    pub fn ahead(&self, ahead: usize) -> Vec<u32> {
        self.sequences.iter().flat_map(|sequence| &sequence[ahead..ahead + self.length]).copied().collect()
    }
}

/// Tokens of a sequence with those that follow.
fn width(shape: &Shape) -> usize {
    shape.sequence + shape.losses()
}
