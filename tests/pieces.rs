//! Pieces of ops: they are the ops of `unit_work`, make them up, and cost what they should when they are cut further.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dualweave::ir::{Component, Kernel, Phase, Rate, Step, Tokens, Unit, Work};
use dualweave::job::model::Dtype;
use dualweave::job::training::{Recompute, ScheduleKind};
use dualweave::job::{Job, Overrides, hf, load};
use dualweave::machine::Machine;
use dualweave::passes::unit_work::pieces::{Carrier, ExchangeForm, Payload, Piece, Route, held, work};
use dualweave::passes::unit_work::routing::flat_copies;
use dualweave::passes::unit_work::{Again, UnitOp, unit_work, units};
use dualweave::units::{Bytes, Flops};

const NOTHING: Recompute = Recompute { norms: false, mla_up: false, swiglu: false };
const EVERYTHING: Recompute = Recompute { norms: true, mla_up: true, swiglu: true };
const COMPONENTS: [Component; 4] = [Component::Attention, Component::Dispatch, Component::Mlp, Component::Combine];
const PHASES: [Phase; 3] = [Phase::F, Phase::I, Phase::W];

fn example(name: &str) -> Job {
    load(&Path::new("examples").join(name).join("job.ron"), &Overrides::default()).expect("an example").job
}

fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

/// Every example; every Hugging Face model on DeepSeek's cluster, with its experts on one GPU, in one node, and on several
/// nodes, and with tensor parallelism; each with nothing and with everything computed again.
fn jobs() -> Vec<(String, Job)> {
    let mut jobs: Vec<(String, Job)> =
        ["deepseek-v3", "mixtral-8x7b", "qwen3-30b-a3b", "tiny"].map(|name| (name.to_owned(), example(name))).into();
    let base = example("deepseek-v3");
    for path in files("tests/data/hf") {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let text = fs::read_to_string(&path).expect("a file");
        // Some configs are there to be refused.
        let Ok(imported) = hf::import(&name, &text) else { continue };
        for (tp, ep) in [(1, 1), (1, 8), (1, 16), (2, 8)] {
            let mut job = base.clone();
            job.model = imported.model.clone();
            job.training.schedule = ScheduleKind::OneFOneB;
            (job.training.pp, job.training.micro_batches, job.training.micro_batch_size) = (1, 4, 2);
            (job.training.dp, job.training.tp, job.training.ep) = (16, tp, ep);
            if job.model.moe.is_none() && ep > 1 || job.check().is_err() {
                continue;
            }
            for recompute in [NOTHING, EVERYTHING] {
                job.training.recompute = recompute;
                jobs.push((format!("{name}, tp {tp}, ep {ep}, {recompute:?}"), job.clone()));
            }
        }
    }
    jobs
}

/// One unit of each kind that is a layer.
fn layers(job: &Job) -> Vec<Unit> {
    let mut kinds: BTreeMap<u32, Unit> = BTreeMap::new();
    for unit in units(job) {
        let kind = match unit {
            Unit::Embedding | Unit::Head => continue,
            Unit::Dense(_) => 0,
            Unit::Moe(_) => 1,
            Unit::Mtp(_) => 2,
        };
        kinds.entry(kind).or_insert(unit);
    }
    kinds.into_values().collect()
}

fn as_given(job: &Job, unit: Unit, piece: Piece) -> Option<Work> {
    work(job, unit, Again::of(job), &piece)
}

/// Kernels of some works together, in one order.
fn kernels<'a>(works: impl IntoIterator<Item = &'a Work>) -> Vec<Kernel> {
    let mut all: Vec<Kernel> = Vec::new();
    for work in works {
        match work {
            Work::Compute(kernels) => all.extend(kernels),
            other => panic!("kernels wanted, not {other:?}"),
        }
    }
    all.sort_unstable();
    all
}

/// An example's first layer with experts.
fn moe_unit(job: &Job) -> Unit {
    units(job).into_iter().find(|unit| matches!(unit, Unit::Moe(_))).expect("a layer with experts")
}

