//! What one GPU does in a step: it walks the streams of its rank's list.
//!
//! Nothing that it does blocks. It looks at the first item of each stream that has not ended, and at the first ops of the program
//! that runs; of what can be done now it does one thing after the other, and if there is nothing it sleeps.

use std::collections::{BTreeMap, BTreeSet};

use super::Run;
use super::arena::Arena;
use super::chunk::{Chunk, Context};
use super::fabric::{Board, Fabric, Look};
use super::order::Chooser;
use super::rings::Rings;
use super::running::{Next, Running};
use super::stage::StageParameters;
use super::sync::HeldStage;
use crate::ir::{ChunkId, Phase};
use crate::plan::{Item, Plan, StreamId, Task, rank_streams};
use crate::runtime::host::adamw::AdamW;
use crate::runtime::host::batch::Batch;
use crate::runtime::host::{Real, Shape};
use crate::runtime::messages::{Message, Uses};
use crate::runtime::world::{Gpu, World};

/// What all GPUs read in a step.
pub struct Shared<'a, T> {
    /// What is run.
    pub plan: &'a Plan,
    /// Of the model.
    pub shape: &'a Shape,
    /// All GPUs.
    pub world: &'a World,
    /// How parameters are updated.
    pub optimizer: &'a AdamW,
    /// What connects the GPUs.
    pub fabric: &'a Fabric<T>,
    /// Micro-batches, by replica.
    pub data: &'a [Vec<Batch>],
    /// Tokens of a micro-batch, and of the step.
    pub tokens: (u32, usize),
    /// What items do with slots, by rank.
    pub uses: &'a [Vec<Uses>],
}

/// The losses of a micro-batch, summed over its tokens, by its number.
pub type Losses = BTreeMap<u32, Vec<f64>>;

/// A GPU in a step.
pub struct Worker<'a, T> {
    shared: &'a Shared<'a, T>,
    gpu: Gpu,
    items: &'a [Item],
    held: &'a mut BTreeMap<u32, HeldStage<T>>,
    chooser: Chooser,
    /// Items of each stream in order, and how many have ended.
    streams: Vec<(Vec<usize>, usize)>,
    started: Vec<bool>,
    ended: Vec<bool>,
    running: Option<Running<'a>>,
    rings: Rings<T>,
    arena: Arena<'a>,
    chunks: BTreeMap<ChunkId, Chunk<'a, T>>,
    /// Chunks whose W has ended.
    done: BTreeSet<ChunkId>,
    /// Stages that the optimizer has updated.
    updated: BTreeSet<u32>,
    losses: Losses,
    doing: Option<Move>,
}

/// What can be done next: an item, and of its program an op.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Move {
    item: usize,
    kind: MoveKind,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum MoveKind {
    /// The item starts.
    Start,
    /// An op of the program that runs computes, or sends.
    Op(usize),
    /// An exchange of the program that runs takes what has come.
    Receive(usize),
    /// The item ends: whom it meets has come, or its program has run.
    End,
}

impl<'a, T: Real> Worker<'a, T> {
    /// At the start of a step.
    pub fn new(
        shared: &'a Shared<'a, T>,
        gpu: Gpu,
        held: &'a mut BTreeMap<u32, HeldStage<T>>,
        chooser: Chooser,
    ) -> Self {
        let rank = &shared.plan.ranks[gpu.rank as usize];
        let of = |stream: StreamId| (0..rank.items.len()).filter(move |&at| rank.items[at].0.stream() == stream);
        let streams = rank_streams(&rank.items).into_iter().map(|stream| (of(stream).collect(), 0)).collect();
        Self {
            shared,
            gpu,
            items: &rank.items,
            held,
            chooser,
            streams,
            started: vec![false; rank.items.len()],
            ended: vec![false; rank.items.len()],
            running: None,
            rings: Rings::new(rank),
            arena: Arena::new(shared.plan, rank),
            chunks: BTreeMap::new(),
            done: BTreeSet::new(),
            updated: BTreeSet::new(),
            losses: BTreeMap::new(),
            doing: None,
        }
    }

