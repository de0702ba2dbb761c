//! Between PyTorch's schedules and timetables.

use super::{Cell, Compute, Owners, Schedule, Work};
use crate::error::{Error, Result};
use crate::ir::{Action, ChunkId, Layout, Placement, Timetable};

/// A timetable as PyTorch has it, compute-only.
///
/// # Errors
/// If it is bidirectional: PyTorch has every stage on one rank.
pub fn of_timetable(timetable: &Timetable) -> Result<Schedule> {
    if timetable.layout.placement == Placement::Bidirectional && timetable.layout.ranks > 1 {
        return Err(Error::new("PyTorch cannot run a bidirectional pipeline: each stage would stand on two ranks")
            .help(
                "compile the job with `--schedule dualpipev`: placement `v` has the same pairs, and each stage once",
            ));
    }
    let work = |compute, chunk: ChunkId| Work { compute, chunk };
    let cell = |action: &Action| match *action {
        Action::F(chunk) => Cell::Work(work(Compute::F, chunk)),
        Action::B(chunk) => Cell::Work(work(Compute::B, chunk)),
        Action::I(chunk) => Cell::Work(work(Compute::I, chunk)),
        Action::W(chunk) => Cell::Work(work(Compute::W, chunk)),
        Action::FB(forward, backward) => Cell::Pair(work(Compute::F, forward), work(Compute::B, backward)),
    };
    Ok(Schedule {
        rows: timetable.ranks.iter().map(|row| row.iter().map(|action| Some(cell(action))).collect()).collect(),
    })
}

/// The timetable of what a schedule computes, if its stages are laid out as one of ours are: `linear`, `v` or `loop`.
///
/// # Errors
/// If they are not, or a forward is overlapped with an input gradient alone.
pub fn timetable(schedule: &Schedule, owners: &Owners, micro_batches: u32) -> Result<Timetable> {
    let layout = layout(schedule.rows.len() as u32, owners, micro_batches).ok_or_else(|| {
        Error::new("the stages are laid out in a way of their own")
            .help("placements that can be searched are linear (stage = rank), v (rank r has stages r and 2P-1-r) and loop (stage s on rank s mod P)")
    })?;
    let action = |cell: &Cell| match *cell {
        Cell::Work(Work { compute: Compute::F, chunk }) => Ok(Action::F(chunk)),
        Cell::Work(Work { compute: Compute::B, chunk }) => Ok(Action::B(chunk)),
        Cell::Work(Work { compute: Compute::I, chunk }) => Ok(Action::I(chunk)),
        Cell::Work(Work { compute: Compute::W, chunk }) => Ok(Action::W(chunk)),
        Cell::Pair(forward, Work { compute: Compute::B, chunk }) => Ok(Action::FB(forward.chunk, chunk)),
        _ => Err(Error::new(format!("`{cell}` overlaps a forward with half of a backward"))
            .help("pairs that can be searched are of a forward and a full backward")),
    };
    let row = |row: &Vec<Option<Cell>>| row.iter().flatten().map(action).collect::<Result<Vec<_>>>();
    let ranks = schedule.compute_only().rows.iter().map(row).collect::<Result<Vec<_>>>()?;
    Ok(Timetable { layout, ranks })
}

/// How the stages are laid out, if that has a name.
fn layout(ranks: u32, owners: &Owners, micro_batches: u32) -> Option<Layout> {
    let stages = owners.stages();
    if !stages.is_multiple_of(ranks) {
        return None;
    }
    let placements: &[Placement] = match stages / ranks {
        1 => &[Placement::Linear],
        2 => &[Placement::V, Placement::Loop],
        _ => &[Placement::Loop],
    };
    let layouts = placements.iter().map(|&placement| Layout::new(placement, ranks, stages / ranks, micro_batches));
    layouts.into_iter().find(|layout| {
        (0..stages).all(|stage| layout.rank_of(ChunkId::new(stage, 0)) as usize == owners.rank_of(stage))
    })
}
