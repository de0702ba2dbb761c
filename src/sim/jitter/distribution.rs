//! Random factors, the slowest of several, and the numbers that they are drawn with. All of it has the same bits on every machine.

/// Equally likely factors that stand for a distribution: each the middle of its share.
const FACTORS: usize = 1 << FACTOR_BITS;
const FACTOR_BITS: u32 = 14;

/// Halvings of the interval in which a quantile is looked for: more than a double has digits.
const HALVINGS: u32 = 64;

/// The largest of `of` independent lognormal factors with mean 1.
pub(super) struct Factors(Vec<f64>);

impl Factors {
    /// `cv`: the coefficient of variation of each factor, its standard deviation over its mean. With 0 all are 1.
    pub fn slowest(cv: f64, of: u64) -> Self {
        if cv == 0.0 || of == 0 {
            return Self(vec![if of == 0 { 0.0 } else { 1.0 }]);
        }
        // ln f is normal with this variance, and mean -variance/2.
        let variance = libm::log1p(cv * cv);
        let (deviation, mean) = (variance.sqrt(), -variance / 2.0);
        let share = |at: usize| (at as f64 + 0.5) / FACTORS as f64;
        Self((0..FACTORS).map(|at| libm::exp(mean + deviation * largest_normal(share(at), of))).collect())
    }

    pub fn draw(&self, numbers: &mut Numbers) -> f64 {
        match self.0[..] {
            [only] => only,
            _ => self.0[(numbers.next() >> (u64::BITS - FACTOR_BITS)) as usize],
        }
    }
}

impl Factors {
    /// So many draws at once, in random order, one from each of as many equal shares of the distribution: their mean is the distribution's,
    /// whereas that of independent draws is off. (Of several things drawn so it is Latin hypercube sampling: McKay, Beckman and Conover, 1979.)
    pub fn of_each_share(&self, count: usize, numbers: &mut Numbers) -> Vec<f64> {
        let all = &self.0;
        // In the middle of its share lies what is between two factors.
        let middle = |at: usize| {
            let above = (2 * at + 1) * all.len() / (2 * count);
            (all[above.saturating_sub(1)] + all[above.min(all.len() - 1)]) / 2.0
        };
        let mut factors: Vec<f64> = (0..count).map(middle).collect();
        for end in (1..=count).rev() {
            factors.swap(end - 1, numbers.below(end));
        }
        factors
    }
}

/// Below what the largest of `of` standard normal numbers is with the probability `share`.
fn largest_normal(share: f64, of: u64) -> f64 {
    let wanted = libm::log(share) / of as f64;
    let (mut low, mut high) = (-10.0, 10.0);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        // ln of the probability that one is below.
        let below = libm::log1p(-libm::erfc(middle / std::f64::consts::SQRT_2) / 2.0);
        *(if below < wanted { &mut low } else { &mut high }) = middle;
    }
    (low + high) / 2.0
}

/// Numbers that look random: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(super) struct Numbers(u64);

impl Numbers {
    /// The `stream`-th sequence of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut of_seed = Self(seed);
        let mut of_stream = Self(of_seed.next() ^ stream);
        Self(of_stream.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1, without 1.
    pub fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 to `end`, without `end`.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }
}

/// What the largest of several draws is, from draws of one: the mean over all choices of so many of them, which is unbiased.
pub(super) struct Largest {
    /// Draws, ascending, each with the probability that the largest is this one or a lower one.
    below: Vec<(f64, f64)>,
}

impl Largest {
    /// The largest of `of`; at most as many as there are draws.
    pub fn new(mut draws: Vec<f64>, of: u64) -> Self {
        draws.sort_by(f64::total_cmp);
        let mut probability = 1.0;
        let mut below: Vec<(f64, f64)> = Vec::with_capacity(draws.len());
        for (at, draw) in draws.into_iter().enumerate().rev() {
            below.push((draw, probability));
            // All of them are among the first i of M with the probability C(i, n) / C(M, n).
            let among = at as f64 + 1.0;
            probability *= ((among - of as f64) / among).max(0.0);
        }
        below.reverse();
        Self { below }
    }

    /// The least draw that it is at most with the probability `share`.
    pub fn quantile(&self, share: f64) -> f64 {
        let at = self.below.partition_point(|&(_, probability)| probability < share);
        self.below.get(at).or(self.below.last()).map_or(0.0, |&(draw, _)| draw)
    }

    /// Its mean, and its standard deviation.
    pub fn mean(&self) -> (f64, f64) {
        let weights = || {
            let before = std::iter::once(0.0).chain(self.below.iter().map(|&(_, probability)| probability));
            self.below.iter().zip(before).map(|(&(draw, probability), before)| (draw, probability - before))
        };
        let mean: f64 = weights().map(|(draw, weight)| draw * weight).sum();
        let variance: f64 = weights().map(|(draw, weight)| (draw - mean) * (draw - mean) * weight).sum();
        (mean, variance.max(0.0).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(factors: &[f64]) -> (f64, f64) {
        let mean = factors.iter().sum::<f64>() / factors.len() as f64;
        let variance = factors.iter().map(|factor| (factor - mean) * (factor - mean)).sum::<f64>();
        (mean, (variance / factors.len() as f64).sqrt())
    }

    #[test]
    fn factors_have_the_moments_that_are_asked_for() {
        for cv in [0.01, 0.1, 0.5] {
            let (mean, deviation) = moments(&Factors::slowest(cv, 1).0);
            assert!((mean - 1.0).abs() < 1e-3 * cv && (deviation / cv - 1.0).abs() < 5e-3, "{cv}: {mean} {deviation}");
        }
        assert_eq!(Factors::slowest(0.0, 64).0, [1.0]);
        // Expected largest of n standard normal numbers (Harter, "Expected values of normal order statistics", 1961): 1.53875 of 10, 2.50759 of 100.
        for (of, expected) in [(2, 0.56419), (10, 1.53875), (100, 2.50759)] {
            let share = |at: usize| (at as f64 + 0.5) / FACTORS as f64;
            let (mean, _) = moments(&(0..FACTORS).map(|at| largest_normal(share(at), of)).collect::<Vec<f64>>());
            assert!((mean - expected).abs() < 1e-3, "{of}: {mean}");
        }
    }

    #[test]
    fn numbers_are_the_published_sequence() {
        // The first three of the seed 1234567, as the reference implementation (Vigna's `splitmix64.c`) gives them.
        let mut numbers = Numbers(1_234_567);
        let first = [numbers.next(), numbers.next(), numbers.next()];
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn the_largest_of_several_is_what_enumeration_gives() {
        let draws = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6];
        for of in 1..=6_u32 {
            let mut largest = Vec::new();
            for chosen in 0_u32..1 << draws.len() {
                if chosen.count_ones() == of {
                    let picked = (0..draws.len()).filter(|at| chosen >> at & 1 == 1).map(|at| draws[at]);
                    largest.push(picked.fold(0.0, f64::max));
                }
            }
            let (mean, deviation) = moments(&largest);
            let found = Largest::new(draws.to_vec(), u64::from(of));
            assert!((found.mean().0 - mean).abs() < 1e-9 && (found.mean().1 - deviation).abs() < 1e-9, "{of}");
            largest.sort_by(f64::total_cmp);
            for share in [0.05, 0.3, 0.5, 0.9, 0.99] {
                let least = largest[(share * largest.len() as f64).ceil() as usize - 1];
                assert_eq!(found.quantile(share), least, "{share} of the largest of {of}");
            }
        }
    }
}
