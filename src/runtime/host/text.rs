//! Text to train on: its bytes are the tokens.

use sha2::{Digest as _, Sha256};

use super::Shape;
use super::batch::Batch;
use super::random::Random;
use crate::error::{Error, Result};
use crate::plan::Plan;

/// Tokens that bytes can be.
const BYTES: u32 = 256;

/// A text.
pub struct Text {
    bytes: Vec<u8>,
}

impl Text {
    /// For models of this shape.
    ///
    /// # Errors
    /// If the vocabulary has not all bytes, or the text is shorter than a sequence with the tokens that follow it.
    pub fn new(shape: &Shape, bytes: Vec<u8>) -> Result<Self> {
        let vocabulary = shape.model.vocabulary;
        if vocabulary < BYTES {
            return Err(Error::new(format!(
                "the model has a vocabulary of {vocabulary} tokens, but the bytes of a text are {BYTES} different ones"
            ))
            .help(format!("train a model with `vocabulary: {BYTES}` or more, such as examples/tiny")));
        }
        let width = shape.sequence + shape.losses();
        if bytes.len() < width {
            return Err(Error::new(format!("the text has {} bytes, fewer than a sequence", bytes.len()))
                .help(format!("{width} are needed: a sequence, and the tokens that follow it")));
        }
        Ok(Self { bytes })
    }

    /// What comes with the program: Genesis 1 to 25 (`examples/text`).
    ///
    /// # Errors
    /// As [`Text::new`].
    pub fn genesis(shape: &Shape) -> Result<Self> {
        Self::new(shape, include_bytes!("../../../examples/text/genesis.txt").to_vec())
    }

    /// SHA-256, in hex.
    pub fn digest(&self) -> String {
        Sha256::digest(&self.bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The data of a step of a plan, by replica: sequences from random places, which depend on `seed` and the step alone.
    ///
    /// # Errors
    /// If `shape` is another than the one that the text is for.
    pub fn step(&self, shape: &Shape, plan: &Plan, seed: u64, step: u64) -> Result<Vec<Vec<Batch>>> {
        let random = Random::new(seed, &format!("text.{step}"));
        let (sequences, micro_batches) = (plan.origin.micro_batch_size, plan.layout.micro_batches);
        let width = shape.sequence + shape.losses();
        let places = (self.bytes.len() - width + 1) as u64;
        let sequence = |number: u64| {
            let first = (random.bits(number) % places) as usize;
            self.bytes[first..first + width].iter().map(|&byte| u32::from(byte)).collect()
        };
        let batch = |number: u64| {
            let numbers = (0..u64::from(sequences)).map(|k| number * u64::from(sequences) + k);
            Batch::new(shape, numbers.map(sequence).collect())
        };
        let replica = |replica: u32| {
            let first = u64::from(replica) * u64::from(micro_batches);
            (0..u64::from(micro_batches)).map(|k| batch(first + k)).collect()
        };
        (0..plan.origin.dp).map(replica).collect()
    }
}