    /// Runs the step.
    ///
    /// # Errors
    /// In words, without the GPU: whatever goes wrong here, or on another GPU.
    pub fn run(&mut self) -> Run<Losses> {
        let stages: Vec<u32> = self.held.keys().copied().collect();
        for stage in stages {
            let zeros = self.zeros(stage);
            if let Some(held) = self.held.get_mut(&stage) {
                held.gradients = zeros;
            }
        }
        let fabric = self.shared.fabric;
        while self.ended.contains(&false) {
            let moves = fabric.next(self.gpu, |board| self.look(board))?;
            if let Some(chosen) = self.chooser.choose(moves) {
                self.doing = Some(chosen);
                self.make(chosen).map_err(|problem| format!("{}{problem}", self.place()))?;
            }
        }
        match self.held.keys().find(|stage| !self.updated.contains(stage)) {
            None => Ok(std::mem::take(&mut self.losses)),
            Some(stage) => Err(format!("the step ends without Update({stage})")),
        }
    }

    /// What it does at the moment, in words; nothing before it does anything.
    pub fn place(&self) -> String {
        let Some(Move { item, kind }) = self.doing else { return String::new() };
        let task = self.items[item].0;
        match (kind, &self.running) {
            (MoveKind::Op(op) | MoveKind::Receive(op), Some(running)) => {
                let op = running.op(op);
                format!("item {item}, {task}: {} of unit {} ", op.what(), op.unit)
            }
            _ => format!("item {item}, {task}: "),
        }
    }

    /// Gradients of a stage, before anything was added.
    fn zeros(&self, stage: u32) -> StageParameters<T> {
        let units = &self.shared.plan.stages[stage as usize].units;
        let world = self.shared.world;
        StageParameters::zeros(self.shared.shape, units, &world.experts_at(world.place(self.gpu)))
    }

    /// All that can be done, or all that is waited for.
    fn look(&self, board: &Board<T>) -> Look<Vec<Move>> {
        let (mut moves, mut reasons) = (Vec::new(), Vec::new());
        for (items, ended) in &self.streams {
            let Some(&item) = items.get(*ended) else { continue };
            let Item(task, after, _) = &self.items[item];
            if !self.started[item] {
                match after.iter().find(|&&before| self.ended.get(before as usize) != Some(&true)) {
                    None => moves.push(Move { item, kind: MoveKind::Start }),
                    Some(before) => reasons.push(format!("{task} waits for item {before}")),
                }
            } else if task.action().is_some() {
                self.look_inside(board, item, &mut moves, &mut reasons);
            } else {
                match self.waits_for(board, *task) {
                    None => moves.push(Move { item, kind: MoveKind::End }),
                    Some(reason) => reasons.push(format!("{task} waits for {reason}")),
                }
            }
        }
        if moves.is_empty() { Look::Waits(reasons) } else { Look::Can(moves) }
    }

    fn look_inside(&self, board: &Board<T>, item: usize, moves: &mut Vec<Move>, reasons: &mut Vec<String>) {
        let Some(running) = &self.running else { return };
        if running.is_done() {
            moves.push(Move { item, kind: MoveKind::End });
        }
        let name =
            |op: usize| format!("{} of unit {} in {}", running.op(op).what(), running.op(op).unit, self.items[item].0);
        for next in running.next() {
            match next {
                Next::Start(op) => moves.push(Move { item, kind: MoveKind::Op(op) }),
                Next::Waits(op) => reasons.push(format!("{} waits for another op", name(op))),
                Next::Receive(op) => match board.absent(self.shared.world, self.gpu).first() {
                    None => moves.push(Move { item, kind: MoveKind::Receive(op) }),
                    Some(absent) => reasons.push(format!("{} waits for {absent}", name(op))),
                },
            }
        }
    }