#[test]
fn whole_pieces_are_the_ops_of_a_unit() {
    let jobs = jobs();
    assert!(jobs.len() > 60, "only {} jobs", jobs.len());
    for (name, job) in &jobs {
        for unit in layers(job) {
            let whole = unit_work(job, unit);
            for (phase, ops) in [(Phase::F, &whole.f), (Phase::I, &whole.i), (Phase::W, &whole.w)] {
                let pieces = COMPONENTS.into_iter().filter_map(|component| {
                    Some(UnitOp { component, work: as_given(job, unit, Piece::whole(component, phase))? })
                });
                let mut pieces: Vec<UnitOp> = pieces.collect();
                if phase != Phase::F {
                    pieces.reverse();
                }
                // The collectives of tensor parallelism are no pieces.
                let all_to_all = |op: &UnitOp| matches!(op.component, Component::Dispatch | Component::Combine);
                let ops = ops.iter().filter(|op| !op.work.is_exchange() || all_to_all(op));
                assert!(ops.eq(&pieces), "{name}, {unit}, {phase:?}");
            }
            assert_eq!(held(job, unit, Again::of(job)), whole.held, "{name}, {unit}");
        }
        for end in [Unit::Embedding, Unit::Head] {
            assert_eq!(as_given(job, end, Piece::whole(Component::Head, Phase::F)), None);
            assert_eq!(held(job, end, Again::of(job)), unit_work(job, end).held, "{name}, {end}");
        }
    }
}

#[test]
fn what_is_split_off_and_what_is_left_make_up_the_op() {
    let (mut with_shared, mut with_again) = (0, 0);
    for (name, job) in jobs().iter().filter(|(_, job)| job.training.tp == 1) {
        let moe = job.model.moe.as_ref();
        for unit in layers(job) {
            let experts = matches!(unit, Unit::Moe(_)) || matches!(unit, Unit::Mtp(_)) && job.model.mtp_is_moe();
            for (phase, component) in
                PHASES.iter().flat_map(|p| [Component::Attention, Component::Mlp].map(|c| (*p, c)))
            {
                let all = Piece::whole(component, phase);
                let of = |piece| as_given(job, unit, piece);
                let what = format!("{name}, {unit}, {component:?} {phase:?}");
                let must = |piece| of(piece).unwrap_or_else(|| panic!("{what}: no {piece:?}"));

                let is_shared = experts && component == Component::Mlp && moe.is_some_and(|moe| moe.shared_width > 0);
                let shared = Piece { step: Step::Shared, ..all };
                assert_eq!(of(shared).is_some(), is_shared, "{what}");
                for all in [all, Piece { without_again: true, ..all }] {
                    let rest = must(Piece { without_shared: true, ..all });
                    let shared = of(Piece { step: Step::Shared, ..all });
                    assert_eq!(kernels([&rest].into_iter().chain(&shared)), kernels([&must(all)]), "{what}");
                    with_shared += u32::from(shared.is_some());
                }
                for all in [all, Piece { without_shared: true, ..all }] {
                    let rest = must(Piece { without_again: true, ..all });
                    let again = of(Piece { step: Step::Again, ..all });
                    assert_eq!(kernels([&rest].into_iter().chain(&again)), kernels([&must(all)]), "{what}");
                    with_again += u32::from(again.is_some());
                    assert!(again.is_none() || phase == Phase::I, "{what}");
                }
                // Only what the job computes again is there to be split off.
                if job.training.recompute == NOTHING {
                    assert_eq!(of(Piece { step: Step::Again, ..all }), None, "{what}");
                }
                // What a shared expert computes again goes with it.
                if let (true, Phase::I, EVERYTHING) = (is_shared, phase, job.training.recompute) {
                    let again = |piece| kernels(&of(Piece { step: Step::Again, ..piece }));
                    let (both, routed) = (again(all), again(Piece { without_shared: true, ..all }));
                    assert_eq!((both.len(), routed.len()), (2, 1), "{what}");
                    let own = kernels([&must(shared)]).len()
                        - kernels([&must(Piece { without_again: true, ..shared })]).len();
                    assert_eq!(own, 1, "{what}");
                }
            }
        }
    }
    assert!(with_shared > 50 && with_again > 50, "{with_shared} {with_again}");
}

