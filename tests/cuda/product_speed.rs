//! How fast matrix products are at a large model's shapes. Prints, and asserts nothing:
//! `cargo test --release --test cuda product_speed -- --ignored --nocapture`.

use dualweave::runtime::cuda::ops::grouped::{self, Experts};
use dualweave::runtime::cuda::product::{Blocked, Products, Tiled};
use dualweave::runtime::cuda::{Bf16, Element, Event, Fp8, Slice};

use crate::gpu::{Gpu, Random, gpu};

/// Runs before the clock starts, and runs on it.
const RUNS: (u32, u32) = (3, 10);

/// Random numbers, of which so many are made; a GPU's power, and so its clock, depends on them.
const PERIOD: usize = 1 << 20;

fn filled<E: Element>(gpu: &mut Gpu, values: &[E], count: usize) -> Slice<E> {
    let (from, to) = (gpu.given(values), gpu.poisoned::<E>(count));
    for start in (0..count).step_by(values.len()) {
        let part = to.part(start..count.min(start + values.len()));
        part.copy_from(&gpu.stream, from.part(0..part.len())).expect("copied");
    }
    to
}

fn bf16(gpu: &mut Gpu, seed: u64, count: usize) -> Slice<Bf16> {
    let values = Random::new(seed).bf16(PERIOD, 1.0).0;
    filled(gpu, &values, count)
}

/// Prints TFLOP/s of launches of `2 · m · n · k` FLOPs.
fn report(gpu: &Gpu, what: &str, flops: f64, launch: impl Fn()) {
    let event = || Event::new(&gpu.device, true).expect("an event");
    let (start, end) = (event(), event());
    (0..RUNS.0).for_each(|_| launch());
    start.record(&gpu.stream).expect("recorded");
    (0..RUNS.1).for_each(|_| launch());
    end.record(&gpu.stream).expect("recorded");
    end.synchronize().expect("ended");
    let milliseconds = f64::from(end.since(&start).expect("both have happened")) / f64::from(RUNS.1);
    println!("{what:<55} {milliseconds:>8.3} ms {:>7.1} TFLOP/s", flops / milliseconds * 1e-9);
}

fn dense(gpu: &mut Gpu, products: &Products, shape: (usize, usize, usize), budgets: &[u32]) {
    let (rows, inputs, outputs) = shape;
    let (x, w, y) = (bf16(gpu, 1, rows * inputs), bf16(gpu, 2, outputs * inputs), bf16(gpu, 3, rows * outputs));
    let dw = gpu.poisoned::<f32>(outputs * inputs);
    dw.fill_bytes(&gpu.stream, 0).expect("filled");
    let flops = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
    for &sms in budgets {
        let what = |product: &str| format!("{product} {rows} × {inputs} → {outputs}, {sms} SMs");
        report(gpu, &what("forward"), flops, || {
            products.forward(&gpu.stream, sms, x, w, y, shape, false).expect("launched");
        });
        report(gpu, &what("input gradient"), flops, || {
            products.input_gradient(&gpu.stream, sms, y, w, x, shape, false).expect("launched");
        });
        report(gpu, &what("weight gradient"), flops, || {
            products.weight_gradient(&gpu.stream, sms, x, y, dw, shape).expect("launched");
        });
    }
}

#[test]
#[ignore = "measures; needs a GPU to itself"]
fn dense_products() {
    let Some(mut gpu) = gpu() else { return };
    let products = Products::new(&gpu.device).expect("cuBLASLt");
    let shapes = [
        (8192, 7168, 4096),
        (4096, 7168, 1536),
        (4096, 1536, 24576),
        (4096, 7168, 576),
        (4096, 512, 32768),
        (4096, 16384, 7168),
    ];
    for shape in shapes {
        dense(&mut gpu, &products, shape, &[132, 112]);
        gpu.release();
    }
}

#[test]
#[ignore = "measures; needs a GPU to itself"]
fn fp8_products() {
    let Some(mut gpu) = gpu() else { return };
    let products = Products::new(&gpu.device).expect("cuBLASLt");
    let mut random = Random::new(4);
    // Numbers of ordinary size: exponents from 2⁻³ to 2⁰ and any sign.
    let codes: Vec<Fp8> = (0..PERIOD).map(|_| Fp8(random.bits() as u8 & 0x9f | 0x20)).collect();
    for (rows, inputs, outputs) in [(8192, 7168, 4096), (4096, 16384, 7168)] {
        let tiled = |gpu: &mut Gpu, rows: usize, depth: usize| Tiled {
            values: filled(gpu, &codes, rows * depth),
            scales: filled(gpu, &[1f32; 4096], Tiled::scales(rows, depth)),
        };
        let (x, xt, dyt) =
            (tiled(&mut gpu, rows, inputs), tiled(&mut gpu, inputs, rows), tiled(&mut gpu, outputs, rows));
        let w = Blocked {
            values: filled(&mut gpu, &codes, outputs * inputs),
            scales: filled(&mut gpu, &[1f32; 4096], Blocked::scales(outputs, inputs)),
        };
        let (y, dw) = (gpu.poisoned::<Bf16>(rows * outputs), gpu.poisoned::<f32>(outputs * inputs));
        let flops = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
        for sms in [132, 112] {
            let what = |product: &str| format!("FP8 {product} {rows} × {inputs} → {outputs}, {sms} SMs");
            report(&gpu, &what("forward"), flops, || {
                products.forward_fp8(&gpu.stream, sms, x, w, y, (rows, inputs, outputs), false).expect("launched");
            });
            report(&gpu, &what("weight gradient"), flops, || {
                products.weight_gradient_fp8(&gpu.stream, sms, xt, dyt, dw, (rows, inputs, outputs)).expect("launched");
            });
        }
        gpu.release();
    }
}

#[test]
#[ignore = "measures; needs a GPU to itself"]
fn grouped_products() {
    let Some(mut gpu) = gpu() else { return };
    let (count, each) = (32, 1024);
    let rows = count * each;
    let offsets: Vec<u32> = (0..=count).map(|expert| (expert * each) as u32).collect();
    for (inputs, outputs) in [(7168, 4096), (2048, 7168)] {
        let (stride, shape) = (inputs * outputs, (inputs, outputs));
        let offsets = gpu.given(&offsets);
        let (x, y) = (bf16(&mut gpu, 5, rows * inputs), bf16(&mut gpu, 6, rows * outputs));
        let w = Experts { first: bf16(&mut gpu, 7, count * stride), stride, count };
        let dw = Experts { first: gpu.poisoned::<f32>(count * stride), stride, count };
        dw.first.fill_bytes(&gpu.stream, 0).expect("filled");
        let flops = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
        for sms in [132, 112] {
            let what = |product: &str| format!("{product} {count} · {each} × {inputs} → {outputs}, {sms} SMs");
            report(&gpu, &what("forward"), flops, || {
                grouped::forward(&gpu.stream, sms, x, w, offsets, y, shape).expect("launched");
            });
            report(&gpu, &what("input gradient"), flops, || {
                grouped::input_gradient(&gpu.stream, sms, y, w, offsets, x, shape).expect("launched");
            });
            report(&gpu, &what("weight gradient"), flops, || {
                grouped::weight_gradient(&gpu.stream, sms, x, y, offsets, dw, shape).expect("launched");
            });
        }
        gpu.release();
    }
}
