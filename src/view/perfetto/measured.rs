//! What was measured on GPUs, in the same form: one process per rank of a replica, its threads are the streams.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{Events, stream_name};
use crate::plan::{Plan, StreamId};
use crate::sim::Span;

/// Something that ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The stream that it ran on; of a chunk program's second stream, the compute stream.
    pub stream: StreamId,
    /// Whether it ran on the second stream of a chunk program.
    pub exchange: bool,
    /// What it was.
    pub name: String,
    /// When, since the start of the step.
    pub span: Span,
}

/// Writes the trace of a step. `processes`: name of each, and what ran there.
///
/// # Errors
/// If `out` cannot be written to.
pub fn write_measured(plan: &Plan, processes: &[(String, Vec<Measured>)], out: &mut dyn Write) -> io::Result<()> {
    let mut events = Events { out, first: true };
    let about = json!({"model": plan.model.name, "schedule": plan.origin.schedule, "plan": plan.digest});
    write!(events.out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{about},\"traceEvents\":[")?;
    for (process, (name, spans)) in processes.iter().enumerate() {
        events.name(process, None, "process_name", &json!({"name": name}))?;
        events.name(process, None, "process_sort_index", &json!({"sort_index": process}))?;
        let mut threads: Vec<(StreamId, bool)> = spans.iter().map(|span| (span.stream, span.exchange)).collect();
        threads.sort_unstable();
        threads.dedup();
        for (thread, &(stream, exchange)) in (1..).zip(&threads) {
            let name = if exchange { "exchanges".to_owned() } else { stream_name(stream) };
            events.name(process, Some(thread), "thread_name", &json!({"name": name}))?;
            events.name(process, Some(thread), "thread_sort_index", &json!({"sort_index": thread}))?;
        }
        for measured in spans {
            let on = (measured.stream, measured.exchange);
            let thread = threads.binary_search(&on).unwrap_or_default() as u32 + 1;
            events.slice(process, thread, &measured.name, "measured", measured.span, &Value::Object(<_>::default()))?;
        }
    }
    events.out.write_all(b"\n]}\n")
}
