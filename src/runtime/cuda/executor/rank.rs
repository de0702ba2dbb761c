//! What one rank does in a step: for each stream of the plan a thread launches its items, in their order. What they wait for, they wait
//! for on the GPU; the host only sees to it that a stream is not told to wait for what no stream has been given yet.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::blocks::{Blocks, SCRATCH};
use super::places::Taken;
use super::stage::{Ends, Launch, Stage};
use super::sync::Sync;
use super::table::Table;
use super::trace::{Trace, What};
use super::unit::{Context, Exchange};
use crate::error::{Error, Result};
use crate::ir::{Action, ChunkId, Phase, Program, Stream as ProgramStream};
use crate::plan::{Plan, RingOf, StreamId, Task};
use crate::runtime::cuda::exchange::Member;
use crate::runtime::cuda::nccl::Communicator;
use crate::runtime::cuda::ops::loss;
use crate::runtime::cuda::ops::optimizer::Step;
use crate::runtime::cuda::product::Products;
use crate::runtime::cuda::signals::{Meeting, Receiver, Sender};
use crate::runtime::cuda::watch::Watch;
use crate::runtime::cuda::{Bf16, Device, Event, Memory, Slice, Stream};
use crate::runtime::host::Shape;
use crate::runtime::messages::{Message, Uses, Value};
use crate::runtime::said;
use crate::runtime::world::Gpu;

/// Compute items that are launched before the first of them has ended: enough to keep the GPU busy, and far from what a stream can
/// queue.
const AHEAD: usize = 6;

/// A rank on its GPU.
pub struct Rank {
    /// Which one.
    pub gpu: Gpu,
    /// Its GPU; several ranks may share one.
    pub device: Arc<Device>,
    /// By what the plan calls them.
    pub streams: BTreeMap<StreamId, Stream>,
    /// Of exchanges, inside of chunk programs.
    pub comm: Stream,
    /// For the compute stream.
    pub products: Products,
    /// Its place in the exchange; none where there are no experts.
    pub member: Mutex<Option<Member>>,
    /// Whether the exchange is among several GPUs.
    pub exchanges: bool,
    /// What it holds.
    pub stages: BTreeMap<u32, Stage>,
    /// By stage: the end of a step.
    pub syncs: BTreeMap<u32, Sync>,
    /// Its copies of the embedding's table, if several stages read it.
    pub table: Option<Table>,
    /// By rank.
    pub senders: BTreeMap<u32, Mutex<Sender>>,
    /// By rank.
    pub receivers: BTreeMap<u32, Mutex<Receiver>>,
    /// By item: where a send puts what it sends, if that is of this process.
    pub targets: Vec<Slice<u8>>,
    /// By stage: values of the message that its F makes, and I of the stage behind.
    pub messages: Vec<usize>,
    /// Blocks of chunks, and scratch. It looks alike at all GPUs that share experts.
    pub memory: Memory,
    /// By item: which blocks it takes.
    pub places: Vec<Vec<Taken>>,
    /// What of it is scratch.
    pub scratch: [Slice<u8>; SCRATCH.len()],
    /// Slots of messages.
    pub rings: Memory,
    /// By ring: first byte and bytes of a slot.
    pub slots: BTreeMap<RingOf, (usize, usize)>,
    /// By item: what it does with slots.
    pub uses: Vec<Uses>,
    /// By item: its end, and whether its stream has been given that.
    pub ended: Vec<(Event, AtomicBool)>,
    /// By op of a program: its end.
    pub op_ended: Vec<Event>,
    /// When both streams of a program may start, and when the second has ended.
    pub joints: [Event; 2],
    /// As [`Data`].
    pub data: Vec<Memory>,
    /// By micro-batch: the sums of its losses.
    pub losses: Memory,
    /// Sum of squares of this GPU's shares of gradients; by GPU, those of all; their sum.
    pub squares: [Memory; 3],
    /// How the GPUs tell each other the squares of their gradients, once these are reduced.
    pub norm: Option<Norm>,
    /// Number of this GPU.
    pub index: usize,
}