    /// What an item that has started, and runs no program, still waits for.
    fn waits_for(&self, board: &Board<T>, task: Task) -> Option<String> {
        let world = self.shared.world;
        if let Some((_, peer, sent)) = Message::of(task) {
            // Before it started, the item made sure that there is such a rank.
            let there = Gpu { rank: peer, ..self.gpu };
            let (from, to) = if sent { (self.gpu, there) } else { (there, self.gpu) };
            // What was offered is gone once it was taken.
            let ready = board.offered(world, from, to) != sent;
            return (!ready).then(|| there.to_string());
        }
        match task {
            Task::ReduceGrads(stage) | Task::GatherParams(stage) => {
                let members = self.held.get(&stage).map_or(&[][..], |held| &held.members);
                board.missing(task, members).first().map(Gpu::to_string)
            }
            Task::Update(_) => (!board.is_complete()).then(|| "the gradients of all stages".to_owned()),
            _ => None,
        }
    }

    fn make(&mut self, Move { item, kind }: Move) -> Run<()> {
        match kind {
            MoveKind::Start => {
                self.start(item)?;
                self.arena.start(item, &self.shared.uses[self.gpu.rank as usize][item])
            }
            MoveKind::Op(op) => self.op(op),
            MoveKind::Receive(op) => self.receive(op),
            MoveKind::End => {
                self.end(item)?;
                self.ended[item] = true;
                for (items, ended) in &mut self.streams {
                    if items.get(*ended) == Some(&item) {
                        *ended += 1;
                    }
                }
                Ok(())
            }
        }
    }

