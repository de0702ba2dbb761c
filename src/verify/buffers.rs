//! Rules `buffer-size` and `write-while-read`: every message has a ring with slots that are large enough, and no slot is
//! taken before what was in it has been let go.
//!
//! Value k of a ring lies in slot k mod slots, so it may be acquired only after value k - slots was released. If that
//! holds for every value, each slot holds one value at a time: that a value is written before it is read is
//! `read-before-write`'s part.

use std::collections::BTreeMap;

use crate::ir::ChunkId;
use crate::plan::{PlanStage, RingOf, Task};

use super::rank::{Deed, Rank, after, before, deeds};
use super::report::{Report, Rule, Violation};

/// One value of a ring: the items that acquire and release it, where they exist, and what it takes.
struct Value {
    acquire: Option<usize>,
    release: Option<usize>,
    bytes: u128,
    /// Of which micro-batch.
    micro_batch: u32,
}

/// Checks one rank.
pub fn check(rank: &Rank, report: &mut Report) {
    let rings: BTreeMap<_, _> =
        rank.plan.ranks[rank.number as usize].rings.iter().map(|ring| (ring.of, ring)).collect();
    for (of, values) in values(rank) {
        let needed = values.iter().map(|value| value.bytes).max().unwrap_or(0);
        if needed == 0 {
            continue;
        }
        let name = ring_name(of);
        let Some(ring) = rings.get(&of) else {
            report.add(Rule::BufferSize, || {
                let message = format!("the rank stores {} values there but has no such ring", values.len());
                Violation::rank(Rule::BufferSize, rank.number, name, message)
            });
            continue;
        };
        if u128::from(ring.bytes.0) < needed {
            report.add(Rule::BufferSize, || {
                let message = format!("slots of {} bytes are too small for values of {needed} bytes", ring.bytes.0);
                Violation::rank(Rule::BufferSize, rank.number, name.clone(), message)
            });
        }
        // More slots than values can never be taken twice.
        let slots = (ring.slots as usize).min(values.len());
        for (earlier, later) in values.iter().zip(&values[slots..]) {
            let (Some(release), Some(acquire)) = (earlier.release, later.acquire) else { continue };
            if !rank.ended_before(release, acquire) {
                report.add(Rule::WriteWhileRead, || {
                    let message = format!(
                        "writes micro-batch {} into the slot of {name} that holds micro-batch {} before {} has ended",
                        later.micro_batch,
                        earlier.micro_batch,
                        rank.name(release)
                    );
                    Violation::item(Rule::WriteWhileRead, rank.plan, rank.number, acquire, message)
                });
            }
        }
    }
}

/// The values of every ring that the rank needs, each list in the ring's order.
fn values(rank: &Rank) -> BTreeMap<RingOf, Vec<Value>> {
    let mut rings: BTreeMap<RingOf, Vec<Value>> = BTreeMap::new();
    let stage = |number: u32| &rank.plan.stages[number as usize];
    for (index, item) in rank.items.iter().enumerate() {
        let mut push = |of, acquire, release, bytes, chunk: ChunkId| {
            let value = Value { acquire, release, bytes, micro_batch: chunk.micro_batch };
            rings.entry(of).or_default().push(value);
        };
        let here = Some(index);
        match item.0 {
            Task::SendAct(s, m, to) => {
                let chunk = ChunkId::new(s, m);
                push(RingOf::Outbox(to), rank.find(Deed::F, chunk), here, activation(stage(s)), chunk);
            }
            Task::SendGrad(s, m, to) => {
                let chunk = ChunkId::new(s, m);
                push(RingOf::Outbox(to), rank.find(Deed::I, chunk), here, gradient(stage(s)), chunk);
            }
            Task::RecvAct(s, m, from) => {
                let chunk = ChunkId::new(s, m);
                let reader = after(rank.layout(), chunk).and_then(|reader| rank.find(Deed::F, reader));
                push(RingOf::Inbox(from), here, reader, activation(stage(s)), chunk);
            }
            Task::RecvGrad(s, m, from) => {
                let chunk = ChunkId::new(s, m);
                let reader = before(chunk).and_then(|reader| rank.find(Deed::I, reader));
                push(RingOf::Inbox(from), here, reader, gradient(stage(s)), chunk);
            }
            _ => {}
        }
        for (deed, chunk) in deeds(item.0).filter(|&(_, chunk)| rank.runs(chunk)) {
            let s = chunk.stage;
            match deed {
                Deed::F => {
                    if let Some(reader) = after(rank.layout(), chunk).filter(|&reader| rank.runs(reader)) {
                        let release = rank.find(Deed::F, reader);
                        push(RingOf::HandoffAct(s), here, release, activation(stage(s)), chunk);
                    }
                }
                Deed::I => {
                    if let Some(reader) = before(chunk).filter(|&reader| rank.runs(reader)) {
                        let release = rank.find(Deed::I, reader);
                        push(RingOf::HandoffGrad(s), here, release, gradient(stage(s)), chunk);
                    }
                }
                _ => {}
            }
        }
    }
    rings
}

/// Bytes of the activation that a stage sends on.
fn activation(stage: &PlanStage) -> u128 {
    u128::from(stage.output.0)
}

/// Bytes of the gradient that a stage sends back.
fn gradient(stage: &PlanStage) -> u128 {
    u128::from(stage.input.0)
}

/// A ring as messages name it: `ring Inbox(3)`.
pub fn ring_name(of: RingOf) -> String {
    format!("ring {of:?}")
}
