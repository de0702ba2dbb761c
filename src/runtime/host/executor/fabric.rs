//! What GPUs exchange. Tensors really move: what one has put here, another takes.
//!
//! Nobody blocks in a transfer. A GPU that finds nothing to do sleeps until something changes that concerns it ([`Fabric::next`]).
//! If all sleep, nothing can change any more: that is a deadlock, and an error. So is a GPU that fails: it ends all others.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Run;
use super::chunk::{Parcels, States};
use super::rows::ByExpert;
use super::stage::StageParameters;
use crate::error::Error;
use crate::plan::Task;
use crate::runtime::host::parameters::Tensor;
use crate::runtime::host::{Matrix, Real};
use crate::runtime::messages::Message;
use crate::runtime::world::{Gpu, World};

/// What connects all GPUs during a step.
pub struct Fabric<T> {
    world: World,
    board: Mutex<Board<T>>,
    /// One for each GPU.
    wakes: Vec<Condvar>,
}

/// All that is on the way.
pub struct Board<T> {
    /// Messages that are offered, by sender and receiver. Streams are in order, so it is one at a time.
    offers: BTreeMap<(usize, usize), (Message, States<T>)>,
    /// All-to-alls, by sender and receiver: oldest first.
    parcels: BTreeMap<(usize, usize), VecDeque<Parcel<T>>>,
    /// What each member has brought to a collective, by place among the members.
    collectives: BTreeMap<Task, Vec<Option<Arc<StageParameters<T>>>>>,
    /// What reduced gradients come to, by stage and replica.
    reduced: BTreeMap<(u32, u32), Reduced<T>>,
    /// Entries that `reduced` will have.
    parts: usize,
    total: Option<Arc<Total<T>>>,
    gpus: Vec<Activity>,
    failure: Option<Error>,
}

/// Rows, and the exchange that they belong to.
type Parcel<T> = (String, ByExpert<Matrix<T>>);

/// A part of the model's reduced gradients.
pub struct Reduced<T> {
    /// Sum of the squares, the embedding's table apart.
    pub squares: f64,
    /// The gradient of the table, from a stage that reads it.
    pub table: Option<Tensor<T>>,
}

/// All gradients of the model.
pub struct Total<T> {
    /// Sum of the squares.
    pub squares: f64,
    /// The gradient of the embedding's table, from all stages that read it.
    pub table: Option<Tensor<T>>,
}

enum Activity {
    Works,
    /// For what, in words.
    Waits(Vec<String>),
    Ended,
}

/// What a GPU sees when it looks for something to do.
pub enum Look<R> {
    /// It can do this.
    Can(R),
    /// Nothing: it waits for all of these.
    Waits(Vec<String>),
}

impl<T: Real> Fabric<T> {
    /// With nothing on the way. `parts`: how many times [`Fabric::reduced`] will be called.
    pub fn new(world: World, parts: usize) -> Self {
        let gpus = world.count();
        let board = Board {
            offers: BTreeMap::new(),
            parcels: BTreeMap::new(),
            collectives: BTreeMap::new(),
            reduced: BTreeMap::new(),
            parts,
            total: None,
            gpus: (0..gpus).map(|_| Activity::Works).collect(),
            failure: None,
        };
        Self { world, board: Mutex::new(board), wakes: (0..gpus).map(|_| Condvar::new()).collect() }
    }

