//! Timetables: which rank runs which chunk in what order. One file per published schedule, plus what times them
//! ([`replay()`]) and what none of them can beat ([`lower_bound`]).
//!
//! Generators know ranks, stages and micro-batches only: no costs, no times. They do not search.

mod bound;
mod dualpipe;
mod dualpipev;
mod exact;
mod gpipe;
mod interleaved;
mod one_f_one_b;
mod replay;
pub mod search;
mod zb_h1;
mod zb_v;

pub use bound::{Bounds, bounds, lower_bound, tight_bound};
pub use exact::{Exact, exact};
pub use replay::{Replay, Span, replay};

use crate::error::{Error, Result};
use crate::ir::{Layout, Placement, Timetable};
use crate::job::training::ScheduleKind;

/// Most pipeline ranks that a timetable is made for.
pub const MAX_RANKS: u32 = 4096;

/// Most stages that a rank takes turns with.
pub const MAX_STAGES_PER_RANK: u32 = 64;

/// Most chunks (stages × micro-batches) that a timetable is made for.
pub const MAX_CHUNKS: u64 = 1 << 22;

/// The timetable of a published schedule.
///
/// # Errors
/// If `layout` has another placement than the schedule, or [`precondition`] does not hold.
pub fn generate(kind: ScheduleKind, layout: &Layout) -> Result<Timetable> {
    if let Some(own) = kind.placement().filter(|own| *own != layout.placement) {
        return Err(Error::new(format!("{kind} lays its stages out as `{own}`; `{}` was given", layout.placement))
            .help(format!("use `{own}`, or leave the placement out")));
    }
    let Some(per_rank) = stages_per_rank(layout) else {
        return Err(Error::new(format!(
            "{} stages cannot be laid out as `{}` over {} ranks",
            layout.stages, layout.placement, layout.ranks
        )));
    };
    precondition(kind, layout.ranks, per_rank, layout.micro_batches)?;
    let rank = match kind {
        ScheduleKind::GPipe => gpipe::rank,
        ScheduleKind::OneFOneB => one_f_one_b::rank,
        ScheduleKind::Interleaved => interleaved::rank,
        ScheduleKind::ZbH1 => zb_h1::rank,
        ScheduleKind::ZbV => zb_v::rank,
        ScheduleKind::DualPipe => dualpipe::rank,
        ScheduleKind::DualPipeV => dualpipev::rank,
        ScheduleKind::Auto => return Err(Error::new(format!("{kind} is searched for: it has no generator"))),
    };
    let ranks = (0..layout.ranks).map(|r| rank(layout, r)).collect();
    Ok(Timetable { layout: *layout, ranks })
}

/// Whether a schedule exists for these numbers. `stages_per_rank` matters to `Interleaved` only.
///
/// # Errors
/// One sentence that says what the schedule needs and names the nearest values that would do; its field is the one of the
/// job that is at fault.
pub fn precondition(kind: ScheduleKind, ranks: u32, stages_per_rank: u32, micro_batches: u32) -> Result<()> {
    let refuse = |field: &str, message: String| Err(Error::new(message).field(format!("training.{field}")));
    if ranks == 0 || ranks > MAX_RANKS {
        let nearest = ranks.clamp(1, MAX_RANKS);
        return refuse("pp", format!("{kind} needs 1 to {MAX_RANKS} ranks, not {ranks}: use {nearest}"));
    }
    if micro_batches == 0 {
        return refuse("micro_batches", format!("{kind} needs at least 1 micro-batch, not 0: use 1"));
    }
    let per_rank = match kind.placement() {
        Some(Placement::Linear | Placement::Bidirectional) => 1,
        Some(Placement::V) => 2,
        Some(Placement::Loop) | None => u64::from(stages_per_rank),
    };
    if !(1..=u64::from(MAX_STAGES_PER_RANK)).contains(&per_rank) {
        let nearest = stages_per_rank.clamp(1, MAX_STAGES_PER_RANK);
        let needs = format!("{kind} needs 1 to {MAX_STAGES_PER_RANK} stages per rank");
        return refuse("stages_per_rank", format!("{needs}, not {stages_per_rank}: use {nearest}"));
    }
    let stages = per_rank * u64::from(ranks);
    if stages * u64::from(micro_batches) > MAX_CHUNKS {
        let message = format!(
            "{kind} over {stages} stages is made for at most {} micro-batches ({MAX_CHUNKS} chunks); {micro_batches} is too many",
            MAX_CHUNKS / stages
        );
        return refuse("micro_batches", message);
    }
    match kind {
        ScheduleKind::DualPipe => dualpipe::precondition(ranks, micro_batches),
        ScheduleKind::DualPipeV => dualpipev::precondition(ranks, micro_batches),
        ScheduleKind::Interleaved => interleaved::precondition(ranks, micro_batches),
        ScheduleKind::GPipe | ScheduleKind::OneFOneB | ScheduleKind::ZbH1 | ScheduleKind::ZbV | ScheduleKind::Auto => {
            Ok(())
        }
    }
}

/// Stages that each rank holds for one direction, if the layout is one that [`Layout::new`] makes.
fn stages_per_rank(layout: &Layout) -> Option<u32> {
    let (ranks, stages) = (layout.ranks, layout.stages);
    let per_rank = stages.checked_div(ranks)?;
    let fixed = match layout.placement {
        Placement::Linear | Placement::Bidirectional => Some(1),
        Placement::V => Some(2),
        Placement::Loop => None,
    };
    (stages.is_multiple_of(ranks) && per_rank >= 1 && fixed.is_none_or(|fixed| fixed == per_rank)).then_some(per_rank)
}