    fn start(&mut self, item: usize) -> Run<()> {
        self.started[item] = true;
        let shared = self.shared;
        let task = self.items[item].0;
        let uses = &shared.uses[self.gpu.rank as usize][item];
        if let Some(action) = task.action() {
            let program = shared.plan.program_of(action).and_then(|program| shared.plan.programs.get(program as usize));
            let program = program.ok_or("has no program")?;
            for (phase, chunk) in action.parts() {
                self.check(phase, chunk)?;
            }
            uses.written.iter().try_for_each(|&value| self.rings.acquire(value))?;
            for &value in &uses.read {
                let states = self.rings.read(value)?;
                let ChunkId { stage, micro_batch } = value.message.chunk;
                match value.message.gradient {
                    false => self.chunk(ChunkId::new(stage + 1, micro_batch))?.put_input(states)?,
                    true => self.chunk(ChunkId::new(stage - 1, micro_batch))?.put_output_gradient(states)?,
                }
            }
            self.running = Some(Running::new(action, program));
            return Ok(());
        }
        match task {
            Task::SendAct(..) | Task::SendGrad(..) => {
                let (message, peer, _) = Message::of(task).ok_or("carries nothing")?;
                let value = uses.read.first().ok_or("sends what the rank does not make")?;
                let states = self.rings.read(*value)?;
                shared.fabric.offer(self.gpu, self.peer(peer)?, message, states);
            }
            Task::RecvAct(.., from) | Task::RecvGrad(.., from) => {
                self.peer(from)?;
            }
            Task::ReduceGrads(stage) => {
                self.all_accumulated(stage)?;
                let held = self.held.get_mut(&stage).ok_or(NOT_HELD)?;
                let gradients = std::mem::take(&mut held.gradients);
                shared.fabric.bring(&held.members, held.place, task, gradients)?;
            }
            Task::GatherParams(stage) => {
                let held = self.held.get(&stage).ok_or(NOT_HELD)?;
                shared.fabric.bring(&held.members, held.place, task, held.parameters.clone())?;
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, item: usize) -> Run<()> {
        let shared = self.shared;
        let task = self.items[item].0;
        let uses = &shared.uses[self.gpu.rank as usize][item];
        self.arena.end(item, uses)?;
        match task {
            Task::SendAct(..) | Task::SendGrad(..) => {
                uses.read.iter().for_each(|&value| self.rings.release(value));
                Ok(())
            }
            Task::RecvAct(.., from) | Task::RecvGrad(.., from) => {
                let value = *uses.written.first().ok_or("receives what nothing reads")?;
                // The transfer starts now that both ends have been reached.
                self.rings.acquire(value)?;
                let states = shared.fabric.take(self.peer(from)?, self.gpu, value.message)?;
                self.rings.fill(value, states)
            }
            Task::ReduceGrads(stage) => {
                let (zeros, all) = (self.zeros(stage), shared.fabric.brought(task));
                let held = self.held.get_mut(&stage).ok_or(NOT_HELD)?;
                held.reduce(shared.shape, zeros, &all);
                if let Some(part) = held.part(shared.world) {
                    shared.fabric.reduced(stage, self.gpu.replica, part);
                }
                Ok(())
            }
            Task::Update(stage) => {
                if !self.updated.insert(stage) {
                    return Err("updates the parameters a second time".to_owned());
                }
                let total = shared.fabric.total().ok_or("comes before the gradients are reduced")?;
                self.held.get_mut(&stage).ok_or(NOT_HELD)?.update(shared.shape, shared.optimizer, &total);
                Ok(())
            }
            Task::GatherParams(stage) => {
                let all = shared.fabric.brought(task);
                self.held.get_mut(&stage).ok_or(NOT_HELD)?.gather(&all);
                Ok(())
            }
            Task::F(..) | Task::B(..) | Task::I(..) | Task::W(..) | Task::FB(..) => self.end_program(uses),
        }
    }

    /// The end of a compute item: its messages are written, those that it read let go, and chunks that are done.
    fn end_program(&mut self, uses: &Uses) -> Run<()> {
        let running = self.running.take().ok_or("does not run")?;
        for (phase, id) in running.action.parts() {
            let (context, chunk, _) = self.context(id)?;
            let written = |gradient| uses.written.iter().find(|value| value.message == Message { gradient, chunk: id });
            match phase {
                Phase::F => {
                    let losses = chunk.take_losses();
                    if let Some(&value) = written(false) {
                        let states = chunk.take_output(&context)?;
                        self.rings.fill(value, states)?;
                    }
                    if let Some(losses) = losses {
                        self.losses.insert(id.micro_batch, losses);
                    }
                }
                Phase::I => {
                    if let Some(&value) = written(true) {
                        let states = chunk.take_input_gradient()?;
                        self.rings.fill(value, states)?;
                    }
                }
                Phase::W => {
                    if let Some(left) = chunk.left() {
                        return Err(format!("is the end of the chunk, but nothing has read {left}"));
                    }
                    self.chunks.remove(&id);
                    self.done.insert(id);
                }
            }
        }
        uses.read.iter().for_each(|&value| self.rings.release(value));
        Ok(())
    }

    /// Runs an op of the program; an exchange sends.
    fn op(&mut self, op: usize) -> Run<()> {
        let running = self.running.as_ref().ok_or("does not run")?;
        let (id, program_op, with_shared) = (running.chunk_of(op)?, running.op(op), running.with_shared(op));
        let exchange = exchange_name(id, program_op);
        let fabric = self.shared.fabric;
        let gpu = self.gpu;
        let (context, chunk, gradients) = self.context(id)?;
        if program_op.work.is_exchange() {
            let parcels = chunk.send(&context, program_op)?;
            self.arena.start_exchange(id)?;
            fabric.post(gpu, &exchange, parcels);
            self.running.as_mut().ok_or("does not run")?.sent(op);
            return Ok(());
        }
        chunk.compute(&context, program_op, with_shared, gradients)?;
        self.running.as_mut().ok_or("does not run")?.end(op);
        Ok(())
    }

    /// An exchange takes what has come.
    fn receive(&mut self, op: usize) -> Run<()> {
        let running = self.running.as_mut().ok_or("does not run")?;
        let (id, program_op) = (running.chunk_of(op)?, running.op(op));
        running.end(op);
        self.arena.end_exchange(id)?;
        let parcels = self.shared.fabric.collect(self.gpu, &exchange_name(id, program_op))?;
        self.chunk(id)?.receive(program_op, parcels)
    }

    /// Whether a part of a chunk belongs here, and was not run before. A forward makes its chunk.
    fn check(&mut self, phase: Phase, id: ChunkId) -> Run<()> {
        let layout = &self.shared.plan.layout;
        if id.stage >= layout.stages || id.micro_batch >= layout.micro_batches || layout.rank_of(id) != self.gpu.rank {
            return Err("does not belong on this rank".to_owned());
        }
        match phase {
            Phase::F if self.chunks.contains_key(&id) || self.done.contains(&id) => {
                Err("runs a second time".to_owned())
            }
            Phase::F => {
                let batch = self.batch(id)?;
                let units = &self.shared.plan.stages[id.stage as usize].units;
                self.chunks.insert(id, Chunk::new(units, batch));
                Ok(())
            }
            Phase::I | Phase::W => self.chunk(id).map(|_| ()),
        }
    }

    fn batch(&self, id: ChunkId) -> Run<&'a Batch> {
        let data = self.shared.data.get(self.gpu.replica as usize);
        data.and_then(|data| data.get(id.micro_batch as usize)).ok_or_else(|| "has no data".to_owned())
    }

    fn chunk(&mut self, id: ChunkId) -> Run<&mut Chunk<'a, T>> {
        let missing = || format!("reads what F({},{}) keeps, which is not there", id.stage, id.micro_batch);
        self.chunks.get_mut(&id).ok_or_else(missing)
    }

