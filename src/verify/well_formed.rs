//! Rule `well-formed`: every number refers to something that is there, and the parts of the plan fit each other.
//!
//! The other rules index by these numbers; they are asked only of a plan that keeps to this one.

use std::collections::BTreeSet;

use crate::ir::{Placement, ProgramKind, Tokens};
use crate::plan::{Item, Plan, RingOf, Task, VERSION, rank_streams};

use super::programs::op_name;
use super::report::{Report, Rule, Violation};

const RULE: Rule = Rule::WellFormed;
/// A rank talks to its two neighbours in both directions, computes and synchronises: six streams. More than this many
/// would only cost memory here.
const MOST_STREAMS: usize = 64;

/// Checks the whole plan.
pub fn check(plan: &Plan, report: &mut Report) {
    layout(plan, report);
    origin(plan, report);
    if !report.is_safe() {
        return;
    }
    stages(plan, report);
    pairs(plan, report);
    programs(plan, report);
    // Items refer to the programs of stages and pairs.
    let pairs: BTreeSet<(u32, u32)> = plan.pairs.iter().map(|pair| (pair.f, pair.b)).collect();
    for (number, rank) in (0..).zip(&plan.ranks) {
        rings(plan, number, report);
        for (index, item) in rank.items.iter().enumerate() {
            if let Err(message) = self::item(plan, &pairs, number, index, item) {
                report.add(RULE, || Violation::item(RULE, plan, number, index, message));
            }
        }
        let streams = rank_streams(&rank.items).len();
        if streams > MOST_STREAMS {
            report.add(RULE, || {
                let message = format!("are {streams}; no placement needs more than {MOST_STREAMS}");
                Violation::rank(RULE, number, "streams", message)
            });
        }
    }
}

/// The numbers of the layout are those of the lists, and fit its placement.
fn layout(plan: &Plan, report: &mut Report) {
    let layout = &plan.layout;
    let (ranks, stages) = (u64::from(layout.ranks), u64::from(layout.stages));
    let mut refuse = |message: String| report.add(RULE, || Violation::plan(RULE, "layout", message));
    if plan.version != VERSION {
        refuse(format!("is of version {} of the format, not {VERSION}", plan.version));
    }
    for (number, what) in [(layout.ranks, "ranks"), (layout.stages, "stages"), (layout.micro_batches, "micro-batches")]
    {
        if number == 0 {
            refuse(format!("has no {what}"));
        }
    }
    if plan.ranks.len() as u64 != ranks {
        refuse(format!("has {ranks} ranks, but {} are there", plan.ranks.len()));
    }
    if plan.stages.len() as u64 != stages {
        refuse(format!("has {stages} stages, but {} are there", plan.stages.len()));
    }
    let (fits, rule) = match layout.placement {
        Placement::Linear | Placement::Bidirectional => (stages == ranks, "as many stages as ranks"),
        Placement::V => (stages == 2 * ranks, "twice as many stages as ranks"),
        Placement::Loop => (ranks > 0 && stages % ranks == 0, "a multiple of the ranks as stages"),
    };
    if !fits {
        refuse(format!("has {stages} stages on {ranks} ranks; placement {} needs {rule}", layout.placement));
    }
}

/// There are GPUs that can share the experts, and tokens to train on.
fn origin(plan: &Plan, report: &mut Report) {
    let origin = &plan.origin;
    let mut refuse = |message: String| report.add(RULE, || Violation::plan(RULE, "origin", message));
    for (number, what) in [
        (origin.dp, "data-parallel replicas"),
        (origin.ep, "expert-parallel GPUs"),
        (origin.tp, "tensor-parallel GPUs"),
        (origin.micro_batch_size, "sequences in a micro-batch"),
        (origin.sequence, "tokens in a sequence"),
    ] {
        if number == 0 {
            refuse(format!("has no {what}"));
        }
    }
    let experts = u64::from(plan.model.moe.as_ref().map_or(0, |moe| moe.experts));
    let peers = u64::from(origin.dp) * u64::from(origin.tp);
    for (number, what) in
        [(experts, "experts".to_owned()), (peers, format!("GPUs of dp {} × tp {}", origin.dp, origin.tp))]
    {
        if origin.ep > 0 && !number.is_multiple_of(u64::from(origin.ep)) {
            refuse(format!("has {} expert-parallel GPUs, which do not divide the {number} {what}", origin.ep));
        }
    }
}

/// Every stage has units, programs of the right kind, and neighbours that agree on what passes between them.
fn stages(plan: &Plan, report: &mut Report) {
    for (number, stage) in plan.stages.iter().enumerate() {
        let mut refuse =
            |message: String| report.add(RULE, || Violation::plan(RULE, format!("stage {number}"), message));
        if stage.units.is_empty() {
            refuse("has no units".to_owned());
        }
        let (f, b, i, w) = (ProgramKind::F, ProgramKind::B, ProgramKind::I, ProgramKind::W);
        for (kind, program) in [(f, stage.f), (b, stage.b), (i, stage.i), (w, stage.w)] {
            if let Some(Err(message)) = program.map(|program| reference(plan, program, kind)) {
                refuse(message);
            }
        }
        if let Some(next) = plan.stages.get(number + 1)
            && next.input != stage.output
        {
            refuse(format!(
                "sends activations of {} bytes, but stage {} takes {} bytes",
                stage.output.0,
                number + 1,
                next.input.0
            ));
        }
    }
}

