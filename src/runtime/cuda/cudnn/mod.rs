//! cuDNN, which has the fastest kernels for the attention core on Hopper: [`attention`] describes it as a graph of operations, for
//! which cuDNN makes a plan. It is found when a GPU is opened, and may be missing.
//!
//! cuDNN cannot be told how many SMs to use: for these graphs it refuses a target below what the GPU has (9.19). Its kernels have a
//! block for each SM, which stays to the end: they take what is free, and what another stream launches later waits for them
//! (`docs/gpu.md`).

pub mod attention;
mod descriptor;
mod graph;
pub(super) mod library;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use self::attention::{Attention, Places, Problem};
use self::library::{Api, Handle, Refusal, api};
use super::Stream;
use crate::error::Result;

/// The compute capability that it is used for: what was measured.
const CAPABILITY: u32 = 90;

/// cuDNN on one GPU, and the plans that it has made. All streams of the GPU share it.
pub struct Cudnn {
    api: &'static Api,
    /// One thread at a time uses it.
    handle: Mutex<Handle>,
    /// `None`: cuDNN has no plan for the problem.
    plans: Mutex<BTreeMap<Problem, Option<Arc<Attention>>>>,
}

// SAFETY: cuDNN's handle may be used from any thread, one at a time: it is used under its lock. Plans do not change.
unsafe impl Send for Cudnn {}
// SAFETY: as above.
unsafe impl Sync for Cudnn {}
// SAFETY: a finished plan is only read.
unsafe impl Send for Attention {}
// SAFETY: as above.
unsafe impl Sync for Attention {}

impl Cudnn {
    /// For the GPU that the thread's calls are for; `None` if it is of another kind than cuDNN is used for, or cuDNN is missing or too old.
    ///
    /// # Errors
    /// If cuDNN is there and does not start.
    pub(super) fn open(capability: u32) -> Result<Option<Self>> {
        let Some(api) = (if capability == CAPABILITY { api()? } else { None }) else { return Ok(None) };
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` outlives the call.
        let made = unsafe { (api.create)(&mut handle) };
        api.check("starting", made).map_err(Refusal::into_error)?;
        Ok(Some(Self { api, handle: Mutex::new(handle), plans: Mutex::default() }))
    }

    /// How it makes this, if it can. The GPU is bound to the thread.
    ///
    /// # Errors
    /// If it fails.
    pub fn attention(&self, problem: &Problem) -> Result<Option<Arc<Attention>>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = plans.get(problem) {
            return Ok(known.clone());
        }
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match Attention::plan(self.api, *handle, problem) {
            Ok(plan) => Some(Arc::new(plan)),
            Err(refusal) if refusal.is_unsupported() => None,
            Err(refusal) => return Err(refusal.into_error()),
        };
        plans.insert(*problem, plan.clone());
        Ok(plan)
    }

    /// Launches a plan.
    ///
    /// # Errors
    /// If the driver or cuDNN refuses.
    ///
    /// # Safety
    /// All tensors of the plan's problem are at their places, addresses are multiples of 16, there is room for what the plan needs
    /// beside them, and all stay until the launch has ended.
    pub unsafe fn launch(&self, stream: &Stream, plan: &Attention, places: &Places) -> Result<()> {
        stream.device().bind()?;
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: handle and stream are alive, and of the same GPU.
        let set = unsafe { (self.api.set_stream)(*handle, stream.raw().cast()) };
        let launched = self.api.check("choosing a stream", set).and_then(|()| {
            // SAFETY: the caller's promise; the handle is locked.
            unsafe { plan.launch(*handle, places) }
        });
        launched.map_err(Refusal::into_error)
    }
}

impl Drop for Cudnn {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        let handle = self.handle.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: made in `open`, destroyed once; whoever drops it has bound the GPU.
        let _ = unsafe { (self.api.destroy)(*handle) };
    }
}
