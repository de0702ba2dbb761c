//! The end of a step: gradients reduced over the GPUs that hold the same parameters, the norm of all of them, the optimizer's step, and
//! parameters gathered where its work is shared.
//!
//! Of each region every member has a share, the same for all arrays. It adds up its share over all members, in their order, in place of
//! its own gradients; with a sharded optimizer it updates that share, and the others copy it. Without, the others copy the sums and
//! everyone updates all.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::store::{REGIONS, Region, Store};
use crate::error::Result;
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

/// A region and who has it.
struct Shares {
    region: Region,
    /// In their order.
    peers: Vec<Peer>,
    /// Number of this GPU among them.
    mine: usize,
    /// Addresses of what this GPU adds up.
    sources: Memory,
}

impl Shares {
    /// The elements that a member adds up: all, of what is added up by everyone.
    fn share(&self, store: &Store, member: usize) -> Range<usize> {
        let Range { start, end } = store.region(self.region);
        let each = (end - start) / self.peers.len();
        start + member * each..start + (member + 1) * each
    }
}

/// What a stage does at the end of a step, on one GPU.
pub struct Sync {
    shares: Vec<Shares>,
    sharded: bool,
    meeting: Mutex<Meeting>,
    /// Sums of the loads of experts.
    loads: Memory,
    squares_scratch: Memory,
}

impl Sync {
    /// `peers`: by region, the members and the number of this GPU among them. `sharded`: the optimizer's work is shared.
    pub fn new(
        device: &Arc<Device>,
        stream: &Stream,
        store: &Store,
        peers: [(Vec<Peer>, usize); 4],
        meeting: Meeting,
        sharded: bool,
    ) -> Result<Self> {
        let mut shares = Vec::new();
        let mut longest = 0;
        for (region, (peers, mine)) in REGIONS.into_iter().zip(peers) {
            if store.region(region).is_empty() {
                continue;
            }
            let sources = Memory::of::<u64>(device, peers.len())?;
            let mut shares_of = Shares { region, peers, mine, sources };
            let range = match region {
                Region::Balance => store.region(region),
                _ => shares_of.share(store, mine),
            };
            longest = longest.max(range.len());
            let addresses: Vec<u64> =
                shares_of.peers.iter().map(|peer| peer.gradients.part(range.clone()).address()).collect();
            shares_of.sources = Memory::of::<u64>(device, addresses.len())?;
            shares_of.sources.all::<u64>().write(stream, &addresses)?;
            shares.push(shares_of);
        }
        Ok(Self {
            shares,
            sharded,
            meeting: Mutex::new(meeting),
            loads: Memory::of::<f32>(device, store.region(Region::Balance).len())?,
            squares_scratch: Memory::of::<f32>(device, optimizer::square_sum_scratch(longest))?,
        })
    }

    /// Adds up the gradients; the squares of this GPU's share of the sums are added to `squares`.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn reduce(&self, stream: &Stream, sms: u32, store: &Store, squares: Slice<f32>, watch: &Watch) -> Result<()> {
        self.meet(stream, watch)?;
        for shares in &self.shares {
            let sources = shares.sources.all::<u64>();
            if shares.region == Region::Balance {
                reduce::sum(stream, sms, sources, 0, self.loads.all())?;
                continue;
            }
            let sum = store.gradients().part(shares.share(store, shares.mine));
            if shares.peers.len() > 1 {
                reduce::sum(stream, sms, sources, 0, sum)?;
            }
            optimizer::square_sum(stream, sms, sum, self.squares_scratch.all(), squares)?;
        }
        if self.sharded {
            return Ok(());
        }
        self.meet(stream, watch)?;
        self.copy_shares(stream, store, |peer| peer.gradients, store.gradients())?;
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
        for shares in &self.shares {
            if shares.region == Region::Balance {
                let bias = store.parameters().part(store.region(Region::Balance));
                self.balance(stream, store, bias, balance_rate)?;
                continue;
            }
            let range = if self.sharded { shares.share(store, shares.mine) } else { store.region(shares.region) };
            let (parameters, gradient) =
                (store.parameters().part(range.clone()), store.gradients().part(range.clone()));
            let moments = store.moments().map(|moment| moment.part(range.clone()));
            let copy = store.copy().part(range);
            let decay = if shares.region == Region::Vectors { 0.0 } else { decay };
            optimizer::adamw(stream, sms, step, parameters, moments, gradient, copy, decay, squares)?;
        }
        Ok(())
    }

    /// Each layer's biases by its own loads.
    fn balance(&self, stream: &Stream, store: &Store, bias: Slice<f32>, rate: f32) -> Result<()> {
        let start = store.region(Region::Balance).start;
        let loads = self.loads.all::<f32>();
        for (name, place) in store.tensors() {
            if name.ends_with(".balance") {
                let range = place.start - start..place.end - start;
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
        self.copy_shares(stream, store, |peer| peer.copy, store.copy())?;
        // Norms read their gains in fp32.
        self.copy_shares(stream, store, |peer| peer.parameters, store.parameters())
    }

    fn copy_shares<E: crate::runtime::cuda::Element>(
        &self,
        stream: &Stream,
        store: &Store,
        of: impl Fn(&Peer) -> Slice<E>,
        to: Slice<E>,
    ) -> Result<()> {
        for shares in self.shares.iter().filter(|shares| shares.region != Region::Balance) {
            for (member, peer) in shares.peers.iter().enumerate().filter(|&(member, _)| member != shares.mine) {
                let range = shares.share(store, member);
                to.part(range.clone()).copy_from(stream, of(peer).part(range))?;
            }
        }
        Ok(())
    }

    fn meet(&self, stream: &Stream, watch: &Watch) -> Result<()> {
        // Only the stream of reductions uses it.
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner).meet(stream, watch)
    }
}
