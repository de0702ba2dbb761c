//! The independent checker of a plan. What it passes will run.
//!
//! It trusts nobody: it reads the plan and nothing else, shares no code with the passes, and never panics, whatever the
//! plan contains. Time and memory are linear in the plan, but for sorting.
//!
//! # What is proved
//! Each of [`Rule`]'s rules, under the meaning that [`crate::plan::Plan`] gives to a plan, at any speed of any kernel or
//! link:
//! - that it ends: every rank's items, transfers and collectives can always go on (`deadlock`, `unmatched-transfer`,
//!   `collective-order`);
//! - that it computes what it should: every op of every chunk once (`completeness`, `program-content`), each after what it
//!   reads (`read-before-write`, `program-order`), from buffers that nothing else writes meanwhile (`write-while-read`,
//!   `buffer-size`), and from bytes that belong to nothing else as long as they are needed (`places`, `aliasing`);
//! - that it fits: memory of every rank, SMs of ops that may overlap (`memory`, `sms`).
//!
//! Order between items is asked of the rank that both are on, from its streams and its `after` lists alone. A plan whose
//! order holds only because of a detour over another rank is refused, though it would run: no event would show it.
//!
//! # What is not
//! That the numbers in the plan (bytes, FLOPs, held activations) are those of the model: they are the compiler's, and the
//! golden tests' to check; of a backward's workspace only a lower limit follows from them. Which op of one component and
//! phase comes first (the gather or the product that it feeds), only that they follow one another. That transfers and gradient synchronisation leave the SMs alone: they carry no SM count, and are
//! meant for copy engines and the network. How long anything takes, and how much overlapped ops slow each other: that is
//! `sim`. That the timetable's certificate is true.

mod aliasing;
mod buffers;
mod completeness;
mod deadlock;
mod grammar;
mod meeting;
mod memory;
mod places;
mod precedence;
mod programs;
mod rank;
mod reads;
mod rendezvous;
mod report;
mod sms;
mod well_formed;

pub use report::{Checked, LISTED, Report, Rule, Violation};

use crate::plan::Plan;

/// Checks a plan against every rule. If it is not even well-formed, the other rules are not asked: they would have no
/// meaning.
pub fn verify(plan: &Plan) -> Report {
    let checked = Checked {
        ranks: plan.ranks.len(),
        items: plan.ranks.iter().map(|rank| rank.items.len()).sum(),
        programs: plan.programs.len(),
        rules: 1,
    };
    let mut report = Report { checked, ..Report::default() };
    well_formed::check(plan, &mut report);
    if !report.is_safe() {
        return report;
    }
    report.checked.rules = Rule::ALL.len();
    programs::check(plan, &mut report);
    sms::check(plan, &mut report);
    completeness::check(plan, &mut report);
    let mut met = rendezvous::transfers(plan, &mut report);
    met.extend(rendezvous::collectives(plan, &mut report));
    deadlock::check(plan, &met, &mut report);
    let sizes = places::Sizes::new(plan);
    for number in 0..plan.layout.ranks {
        let rank = rank::Rank::new(plan, number);
        reads::check(&rank, &mut report);
        buffers::check(&rank, &mut report);
        aliasing::check(plan, number, &places::check(plan, &sizes, number, &mut report), &mut report);
    }
    memory::check(plan, &mut report);
    // Rules that are asked together, or rank by rank, come out mixed. Stable.
    report.violations.sort_by_key(|violation| violation.rule);
    report
}
