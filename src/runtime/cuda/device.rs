//! A GPU.

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, result, sys};

use super::compile;
use super::cudnn::Cudnn;
use super::driver;
use super::kernel::Kernel;
use super::libraries::Library;
use crate::error::{Error, Result};

/// A GPU with its context and the kernels, ready to be launched. All ranks that share a GPU share it.
pub struct Device {
    context: Arc<CudaContext>,
    /// Number, as the driver counts.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Compute capability: 80 is 8.0.
    pub capability: u32,
    /// Shared memory that a block may have, bytes.
    pub shared_memory: u32,
    modules: Vec<sys::CUmodule>,
    kernels: BTreeMap<&'static str, Kernel>,
    cudnn: Option<Cudnn>,
}

// SAFETY: modules and functions of a context may be used from any thread that the context is bound to.
unsafe impl Send for Device {}
// SAFETY: as above; launching takes no exclusive access.
unsafe impl Sync for Device {}

/// GPUs of this computer.
///
/// # Errors
/// If there is no driver.
pub fn count() -> Result<usize> {
    Library::Driver.require()?;
    driver("initialising", result::init())?;
    let count = driver("counting GPUs", result::device::get_count())?;
    Ok(usize::try_from(count).unwrap_or_default())
}

impl Device {
    /// Opens a GPU and loads all kernels, compiled for it.
    ///
    /// # Errors
    /// If a library is missing, there is no such GPU, it is older than the kernels can be compiled for, or a kernel does not compile.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        Library::NEEDED.into_iter().try_for_each(Library::require)?;
        let there = count()?;
        if ordinal >= there {
            return Err(Error::new(format!("no GPU {ordinal}: this computer has {there}")));
        }
        let context = driver("opening the GPU", CudaContext::new(ordinal))?;
        let attribute = |which| -> Result<u32> {
            let value = driver("asking for an attribute", context.attribute(which))?;
            Ok(u32::try_from(value).unwrap_or_default())
        };
        let capability = 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let name = driver("asking for the name", context.name())?;
        let mut device = Self {
            ordinal,
            sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            name,
            capability,
            modules: Vec::new(),
            kernels: BTreeMap::new(),
            cudnn: None,
            context,
        };
        for source in compile::SOURCES {
            device.load(source)?;
        }
        device.bind()?;
        device.cudnn = Cudnn::open(capability)?;
        Ok(Arc::new(device))
    }

    fn load(&mut self, source: &'static compile::Source) -> Result<()> {
        let image = compile::cubin(source, self.capability)?;
        // SAFETY: the image is a whole cubin, as NVRTC made it, and stays alive during the call.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = driver(&format!("loading {}.cu", source.name), module)?;
        self.modules.push(module);
        for name in source.kernels() {
            let kernel = Kernel::of(module, name, self.shared_memory)?;
            if self.kernels.insert(name, kernel).is_some() {
                return Err(Error::new(format!("two kernels are called {name}")));
            }
        }
        Ok(())
    }

    /// A kernel, by its name in the sources.
    ///
    /// # Panics
    /// If there is none of that name: names are written in this crate.
    pub fn kernel(&self, name: &str) -> &Kernel {
        self.kernels.get(name).unwrap_or_else(|| panic!("no kernel is called {name}"))
    }

    /// cuDNN, if it is there and used for this kind of GPU.
    pub fn cudnn(&self) -> Option<&Cudnn> {
        self.cudnn.as_ref()
    }

    /// Makes this GPU the one that the thread's calls are for.
    ///
    /// # Errors
    /// If the context is broken.
    pub fn bind(&self) -> Result<()> {
        driver("binding the GPU to a thread", self.context.bind_to_thread())
    }

    /// What tells this GPU from all others, on any host.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn uuid(&self) -> Result<[u8; 16]> {
        let uuid = driver("asking for the GPU's identifier", result::device::get_uuid(self.context.cu_device()))?;
        Ok(uuid.bytes.map(|byte| byte.to_ne_bytes()[0]))
    }

    /// Bytes of memory: free, and in all.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        driver("asking for free memory", result::mem_get_info())
    }

    /// Lets this GPU's kernels and copies reach the memory of another one.
    ///
    /// # Errors
    /// If there is no path between them.
    pub fn reach(&self, peer: &Self) -> Result<()> {
        if self.ordinal == peer.ordinal {
            return Ok(());
        }
        self.bind()?;
        let mut can = 0;
        // SAFETY: both devices exist; `can` outlives the call.
        let asked = unsafe { sys::cuDeviceCanAccessPeer(&mut can, self.context.cu_device(), peer.context.cu_device()) };
        driver("asking for peer access", asked.result())?;
        if can == 0 {
            return Err(Error::new(format!("GPU {} cannot reach the memory of GPU {}", self.ordinal, peer.ordinal))
                .help("they need NVLink, or PCIe with peer access (`nvidia-smi topo -p2p r` shows it)"));
        }
        // SAFETY: the peer's context is alive as long as `peer`.
        let enabled = unsafe { sys::cuCtxEnablePeerAccess(peer.context.cu_ctx(), 0) };
        if enabled == sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED {
            return Ok(());
        }
        driver("enabling peer access", enabled.result())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What fails here is a context that is gone already, with its modules.
        if self.bind().is_ok() {
            self.cudnn = None;
            for &module in &self.modules {
                // SAFETY: loaded by this device, and no kernel of it can be launched any more.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}
