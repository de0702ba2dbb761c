//! Rewritten layers of real jobs: they do the work of the plain layer, and have room for their exchanges.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dualweave::ir::{Component, Phase, Unit, Work};
use dualweave::job::sms::CommunicationSms;
use dualweave::job::{Job, Overrides, load};
use dualweave::machine::Machine;
use dualweave::passes::compile;
use dualweave::passes::overlap::cyclic::{CyclicProblem, middle_layer};
use dualweave::passes::rewrite::choose::{Asked, Choice};
use dualweave::passes::rewrite::language::FINEST;
use dualweave::passes::rewrite::options;
use dualweave::passes::rewrite::rules::RULES;
use dualweave::passes::split::{FormOp, UnitForm};
use dualweave::passes::unit_work::pieces::{self, ExchangeForm, Piece, Route};
use dualweave::passes::unit_work::unit_work;
use dualweave::units::{Flops, Nanos};

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
    UnitForm::plain(&unit_work(job, layer(job), job.training.recompute))
}

fn choices(job: &Job) -> Vec<Choice> {
    let machine = Machine::new(&job.cluster, None);
    let (unit, recompute) = (layer(job), job.training.recompute);
    let asked = Asked { job, machine: &machine, comm_sms: SMS, unit, recompute, layers: 2 };
    asked.choose(&options(job)).expect("rules that exist").choices
}

fn flops(form: &UnitForm) -> Flops {
    form.f.iter().chain(&form.i).chain(&form.w).map(|op| op.work.flops()).sum()
}

/// What an op sends over the network if it goes one way or the other.
fn sent(job: &Job, phase: Phase, op: &FormOp) -> [u64; 2] {
    [Route::Flat, Route::TwoHop].map(|route| {
        let exchange = ExchangeForm { route, ..ExchangeForm::default() };
        let piece = Piece { exchange, tokens: op.tokens, ..Piece::whole(op.component, phase) };
        match pieces::work(job, layer(job), job.training.recompute, &piece) {
            Some(Work::Exchange { network, .. }) => network.0,
            _ => 0,
        }
    })
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
        let plain = plain(&job);
        let choices = choices(&job);
        assert!(choices.len() >= 3, "{example}: {}", choices.len());
        for choice in choices {
            assert_eq!(flops(&choice.form), flops(&plain), "{example}: {:?}", choice.words);
            for (phase, ops) in [(Phase::F, &choice.form.f), (Phase::I, &choice.form.i)] {
                let mut parts: BTreeMap<Component, u32> = BTreeMap::new();
                for op in ops {
                    if let Work::Exchange { network, .. } = op.work {
                        assert!(sent(&job, phase, op).contains(&network.0), "{example}: {op:?}: {:?}", choice.words);
                    }
                    if op.work.is_exchange() {
                        *parts.entry(op.component).or_default() += FINEST / op.tokens.parts;
                    }
                }
                let all = [Component::Dispatch, Component::Combine].map(|component| (component, FINEST));
                assert_eq!(parts, all.into(), "{example}, {phase:?}: {:?}", choice.words);
            }
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

/// A job whose timetable is shorter with each of these rules than without it.
struct Use {
    example: &'static str,
    fp8: bool,
    rules: &'static [&'static str],
}

const USES: [Use; 4] = [
    Use {
        example: "deepseek-v3",
        fp8: false,
        rules: &[
            "split-backward",
            "flatten",
            "defer-weight-gradient",
            "shared-beside",
            "float-shared",
            "two-hop",
            "split-tokens",
            "recompute",
            "float-recompute",
        ],
    },
    Use { example: "deepseek-v3", fp8: true, rules: &["fp8-payload"] },
    Use { example: "mixtral-8x7b", fp8: false, rules: &["copy-engine"] },
    Use { example: "qwen3-30b-a3b", fp8: false, rules: &["float-weight-gradient"] },
];

/// 6 SMs for communication: what the compiler gives Mixtral and Qwen3 where it may choose.
fn timetable(example: &str, fp8: bool, without: &[&str]) -> Nanos {
    let sms = Some(CommunicationSms::Fixed(if example == "deepseek-v3" { SMS } else { 6 }));
    let overrides = Overrides { fp8_exchanges: Some(fp8), communication_sms: sms, ..self::without(without) };
    compile(&job(example, &overrides)).expect("a plan").plan.timetable.makespan
}

#[test]
fn every_rule_makes_some_timetable_shorter() {
    let mut used = BTreeSet::new();
    for Use { example, fp8, rules } in USES {
        let with = timetable(example, fp8, &[]);
        for rule in rules {
            let without = timetable(example, fp8, &[rule]);
            assert!(with < without, "{example}: {with} with {rule}, {without} without");
            used.insert(*rule);
        }
    }
    assert_eq!(used, RULES.iter().map(|rule| rule.name).collect());
}

/// What a choice allows is no reason to do worse: not for rules that do not help, not for FP8.
#[test]
fn more_rules_are_never_worse() {
    for (example, rules) in [("tiny", RULES.map(|rule| rule.name).to_vec()), ("qwen3-30b-a3b", vec!["fp8-payload"])] {
        let fp8 = example == "qwen3-30b-a3b";
        let with = timetable(example, fp8, &[]);
        for rule in rules {
            let without = timetable(example, fp8, &[rule]);
            assert!(with <= without, "{example}: {with} with {rule}, {without} without");
        }
    }
}
