//! The outputs of the passes as short text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dualweave::ir::{Component, Held, Op, Phase, ProgramKind, Stream, Unit, Work};
use dualweave::job::Job;
use dualweave::machine::Machine;
use dualweave::passes::lower::Lowered;
use dualweave::passes::split::{SplitStage, loads};
use dualweave::plan::{Item, Plan, RingOf, Task};
use dualweave::sim::time_program;
use dualweave::units::Bytes;

/// Units and cost of every stage.
pub fn lowered(job: &Job, machine: &Machine, lowered: &Lowered, split: &[SplitStage]) -> String {
    let mut text = format!("{} stages, {} ranks\n", lowered.layout.stages, lowered.layout.ranks);
    let _ = writeln!(text, "{:>5} {:>12} {:>13}  units", "stage", "computation", "communication");
    for (number, (stage, split)) in lowered.stages.iter().zip(split).enumerate() {
        let (computation, communication) =
            loads(&split.chunk, machine, job.training.communication_sms.fixed().unwrap_or(20));
        let _ = writeln!(
            text,
            "{number:>5} {:>9.3} ms {:>10.3} ms  {}",
            computation.millis(),
            communication.millis(),
            units(&stage.units)
        );
    }
    text
}

/// `embedding, dense 0-2, moe 3`.
fn units(units: &[Unit]) -> String {
    let mut runs: Vec<(String, String)> = Vec::new();
    for unit in units {
        let name = unit.to_string();
        let (kind, number) = name.split_once(' ').unwrap_or((&name, ""));
        match runs.last_mut().filter(|(last, _)| last == kind) {
            Some((_, numbers)) => {
                let first = numbers.split('-').next().unwrap_or("").to_owned();
                *numbers = format!("{first}-{number}");
            }
            None => runs.push((kind.to_owned(), number.to_owned())),
        }
    }
    let runs: Vec<String> =
        runs.iter().map(|(kind, numbers)| format!("{kind} {numbers}").trim_end().to_owned()).collect();
    runs.join(", ")
}

/// Ops, memory and parameters of every stage.
pub fn split(lowered: &Lowered, split: &[SplitStage]) -> String {
    let mut text = String::new();
    for (number, (stage, split)) in lowered.stages.iter().zip(split).enumerate() {
        let chunk = &split.chunk;
        let _ = writeln!(text, "stage {number}: {}", units(&stage.units));
        let _ = writeln!(
            text,
            "  parameters {} + {} of experts; in {}, out {}, exchange buffer {}",
            split.parameters.shared, split.parameters.expert, chunk.input, chunk.output, chunk.exchange_buffer
        );
        for (phase, ops) in [("F", &chunk.f), ("I", &chunk.i), ("W", &chunk.w)] {
            for op in ops {
                let _ = writeln!(text, "  {phase} {} {:<10}{}", op.unit, name(op.component), work(op));
            }
        }
        held(&mut text, &chunk.held);
    }
    text
}

fn work(op: &Op) -> String {
    match &op.work {
        Work::Compute(kernels) => {
            let bytes: Bytes = kernels.iter().map(|kernel| kernel.bytes).sum();
            let handed = if op.handed == Bytes::ZERO { String::new() } else { format!(", handed {}", op.handed) };
            format!("{:>2} kernels, {}, {bytes} of memory{handed}", kernels.len(), op.work.flops())
        }
        Work::Exchange { nvlink, network, .. } => format!("nvlink {nvlink}, network {network}"),
        Work::Copy { nvlink } => format!("nvlink {nvlink}, by copy engine"),
    }
}

fn held(text: &mut String, held: &Held) {
    let parts = [("F to I", &held.f_to_i), ("F to W", &held.f_to_w), ("I to W", &held.i_to_w)];
    for (name, entries) in parts {
        let entry = |(component, bytes): (&Component, &Bytes)| format!("{} {bytes}", self::name(*component));
        let entries: Vec<String> = entries.iter().map(entry).collect();
        let _ = writeln!(text, "  held {name}: {}", entries.join(", "));
    }
}

