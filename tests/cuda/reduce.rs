//! Sums of arrays, against the same in f64.

use dualweave::runtime::cuda::Slice;
use dualweave::runtime::cuda::ops::reduce;

use crate::gpu::{F32, Random, assert_close, gpu};

#[test]
fn arrays_are_added_in_order() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(90);
    for (count, len, offset) in [(1, 1, 0), (2, 1003, 4), (8, 100_000, 512), (64, 70, 8)] {
        let arrays: Vec<(Vec<f32>, Vec<f64>)> = (0..count).map(|_| random.f32(offset + len, 0.0, 1.0)).collect();
        let slices: Vec<Slice<f32>> = arrays.iter().map(|(values, _)| gpu.given(values)).collect();
        let addresses: Vec<u64> = slices.iter().map(|slice| slice.address()).collect();
        let (sources, to) = (gpu.given(&addresses), gpu.poisoned(len));
        gpu.steady(&[to.cast()], |stream, sms| reduce::sum(stream, sms, sources, offset, to));
        let expected: Vec<f64> =
            (offset..offset + len).map(|i| arrays.iter().map(|(_, exact)| exact[i]).sum()).collect();
        let results = gpu.numbers(to);
        assert_close(&format!("{count} × {len}"), &results, &expected, F32);

        let one_of_them = slices[count / 2].part(offset..offset + len);
        reduce::sum(&gpu.stream, 7, sources, offset, one_of_them).expect("launched");
        assert_eq!(gpu.numbers(one_of_them), results, "in place");
        let before = slices[count / 2].part(0..offset);
        assert!(gpu.numbers(before) == arrays[count / 2].1[..offset], "nothing else is written");
    }
}
