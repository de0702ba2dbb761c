//! The CPU reference runtime: the arithmetic of models in plain Rust, generic over [`Real`]: `f32` to train, `f64` to check
//! gradients. [`tensor`] and [`product`] are matrices; [`precision`] rounds as bf16 and FP8 would.

pub mod precision;
pub mod product;
mod real;
pub mod tensor;

pub use real::Real;
pub use tensor::Matrix;
