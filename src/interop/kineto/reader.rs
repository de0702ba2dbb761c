//! Reading a trace in one pass.
//!
//! PyTorch's profiler writes an object whose `traceEvents` are most of it; a bare list of events is read too, and events that come in
//! two halves (`B`, `E`). Of each event only numbers are kept, and of names one copy. Events that are of no use here (most
//! operators of the CPU, calls of Python functions, counters) are checked to be JSON and left.

use std::collections::HashMap;
use std::io::Read;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::raw::{Fault, mended, nanos, read, whole, word};
use super::stream::Stream;
use super::trace::{Device, Flow, GpuOp, GpuRange, Launch, Range, RangeKind, Thread, Trace};
use crate::error::{Error, Result};

/// What the autograd engine calls the run of one node of its graph.
const AUTOGRAD_NODE: &str = "autograd::engine::evaluate_function: ";
/// The node that adds to a parameter's gradient.
const ACCUMULATE: &str = "AccumulateGrad";
/// How calls of modules are named, where the profiler recorded them.
const MODULE: &str = "nn.Module: ";
/// How the profiler names its steps.
const STEP: &str = "ProfilerStep#";

impl Trace {
    /// Reads a file, packed or not. `name` is for messages.
    ///
    /// # Errors
    /// If it is not JSON of a trace's form from end to end.
    pub fn read(name: &str, file: impl Read) -> Result<Self> {
        let mut stream = Stream::new(name, file)?;
        let mut reader = Reader::default();
        if stream.take(b'[')? {
            reader.events(&mut stream)?;
        } else if stream.take(b'{')? {
            reader.document(&mut stream)?;
        } else {
            let message = match stream.peek()? {
                Some(_) => "neither `{` nor `[` stands",
                None => "it is empty; nothing stands",
            };
            return Err(stream.broken(stream.place(), message));
        }
        if stream.peek()?.is_some() {
            return Err(stream.broken(stream.place(), "something stands behind its end,"));
        }
        reader.trace.unusable += reader.open.values().flatten().filter(|kept| kept.is_some()).count() as u64;
        Ok(reader.trace)
    }
}

/// What is kept of an event, before its end is known.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Op(GpuOp),
    Range(Range),
    GpuRange(GpuRange),
    Launch(Launch),
}

/// What an event is good for.
enum Use {
    /// Nothing.
    None,
    /// It would be kept, but lacks a time, a place or a number.
    Lacking,
    /// To be kept.
    Kept(Kept),
}

#[derive(Default)]
struct Reader {
    trace: Trace,
    threads: HashMap<String, Thread>,
    /// By thread, beginnings (`B`) whose ends are to come; `None` for what is not kept.
    open: HashMap<Thread, Vec<Option<Kept>>>,
}

impl Reader {
    /// Reads an object up to its end, from behind its bracket.
    fn document(&mut self, stream: &mut Stream) -> Result<()> {
        let mut has_events = false;
        let mut more = !stream.take(b'}')?;
        while more {
            let value = stream.value()?;
            let place = value.place;
            let Ok(key) = serde_json::from_slice::<String>(value.text) else {
                return Err(stream.broken(place, "no field's name stands"));
            };
            if !stream.take(b':')? {
                return Err(unexpected(stream, "no `:` stands behind the field's name,")?);
            }
            if key == "traceEvents" {
                if !stream.take(b'[')? {
                    return Err(unexpected(stream, "`traceEvents` is no list,")?);
                }
                has_events = true;
                self.events(stream)?;
            } else {
                let value = stream.value()?;
                let (place, fault) = (value.place, self.field(&key, value.text).err());
                if let Some(Fault { what, at }) = fault {
                    return Err(stream.broken(place + at as u64, &what));
                }
            }
            more = stream.take(b',')?;
            if !more && !stream.take(b'}')? {
                return Err(unexpected(stream, "neither `,` nor `}` stands behind a field,")?);
            }
        }
        if !has_events {
            return Err(stream.broken(stream.place(), "it has no `traceEvents`; it ends"));
        }
        Ok(())
    }

    /// Reads a list of events up to its end, from behind its bracket.
    fn events(&mut self, stream: &mut Stream) -> Result<()> {
        let mut more = !stream.take(b']')?;
        while more {
            let value = stream.value()?;
            let (place, fault) = (value.place, self.event_or_mended(value.text).err());
            if let Some(Fault { what, at }) = fault {
                return Err(stream.broken(place + at as u64, &what));
            }
            more = stream.take(b',')?;
            if !more && !stream.take(b']')? {
                return Err(unexpected(stream, "neither `,` nor `]` stands behind an event,")?);
            }
        }
        Ok(())
    }

