//! Pieces of ops: they are the ops of `unit_work`, make them up, and cost what they should when they are cut further.

#[path = "pieces/exchanges.rs"]
mod exchanges;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dualweave::ir::{Component, Kernel, Phase, Rate, Step, Tokens, Unit, Work};
use dualweave::job::model::Dtype;
use dualweave::job::training::{Recompute, ScheduleKind};
use dualweave::job::{Job, Overrides, hf, load};
use dualweave::machine::Machine;
use dualweave::passes::unit_work::pieces::{self, Piece, exchange_buffer};
use dualweave::passes::unit_work::{UnitOp, unit_work, units};
use dualweave::units::Flops;

use exchanges::{FLAT, sent};

const NOTHING: Recompute = Recompute::NOTHING;
const EVERYTHING: Recompute = Recompute { norms: true, mla_up: true, swiglu: true, layer: false };
const COMPONENTS: [Component; 4] = [Component::Attention, Component::Dispatch, Component::Mlp, Component::Combine];
const PHASES: [Phase; 3] = [Phase::F, Phase::I, Phase::W];

/// The work of a piece, where layers compute again what the job says.
fn work(job: &Job, unit: Unit, piece: &Piece) -> Option<Work> {
    pieces::work(job, unit, job.training.recompute, piece)
}

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
            let whole = unit_work(job, unit, job.training.recompute);
            for (phase, ops) in [(Phase::F, &whole.f), (Phase::I, &whole.i), (Phase::W, &whole.w)] {
                let pieces = COMPONENTS.into_iter().filter_map(|component| {
                    Some(UnitOp { component, work: work(job, unit, &Piece::whole(component, phase))? })
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
            if job.training.tp == 1 {
                let pieces = COMPONENTS.iter().flat_map(|c| PHASES.map(|p| Piece::whole(*c, p)));
                let buffers = pieces.map(|piece| exchange_buffer(job, unit, &piece));
                assert_eq!(buffers.max(), Some(whole.exchange_buffer), "{name}, {unit}");
            }
        }
        for end in [Unit::Embedding, Unit::Head] {
            assert_eq!(work(job, end, &Piece::whole(Component::Head, Phase::F)), None);
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
                let of = |piece| work(job, unit, &piece);
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

/// Without what is computed again, an op is that of a job that computes nothing again.
#[test]
fn what_is_not_computed_again_is_the_work_of_a_job_that_keeps_everything() {
    let mut job = example("deepseek-v3");
    let unit = moe_unit(&job);
    assert_eq!(job.training.recompute, EVERYTHING, "DeepSeek computes again whatever it can");
    let mut keeping = job.clone();
    keeping.training.recompute = NOTHING;
    for (component, phase) in PHASES.iter().flat_map(|p| COMPONENTS.map(|c| (c, *p))) {
        let piece = Piece::whole(component, phase);
        let main = Piece { without_again: true, ..piece };
        assert_eq!(work(&job, unit, &main), work(&keeping, unit, &piece), "{component:?} {phase:?}");
    }
    // One op's recomputation changes nothing of the other's.
    job.training.recompute = Recompute { swiglu: true, ..NOTHING };
    let attention = Piece::whole(Component::Attention, Phase::I);
    assert_eq!(work(&job, unit, &attention), work(&keeping, unit, &attention));

    // A dense MLP has its norm to compute again, and the activation.
    job.training.recompute = EVERYTHING;
    let dense =
        kernels(&work(&job, Unit::Dense(0), &Piece { step: Step::Again, ..Piece::whole(Component::Mlp, Phase::I) }));
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
                let Some(whole) = work(job, unit, &piece) else { continue };
                for parts in [2, 4] {
                    let what = format!("{name}, {unit}, {component:?} {phase:?} in {parts}");
                    let of = |at| work(job, unit, &part(piece, at, parts));
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
                        Work::Exchange { nvlink, network, .. } => {
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

/// The routed experts of DeepSeek-V3 on one of 64 GPUs: 4 experts, 8 · 4096 rows of 7168, 2 · 2048 between.
#[test]
fn products_of_half_the_tokens_by_hand() {
    let job = example("deepseek-v3");
    let unit = moe_unit(&job);
    let w = Piece { without_shared: true, ..Piece::whole(Component::Mlp, Phase::W) };
    let gate_up = |piece| {
        let Some(Work::Compute(kernels)) = work(&job, unit, &piece) else { panic!("kernels wanted") };
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
        assert_eq!(work(&job, unit, &part(mlp, at, parts)), None, "{at} of {parts}");
    }
    assert!(work(&job, unit, &part(mlp, 4095, 4096)).is_some());
    let attention = Piece::whole(Component::Attention, Phase::F);
    assert_eq!(work(&job, unit, &part(attention, 0, 2)), None, "one sequence");
    // Half of four sequences is a micro-batch of two.
    job.training.micro_batch_size = 4;
    let half = work(&job, unit, &part(attention, 1, 2));
    assert_eq!(work(&job, unit, &part(attention, 0, 8)), None);
    job.training.micro_batch_size = 2;
    assert_eq!(half, work(&job, unit, &attention));
}

/// Fewer rows than experts leave a weight gradient that still takes some time, not for ever.
#[test]
fn a_part_smaller_than_the_number_of_experts_takes_finite_time() {
    let mut job = example("deepseek-v3");
    (job.training.ep, job.training.sequence) = (1, 64);
    let machine = Machine::new(&job.cluster, None);
    let piece = part(Piece::whole(Component::Mlp, Phase::W), 0, 16);
    let work = work(&job, moe_unit(&job), &piece).expect("4 tokens are a part of 64");
    assert!(machine.duration(&work, machine.sms).secs() < 1.0);
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
                    assert_eq!(work(&job, unit, &piece), None, "{piece:?}");
                }
            }
        }
        let dense = work(&job, Unit::Dense(0), &Piece::whole(component, Phase::F));
        assert_eq!(dense.is_some(), !exchange, "{component:?} of a dense layer");
    }
    let dispatch = Piece::whole(Component::Dispatch, Phase::W);
    assert_eq!(work(&job, unit, &dispatch), None, "nothing is sent for a weight gradient");
    assert_eq!(
        work(&job, Unit::Dense(0), &Piece { step: Step::Shared, ..Piece::whole(Component::Mlp, Phase::F) }),
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
        assert!([mlp, dispatch].iter().all(|piece| work(&job, unit, piece).is_some()));
        assert!(finer.iter().all(|piece| work(&job, unit, piece).is_some() == there), "tp {tp}");
    }
}
