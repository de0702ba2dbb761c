//! What a person wants to know before running a plan on this computer's GPUs.

use cudarc::driver::sys::{self, CUdevice_P2PAttribute as Link, CUdevice_attribute as Attribute};
use cudarc::driver::{result, sys::CUdevice};

use super::driver;
use super::libraries::Library;
use crate::error::Result;

/// Hardware queues of a GPU. With fewer, streams share some, and one may hold up another that it has nothing to do with.
pub const CONNECTIONS: u32 = 32;

/// The environment variable that says whether kernels are loaded when they are first launched. That may wait for all that the GPU
/// does, and so for ever, if one of NCCL's kernels waits there for another process that waits for this one.
pub const LOADING_VARIABLE: &str = "CUDA_MODULE_LOADING";

/// The environment variable that sets their number before the first call into CUDA.
pub const CONNECTIONS_VARIABLE: &str = "CUDA_DEVICE_MAX_CONNECTIONS";

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Compute capability: 90 is 9.0.
    pub capability: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// By GPU: whether this one reaches its memory.
    pub reaches: Vec<bool>,
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// By library, whether the loader finds it.
    pub libraries: Vec<(Library, bool)>,
    /// The version of CUDA that the driver speaks: 13000 is 13.0.
    pub driver: Option<u32>,
    /// GPUs, as the driver counts.
    pub gpus: Vec<Gpu>,
    /// What [`CONNECTIONS_VARIABLE`] says.
    pub connections: Option<String>,
}

impl Inventory {
    /// Looks.
    ///
    /// # Errors
    /// If there is a driver, and it fails.
    pub fn take() -> Result<Self> {
        let libraries = Library::ALL.into_iter().map(|library| (library, library.is_present())).collect();
        let connections = std::env::var(CONNECTIONS_VARIABLE).ok();
        let mut inventory = Self { libraries, driver: None, gpus: Vec::new(), connections };
        if !Library::Driver.is_present() {
            return Ok(inventory);
        }
        driver("initialising", result::init())?;
        let mut version = 0;
        // SAFETY: `version` outlives the call.
        driver("asking for the version", unsafe { sys::cuDriverGetVersion(&mut version) }.result())?;
        inventory.driver = u32::try_from(version).ok();
        let count = driver("counting GPUs", result::device::get_count())?;
        let devices = (0..count).map(|number| driver("finding a GPU", result::device::get(number)));
        let devices = devices.collect::<Result<Vec<_>>>()?;
        inventory.gpus = devices.iter().map(|&device| gpu(device, &devices)).collect::<Result<_>>()?;
        Ok(inventory)
    }

    /// Whether plans can be run here: all libraries that one process needs, and a GPU that the kernels are written for.
    pub fn is_enough(&self) -> bool {
        self.libraries.iter().all(|&(library, there)| there || !Library::NEEDED.contains(&library))
            && self.gpus.iter().any(|gpu| gpu.capability >= super::compile::OLDEST)
    }
}

fn gpu(device: CUdevice, all: &[CUdevice]) -> Result<Gpu> {
    let attribute = |which| -> Result<u32> {
        // SAFETY: the device was found by the driver.
        let value = driver("asking for an attribute", unsafe { result::device::get_attribute(device, which) })?;
        Ok(u32::try_from(value).unwrap_or_default())
    };
    let reaches = |&peer: &CUdevice| -> Result<bool> {
        let mut can = 0;
        if peer == device {
            return Ok(true);
        }
        // SAFETY: both devices were found by the driver; `can` outlives the call.
        let asked = unsafe {
            sys::cuDeviceGetP2PAttribute(&mut can, Link::CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED, device, peer)
        };
        driver("asking for peer access", asked.result())?;
        Ok(can != 0)
    };
    Ok(Gpu {
        name: driver("asking for the name", result::device::get_name(device))?,
        sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        capability: 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        // SAFETY: the device was found by the driver.
        memory: driver("asking for memory", unsafe { result::device::total_mem(device) })? as u64,
        reaches: all.iter().map(reaches).collect::<Result<_>>()?,
    })
}

/// Asks for as many hardware queues as there can be, unless the user has set a number. Has an effect before the first call into CUDA
/// only.
///
/// # Safety
/// No other thread reads or writes the environment meanwhile: call it before there are others.
pub unsafe fn ask_for_connections() {
    if std::env::var_os(CONNECTIONS_VARIABLE).is_none() {
        // SAFETY: the caller's promise.
        unsafe { std::env::set_var(CONNECTIONS_VARIABLE, CONNECTIONS.to_string()) };
    }
}

/// Asks for kernels to be loaded at the start, unless the user has said something else: for runs of several processes. Has an effect
/// before the first call into CUDA only.
///
/// # Safety
/// As for [`ask_for_connections`].
pub unsafe fn ask_for_loading() {
    if std::env::var_os(LOADING_VARIABLE).is_none() {
        // SAFETY: the caller's promise.
        unsafe { std::env::set_var(LOADING_VARIABLE, "EAGER") };
    }
}