    /// A chunk, what its ops read, and the gradients that they add to.
    fn context(&mut self, id: ChunkId) -> Run<(Context<'_, T>, &mut Chunk<'a, T>, &mut StageParameters<T>)> {
        let shared = self.shared;
        let HeldStage { parameters, gradients, .. } = self.held.get_mut(&id.stage).ok_or(NOT_HELD)?;
        let missing = || format!("reads what F({},{}) keeps, which is not there", id.stage, id.micro_batch);
        let chunk = self.chunks.get_mut(&id).ok_or_else(missing)?;
        let context = Context {
            shape: shared.shape,
            world: shared.world,
            place: shared.world.place(self.gpu),
            tokens: shared.tokens.0,
            step_tokens: shared.tokens.1,
            parameters,
        };
        Ok((context, chunk, gradients))
    }

    /// Before gradients are reduced, every micro-batch must have added to them.
    fn all_accumulated(&self, stage: u32) -> Run<()> {
        let layout = &self.shared.plan.layout;
        let mut chunks = (0..layout.micro_batches).map(|micro_batch| ChunkId::new(stage, micro_batch));
        match chunks.find(|&id| layout.rank_of(id) == self.gpu.rank && !self.done.contains(&id)) {
            None => Ok(()),
            Some(id) => Err(format!("comes before W({},{})", id.stage, id.micro_batch)),
        }
    }

    fn peer(&self, rank: u32) -> Run<Gpu> {
        match rank < self.shared.world.ranks && rank != self.gpu.rank {
            true => Ok(Gpu { rank, ..self.gpu }),
            false => Err(format!("names rank {rank}, which is no other rank")),
        }
    }
}

const NOT_HELD: &str = "is of a stage that the rank does not hold";

/// Names an exchange so that all GPUs of a group name the same one alike.
fn exchange_name(id: ChunkId, op: &crate::ir::ProgramOp) -> String {
    format!("{} of unit {} of chunk ({},{})", op.what(), op.unit, id.stage, id.micro_batch)
}
