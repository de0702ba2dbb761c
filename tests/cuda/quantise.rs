//! FP8, against the host's emulation: the same values, exactly.

use dualweave::job::model::Dtype;
use dualweave::runtime::cuda::ops::grouped::Experts;
use dualweave::runtime::cuda::ops::quantise::{self, Groups, RowScales, Scale, Source, TILE, Weights};
use dualweave::runtime::cuda::ops::{Rows, quantise::tile_scales};
use dualweave::runtime::cuda::product::Tiled;
use dualweave::runtime::cuda::{Bf16, Fp8, Slice};
use dualweave::runtime::host::Matrix;
use dualweave::runtime::host::precision::{Tiles, round_scaled};

use crate::gpu::{Gpu, Random, gpu};

/// Rows that there is room for, rows that there are, width.
const CASES: [(usize, usize, usize); 6] =
    [(16, 1, 8), (16, 16, 128), (144, 130, 200), (400, 257, 1024), (256, 0, 64), (1024, 1024, 520)];

/// The value of an e4m3 number (Micikevicius et al. 2022, table 1): bias 7, no infinities, NaN where all bits are set.
pub fn value(number: Fp8) -> f64 {
    let (exponent, mantissa) = (i32::from(number.0 >> 3 & 0xf), f64::from(number.0 & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f64.powi(-6),
        15 if number.0 & 7 == 7 => f64::NAN,
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if number.0 & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Values of different magnitudes; many have few bits, so that ties and almost ties are met; one piece of 300 is zero.
pub fn activations(random: &mut Random, rows: usize, width: usize) -> (Vec<Bf16>, Vec<f64>) {
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

/// As the host rounds: tiles of 448 and more magnitudes, in fp32.
pub fn host(rows: usize, columns: usize, values: &[f64], tiles: Tiles, scale: Scale) -> Vec<f64> {
    let mut matrix = Matrix::new(rows, columns, values.iter().map(|&value| value as f32).collect());
    round_scaled(&mut matrix, Some(Dtype::Fp8), tiles, scale);
    matrix.values().iter().map(|&value| f64::from(value)).collect()
}

/// Room for rows × depth of FP8 with scales.
pub fn room(gpu: &mut Gpu, rows: usize, depth: usize) -> Tiled {
    Tiled { values: gpu.poisoned(rows * depth), scales: gpu.poisoned(tile_scales(rows, depth)) }
}

pub const SCALES: [Scale; 2] = [Scale::Exact, Scale::PowerOfTwo];

/// Whether this GPU has FP8; if not, that it says so.
pub fn has_fp8(gpu: &Gpu, error: Option<String>) -> bool {
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
    for ((most, there, width), scale) in CASES.into_iter().flat_map(|case| SCALES.map(|scale| (case, scale))) {
        let (x, exact) = activations(&mut random, most, width);
        let (x, y) = (gpu.given(&x), room(&mut gpu, most, width));
        let rows = Rows { most, count: gpu.given(&[there as u32]) };
        let launched = quantise::rows(&gpu.stream, 9, x, y, width, rows, scale);
        if !has_fp8(&gpu, launched.err().map(|error| error.to_string())) {
            return;
        }
        let results = [y.values.cast(), y.scales.cast()];
        gpu.steady(&results, |stream, sms| quantise::rows(stream, sms, x, y, width, rows, scale));
        let expected = host(there, width, &exact[..there * width], Tiles::Rows, scale);
        let (numbers, scales) = (y.values.read(&gpu.stream).expect("results"), gpu.numbers(y.scales));
        for row in 0..most {
            for column in 0..width {
                let (number, scale) = (numbers[row * width + column], scales[column / 128 * most + row]);
                if row < there {
                    // The product has few enough bits for f64; the host's is an f32.
                    let result = f64::from((value(number) * scale) as f32);
                    assert_eq!(result, expected[row * width + column], "row {row}, column {column}");
                } else {
                    assert!(number == Fp8(0xff) && scale.is_nan(), "row {row} is not written");
                }
            }
        }
    }
}

/// Rows in FP8 as bf16 again, with scales by tile and by row; and from one to the other.
#[test]
fn what_is_sent_is_read_again() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(103);
    for (most, there, width) in CASES {
        let (x, exact) = activations(&mut random, most, width);
        let (x, y) = (gpu.given(&x), room(&mut gpu, most, width));
        let rows = Rows { most, count: gpu.given(&[there as u32]) };
        let launched = quantise::rows(&gpu.stream, 9, x, y, width, rows, Scale::PowerOfTwo);
        if !has_fp8(&gpu, launched.err().map(|error| error.to_string())) {
            return;
        }
        let tiles = width.div_ceil(TILE);
        let scales = y.scales.read(&gpu.stream).expect("scales");
        let by_row: Vec<f32> = (0..most * tiles).map(|at| scales[at % tiles * most + at / tiles]).collect();
        let by_row = gpu.given(&by_row);
        let expected = host(most, width, &exact, Tiles::Rows, Scale::PowerOfTwo);
        for from in [RowScales::ByTile(y.scales), RowScales::ByRow(by_row)] {
            let wide = gpu.poisoned::<Bf16>(most * width);
            let read = |stream: &_, sms| quantise::dequantise_rows(stream, sms, (y.values, from), wide, width, rows);
            gpu.steady(&[wide.cast()], read);
            let wide = gpu.floats(wide);
            assert!(wide[..there * width] == expected[..there * width], "{there} × {width}");
            assert!(wide[there * width..].iter().all(|value| value.is_nan()), "rows behind {there} of {most}");
        }
        let turned = gpu.poisoned::<f32>(tiles * most);
        let turn = |stream: &_, sms| quantise::turn_scales(stream, sms, by_row, turned, tiles, rows);
        gpu.steady(&[turned.cast()], turn);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert!(bits(turned.read(&gpu.stream).expect("scales")) == bits(scales), "scales of {there} rows");
    }
}

/// Rows of each expert; rows in front of the first and behind the last; width. Without experts where there is only one and none outside.
const GROUPS: [(&[usize], [usize; 2], usize); 7] = [
    (&[1], [0, 0], 8),
    (&[130], [0, 0], 200),
    (&[272], [0, 0], 64),
    (&[0, 0], [3, 5], 64),
    (&[128, 1, 0, 300], [0, 40], 136),
    (&[0, 129, 256, 7, 0], [9, 0], 520),
    (&[5; 70], [1, 1], 72),
];

#[test]
fn tiles_along_columns() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(101);
    for ((experts, [front, behind], width), scale) in
        GROUPS.into_iter().flat_map(|case| SCALES.map(|scale| (case, scale)))
    {
        let most = front + experts.iter().sum::<usize>() + behind;
        let mut offsets = vec![front as u32];
        experts.iter().for_each(|&rows| offsets.push(offsets[offsets.len() - 1] + rows as u32));
        let one = experts.len() == 1 && front + behind == 0;
        let groups = if one { Groups::one(most) } else { Groups { most, offsets: gpu.given(&offsets) } };
        let (values, exact) = activations(&mut random, most, width);
        let x = gpu.given(&values);
        let read = room(&mut gpu, most, width);
        let launched = quantise::rows(&gpu.stream, 132, x, read, width, Rows::exactly(most), scale);
        if !has_fp8(&gpu, launched.err().map(|error| error.to_string())) {
            return;
        }
        let again = host(most, width, &exact, Tiles::Rows, scale);
        let y = room(&mut gpu, width, groups.columns());
        for (source, exact) in [(Source::Values(x), &exact), (Source::Quantised(read), &again)] {
            let results = [y.values.cast(), y.scales.cast()];
            gpu.steady(&results, |stream, sms| quantise::columns(stream, sms, source, y, width, groups, scale));
            let (numbers, scales) = (y.values.read(&gpu.stream).expect("results"), gpu.numbers(y.scales));
            let mut tile = 0;
            for (expert, &rows) in experts.iter().enumerate() {
                let first = offsets[expert] as usize;
                let expected = host(rows, width, &exact[first * width..(first + rows) * width], Tiles::Columns, scale);
                for row in 0..rows.next_multiple_of(128) {
                    let at = 128 * tile + row;
                    for column in (0..width).filter(|_| at < groups.columns()) {
                        let (number, scale) =
                            (numbers[column * groups.columns() + at], scales[at / 128 * width + column]);
                        let result = f64::from((value(number) * scale) as f32);
                        let expected = if row < rows { expected[row * width + column] } else { 0.0 };
                        assert_eq!(result, expected, "row {row} of expert {expert}, column {column}");
                    }
                }
                tile += rows.div_ceil(128);
            }
            for at in 128 * tile..groups.columns() {
                let untouched = (0..width).all(|column| numbers[column * groups.columns() + at] == Fp8(0xff));
                assert!(untouched, "column {at} is of no expert");
            }
        }
    }
}

#[test]
fn blocks_of_weights() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(102);
    for (count, outputs, inputs) in [(1, 16, 16), (1, 128, 256), (3, 272, 144), (2, 640, 1040)] {
        let (size, stride) = (outputs * inputs, outputs * inputs + 24);
        let (w, exact) = random.bf16(count * stride, 0.02);
        let w = Experts { first: gpu.given(&w), stride, count };
        let bytes = Weights::bytes(count, outputs, inputs);
        let memory: Slice<u8> = gpu.poisoned(bytes);
        let to = Weights::at(memory, count, outputs, inputs);
        let launched = quantise::blocks(&gpu.stream, 9, w, &to);
        if !has_fp8(&gpu, launched.err().map(|error| error.to_string())) {
            return;
        }
        gpu.steady(&[memory], |stream, sms| quantise::blocks(stream, sms, w, &to));
        let (numbers, scales) = (to.values.values.read(&gpu.stream).expect("results"), gpu.numbers(to.values.scales));
        let turned = to.transposed.values.read(&gpu.stream).expect("results");
        let turned_scales = gpu.numbers(to.transposed.scales);
        let apart = |columns: usize| columns.div_ceil(128).next_multiple_of(4);
        let (own, other) = (quantise::block_scales(outputs, inputs), quantise::block_scales(inputs, outputs));
        for matrix in 0..count {
            let exact = &exact[matrix * stride..matrix * stride + size];
            let expected = host(outputs, inputs, exact, Tiles::Blocks, Scale::Exact);
            for (row, column) in (0..outputs).flat_map(|row| (0..inputs).map(move |column| (row, column))) {
                let scale = scales[matrix * own + row / 128 * apart(inputs) + column / 128];
                let number = numbers[matrix * size + row * inputs + column];
                let result = f64::from((value(number) * scale) as f32);
                assert_eq!(result, expected[row * inputs + column], "row {row}, column {column}");
                assert_eq!(turned[matrix * size + column * outputs + row], number, "transposed");
                let same = turned_scales[matrix * other + column / 128 * apart(outputs) + row / 128];
                assert_eq!(same, scale, "its scale");
            }
        }
    }
}
