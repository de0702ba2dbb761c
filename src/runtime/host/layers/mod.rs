//! The parts of a model. Each has its parameters, and three functions apart: `forward`; `input_gradient`, which also returns
//! what is needed for `weight_gradient`; and that, which adds to gradients and may run at any time after.
//!
//! Matrices of activations have one row per token. What `forward` saves is consumed by `input_gradient`, and what that hands
//! on by `weight_gradient`, so memory is held as long as a plan says.

pub mod attention;
pub mod core;
pub mod embedding;
pub mod head;
pub mod latent;
pub mod linear;
pub mod mtp;
pub mod multi_head;
pub mod permutation;
pub mod rmsnorm;
pub mod rope;
pub mod router;
pub mod swiglu;