/// How all GPUs get the squares of each.
pub enum Norm {
    /// Where they meet, and by GPU its table, into which all write.
    Memory(Mutex<Meeting>, Vec<Slice<f32>>),
    /// All processes.
    Network(Mutex<Communicator>),
}

/// What all ranks read in a step.
pub struct Shared<'a> {
    /// What is run.
    pub plan: &'a Plan,
    /// Of the model.
    pub shape: &'a Shape,
    /// Failures.
    pub watch: &'a Watch,
    /// Numbers of the optimizer's step, decay of matrices, and how far balancing biases move.
    pub step: (Step, f32, f32),
    /// Tokens of a micro-batch, and of the step.
    pub tokens: (usize, usize),
    /// By GPU: when the step began, if times are measured.
    pub bases: Vec<Option<Arc<Event>>>,
}

/// What only one stream uses, and after a failure whoever ends the rank.
fn lock<V>(of: &Mutex<V>) -> MutexGuard<'_, V> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tokens of a rank's micro-batches, one behind the other; those that follow them; and so on up to what the last MTP module predicts.
pub type Data = Vec<Vec<u32>>;

/// What came of a step on a rank.
pub struct Done {
    /// By micro-batch, where the rank has the head: the sums of its losses, the model's and each MTP module's.
    pub losses: Vec<f64>,
    /// Sum of the squares of all gradients of the model.
    pub squares: f64,
    /// Times of all that ran, by stream.
    pub traces: Vec<Trace>,
}

impl Rank {
    /// A step: a thread for each stream.
    ///
    /// # Errors
    /// If the driver refuses, something fails on the GPU or on another one, or comes to no end.
    pub fn step(&self, shared: &Shared) -> Result<Done> {
        let traces: Vec<Result<Trace>> = thread::scope(|scope| {
            let threads: Vec<_> = self
                .streams
                .keys()
                .map(|&id| {
                    scope.spawn(move || {
                        // After a panic nothing of the step is used.
                        let ended = catch_unwind(AssertUnwindSafe(|| self.run(shared, id)));
                        let trace =
                            ended.unwrap_or_else(|panic| Err(Error::new(format!("panicked: {}", said(&*panic)))));
                        // All others end too.
                        trace.inspect_err(|error| shared.watch.fail(self.told(error)))
                    })
                })
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<Trace>>| {
                thread.join().unwrap_or_else(|panic| Err(Error::new(format!("panicked: {}", said(&*panic)))))
            };
            threads.into_iter().map(join).collect()
        });
        let traces = traces.into_iter().collect::<Result<Vec<_>>>()?;
        self.end(shared, traces)
    }

    /// Launches every kernel of a step once, before the first one that counts, where other processes take part in it. Some first launches wait
    /// for all that the GPU does: their code is loaded, or threads get more local memory. While one of NCCL's kernels waits there for
    /// a message of another process, which waits for one of this process, that would be for ever. So the programs run on the data
    /// of the step, and on zeros where messages would be; nothing of what they make is kept.
    ///
    /// # Errors
    /// If the driver refuses, something fails, or an exchange is not met by another process.
    pub fn rehearse(&self, shared: &Shared, data: &Data) -> Result<()> {
        const WHO: &str = "rehearsal";
        shared.watch.at(WHO, || "the begin of a step".to_owned());
        self.begin(data)?;
        let (compute, most) = (&self.streams[&StreamId::Compute], self.device.sms);
        [&self.memory, &self.rings].map(Memory::all::<u8>).iter().try_for_each(|bytes| bytes.fill_bytes(compute, 0))?;
        let (mut chunks, mut trace) = (BTreeMap::new(), Trace::new(&self.device, None));
        for (index, item) in shared.plan.ranks[self.gpu.rank as usize].items.iter().enumerate() {
            let Some(action) = item.0.action() else { continue };
            shared.watch.at(WHO, || item.0.to_string());
            self.program(shared, index, action, &mut chunks, &mut trace)?;
            self.ended[index].0.record(compute)?;
            self.wait(shared, index)?;
        }
        shared.watch.at(WHO, || "the end of a step".to_owned());
        let sync = &self.streams[&StreamId::Sync];
        self.syncs.values().take(1).try_for_each(|of| of.rehearse(sync, most, &shared.step.0))?;
        loss::sum(compute, self.squares[1].all(), self.squares[2].all())?;
        compute.synchronize()?;
        shared.watch.done(WHO);
        Ok(())
    }

