//! A kernel, and how it is launched.

use std::ffi::CString;

use cudarc::driver::{result, sys};

use super::{Element, Slice, Stream, driver};
use crate::error::Result;

/// A function of a loaded module.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    name: &'static str,
    function: sys::CUfunction,
}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
}

impl Grid {
    /// So many blocks in a row, without dynamic shared memory.
    pub fn of(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads, shared: 0 }
    }

    /// With dynamic shared memory.
    #[must_use]
    pub fn shared(self, bytes: u32) -> Self {
        Self { shared: bytes, ..self }
    }
}

/// An argument of a kernel: 8 bytes that hold it, the first of them first.
#[derive(Clone, Copy, Debug)]
pub struct Argument(u64);

impl<E: Element> From<Slice<E>> for Argument {
    fn from(slice: Slice<E>) -> Self {
        Self(slice.address())
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self(u64::from(value))
    }
}

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self(u64::from(value.to_bits()))
    }
}

/// Arguments of a kernel, in order: slices (pointers), `u32`, `u64` and `f32`.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => { &mut [$($crate::runtime::cuda::kernel::Argument::from($value)),*] };
}
pub(super) use arguments;

impl Kernel {
    /// Finds it in a module, and allows it as much shared memory as a block can have.
    pub(super) fn of(module: sys::CUmodule, name: &'static str, shared_memory: u32) -> Result<Self> {
        let text = CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded, and stays so as long as the device.
        let function = driver(&format!("finding {name}"), unsafe { result::module::get_function(module, text) })?;
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let mut fixed = 0;
        // SAFETY: the function was found above; `fixed` outlives the call.
        let asked = unsafe {
            let shared = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            sys::cuFuncGetAttribute(&mut fixed, shared, function)
        };
        driver(&format!("asking for the shared memory of {name}"), asked.result())?;
        let most = i32::try_from(shared_memory).unwrap_or(i32::MAX) - fixed;
        // SAFETY: as above; the value is within what the device has.
        let set = unsafe { result::function::set_function_attribute(function, attribute, most) };
        driver(&format!("allowing {name} shared memory"), set)?;
        Ok(Self { name, function })
    }

    /// Launches it on a stream.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Safety
    /// `arguments` are those of the kernel's signature, one for each parameter; slices hold all that it reads and writes there, and
    /// their memory lives until it has ended.
    pub unsafe fn launch(&self, stream: &Stream, grid: Grid, arguments: &mut [Argument]) -> Result<()> {
        stream.device().bind()?;
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let mut pointers: Vec<_> = arguments.iter_mut().map(|argument| (&raw mut argument.0).cast()).collect();
        // SAFETY: the driver copies the arguments during the call; that they fit the kernel is the caller's promise.
        let launched = unsafe {
            let threads = (grid.threads, 1, 1);
            result::launch_kernel(self.function, (x, y, z), threads, grid.shared, stream.raw(), &mut pointers)
        };
        driver(&format!("launching {}", self.name), launched)
    }
}
