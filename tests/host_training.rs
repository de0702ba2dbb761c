//! The reference trainer: same bits every time, gradients that add up, number formats, and models that learn.

#[path = "host_runtime/shapes.rs"]
mod shapes;

use std::fs;
use std::path::Path;

use dualweave::job::model::Dtype;
use dualweave::job::{Job, Overrides, hf, load};
use dualweave::runtime::host::adamw::AdamW;
use dualweave::runtime::host::batch::Batch;
use dualweave::runtime::host::parameters::{Parameters, Role};
use dualweave::runtime::host::precision::Policy;
use dualweave::runtime::host::rate::Rate;
use dualweave::runtime::host::reference::{Model, Trainer};
use dualweave::runtime::host::{Real, Shape};

const EXAMPLES: [&str; 4] = ["tiny", "deepseek-v3", "mixtral-8x7b", "qwen3-30b-a3b"];

fn example(name: &str) -> Job {
    load(&Path::new("examples").join(name).join("job.ron"), &Overrides::default()).expect("an example").job
}

/// An example made small, in four layers.
fn small(mut job: Job) -> Shape {
    job.training.pp = 4;
    Shape::small(&job)
}

/// Sum of the mean losses, and all gradients.
fn gradients<T: Real>(shape: &Shape, model: &Model<T>, batches: &[Batch]) -> (f64, Vec<f64>) {
    let tokens = batches.iter().map(Batch::tokens).sum();
    let mut gradients = Model::zeros(shape);
    let mut loss = 0.0;
    for batch in batches {
        loss += model.accumulate(shape, batch, tokens, &mut gradients).iter().sum::<f64>() / tokens as f64;
    }
    let tensors = gradients.tensors("").into_iter().filter(|(_, tensor)| tensor.role != Role::Balance);
    let values = tensors.flat_map(|(_, tensor)| tensor.values.values().to_vec());
    (loss, values.map(Real::to_f64).collect())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn the_same_inputs_give_the_same_bits() {
    let shape = small(example("deepseek-v3"));
    let run = || {
        let mut trainer = Trainer::<f32>::new(shape.clone(), AdamW::default(), 1);
        let steps: Vec<_> = (0..2).map(|step| trainer.step(&[Batch::random(&shape, 1, 2, step)])).collect();
        (steps, trainer.model)
    };
    assert!(run() == run());
    let other = Trainer::<f32>::new(shape.clone(), AdamW::default(), 2).model;
    assert!(other != Trainer::<f32>::new(shape.clone(), AdamW::default(), 1).model);
}

#[test]
fn micro_batches_add_up_to_their_batch() {
    for shape in shapes::all() {
        let model = shapes::model(&shape);
        let batches = [Batch::random(&shape, 2, 5, 0), Batch::random(&shape, 1, 5, 1)];
        let (apart, by_micro_batch) = gradients(&shape, &model, &batches);
        let (together, at_once) = gradients(&shape, &model, &[batches[0].joined(&batches[1])]);
        assert!((apart - together).abs() < 1e-12 * together);
        for (a, b) in by_micro_batch.iter().zip(&at_once) {
            assert!((a - b).abs() < 1e-12 * (1.0 + b.abs()), "{a:e} and {b:e}");
        }
    }
}

#[test]
fn single_precision_is_close_to_double() {
    for shape in shapes::all() {
        let (double, single) = (shapes::model(&shape), shapes::single(&shape));
        let batch = [Batch::random(&shape, 3, 5, 0)];
        let ((a, exact), (b, near)) = (gradients(&shape, &double, &batch), gradients(&shape, &single, &batch));
        assert!((a - b).abs() < 1e-5 * a);
        let difference: Vec<f64> = exact.iter().zip(&near).map(|(a, b)| a - b).collect();
        assert!(dot(&difference, &difference) < 1e-10 * dot(&exact, &exact));
    }
}

#[test]
fn formats_change_gradients_by_about_their_precision() {
    // Relative error of one rounding: up to 2^-9 for bf16, 2^-4 for e4m3; some dozen follow one another.
    for (products, least, most) in [(Dtype::Bf16, 2e-3, 2e-2), (Dtype::Fp8, 2e-2, 2e-1)] {
        let mut job = example("deepseek-v3");
        job.model.precision.products = products;
        job.model.precision.dispatch = products;
        let mut rounded = small(job);
        // Every token goes to every expert, for rounding to change no choice.
        let moe = rounded.model.moe.as_mut().expect("experts");
        (moe.top_k, moe.groups, moe.topk_groups) = (moe.experts, 1, 1);
        let exact = Shape { policy: Policy::EXACT, ..rounded.clone() };
        let model = Model::<f32>::initial(&exact, 3);
        let batch = [Batch::random(&exact, 1, 5, 0)];
        let ((a, exact), (b, near)) = (gradients(&exact, &model, &batch), gradients(&rounded, &model, &batch));
        assert!((a - b).abs() < 1e-3 * a, "loss {a} became {b}");
        let difference: Vec<f64> = exact.iter().zip(&near).map(|(a, b)| a - b).collect();
        let error = (dot(&difference, &difference) / dot(&exact, &exact)).sqrt();
        assert!((least..most).contains(&error), "{products:?}: {error}");
    }
}

#[test]
fn every_small_example_is_a_model_and_learns() {
    for name in EXAMPLES {
        let shape = small(example(name));
        shape.model.check().expect(name);
        let mut trainer =
            Trainer::<f32>::new(shape.clone(), AdamW { learning_rate: Rate::constant(2e-3), ..AdamW::default() }, 0);
        // One batch, again and again, can be learned by heart.
        let batch = [Batch::random(&shape, 1, 1, 0)];
        let first = trainer.step(&batch).losses;
        let uniform = f64::from(shape.model.vocabulary).ln();
        assert!(first.iter().all(|loss| (loss - uniform).abs() < 0.1 * uniform), "{name}: {first:?}");
        let last = (0..25).map(|_| trainer.step(&batch).losses).last().expect("steps");
        assert!(last.iter().zip(&first).all(|(last, first)| *last < 0.5 * first), "{name}: {first:?} to {last:?}");
    }
}

#[test]
fn every_published_model_has_a_small_shape() {
    let mut files: Vec<_> =
        fs::read_dir("tests/data/hf").expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let mut steps = 0;
    for file in files {
        let text = fs::read_to_string(&file).expect("a config");
        // Models whose arithmetic is not supported are refused.
        let Ok(imported) = hf::import("config.json", &text) else { continue };
        let shape = small(Job { model: imported.model, ..example("tiny") });
        shape.model.check().unwrap_or_else(|error| panic!("{}: {error:?}", file.display()));
        let mut trainer = Trainer::<f32>::new(shape.clone(), AdamW::default(), 0);
        let step = trainer.step(&[Batch::random(&shape, 1, 0, 0)]);
        assert!(step.gradient_norm.is_finite() && step.gradient_norm > 0.0, "{}", file.display());
        steps += 1;
    }
    assert_eq!(steps, 15);
}

#[test]
fn the_tiny_example_takes_a_step_at_its_real_size() {
    let job = example("tiny");
    let shape = Shape::of(&job);
    assert_eq!((shape.hidden(), shape.sequence), (256, 256));
    let count: usize =
        Model::<f32>::zeros(&shape).tensors("").iter().map(|(_, tensor)| tensor.values.values().len()).sum();
    assert_eq!(count as u64, job.model.parameters().total());
    let mut trainer = Trainer::<f32>::new(shape.clone(), AdamW::default(), 0);
    let step = trainer.step(&[Batch::random(&shape, 1, 0, 0)]);
    assert!((step.losses[0] - f64::from(shape.model.vocabulary).ln()).abs() < 0.5);
}

#[test]
fn parameters_are_as_many_as_the_job_counts() {
    for shape in shapes::all() {
        let count: usize =
            Model::<f64>::zeros(&shape).tensors("").iter().map(|(_, tensor)| tensor.values.values().len()).sum();
        let counted = shape.model.parameters();
        assert_eq!(count as u64, counted.total() + counted.mtp, "{:?}", shape.model);
    }
}

#[test]
fn balancing_evens_out_the_loads() {
    let mut job = example("deepseek-v3");
    job.model.precision.products = Dtype::Bf16;
    let shape = small(job);
    // Only the balancing biases move, quickly.
    let optimizer = AdamW { learning_rate: Rate::constant(0.0), balance_rate: 0.003, ..AdamW::default() };
    let mut trainer = Trainer::<f32>::new(shape.clone(), optimizer, 0);
    let batch = [Batch::random(&shape, 4, 1, 0)];
    let imbalance = |trainer: &Trainer<f32>| {
        let (_, gradients) = trainer.gradients(&batch);
        let loads = gradients.tensors("").into_iter().filter(|(name, _)| name.ends_with("router.balance"));
        let worst = loads.map(|(_, loads)| {
            let loads = loads.values.values();
            loads.iter().copied().fold(0.0, f32::max) * loads.len() as f32 / loads.iter().sum::<f32>()
        });
        worst.fold(0.0, f32::max)
    };
    let before = imbalance(&trainer);
    (0..40).for_each(|_| drop(trainer.step(&batch)));
    let after = imbalance(&trainer);
    assert!(after < 1.5 && after < 0.5 * before, "largest load over the mean: {before}, then {after}");
}

#[test]
fn batches_are_checked() {
    let shape = shapes::dense_multi_head();
    let refused = |sequence: Vec<u32>| Batch::new(&shape, vec![vec![0; 7], sequence]).expect_err("refused").to_string();
    assert_eq!(refused(vec![0; 6]), "sequence 1 has 6 tokens");
    assert_eq!(refused(vec![0, 0, 19, 0, 0, 0, 0]), "sequence 1 has the token 19");
    let batch = Batch::new(&shape, vec![(0..7).collect(), (10..17).collect()]).expect("a batch");
    assert_eq!(batch.tokens(), 12);
    assert_eq!(batch.ahead(1), [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]);
}