    /// An error, and where it happened.
    pub fn told(&self, error: &Error) -> Error {
        let told = Error::new(format!("{} on GPU {}: {error}", self.gpu, self.device.ordinal));
        match error.help_text() {
            Some(help) => told.help(help),
            None => told,
        }
    }

    /// Gives a stream its items, in the order of the list.
    fn run(&self, shared: &Shared, id: StreamId) -> Result<Trace> {
        let mut trace = Trace::new(&self.device, shared.bases.get(self.device.ordinal).cloned().flatten());
        let items = &shared.plan.ranks[self.gpu.rank as usize].items;
        let (stream, who) = (&self.streams[&id], format!("{id:?}"));
        let mut chunks = BTreeMap::new();
        let mut launched = Vec::new();
        let mut updated = false;
        for (index, item) in items.iter().enumerate().filter(|(_, item)| item.0.stream() == id) {
            let named = |error: Error| match error.help_text() {
                Some(help) => Error::new(format!("{}: {error}", item.0)).help(help),
                None => Error::new(format!("{}: {error}", item.0)),
            };
            shared.watch.at(&who, || item.0.to_string());
            for &wait in &item.1 {
                let (event, given) = &self.ended[wait as usize];
                shared.watch.until(|| given.load(Ordering::Acquire)).map_err(named)?;
                stream.wait(event)?;
            }
            if let Some(action) = item.0.action() {
                if let Some(&old) = launched.len().checked_sub(AHEAD).and_then(|old| launched.get(old)) {
                    self.wait(shared, old)?;
                }
                launched.push(index);
                let span = trace.begin(stream)?;
                let program = self.program(shared, index, action, &mut chunks, &mut trace).map_err(named)?;
                trace.end(span, stream, (id, false), What::Program(program), || item.0.to_string())?;
            } else {
                let span = trace.begin(stream)?;
                self.other(shared, index, item.0, &mut updated).map_err(named)?;
                trace.end(span, stream, (id, false), What::Item, || item.0.to_string())?;
            }
            let (event, given) = &self.ended[index];
            event.record(stream)?;
            given.store(true, Ordering::Release);
        }
        let mine = items.iter().enumerate().filter(|(_, item)| item.0.stream() == id);
        mine.map(|(index, _)| index).try_for_each(|index| {
            shared.watch.at(&who, || format!("the end of {}", items[index].0));
            self.wait(shared, index)
        })?;
        shared.watch.done(&who);
        Ok(trace)
    }

    /// Waits on the host for the end of an item.
    fn wait(&self, shared: &Shared, index: usize) -> Result<()> {
        let task = shared.plan.ranks[self.gpu.rank as usize].items[index].0;
        shared.watch.wait(&self.ended[index].0, || task.to_string())
    }

    fn stream(&self, id: StreamId) -> &Stream {
        &self.streams[&id]
    }