    /// A field of the document beside its events.
    fn field(&mut self, key: &str, text: &[u8]) -> Result<(), Fault> {
        let value: serde_json::Value = match key {
            "deviceProperties" | "distributedInfo" => read(text)?,
            _ => return read::<serde::de::IgnoredAny>(text).map(|_| ()),
        };
        // Numbers are also seen in quotes.
        let number = |value: &serde_json::Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
        if key == "distributedInfo" {
            self.trace.rank = number(&value["rank"]).zip(number(&value["world_size"]));
            return Ok(());
        }
        for device in value.as_array().into_iter().flatten() {
            let Some(id) = number(&device["id"]).and_then(|id| u32::try_from(id).ok()) else { continue };
            let name = device["name"].as_str().map(str::to_owned);
            let sms = number(&device["numSms"]).filter(|&sms| sms > 0);
            self.trace.devices.insert(id, Device { name, sms });
        }
        Ok(())
    }

    /// An event, in which the profiler may have written numbers that are none (`inf`, `nan`) as they are: they count as 0.
    fn event_or_mended(&mut self, text: &[u8]) -> Result<(), Fault> {
        self.event(text).or_else(|fault| match mended(text) {
            Some(mended) => self.event(&mended).map_err(|_| fault),
            None => Err(fault),
        })
    }