fn pairs(plan: &Plan, report: &mut Report) {
    let stages = plan.layout.stages;
    let mut seen = BTreeSet::new();
    for (number, pair) in plan.pairs.iter().enumerate() {
        let mut refuse =
            |message: String| report.add(RULE, || Violation::plan(RULE, format!("pair {number}"), message));
        for stage in [pair.f, pair.b] {
            if stage >= stages {
                refuse(format!("names stage {stage} of {stages}"));
            }
        }
        if let Err(message) = reference(plan, pair.program, ProgramKind::FB) {
            refuse(message);
        }
        if !seen.insert((pair.f, pair.b)) {
            refuse(format!("gives F of stage {} beside B of stage {} a second program", pair.f, pair.b));
        }
    }
}

/// Whether a program is there and of the kind that is needed.
fn reference(plan: &Plan, program: u32, kind: ProgramKind) -> Result<(), String> {
    match plan.programs.get(program as usize) {
        None => Err(format!("names program {program} of {}", plan.programs.len())),
        Some(found) if found.kind != kind => {
            Err(format!("names program {program} to run {kind:?}, but that is a program of kind {:?}", found.kind))
        }
        Some(_) => Ok(()),
    }
}

/// Parts that tokens can be cut into.
const MOST_PARTS: u32 = 16;

/// Ops work on tokens that there are, and wait for earlier ops of the other stream.
fn programs(plan: &Plan, report: &mut Report) {
    for (number, program) in plan.programs.iter().enumerate() {
        for (index, op) in program.ops.iter().enumerate() {
            let Tokens { part, parts } = op.tokens;
            if part >= parts || parts > MOST_PARTS {
                report.add(RULE, || {
                    let message = format!("works on part {part} of {parts}; parts count from 0, up to {MOST_PARTS}");
                    Violation::program(RULE, plan, number as u32, None, op_name(number, index, op), message)
                });
            }
            for &wait in &op.waits {
                let message = match program.ops.get(wait as usize) {
                    Some(other) if (wait as usize) < index && other.stream() != op.stream() => continue,
                    Some(_) if (wait as usize) < index => format!("waits for op {wait} of its own stream"),
                    _ => format!("waits for op {wait}, which is no earlier op"),
                };
                report.add(RULE, || {
                    Violation::program(RULE, plan, number as u32, None, op_name(number, index, op), message)
                });
            }
        }
    }
}

/// Rings have slots, belong to stages or ranks that exist, and are there once.
fn rings(plan: &Plan, rank: u32, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for ring in &plan.ranks[rank as usize].rings {
        let mut refuse = |message: String| {
            report.add(RULE, || Violation::rank(RULE, rank, super::buffers::ring_name(ring.of), message));
        };
        if ring.slots == 0 {
            refuse("has no slots".to_owned());
        }
        if !seen.insert(ring.of) {
            refuse("is there twice".to_owned());
        }
        match ring.of {
            RingOf::Inbox(peer) | RingOf::Outbox(peer) => {
                if let Err(message) = self::peer(plan, rank, peer) {
                    refuse(message);
                }
            }
            RingOf::HandoffAct(stage) | RingOf::HandoffGrad(stage) => {
                if stage >= plan.layout.stages {
                    refuse(format!("names stage {stage} of {}", plan.layout.stages));
                }
            }
        }
    }
}

fn peer(plan: &Plan, rank: u32, peer: u32) -> Result<(), String> {
    match peer {
        _ if peer >= plan.layout.ranks => Err(format!("names rank {peer} of {}", plan.layout.ranks)),
        _ if peer == rank => Err("is a transfer of a rank with itself".to_owned()),
        _ => Ok(()),
    }
}

/// An item names what is there, has a program, and waits for earlier items.
fn item(plan: &Plan, pairs: &BTreeSet<(u32, u32)>, rank: u32, index: usize, item: &Item) -> Result<(), String> {
    let chunk = |stage: u32, micro_batch: u32| {
        if stage >= plan.layout.stages {
            Err(format!("names stage {stage} of {}", plan.layout.stages))
        } else if micro_batch >= plan.layout.micro_batches {
            Err(format!("names micro-batch {micro_batch} of {}", plan.layout.micro_batches))
        } else {
            Ok(&plan.stages[stage as usize])
        }
    };
    let has = |program: Option<u32>, kind: &str| match program {
        Some(_) => Ok(()),
        None => Err(format!("has no program: its stage has none for {kind}")),
    };
    match item.0 {
        Task::F(s, m) => has(chunk(s, m)?.f, "F")?,
        Task::B(s, m) => has(chunk(s, m)?.b, "B")?,
        Task::I(s, m) => has(chunk(s, m)?.i, "I")?,
        Task::W(s, m) => has(chunk(s, m)?.w, "W")?,
        Task::FB(f, b) => {
            chunk(f.0, f.1)?;
            chunk(b.0, b.1)?;
            if !pairs.contains(&(f.0, b.0)) {
                return Err(format!("has no program: no pair runs F of stage {} beside B of stage {}", f.0, b.0));
            }
        }
        Task::SendAct(s, m, other)
        | Task::RecvAct(s, m, other)
        | Task::SendGrad(s, m, other)
        | Task::RecvGrad(s, m, other) => {
            chunk(s, m)?;
            peer(plan, rank, other)?;
        }
        Task::ReduceGrads(s) | Task::Update(s) | Task::GatherParams(s) => {
            chunk(s, 0)?;
        }
    }
    match item.1.iter().find(|&&after| after as usize >= index) {
        Some(after) => Err(format!("waits for item {after}, which is no earlier item")),
        None => Ok(()),
    }
}