    /// In front of a step: data to the GPU, and sums to zero.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn begin(&self, data: &Data) -> Result<()> {
        self.ended.iter().for_each(|(_, given)| given.store(false, Ordering::Release));
        let stream = self.stream(StreamId::Compute);
        for (memory, values) in self.data.iter().zip(data) {
            memory.all::<u32>().part(0..values.len()).write(stream, values)?;
        }
        let gradients = self.stages.values().map(|stage| stage.store.gradients().cast::<u8>());
        let zeroed = gradients.chain([self.losses.all(), self.squares[0].all()]);
        zeroed.into_iter().try_for_each(|values| values.fill_bytes(stream, 0))?;
        // The last step's updates have ended, here and on the GPUs that this one has copied from.
        self.stages.values().try_for_each(|stage| stage.store.quantise(stream))?;
        stream.synchronize()
    }

    fn end(&self, shared: &Shared, traces: Vec<Trace>) -> Result<Done> {
        let overflow = lock(&self.member).as_mut().map(|member| member.overflow(&self.comm)).transpose()?.flatten();
        if let Some(rows) = overflow {
            return Err(Error::new(format!("{rows} rows came to experts that have room for fewer")));
        }
        let stream = self.stream(StreamId::Compute);
        let losses = shared.plan.layout.micro_batches as usize * shared.shape.losses();
        let losses = self.losses.all::<f32>().part(0..losses).read(stream)?;
        let squares = self.squares[2].all::<f32>().read(stream)?;
        Ok(Done {
            losses: losses.into_iter().map(f64::from).collect(),
            squares: squares.first().copied().map_or(f64::NAN, f64::from),
            traces,
        })
    }

    /// Launches a compute item, and says which program that is.
    fn program(
        &self,
        shared: &Shared,
        index: usize,
        action: Action,
        chunks: &mut BTreeMap<ChunkId, Blocks>,
        trace: &mut Trace,
    ) -> Result<u32> {
        let number = shared.plan.program_of(action).ok_or_else(|| Error::new(format!("{action:?} has no program")))?;
        let program: &Program = &shared.plan.programs[number as usize];
        for taken in &self.places[index] {
            let bytes = self.memory.all::<u8>().part(taken.at..taken.at + taken.bytes);
            chunks.entry(taken.chunk).or_insert_with(|| self.scratch_blocks()).put(taken.block, bytes);
        }
        let parts: BTreeMap<Phase, (ChunkId, Ends)> =
            action.parts().map(|(phase, chunk)| (phase, (chunk, self.ends(shared, index, chunk)))).collect();
        let missing = |phase: Phase| Error::new(format!("{action:?} has no {phase:?}"));
        let both =
            chunks.iter().flat_map(|(&chunk, &blocks)| [((chunk, false), blocks), ((chunk, true), blocks.backward())]);
        let blocks: BTreeMap<(ChunkId, bool), Blocks> = both.collect();
        let most = self.device.sms;
        let Self { streams, comm, products, exchanges, stages, op_ended, joints, .. } = self;
        let mut member = lock(&self.member);
        let compute = &streams[&StreamId::Compute];
        let on = |(chunk, backward): (ChunkId, bool), stream, sms: u32| -> Result<(&Stage, Context)> {
            let stage =
                stages.get(&chunk.stage).ok_or_else(|| Error::new("is of a stage that the rank does not hold"))?;
            let blocks = blocks
                .get(&(chunk, backward))
                .ok_or_else(|| Error::new("reads what its forward keeps, which is not there"))?;
            let (shape, tokens) = (shared.shape, shared.tokens.0);
            Ok((stage, Context { shape, products, stream, sms: sms.clamp(1, most), blocks, tokens }))
        };
        if let Some((chunk, ends)) = parts.get(&Phase::F) {
            let (stage, context) = on((*chunk, false), compute, most)?;
            stage.begin_forward(&context, ends)?;
        }
        if let Some((chunk, ends)) = parts.get(&Phase::I) {
            let (stage, context) = on((*chunk, true), compute, most)?;
            stage.begin_backward(&context, ends)?;
        }
        joints[0].record(compute)?;
        comm.wait(&joints[0])?;
        for (at, op) in program.ops.iter().enumerate() {
            let stream = if op.stream() == ProgramStream::Comm { comm } else { compute };
            for &wait in &op.waits {
                stream.wait(&op_ended[wait as usize])?;
            }
            let (chunk, ends) = parts.get(&op.phase).ok_or_else(|| missing(op.phase))?;
            let (stage, context) = on((*chunk, op.phase != Phase::F), stream, op.sms)?;
            let span = trace.begin(stream)?;
            let member = member.as_mut();
            let mut exchange = member.map(|member| Exchange { member, watch: shared.watch, alone: !*exchanges });
            let (with_shared, again_apart) = (program.with_shared(at), program.again_apart(at));
            stage.launch(
                &context,
                ends,
                op,
                &Launch { program: number, with_shared, again_apart },
                exchange.as_mut(),
            )?;
            let (exchange, what) = (op.stream() == ProgramStream::Comm, What::Op(number, at as u32));
            trace.end(span, stream, (StreamId::Compute, exchange), what, || op.within(*chunk))?;
            op_ended[at].record(stream)?;
        }
        joints[1].record(comm)?;
        compute.wait(&joints[1])?;
        if let Some((chunk, ends)) = parts.get(&Phase::F) {
            let (stage, context) = on((*chunk, false), compute, most)?;
            stage.end_forward(&context, number, ends)?;
        }
        if let Some((chunk, _)) = parts.get(&Phase::W) {
            chunks.remove(chunk);
        }
        Ok(number)
    }

    /// Blocks of a chunk, of which only scratch is there.
    fn scratch_blocks(&self) -> Blocks {
        let mut blocks = Blocks::none();
        for (block, &bytes) in SCRATCH.into_iter().zip(&self.scratch) {
            blocks.put(block, bytes);
        }
        blocks
    }

    fn ends(&self, shared: &Shared, index: usize, chunk: ChunkId) -> Ends {
        let (tokens, step_tokens) = shared.tokens;
        let ChunkId { stage, micro_batch } = chunk;
        let uses = &self.uses[index];
        let find = |values: &[Value], message: Message| {
            let value = values.iter().find(|value| value.message == message);
            value.map_or(Slice::none(), |value| self.slot(value))
        };
        let at = |gradient, stage| Message { gradient, chunk: ChunkId::new(stage, micro_batch) };
        let range = micro_batch as usize * tokens..(micro_batch as usize + 1) * tokens;
        let runs = shared.shape.losses();
        let losses = micro_batch as usize * runs..(micro_batch as usize + 1) * runs;
        Ends {
            input: stage.checked_sub(1).map_or(Slice::none(), |before| find(&uses.read, at(false, before))),
            output: find(&uses.written, at(false, stage)),
            output_gradient: find(&uses.read, at(true, stage + 1)),
            input_gradient: find(&uses.written, at(true, stage)),
            ahead: self.data.iter().map(|data| data.all::<u32>().part(range.clone())).collect(),
            losses: self.losses.all::<f32>().part(losses),
            scale: (1.0 / step_tokens as f64) as f32,
        }
    }

    /// The slot of a message.
    pub fn slot(&self, value: &Value) -> Slice<Bf16> {
        let &(first, bytes) = self.slots.get(&value.ring).unwrap_or(&(0, 0));
        self.rings.at(first + value.slot * bytes, self.values_of(value.message))
    }

    /// Values of a message.
    fn values_of(&self, Message { gradient, chunk }: Message) -> usize {
        let made = if gradient { chunk.stage.checked_sub(1) } else { Some(chunk.stage) };
        made.and_then(|stage| self.messages.get(stage as usize)).copied().unwrap_or_default()
    }

    /// Launches an item that runs no program.
    fn other(&self, shared: &Shared, index: usize, task: Task, updated: &mut bool) -> Result<()> {
        let most = self.device.sms;
        let not_held = || Error::new(format!("{task} is of a stage that the rank does not hold"));
        match task {
            Task::SendAct(.., peer) | Task::SendGrad(.., peer) => {
                let value = self.uses[index].read.first();
                let value = value.ok_or_else(|| Error::new(format!("{task} sends what the rank does not make")))?;
                let from = self.slot(value).cast();
                let stream = &self.streams[&task.stream()];
                let sender = self.senders.get(&peer).ok_or_else(not_held)?;
                lock(sender).send(stream, from, self.targets[index], shared.watch)
            }
            Task::RecvAct(.., peer) | Task::RecvGrad(.., peer) => {
                let value = self.uses[index].written.first();
                let value = value.ok_or_else(|| Error::new(format!("{task} receives what the rank does not read")))?;
                let (stream, into) = (&self.streams[&task.stream()], self.slot(value).cast());
                lock(self.receivers.get(&peer).ok_or_else(not_held)?).receive(stream, into, shared.watch)
            }
            Task::ReduceGrads(stage) => {
                let (sync, held) = self.syncs.get(&stage).zip(self.stages.get(&stage)).ok_or_else(not_held)?;
                let (stream, squares) = (&self.streams[&StreamId::Sync], self.squares[0].all());
                sync.reduce(stream, most, &held.store, squares, shared.watch)
            }
            Task::Update(stage) => {
                if !std::mem::replace(updated, true) {
                    self.norm(shared)?;
                }
                let (sync, held) = self.syncs.get(&stage).zip(self.stages.get(&stage)).ok_or_else(not_held)?;
                let (step, decay, rate) = &shared.step;
                let squares = self.squares[2].all();
                sync.update(&self.streams[&StreamId::Compute], most, &held.store, (step, *decay, *rate), squares)
            }
            Task::GatherParams(stage) => {
                let (sync, held) = self.syncs.get(&stage).zip(self.stages.get(&stage)).ok_or_else(not_held)?;
                sync.gather(&self.streams[&StreamId::Sync], &held.store, shared.watch)
            }
            Task::F(..) | Task::B(..) | Task::I(..) | Task::W(..) | Task::FB(..) => {
                Err(Error::new(format!("{task} runs a program")))
            }
        }
    }

    /// The sum of the squares of all gradients, once all are reduced: in front of the first update.
    fn norm(&self, shared: &Shared) -> Result<()> {
        let items = &shared.plan.ranks[self.gpu.rank as usize].items;
        let compute = &self.streams[&StreamId::Compute];
        for (index, _) in items.iter().enumerate().filter(|(_, item)| matches!(item.0, Task::ReduceGrads(_))) {
            let (event, given) = &self.ended[index];
            shared.watch.until(|| given.load(Ordering::Acquire))?;
            compute.wait(event)?;
        }
        let mine = self.squares[0].all::<f32>();
        if let Some(table) = &self.table {
            // The thread of that stream gathers nothing before the first update.
            let streams = (compute, &self.streams[&StreamId::Sync]);
            table.reduce(streams, self.device.sms, &self.stages, mine, shared.watch)?;
        }
        match &self.norm {
            Some(Norm::Memory(meeting, boards)) => {
                for board in boards {
                    board.part(self.index..self.index + 1).copy_from(compute, mine)?;
                }
                lock(meeting).meet(compute, shared.watch)?;
            }
            Some(Norm::Network(all)) => lock(all).gather(compute, mine.cast(), self.squares[1].all(), shared.watch)?,
            None => return Err(Error::new("a rank without a way to the others")),
        }
        loss::sum(compute, self.squares[1].all(), self.squares[2].all())
    }

    /// Bytes that it has on its GPU, but for what libraries take.
    pub fn bytes(&self) -> usize {
        let stores: usize = self.stages.values().map(|stage| stage.store.bytes()).sum();
        let exchange = lock(&self.member).as_ref().map_or(0, Member::bytes);
        stores + exchange + self.memory.bytes() + self.rings.bytes()
    }
}
