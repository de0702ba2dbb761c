//! RMSNorm, against the host's.

use dualweave::runtime::cuda::ops::norm;
use dualweave::runtime::host::Matrix;
use dualweave::runtime::host::layers::rmsnorm::RmsNorm;

use crate::gpu::{BF16, Random, assert_close, gpu};

#[test]
fn forward_is_the_hosts() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(1);
    for (rows, width, stride) in [(1, 8, 8), (33, 256, 256), (300, 512, 576), (64, 7168, 7168)] {
        let (x, exact) = random.bf16(rows * stride, 1.5);
        let (gain, exact_gain) = random.f32(width, 1.0, 0.3);
        let (x, gain, y) = (gpu.given(&x), gpu.given(&gain), gpu.poisoned(rows * width));
        norm::forward(&gpu.stream, 132, (x, stride), gain, y, 1e-6).expect("launched");
        let mut host = RmsNorm::<f64>::new(width);
        host.gain.values = Matrix::new(1, width, exact_gain);
        let read = exact.chunks_exact(stride).flat_map(|row| &row[..width]).copied().collect();
        let (expected, _) = host.forward(1e-6, None, Matrix::new(rows, width, read));
        assert_close(&format!("{rows} × {width}"), &gpu.floats(y), expected.values(), BF16);
    }
}
