//! Every CUDA source compiles, for the oldest GPUs that it is written for and for Hopper. Needs NVRTC, but no GPU.
//!
//! Where the loader does not find NVRTC the test says so and passes, unless `DUALWEAVE_NEEDS_NVRTC` is set.

use dualweave::runtime::cuda::compile::{OLDEST, SOURCES, compile};
use dualweave::runtime::cuda::libraries::Library;

#[test]
fn every_source_compiles() {
    if let Err(error) = Library::Nvrtc.require() {
        assert!(std::env::var_os("DUALWEAVE_NEEDS_NVRTC").is_none(), "{error:?}");
        eprintln!("skipped: {error:?}");
        return;
    }
    for source in SOURCES {
        for capability in [OLDEST, 90] {
            let image = compile(source, capability).unwrap_or_else(|error| panic!("{error:?}"));
            assert!(image.starts_with(b"\x7fELF"), "{}.cu for {capability} is no machine code", source.name);
            for kernel in source.kernels() {
                let found = image.windows(kernel.len()).any(|window| window == kernel.as_bytes());
                assert!(found, "{kernel} is not in {}.cu for {capability}", source.name);
            }
        }
    }
}

#[test]
fn kernels_have_different_names() {
    let mut names: Vec<_> = SOURCES.iter().flat_map(|source| source.kernels()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}
