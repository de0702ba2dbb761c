//! `emit`: assembles the plan from what the passes made, and seals it.

mod stages;

pub use stages::{stages, without_programs};

use std::collections::BTreeSet;

use crate::ir::{Action, Program, Timetable};
use crate::job::Job;
use crate::machine::Machine;
use crate::passes::overlap::Overlapped;
use crate::plan::{Certificate, Origin, Pair, Plan, PlanRank, PlanStage, VERSION};

/// The plan of `timetable`, whose ranks `place` filled. Programs that no item runs are left out.
pub fn emit(
    job: &Job,
    machine: &Machine,
    timetable: &Timetable,
    mut stages: Vec<PlanStage>,
    overlapped: Overlapped,
    certificate: Certificate,
    ranks: Vec<PlanRank>,
) -> Plan {
    let mut pairs: Vec<Pair> = overlapped.pairs.iter().map(|(&(f, b), &program)| Pair { f, b, program }).collect();
    let programs = keep_used(timetable, &mut stages, &mut pairs, overlapped);
    let mut plan = Plan {
        version: VERSION,
        digest: String::new(),
        origin: origin(job),
        model: job.model.clone(),
        machine: machine.clone(),
        layout: timetable.layout,
        stages,
        pairs,
        programs,
        timetable: certificate,
        ranks,
    };
    plan.seal();
    plan
}

fn origin(job: &Job) -> Origin {
    let training = &job.training;
    Origin {
        compiler: concat!("dualweave ", env!("CARGO_PKG_VERSION")).to_owned(),
        cluster: job.cluster.name.clone(),
        schedule: training.schedule.name().to_owned(),
        gpus: u64::from(training.pp) * u64::from(training.dp) * u64::from(training.tp),
        dp: training.dp,
        ep: training.ep,
        tp: training.tp,
        micro_batch_size: training.micro_batch_size,
        sequence: training.sequence,
        tokens_per_step: training.step_tokens(),
        model_flops_per_token: job.model.training_flops(u64::from(training.sequence)).total(),
        imbalance: training.imbalance,
    }
}

/// Drops programs that nothing runs, and renumbers the others in order of first use.
fn keep_used(
    timetable: &Timetable,
    stages: &mut [PlanStage],
    pairs: &mut Vec<Pair>,
    overlapped: Overlapped,
) -> Vec<Program> {
    let mut used: [BTreeSet<u32>; 4] = Default::default();
    let mut paired: BTreeSet<(u32, u32)> = BTreeSet::new();
    for &action in timetable.ranks.iter().flatten() {
        match action {
            Action::F(c) => used[0].insert(c.stage),
            Action::B(c) => used[1].insert(c.stage),
            Action::I(c) => used[2].insert(c.stage),
            Action::W(c) => used[3].insert(c.stage),
            Action::FB(f, b) => paired.insert((f.stage, b.stage)),
        };
    }
    pairs.retain(|pair| paired.contains(&(pair.f, pair.b)));

    let mut renumbered: Vec<Option<u32>> = vec![None; overlapped.programs.len()];
    let mut next = 0;
    let mut renumber = |program: &mut u32| {
        let number = renumbered[*program as usize].get_or_insert_with(|| {
            next += 1;
            next - 1
        });
        *program = *number;
    };
    for (at, stage) in (0..).zip(stages.iter_mut()) {
        for (binding, used) in [&mut stage.f, &mut stage.b, &mut stage.i, &mut stage.w].into_iter().zip(&used) {
            *binding = binding.take().filter(|_| used.contains(&at));
            binding.iter_mut().for_each(&mut renumber);
        }
    }
    pairs.iter_mut().for_each(|pair| renumber(&mut pair.program));

    let mut kept: Vec<(u32, Program)> = overlapped
        .programs
        .into_iter()
        .zip(renumbered)
        .filter_map(|(program, number)| Some((number?, program)))
        .collect();
    kept.sort_by_key(|&(number, _)| number);
    kept.into_iter().map(|(_, program)| program).collect()
}