/// The programs of a plan: who runs them, and each op with stream, SMs and times in µs.
pub fn programs(plan: &Plan) -> String {
    let mut text = String::new();
    let mut users: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (number, stage) in plan.stages.iter().enumerate() {
        for (letter, program) in [("F", stage.f), ("B", stage.b), ("I", stage.i), ("W", stage.w)] {
            program
                .into_iter()
                .for_each(|program| users.entry(program).or_default().push(format!("{letter}({number})")));
        }
    }
    for pair in &plan.pairs {
        users.entry(pair.program).or_default().push(format!("FB({}; {})", pair.f, pair.b));
    }
    for (number, program) in (0..).zip(&plan.programs) {
        let timing = time_program(program, &plan.machine);
        let _ = writeln!(
            text,
            "program {number}, {}: {:.1} µs, computation {:.1}, communication {:.1}, exposed {:.1}; workspace {}",
            users.get(&number).map_or(String::new(), |users| users.join(" ")),
            micros(timing.total.0),
            micros(timing.busy.0),
            micros(timing.communication.0),
            micros(timing.exposed.0),
            program.workspace
        );
        for (at, (op, span)) in program.ops.iter().zip(&timing.ops).enumerate() {
            let chunk = match (program.kind, op.phase) {
                (ProgramKind::FB, Phase::F) => "f",
                (ProgramKind::FB, _) => "b",
                _ => "",
            };
            let stream = if op.stream() == Stream::Comm { "        comm" } else { "compute     " };
            let op_name = format!("{} {}{}", name(op.component), phase(op.phase), op.unit);
            let _ = write!(text, "  {at:>2} {stream} {op_name:<13}{chunk:<2}{:>3} SMs", op.sms);
            let _ = write!(text, " {:>8.1} .. {:>8.1}", micros(span.start.0), micros(span.end.0));
            let _ = writeln!(text, "{}", waits(&op.waits));
        }
    }
    text
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// Rings, and items: one line for each compute item, with the receives in front of it and the sends behind it.
pub fn ranks(plan: &Plan) -> String {
    let mut text = String::new();
    for (number, rank) in plan.ranks.iter().enumerate() {
        let _ = writeln!(text, "rank {number}: arena of {}, exchange buffer at {}", rank.arena.0, rank.exchange.0);
        for ring in &rank.rings {
            let of = match ring.of {
                RingOf::Inbox(from) => format!("messages from rank {from}"),
                RingOf::Outbox(to) => format!("messages to rank {to}"),
                RingOf::HandoffAct(stage) => format!("activations of stage {stage}"),
                RingOf::HandoffGrad(stage) => format!("gradients of stage {stage}"),
            };
            let _ = writeln!(text, "  ring of {of}: {} × {} at {}", ring.slots, ring.bytes, ring.at.0);
        }
        let mut line: Vec<String> = Vec::new();
        let mut computed = false;
        for (at, Item(task, after, places)) in rank.items.iter().enumerate() {
            let receives = matches!(task, Task::RecvAct(..) | Task::RecvGrad(..));
            let alone = !receives && !matches!(task, Task::SendAct(..) | Task::SendGrad(..));
            if computed && (receives || alone) {
                let _ = writeln!(text, "  {}", line.join(" | "));
                line.clear();
                computed = false;
            }
            computed |= alone;
            line.push(format!("{at} {task}{}{}", waits(after), self::places(places)));
        }
        let _ = writeln!(text, "  {}", line.join(" | "));
    }
    text
}

fn waits(waits: &[u32]) -> String {
    match waits {
        [] => String::new(),
        _ => format!(" after {}", waits.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Where in the arena blocks lie.
fn places(places: &[Bytes]) -> String {
    match places {
        [] => String::new(),
        _ => format!(" at {}", places.iter().map(|at| at.0.to_string()).collect::<Vec<_>>().join(", ")),
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::F => "F",
        Phase::I => "I",
        Phase::W => "W",
    }
}

fn name(component: Component) -> &'static str {
    match component {
        Component::Embedding => "embedding",
        Component::Attention => "attention",
        Component::Dispatch => "dispatch",
        Component::Mlp => "mlp",
        Component::Combine => "combine",
        Component::Head => "head",
    }
}
