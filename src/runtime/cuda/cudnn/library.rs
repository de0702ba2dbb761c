//! The functions of libcudnn that this runtime calls, found when they are first needed. cudarc binds them too, but as functions that
//! give an enum, for which a number of a later cuDNN's would be no value, and that panic where one is missing; so only the names of
//! numbers are cudarc's.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::Library as Loaded;

use crate::error::Error;
use crate::runtime::cuda::libraries::Library;

/// Names under which the loader is asked for it.
pub const NAMES: [&str; 2] = ["libcudnn.so.9", "libcudnn.so"];

/// The first version that is used: 9.16. Those before have faults in the gradient of attention that NVIDIA's cudnn-frontend works
/// around (`scaled_dot_product_flash_attention.h`: sequences that are no multiple of 128 up to 9.15.0).
const OLDEST: usize = 91_600;

/// cuDNN's `cudnnHandle_t`.
pub type Handle = *mut c_void;
/// cuDNN's `cudnnBackendDescriptor_t`.
pub type Raw = *mut c_void;
/// cuDNN's `cudnnStatus_t`.
pub type Status = c_int;

/// cuDNN's functions, as its header `cudnn_graph.h` declares them; enums are ints.
pub struct Api {
    pub create: unsafe extern "C" fn(*mut Handle) -> Status,
    pub destroy: unsafe extern "C" fn(Handle) -> Status,
    pub set_stream: unsafe extern "C" fn(Handle, *mut c_void) -> Status,
    pub create_descriptor: unsafe extern "C" fn(c_int, *mut Raw) -> Status,
    pub destroy_descriptor: unsafe extern "C" fn(Raw) -> Status,
    pub finalize: unsafe extern "C" fn(Raw) -> Status,
    pub set_attribute: unsafe extern "C" fn(Raw, c_int, c_int, i64, *const c_void) -> Status,
    pub get_attribute: unsafe extern "C" fn(Raw, c_int, c_int, i64, *mut i64, *mut c_void) -> Status,
    pub execute: unsafe extern "C" fn(Handle, Raw, Raw) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    last_error: unsafe extern "C" fn(*mut c_char, usize),
    _library: Loaded,
}

/// What cuDNN refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    status: Status,
    message: String,
}

impl Refusal {
    /// Whether cuDNN has nothing for what it was asked for, rather than being at fault: `CUDNN_STATUS_NOT_SUPPORTED` and what is more
    /// particular.
    pub fn is_unsupported(&self) -> bool {
        self.status / 1000 == 3
    }

    /// What a person is told.
    pub fn into_error(self) -> Error {
        Error::new(self.message).help("where the loader finds no libcudnn, the runtime's own kernels are used")
    }

    /// That nothing was proposed.
    pub fn of_nothing() -> Self {
        Self { status: 3000, message: "cuDNN: proposes no engine".to_owned() }
    }
}

/// Whether the loader finds it.
pub fn is_present() -> bool {
    open().is_some()
}

fn open() -> Option<Loaded> {
    // SAFETY: the library's initialisers run, as for any program that links it.
    NAMES.into_iter().find_map(|name| unsafe { Loaded::new(name) }.ok())
}

/// The library, loaded once; `None` if it is missing, or too old.
///
/// # Errors
/// If it has not what its version should have.
pub fn api() -> Result<Option<&'static Api>, Error> {
    static API: OnceLock<Result<Option<Api>, String>> = OnceLock::new();
    match API.get_or_init(load) {
        Ok(api) => Ok(api.as_ref()),
        Err(message) => Err(Error::new(message.clone()).help(Library::Cudnn.about())),
    }
}

fn load() -> Result<Option<Api>, String> {
    let Some(library) = open() else { return Ok(None) };
    macro_rules! function {
        ($name:literal) => {{
            // SAFETY: the field that takes it has the type that cuDNN's header declares the function with.
            let found = unsafe { library.get(concat!($name, "\0").as_bytes()) };
            *found.map_err(|error| format!("this computer's libcudnn has no {}: {error}", $name))?
        }};
    }
    let version: unsafe extern "C" fn() -> usize = function!("cudnnGetVersion");
    // SAFETY: asks for a number alone.
    if unsafe { version() } < OLDEST {
        return Ok(None);
    }
    Ok(Some(Api {
        create: function!("cudnnCreate"),
        destroy: function!("cudnnDestroy"),
        set_stream: function!("cudnnSetStream"),
        create_descriptor: function!("cudnnBackendCreateDescriptor"),
        destroy_descriptor: function!("cudnnBackendDestroyDescriptor"),
        finalize: function!("cudnnBackendFinalize"),
        set_attribute: function!("cudnnBackendSetAttribute"),
        get_attribute: function!("cudnnBackendGetAttribute"),
        execute: function!("cudnnBackendExecute"),
        error_string: function!("cudnnGetErrorString"),
        last_error: function!("cudnnGetLastErrorString"),
        _library: library,
    }))
}

impl Api {
    /// Whether a call did what it should; else what it said, and what this thread's last error was about.
    pub fn check(&self, doing: &str, status: Status) -> Result<(), Refusal> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: cuDNN gives a text that stays, for every number.
        let said = unsafe { CStr::from_ptr((self.error_string)(status)) }.to_string_lossy().into_owned();
        let mut room = [0 as c_char; 512];
        // SAFETY: there is room for as many bytes as it says, the last of which cuDNN makes a zero.
        unsafe { (self.last_error)(room.as_mut_ptr(), room.len()) };
        let bytes = room.map(|byte| byte as u8);
        let about = CStr::from_bytes_until_nul(&bytes).map(CStr::to_string_lossy).unwrap_or_default();
        let about = about.split_whitespace().collect::<Vec<_>>().join(" ");
        Err(Refusal { status, message: format!("cuDNN: {doing}: {said} ({status}) {about}").trim_end().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_supported_is_told_from_faults() {
        let of = |status| Refusal { status, message: String::new() };
        assert!([3000, 3001, 3005].into_iter().all(|status| of(status).is_unsupported()));
        assert!(![1000, 2000, 4000, 5000].into_iter().any(|status| of(status).is_unsupported()));
    }

    #[test]
    fn the_library_is_found_or_missed_by_name() {
        match api().expect("none, or a whole one") {
            // What cuDNN says of its own results does not need a GPU.
            Some(api) => {
                let refusal = api.check("trying", 3000).expect_err("3000 is no success");
                assert!(refusal.message.starts_with("cuDNN: trying: CUDNN_STATUS_NOT_SUPPORTED (3000)"), "{refusal:?}");
            }
            None => {
                let help = Library::Cudnn.require().err().and_then(|error| error.help_text().map(str::to_owned));
                assert!(is_present() || help.is_some_and(|help| help.contains("libcudnn.so.9")));
            }
        }
    }
}
