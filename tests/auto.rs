//! The schedule `auto` on whole jobs: never longer than a published one in the same memory, safe, and the same every time.

use std::path::Path;

use dualweave::ir::{Placement, Recompute};
use dualweave::job::training::ScheduleKind;
use dualweave::job::{Job, Overrides, load};
use dualweave::passes::{Compiled, compile};
use dualweave::sim::memory::memory;
use dualweave::sim::simulate;
use dualweave::units::{Bytes, Nanos};
use dualweave::verify::verify;

fn tiny() -> Job {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tiny/job.ron");
    load(&path, &Overrides::default()).expect("the example").job
}

fn with(change: impl Fn(&mut Job)) -> Job {
    let mut job = tiny();
    job.training.schedule = ScheduleKind::Auto;
    job.training.placement = None;
    change(&mut job);
    job
}

/// Simulated step, and the memory that the fullest rank needs.
fn step_and_need(compiled: &Compiled) -> (Nanos, Bytes) {
    let simulation = simulate(&compiled.plan).expect("it runs");
    let need = memory(&compiled.plan, &simulation).iter().map(|rank| rank.need.total()).max().unwrap_or_default();
    (simulation.step, need)
}

/// Compiles, and checks that the plan is safe.
fn safe(job: &Job) -> Compiled {
    let compiled = compile(job).expect("a plan");
    let report = verify(&compiled.plan);
    assert!(report.violations.is_empty(), "{report:?}");
    compiled
}

#[test]
fn is_never_longer_than_a_published_schedule_in_the_same_memory() {
    // All memory, and less than the published ones take.
    let full = step_and_need(&safe(&with(|_| {}))).1;
    for memory_gb in [None, Some(full.as_f64() * 0.8 / 1e9)] {
        let auto = safe(&with(|job| job.training.memory_limit_gb = memory_gb));
        let (step, need) = step_and_need(&auto);
        let limit = auto.plan.machine.memory;
        assert!(need <= limit, "{need} of {limit}");
        let mut fitting = 0;
        for kind in ScheduleKind::PUBLISHED {
            let job = with(|job| {
                job.training.schedule = kind;
                job.training.memory_limit_gb = memory_gb;
            });
            let Ok(other) = compile(&job) else { continue };
            let (other_step, other_need) = step_and_need(&other);
            if other_need <= limit {
                fitting += 1;
                assert!(step <= other_step, "{kind}: {step} against {other_step} with {memory_gb:?}");
            }
        }
        assert!(fitting > 0, "{memory_gb:?}");
    }
}

#[test]
fn takes_any_numbers_and_the_placement_that_is_asked_for() {
    for (pp, micro_batches, placement) in [
        (1, 1, None),
        (3, 2, None),
        (3, 5, Some(Placement::Linear)),
        (4, 3, Some(Placement::V)),
        (2, 7, Some(Placement::Loop)),
        (3, 4, Some(Placement::Bidirectional)),
    ] {
        let job = with(|job| {
            let training = &mut job.training;
            (training.pp, training.micro_batches, training.placement) = (pp, micro_batches, placement);
            (training.dp, training.ep) = (1, 1);
        });
        let plan = safe(&job).plan;
        assert_eq!((plan.layout.ranks, plan.layout.micro_batches), (pp, micro_batches));
        assert!(placement.is_none_or(|placement| plan.layout.placement == placement), "{:?}", plan.layout);
        assert!(plan.timetable.lower_bound <= plan.timetable.makespan);
    }
}

#[test]
fn is_the_same_every_time() {
    let job = with(|job| job.training.micro_batches = 5);
    assert_eq!(compile(&job).expect("a plan").plan.to_ron(), compile(&job).expect("a plan").plan.to_ron());
}

/// A plan for less memory than anything fits in says what it needs: it is the one that needs least, not an error.
#[test]
fn what_fits_nowhere_is_as_small_as_can_be() {
    let job = with(|job| job.training.memory_limit_gb = Some(0.001));
    let least = step_and_need(&compile(&job).expect("a plan that says what it lacks")).1;
    let full = step_and_need(&safe(&with(|_| {}))).1;
    assert!(least < full, "{least} {full}");
}

/// A job whose chunks hold much beside its parameters, with nothing computed again, and this memory.
fn crowded(memory_gb: Option<f64>) -> Job {
    with(|job| {
        let training = &mut job.training;
        (training.sequence, training.micro_batch_size) = (2048, 4);
        (training.recompute, training.memory_limit_gb) = (Recompute::NOTHING, memory_gb);
    })
}

/// Where no published schedule fits, stages that compute more again make room; with all of them doing so, as a job can ask for, steps are
/// longer. What the model needs is what it was.
#[test]
fn computes_again_where_memory_is_short() {
    let limit = Some(0.4);
    let found = safe(&crowded(limit));
    let (step, need) = step_and_need(&found);
    assert!(need <= found.plan.machine.memory, "{need}");
    assert!(found.plan.recompute_differs());
    for kind in ScheduleKind::PUBLISHED {
        let mut job = crowded(limit);
        job.training.schedule = kind;
        let Ok(other) = compile(&job) else { continue };
        assert!(step_and_need(&other).1 > other.plan.machine.memory, "{kind}");
    }
    let mut everywhere = crowded(limit);
    everywhere.training.recompute.layer = true;
    assert!(step < step_and_need(&safe(&everywhere)).0);
    assert_eq!(found.plan.to_ron(), compile(&crowded(limit)).expect("a plan").plan.to_ron());

    let roomy = safe(&crowded(None)).plan;
    assert!(roomy.stages.iter().all(|stage| stage.recompute.is_nothing()), "nothing is computed again without need");
    assert_eq!(found.plan.origin.model_flops_per_token, roomy.origin.model_flops_per_token);
}

/// More memory is not worse, nor is leaving to the compiler what all stages compute again, but for what searches miss: one part in 50.
#[test]
fn more_memory_or_freedom_is_never_worse() {
    let step = |recompute: Recompute, memory_gb: f64| {
        let mut job = crowded(Some(memory_gb));
        job.training.recompute = recompute;
        let compiled = compile(&job).expect("a plan");
        let (step, need) = step_and_need(&compiled);
        (need <= compiled.plan.machine.memory).then_some(step)
    };
    let mut before = Nanos(u64::MAX);
    for memory_gb in [0.4, 0.45] {
        let free = step(Recompute::NOTHING, memory_gb).expect("a plan that fits");
        let allowed = |other: Nanos| other + Nanos(other.0 / 50);
        assert!(before == Nanos(u64::MAX) || free <= allowed(before), "{free} with {memory_gb} GB, {before} with less");
        before = free;
        let cheap = Recompute { norms: true, swiglu: true, ..Recompute::NOTHING };
        if let Some(bound) = step(cheap, memory_gb) {
            assert!(free <= allowed(bound), "{free} with {memory_gb} GB, {bound} where all stages recompute {cheap}");
        }
    }
}
