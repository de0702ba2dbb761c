//! From the sources in `kernels/` to machine code, by NVRTC. What was compiled is kept on disk under the hash of all that it
//! depends on: the source, the GPU's kind, the compiler and its options.
//!
//! Sources need no header of CUDA's: `common.cuh`, which stands in front of each, has what they share.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::{fs, io};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::libraries::Library;
use crate::error::{Error, Result};

/// A source: a file in `kernels/`.
#[derive(Debug)]
pub struct Source {
    /// The file's name without `.cu`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// What stands in front of every source.
const COMMON: &str = include_str!("kernels/common.cuh");

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        &[$(Source { name: $name, text: include_str!(concat!("kernels/", $name, ".cu")) }),*]
    };
}

/// All sources.
pub static SOURCES: &[Source] = sources![
    "attention",
    "bias",
    "columns",
    "element",
    "embedding",
    "exchange",
    "expert_bias",
    "gate",
    "grouped",
    "grouped_fp8",
    "grouped_hopper",
    "latent",
    "loss",
    "norm",
    "optimizer",
    "quantise",
    "reduce",
    "rope",
    "router",
    "staging",
    "swiglu",
];

/// The oldest GPUs that the kernels are written for: compute capability 8.0.
pub const OLDEST: u32 = 80;

impl Source {
    /// Its text with what stands in front.
    fn whole(&self) -> String {
        format!("{COMMON}\n#line 1 \"{}.cu\"\n{}", self.name, self.text)
    }

    /// The names of its kernels: functions that are declared `extern "C" __global__ void`, as every kernel is.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> + use<> {
        let starts = self.text.split("extern \"C\" __global__ void").skip(1);
        starts.filter_map(|rest| {
            let head = rest.split('(').find(|part| !part.trim_end().ends_with("__launch_bounds__"))?;
            // Behind launch bounds comes their closing parenthesis.
            head.rsplit(')').next().map(str::trim)
        })
    }
}

/// The machine code of a source for GPUs of one compute capability, from the cache if it is there.
///
/// # Errors
/// As [`compile`].
pub fn cubin(source: &Source, capability: u32) -> Result<Vec<u8>> {
    Library::Nvrtc.require()?;
    let kept = cache().map(|folder| folder.join(format!("{}.cubin", key(&source.whole(), &options(capability)))));
    if let Some(image) = kept.as_ref().and_then(|path| fs::read(path).ok()) {
        return Ok(image);
    }
    let image = compile(source, capability)?;
    if let Some(path) = kept {
        // A cache that cannot be written costs time, and nothing else.
        let _ = keep(&path, &image);
    }
    Ok(image)
}

/// Compiles a source for GPUs of one compute capability: 90 is 9.0.
///
/// # Errors
/// If the GPU is too old, NVRTC is missing, or the source does not compile; the compiler's log is part of the error.
pub fn compile(source: &Source, capability: u32) -> Result<Vec<u8>> {
    if capability < OLDEST {
        let of = |capability: u32| format!("{}.{}", capability / 10, capability % 10);
        return Err(Error::new(format!(
            "a GPU of compute capability {}; the kernels need {}",
            of(capability),
            of(OLDEST)
        )));
    }
    Library::Nvrtc.require()?;
    run_nvrtc(source.name, &source.whole(), &options(capability))
}

/// Of the GPU itself, with what only it has (`wgmma`) where there is such a target.
fn options(capability: u32) -> Vec<String> {
    let own = if capability >= 90 { "a" } else { "" };
    vec![format!("--gpu-architecture=sm_{capability}{own}"), "--std=c++17".to_owned()]
}

/// Folder of compiled kernels: `dualweave/kernels` in the user's cache folder.
fn cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("dualweave").join("kernels"))
}

fn key(text: &str, options: &[String]) -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there; both numbers outlive the call.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    let mut hash = Sha256::new();
    hash.update(format!("NVRTC {major}.{minor}\n{}\n{text}", options.join(" ")));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Written beside, then renamed: another process may read it.
fn keep(path: &std::path::Path, image: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut file, image)?;
    file.persist(path)?;
    Ok(())
}

fn run_nvrtc(name: &str, text: &str, options: &[String]) -> Result<Vec<u8>> {
    let refused = |what: &str| Error::new(format!("NVRTC: {name}.cu: {what}"));
    let (source, file) = (CString::new(text), CString::new(format!("{name}.cu")));
    let (Ok(source), Ok(file)) = (source, file) else { return Err(refused("has a zero byte")) };
    let program = result::create_program(&source, Some(&file)).map_err(|error| refused(&error.to_string()))?;
    // SAFETY: the program is destroyed below, and not before.
    let image = unsafe {
        match result::compile_program(program, options) {
            Ok(()) => image(program).map_err(|error| refused(&error.to_string())),
            Err(_) => {
                let log: Vec<c_char> = result::get_program_log(program).unwrap_or_default();
                let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
                let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
                Err(refused(&format!("does not compile\n{log}")))
            }
        }
    };
    // SAFETY: made above, and not used any more.
    let _ = unsafe { result::destroy_program(program) };
    image
}

/// The machine code of a compiled program.
///
/// # Safety
/// The program has been compiled, for a real architecture.
unsafe fn image(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut bytes = 0;
    // SAFETY: the program is compiled; `bytes` outlives the call.
    unsafe { sys::nvrtcGetCUBINSize(program, &mut bytes) }.result()?;
    let mut image = vec![0u8; bytes];
    // SAFETY: there is room for as many bytes as it said.
    unsafe { sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()) }.result()?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_name() {
        let text = "extern \"C\" __global__ void one(int a) {}\n\
                    extern \"C\" __global__ void __launch_bounds__(256, 2) two(float b) {}\nvoid three() {}";
        let source = Source { name: "test", text };
        assert_eq!(source.kernels().collect::<Vec<_>>(), ["one", "two"]);
    }
}
