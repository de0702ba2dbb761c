//! The numbers that matrices are made of.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
    + Send
    + Sync
    + 'static
{
    /// The type's name.
    const NAME: &'static str;
    /// Bytes of a number.
    const BYTES: usize;
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;

    /// The nearest number to `value`.
    fn of(value: f64) -> Self;
    /// The same number.
    fn to_f64(self) -> f64;
    /// Adds its bytes, the lowest first.
    fn write(self, bytes: &mut Vec<u8>);
    /// From its bytes, the lowest first; `None` if they are not [`Real::BYTES`].
    fn read(bytes: &[u8]) -> Option<Self>;
    /// e to the power of it.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The larger of two numbers, neither of them NaN.
    fn max(self, other: Self) -> Self;

    /// `c = a b + beta c` on strided matrices: see [`super::product::multiply`], its only caller.
    ///
    /// # Safety
    /// Every element that sizes and strides reach must lie in the allocation of its pointer; those of `c` must be writable,
    /// distinct, and not shared with `a` or `b`.
    #[allow(unsafe_code, reason = "declares the call into matrixmultiply; `product` keeps its contract")]
    unsafe fn gemm(
        sizes: [usize; 3],
        a: Strided<*const Self>,
        b: Strided<*const Self>,
        beta: Self,
        c: Strided<*mut Self>,
    );
}

/// A pointer to the first element of a matrix, with its row and column stride in elements.
#[derive(Clone, Copy)]
pub struct Strided<P> {
    /// The first element.
    pub first: P,
    /// From one row to the next.
    pub row: isize,
    /// From one column to the next.
    pub column: isize,
}

macro_rules! real {
    ($type:ty, $gemm:path) => {
        impl Real for $type {
            const NAME: &'static str = stringify!($type);
            const BYTES: usize = size_of::<$type>();
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;

            fn of(value: f64) -> Self {
                value as Self
            }

            fn to_f64(self) -> f64 {
                f64::from(self)
            }

            fn write(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_le_bytes(bytes.try_into().ok()?))
            }

            fn exp(self) -> Self {
                self.exp()
            }

            fn ln(self) -> Self {
                self.ln()
            }

            fn sqrt(self) -> Self {
                self.sqrt()
            }

            fn max(self, other: Self) -> Self {
                self.max(other)
            }

            #[allow(unsafe_code, reason = "the call into matrixmultiply")]
            unsafe fn gemm(
                [m, k, n]: [usize; 3],
                a: Strided<*const Self>,
                b: Strided<*const Self>,
                beta: Self,
                c: Strided<*mut Self>,
            ) {
                // SAFETY: what the caller promises is what matrixmultiply asks for.
                unsafe {
                    $gemm(
                        m, k, n, 1.0, a.first, a.row, a.column, b.first, b.row, b.column, beta, c.first, c.row,
                        c.column,
                    );
                }
            }
        }
    };
}

real!(f32, matrixmultiply::sgemm);
real!(f64, matrixmultiply::dgemm);
