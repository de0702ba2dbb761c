//! Flags: numbers in a GPU's memory that its streams wait for and that other GPUs write. They only grow, and wrap.
//!
//! A stream that waits for a flag ([`Stream::signal_and_wait`](super::Stream::signal_and_wait)) may hold up others of the same GPU
//! that the driver has put into the same hardware queue. Where the work that would set the flag is behind it there, nothing ever
//! goes on. So a process must not have more streams on a GPU than it has queues: 8, or up to 32 if the environment's
//! `CUDA_DEVICE_MAX_CONNECTIONS` says so before the driver is first used. Nor may anything that waits for the whole GPU (allocating
//! and freeing memory, loading kernels) be done between a stream's wait and the launch of what ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::result;

use super::{Device, Element, Memory, Slice, driver};
use crate::error::Result;

/// Flags of one GPU, all of which are waited for with the same number, that grows by one each time.
pub struct Flags {
    device: Arc<Device>,
    memory: Memory,
    count: usize,
    /// The number that was waited for last.
    latest: AtomicU32,
}

/// How far ahead a released flag is: half of what is not behind.
const AHEAD: u32 = 1 << 30;

impl Flags {
    /// So many, all 0.
    ///
    /// # Errors
    /// If the GPU has no memory left.
    pub fn new(device: &Arc<Device>, count: usize) -> Result<Self> {
        let memory = Memory::of::<u32>(device, count)?;
        let flags = Self { device: Arc::clone(device), memory, count, latest: AtomicU32::new(0) };
        flags.set(0)?;
        Ok(flags)
    }

    /// One of them.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn flag(&self, index: usize) -> Slice<u32> {
        self.memory.at(index * u32::BYTES, 1)
    }

    /// The number to wait for now, which is then behind.
    pub(super) fn next(&self) -> u32 {
        self.latest.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// The number that will be waited for next.
    pub(super) fn upcoming(&self) -> u32 {
        self.latest.load(Ordering::Relaxed).wrapping_add(1)
    }

    /// Sets all flags as if everything had come, now and in future, so that streams that wait for what will never come go on.
    /// Whatever they compute then is garbage, but nothing is written outside of the memory that it was meant for.
    ///
    /// A signal that was on its way can undo it: to be called again until the streams have ended.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn release(&self) -> Result<()> {
        self.set(self.latest.load(Ordering::Relaxed).wrapping_add(AHEAD))
    }

    fn set(&self, value: u32) -> Result<()> {
        write_now(&self.device, self.memory.at(0, self.count), &vec![value; self.count])
    }
}

/// Copies from the host at once, whatever streams are doing.
pub(super) fn write_now<E: Element>(device: &Device, to: Slice<E>, values: &[E]) -> Result<()> {
    assert_eq!(values.len(), to.len(), "as many elements as the slice has");
    device.bind()?;
    // SAFETY: the slice has room for all values. The null stream waits for none of the crate's, which are all non-blocking.
    driver("copying to the GPU", unsafe { result::memcpy_htod_sync(to.address(), values) })
}
