//! A simulated plan as a trace that Perfetto and `chrome://tracing` show.
//!
//! One process per rank; its threads are the streams. Compute items are slices with the ops of their programs inside;
//! exchanges of programs are on a thread of their own. Arrows lead from each send to its receive. Format: "Trace Event
//! Format", JSON object form; times are microseconds with three decimals, so no nanosecond is lost.

mod measured;

pub use measured::{Measured, write_measured};

use std::fmt::{self, Display};
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::ir::{Action, Phase, ProgramOp, Stream, Work};
use crate::plan::{Plan, StreamId, Task, rank_streams};
use crate::sim::{ItemId, Simulation, Span};
use crate::units::{Bytes, Nanos};

/// Threads of a rank that are there whatever its items are; streams to and from other ranks follow.
const COMPUTE_THREAD: u32 = 1;
const EXCHANGE_THREAD: u32 = 2;
const SYNC_THREAD: u32 = 3;
const FIRST_PEER_THREAD: u32 = 4;

/// Writes the trace, event by event. `simulation` must be the plan's.
///
/// # Errors
/// If `out` cannot be written to.
pub fn write(plan: &Plan, simulation: &Simulation, out: &mut dyn Write) -> io::Result<()> {
    let mut events = Events { out, first: true };
    let ops: Vec<Vec<OpText>> = plan.programs.iter().map(|program| program.ops.iter().map(op_text).collect()).collect();
    let origin = &plan.origin;
    let about = json!({
        "model": plan.model.name, "cluster": origin.cluster, "schedule": origin.schedule, "plan": plan.digest,
    });
    write!(events.out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{about},\"traceEvents\":[")?;
    let bytes = bytes_of_transfers(plan, simulation);
    let streams: Vec<Vec<StreamId>> = plan.ranks.iter().map(|rank| rank_streams(&rank.items)).collect();
    for rank in 0..plan.ranks.len() {
        write_names(plan, rank, &streams[rank], &mut events)?;
        write_items(plan, simulation, rank, &Texts { ops: &ops, streams: &streams, bytes: &bytes }, &mut events)?;
    }
    // Last, so that the slices that they join are there.
    write_arrows(plan, simulation, &streams, &mut events)?;
    events.out.write_all(b"\n]}\n")
}

/// What is worked out once: by program and op, by rank, by rank and item.
struct Texts<'a> {
    ops: &'a [Vec<OpText>],
    streams: &'a [Vec<StreamId>],
    bytes: &'a [Vec<Option<Bytes>>],
}

fn write_items(
    plan: &Plan,
    simulation: &Simulation,
    rank: usize,
    texts: &Texts,
    events: &mut Events,
) -> io::Result<()> {
    let timing = &simulation.ranks[rank];
    for (index, (item, span)) in plan.ranks[rank].items.iter().zip(&timing.items).enumerate() {
        let (task, thread) = (item.0, thread_of(&texts.streams[rank], item.0.stream()));
        let args = task_args(task, index, texts.bytes[rank][index]);
        events.slice(rank, thread, &task.to_string(), category(task), *span, &args)?;
        let Some(program) = timing.programs[index].map(|number| number as usize) else { continue };
        for (op, inside) in texts.ops[program].iter().zip(&simulation.programs[program].ops) {
            let span = Span { start: span.start + inside.start, end: span.start + inside.end };
            events.slice(rank, op.thread, &op.name, "op", span, &op.args(task))?;
        }
    }
    Ok(())
}

fn write_arrows(
    plan: &Plan,
    simulation: &Simulation,
    streams: &[Vec<StreamId>],
    events: &mut Events,
) -> io::Result<()> {
    for (number, transfer) in simulation.transfers.iter().enumerate() {
        for (phase, (rank, item)) in [("s", transfer.send), ("f", transfer.receive)] {
            let (rank, item) = (rank as usize, item as usize);
            let start = Micros(simulation.ranks[rank].items[item].start);
            let thread = thread_of(&streams[rank], plan.ranks[rank].items[item].0.stream());
            events.add(format_args!(
                "{{\"name\":\"message\",\"cat\":\"message\",\"ph\":\"{phase}\",\"bp\":\"e\",\"id\":{number},\"ts\":{start},\
                 \"pid\":{},\"tid\":{thread}}}",
                pid(rank),
            ))?;
        }
    }
    Ok(())
}

