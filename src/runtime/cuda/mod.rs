//! The CUDA runtime: runs plans on NVIDIA GPUs.
//!
//! From the bottom up: [`libraries`] says what of CUDA is there; [`device`], [`stream`], [`memory`] and [`kernel`] are the driver's
//! things with owners and lifetimes; [`compile`] makes machine code of the sources in `kernels/`; [`ops`] are typed launches, one file
//! for each of those sources, that know shapes and check them; [`product`] has dense matrix products, which are cuBLASLt's.
//! for each of those sources, that know shapes and check them. Between GPUs, [`flags`] order streams, [`meeting`]s groups of them;
//! [`transfer`] sends from one to another, and [`exchange`] is the all-to-all of experts.
//!
//! Only this folder calls into CUDA, so only here is there unsafe code. Everything on a device is asynchronous: an op has been
//! *launched* when its function returns, and is ordered by its stream alone.
#![allow(unsafe_code)] // calls into CUDA, each with its reason

pub mod compile;
pub mod device;
pub mod exchange;
pub mod flags;
pub mod kernel;
pub mod libraries;
pub mod meeting;
pub mod memory;
pub mod ops;
pub mod product;
pub mod stream;
pub mod transfer;

pub use device::Device;
pub use memory::{Bf16, Element, Fp8, Memory, Slice};
pub use stream::{Event, Stream};

use cudarc::driver::DriverError;

use crate::error::{Error, Result};

/// Says what the driver refused, and while doing what.
fn driver<V>(doing: &str, result: std::result::Result<V, DriverError>) -> Result<V> {
    result.map_err(|error| Error::new(format!("CUDA: {doing}: {error}")))
}
