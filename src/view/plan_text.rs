//! A plan as text: everything that it orders, in lines that stay where they are when something else changes. For snapshot tests, and for what
//! stands in a review. Offsets in arenas are left out: they follow from the rest.

use super::units::runs;
use crate::ir::{ProgramKind, ProgramOp, Stream};
use crate::plan::Plan;
use crate::sim::time_program;

/// The text. The same plan has the same text.
///
/// ```
/// # use dualweave::{job, passes, view};
/// let job = job::load("examples/tiny/job.ron".as_ref(), &job::Overrides::default())?.job;
/// let text = view::plan_text::render(&passes::compile(&job)?.plan);
/// assert!(text.contains("\nrank 0\n"));
/// # Ok::<(), dualweave::Error>(())
/// ```
pub fn render(plan: &Plan) -> String {
    let (origin, layout) = (&plan.origin, &plan.layout);
    let mut text = format!("{} on {}, {}\n", plan.model.name, origin.cluster, origin.schedule);
    let mut line = |line: String| text += &(line + "\n");
    line(format!(
        "{:?}: {} ranks, {} stages, {} micro-batches of {} × {} tokens; dp {}, ep {}, tp {}",
        layout.placement,
        layout.ranks,
        layout.stages,
        layout.micro_batches,
        origin.micro_batch_size,
        origin.sequence,
        origin.dp,
        origin.ep,
        origin.tp
    ));
    line(format!("timetable {} ns, at least {} ns", plan.timetable.makespan.0, plan.timetable.lower_bound.0));
    line("\nstages".to_owned());
    for (number, stage) in plan.stages.iter().enumerate() {
        let again = if stage.recompute.is_nothing() { String::new() } else { format!("; again: {}", stage.recompute) };
        line(format!("  {number}: {}{again}", runs(&stage.units)));
    }
    for (number, program) in plan.programs.iter().enumerate() {
        let timing = time_program(program, &plan.machine);
        line(format!("\n{}: {} ns", program_name(plan, number), timing.total.0));
        for op in &program.ops {
            let waits: Vec<String> =
                op.waits.iter().filter_map(|&wait| program.ops.get(wait as usize).map(op_name)).collect();
            let after = if waits.is_empty() { String::new() } else { format!(", after {}", waits.join(" and ")) };
            let stream = if op.stream() == Stream::Comm { "communication" } else { "computation" };
            line(format!("  {stream}: {}, {} SMs{after}", op_name(op), op.sms));
        }
    }
    for (number, rank) in plan.ranks.iter().enumerate() {
        line(format!("\nrank {number}"));
        for item in &rank.items {
            let named = |&after: &u32| rank.items.get(after as usize).map(|item| item.0.to_string());
            let waits: Vec<String> = item.1.iter().filter_map(named).collect();
            let after = if waits.is_empty() { String::new() } else { format!(" after {}", waits.join(" and ")) };
            line(format!("  {}{after}", item.0));
        }
    }
    text
}

/// `B of stage 1`, `FB of stages 0 and 1`; of a program that several stages share, the first.
pub fn program_name(plan: &Plan, program: usize) -> String {
    let number = program as u32;
    let kind = plan.programs.get(program).map(|program| program.kind);
    if kind == Some(ProgramKind::FB) {
        let pair = plan.pairs.iter().find(|pair| pair.program == number);
        return pair.map_or("FB of no stages".to_owned(), |pair| format!("FB of stages {} and {}", pair.f, pair.b));
    }
    let kind = kind.map_or("program".to_owned(), |kind| format!("{kind:?}"));
    let stage = plan.stages.iter().position(|stage| [stage.f, stage.b, stage.i, stage.w].contains(&Some(number)));
    stage.map_or_else(|| format!("{kind} of no stage"), |stage| format!("{kind} of stage {stage}"))
}

/// `Mlp F (shared) of unit 2`.
pub fn op_name(op: &ProgramOp) -> String {
    format!("{} of unit {}", op.what(), op.unit)
}
