//! Memory of a GPU: who owns it, and what points into it.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Device, Stream, driver};
use crate::error::{Error, Result};

/// What lies in device memory.
pub trait Element: Copy + Send + Sync + 'static {
    /// Its size in bytes.
    const BYTES: usize;
}

/// The upper half of an `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// The nearest, ties to even. NaN stays NaN.
    pub fn of(value: f32) -> Self {
        let bits = value.to_bits();
        if value.is_nan() {
            return Self((bits >> 16) as u16 | 0x40);
        }
        let half = 0x7fff + (bits >> 16 & 1);
        Self((bits.wrapping_add(half) >> 16) as u16)
    }

    /// Exactly its value.
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// An e4m3 number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Fp8(pub u8);

impl Element for Bf16 {
    const BYTES: usize = 2;
}
impl Element for Fp8 {
    const BYTES: usize = 1;
}
impl Element for f32 {
    const BYTES: usize = 4;
}
impl Element for u32 {
    const BYTES: usize = 4;
}
impl Element for u64 {
    const BYTES: usize = 8;
}
impl Element for u8 {
    const BYTES: usize = 1;
}

/// Allocated memory of one GPU. It starts at a multiple of 256 bytes.
pub struct Memory {
    device: Arc<Device>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// Allocates; the content is undefined.
    ///
    /// # Errors
    /// If the GPU has not so much left; says how much it has.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        device.bind()?;
        // SAFETY: plain allocation; of no bytes it would be refused.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(Self { device: Arc::clone(device), address, bytes }),
            Err(error) => {
                let (free, total) = device.memory().unwrap_or_default();
                Err(Error::new(format!(
                    "GPU {} ({}) has no {bytes} bytes left: {free} of {total} are free ({error})",
                    device.ordinal, device.name
                )))
            }
        }
    }

    /// Room for so many elements.
    ///
    /// # Errors
    /// As [`Memory::new`].
    pub fn of<E: Element>(device: &Arc<Device>, count: usize) -> Result<Self> {
        Self::new(device, count * E::BYTES)
    }

    /// All of it, as elements of one kind; a rest that is less than an element is left out.
    pub fn all<E: Element>(&self) -> Slice<E> {
        Slice { address: self.address, len: self.bytes / E::BYTES, of: PhantomData }
    }

    /// `count` elements from a byte on.
    ///
    /// # Panics
    /// If they are not inside, or not aligned.
    pub fn at<E: Element>(&self, byte: usize, count: usize) -> Slice<E> {
        let end = count.checked_mul(E::BYTES).and_then(|bytes| bytes.checked_add(byte));
        assert!(end.is_some_and(|end| end <= self.bytes), "{count} elements at byte {byte} of {}", self.bytes);
        assert!(byte.is_multiple_of(E::BYTES), "byte {byte} is no multiple of {}", E::BYTES);
        Slice { address: self.address + byte as u64, len: count, of: PhantomData }
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated in `new`, freed once. `cuMemFree` waits for all that the GPU still does.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Elements that lie one behind the other in a GPU's memory. It does not own them: whoever makes one sees to it that the
/// [`Memory`] lives until all that was launched with it has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Slice<E> {
    address: sys::CUdeviceptr,
    len: usize,
    of: PhantomData<E>,
}

impl<E> Clone for Slice<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Slice<E> {}

impl<E: Element> Slice<E> {
    /// Of nothing: for what a kernel is not to read.
    pub fn none() -> Self {
        Self { address: 0, len: 0, of: PhantomData }
    }

    /// Elements.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Where the first one lies.
    pub fn address(self) -> u64 {
        self.address
    }

    /// Some of them.
    ///
    /// # Panics
    /// If they are not inside.
    pub fn part(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        Self { address: self.address + (range.start * E::BYTES) as u64, len: range.end - range.start, of: PhantomData }
    }

    /// The same bytes as elements of another kind.
    pub fn cast<O: Element>(self) -> Slice<O> {
        Slice { address: self.address, len: self.len * E::BYTES / O::BYTES, of: PhantomData }
    }

    /// Copies from the host. Has ended when it returns, before anything that is launched later.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn write(self, stream: &Stream, values: &[E]) -> Result<()> {
        assert_eq!(values.len(), self.len, "as many elements as the slice has");
        if values.is_empty() {
            return Ok(());
        }
        stream.device().bind()?;
        // SAFETY: the slice has room for all values, which stay alive: the stream is waited for.
        driver("copying to the GPU", unsafe { result::memcpy_htod_async(self.address, values, stream.raw()) })?;
        stream.synchronize()
    }

    /// Copies to the host, after everything that the stream has been given.
    ///
    /// # Errors
    /// If the driver refuses, or what ran before has failed.
    pub fn read(self, stream: &Stream) -> Result<Vec<E>>
    where
        E: Default,
    {
        let mut values = vec![E::default(); self.len];
        if values.is_empty() {
            stream.synchronize()?;
            return Ok(values);
        }
        stream.device().bind()?;
        // SAFETY: there is room for all; the vector stays alive until the stream has been waited for.
        driver("copying from the GPU", unsafe { result::memcpy_dtoh_async(&mut values, self.address, stream.raw()) })?;
        stream.synchronize()?;
        Ok(values)
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn fill_bytes(self, stream: &Stream, byte: u8) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        stream.device().bind()?;
        // SAFETY: the bytes of the slice.
        let set = unsafe { result::memset_d8_async(self.address, byte, self.len * E::BYTES, stream.raw()) };
        driver("filling memory", set)
    }

    /// Copies from another slice, of this GPU or of one that it can reach, by a copy engine.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn copy_from(self, stream: &Stream, from: Self) -> Result<()> {
        assert_eq!(from.len, self.len, "as many elements as the slice has");
        if self.is_empty() {
            return Ok(());
        }
        stream.device().bind()?;
        let bytes = self.len * E::BYTES;
        // SAFETY: both are whole slices; with unified addresses the driver knows whose they are.
        driver("copying", unsafe { result::memcpy_dtod_async(self.address, from.address, bytes, stream.raw()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for (value, rounded) in [(1.0, 1.0), (1.003_906_4, 1.007_812_5), (1.003_906_3, 1.0), (-1.011_718_8, -1.015_625)]
        {
            assert_eq!(Bf16::of(value).to_f32(), rounded, "{value}");
        }
        assert!(Bf16::of(f32::NAN).to_f32().is_nan());
        assert_eq!(Bf16::of(f32::MAX).to_f32(), f32::INFINITY);
    }
}