/// The pieces do not depend on what the job computes again, but on what the caller does.
#[test]
fn recomputation_is_the_callers_choice() {
    let mut job = example("deepseek-v3");
    let unit = moe_unit(&job);
    let all = Again { attention: EVERYTHING, mlp: EVERYTHING };
    assert_eq!(Again::of(&job), all, "DeepSeek computes again whatever it can");
    let mut keeping = job.clone();
    keeping.training.recompute = NOTHING;
    for (component, phase) in PHASES.iter().flat_map(|p| COMPONENTS.map(|c| (c, *p))) {
        let piece = Piece::whole(component, phase);
        assert_eq!(work(&keeping, unit, all, &piece), as_given(&job, unit, piece));
        let main = Piece { without_again: true, ..piece };
        assert_eq!(work(&job, unit, all, &main), as_given(&keeping, unit, piece), "{component:?} {phase:?}");
    }
    assert_eq!(held(&keeping, unit, all), unit_work(&job, unit).held);
    assert_eq!(held(&job, unit, Again::default()), unit_work(&keeping, unit).held);

    // One component's choice changes nothing of the other's.
    let half = held(&job, unit, Again { attention: NOTHING, mlp: EVERYTHING });
    let (kept, made) = (unit_work(&keeping, unit).held, unit_work(&job, unit).held);
    for (half, (kept, made)) in [
        (&half.f_to_i, (&kept.f_to_i, &made.f_to_i)),
        (&half.f_to_w, (&kept.f_to_w, &made.f_to_w)),
        (&half.i_to_w, (&kept.i_to_w, &made.i_to_w)),
    ] {
        assert_eq!(half.get(&Component::Attention), kept.get(&Component::Attention));
        assert_eq!(half.get(&Component::Mlp), made.get(&Component::Mlp));
    }
    // Keeping q, k, v (bf16) and the normed inputs (FP8) of 4096 tokens takes memory from F on.
    let until_i = |held: &BTreeMap<Component, Bytes>| held[&Component::Attention].0;
    assert!(until_i(&half.f_to_i) > until_i(&made.f_to_i) + 2 * 4096 * 128 * (192 + 192 + 128) - 2 * 4096 * 2112);

    // A dense MLP has its norm to compute again, and the activation.
    job.training.recompute = EVERYTHING;
    let dense =
        kernels(&as_given(&job, Unit::Dense(0), Piece { step: Step::Again, ..Piece::whole(Component::Mlp, Phase::I) }));
    let bytes: Vec<u64> = dense.iter().map(|kernel| kernel.bytes.0).collect();
    assert_eq!(bytes, [2 * 2 * 4096 * 7168, 2 * 3 * 4096 * 18432]);
}

fn part(piece: Piece, part: u32, parts: u32) -> Piece {
    Piece { tokens: Tokens { part, parts }, ..piece }
}

#[test]
fn parts_of_the_tokens_do_the_work_of_all_and_pay_for_the_weights_each() {
    for (name, job) in jobs().iter().filter(|(_, job)| job.training.tp == 1) {
        let machine = Machine::new(&job.cluster, None);
        for unit in layers(job) {
            for (component, phase) in PHASES.iter().flat_map(|p| COMPONENTS.map(|c| (c, *p))) {
                let piece = Piece::whole(component, phase);
                let Some(whole) = as_given(job, unit, piece) else { continue };
                for parts in [2, 4] {
                    let what = format!("{name}, {unit}, {component:?} {phase:?} in {parts}");
                    let of = |at| as_given(job, unit, part(piece, at, parts));
                    // Attention is over whole sequences.
                    if component == Component::Attention && job.training.micro_batch_size % parts != 0 {
                        assert_eq!(of(0), None, "{what}");
                        continue;
                    }
                    let works: Vec<Work> = (0..parts).map(|at| of(at).unwrap_or_else(|| panic!("{what}"))).collect();
                    assert_eq!(works.iter().map(Work::flops).sum::<Flops>(), whole.flops(), "{what}");
                    match &whole {
                        Work::Compute(_) => {
                            // More launches, and never less time: weights are read and accumulators are touched by each.
                            let sms = machine.sms;
                            let time: u64 = works.iter().map(|work| machine.duration(work, sms).0).sum();
                            let launches = machine.launch.0 * kernels([&whole]).len() as u64 * u64::from(parts - 1);
                            // Each kernel of each part is rounded to a nanosecond by itself.
                            let rounding = kernels(&works).len() as u64;
                            assert!(time + rounding >= machine.duration(&whole, sms).0 + launches, "{what}");
                        }
                        Work::Exchange { nvlink, network } => {
                            let sums =
                                works.iter().map(sent).fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
                            let off = sums.0.abs_diff(nvlink.0).max(sums.1.abs_diff(network.0));
                            assert!(off <= u64::from(parts), "{what}: {sums:?} of {whole:?}");
                        }
                        Work::Copy { .. } => panic!("{what}: nothing asked for a copy engine"),
                    }
                }
            }
        }
    }
}

