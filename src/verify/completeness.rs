//! Rule `completeness`: every unit of the model is in one stage; every chunk is run forward and backward once, on its rank; every stage
//! is reduced, updated and, where that moves data, gathered once on each rank that holds it.

use std::collections::BTreeSet;

use crate::ir::{ChunkId, Unit, Work};
use crate::job::model::Layers;
use crate::plan::{Plan, Task};

use super::rank::{Deed, deeds};
use super::report::{Report, Rule, Violation};

const RULE: Rule = Rule::Completeness;

/// Checks the whole plan.
pub fn check(plan: &Plan, report: &mut Report) {
    model(plan, report);
    chunks(plan, report);
    synchronisation(plan, report);
}

/// The units of all stages, one after the other, are those of the plan's model: the embedding, layers 0, 1, 2, …, MTP modules
/// 0, 1, …, and the head.
fn model(plan: &Plan, report: &mut Report) {
    let units = || (0..).zip(&plan.stages).flat_map(|(stage, held)| held.units.iter().map(move |&unit| (stage, unit)));
    let count = units().count();
    let (mut layers, mut modules) = (0_u32, 0_u32);
    let mut in_order = true;
    for (place, (stage, unit)) in (1..).zip(units()) {
        let expected = match unit {
            _ if place == 1 => Some(Unit::Embedding),
            _ if place == count => Some(Unit::Head),
            Unit::Dense(_) if modules == 0 => Some(Unit::Dense(layers)),
            Unit::Moe(_) if modules == 0 => Some(Unit::Moe(layers)),
            Unit::Mtp(_) => Some(Unit::Mtp(modules)),
            _ => None,
        };
        if expected != Some(unit) {
            in_order = false;
            report.add(RULE, || {
                let message = match expected {
                    Some(expected) => format!("has unit `{unit}` where `{expected}` of the model should be"),
                    None => format!("has unit `{unit}` in the middle of the model, where it cannot be"),
                };
                Violation::rank(RULE, holder(plan, stage), format!("stage {stage}"), message)
            });
        }
        match unit {
            // Goes on from what is there, so that one gap is one violation.
            Unit::Dense(layer) | Unit::Moe(layer) => layers = layer.saturating_add(1),
            Unit::Mtp(module) => modules = module.saturating_add(1),
            Unit::Embedding | Unit::Head => {}
        }
    }
    if count == 1 {
        report.add(RULE, || Violation::rank(RULE, holder(plan, 0), "the model", "has no head".to_owned()));
    }
    // Beyond that, numbers of layers are no numbers of the model.
    if in_order && count > 1 {
        same_model(plan, units(), [layers, modules], report);
    }
}

/// Whether units that are those of a model are those of the plan's. They have so many layers and MTP modules.
fn same_model(plan: &Plan, units: impl Iterator<Item = (u32, Unit)>, [layers, modules]: [u32; 2], report: &mut Report) {
    let with_experts = plan.model.moe.as_ref().map(|moe| &moe.layers);
    let listed: BTreeSet<u32> = match with_experts {
        Some(Layers::Only(layers)) => layers.iter().copied().collect(),
        _ => BTreeSet::new(),
    };
    let has_experts = |layer: u32| match with_experts {
        None => false,
        Some(Layers::All) => true,
        Some(Layers::From(first)) => layer >= *first,
        Some(Layers::Only(_)) => listed.contains(&layer),
    };
    for (stage, unit) in units {
        let wrong = match unit {
            Unit::Dense(layer) if layer < plan.model.layers && has_experts(layer) => "has experts",
            Unit::Moe(layer) if layer < plan.model.layers && !has_experts(layer) => "has none",
            _ => continue,
        };
        report.add(RULE, || {
            let message = format!("has unit `{unit}`, but that layer of the model {wrong}");
            Violation::rank(RULE, holder(plan, stage), format!("stage {stage}"), message)
        });
    }
    for (what, there, wanted) in
        [("layers", layers, plan.model.layers), ("MTP modules", modules, plan.model.mtp_layers)]
    {
        if there != wanted {
            report.add(RULE, || {
                Violation::plan(RULE, "the model", format!("has {wanted} {what}, but the stages have {there}"))
            });
        }
    }
}

/// The first rank that holds a stage.
fn holder(plan: &Plan, stage: u32) -> u32 {
    plan.layout.holders(stage).first().copied().unwrap_or(0)
}

