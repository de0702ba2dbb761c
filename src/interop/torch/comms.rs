//! Adds communication to a compute-only schedule, where PyTorch adds it too.
//!
//! Rows are walked in rounds, each rank going on by a cell if it can. Behind what makes a message stands its send, and at that moment its
//! receive is put into the other row. So both ranks come to the transfers between them in one order, which is that of a run that ended:
//! nobody can wait for ever.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::check::message_of;
use super::{Cell, Compute, Fault, Message, Owners, Schedule, Work, check};
use crate::ir::Phase;

/// Stages of a rank that have their parameters gathered at once: one for a forward, one for a backward, and the next. PyTorch's default.
const GATHERED: usize = 3;

/// The schedule of `micro_batches` in the form with communication. Of one that has it already, what it computes is taken.
///
/// # Errors
/// If the schedule is not safe to run.
pub fn with_communication(schedule: &Schedule, micro_batches: u32) -> Result<Schedule, Fault> {
    let computed = schedule.compute_only();
    let owners = check(&computed, micro_batches)?;
    let rows = computed.rows.iter().map(|row| reduced(&gathered(row), micro_batches)).collect();
    let schedule = sent(rows, &owners);
    check(&schedule, micro_batches)?;
    Ok(schedule)
}

/// Gathers the parameters of the stages that come next, and gives back those of others.
fn gathered(row: &[Option<Cell>]) -> Vec<Cell> {
    let cells: Vec<Cell> = row.iter().copied().flatten().collect();
    let to_come = stages_to_come(&cells);
    let mut active: BTreeSet<u32> = BTreeSet::new();
    let mut all = Vec::new();
    for (index, &cell) in cells.iter().enumerate() {
        let most = GATHERED.min(to_come[index]);
        let mut next: Vec<u32> = Vec::new();
        for cell in &cells[index..] {
            for stage in cell.works().map(|work| work.chunk.stage) {
                if !next.contains(&stage) {
                    next.push(stage);
                }
            }
            // Both stages of a pair, even if that is one too many.
            if next.len() >= most {
                break;
            }
        }
        let evicted: Vec<u32> = active.iter().copied().filter(|stage| !next.contains(stage)).collect();
        for stage in evicted {
            active.remove(&stage);
            all.push(Cell::Reshard(stage));
        }
        for stage in next {
            if active.insert(stage) {
                all.push(Cell::Unshard(stage));
            }
        }
        all.push(cell);
    }
    all.extend(active.into_iter().map(Cell::Reshard));
    all
}

/// By cell: how many stages it and those behind it are of.
fn stages_to_come(cells: &[Cell]) -> Vec<usize> {
    let mut stages: BTreeSet<u32> = BTreeSet::new();
    let mut counts: Vec<usize> = (cells.iter().rev())
        .map(|cell| {
            stages.extend(cell.works().map(|work| work.chunk.stage));
            stages.len()
        })
        .collect();
    counts.reverse();
    counts
}

/// Reduces the gradients of a stage behind the last that makes them.
fn reduced(row: &[Cell], micro_batches: u32) -> Vec<Cell> {
    let mut made: BTreeMap<u32, u32> = BTreeMap::new();
    let mut all = Vec::new();
    for &cell in row {
        all.push(cell);
        for work in cell.works().filter(|work| work.phases().contains(&Phase::W)) {
            let made = made.entry(work.chunk.stage).or_default();
            *made += 1;
            if *made == micro_batches {
                all.push(Cell::ReduceGrad(work.chunk.stage));
            }
        }
    }
    all
}

/// Adds sends and receives. The rows are those of a schedule that comes to an end.
fn sent(rows: Vec<Vec<Cell>>, owners: &Owners) -> Schedule {
    let mut left: Vec<VecDeque<Cell>> = rows.into_iter().map(VecDeque::from).collect();
    let mut rows: Vec<Vec<Option<Cell>>> = vec![Vec::new(); left.len()];
    let mut arrived: BTreeSet<Message> = BTreeSet::new();
    let mut done: BTreeSet<Work> = BTreeSet::new();
    while left.iter().any(|row| !row.is_empty()) {
        for rank in 0..left.len() {
            let Some(&cell) = left[rank].front() else { continue };
            if !cell.works().all(|work| can_run(work, owners, &arrived, &done)) {
                continue;
            }
            left[rank].pop_front();
            rows[rank].push(Some(cell));
            for work in cell.works() {
                done.insert(work);
                if let Some(message) = message_of(work, owners) {
                    rows[rank].push(Some(Cell::Send(message)));
                    rows[owners.rank_of(message.to().stage)].push(Some(Cell::Receive(message)));
                    arrived.insert(message);
                }
            }
        }
    }
    Schedule { rows }
}

/// Whether what a computation reads from its neighbour is there.
fn can_run(work: Work, owners: &Owners, arrived: &BTreeSet<Message>, done: &BTreeSet<Work>) -> bool {
    let mut chunk = work.chunk;
    let computes: &[Compute] = match work.compute {
        Compute::F if chunk.stage > 0 => {
            chunk.stage -= 1;
            &[Compute::F]
        }
        Compute::B | Compute::I if chunk.stage + 1 < owners.stages() => {
            chunk.stage += 1;
            &[Compute::B, Compute::I]
        }
        _ => return true,
    };
    let gradient = work.compute != Compute::F;
    arrived.contains(&Message { gradient, from: chunk })
        || owners.rank_of(chunk.stage) == owners.rank_of(work.chunk.stage)
            && computes.iter().any(|&compute| done.contains(&Work { compute, chunk }))
}