/// Bytes over NVLink, and over the network.
fn sent(work: &Work) -> (u64, u64) {
    match work {
        Work::Exchange { nvlink, network } => (nvlink.0, network.0),
        Work::Copy { nvlink } => (nvlink.0, 0),
        Work::Compute(_) => panic!("an exchange wanted"),
    }
}

/// The routed experts of DeepSeek-V3 on one of 64 GPUs: 4 experts, 8 · 4096 rows of 7168, 2 · 2048 between.
#[test]
fn products_of_half_the_tokens_by_hand() {
    let job = example("deepseek-v3");
    let unit = moe_unit(&job);
    let w = Piece { without_shared: true, ..Piece::whole(Component::Mlp, Phase::W) };
    let gate_up = |piece| {
        let Some(Work::Compute(kernels)) = as_given(&job, unit, piece) else { panic!("kernels wanted") };
        assert_eq!(kernels.len(), 2, "down, then gate and up");
        kernels[1]
    };
    for parts in [1, 2, 4] {
        let rows = 8 * 4096 / u64::from(parts);
        let kernel = gate_up(part(w, 0, parts));
        let (x, y, weights) = (rows * 7168, rows * 4096, 4 * 7168 * 4096);
        assert_eq!(kernel.rate, Rate::Gemm { dtype: Dtype::Fp8, depth: (rows / 4) as u32 });
        assert_eq!(kernel.flops.0, 2 * rows * 7168 * 4096);
        assert_eq!(kernel.bytes.0, Dtype::Fp8.bytes(x) + Dtype::Fp8.bytes(y) + 2 * 4 * weights);
    }
    // A shorter inner dimension is slower: the machine knows.
    let machine = Machine::new(&job.cluster, None);
    let rate = |parts| machine.rate(gate_up(part(w, 0, parts)).rate).expect("a product has a rate");
    assert!(rate(1) > rate(2) && rate(2) > rate(4));
}

#[test]
fn tokens_that_do_not_divide_have_no_parts() {
    let mut job = example("deepseek-v3");
    let unit = moe_unit(&job);
    let mlp = Piece::whole(Component::Mlp, Phase::F);
    for (at, parts) in [(0, 0), (0, 3), (2, 2), (5, 4), (0, 8192)] {
        assert_eq!(as_given(&job, unit, part(mlp, at, parts)), None, "{at} of {parts}");
    }
    assert!(as_given(&job, unit, part(mlp, 4095, 4096)).is_some());
    let attention = Piece::whole(Component::Attention, Phase::F);
    assert_eq!(as_given(&job, unit, part(attention, 0, 2)), None, "one sequence");
    // Half of four sequences is a micro-batch of two.
    job.training.micro_batch_size = 4;
    let half = as_given(&job, unit, part(attention, 1, 2));
    assert_eq!(as_given(&job, unit, part(attention, 0, 8)), None);
    job.training.micro_batch_size = 2;
    assert_eq!(half, as_given(&job, unit, attention));
}

/// Fewer rows than experts leave a weight gradient that still takes some time, not for ever.
#[test]
fn a_part_smaller_than_the_number_of_experts_takes_finite_time() {
    let mut job = example("deepseek-v3");
    (job.training.ep, job.training.sequence) = (1, 64);
    let machine = Machine::new(&job.cluster, None);
    let piece = part(Piece::whole(Component::Mlp, Phase::W), 0, 16);
    let work = as_given(&job, moe_unit(&job), piece).expect("4 tokens are a part of 64");
    assert!(machine.duration(&work, machine.sms).secs() < 1.0);
}

