//! A GPU to test on, values to test with, and how results are compared.

use std::sync::Arc;

use dualweave::error::Result;
use dualweave::runtime::cuda::stream::Priority;
use dualweave::runtime::cuda::{Bf16, Device, Element, Memory, Slice, Stream};

/// A GPU and a stream of it. What is allocated through it lives as long as it does.
pub struct Gpu {
    pub device: Arc<Device>,
    pub stream: Stream,
    memory: Vec<Memory>,
}

/// The first GPU; `None` where there is none, and then the test's output says why.
pub fn gpu() -> Option<Gpu> {
    match Device::open(0) {
        Ok(device) => Some(Gpu::on(&device)),
        Err(error) => {
            assert!(std::env::var_os("DUALWEAVE_NEEDS_GPU").is_none(), "{error:?}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

impl Gpu {
    /// With a stream of its own.
    pub fn on(device: &Arc<Device>) -> Self {
        let stream = Stream::new(device, Priority::Low).expect("a stream");
        Self { device: Arc::clone(device), stream, memory: Vec::new() }
    }

    /// Values on the GPU.
    pub fn given<E: Element>(&mut self, values: &[E]) -> Slice<E> {
        let slice = self.room(values.len());
        slice.write(&self.stream, values).expect("values are copied");
        slice
    }

    /// Room for results, every byte of it 0xff: as bf16, f32 and e4m3 that is NaN.
    pub fn poisoned<E: Element>(&mut self, count: usize) -> Slice<E> {
        let slice = self.room(count);
        slice.fill_bytes(&self.stream, 0xff).expect("memory is filled");
        slice
    }

    fn room<E: Element>(&mut self, count: usize) -> Slice<E> {
        self.memory.push(Memory::of::<E>(&self.device, count).expect("room on the GPU"));
        self.memory.last().expect("pushed above").all::<E>().part(0..count)
    }

    /// Frees what was allocated so far.
    pub fn release(&mut self) {
        self.memory.clear();
    }

    pub fn floats(&self, slice: Slice<Bf16>) -> Vec<f64> {
        slice.read(&self.stream).expect("results").into_iter().map(|value| f64::from(value.to_f32())).collect()
    }

    pub fn numbers(&self, slice: Slice<f32>) -> Vec<f64> {
        slice.read(&self.stream).expect("results").into_iter().map(f64::from).collect()
    }

    /// Runs an op with several numbers of SMs, the first of them twice, and asserts that results have the same bits each time. They are
    /// poisoned before; the op itself puts back what it adds to or changes in place.
    pub fn steady(&self, results: &[Slice<u8>], run: impl Fn(&Stream, u32) -> Result<()>) {
        let read = |sms| {
            results.iter().for_each(|slice| slice.fill_bytes(&self.stream, 0xff).expect("memory is filled"));
            run(&self.stream, sms).expect("launched");
            let bytes = results.iter().map(|slice| slice.read(&self.stream).expect("results"));
            bytes.collect::<Vec<_>>()
        };
        let first = read(132);
        for sms in [132, 5, 1] {
            assert!(read(sms) == first, "the bits are others with {sms} SMs");
        }
    }
}

/// Normally distributed numbers that depend on a seed alone.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// Of 64 random bits (splitmix64).
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly from 0 to 1.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.uniform().max(1e-300), self.uniform());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// bf16 numbers, as the GPU gets them and as the host computes with them.
    pub fn bf16(&mut self, count: usize, deviation: f64) -> (Vec<Bf16>, Vec<f64>) {
        let values: Vec<Bf16> = (0..count).map(|_| Bf16::of((deviation * self.normal()) as f32)).collect();
        let exact = values.iter().map(|value| f64::from(value.to_f32())).collect();
        (values, exact)
    }

    /// f32 numbers, around `mean`.
    pub fn f32(&mut self, count: usize, mean: f64, deviation: f64) -> (Vec<f32>, Vec<f64>) {
        let values: Vec<f32> = (0..count).map(|_| (mean + deviation * self.normal()) as f32).collect();
        let exact = values.iter().map(|&value| f64::from(value)).collect();
        (values, exact)
    }
}

/// bf16 has 8 bits: rounding errs by at most one part in 256, and by less than a third of that in the mean.
pub const BF16: f64 = 3e-3;

/// f32 has 24 bits, and sums of thousands lose a few of them.
pub const F32: f64 = 3e-6;

/// Asserts that results are the expected ones within `tolerance`: in the norm of the difference, and, ten times as much, in every
/// element as part of the root mean square. NaN never passes.
pub fn assert_close(what: &str, results: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(results.len(), expected.len(), "{what}: as many results as expected");
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let norm = square(&mut expected.iter().copied()).sqrt();
    let apart = square(&mut results.iter().zip(expected).map(|(a, b)| a - b)).sqrt();
    assert!(apart <= tolerance * norm, "{what}: {:.2e} apart, more than {tolerance:.0e}", apart / norm);
    let mean = norm / (expected.len().max(1) as f64).sqrt();
    for (index, (result, expected)) in results.iter().zip(expected).enumerate() {
        let scale = mean.max(expected.abs());
        assert!(
            (result - expected).abs() <= 10.0 * tolerance * scale,
            "{what}: element {index} is {result}, not {expected}"
        );
    }
    eprintln!("{what}: {:.2e} apart ({} elements)", apart / norm, results.len());
}
