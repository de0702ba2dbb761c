//! Checkpoints, and the plans that go on from them.

use std::fs;

use dualweave::job::{Overrides, load};
use dualweave::passes::compile;
use dualweave::plan::Plan;
use dualweave::runtime::checkpoint::{Checkpoint, Progress};
use dualweave::runtime::host::Shape;
use dualweave::runtime::host::adamw::AdamW;
use dualweave::runtime::host::executor::{Executor, Order};
use dualweave::runtime::host::text::Text;
use dualweave::verify::{Rule, verify};
use dualweave::{Error, Result};

use crate::dice::Dice;
use crate::edits::edited;
use crate::guard::{Answer, try_all};

/// Most parameters, sequences of a step and tokens of a sequence that take milliseconds.
const FEW: u64 = 50_000;
const FEW_SEQUENCES: u64 = 64;
const FEW_TOKENS: u32 = 64;

/// The plan of a model with about ten thousand parameters.
fn plan() -> String {
    let job = fs::read_to_string("examples/tiny/job.ron").expect("the example is there");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("job.ron");
    let edits = [
        ("layers: 8", "layers: 2"),
        ("hidden: 256", "hidden: 8"),
        ("vocabulary: 1024", "vocabulary: 256"),
        ("Gqa(heads: 8, kv_heads: 4, head_dim: 32)", "Gqa(heads: 2, kv_heads: 1, head_dim: 4)"),
        ("dense_width: 512", "dense_width: 8"),
        ("width: 128", "width: 4, balance_bias: true"),
        ("shared_width: 128", "shared_width: 4"),
        ("mtp_layers: 0", "mtp_layers: 1"),
        ("pp: 4", "pp: 2"),
        ("sequence: 256", "sequence: 4"),
        ("DualPipe,", "OneFOneB, without_rewrites: [\"all\"],"),
        ("micro_batches: 8", "micro_batches: 2"),
    ];
    let small = edits.iter().fold(job, |job, (from, to)| {
        assert!(job.contains(from), "{from}");
        job.replacen(from, to, 1)
    });
    fs::write(&path, small).expect("the folder can be written");
    let job = load(&path, &Overrides::default()).expect("a job").job;
    compile(&job).expect("it compiles").plan.to_ron()
}

fn executor(plan: &Plan) -> Result<Executor<f32>> {
    Executor::new(plan.clone(), Shape::of_plan(plan), AdamW::default(), 0)
}

/// A checkpoint after a step.
fn checkpoint(plan: &Plan) -> Vec<u8> {
    let mut executor = executor(plan).expect("a plan that can be run");
    let text = Text::genesis(executor.shape()).expect("a long text");
    let progress = Progress { steps: 1, seed: 0, precision: "as-planned".to_owned(), text: text.digest() };
    step(&mut executor, &Progress { steps: 0, ..progress.clone() }).expect("a step");
    executor.checkpoint(&progress).expect("a checkpoint")
}

/// Takes the step after `progress`, and saves what came of it.
fn step(executor: &mut Executor<f32>, progress: &Progress) -> Result<()> {
    let shape = executor.shape().clone();
    let data = Text::genesis(&shape)?.step(&shape, executor.plan(), progress.seed, u64::from(progress.steps))?;
    executor.step(&data, Order::List)?;
    executor.checkpoint(progress).map(drop)
}

/// Goes on from the checkpoint.
fn go_on(executor: &mut Executor<f32>, checkpoint: &Checkpoint) -> Answer {
    let went = executor.restore(checkpoint).and_then(|()| step(executor, &checkpoint.progress));
    went.map_or_else(Answer::Unusable, |()| Answer::Used)
}

/// Bytes of the number in front of a checkpoint's header that says how long it is.
const LENGTH: usize = 8;

/// An edited checkpoint: often with its header alone edited, and the number in front of it made to fit again.
fn edited_checkpoint(whole: &[u8], dice: &mut Dice) -> Vec<u8> {
    if dice.below(4) == 0 {
        return edited(&[whole.to_vec()], dice);
    }
    let length = whole[..LENGTH].iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (header, data) = whole[LENGTH..].split_at(length);
    let header = edited(&[header.to_vec()], dice);
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

#[test]
fn edited_checkpoints() {
    let plan = Plan::from_ron("plan.ron", &plan()).expect("a plan");
    let whole = checkpoint(&plan);
    let tally = try_all(
        "checkpoints",
        8_000,
        |dice| edited_checkpoint(&whole, dice),
        |bytes, _| {
            let checkpoint = match Checkpoint::read(bytes) {
                Ok(checkpoint) => checkpoint,
                Err(error) => return Answer::Refused(error),
            };
            let mut executor = executor(&plan).expect("a plan that can be run");
            go_on(&mut executor, &checkpoint)
        },
    );
    assert!(tally.refused > 1_000 && tally.unusable > 100 && tally.used > 100, "{tally}");
}

/// Whether a step of the plan takes milliseconds.
fn is_small(plan: &Plan) -> bool {
    if plan.model.check().is_err() {
        // Nothing of it is counted then.
        return true;
    }
    let count = plan.model.parameters();
    let parameters = count.total().saturating_add(count.mtp);
    let (origin, layout) = (&plan.origin, &plan.layout);
    let sequences = u64::from(origin.dp) * u64::from(origin.micro_batch_size);
    parameters <= FEW
        && sequences.saturating_mul(layout.micro_batches.into()) <= FEW_SEQUENCES
        && origin.sequence <= FEW_TOKENS
}

#[test]
fn plans_that_go_on() {
    let text = plan();
    let plan = Plan::from_ron("plan.ron", &text).expect("a plan");
    let whole = checkpoint(&plan);
    let bases = [text.into_bytes()];
    let tally = try_all(
        "plans that are run",
        6_000,
        |dice| edited(&bases, dice),
        |bytes, _| {
            let plan = std::str::from_utf8(bytes).map_err(|_| Error::new("not text"));
            let plan = match plan.and_then(|text| Plan::from_ron("plan.ron", text)) {
                Ok(plan) => plan,
                Err(error) => return Answer::Refused(error),
            };
            if let Some(violation) =
                verify(&plan).violations.into_iter().find(|violation| violation.rule != Rule::Memory)
            {
                return Answer::Unusable(Error::new(violation.to_string()));
            }
            let checkpoint = Checkpoint::read(&whole).expect("a checkpoint");
            match is_small(&plan).then(|| executor(&plan)) {
                None => Answer::Used,
                Some(Ok(mut executor)) => go_on(&mut executor, &checkpoint),
                Some(Err(error)) => Answer::Unusable(error),
            }
        },
    );
    assert!(tally.refused > 500 && tally.unusable > 500 && tally.used > 50, "{tally}");
}