/// Names and order of the rank's process and threads.
fn write_names(plan: &Plan, rank: usize, streams: &[StreamId], events: &mut Events) -> io::Result<()> {
    let stages: Vec<String> = plan.layout.stages_of(rank as u32).iter().map(u32::to_string).collect();
    let noun = if stages.len() == 1 { "stage" } else { "stages" };
    events.name(rank, None, "process_name", &json!({"name": format!("rank {rank} ({noun} {})", stages.join(", "))}))?;
    events.name(rank, None, "process_sort_index", &json!({"sort_index": rank}))?;
    let mut threads = vec![(COMPUTE_THREAD, stream_name(StreamId::Compute)), (EXCHANGE_THREAD, "exchanges".to_owned())];
    for &stream in streams {
        if stream != StreamId::Compute {
            threads.push((thread_of(streams, stream), stream_name(stream)));
        }
    }
    for (thread, name) in threads {
        events.name(rank, Some(thread), "thread_name", &json!({"name": name}))?;
        events.name(rank, Some(thread), "thread_sort_index", &json!({"sort_index": thread}))?;
    }
    Ok(())
}

fn stream_name(stream: StreamId) -> String {
    match stream {
        StreamId::Compute => "compute".to_owned(),
        StreamId::Sync => "gradients and parameters".to_owned(),
        StreamId::From(peer) => format!("from rank {peer}"),
        StreamId::To(peer) => format!("to rank {peer}"),
    }
}

fn task_args(task: Task, index: usize, bytes: Option<Bytes>) -> Value {
    let mut args = serde_json::Map::new();
    args.insert("item".into(), index.into());
    let mut add = |key: &str, value: u32| args.insert(key.into(), value.into());
    match task {
        Task::F(s, m) | Task::B(s, m) | Task::I(s, m) | Task::W(s, m) => {
            add("stage", s);
            add("micro_batch", m);
        }
        Task::SendAct(s, m, peer)
        | Task::SendGrad(s, m, peer)
        | Task::RecvAct(s, m, peer)
        | Task::RecvGrad(s, m, peer) => {
            add("stage", s);
            add("micro_batch", m);
            add("peer", peer);
        }
        Task::FB(f, b) => {
            add("forward_stage", f.0);
            add("forward_micro_batch", f.1);
            add("backward_stage", b.0);
            add("backward_micro_batch", b.1);
        }
        Task::ReduceGrads(s) | Task::Update(s) | Task::GatherParams(s) => {
            add("stage", s);
        }
    }
    if let Some(bytes) = bytes {
        args.insert("bytes".into(), bytes.0.into());
    }
    Value::Object(args)
}

/// What is the same in all runs of an op of a program: a plan has few programs, and runs them often.
struct OpText {
    thread: u32,
    name: String,
    forward: bool,
    /// Members of its arguments, without the braces.
    args: String,
}

fn op_text(op: &ProgramOp) -> OpText {
    let thread = match op.stream() {
        Stream::Compute => COMPUTE_THREAD,
        Stream::Comm => EXCHANGE_THREAD,
    };
    let work = match &op.work {
        Work::Compute(kernels) => {
            let bytes: Bytes = kernels.iter().map(|kernel| kernel.bytes).sum();
            format!("\"flops\":{},\"hbm_bytes\":{}", op.work.flops().0, bytes.0)
        }
        Work::Exchange { nvlink, network, uplink } => {
            let uplink = match *uplink {
                Bytes::ZERO => String::new(),
                bytes => format!(",\"uplink_bytes\":{}", bytes.0),
            };
            format!("\"nvlink_bytes\":{},\"network_bytes\":{}{uplink}", nvlink.0, network.0)
        }
        Work::Copy { nvlink } => format!("\"nvlink_bytes\":{}", nvlink.0),
    };
    OpText {
        thread,
        name: op.what(),
        forward: op.phase == Phase::F,
        args: format!("\"unit\":{},\"sms\":{},{work}", op.unit, op.sms),
    }
}