const FLAT: ExchangeForm = ExchangeForm { route: Route::Flat, payload: Payload::AsGiven, carrier: Carrier::Sms };
const FP8: ExchangeForm = ExchangeForm { route: Route::TwoHop, payload: Payload::Fp8, carrier: Carrier::Sms };
const COPY: ExchangeForm =
    ExchangeForm { route: Route::TwoHop, payload: Payload::AsGiven, carrier: Carrier::CopyEngine };
/// Exchanges towards the experts, then those that come back.
const EXCHANGES: [(Component, Phase); 4] = [
    (Component::Dispatch, Phase::F),
    (Component::Combine, Phase::I),
    (Component::Combine, Phase::F),
    (Component::Dispatch, Phase::I),
];

fn in_form((component, phase): (Component, Phase), step: Step, exchange: ExchangeForm) -> Piece {
    Piece { step, exchange, ..Piece::whole(component, phase) }
}

#[test]
fn a_flat_exchange_sends_more_over_the_network() {
    let job = example("deepseek-v3");
    let (unit, moe) = (moe_unit(&job), job.model.moe.as_ref().expect("experts"));
    let copies = flat_copies(moe, 64, 8);
    for (at, exchange) in EXCHANGES.into_iter().enumerate() {
        // FP8 with a scale for each 128 values to the experts, bf16 back.
        let token = if at < 2 { 7168.0 + 4.0 * 56.0 } else { 2.0 * 7168.0 };
        let bytes = |copies: f64| (4096.0 * copies * token).round() as u64;
        let flat = as_given(&job, unit, in_form(exchange, Step::Main, FLAT)).expect("an exchange");
        assert_eq!(sent(&flat), (bytes(copies.nvlink), bytes(copies.network)), "{exchange:?}");
        let two_hop = sent(&as_given(&job, unit, in_form(exchange, Step::Main, ExchangeForm::default())).expect("it"));
        assert!(sent(&flat).1 > two_hop.1 && sent(&flat).0 < two_hop.0, "{exchange:?}");
    }
}

#[test]
fn an_fp8_payload_wants_another_format_and_a_gpu_that_has_it() {
    let mut job = example("deepseek-v3");
    let unit = moe_unit(&job);
    for exchange in EXCHANGES {
        let main = |job: &Job, form| as_given(job, unit, in_form(exchange, Step::Main, form));
        let quantise = |job: &Job| as_given(job, unit, in_form(exchange, Step::Quantise, FP8));
        // DeepSeek sends FP8 to the experts, and bf16 back.
        job.model.precision.dispatch = Dtype::Fp8;
        let towards = exchange == EXCHANGES[0] || exchange == EXCHANGES[1];
        assert_eq!(main(&job, FP8).is_some(), !towards, "{exchange:?}");
        assert_eq!(quantise(&job).is_some(), !towards, "{exchange:?}");

        job.model.precision.dispatch = Dtype::Bf16;
        let (given, fp8) = (main(&job, ExchangeForm::default()).expect("it"), main(&job, FP8).expect("it"));
        let share = |fp8: u64, given: u64| fp8 as f64 / given as f64 - 7392.0 / 14336.0;
        assert!(share(sent(&fp8).0, sent(&given).0).abs() < 1e-6 && share(sent(&fp8).1, sent(&given).1).abs() < 1e-6);

        // Tokens are quantised once each; what comes back, once for each of the GPUs that it goes to.
        let copies = flat_copies(job.model.moe.as_ref().expect("experts"), 64, 8);
        let rows = if towards { 4096.0 } else { 4096.0 * (copies.nvlink + copies.network) };
        let [kernel] = kernels(&quantise(&job))[..] else { panic!("one kernel wanted") };
        assert_eq!((kernel.rate, kernel.launches), (Rate::Memory, 1));
        assert!((kernel.bytes.as_f64() - rows * (14336.0 + 7392.0)).abs() <= 1.0, "{exchange:?}");

        let mut older = job.clone();
        older.cluster.gpu.fp8_tflops = None;
        assert_eq!((main(&older, FP8), quantise(&older)), (None, None));
    }
}

