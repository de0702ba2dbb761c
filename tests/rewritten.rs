//! Rewritten layers of real jobs: they do the work of the plain layer, and have room for their exchanges.

use std::path::Path;

use dualweave::ir::{Unit, Work};
use dualweave::job::{Job, Overrides, load};
use dualweave::machine::Machine;
use dualweave::passes::compile;
use dualweave::passes::overlap::cyclic::{CyclicProblem, middle_layer};
use dualweave::passes::rewrite::choose::{Asked, Choice};
use dualweave::passes::rewrite::options;
use dualweave::passes::split::UnitForm;
use dualweave::passes::unit_work::unit_work;
use dualweave::units::{Bytes, Flops};

const EXAMPLES: [&str; 4] = ["deepseek-v3", "mixtral-8x7b", "qwen3-30b-a3b", "tiny"];
const SMS: u32 = 20;

fn job(example: &str, overrides: &Overrides) -> Job {
    load(&Path::new("examples").join(example).join("job.ron"), overrides).expect("the example").job
}

fn without(rules: &[&str]) -> Overrides {
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    Overrides { without_rewrites: Some(rules), ..Overrides::default() }
}

fn layer(job: &Job) -> Unit {
    middle_layer(job).expect("a layer with experts")
}

fn plain(job: &Job) -> UnitForm {
    UnitForm::plain(&unit_work(job, layer(job)))
}

fn choices(job: &Job) -> Vec<Choice> {
    let machine = Machine::new(&job.cluster, None);
    let asked = Asked { job, machine: &machine, comm_sms: SMS, unit: layer(job) };
    asked.choose(&options(job)).expect("rules that exist")
}

/// FLOPs, and bytes over the network, of all ops.
fn work(form: &UnitForm) -> (Flops, Bytes) {
    let ops = || form.f.iter().chain(&form.i).chain(&form.w).map(|op| &op.work);
    let network = |work: &Work| if let Work::Exchange { network, .. } = work { *network } else { Bytes::ZERO };
    (ops().map(Work::flops).sum(), ops().map(network).sum())
}

#[test]
fn a_plain_form_is_the_layer_pair_of_the_job() {
    for example in EXAMPLES {
        let job = job(example, &Overrides::default());
        let machine = Machine::new(&job.cluster, None);
        let of_job = CyclicProblem::of_job(&job, &machine, SMS).expect("experts");
        let of_form = CyclicProblem::of_form(&plain(&job), &machine, SMS);
        // The two list weight gradients in another order.
        let mut durations = [&of_job, &of_form].map(|problem| {
            let ops = problem.ops.iter().map(|op| (op.phase, op.component, op.engine, op.duration));
            ops.collect::<Vec<_>>()
        });
        durations.iter_mut().for_each(|ops| ops.sort_unstable());
        assert_eq!(durations[0], durations[1], "{example}");
        assert_eq!(of_job.bound(), of_form.bound(), "{example}");
    }
}

#[test]
fn forms_do_the_work_of_the_layer() {
    for example in EXAMPLES {
        let job = job(example, &Overrides::default());
        let plain = work(&plain(&job));
        let choices = choices(&job);
        assert!(choices.len() >= 3, "{example}: {}", choices.len());
        for choice in choices {
            let (flops, network) = work(&choice.form);
            assert_eq!(flops, plain.0, "{example}: {:?}", choice.words);
            // Halves of what is sent are rounded to bytes each.
            assert!(network.0.abs_diff(plain.1.0) <= 8, "{example}: {network} {:?}", choice.words);
            for (list, within) in [(&choice.form.f, true), (&choice.form.i, true), (&choice.form.w, false)] {
                for (at, op) in list.iter().enumerate() {
                    let end = if within { at } else { choice.form.i.len() };
                    assert!(op.needs.iter().all(|need| (*need as usize) < end), "{example}: {op:?}");
                }
            }
        }
    }
}

/// Flat exchanges stage a copy for each GPU on another node, not for each node: the plan has room for them.
#[test]
fn plans_have_room_for_the_exchanges_of_their_forms() {
    let flat = job("deepseek-v3", &without(&["two-hop"]));
    let plain = plain(&flat);
    let choices = choices(&flat);
    assert!(!choices.is_empty());
    let whole = |choice: &&Choice| choice.form.f.iter().chain(&choice.form.i).all(|op| op.tokens.is_all());
    for choice in choices.iter().filter(whole) {
        assert!(choice.form.exchange_buffer > plain.exchange_buffer, "{:?}", choice.words);
    }
    let largest = choices.iter().map(|choice| choice.form.exchange_buffer).max();
    let buffers = compile(&flat).expect("a plan").plan.stages.into_iter().map(|stage| stage.exchange_buffer);
    assert_eq!(buffers.max(), largest);
}
