//! The end of a step: gradients reduced over the GPUs that hold the same parameters, the norm of all of them, the optimizer's step, and
//! parameters gathered where its work is shared.
//!
//! Of each region every member has a share, the same for all arrays. It adds up its share over all members, in their order, in place of
//! its own gradients; with a sharded optimizer it updates that share, and the others copy it. Without, the others copy the sums and
//! everyone updates all.
//!
//! Members of this process are read where they are. Those of other processes send what a member is to add up, which it keeps beside its own,
//! so sums have the same order and the same bits; and then the sums.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::store::{REGIONS, Region, Store};
use crate::error::Result;
use crate::runtime::cuda::nccl::{Communicator, Transfer};
use crate::runtime::cuda::ops::optimizer::{self, Step};
use crate::runtime::cuda::ops::reduce;
use crate::runtime::cuda::signals::Meeting;
use crate::runtime::cuda::watch::Watch;
use crate::runtime::cuda::{Bf16, Device, Memory, Slice, Stream};

/// The arrays of another member.
#[derive(Clone, Copy)]
pub struct Peer {
    /// Its gradients.
    pub gradients: Slice<f32>,
    /// Its parameters in fp32.
    pub parameters: Slice<f32>,
    /// Its parameters in bf16.
    pub copy: Slice<Bf16>,
}

impl Peer {
    /// The arrays of a store.
    pub fn of(store: &Store) -> Self {
        Self { gradients: store.gradients(), parameters: store.parameters(), copy: store.copy() }
    }
}

/// Who has a region, in their order.
pub enum Members {
    /// GPUs of this process.
    Memory(Vec<Peer>),
    /// Processes.
    Network(Vec<usize>),
}

impl Members {
    fn count(&self) -> usize {
        match self {
            Self::Memory(peers) => peers.len(),
            Self::Network(processes) => processes.len(),
        }
    }
}

/// How a stage's members come to each other.
pub enum Way {
    /// They meet, and read each other's memory.
    Memory(Mutex<Meeting>),
    /// All processes, and where what they send is kept: as much as [`staging`] says.
    Network(Arc<Mutex<Communicator>>, Arc<Memory>),
}

/// f32 elements that what other processes send takes, of a region of `elements` with so many members.
pub fn staging(region: Region, elements: usize, members: usize) -> usize {
    let each = if region == Region::Balance { elements } else { elements / members.max(1) };
    each * members.saturating_sub(1)
}

/// A region and who has it.
struct Shares {
    region: Region,
    members: Members,
    /// Number of this GPU among them.
    mine: usize,
    /// Addresses of what this GPU adds up.
    sources: Memory,
}

impl Shares {
    /// The elements that a member adds up: its share, or all, of what is added up by everyone.
    fn added(&self, store: &Store, member: usize) -> Range<usize> {
        match self.region {
            Region::Balance => store.region(self.region),
            _ => self.share(store, member),
        }
    }

    /// Where what another process has sent to be added up is kept; nowhere, what is this GPU's own.
    fn kept(&self, member: usize, each: usize) -> Option<Range<usize>> {
        let place = member - usize::from(member > self.mine);
        (member != self.mine).then(|| place * each..(place + 1) * each)
    }

    /// The processes of the other members, by member.
    fn others(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let processes = match &self.members {
            Members::Memory(_) => &[][..],
            Members::Network(processes) => processes,
        };
        processes.iter().copied().enumerate().filter(|&(member, _)| member != self.mine)
    }

    /// The elements of a member's share.
    fn share(&self, store: &Store, member: usize) -> Range<usize> {
        let Range { start, end } = store.region(self.region);
        let each = (end - start) / self.members.count();
        start + member * each..start + (member + 1) * each
    }
}

/// What a stage does at the end of a step, on one GPU.
pub struct Sync {
    shares: Vec<Shares>,
    sharded: bool,
    way: Way,
    /// Sums of the loads of experts.
    loads: Memory,
    squares_scratch: Memory,
}

