//! Rotary position embedding, against angles in f64.

use dualweave::runtime::cuda::Bf16;
use dualweave::runtime::cuda::ops::rope::{self, Direction, Heads};

use crate::gpu::{BF16, Random, assert_close, gpu};

/// Turns rows by definition.
fn turned(x: &[f64], heads: Heads, sequence: usize, base: f64, sign: f64) -> Vec<f64> {
    let Heads { row_stride, first, heads, head_stride, offset, width } = heads;
    let (mut y, half) = (x.to_vec(), width / 2);
    for (row, y) in y.chunks_mut(row_stride).enumerate() {
        for head in 0..heads {
            for i in 0..half {
                let angle = (row % sequence) as f64 * base.powf(-2.0 * i as f64 / width as f64);
                let (sine, cosine) = (sign * angle.sin(), angle.cos());
                let at = first + head * head_stride + offset + i;
                (y[at], y[at + half]) = (y[at] * cosine - y[at + half] * sine, y[at] * sine + y[at + half] * cosine);
            }
        }
    }
    y
}

#[test]
fn heads_turn_and_nothing_else() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(30);
    let cases = [
        // One row: nothing turns at position 0.
        (1, 7, Heads { row_stride: 16, first: 0, heads: 1, head_stride: 16, offset: 0, width: 16 }),
        // q of grouped heads, k behind it, in one matrix.
        (70, 35, Heads { row_stride: 768, first: 512, heads: 4, head_stride: 32, offset: 0, width: 32 }),
        // q of latent attention: 128 columns without position, then 64 with.
        (50, 25, Heads { row_stride: 16 * 192, first: 0, heads: 16, head_stride: 192, offset: 128, width: 64 }),
        // The shared part of k behind its latent.
        (33, 33, Heads { row_stride: 576, first: 512, heads: 1, head_stride: 64, offset: 0, width: 64 }),
        // Nothing at a multiple of 8.
        (21, 5, Heads { row_stride: 38, first: 3, heads: 5, head_stride: 7, offset: 1, width: 6 }),
        (21, 7, Heads { row_stride: 35, first: 0, heads: 5, head_stride: 7, offset: 2, width: 5 }),
        (40, 40, Heads { row_stride: 48, first: 0, heads: 2, head_stride: 24, offset: 0, width: 24 }),
    ];
    for (rows, sequence, heads) in cases {
        let (x, exact) = random.bf16(rows * heads.row_stride, 1.0);
        let result = gpu.poisoned(x.len());
        for (direction, sign) in [(Direction::Forward, 1.0), (Direction::Back, -1.0)] {
            gpu.steady(&[result.cast()], |stream, sms| {
                result.write(stream, &x)?;
                rope::turn(stream, sms, result, heads, sequence, 10_000.0, direction)
            });
            let (results, expected) = (gpu.floats(result), turned(&exact, heads, sequence, 10_000.0, sign));
            assert_close(&format!("{heads:?}, {direction:?}"), &results, &expected, BF16);
            let same = |index: &usize| exact[*index] == expected[*index];
            assert!((0..exact.len()).filter(same).all(|index| results[index] == exact[index]), "nothing else turns");
        }
    }
}

#[test]
fn far_positions_turn_exactly() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(31);
    let (rows, heads) = (100_000, Heads { row_stride: 16, first: 0, heads: 1, head_stride: 16, offset: 0, width: 16 });
    for base in [10_000f32, 1e6] {
        let (x, exact) = random.bf16(rows * 16, 1.0);
        let x = gpu.given(&x);
        rope::turn(&gpu.stream, 132, x, heads, rows, base, Direction::Forward).expect("launched");
        let expected = turned(&exact, heads, rows, f64::from(base), 1.0);
        let rounded = expected.iter().map(|&value| f64::from(Bf16::of(value as f32).to_f32()));
        // An error of 4e-7 takes few values across the middle of two bf16 numbers; one of 4e-3, as of angles in fp32, many.
        let differ = gpu.floats(x).into_iter().zip(rounded).filter(|(a, b)| a != b).count();
        assert!(differ < expected.len() / 300, "{differ} of {} are rounded otherwise", expected.len());
    }
}
