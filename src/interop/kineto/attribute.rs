//! What each GPU op belongs to.
//!
//! The launch of an op, which its correlation number names, lies within annotations on its thread; the innermost one that says a
//! component gives it. Backward ops are launched by threads of autograd, which annotations do not reach. There the call counts that
//! waits for autograd, if one other thread alone is in an annotation of the backward pass and that says a component; else the
//! forward operator of the node that runs, which the profiler links to it. What no launch tells, the profiler's own ranges on
//! the stream may tell, and in the end the kernel's name.

use std::collections::{BTreeMap, BinaryHeap, HashMap};

use super::ranges::{Nest, Span};
use super::rules::{Part, Phase, Rules, Said};
use super::trace::{GpuOp, Name, Range, RangeKind, Thread, Trace};

/// What an op belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub part: Part,
    /// Only of parts that have phases.
    pub phase: Option<Phase>,
    /// Whether it counts as communication.
    pub communicates: bool,
    /// One run of the part: ops of an annotation in a phase, or ops without one that follow one another on a stream. From 0.
    pub run: u32,
    /// When it was launched; when it started, where that is not known.
    pub launched: i64,
}

/// Calls within calls that are looked through for one of the same component.
const DEEPEST: usize = 1000;

/// The owners of a trace's ops.
pub(super) fn owners(trace: &Trace, rules: &Rules) -> Vec<Owner> {
    let calls = Calls::new(trace, rules);
    let streams = Streams::new(trace, rules);
    let mut kernels = KernelNames::new(trace, rules);
    let mut runs = Runs::default();
    // In the order of their start, for runs without annotations; as they were written at the same time.
    let mut order: Vec<u32> = (0..trace.ops.len() as u32).collect();
    order.sort_by_key(|&at| (trace.ops[at as usize].start, at));
    let nobody = Owner { part: Part::Other, phase: None, communicates: false, run: 0, launched: 0 };
    let mut owners = vec![nobody; trace.ops.len()];
    for at in order {
        let op = &trace.ops[at as usize];
        let launch = calls.launch_of(op);
        let (mut found, mut phase) = launch.map_or((None, None), |launch| calls.owner(launch));
        if found.is_none() {
            let there = streams.said[at as usize];
            (found, phase) = (there.0, phase.or(there.1));
        }
        let communicates = kernels.communicates(op);
        // A kernel that communicates is no part of a computation, though it is called there.
        let foreign = found.is_some_and(|(part, _)| communicates && !part.communicates());
        let mut by_name = false;
        if foreign || found.is_none() {
            let part = kernels.part(op, phase.is_some_and(|phase| phase != Phase::F));
            let part = part.filter(|part| !communicates || part.communicates());
            by_name = part.is_some_and(Part::communicates);
            found = part.map(|part| (part, Place::Alone));
        }
        let (part, place) = found.unwrap_or((Part::Other, Place::Alone));
        let phase = part.has_phases().then(|| phase.unwrap_or(Phase::F));
        owners[at as usize] = Owner {
            part,
            phase,
            communicates: communicates || part.is_exchange() || by_name,
            run: runs.number((part, phase, place), op),
            launched: launch.map_or(op.start, |launch| trace.launches[launch as usize].at),
        };
    }
    owners
}

/// What holds the ops of a run together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    /// An annotation on a thread.
    Call(u32),
    /// An annotation on streams: its number, or that of its range where it has none.
    Annotation(u64),
    Range(u32),
    /// None.
    Alone,
}

type Found = Option<(Part, Place)>;

/// What makes ops of one part and phase one run.
type RunKey = (Part, Option<Phase>, Place);

/// Numbers runs.
#[derive(Default)]
struct Runs {
    known: HashMap<RunKey, u32>,
    /// By device and stream, what ran last, and in which run.
    last: HashMap<(u32, u64), (RunKey, u32)>,
    next: u32,
}

