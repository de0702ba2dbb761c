//! Streams and events: what orders the work of a GPU.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Device, driver};
use crate::error::Result;

/// Work that runs in order.
pub struct Stream {
    device: Arc<Device>,
    raw: sys::CUstream,
}

// SAFETY: the driver's streams may be used from any thread that their context is bound to.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// How soon the blocks of a stream's kernels get SMs when several wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// After the others.
    Low,
    /// Before the others.
    High,
}

impl Stream {
    /// A new one, which waits for no other.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn new(device: &Arc<Device>, priority: Priority) -> Result<Self> {
        device.bind()?;
        let (least, greatest) = driver("asking for priorities", result::stream::get_priority_range())?;
        let level = if priority == Priority::High { greatest } else { least };
        let raw = result::stream::create_with_priority(result::stream::StreamKind::NonBlocking, level);
        Ok(Self { device: Arc::clone(device), raw: driver("making a stream", raw)? })
    }

    /// Its GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The driver's name for it.
    pub fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits on the host for all that it has been given.
    ///
    /// # Errors
    /// If something of it has failed.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the stream is alive.
        driver("waiting for a stream", unsafe { result::stream::synchronize(self.raw) })
    }

    /// What is launched from now on waits for the event.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.device.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        driver("waiting for an event", unsafe { result::stream::wait_event(self.raw, event.raw, flags) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made in `new`; the driver lets what it has been given run to its end.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// A point in a stream's work.
pub struct Event {
    device: Arc<Device>,
    raw: sys::CUevent,
}

// SAFETY: as for streams.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A new one. `timed`: it remembers when it happened, which costs a little.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn new(device: &Arc<Device>, timed: bool) -> Result<Self> {
        device.bind()?;
        let flags =
            if timed { sys::CUevent_flags::CU_EVENT_DEFAULT } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING };
        Ok(Self { device: Arc::clone(device), raw: driver("making an event", result::event::create(flags))? })
    }

    /// It will happen when everything has that the stream has been given so far.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both are alive, and of one GPU.
        driver("recording an event", unsafe { result::event::record(self.raw, stream.raw()) })
    }

    /// Whether it has happened.
    ///
    /// # Errors
    /// If something before it has failed.
    pub fn has_happened(&self) -> Result<bool> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.raw) } {
            Ok(()) => Ok(true),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => driver("asking for an event", Err(error)),
        }
    }

    /// Waits on the host until it has happened.
    ///
    /// # Errors
    /// If something before it has failed.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        driver("waiting for an event", unsafe { result::event::synchronize(self.raw) })
    }

    /// Milliseconds from `start` to this one. Both are timed and have happened.
    ///
    /// # Errors
    /// If one of them is not, or has not.
    pub fn since(&self, start: &Self) -> Result<f32> {
        self.device.bind()?;
        // SAFETY: both are alive.
        driver("asking for a time", unsafe { result::event::elapsed(start.raw, self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made in `new`; destroying it does not disturb who waits for it.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}
