//! That everything a plan refers to is there: ranks, stages, programs, earlier items. Nothing more; whether the plan is
//! *right* is asked in [`crate::verify`].

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::ir::{Layout, Placement};
use crate::plan::{Plan, StreamId, Task};

/// An error about one item of one rank.
pub(super) fn refuse(rank: usize, item: usize, task: Task, what: impl std::fmt::Display) -> Error {
    Error::new(format!("rank {rank}, item {item}, {task}: {what}"))
}

/// Checks that the layout is one, that programs wait only for ops before, and that items name what the plan has.
///
/// # Errors
/// Names the first thing that is not there, with its rank and item.
pub fn check_references(plan: &Plan) -> Result<()> {
    check_layout(plan)?;
    for (number, program) in plan.programs.iter().enumerate() {
        for (op, waits) in program.ops.iter().map(|op| &op.waits).enumerate() {
            if let Some(wait) = waits.iter().find(|&&wait| wait as usize >= op) {
                return Err(Error::new(format!(
                    "program {number}: op {op} waits for op {wait}, which is not before it"
                )));
            }
        }
    }
    for (rank, list) in plan.ranks.iter().enumerate() {
        for (item, entry) in list.items.iter().enumerate() {
            check_task(plan, rank, entry.0).map_err(|what| refuse(rank, item, entry.0, what))?;
            if let Some(wait) = entry.1.iter().find(|&&wait| wait as usize >= item) {
                return Err(refuse(rank, item, entry.0, format_args!("waits for item {wait}, which is not before it")));
            }
        }
    }
    Ok(())
}

/// Finds the program of a compute item.
pub(super) struct Programs<'a> {
    plan: &'a Plan,
    pairs: BTreeMap<(u32, u32), u32>,
}

impl<'a> Programs<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        Self { plan, pairs: plan.pairs.iter().map(|pair| ((pair.f, pair.b), pair.program)).collect() }
    }

    /// Index of the task's program; `None` for an item that runs none. The error says what is missing.
    pub(super) fn of(&self, task: Task) -> Result<Option<u32>, String> {
        let stage = |s: u32| self.plan.stages.get(s as usize);
        let program = match task {
            Task::F(s, _) => stage(s).and_then(|stage| stage.f),
            Task::B(s, _) => stage(s).and_then(|stage| stage.b),
            Task::I(s, _) => stage(s).and_then(|stage| stage.i),
            Task::W(s, _) => stage(s).and_then(|stage| stage.w),
            Task::FB(f, b) => self.pairs.get(&(f.0, b.0)).copied(),
            _ => return Ok(None),
        };
        match program {
            None => Err("the plan has no program for it".to_owned()),
            Some(number) if number as usize >= self.plan.programs.len() => {
                Err(format!("its program is number {number}, but the plan has {}", self.plan.programs.len()))
            }
            found => Ok(found),
        }
    }
}

fn check_layout(plan: &Plan) -> Result<()> {
    let Layout { placement, ranks, stages, .. } = plan.layout;
    let refuse = |message: String| Err(Error::new(message).help("a plan is written by `dualweave compile`"));
    if ranks == 0 || ranks as usize != plan.ranks.len() {
        return refuse(format!("the plan's layout has {ranks} ranks, but it lists {}", plan.ranks.len()));
    }
    if stages as usize != plan.stages.len() {
        return refuse(format!("the plan's layout has {stages} stages, but it lists {}", plan.stages.len()));
    }
    let fits = match placement {
        Placement::Linear | Placement::Bidirectional => stages == ranks,
        Placement::V => u64::from(stages) == 2 * u64::from(ranks),
        Placement::Loop => stages > 0 && stages.is_multiple_of(ranks),
    };
    match fits {
        true => Ok(()),
        false => refuse(format!("a placement {placement} cannot lay {stages} stages over {ranks} ranks")),
    }
}

fn check_task(plan: &Plan, rank: usize, task: Task) -> Result<(), String> {
    let check_chunk = |stage: u32, micro_batch: u32| {
        check_stage(plan, stage)?;
        match micro_batch < plan.layout.micro_batches {
            true => Ok(()),
            false => Err(format!("there are {} micro-batches", plan.layout.micro_batches)),
        }
    };
    match task {
        Task::F(s, m) | Task::B(s, m) | Task::I(s, m) | Task::W(s, m) => check_chunk(s, m),
        Task::FB(f, b) => check_chunk(f.0, f.1).and(check_chunk(b.0, b.1)),
        Task::SendAct(s, m, _) | Task::SendGrad(s, m, _) | Task::RecvAct(s, m, _) | Task::RecvGrad(s, m, _) => {
            check_chunk(s, m)
        }
        Task::ReduceGrads(s) | Task::Update(s) | Task::GatherParams(s) => check_stage(plan, s),
    }?;
    if let StreamId::From(peer) | StreamId::To(peer) = task.stream() {
        if peer as usize >= plan.ranks.len() {
            return Err(format!("there are {} ranks", plan.ranks.len()));
        }
        if peer as usize == rank {
            return Err("a rank does not send to itself".to_owned());
        }
    }
    Ok(())
}

fn check_stage(plan: &Plan, stage: u32) -> Result<(), String> {
    match (stage as usize) < plan.stages.len() {
        true => Ok(()),
        false => Err(format!("there are {} stages", plan.stages.len())),
    }
}