impl Runs {
    fn number(&mut self, key: RunKey, op: &GpuOp) -> u32 {
        let stream = (op.device, op.stream);
        let known = match key.2 {
            Place::Alone => self.last.get(&stream).filter(|(last, _)| *last == key).map(|&(_, run)| run),
            _ => self.known.get(&key).copied(),
        };
        let run = known.unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        if key.2 != Place::Alone {
            self.known.insert(key, run);
        }
        self.last.insert(stream, (key, run));
        run
    }
}

/// A range on a thread, with what those around it say.
#[derive(Clone, Copy, Default)]
struct Resolved {
    /// The component, and the outermost range that says it too.
    part: Option<(Part, u32)>,
    phase: Option<Phase>,
    /// The innermost node of autograd around it, itself included.
    node: Option<u32>,
}

/// Threads of the CPU.
struct Calls {
    /// Launches by correlation number.
    by_correlation: Vec<(u64, u32)>,
    /// By range.
    resolved: Vec<Resolved>,
    /// By launch: the innermost range.
    around: Vec<Option<u32>>,
    /// By launch within a node: the innermost range of the backward pass on the one other thread that is in some.
    callers: HashMap<u32, u32>,
    /// By node: the range around its forward operator.
    forward: HashMap<u32, Option<u32>>,
}

impl Calls {
    fn new(trace: &Trace, rules: &Rules) -> Self {
        let spans: Vec<_> =
            trace.ranges.iter().map(|range| Span { lane: range.thread, start: range.start, end: range.end }).collect();
        let launches = trace.launches.iter().map(|launch| (launch.thread, launch.at));
        let flows = trace.flows.iter().map(|flow| (flow.thread, flow.at));
        let moments: Vec<(Thread, i64)> = launches.chain(flows).collect();
        let nest = Nest::new(&spans, &moments);
        let (around, at_flows) = nest.innermost.split_at(trace.launches.len());

        let resolved = resolve(trace, rules, &nest);
        let mut by_correlation: Vec<(u64, u32)> =
            trace.launches.iter().zip(0..).map(|(launch, at)| (launch.correlation, at)).collect();
        by_correlation.sort_unstable();
        let forward = forward_of_nodes(trace, &nest.order, &resolved, at_flows);
        let callers = callers(trace, &resolved, around);
        Self { by_correlation, resolved, around: around.to_vec(), callers, forward }
    }

    fn launch_of(&self, op: &GpuOp) -> Option<u32> {
        let correlation = op.correlation?;
        let at = self.by_correlation.partition_point(|&(number, _)| number < correlation);
        self.by_correlation.get(at).filter(|(number, _)| *number == correlation).map(|&(_, launch)| launch)
    }

    fn owner(&self, launch: u32) -> (Found, Option<Phase>) {
        let Some(range) = self.around[launch as usize] else { return (None, None) };
        let here = self.resolved[range as usize];
        let found = |part: Option<(Part, u32)>| part.map(|(part, range)| (part, Place::Call(range)));
        let Some(node) = here.node else { return (found(here.part), here.phase) };
        // Within autograd all is backward, what is computed again too.
        let caller = self.callers.get(&launch).map(|&range| self.resolved[range as usize]).unwrap_or_default();
        let backward = |phase: Option<Phase>| phase.filter(|&phase| phase != Phase::F);
        let phase = backward(here.phase).or(backward(caller.phase)).unwrap_or(Phase::B);
        let forward = || {
            let range = self.forward.get(&node).copied().flatten()?;
            self.resolved[range as usize].part
        };
        (found(here.part.or(caller.part).or_else(forward)), Some(phase))
    }
}

/// What annotations say, each name looked at once.
struct AnnotationNames<'a> {
    trace: &'a Trace,
    rules: &'a Rules,
    known: Vec<Option<Said>>,
}

impl<'a> AnnotationNames<'a> {
    fn new(trace: &'a Trace, rules: &'a Rules) -> Self {
        Self { trace, rules, known: vec![None; trace.names.count()] }
    }

