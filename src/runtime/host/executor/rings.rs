//! The message buffers of a GPU: slots that are used in turn, and know what they hold.
//!
//! A compute item takes the slots that it writes as it starts, and lets go of those that it reads as it ends. A slot that is
//! taken while something is in it, or that holds something else than is read, shows that the plan is wrong.

use std::collections::BTreeMap;

use super::Run;
use super::chunk::States;
use crate::plan::{PlanRank, RingOf};
use crate::runtime::messages::{Message, Value};

/// What is in a slot.
enum Slot<T> {
    /// It is being written, or read.
    Taken(Message),
    Full(Message, States<T>),
}

/// All rings of a GPU.
pub struct Rings<T> {
    /// Slots of each.
    sizes: BTreeMap<RingOf, u32>,
    /// Those that are not free.
    slots: BTreeMap<(RingOf, usize), Slot<T>>,
}

impl<T> Rings<T> {
    /// All slots free.
    pub fn new(rank: &PlanRank) -> Self {
        Self { sizes: rank.rings.iter().map(|ring| (ring.of, ring.slots)).collect(), slots: BTreeMap::new() }
    }

    /// Takes a slot, to write to it.
    ///
    /// # Errors
    /// If something is in it, or there is no such slot.
    pub fn acquire(&mut self, value: Value) -> Run<()> {
        let Value { ring, slot, message } = value;
        if self.sizes.get(&ring).is_none_or(|&slots| slot >= slots as usize) {
            return Err(format!("needs a slot of {ring:?}, which the rank has not"));
        }
        match self.slots.insert((ring, slot), Slot::Taken(message)) {
            None => Ok(()),
            Some(Slot::Taken(there) | Slot::Full(there, _)) => {
                Err(format!("writes {message} into a slot of {ring:?} that still holds {there}"))
            }
        }
    }

    /// Writes to a slot that was taken for it.
    ///
    /// # Errors
    /// If it was not.
    pub fn fill(&mut self, value: Value, states: States<T>) -> Run<()> {
        let Value { ring, slot, message } = value;
        match self.slots.insert((ring, slot), Slot::Full(message, states)) {
            Some(Slot::Taken(there)) if there == message => Ok(()),
            _ => Err(format!("writes {message} into a slot of {ring:?} that is not its own")),
        }
    }

    /// Reads a slot, which stays taken.
    ///
    /// # Errors
    /// If it holds something else, or nothing.
    pub fn read(&mut self, value: Value) -> Run<States<T>> {
        let Value { ring, slot, message } = value;
        match self.slots.insert((ring, slot), Slot::Taken(message)) {
            Some(Slot::Full(there, states)) if there == message => Ok(states),
            Some(Slot::Full(there, _)) => Err(format!("reads {message}, but the slot of {ring:?} holds {there}")),
            Some(Slot::Taken(_)) | None => Err(format!("reads {message}, but the slot of {ring:?} holds nothing yet")),
        }
    }

    /// Lets go of a slot.
    pub fn release(&mut self, value: Value) {
        self.slots.remove(&(value.ring, value.slot));
    }
}
