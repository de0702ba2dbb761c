//! Numbers with units. Integers throughout, so that the same inputs give the same bytes on any machine.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};

use serde::{Deserialize, Serialize};

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Nothing of it.
            pub const ZERO: Self = Self(0);

            /// `self - other`, or zero where that would be negative.
            #[must_use]
            pub fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// The value as a float, for ratios and reports.
            pub fn as_f64(self) -> f64 {
                self.0 as f64
            }
        }

        // Saturating: quantities come from files. A sum past 2^64 stays at the largest value, which every limit refuses.
        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                debug_assert!(self >= other, concat!(stringify!($name), " would be negative"));
                self.saturating_sub(other)
            }
        }

        impl Mul<u64> for $name {
            type Output = Self;
            fn mul(self, times: u64) -> Self {
                Self(self.0.saturating_mul(times))
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self::ZERO, Add::add)
            }
        }

        impl<'a> Sum<&'a $name> for $name {
            fn sum<I: Iterator<Item = &'a Self>>(iter: I) -> Self {
                iter.copied().sum()
            }
        }
    };
}

quantity! {
    /// A span or a moment of time, in nanoseconds. In a timetable made from plain numbers it counts that timetable's own
    /// smallest unit instead (see `cli::schedule`).
    Nanos
}
quantity! {
    /// An amount of memory or of data moved, in bytes.
    Bytes
}
impl Bytes {
    /// Whether there is nothing. As serde asks it.
    pub(crate) fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

quantity! {
    /// Floating-point operations (a multiply-add is two).
    Flops
}

impl Nanos {
    /// From seconds, rounded to the nearest nanosecond. Negative and NaN become zero, too large becomes the largest.
    pub fn from_secs(seconds: f64) -> Self {
        Self((seconds * 1e9).round() as u64)
    }

    /// In seconds.
    pub fn secs(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// In milliseconds.
    pub fn millis(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ns if ns < 10_000 => write!(f, "{ns} ns"),
            ns if ns < 10_000_000 => write!(f, "{:.1} µs", ns as f64 / 1e3),
            ns if ns < 10_000_000_000 => write!(f, "{:.1} ms", ns as f64 / 1e6),
            ns => write!(f, "{:.2} s", ns as f64 / 1e9),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b if b < 10_000 => write!(f, "{b} B"),
            b if b < 10_000_000 => write!(f, "{:.1} kB", b as f64 / 1e3),
            b if b < 1_000_000_000 => write!(f, "{:.1} MB", b as f64 / 1e6),
            b => write!(f, "{:.2} GB", b as f64 / 1e9),
        }
    }
}

impl fmt::Display for Flops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n < 1_000_000_000 => write!(f, "{:.3} MFLOP", n as f64 / 1e6),
            n if n < 1_000_000_000_000 => write!(f, "{:.3} GFLOP", n as f64 / 1e9),
            n => write!(f, "{:.3} TFLOP", n as f64 / 1e12),
        }
    }
}
