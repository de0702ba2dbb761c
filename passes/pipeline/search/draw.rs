//! A fixed stream of numbers for the local searches.

/// Marsaglia's xorshift64, always from the same seed.
pub(super) struct Draw(u64);

impl Draw {
    pub fn new() -> Self {
        // Any number but 0 will do: this is the golden ratio's.
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// From 0 to `limit` - 1; `limit` is at least 1.
    pub fn below(&mut self, limit: usize) -> usize {
        // Below a usize.
        self.below_time(limit as u64) as usize
    }

    /// From 0 to `limit` - 1; `limit` is at least 1.
    pub fn below_time(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// `values` has at least one.
    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}