impl Sync {
    /// `members`: of each region, with the number of this GPU among them. `sharded`: the optimizer's work is shared.
    pub fn new(
        device: &Arc<Device>,
        stream: &Stream,
        store: &Store,
        members: impl IntoIterator<Item = (Region, Members, usize)>,
        way: Way,
        sharded: bool,
    ) -> Result<Self> {
        let mut shares = Vec::new();
        let mut longest = 0;
        for (region, members, mine) in members {
            if store.region(region).is_empty() {
                continue;
            }
            let sources = Memory::of::<u64>(device, members.count())?;
            let of = Shares { region, members, mine, sources };
            let range = of.added(store, mine);
            longest = longest.max(range.len());
            let addresses: Vec<u64> = match (&of.members, &way) {
                (Members::Memory(peers), _) => {
                    peers.iter().map(|peer| peer.gradients.part(range.clone()).address()).collect()
                }
                (Members::Network(_), Way::Memory(_)) => Vec::new(),
                (Members::Network(processes), Way::Network(_, staging)) => (0..processes.len())
                    .map(|member| match of.kept(member, range.len()) {
                        Some(kept) => staging.all::<f32>().part(kept).address(),
                        None => store.gradients().part(range.clone()).address(),
                    })
                    .collect(),
            };
            of.sources.all::<u64>().write(stream, &addresses)?;
            shares.push(of);
        }
        Ok(Self {
            shares,
            sharded,
            way,
            loads: Memory::of::<f32>(device, store.region(Region::Balance).len())?,
            squares_scratch: Memory::of::<f32>(device, optimizer::square_sum_scratch(longest))?,
        })
    }

    /// Launches each kernel of the end of a step once, on nothing that counts. See [`super::rank::Rank::rehearse`].
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn rehearse(&self, stream: &Stream, sms: u32, step: &Step) -> Result<()> {
        const FEW: usize = 64;
        let memory = Memory::of::<f32>(stream.device(), 8 * FEW)?;
        let sources = Memory::of::<u64>(stream.device(), 1)?;
        let part = |number: usize| memory.all::<f32>().part(number * FEW..(number + 1) * FEW);
        memory.all::<u8>().fill_bytes(stream, 0)?;
        sources.all::<u64>().write(stream, &[part(0).address()])?;
        reduce::sum(stream, sms, sources.all(), 0, part(1))?;
        optimizer::square_sum(stream, sms, part(0), part(1), part(2).part(0..1))?;
        let (moments, copy) = ([part(1), part(2)], part(4).cast::<Bf16>().part(0..FEW));
        optimizer::adamw(stream, sms, step, part(0), moments, part(3), copy, 0.0, part(5).part(0..1))?;
        optimizer::balance(stream, part(6), part(7), 0.0)?;
        stream.synchronize()
    }

