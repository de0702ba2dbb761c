//! The CUDA runtime: runs plans on NVIDIA GPUs.
//!
//! From the bottom up: [`libraries`] and [`inventory`] say what of CUDA is there; [`device`], [`stream`], [`memory`] and [`kernel`] are
//! the driver's things with owners and lifetimes; [`compile`] makes machine code of the sources in `kernels/`; [`ops`] are typed launches,
//! one file for each of those sources, that know shapes and check them; [`product`] has dense matrix products, which are cuBLASLt's;
//! [`core_attention`] is cuDNN's ([`cudnn`]) where that has it, and else one of the ops.
//! Between GPUs, [`signals`] order streams, [`watch`] says when to give up, and [`exchange`] is the all-to-all of experts; between those of
//! several processes, [`nccl`] moves what these would write. On all this stands the [`executor`].
//!
//! Only this folder calls into CUDA, so only here is there unsafe code. Everything on a device is asynchronous: an op has been
//! *launched* when its function returns, and is ordered by its stream alone.
#![allow(unsafe_code)] // calls into CUDA, each with its reason

pub mod compile;
pub mod core_attention;
pub mod cudnn;
pub mod device;
pub mod exchange;
pub mod executor;
pub mod inventory;
pub mod kernel;
pub mod libraries;
pub mod memory;
pub mod nccl;
pub mod ops;
pub mod product;
pub mod signals;
pub mod stream;
pub mod watch;

pub use device::Device;
pub use memory::{Bf16, Element, Fp8, Memory, Slice};
pub use stream::{Event, Stream};

use cudarc::driver::DriverError;

use crate::error::{Error, Result};

/// Says what the driver refused, and while doing what.
fn driver<V>(doing: &str, result: std::result::Result<V, DriverError>) -> Result<V> {
    result.map_err(|error| Error::new(format!("CUDA: {doing}: {error}")))
}
