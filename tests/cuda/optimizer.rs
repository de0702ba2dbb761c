//! AdamW, against the host's.

use dualweave::runtime::cuda::ops::optimizer::{self, Step};
use dualweave::runtime::cuda::{Bf16, Slice};
use dualweave::runtime::host::Matrix;
use dualweave::runtime::host::adamw::{AdamW, State};
use dualweave::runtime::host::layers::router;
use dualweave::runtime::host::parameters::{Role, Tensor};
use dualweave::runtime::host::precision::Policy;
use dualweave::runtime::host::rate::Rate;

use crate::gpu::{F32, Random, assert_close, gpu};

#[test]
fn squares_are_added() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(80);
    for len in [1, 1027, 16384, 16385, 3_000_003] {
        let (values, exact) = random.f32(len, 0.0, 1.0);
        let (values, to) = (gpu.given(&values), gpu.poisoned(1));
        let scratch = gpu.poisoned(optimizer::square_sum_scratch(len));
        gpu.steady(&[to.cast()], |stream, sms| {
            to.write(stream, &[0.5])?;
            optimizer::square_sum(stream, sms, values, scratch, to)
        });
        let expected = 0.5 + exact.iter().map(|value| value * value).sum::<f64>();
        assert_close(&format!("{len}"), &gpu.numbers(to), &[expected], F32);
    }
}

#[test]
fn a_step_is_the_hosts() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(81);
    for (len, role, clip) in
        [(1, Role::Weight, None), (1027, Role::Gain, Some(1.0)), (200_002, Role::Weight, Some(0.7))]
    {
        let (values, exact) = random.f32(len, 0.0, 0.02);
        let (gradient, exact_gradient) = random.f32(len, 0.0, 0.1);
        let (first, exact_first) = random.f32(len, 0.0, 0.05);
        let (second, mut exact_second) = random.f32(len, 0.01, 0.001);
        exact_second.iter_mut().for_each(|value| *value = value.abs());
        let second: Vec<f32> = second.into_iter().map(f32::abs).collect();

        let adamw = AdamW { clip, learning_rate: Rate::constant(1e-3), ..AdamW::default() };
        let square_sum: f64 = exact_gradient.iter().map(|value| value * value).sum();
        let tensor = |values: Vec<f64>| Tensor { role, values: Matrix::new(1, len, values) };
        let (mut host, host_gradient) = (tensor(exact), tensor(exact_gradient));
        let mut state = State::new(&host);
        state.restore(4, vec![[exact_first, exact_second].map(|values| Matrix::new(1, len, values))]);
        adamw.step(&Policy::EXACT, &mut host, &host_gradient, &mut state, square_sum);

        let correction = |beta: f64| (1.0 / (1.0 - beta.powi(5))) as f32;
        let step = Step {
            rate: adamw.learning_rate.most as f32,
            beta1: adamw.beta1 as f32,
            beta2: adamw.beta2 as f32,
            epsilon: adamw.epsilon as f32,
            correction1: correction(adamw.beta1),
            correction2: correction(adamw.beta2),
            clip: clip.map(|clip| clip as f32),
            narrow_moments: false,
        };
        let decay = if role == Role::Weight { adamw.learning_rate.most * adamw.weight_decay } else { 0.0 };
        let squares = if clip.is_some() { gpu.given(&[square_sum as f32]) } else { Slice::none() };
        let (parameters, moments) = (gpu.poisoned(len), [gpu.poisoned(len), gpu.poisoned(len)]);
        let (gradient, copy) = (gpu.given(&gradient), gpu.poisoned(len));
        let results = [parameters.cast(), moments[0].cast(), moments[1].cast(), copy.cast()];
        for copied in [false, true] {
            gpu.steady(&results, |stream, sms| {
                parameters.write(stream, &values)?;
                moments[0].write(stream, &first)?;
                moments[1].write(stream, &second)?;
                let copy = if copied { copy } else { Slice::none() };
                optimizer::adamw(stream, sms, &step, parameters, moments, gradient, copy, decay as f32, squares)
            });
            assert_close("parameters", &gpu.numbers(parameters), host.values.values(), F32);
            for (moment, expected) in moments.iter().zip(&state.moments()[0]) {
                assert_close("moment", &gpu.numbers(*moment), expected.values(), F32);
            }
            let rounded = parameters.read(&gpu.stream).expect("results").into_iter().map(Bf16::of);
            let rounded: Vec<Bf16> = if copied { rounded.collect() } else { vec![Bf16(0xffff); len] };
            assert!(copy.read(&gpu.stream).expect("results") == rounded, "the copy is the parameters, rounded");
        }
        let read = |slice: Slice<f32>| slice.read(&gpu.stream).expect("results");
        let (updated, wide) = (read(parameters), moments.map(read));
        let step = Step { narrow_moments: true, ..step };
        gpu.steady(&results, |stream, sms| {
            parameters.write(stream, &values)?;
            moments[0].write(stream, &first)?;
            moments[1].write(stream, &second)?;
            optimizer::adamw(stream, sms, &step, parameters, moments, gradient, copy, decay as f32, squares)
        });
        assert!(read(parameters) == updated, "moments are rounded behind the update");
        for (moment, wide) in moments.into_iter().zip(wide) {
            let rounded: Vec<f32> = wide.into_iter().map(|value| Bf16::of(value).to_f32()).collect();
            assert!(read(moment) == rounded, "moments are rounded to bf16");
        }
    }
}

#[test]
fn biases_are_balanced_as_by_the_host() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(82);
    for experts in [1, 4, 33, 256] {
        let (bias, exact) = random.f32(experts, 0.0, 0.01);
        // Whole loads, of which some are the mean.
        let mut loads: Vec<f32> = (0..experts).map(|_| (random.bits() % 5 + 10) as f32).collect();
        let excess = loads.iter().sum::<f32>() - 12.0 * experts as f32;
        loads[0] -= excess;
        let mut host = Matrix::new(1, experts, exact);
        router::balance(
            &mut host,
            &Matrix::new(1, experts, loads.iter().map(|&load| f64::from(load)).collect()),
            0.001,
        );
        let (bias, loads) = (gpu.given(&bias), gpu.given(&loads));
        optimizer::balance(&gpu.stream, bias, loads, 0.001).expect("launched");
        assert_close(&format!("{experts} experts"), &gpu.numbers(bias), host.values(), F32);
    }
}
