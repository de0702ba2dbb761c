//! Traces as a run on GPUs writes them, without one.

use dualweave::ir::Phase;
use dualweave::plan::{Plan, Task};
use dualweave::sim::{Simulation, Span};
use dualweave::units::Nanos;
use dualweave::view::perfetto::{Measured, write_measured};
use serde_json::Value;

/// A trace as a run writes it: everything a tenth later and longer than predicted, on two replicas.
pub fn trace(plan: &Plan, simulation: &Simulation) -> Value {
    let later = |time: Nanos| Nanos(time.0 + time.0 / 10);
    let of_rank = |rank: usize| {
        let timing = &simulation.ranks[rank];
        let mut spans = Vec::new();
        for (index, (item, span)) in plan.ranks[rank].items.iter().zip(&timing.items).enumerate() {
            let stream = item.0.stream();
            let mut ran = |exchange, name, span: Span| {
                let span = Span { start: later(span.start), end: later(span.end) };
                spans.push(Measured { stream, exchange, name, span });
            };
            for (op, inside) in timing.programs[index].into_iter().flat_map(|program| {
                plan.programs[program as usize].ops.iter().zip(&simulation.programs[program as usize].ops)
            }) {
                let span = Span { start: span.start + inside.start, end: span.start + inside.end };
                let chunk = match (item.0, op.phase) {
                    (Task::FB(f, _), Phase::F) => f,
                    (Task::FB(_, b), _) => b,
                    (Task::F(s, m) | Task::B(s, m) | Task::I(s, m) | Task::W(s, m), _) => (s, m),
                    _ => continue,
                };
                let name = format!("{} of unit {} of ({},{})", op.what(), op.unit, chunk.0, chunk.1);
                ran(op.work.is_exchange(), name, span);
            }
            ran(false, item.0.to_string(), *span);
        }
        spans
    };
    let gpu = |replica| move |rank: usize| (format!("rank {rank}, replica {replica}"), rank);
    let gpus = (0..plan.ranks.len()).map(gpu(0)).chain((0..plan.ranks.len()).map(gpu(1)));
    let processes: Vec<(String, Vec<Measured>)> = gpus.map(|(name, rank)| (name, of_rank(rank))).collect();
    let mut bytes = Vec::new();
    write_measured(plan, &processes, &mut bytes).expect("memory takes it");
    serde_json::from_slice(&bytes).expect("JSON")
}
