//! Times of what ran on a GPU, by events around it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::StreamId;
use crate::runtime::cuda::{Device, Event, Stream};
use crate::units::Nanos;

/// Something that ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// The stream.
    pub stream: StreamId,
    /// Whether it ran beside that, on the second stream of a chunk program.
    pub exchange: bool,
    /// What ran.
    pub name: String,
    /// The same, as a part of the plan.
    pub what: What,
    /// When, since the start of the step. Events have a resolution of half a microsecond.
    pub start: Nanos,
    /// As `start`.
    pub end: Nanos,
}

/// Which part of a plan ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// An item that runs no program.
    Item,
    /// All of a chunk program.
    Program(u32),
    /// An op of it: the program, and where in its list the op stands.
    Op(u32, u32),
}

/// Collects spans, or does nothing.
pub struct Trace {
    device: Arc<Device>,
    base: Option<Arc<Event>>,
    spans: Vec<Recorded>,
}

/// A span whose times are not read yet.
struct Recorded {
    stream: StreamId,
    exchange: bool,
    name: String,
    what: What,
    /// In front of it and behind.
    events: [Event; 2],
}

impl Trace {
    /// Times since `base`, an event of the GPU that has happened; without it nothing is recorded.
    pub fn new(device: &Arc<Device>, base: Option<Arc<Event>>) -> Self {
        Self { device: Arc::clone(device), base, spans: Vec::new() }
    }

    /// In front of what is launched next on a stream.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn begin(&self, stream: &Stream) -> Result<Option<Event>> {
        self.base.as_ref().map(|_| self.now(stream)).transpose()
    }

    /// Behind what was launched since `begun`, on a stream of the plan or, with `exchange`, beside it.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn end(
        &mut self,
        begun: Option<Event>,
        stream: &Stream,
        (id, exchange): (StreamId, bool),
        what: What,
        name: impl FnOnce() -> String,
    ) -> Result<()> {
        if let Some(begun) = begun {
            let events = [begun, self.now(stream)?];
            self.spans.push(Recorded { stream: id, exchange, name: name(), what, events });
        }
        Ok(())
    }

    /// What ran; all of it has ended.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn spans(&self) -> Result<Vec<Span>> {
        let Some(base) = &self.base else { return Ok(Vec::new()) };
        let since = |event: &Event| Ok::<_, Error>(Nanos((f64::from(event.since(base)?) * 1e6).round() as u64));
        let span = |span: &Recorded| {
            let &Recorded { stream, exchange, what, .. } = span;
            let (start, end) = (since(&span.events[0])?, since(&span.events[1])?);
            Ok(Span { stream, exchange, name: span.name.clone(), what, start, end })
        };
        self.spans.iter().map(span).collect()
    }

    fn now(&self, stream: &Stream) -> Result<Event> {
        let event = Event::new(&self.device, true)?;
        event.record(stream)?;
        Ok(event)
    }
}
