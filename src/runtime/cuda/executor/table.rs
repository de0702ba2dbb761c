//! The embedding's table where several stages read it: with the embedding's own, those of MTP modules and of a head that is tied to it, which
//! have copies. The gradients of all copies are added up once all stages are reduced, in front of the norm of all gradients, which is no item
//! of a plan; then each copy is updated with its stage, and so all alike.
//!
//! A rank that has two such stages adds up theirs first, so among ranks there is one for each.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::stage::Stage;
use super::store::{Region, Store};
use super::sync::{Members, Sync, Way};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::runtime::cuda::ops::reduce;
use crate::runtime::cuda::watch::Watch;
use crate::runtime::cuda::{Device, Event, Memory, Slice, Stream};
use crate::runtime::host::Shape;
use crate::runtime::host::executor::reads_table;

/// The stages that read the table, if there are several.
pub fn readers(plan: &Plan, shape: &Shape) -> Vec<u32> {
    let stages = (0..).zip(&plan.stages).filter(|(_, stage)| reads_table(shape, &stage.units));
    let stages: Vec<u32> = stages.map(|(number, _)| number).collect();
    if stages.len() > 1 { stages } else { Vec::new() }
}

/// The store whose copy is added up with those of other ranks: of the first stage of a rank that reads the table.
pub fn first<'a>(readers: &[u32], stages: &'a BTreeMap<u32, Stage>) -> Option<&'a Store> {
    readers.iter().find_map(|stage| stages.get(stage)).map(|stage| &stage.store)
}

/// A rank's copies.
pub struct Table {
    /// Stages that have them.
    stages: Vec<u32>,
    /// Where their gradients lie.
    sources: Memory,
    /// Of the first one.
    sync: Sync,
    /// When the gradients are there, and when they are added up.
    joints: [Event; 2],
}

impl Table {
    /// `readers`: as [`readers`] says. `members`: the ranks that have copies, and the number of this one among them.
    ///
    /// # Errors
    /// If the rank has no such stage, or the driver refuses.
    pub fn new(
        device: &Arc<Device>,
        stream: &Stream,
        (readers, stages): (&[u32], &BTreeMap<u32, Stage>),
        (members, mine): (Members, usize),
        way: Way,
    ) -> Result<Self> {
        let store = first(readers, stages).ok_or_else(none)?;
        let own: Vec<u32> = readers.iter().copied().filter(|stage| stages.contains_key(stage)).collect();
        let addresses: Vec<u64> = own.iter().map(|stage| gradients(&stages[stage].store).address()).collect();
        let sources = Memory::of::<u64>(device, addresses.len())?;
        sources.all::<u64>().part(0..addresses.len()).write(stream, &addresses)?;
        Ok(Self {
            stages: own,
            sources,
            sync: Sync::new(device, stream, store, [(Region::Table, members, mine)], way, false)?,
            joints: [Event::new(device, false)?, Event::new(device, false)?],
        })
    }

    /// Adds up the gradients of all copies, behind what `compute` was given, on the stream of reductions; what `compute` is given next comes behind
    /// that. The squares of this GPU's share of the sums are added to `squares`.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reduce(
        &self,
        (compute, stream): (&Stream, &Stream),
        sms: u32,
        stages: &BTreeMap<u32, Stage>,
        squares: Slice<f32>,
        watch: &Watch,
    ) -> Result<()> {
        let mut stores = self.stages.iter().filter_map(|stage| stages.get(stage)).map(|stage| &stage.store);
        let first = stores.next().ok_or_else(none)?;
        self.joints[0].record(compute)?;
        stream.wait(&self.joints[0])?;
        if self.stages.len() > 1 {
            let sources = self.sources.all::<u64>().part(0..self.stages.len());
            reduce::sum(stream, sms, sources, 0, gradients(first))?;
        }
        self.sync.reduce(stream, sms, first, squares, watch)?;
        stores.try_for_each(|store| gradients(store).copy_from(stream, gradients(first)))?;
        self.joints[1].record(stream)?;
        compute.wait(&self.joints[1])
    }
}

fn gradients(store: &Store) -> Slice<f32> {
    store.gradients().part(store.region(Region::Table))
}

/// Cannot be: it is made for ranks that have one.
fn none() -> Error {
    Error::new("a rank without a stage that reads the embedding's table")
}