    /// Adds up the gradients; the squares of this GPU's share of the sums are added to `squares`.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reduce(&self, stream: &Stream, sms: u32, store: &Store, squares: Slice<f32>, watch: &Watch) -> Result<()> {
        self.meet(stream, watch)?;
        for shares in &self.shares {
            self.collect(stream, store, shares, watch)?;
            let sources = shares.sources.all::<u64>();
            if shares.region == Region::Balance {
                reduce::sum(stream, sms, sources, 0, self.loads.all())?;
                continue;
            }
            let sum = store.gradients().part(shares.share(store, shares.mine));
            if shares.members.count() > 1 {
                reduce::sum(stream, sms, sources, 0, sum)?;
            }
            optimizer::square_sum(stream, sms, sum, self.squares_scratch.all(), squares)?;
        }
        if self.sharded {
            return Ok(());
        }
        self.meet(stream, watch)?;
        self.copy_shares((stream, watch), store, |peer| peer.gradients, store.gradients())?;
        // Nobody clears its gradients before all have copied them: threads meet at the end of a step.
        Ok(())
    }

    /// The optimizer's step, of this GPU's shares or of everything. `squares`: of all gradients of the model.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn update(
        &self,
        stream: &Stream,
        sms: u32,
        store: &Store,
        (step, decay, balance_rate): (&Step, f32, f32),
        squares: Slice<f32>,
    ) -> Result<()> {
        for (region, range) in REGIONS.into_iter().zip(self.updated(store)).filter(|(_, range)| !range.is_empty()) {
            if region == Region::Balance {
                self.balance(stream, store, store.parameters().part(range), balance_rate)?;
                continue;
            }
            let (parameters, gradient) =
                (store.parameters().part(range.clone()), store.gradients().part(range.clone()));
            let moments = store.moments().map(|moment| moment.part(range.clone()));
            let copy = store.copy().part(range);
            let decay = if region.decays() { decay } else { 0.0 };
            optimizer::adamw(stream, sms, step, parameters, moments, gradient, copy, decay, squares)?;
        }
        Ok(())
    }

    /// The elements that this GPU updates.
    pub fn updated(&self, store: &Store) -> [Range<usize>; REGIONS.len()] {
        REGIONS.map(|region| self.updated_of(region, store))
    }

    /// A table of which other stages have copies is updated with each of them, all of it.
    fn updated_of(&self, region: Region, store: &Store) -> Range<usize> {
        match self.shares.iter().find(|shares| shares.region == region) {
            Some(shares) if self.sharded && region != Region::Balance => shares.share(store, shares.mine),
            _ => store.region(region),
        }
    }

    /// Each layer's biases by its own loads.
    fn balance(&self, stream: &Stream, store: &Store, bias: Slice<f32>, rate: f32) -> Result<()> {
        let start = store.region(Region::Balance).start;
        let loads = self.loads.all::<f32>();
        for (name, place) in store.tensors() {
            if name.ends_with(".balance") {
                let Range { start: first, end } = place.range();
                let range = first - start..end - start;
                optimizer::balance(stream, bias.part(range.clone()), loads.part(range), rate)?;
            }
        }
        Ok(())
    }

    /// Copies what the other members have updated.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn gather(&self, stream: &Stream, store: &Store, watch: &Watch) -> Result<()> {
        self.meet(stream, watch)?;
        self.copy_shares((stream, watch), store, |peer| peer.copy, store.copy())?;
        // Norms read their gains in fp32.
        self.copy_shares((stream, watch), store, |peer| peer.parameters, store.parameters())
    }

    /// Gets what other processes have made of what this member adds up, and sends them what is theirs.
    fn collect(&self, stream: &Stream, store: &Store, shares: &Shares, watch: &Watch) -> Result<()> {
        let Way::Network(all, staging) = &self.way else { return Ok(()) };
        let each = shares.added(store, shares.mine).len();
        let mut transfers = Vec::new();
        for (member, process) in shares.others() {
            let theirs = store.gradients().part(shares.added(store, member));
            transfers.push(Transfer::Send(theirs.cast(), process));
            transfers.extend(
                shares
                    .kept(member, each)
                    .map(|kept| Transfer::Receive(staging.all::<f32>().part(kept).cast(), process)),
            );
        }
        lock(all).transfer(stream, &transfers, watch)
    }

    fn copy_shares<E: crate::runtime::cuda::Element>(
        &self,
        (stream, watch): (&Stream, &Watch),
        store: &Store,
        of: impl Fn(&Peer) -> Slice<E>,
        to: Slice<E>,
    ) -> Result<()> {
        for shares in self.shares.iter().filter(|shares| shares.region != Region::Balance) {
            match (&shares.members, &self.way) {
                (Members::Memory(peers), _) => {
                    for (member, peer) in peers.iter().enumerate().filter(|&(member, _)| member != shares.mine) {
                        let range = shares.share(store, member);
                        to.part(range.clone()).copy_from(stream, of(peer).part(range))?;
                    }
                }
                (Members::Network(_), Way::Network(all, _)) => {
                    let mine = to.part(shares.share(store, shares.mine)).cast();
                    let transfers = shares.others().flat_map(|(member, process)| {
                        let theirs = to.part(shares.share(store, member)).cast();
                        [Transfer::Send(mine, process), Transfer::Receive(theirs, process)]
                    });
                    lock(all).transfer(stream, &transfers.collect::<Vec<_>>(), watch)?;
                }
                (Members::Network(_), Way::Memory(_)) => {}
            }
        }
        Ok(())
    }

    fn meet(&self, stream: &Stream, watch: &Watch) -> Result<()> {
        match &self.way {
            Way::Memory(meeting) => lock(meeting).meet(stream, watch),
            // What is sent is sent behind all that the stream was given before.
            Way::Network(..) => Ok(()),
        }
    }
}

/// Only the stream of reductions uses what is locked here.
fn lock<V>(of: &Mutex<V>) -> MutexGuard<'_, V> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
