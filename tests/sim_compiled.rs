//! Simulation of compiled plans: what must hold whatever the job is.

use std::path::Path;

use dualweave::job::training::ScheduleKind;
use dualweave::job::{Overrides, load};
use dualweave::passes::compile;
use dualweave::plan::Plan;
use dualweave::sim::memory::memory;
use dualweave::sim::simulate;
use dualweave::units::Nanos;

fn plans() -> Vec<(String, Plan)> {
    let mut plans = Vec::new();
    for name in ["tiny", "deepseek-v3"] {
        for schedule in ScheduleKind::PUBLISHED {
            let job =
                load(&Path::new("examples").join(name).join("job.ron"), &Overrides::default()).expect("an example");
            let mut job = job.job;
            job.training.schedule = schedule;
            job.training.placement = None;
            // Some schedules need what the example does not have; those are tested with the compiler.
            if let Ok(compiled) = compile(&job) {
                plans.push((format!("{name} under {schedule}"), compiled.plan));
            }
        }
    }
    plans
}

#[test]
fn times_add_up_and_respect_the_bound() {
    let plans = plans();
    assert!(plans.len() >= 10, "{}", plans.len());
    for (name, plan) in plans {
        let simulation = simulate(&plan).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        for (rank, timing) in simulation.ranks.iter().enumerate() {
            assert_eq!(timing.busy + timing.exposed + timing.bubble, simulation.step, "{name}, rank {rank}");
            assert_eq!(timing.waits.iter().map(|wait| wait.time).sum::<Nanos>(), timing.bubble, "{name}, rank {rank}");
        }
        assert!(simulation.pipeline >= plan.timetable.lower_bound, "{name}");
        for memory in memory(&plan, &simulation) {
            assert!(memory.peak <= memory.need.total(), "{name}: more is live than the plan provides for");
        }
    }
}