    /// Has `look` see what has come, and sleeps as long as that gives a GPU nothing to do.
    ///
    /// # Errors
    /// If any GPU has failed, or all wait.
    pub fn next<R>(&self, gpu: Gpu, mut look: impl FnMut(&Board<T>) -> Look<R>) -> Run<R> {
        let index = self.world.index(gpu);
        let mut board = self.lock();
        loop {
            if board.failure.is_some() {
                return Err("another GPU has failed".to_owned());
            }
            match look(&board) {
                Look::Can(something) => return Ok(something),
                Look::Waits(reasons) => board.gpus[index] = Activity::Waits(reasons),
            }
            self.find_deadlock(&mut board);
            while board.failure.is_none() && matches!(board.gpus[index], Activity::Waits(_)) {
                board = self.wakes[index].wait(board).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// The GPU is done with the step.
    pub fn end(&self, gpu: Gpu) {
        let mut board = self.lock();
        board.gpus[self.world.index(gpu)] = Activity::Ended;
        self.find_deadlock(&mut board);
    }

    /// The GPU has failed: all others end. The first failure is the one that is told.
    pub fn fail(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
        self.wakes.iter().for_each(Condvar::notify_all);
    }

    /// The first failure, if there was any.
    pub fn failure(self) -> Option<Error> {
        self.board.into_inner().unwrap_or_else(PoisonError::into_inner).failure
    }

    /// Offers a message to another GPU.
    pub fn offer(&self, from: Gpu, to: Gpu, message: Message, states: States<T>) {
        let mut board = self.lock();
        board.offers.insert((self.world.index(from), self.world.index(to)), (message, states));
        self.wake(&mut board, to);
    }

    /// Takes the message that is offered by another GPU.
    ///
    /// # Errors
    /// If there is none, or another than expected.
    pub fn take(&self, from: Gpu, to: Gpu, expected: Message) -> Run<States<T>> {
        let mut board = self.lock();
        let offer = board.offers.remove(&(self.world.index(from), self.world.index(to)));
        self.wake(&mut board, from);
        match offer {
            Some((message, states)) if message == expected => Ok(states),
            Some((message, _)) => Err(format!("meets {message}, which {from} sends")),
            None => Err(format!("finds nothing from {from}")),
        }
    }

    /// Sends to each GPU of the sender's group, itself included. `what` says to which exchange it belongs.
    pub fn post(&self, from: Gpu, what: &str, parcels: Parcels<T>) {
        let mut board = self.lock();
        for (to, rows) in self.world.group(from).zip(parcels) {
            let queue = board.parcels.entry((self.world.index(from), self.world.index(to))).or_default();
            queue.push_back((what.to_owned(), rows));
            self.wake(&mut board, to);
        }
    }

    /// Takes the oldest parcel from each GPU of the group.
    ///
    /// # Errors
    /// If one is not there, or belongs to another exchange than `what`.
    pub fn collect(&self, to: Gpu, what: &str) -> Run<Parcels<T>> {
        let mut board = self.lock();
        let from = |from: Gpu| {
            let queue = board.parcels.get_mut(&(self.world.index(from), self.world.index(to)));
            match queue.and_then(VecDeque::pop_front) {
                Some((theirs, rows)) if theirs == what => Ok(rows),
                Some((theirs, _)) => Err(format!("meets {theirs} of {from}")),
                None => Err(format!("finds nothing from {from}")),
            }
        };
        self.world.group(to).map(from).collect()
    }

    /// Brings something to a collective of some GPUs, of which this one is number `place`.
    ///
    /// # Errors
    /// If it has brought something already.
    pub fn bring(&self, members: &[Gpu], place: usize, task: Task, values: StageParameters<T>) -> Run<()> {
        let mut board = self.lock();
        let brought = board.collectives.entry(task).or_insert_with(|| members.iter().map(|_| None).collect());
        match brought.get_mut(place) {
            Some(mine @ None) => *mine = Some(Arc::new(values)),
            _ => return Err("takes part a second time".to_owned()),
        }
        members.iter().for_each(|&member| self.wake(&mut board, member));
        Ok(())
    }

    /// What all members brought, in their order; nothing if one is missing.
    pub fn brought(&self, task: Task) -> Vec<Arc<StageParameters<T>>> {
        let board = self.lock();
        let all = board.collectives.get(&task).map(|brought| brought.iter().cloned().collect::<Option<Vec<_>>>());
        all.flatten().unwrap_or_default()
    }

    /// A part of the model's gradients is reduced. The last one makes the total, in an order that does not depend on which
    /// it is.
    pub fn reduced(&self, stage: u32, replica: u32, part: Reduced<T>) {
        let mut board = self.lock();
        board.reduced.insert((stage, replica), part);
        if board.reduced.len() < board.parts {
            return;
        }
        let (mut squares, mut table) = (0.0, None::<Tensor<T>>);
        for part in std::mem::take(&mut board.reduced).into_values() {
            squares += part.squares;
            match (&mut table, part.table) {
                (Some(sum), Some(more)) => sum.values.add(&more.values),
                (sum @ None, more) => *sum = more,
                (Some(_), None) => {}
            }
        }
        let of_table = table.iter().flat_map(|table| table.values.values());
        squares += of_table.map(|value| value.to_f64() * value.to_f64()).sum::<f64>();
        board.total = Some(Arc::new(Total { squares, table }));
        self.world.gpus().for_each(|gpu| self.wake(&mut board, gpu));
    }

    /// The total, once there is one.
    pub fn total(&self) -> Option<Arc<Total<T>>> {
        self.lock().total.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Board<T>> {
        // Nothing that is done under the lock leaves the board half changed.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has changed for a GPU.
    fn wake(&self, board: &mut Board<T>, gpu: Gpu) {
        let index = self.world.index(gpu);
        if matches!(board.gpus[index], Activity::Waits(_)) {
            board.gpus[index] = Activity::Works;
            self.wakes[index].notify_all();
        }
    }

    fn find_deadlock(&self, board: &mut Board<T>) {
        let works = board.gpus.iter().any(|gpu| matches!(gpu, Activity::Works));
        let waiting: Vec<(Gpu, &Vec<String>)> = (self.world.gpus().zip(&board.gpus))
            .filter_map(|(gpu, activity)| match activity {
                Activity::Waits(reasons) => Some((gpu, reasons)),
                Activity::Works | Activity::Ended => None,
            })
            .collect();
        if works || waiting.is_empty() || board.failure.is_some() {
            return;
        }
        // Replicas do the same, so the first that waits on a rank speaks for all.
        let mut ranks: BTreeMap<u32, String> = BTreeMap::new();
        for (gpu, reasons) in waiting {
            ranks.entry(gpu.rank).or_insert_with(|| format!("{gpu}: {}", reasons.join(", ")));
        }
        let all: Vec<String> = ranks.into_values().collect();
        let error = Error::new(format!("deadlock: every GPU that has not ended waits; {}", all.join("; ")));
        board.failure = Some(error.help("`dualweave verify` says what is wrong with the plan"));
        self.wakes.iter().for_each(Condvar::notify_all);
    }
}

impl<T: Real> Board<T> {
    /// Whether a message is on offer.
    pub fn offered(&self, world: &World, from: Gpu, to: Gpu) -> bool {
        self.offers.contains_key(&(world.index(from), world.index(to)))
    }

    /// The GPUs of the group whose parcel has not come.
    pub fn absent(&self, world: &World, to: Gpu) -> Vec<Gpu> {
        let missing = |from: &Gpu| {
            let queue = self.parcels.get(&(world.index(*from), world.index(to)));
            queue.is_none_or(VecDeque::is_empty)
        };
        world.group(to).filter(missing).collect()
    }

    /// The members of a collective that have not come to it.
    pub fn missing(&self, task: Task, members: &[Gpu]) -> Vec<Gpu> {
        let brought = self.collectives.get(&task);
        let here = |place: usize| brought.is_some_and(|brought| brought.get(place).is_some_and(Option::is_some));
        (0..).zip(members).filter(|&(place, _)| !here(place)).map(|(_, &member)| member).collect()
    }

    /// Whether all gradients are reduced.
    pub fn is_complete(&self) -> bool {
        self.total.is_some()
    }
}
