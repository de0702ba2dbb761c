//! The functions of libnccl that this runtime calls, found when they are first needed. cudarc binds them too, but looks for names
//! that NCCL's packages do not have: they have `libnccl.so.2`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library as Loaded;

use crate::error::{Error, Result};

/// Names under which the loader is asked for it.
pub const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The first version whose communicators have all that [`Config`] asks for.
const OLDEST: c_int = 21_800;

/// A communicator of NCCL's.
pub type Handle = *mut c_void;

/// What a communicator is made from: NCCL's `ncclUniqueId`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId(pub [u8; 128]);

/// NCCL's results.
pub mod code {
    use std::ffi::c_int;

    /// Done.
    pub const SUCCESS: c_int = 0;
    /// Goes on in the background.
    pub const IN_PROGRESS: c_int = 7;
}

/// NCCL's `ncclInt8`: everything is sent as bytes.
pub const BYTES: c_int = 0;

/// How a communicator is to be: the fields of NCCL's `ncclConfig_t` that version 2.18 has, which later ones read too.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cluster_size: c_int,
    least_blocks: c_int,
    most_blocks: c_int,
    network: *const c_char,
    share: c_int,
}

impl Config {
    /// One that never holds up the host, on at most so many SMs.
    pub fn new(most_sms: u32) -> Self {
        let undefined = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: OLDEST.unsigned_abs(),
            blocking: 0,
            cluster_size: undefined,
            least_blocks: undefined,
            most_blocks: c_int::try_from(most_sms.clamp(1, 32)).unwrap_or(1),
            network: std::ptr::null(),
            share: undefined,
        }
    }
}

type Init = unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> c_int;
type Transfer = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
type AllGather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> c_int;

/// NCCL's functions, as its header declares them.
pub struct Api {
    pub unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    pub init: Init,
    pub abort: unsafe extern "C" fn(Handle) -> c_int,
    pub async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    pub send: Transfer,
    pub receive: Transfer,
    pub all_gather: AllGather,
    pub group_start: unsafe extern "C" fn() -> c_int,
    pub group_end: unsafe extern "C" fn() -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Handle) -> *const c_char,
    _library: Loaded,
}

/// Whether the loader finds it.
pub fn is_present() -> bool {
    open().is_some()
}

fn open() -> Option<Loaded> {
    // SAFETY: the library's initialisers run, as for any program that links it.
    NAMES.into_iter().find_map(|name| unsafe { Loaded::new(name) }.ok())
}

/// The library, loaded once.
///
/// # Errors
/// If it is missing, or too old.
pub fn api() -> Result<&'static Api> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    super::super::libraries::Library::Nccl.require()?;
    API.get_or_init(load).as_ref().map_err(|message| Error::new(message.clone()))
}

fn load() -> Result<Api, String> {
    let library = open().ok_or("libnccl is gone")?;
    macro_rules! function {
        ($name:literal) => {{
            // SAFETY: the field that takes it has the type that NCCL's header declares the function with.
            let found = unsafe { library.get(concat!($name, "\0").as_bytes()) };
            *found.map_err(|error| format!("this computer's libnccl has no {}: {error}", $name))?
        }};
    }
    let version: unsafe extern "C" fn(*mut c_int) -> c_int = function!("ncclGetVersion");
    let mut number = 0;
    // SAFETY: `number` outlives the call.
    unsafe { version(&mut number) };
    if number < OLDEST {
        return Err(format!("this computer's libnccl is version {number}; {OLDEST} (2.18) or later is needed"));
    }
    Ok(Api {
        unique_id: function!("ncclGetUniqueId"),
        init: function!("ncclCommInitRankConfig"),
        abort: function!("ncclCommAbort"),
        async_error: function!("ncclCommGetAsyncError"),
        send: function!("ncclSend"),
        receive: function!("ncclRecv"),
        all_gather: function!("ncclAllGather"),
        group_start: function!("ncclGroupStart"),
        group_end: function!("ncclGroupEnd"),
        error_string: function!("ncclGetErrorString"),
        last_error: function!("ncclGetLastError"),
        _library: library,
    })
}

impl Api {
    /// What a result says, with what NCCL noted last about a communicator, if there is one.
    pub fn said(&self, result: c_int, handle: Handle) -> String {
        // SAFETY: NCCL gives a text that stays, for every number.
        let what = text(unsafe { (self.error_string)(result) });
        // SAFETY: the handle is alive or null, which NCCL allows; its text stays until the next error.
        let last = text(unsafe { (self.last_error)(handle) });
        let last = last.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        if last.is_empty() { what } else { format!("{what} ({last})") }
    }
}

fn text(from: *const c_char) -> String {
    if from.is_null() {
        return String::new();
    }
    // SAFETY: NCCL's texts end with a zero.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_or_missed_by_name() {
        match api() {
            // What NCCL says of its own results does not need a GPU.
            Ok(api) => assert_eq!(api.said(code::SUCCESS, std::ptr::null_mut()), "no error"),
            Err(error) => assert!(error.help_text().is_some_and(|help| help.contains("libnccl.so.2")), "{error:?}"),
        }
    }

    #[test]
    fn a_configuration_is_laid_out_as_in_the_header() {
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!(std::mem::offset_of!(Config, most_blocks), 28);
        assert_eq!(std::mem::offset_of!(Config, share), 40);
    }
}
