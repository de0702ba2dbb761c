//! k and v of latent attention, against the same by rows.

use dualweave::runtime::cuda::ops::latent::{self, Dims};

use crate::gpu::{BF16, Random, assert_close, gpu};

/// Tokens, dimensions, values from a row of the shared part to the next, and its first column.
const CASES: [(usize, Dims, usize, usize); 4] = [
    (1, Dims { heads: 1, nope: 8, rope: 8, value: 8 }, 8, 0),
    (17, Dims { heads: 3, nope: 16, rope: 8, value: 24 }, 40, 32),
    (33, Dims { heads: 128, nope: 128, rope: 64, value: 128 }, 576, 512),
    (9, Dims { heads: 5, nope: 8, rope: 72, value: 16 }, 96, 16),
];

#[test]
fn k_and_v_are_spread() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(40);
    for (tokens, dims, stride, first) in CASES {
        let Dims { heads, nope, rope, value } = dims;
        let (kv, exact) = random.bf16(tokens * heads * (nope + value), 1.0);
        let (down, shared) = random.bf16(tokens * stride, 1.0);
        let (kv, down) = (gpu.given(&kv), gpu.given(&down));
        let (k, v) = (gpu.poisoned(tokens * heads * (nope + rope)), gpu.poisoned(tokens * heads * value));
        gpu.steady(&[k.cast(), v.cast()], |stream, sms| {
            latent::spread(stream, sms, kv, (down, stride, first), k, v, dims)
        });
        let (mut expected_k, mut expected_v) = (Vec::new(), Vec::new());
        for (index, head) in exact.chunks(nope + value).enumerate() {
            let row = &shared[index / heads * stride..];
            expected_k.extend_from_slice(&head[..nope]);
            expected_k.extend_from_slice(&row[first..first + rope]);
            expected_v.extend_from_slice(&head[nope..]);
        }
        assert!(gpu.floats(k) == expected_k, "k of {dims:?}");
        assert!(gpu.floats(v) == expected_v, "v of {dims:?}");
    }
}

#[test]
fn gradients_are_gathered() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(41);
    for (tokens, dims, stride, first) in CASES {
        let Dims { heads, nope, rope, value } = dims;
        let (dk, exact_k) = random.bf16(tokens * heads * (nope + rope), 1.0);
        let (dv, exact_v) = random.bf16(tokens * heads * value, 1.0);
        let (dk, dv) = (gpu.given(&dk), gpu.given(&dv));
        let (d_kv, d_down) = (gpu.poisoned(tokens * heads * (nope + value)), gpu.poisoned(tokens * stride));
        gpu.steady(&[d_kv.cast(), d_down.cast()], |stream, sms| {
            latent::gather(stream, sms, d_kv, (d_down, stride, first), dk, dv, dims)
        });
        let (mut expected, mut shared) = (Vec::new(), vec![0.0; tokens * rope]);
        for (index, (dk, dv)) in exact_k.chunks(nope + rope).zip(exact_v.chunks(value)).enumerate() {
            expected.extend_from_slice(&dk[..nope]);
            expected.extend_from_slice(dv);
            let sums = &mut shared[index / heads * rope..][..rope];
            sums.iter_mut().zip(&dk[nope..]).for_each(|(sum, d)| *sum += d);
        }
        assert!(gpu.floats(d_kv) == expected, "kv of {dims:?}");
        let down = gpu.floats(d_down);
        let columns: Vec<f64> = down.chunks(stride).flat_map(|row| &row[first..first + rope]).copied().collect();
        assert_close(&format!("{dims:?}"), &columns, &shared, BF16);
        let others = down.chunks(stride).flat_map(|row| row[..first].iter().chain(&row[first + rope..]));
        assert!(others.into_iter().all(|value| value.is_nan()), "other columns are left as they are");
    }
}
