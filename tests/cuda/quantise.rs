//! FP8, against the host's emulation: the same values, exactly.

use dualweave::job::model::Dtype;
use dualweave::runtime::cuda::ops::{Rows, quantise};
use dualweave::runtime::cuda::{Bf16, Fp8, Slice};
use dualweave::runtime::host::Matrix;
use dualweave::runtime::host::precision::{Tiles, round};

use crate::gpu::{Gpu, Random, gpu};

/// Rows that there is room for, rows that there are, width.
const CASES: [(usize, usize, usize); 6] =
    [(16, 1, 8), (16, 16, 128), (144, 130, 200), (400, 257, 1024), (256, 0, 64), (1024, 1024, 520)];

/// The value of an e4m3 number (Micikevicius et al. 2022, table 1): bias 7, no infinities, NaN where all bits are set.
fn value(number: Fp8) -> f64 {
    let (exponent, mantissa) = (i32::from(number.0 >> 3 & 0xf), f64::from(number.0 & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f64.powi(-6),
        15 if number.0 & 7 == 7 => f64::NAN,
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if number.0 & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Values of different magnitudes; many have few bits, so that ties and almost ties are met; one piece of 300 is zero.
fn activations(random: &mut Random, rows: usize, width: usize) -> (Vec<Bf16>, Vec<f64>) {
    let mut exact = Vec::with_capacity(rows * width);
    for index in 0..rows * width {
        let magnitude = 2f64.powi((index / 97 % 40) as i32 - 20);
        let value = random.normal() * magnitude;
        let few = (random.bits() % 33) as f64 / 8.0 * magnitude;
        exact.push(match index {
            1000..1300 => 0.0,
            _ if index / 512 % 2 == 0 => few,
            _ => value,
        });
    }
    let values: Vec<Bf16> = exact.iter().map(|&value| Bf16::of(value as f32)).collect();
    let exact = values.iter().map(|value| f64::from(value.to_f32())).collect();
    (values, exact)
}

fn host(rows: usize, columns: usize, values: Vec<f64>, tiles: Tiles) -> Matrix<f64> {
    let mut matrix = Matrix::new(rows, columns, values);
    round(&mut matrix, Some(Dtype::Fp8), tiles);
    matrix
}

/// Whether this GPU has FP8; if not, that it says so.
fn has_fp8(gpu: &Gpu, error: Option<String>) -> bool {
    if gpu.device.capability >= 89 {
        return true;
    }
    assert!(error.is_some_and(|error| error.contains("has no FP8")), "an error that says what is missing");
    false
}

#[test]
fn tiles_along_rows() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(100);
    for (most, there, width) in CASES {
        let (x, exact) = activations(&mut random, most, width);
        let (x, y, scales) =
            (gpu.given(&x), gpu.poisoned(most * width), gpu.poisoned(quantise::tile_scales(most, width)));
        let rows = Rows { most, count: gpu.given(&[there as u32]) };
        let launched = quantise::rows(&gpu.stream, 9, x, y, scales, width, rows);
        if !has_fp8(&gpu, launched.err().map(|error| error.to_string())) {
            return;
        }
        gpu.steady(&[y.cast(), scales.cast()], |stream, sms| quantise::rows(stream, sms, x, y, scales, width, rows));
        let expected = host(there, width, exact[..there * width].to_vec(), Tiles::Rows);
        let (numbers, scales) = (y.read(&gpu.stream).expect("results"), gpu.numbers(scales));
        for row in 0..most {
            for column in 0..width {
                let (number, scale) = (numbers[row * width + column], scales[column / 128 * most + row]);
                if row < there {
                    let result = value(number) * scale;
                    assert_eq!(result, expected.row(row)[column], "row {row}, column {column}");
                } else {
                    assert!(number == Fp8(0xff) && scale.is_nan(), "row {row} is not written");
                }
            }
        }
    }
}

#[test]
fn tiles_along_columns() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(101);
    for (most, there, width) in CASES {
        let (x, exact) = activations(&mut random, most, width);
        let (x, y, scales) =
            (gpu.given(&x), gpu.poisoned(most * width), gpu.poisoned(quantise::tile_scales(width, most)));
        let rows = Rows { most, count: gpu.given(&[there as u32]) };
        let launched = quantise::columns(&gpu.stream, 9, x, y, scales, width, rows);
        if !has_fp8(&gpu, launched.err().map(|error| error.to_string())) {
            return;
        }
        gpu.steady(&[y.cast(), scales.cast()], |stream, sms| quantise::columns(stream, sms, x, y, scales, width, rows));
        let expected = host(there, width, exact[..there * width].to_vec(), Tiles::Columns);
        let (numbers, scales) = (y.read(&gpu.stream).expect("results"), gpu.numbers(scales));
        for column in 0..width {
            for row in 0..most {
                let (number, scale) = (numbers[column * most + row], scales[row / 128 * width + column]);
                if row < there {
                    let result = value(number) * scale;
                    assert_eq!(result, expected.row(row)[column], "row {row}, column {column}");
                } else if row < there.next_multiple_of(128) {
                    assert_eq!(value(number), 0.0, "row {row} is zero up to the end of the tile");
                } else {
                    assert!(number == Fp8(0xff) && scale.is_nan(), "row {row} is not written");
                }
            }
        }
    }
}

#[test]
fn blocks_of_weights() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(102);
    for (outputs, inputs) in [(16, 16), (128, 256), (272, 144), (640, 1040)] {
        let (w, exact) = random.f32(outputs * inputs, 0.0, 0.02);
        let len = outputs * inputs;
        let (w, y, turned) = (gpu.given(&w), gpu.poisoned::<Fp8>(len), gpu.poisoned::<Fp8>(len));
        let own = quantise::block_scales(outputs, inputs);
        let scales: Slice<f32> = gpu.poisoned(own + quantise::block_scales(inputs, outputs));
        let launched = quantise::blocks(&gpu.stream, 9, w, y, turned, scales, outputs, inputs);
        if !has_fp8(&gpu, launched.err().map(|error| error.to_string())) {
            return;
        }
        gpu.steady(&[y.cast(), turned.cast(), scales.cast()], |stream, sms| {
            quantise::blocks(stream, sms, w, y, turned, scales, outputs, inputs)
        });
        let expected = host(outputs, inputs, exact, Tiles::Blocks);
        let (numbers, scales) = (y.read(&gpu.stream).expect("results"), gpu.numbers(scales));
        let turned = turned.read(&gpu.stream).expect("results");
        let stride = |columns: usize| columns.div_ceil(128).next_multiple_of(4);
        for row in 0..outputs {
            for column in 0..inputs {
                let scale = scales[row / 128 * stride(inputs) + column / 128];
                let result = value(numbers[row * inputs + column]) * scale;
                assert_eq!(result, expected.row(row)[column], "row {row}, column {column}");
                assert_eq!(turned[column * outputs + row], numbers[row * inputs + column], "transposed");
                assert_eq!(scales[own + column / 128 * stride(outputs) + row / 128], scale, "its scale");
            }
        }
    }
}
