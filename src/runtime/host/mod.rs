//! The CPU reference runtime: every part of a model with F, I (gradient of the input) and W (gradient of the weights) apart.
//!
//! From the bottom up: [`tensor`] and [`product`] are matrices; [`precision`] rounds as bf16 and FP8 would; [`layers`] are
//! the parts of a model; [`mod@unit`] composes them into the ops that a plan names; [`mod@reference`] trains straight through,
//! without a pipeline; [`executor`] runs a plan, with a thread for each GPU. There is no clock here: the same inputs give the same
//! bits on the same kind of CPU (the products use what vector instructions it has).
//!
//! Everything is generic over [`Real`]: `f32` to train, `f64` to check gradients.

pub mod adamw;
pub mod batch;
pub mod executor;
pub mod layers;
pub mod parameters;
pub mod precision;
pub mod product;
mod random;
pub mod rate;
mod real;
pub mod reference;
pub mod shape;
pub mod tensor;
pub mod text;
pub mod unit;

pub use real::Real;
pub use shape::Shape;
pub use tensor::Matrix;
