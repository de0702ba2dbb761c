//! Random numbers by counter: the number at a place depends on key and place alone.

use sha2::{Digest as _, Sha256};

/// A stream of random numbers.
pub struct Random {
    key: u64,
}

impl Random {
    /// The stream of `name`; streams of other names or seeds have nothing to do with it.
    pub fn new(seed: u64, name: &str) -> Self {
        let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
        Self { key: digest.iter().take(8).fold(0, |key, &byte| key << 8 | u64::from(byte)) }
    }

    /// Number `index`, all 64 bits random: the output function of SplitMix64 (Steele et al. 2014) at that step.
    pub fn bits(&self, index: u64) -> u64 {
        let mut bits = self.key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// Normal number `index`, mean 0, deviation 1, cut at 6: the sum of twelve uniform ones. Made of integers, so that it has
    /// the same bits everywhere.
    pub fn normal(&self, index: u64) -> f64 {
        let words = [0, 1, 2].map(|word| self.bits(index.wrapping_mul(3).wrapping_add(word)));
        let sum: u64 = words.iter().flat_map(|word| [0, 16, 32, 48].map(|shift| word >> shift & 0xffff)).sum();
        // Each of the twelve is in the middle of one of 2^16 parts of the unit interval: they sum to 6 on average.
        (sum as f64 + 6.0) / 65536.0 - 6.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_is_as_published() {
        // First outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) for the seed 1234567.
        let random = Random { key: 1_234_567 };
        let first: Vec<u64> = (0..3).map(|index| random.bits(index)).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let random = Random::new(0, "a");
        let count = 200_000;
        let moment = |power: i32| (0..count).map(|index| random.normal(index).powi(power)).sum::<f64>() / count as f64;
        assert!(moment(1).abs() < 0.01);
        assert!((moment(2) - 1.0).abs() < 0.01);
        assert!(moment(3).abs() < 0.03);
        // The fourth of a sum of twelve uniform numbers is 3 - 6/60.
        assert!((moment(4) - 2.9).abs() < 0.05);
    }

    #[test]
    fn streams_differ_by_seed_and_name() {
        let first = |seed, name| Random::new(seed, name).bits(0);
        assert_ne!(first(0, "a"), first(0, "b"));
        assert_ne!(first(0, "a"), first(1, "a"));
    }
}
