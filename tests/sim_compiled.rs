//! Simulation of compiled plans: what must hold whatever the job is.

use std::path::Path;

use dualweave::job::training::ScheduleKind;
use dualweave::job::{Overrides, load};
use dualweave::passes::compile;
use dualweave::plan::Plan;
use dualweave::sim::memory::{course, memory};
use dualweave::sim::{Cause, Simulation, simulate};
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
            gaps_are_the_bubble(&simulation, rank);
            loads_come_and_go_with_items(&plan, &simulation, rank);
        }
        assert!(simulation.pipeline >= plan.timetable.lower_bound, "{name}");
        for memory in memory(&plan, &simulation) {
            assert!(memory.peak <= memory.need.total(), "{name}: more is live than the plan provides for");
        }
    }
}

/// Each gap ends where an item starts, after what it waited for had ended; all of a cause are the wait for it.
fn gaps_are_the_bubble(simulation: &Simulation, rank: usize) {
    let timing = &simulation.ranks[rank];
    for wait in &timing.waits {
        let of_cause = timing.gaps.iter().filter(|gap| gap.cause == wait.cause).map(|gap| gap.idle);
        assert_eq!(of_cause.sum::<Nanos>(), wait.time, "{}", wait.cause);
    }
    assert_eq!(timing.gaps.iter().map(|gap| gap.idle).sum::<Nanos>(), timing.bubble);
    assert!(timing.gaps.is_sorted_by_key(|gap| gap.span.start));
    for gap in &timing.gaps {
        assert!(gap.idle > Nanos::ZERO && gap.idle <= gap.span.duration());
        let start = gap.before.map_or(simulation.step, |item| timing.items[item as usize].start);
        assert_eq!(gap.span.end, start);
        assert_eq!(gap.item.map(|(rank, _)| rank), awaited_rank(gap.cause));
        if let Some((rank, item)) = gap.item {
            let awaited = simulation.ranks[rank as usize].items[item as usize];
            assert!(awaited.end > gap.span.start && awaited.end <= gap.span.end);
        }
    }
}

fn awaited_rank(cause: Cause) -> Option<u32> {
    match cause {
        Cause::Item { rank, .. } => Some(rank),
        Cause::Transfers | Cause::End => None,
    }
}

fn loads_come_and_go_with_items(plan: &Plan, simulation: &Simulation, rank: usize) {
    let items = &simulation.ranks[rank].items;
    for load in course(plan, simulation, rank as u32).loads {
        let to = load.until.map_or(simulation.step, |item| items[item as usize].end);
        assert_eq!((load.from, load.to), (items[load.item as usize].start, to));
    }
}