    fn said(&mut self, name: Name) -> Said {
        *self.known[name as usize].get_or_insert_with(|| self.rules.annotation(self.trace.names.text(name)))
    }
}

fn resolve(trace: &Trace, rules: &Rules, nest: &Nest) -> Vec<Resolved> {
    let mut names = AnnotationNames::new(trace, rules);
    let mut resolved = vec![Resolved::default(); trace.ranges.len()];
    // By range, what it says itself, and the outermost range that says so too.
    let mut own: Vec<Option<(Part, u32)>> = vec![None; trace.ranges.len()];
    for &at in &nest.order {
        let range = &trace.ranges[at as usize];
        let parent = nest.parents[at as usize];
        let mut here = parent.map(|parent| resolved[parent as usize]).unwrap_or_default();
        match range.kind {
            RangeKind::Step(_) => {}
            RangeKind::Node { .. } => here.node = Some(at),
            RangeKind::Named => {
                let said = names.said(range.name);
                if let Some(part) = said.part {
                    // The nearest that says it knows the outermost.
                    let around = std::iter::successors(parent, |&around| nest.parents[around as usize]);
                    let same = around.take(DEEPEST).find(|&around| own[around as usize].map(|own| own.0) == Some(part));
                    let outermost = same.and_then(|same| own[same as usize]).map_or(at, |own| own.1);
                    own[at as usize] = Some((part, outermost));
                    here.part = Some((part, outermost));
                }
                here.phase = said.phase.or(here.phase);
            }
        }
        resolved[at as usize] = here;
    }
    resolved
}

/// By node of autograd: the innermost range around the operator whose backward it runs. A node that only adds to a parameter's
/// gradient counts to the one before it on its thread, which made what it adds.
fn forward_of_nodes(
    trace: &Trace,
    order: &[u32],
    resolved: &[Resolved],
    at_flows: &[Option<u32>],
) -> HashMap<u32, Option<u32>> {
    let mut starts: HashMap<u64, Option<u32>> = HashMap::new();
    for (flow, &range) in trace.flows.iter().zip(at_flows).filter(|(flow, _)| flow.forward) {
        starts.entry(flow.id).or_insert(range);
    }
    let mut forward: HashMap<u32, Option<u32>> = HashMap::new();
    for (flow, &range) in trace.flows.iter().zip(at_flows).filter(|(flow, _)| !flow.forward) {
        let node = range.and_then(|range| resolved[range as usize].node);
        if let Some((node, &start)) = node.zip(starts.get(&flow.id)) {
            forward.entry(node).or_insert(start);
        }
    }
    let mut last: Option<(Thread, Option<u32>)> = None;
    for &at in order {
        let Range { thread, kind, .. } = trace.ranges[at as usize];
        let RangeKind::Node { accumulates } = kind else { continue };
        match (forward.get(&at).copied(), last) {
            (Some(range), _) => last = Some((thread, range)),
            (None, Some((of, range))) if accumulates && of == thread => drop(forward.insert(at, range)),
            (None, _) => {}
        }
    }
    forward
}