impl OpText {
    /// Arguments of the op in the run of one item.
    fn args(&self, task: Task) -> String {
        let chunk = match task.action() {
            Some(Action::F(c) | Action::B(c) | Action::I(c) | Action::W(c)) => c,
            Some(Action::FB(f, b)) => {
                if self.forward {
                    f
                } else {
                    b
                }
            }
            None => return format!("{{{}}}", self.args),
        };
        format!("{{\"stage\":{},\"micro_batch\":{},{}}}", chunk.stage, chunk.micro_batch, self.args)
    }
}

/// Bytes that each item sends or receives, by rank and item.
fn bytes_of_transfers(plan: &Plan, simulation: &Simulation) -> Vec<Vec<Option<Bytes>>> {
    let mut bytes: Vec<Vec<Option<Bytes>>> = plan.ranks.iter().map(|rank| vec![None; rank.items.len()]).collect();
    let mut set = |(rank, item): ItemId, value| bytes[rank as usize][item as usize] = Some(value);
    for transfer in &simulation.transfers {
        set(transfer.send, transfer.bytes);
        set(transfer.receive, transfer.bytes);
    }
    bytes
}

fn category(task: Task) -> &'static str {
    match task.stream() {
        StreamId::Compute => "compute",
        StreamId::Sync => "synchronisation",
        StreamId::From(_) => "receive",
        StreamId::To(_) => "send",
    }
}

/// Process of a rank. Perfetto takes process 0 for the idle one.
fn pid(rank: usize) -> usize {
    rank + 1
}

/// Thread of a stream, given all streams of its rank, sorted.
fn thread_of(streams: &[StreamId], stream: StreamId) -> u32 {
    match stream {
        StreamId::Compute => COMPUTE_THREAD,
        StreamId::Sync => SYNC_THREAD,
        peer => {
            let peers = streams.iter().filter(|stream| matches!(stream, StreamId::From(_) | StreamId::To(_)));
            FIRST_PEER_THREAD + peers.take_while(|&&other| other != peer).count() as u32
        }
    }
}

/// A list of JSON objects that is written as it grows.
struct Events<'a> {
    out: &'a mut dyn Write,
    first: bool,
}

impl Events<'_> {
    fn add(&mut self, event: fmt::Arguments) -> io::Result<()> {
        let separator = if std::mem::take(&mut self.first) { "\n" } else { ",\n" };
        write!(self.out, "{separator}{event}")
    }

    fn slice(
        &mut self,
        rank: usize,
        tid: u32,
        name: &str,
        cat: &str,
        span: Span,
        args: &dyn Display,
    ) -> io::Result<()> {
        self.add(format_args!(
            "{{\"name\":{},\"cat\":\"{cat}\",\"ph\":\"X\",\"ts\":{},\"dur\":{},\"pid\":{},\"tid\":{tid},\"args\":{args}}}",
            Value::from(name),
            Micros(span.start),
            Micros(span.duration()),
            pid(rank),
        ))
    }

    fn name(&mut self, rank: usize, tid: Option<u32>, kind: &str, args: &Value) -> io::Result<()> {
        let tid = tid.unwrap_or(COMPUTE_THREAD);
        self.add(format_args!(
            "{{\"name\":\"{kind}\",\"ph\":\"M\",\"pid\":{},\"tid\":{tid},\"args\":{args}}}",
            pid(rank)
        ))
    }
}

/// Nanoseconds, written as microseconds.
struct Micros(Nanos);

impl Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0.0;
        write!(f, "{}.{:03}", ns / 1000, ns % 1000)
    }
}
