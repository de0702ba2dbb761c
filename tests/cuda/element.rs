//! Copies of parts of matrices.

use dualweave::runtime::cuda::ops::element;

use crate::gpu::{Random, gpu};

#[test]
fn columns_are_copied() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(11);
    for (rows, width, from_stride, to_stride) in [(1, 8, 8, 8), (33, 64, 576, 64), (257, 512, 520, 576)] {
        let (from, exact) = random.bf16(rows * from_stride, 1.0);
        let (from, to) = (gpu.given(&from), gpu.poisoned(rows * to_stride));
        gpu.steady(&[to.cast()], |stream, sms| {
            element::copy_columns(stream, sms, (from, from_stride), (to, to_stride), rows, width)
        });
        for (row, (to, from)) in gpu.floats(to).chunks(to_stride).zip(exact.chunks(from_stride)).enumerate() {
            assert_eq!(to[..width], from[..width], "row {row}");
            assert!(to[width..].iter().all(|value| value.is_nan()), "nothing is written behind row {row}");
        }
    }
}