#[test]
fn a_copy_engine_stays_within_the_node() {
    let mut job = example("deepseek-v3");
    let unit = moe_unit(&job);
    for exchange in EXCHANGES {
        let of = |job: &Job, step, form| as_given(job, unit, in_form(exchange, step, form));
        job.training.ep = 64;
        assert_eq!((of(&job, Step::Main, COPY), of(&job, Step::Pack, COPY)), (None, None), "{exchange:?}");

        job.training.ep = 8;
        let kernel = sent(&of(&job, Step::Main, ExchangeForm::default()).expect("it"));
        assert_eq!(kernel.1, 0);
        assert_eq!(of(&job, Step::Main, COPY), Some(Work::Copy { nvlink: Bytes(kernel.0) }));
        assert_eq!(of(&job, Step::Main, FLAT), of(&job, Step::Main, ExchangeForm::default()), "one node, one way");
        // What is sent is read and written; what comes back is added up as well: read, and the sums read and written.
        let bytes: Vec<u64> = kernels(&of(&job, Step::Pack, COPY)).iter().map(|kernel| kernel.bytes.0).collect();
        let towards = exchange == EXCHANGES[0] || exchange == EXCHANGES[1];
        let mut wanted = if towards { vec![] } else { vec![kernel.0 + 2 * 2 * 4096 * 7168] };
        wanted.push(2 * kernel.0);
        wanted.sort_unstable();
        assert_eq!(bytes, wanted, "{exchange:?}");

        // Packing FP8 moves fewer bytes.
        job.model.precision.dispatch = Dtype::Bf16;
        let both = ExchangeForm { payload: Payload::Fp8, ..COPY };
        let packed = |form| kernels(&of(&job, Step::Pack, form)).iter().map(|kernel| kernel.bytes.0).sum::<u64>();
        assert!(packed(both) < packed(COPY));
        job.model.precision.dispatch = Dtype::Fp8;

        job.training.ep = 1;
        for step in [Step::Main, Step::Quantise, Step::Pack] {
            for form in [ExchangeForm::default(), FLAT, FP8, COPY] {
                assert_eq!(of(&job, step, form), None, "all experts are here");
            }
        }
    }
}

#[test]
fn there_are_no_such_pieces() {
    let job = example("deepseek-v3");
    let unit = moe_unit(&job);
    for component in COMPONENTS {
        let exchange = matches!(component, Component::Dispatch | Component::Combine);
        for phase in PHASES {
            for step in [Step::Shared, Step::Again, Step::Quantise, Step::Pack] {
                let kernel_step = matches!(step, Step::Shared | Step::Again);
                if kernel_step == exchange || phase == Phase::W && exchange {
                    let piece = Piece { step, ..Piece::whole(component, phase) };
                    assert_eq!(as_given(&job, unit, piece), None, "{piece:?}");
                }
            }
        }
        let dense = as_given(&job, Unit::Dense(0), Piece::whole(component, Phase::F));
        assert_eq!(dense.is_some(), !exchange, "{component:?} of a dense layer");
    }
    let dispatch = Piece::whole(Component::Dispatch, Phase::W);
    assert_eq!(as_given(&job, unit, dispatch), None, "nothing is sent for a weight gradient");
    assert_eq!(
        as_given(&job, Unit::Dense(0), Piece { step: Step::Shared, ..Piece::whole(Component::Mlp, Phase::F) }),
        None
    );
}

#[test]
fn tensor_parallel_layers_have_only_whole_pieces() {
    let mut job = example("deepseek-v3");
    let unit = moe_unit(&job);
    let mlp = Piece::whole(Component::Mlp, Phase::I);
    let dispatch = Piece::whole(Component::Dispatch, Phase::F);
    let finer = [
        part(mlp, 0, 2),
        Piece { step: Step::Shared, ..mlp },
        Piece { step: Step::Again, ..mlp },
        Piece { without_shared: true, ..mlp },
        Piece { without_again: true, ..mlp },
        Piece { exchange: FLAT, ..dispatch },
    ];
    for (tp, there) in [(1, true), (2, false)] {
        job.training.tp = tp;
        assert!([mlp, dispatch].iter().all(|piece| as_given(&job, unit, *piece).is_some()));
        assert!(finer.iter().all(|piece| as_given(&job, unit, *piece).is_some() == there), "tp {tp}");
    }
}