/// F, I and W of every chunk.
fn chunks(plan: &Plan, report: &mut Report) {
    let layout = &plan.layout;
    // Sorted: of each stage first all F, then all I, then all W, by micro-batch.
    let mut done: Vec<(u32, Deed, u32, u32, usize)> = Vec::new();
    for (number, rank) in (0..).zip(&plan.ranks) {
        for (index, item) in rank.items.iter().enumerate() {
            for (deed, chunk) in deeds(item.0).filter(|(deed, _)| matches!(deed, Deed::F | Deed::I | Deed::W)) {
                done.push((chunk.stage, deed, chunk.micro_batch, number, index));
            }
        }
    }
    done.sort_unstable();
    let mut rest = done.as_slice();
    for stage in 0..layout.stages {
        for deed in [Deed::F, Deed::I, Deed::W] {
            let missing = |micro_batch: u32| {
                let rank = layout.rank_of(ChunkId::new(stage, micro_batch));
                let action = format!("{deed:?}({stage},{micro_batch})");
                Violation::rank(RULE, rank, action, "is never run: the micro-batch is lost there".to_owned())
            };
            let (here, others) = rest.split_at(rest.partition_point(|entry| (entry.0, entry.1) <= (stage, deed)));
            rest = others;
            let mut next = 0;
            for entries in here.chunk_by(|a, b| a.2 == b.2) {
                let micro_batch = entries[0].2;
                report.add_range(RULE, next..micro_batch, missing);
                next = micro_batch.saturating_add(1);
                let owner = layout.rank_of(ChunkId::new(stage, micro_batch));
                // The one that counts: the first on the right rank, or else just the first.
                let right = entries.iter().position(|entry| entry.3 == owner).unwrap_or(0);
                for (at, &(.., rank, item)) in entries.iter().enumerate() {
                    if rank != owner {
                        report.add(RULE, || {
                            let message = format!("runs {deed:?} on this rank, but the layout has it on rank {owner}");
                            Violation::item(RULE, plan, rank, item, message)
                        });
                    } else if at != right {
                        report.add(RULE, || {
                            let message =
                                format!("repeats {deed:?}({stage},{micro_batch}) of item {}", entries[right].4);
                            Violation::item(RULE, plan, rank, item, message)
                        });
                    }
                }
            }
            report.add_range(RULE, next..layout.micro_batches, missing);
        }
    }
}

/// Reduction, update and gathering of every stage.
fn synchronisation(plan: &Plan, report: &mut Report) {
    // Sorted, so that what each stage has on each rank stands together.
    let mut done: Vec<(Task, u32, usize)> = Vec::new();
    for (number, rank) in (0..).zip(&plan.ranks) {
        for (index, item) in rank.items.iter().enumerate() {
            if let Task::ReduceGrads(stage) | Task::Update(stage) | Task::GatherParams(stage) = item.0 {
                if plan.layout.holders(stage).contains(&number) {
                    done.push((item.0, number, index));
                } else {
                    report.add(RULE, || {
                        let message = format!("is about a stage that rank {number} does not hold");
                        Violation::item(RULE, plan, number, index, message)
                    });
                }
            }
        }
    }
    done.sort_unstable();
    for twice in done.windows(2).filter(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1)) {
        let (task, rank, item) = twice[1];
        report.add(RULE, || {
            let message = format!("repeats {task} of item {}", twice[0].2);
            Violation::item(RULE, plan, rank, item, message)
        });
    }
    let there = |task: Task, rank: u32| {
        let at = done.partition_point(|entry| (entry.0, entry.1) < (task, rank));
        done.get(at).is_some_and(|entry| (entry.0, entry.1) == (task, rank))
    };
    for (stage, held) in (0..).zip(&plan.stages) {
        let holders = plan.layout.holders(stage);
        let gather = Task::GatherParams(stage);
        let gathered = !idle(&held.gather) || holders.iter().any(|&rank| there(gather, rank));
        for &rank in &holders {
            for task in [Task::ReduceGrads(stage), Task::Update(stage)].into_iter().chain(gathered.then_some(gather)) {
                if !there(task, rank) {
                    report.add(RULE, || {
                        let message = format!("is never run on this rank, which holds stage {stage}");
                        Violation::rank(RULE, rank, task.to_string(), message)
                    });
                }
            }
        }
    }
}

/// Whether the work is none.
fn idle(work: &Work) -> bool {
    match work {
        Work::Compute(kernels) => kernels.is_empty(),
        Work::Exchange { nvlink, network, .. } => nvlink.0 == 0 && network.0 == 0,
        Work::Copy { nvlink } => nvlink.0 == 0,
    }
}
