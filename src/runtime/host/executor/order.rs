//! Which of the things that a GPU can do comes next.

use crate::runtime::host::random::Random;
use crate::runtime::world::Gpu;

/// The order in which GPUs do what streams and events allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// What comes first in the list.
    List,
    /// Anything, at random: for tests. The same seed does not always give the same order, since what can be done depends on how
    /// far other GPUs have come. Results must not depend on it.
    Random(u64),
}

/// Chooses for one GPU.
pub struct Chooser {
    random: Option<Random>,
    choices: u64,
}

impl Chooser {
    /// For a step of a GPU.
    pub fn new(order: Order, gpu: Gpu) -> Self {
        let random = match order {
            Order::List => None,
            Order::Random(seed) => Some(Random::new(seed, &gpu.to_string())),
        };
        Self { random, choices: 0 }
    }

    /// One of several, the least or a random one.
    pub fn choose<M: Ord>(&mut self, mut from: Vec<M>) -> Option<M> {
        from.sort_unstable();
        let at = match &self.random {
            Some(random) if !from.is_empty() => {
                self.choices += 1;
                (random.bits(self.choices) % from.len() as u64) as usize
            }
            _ => 0,
        };
        (at < from.len()).then(|| from.swap_remove(at))
    }
}
