//! What of CUDA this computer has. Libraries are looked for where the system's loader looks (`LD_LIBRARY_PATH`, the loader's
//! cache), under the names of any version that the runtime can use.

use cudarc::{cublaslt, driver, get_lib_name_candidates, nvrtc};

use super::{cudnn, nccl};
use crate::error::{Error, Result};

/// A library of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Comes with the kernel driver: `libcuda`.
    Driver,
    /// Compiles kernels: `libnvrtc`.
    Nvrtc,
    /// Matrix products: `libcublasLt`.
    CublasLt,
    /// Attention on Hopper: `libcudnn`. Without it, own kernels do that.
    Cudnn,
    /// Transfers between processes: `libnccl`. Runs of one process do without.
    Nccl,
}

impl Library {
    /// All that the runtime uses.
    pub const ALL: [Self; 5] = [Self::Driver, Self::Nvrtc, Self::CublasLt, Self::Cudnn, Self::Nccl];
    /// Those without which it runs nothing.
    pub const NEEDED: [Self; 3] = [Self::Driver, Self::Nvrtc, Self::CublasLt];

    /// Its name without `lib`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "cuda",
            Self::Nvrtc => "nvrtc",
            Self::CublasLt => "cublasLt",
            Self::Cudnn => "cudnn",
            Self::Nccl => "nccl",
        }
    }

    /// What it is for, and where it comes from.
    pub fn about(self) -> &'static str {
        match self {
            Self::Driver => "the driver's library; it comes with NVIDIA's kernel driver",
            Self::Nvrtc => "compiles kernels; it comes with the CUDA toolkit or the Python package nvidia-cuda-nvrtc",
            Self::CublasLt => "matrix products; it comes with the CUDA toolkit or the Python package nvidia-cublas",
            Self::Cudnn => {
                "attention on Hopper, 9.16 or later, else own kernels make it; it comes with NVIDIA's packages for cuDNN or the Python \
                 package nvidia-cudnn-cu13"
            }
            Self::Nccl => {
                "for several processes or hosts; it comes with NVIDIA's packages for NCCL or the Python package nvidia-nccl-cu13"
            }
        }
    }

    /// Whether the loader finds it.
    pub fn is_present(self) -> bool {
        // SAFETY: these load the library and look at nothing in it. Its initialisers run, as for any program that links it.
        unsafe {
            match self {
                Self::Driver => driver::sys::is_culib_present(),
                Self::Nvrtc => nvrtc::sys::is_culib_present(),
                Self::CublasLt => cublaslt::sys::is_culib_present(),
                Self::Cudnn => cudnn::library::is_present(),
                Self::Nccl => nccl::library::is_present(),
            }
        }
    }

    /// What the loader is asked for.
    fn names(self) -> Vec<String> {
        match self {
            Self::Cudnn => return cudnn::library::NAMES.map(str::to_owned).to_vec(),
            Self::Nccl => return nccl::library::NAMES.map(str::to_owned).to_vec(),
            Self::Driver | Self::Nvrtc | Self::CublasLt => {}
        }
        let mut names: Vec<String> = get_lib_name_candidates(self.name());
        // The list has names twice, and some that only Windows has.
        names.retain(|name| name.starts_with(&format!("lib{}.so", self.name())));
        names.dedup();
        names
    }

    /// # Errors
    /// If the loader does not find it; says under which names it was looked for.
    pub fn require(self) -> Result<()> {
        if self.is_present() {
            return Ok(());
        }
        let names = self.names();
        let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let path = if path.is_empty() {
            "LD_LIBRARY_PATH is not set".to_owned()
        } else {
            format!("LD_LIBRARY_PATH is {path}")
        };
        Err(Error::new(format!("no lib{} on this computer ({})", self.name(), self.about())).help(format!(
            "the loader was asked for {}; {path}. `dualweave doctor` says what there is",
            names.join(", ")
        )))
    }
}