    fn event(&mut self, text: &[u8]) -> Result<(), Fault> {
        if !text.starts_with(b"{") {
            return Err(Fault { what: "an event is no object,".to_owned(), at: 0 });
        }
        let event: Event = read(text)?;
        self.trace.events += 1;
        let phase = event.ph.and_then(word);
        match phase.as_deref() {
            Some("X") => match (self.usable(&event)?, event.dur.and_then(nanos)) {
                (Use::Kept(kept), Some(duration)) => self.keep(kept, duration.max(0)),
                (Use::Kept(_) | Use::Lacking, _) => self.trace.unusable += 1,
                (Use::None, _) => {}
            },
            Some("B") => {
                let kept = match self.usable(&event)? {
                    Use::Kept(kept) => Some(kept),
                    Use::Lacking => {
                        self.trace.unusable += 1;
                        None
                    }
                    Use::None => None,
                };
                let thread = self.thread(&event);
                self.open.entry(thread).or_default().push(kept);
            }
            Some("E") => {
                let thread = self.thread(&event);
                let begun = self.open.get_mut(&thread).and_then(Vec::pop).flatten();
                match (begun, event.ts.and_then(nanos)) {
                    (Some(kept), Some(end)) => self.keep(kept, end.saturating_sub(kept.start()).max(0)),
                    (Some(_), None) => self.trace.unusable += 1,
                    (None, _) => {}
                }
            }
            Some(phase @ ("s" | "f")) if event.is("fwdbwd") || event.is("forward_backward") => {
                let (id, at) = (event.id.and_then(whole), event.ts.and_then(nanos));
                match id.zip(at) {
                    Some((id, at)) => {
                        let thread = self.thread(&event);
                        self.trace.flows.push(Flow { id, thread, at, forward: phase == "s" });
                    }
                    None => self.trace.unusable += 1,
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What an event is good for. The end of what is kept is to be set.
    fn usable(&mut self, event: &Event) -> Result<Use, Fault> {
        let category = event.cat.and_then(word).unwrap_or_default();
        let kind = Category::of(&category);
        let Some(name) = event.name.filter(|_| kind != Category::Other).and_then(word) else { return Ok(Use::None) };
        let range = match kind {
            Category::Other => return Ok(Use::None),
            Category::Op | Category::GpuAnnotation => None,
            Category::Launch => {
                // `cudaLaunchKernelExC`, `cuLaunchKernelEx`, `cudaGraphLaunch`, `cudaMemcpyAsync`, `hipModuleLaunchKernel`.
                if !["Launch", "Memcpy", "Memset"].iter().any(|part| name.contains(part)) {
                    return Ok(Use::None);
                }
                None
            }
            Category::Annotation => match name.strip_prefix(STEP).and_then(|number| number.parse().ok()) {
                Some(number) => Some(RangeKind::Step(number)),
                None => Some(RangeKind::Named),
            },
            Category::Python if name.starts_with(MODULE) => Some(RangeKind::Named),
            Category::CpuOp if name.starts_with(AUTOGRAD_NODE) => {
                Some(RangeKind::Node { accumulates: name.ends_with(ACCUMULATE) })
            }
            Category::Python | Category::CpuOp => return Ok(Use::None),
        };
        let Some(start) = event.ts.and_then(nanos) else { return Ok(Use::Lacking) };
        if let Some(kind) = range {
            let (thread, name) = (self.thread(event), self.trace.names.number(&name));
            return Ok(Use::Kept(Kept::Range(Range { thread, start, end: start, name, kind })));
        }
        let args: Args = match event.args.map(RawValue::get).filter(|args| args.starts_with('{')) {
            Some(args) => read(args.as_bytes()).map_err(|fault| Fault { at: 0, ..fault })?,
            None => Args::default(),
        };
        let correlation = args.correlation.and_then(whole);
        if kind == Category::Launch {
            let launch = |correlation| Kept::Launch(Launch { correlation, thread: self.thread(event), at: start });
            return Ok(correlation.map(launch).map_or(Use::Lacking, Use::Kept));
        }
        let device = args.device.or(event.pid).and_then(whole).and_then(|device| u32::try_from(device).ok());
        let Some((device, stream)) = device.zip(args.stream.or(event.tid).and_then(whole)) else {
            return Ok(Use::Lacking);
        };
        let name = self.trace.names.number(&name);
        if kind == Category::GpuAnnotation {
            return Ok(Use::Kept(Kept::GpuRange(GpuRange {
                device,
                stream,
                start,
                end: start,
                name,
                annotation: args.external.and_then(whole),
            })));
        }
        let collective = args.collective.and_then(word).map(|text| self.trace.names.number(&text));
        let blocks = args.grid.and_then(|grid| serde_json::from_str::<[u64; 3]>(grid.get()).ok());
        let blocks = blocks.map(|[x, y, z]| x.saturating_mul(y).saturating_mul(z));
        let op = GpuOp { start, end: start, device, stream, name, collective, correlation, blocks };
        Ok(Use::Kept(Kept::Op(op)))
    }

    fn keep(&mut self, kept: Kept, duration: i64) {
        let end = |start: i64| start + duration;
        match kept {
            Kept::Op(op) => self.trace.ops.push(GpuOp { end: end(op.start), ..op }),
            Kept::Range(range) => self.trace.ranges.push(Range { end: end(range.start), ..range }),
            Kept::GpuRange(range) => self.trace.gpu_ranges.push(GpuRange { end: end(range.start), ..range }),
            Kept::Launch(launch) => self.trace.launches.push(launch),
        }
    }

    fn thread(&mut self, event: &Event) -> Thread {
        let text = |raw: Option<&RawValue>| raw.map_or("", RawValue::get).to_owned();
        let key = text(event.pid) + " " + &text(event.tid);
        let next = self.threads.len() as Thread;
        *self.threads.entry(key).or_insert(next)
    }
}

impl Kept {
    fn start(&self) -> i64 {
        match self {
            Self::Op(op) => op.start,
            Self::Range(range) => range.start,
            Self::GpuRange(range) => range.start,
            Self::Launch(launch) => launch.at,
        }
    }
}

/// That something else stands here, or nothing at all.
fn unexpected(stream: &mut Stream, what: &str) -> Result<Error> {
    let there = stream.peek()?.is_some();
    let place = stream.place();
    Ok(if there { stream.broken(place, what) } else { stream.short(0) })
}

/// An event. Values stay as they are written until they are needed.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    ph: Option<&'a RawValue>,
    #[serde(borrow, default)]
    cat: Option<&'a RawValue>,
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pid: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tid: Option<&'a RawValue>,
    #[serde(borrow, default)]
    ts: Option<&'a RawValue>,
    #[serde(borrow, default)]
    dur: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    args: Option<&'a RawValue>,
}

impl Event<'_> {
    fn is(&self, category: &str) -> bool {
        self.cat.and_then(word).is_some_and(|cat| cat == category)
    }
}

/// What GPU ops and launches say of themselves.
#[derive(Default, Deserialize)]
struct Args<'a> {
    #[serde(borrow, default)]
    device: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream: Option<&'a RawValue>,
    #[serde(borrow, default)]
    correlation: Option<&'a RawValue>,
    #[serde(borrow, default)]
    grid: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "External id")]
    external: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "Collective name")]
    collective: Option<&'a RawValue>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Category {
    Op,
    Launch,
    Annotation,
    GpuAnnotation,
    CpuOp,
    Python,
    Other,
}

impl Category {
    /// The second names are those of profilers before 2022.
    fn of(category: &str) -> Self {
        match category {
            "kernel" | "gpu_memcpy" | "gpu_memset" | "Kernel" | "Memcpy" | "Memset" => Self::Op,
            "Runtime" => Self::Launch,
            // `cuda_runtime`, `cuda_driver`, `hip_runtime`, `xpu_runtime`.
            platform if platform.ends_with("_runtime") || platform.ends_with("_driver") => Self::Launch,
            "user_annotation" => Self::Annotation,
            "gpu_user_annotation" => Self::GpuAnnotation,
            "cpu_op" | "Operator" => Self::CpuOp,
            "python_function" => Self::Python,
            _ => Self::Other,
        }
    }
}