/// By launch within a node: see [`Calls::callers`].
fn callers(trace: &Trace, resolved: &[Resolved], around: &[Option<u32>]) -> HashMap<u32, u32> {
    let in_node = |range: u32| resolved[range as usize].node.is_some();
    let mut launches: Vec<u32> =
        (0..trace.launches.len() as u32).filter(|&launch| around[launch as usize].is_some_and(in_node)).collect();
    launches.sort_by_key(|&launch| (trace.launches[launch as usize].at, launch));
    let backward = |range: u32| {
        let phase = resolved[range as usize].phase;
        phase.is_some_and(|phase| phase != Phase::F) && !in_node(range)
    };
    let mut ranges: Vec<u32> = (0..trace.ranges.len() as u32).filter(|&range| backward(range)).collect();
    ranges.sort_by_key(|&at| {
        let range = &trace.ranges[at as usize];
        (range.start, std::cmp::Reverse(range.end), at)
    });

    let mut found = HashMap::new();
    // What is open: by thread, the innermost last; and by end.
    let mut open: BTreeMap<Thread, Vec<u32>> = BTreeMap::new();
    let mut ends: BinaryHeap<std::cmp::Reverse<(i64, u32)>> = BinaryHeap::new();
    let mut next = ranges.into_iter().peekable();
    for launch in launches {
        let at = trace.launches[launch as usize].at;
        while let Some(range) = next.next_if(|&range| trace.ranges[range as usize].start <= at) {
            let Range { thread, end, .. } = trace.ranges[range as usize];
            open.entry(thread).or_default().push(range);
            ends.push(std::cmp::Reverse((end, range)));
        }
        while let Some(&std::cmp::Reverse((end, range))) = ends.peek() {
            if end > at {
                break;
            }
            ends.pop();
            let thread = trace.ranges[range as usize].thread;
            if let Some(stack) = open.get_mut(&thread) {
                if let Some(place) = stack.iter().rposition(|&other| other == range) {
                    stack.remove(place);
                }
                if stack.is_empty() {
                    open.remove(&thread);
                }
            }
        }
        let own = trace.launches[launch as usize].thread;
        let mut others = open.iter().filter(|(thread, _)| **thread != own);
        if let (Some((_, stack)), None) = (others.next(), others.next())
            && let Some(&range) = stack.last()
        {
            found.insert(launch, range);
        }
    }
    found
}

/// What the profiler's ranges on streams say.
struct Streams {
    /// By op.
    said: Vec<(Found, Option<Phase>)>,
}

impl Streams {
    fn new(trace: &Trace, rules: &Rules) -> Self {
        let ranges = &trace.gpu_ranges;
        let spans: Vec<_> = ranges
            .iter()
            .map(|range| Span { lane: (range.device, range.stream), start: range.start, end: range.end })
            .collect();
        let moments: Vec<_> = trace.ops.iter().map(|op| ((op.device, op.stream), op.start)).collect();
        let nest = Nest::new(&spans, &moments);
        let mut names = AnnotationNames::new(trace, rules);
        let mut resolved: Vec<(Found, Option<Phase>)> = vec![(None, None); ranges.len()];
        for &at in &nest.order {
            let around = nest.parents[at as usize].map_or((None, None), |around| resolved[around as usize]);
            let said = names.said(ranges[at as usize].name);
            let place = ranges[at as usize].annotation.map_or(Place::Range(at), Place::Annotation);
            let found = match (said.part, around.0) {
                (Some(part), Some((same, place))) if same == part => Some((part, place)),
                (Some(part), _) => Some((part, place)),
                (None, around) => around,
            };
            resolved[at as usize] = (found, said.phase.or(around.1));
        }
        let said = nest.innermost.iter().map(|at| at.map_or((None, None), |at| resolved[at as usize])).collect();
        Self { said }
    }
}

/// What kernels' names say, each looked at once.
struct KernelNames<'a> {
    trace: &'a Trace,
    rules: &'a Rules,
    communicates: Vec<Option<bool>>,
    parts: HashMap<(Name, Option<Name>, bool), Option<Part>>,
}

impl<'a> KernelNames<'a> {
    fn new(trace: &'a Trace, rules: &'a Rules) -> Self {
        Self { trace, rules, communicates: vec![None; trace.names.count()], parts: HashMap::new() }
    }

    fn communicates(&mut self, op: &GpuOp) -> bool {
        let text = self.trace.names.text(op.name);
        *self.communicates[op.name as usize].get_or_insert_with(|| self.rules.communicates(text))
    }

    fn part(&mut self, op: &GpuOp, backward: bool) -> Option<Part> {
        let names = &self.trace.names;
        *self.parts.entry((op.name, op.collective, backward)).or_insert_with(|| {
            let collective = op.collective.map(|collective| names.text(collective));
            self.rules.kernel(names.text(op.name), collective, backward)
        })
    }
}
