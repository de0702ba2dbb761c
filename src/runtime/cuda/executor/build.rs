//! Builds the ranks of a process: their memory, parameters and streams, and what is between them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::blocks::SCRATCH;
use super::network::{self, Links, Network};
use super::rank::{Norm, Rank};
use super::stage::Stage;
use super::store::{REGIONS, Region, Store};
use super::sync::{self, Peer, Sync, Way};
use super::table::{self, Table};
use super::unit::Sizes;
use super::{forms, places};
use crate::error::{Error, Result};
use crate::ir::{Recompute, Unit};
use crate::plan::{ALIGNMENT, Plan, StreamId, Task, rank_streams};
use crate::runtime::cluster::Cluster;
use crate::runtime::cuda::exchange::packed::Window;
use crate::runtime::cuda::signals::{link, meeting};
use crate::runtime::cuda::stream::Priority;
use crate::runtime::cuda::{Device, Event, Memory, Slice, Stream, exchange, product};
use crate::runtime::host::Shape;
use crate::runtime::host::executor::StageParameters;
use crate::runtime::host::parameters::initialise;
use crate::runtime::messages::{Message, uses};
use crate::runtime::said;
use crate::runtime::world::{Gpu, World};

/// Builds ranks.
pub struct Builder<'a> {
    /// What is run.
    pub plan: &'a Plan,
    /// Of its model.
    pub shape: &'a Shape,
    /// Who is where.
    pub world: &'a World,
    /// By rank of this process.
    pub devices: &'a [Arc<Device>],
    /// Of the initial parameters.
    pub seed: u64,
}

/// What is between the ranks of this process, or between one and those of others; each by rank of this process.
struct Between {
    syncs: Vec<BTreeMap<u32, Sync>>,
    tables: Vec<Option<Table>>,
    members: Vec<Option<exchange::Member>>,
    links: Vec<Links>,
    /// `None`: they meet, which is made when their tables are there.
    norms: Vec<Option<Norm>>,
}

impl Builder<'_> {
    /// The ranks of this process: all, or one where each is a process.
    ///
    /// # Errors
    /// If memory does not suffice, the plan's messages do not meet, or what is between ranks cannot be made.
    pub fn ranks(&self, cluster: Option<&Cluster>) -> Result<Vec<Rank>> {
        let mut gpus: Vec<Gpu> = self.world.gpus().collect();
        if let Some(cluster) = cluster {
            gpus = gpus.into_iter().skip(cluster.seat().process as usize).take(1).collect();
        }
        // In threads: a large model has many initial values.
        let stages = thread::scope(|scope| {
            let on = gpus.iter().zip(self.devices);
            let threads: Vec<_> = on.map(|(&gpu, device)| scope.spawn(move || self.stages(gpu, device))).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| Err(Error::new(format!("panicked: {}", said(&*panic)))))
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        });
        let mut stages = stages?;
        let mut between = match cluster {
            Some(cluster) => match self.to_processes(cluster, gpus[0], &stages[0]) {
                Ok(between) => between,
                Err(error) => {
                    // As after a step that fails.
                    std::mem::forget(stages);
                    return Err(error);
                }
            },
            None => Between {
                syncs: self.syncs(&gpus, &stages)?,
                tables: self.tables(&gpus, &stages)?,
                members: self.members(&gpus)?,
                links: self.links(&gpus)?,
                norms: gpus.iter().map(|_| None).collect(),
            },
        };
        let mut ranks = Vec::new();
        for (own, &gpu) in gpus.iter().enumerate() {
            let device = &self.devices[own];
            let of = &self.plan.ranks[gpu.rank as usize];
            let stages = std::mem::take(&mut stages[own]);
            let (places, bytes) = places::blocks(&of.items, &stages);
            let memory_of = |block| stages.values().map(|stage: &Stage| stage.bytes(block)).max().unwrap_or_default();
            let bytes_of = SCRATCH.map(|block| memory_of(block).next_multiple_of(ALIGNMENT as usize));
            let memory = Memory::new(device, bytes + bytes_of.iter().sum::<usize>())?;
            let mut next = bytes;
            let scratch = bytes_of.map(|bytes| {
                next += bytes;
                memory.all::<u8>().part(next - bytes..next)
            });
            let (slots, ring_bytes) = places::rings(of);
            let (senders, receivers) = std::mem::take(&mut between.links[own]);
            let ops = self.plan.programs.iter().map(|program| program.ops.len()).max().unwrap_or_default();
            let events = |count: usize| (0..count).map(|_| Event::new(device, false)).collect::<Result<Vec<_>>>();
            let mut streams = BTreeMap::new();
            // What the end of a step and its start need is always there.
            for id in rank_streams(&of.items).into_iter().chain([StreamId::Compute, StreamId::Sync]) {
                let priority = if id == StreamId::Compute { Priority::Low } else { Priority::High };
                streams.insert(id, Stream::new(device, priority)?);
            }
            let (micro_batches, losses) = (self.plan.layout.micro_batches as usize, self.shape.losses());
            let tokens = self.tokens() * micro_batches;
            ranks.push(Rank {
                gpu,
                comm: Stream::new(device, Priority::High)?,
                products: product::Products::new(device)?,
                member: Mutex::new(between.members[own].take()),
                exchanges: self.world.ep > 1,
                syncs: std::mem::take(&mut between.syncs[own]),
                table: between.tables[own].take(),
                senders,
                receivers,
                targets: vec![Slice::none(); of.items.len()],
                messages: self.messages(),
                memory,
                places,
                scratch,
                rings: Memory::new(device, ring_bytes)?,
                slots,
                uses: uses(of, gpu.rank, &self.plan.layout),
                ended: events(of.items.len())?.into_iter().map(|event| (event, AtomicBool::new(false))).collect(),
                op_ended: events(ops)?,
                joints: [Event::new(device, false)?, Event::new(device, false)?],
                data: (0..=losses).map(|_| Memory::of::<u32>(device, tokens)).collect::<Result<_>>()?,
                losses: Memory::of::<f32>(device, micro_batches * losses)?,
                squares: [
                    Memory::of::<f32>(device, 1)?,
                    Memory::of::<f32>(device, self.world.count())?,
                    Memory::of::<f32>(device, 1)?,
                ],
                norm: between.norms[own].take(),
                index: self.world.index(gpu),
                streams,
                stages,
                device: Arc::clone(device),
            });
        }
        if cluster.is_none() {
            let boards: Vec<Slice<f32>> = ranks.iter().map(|rank| rank.squares[1].all()).collect();
            for (rank, meeting) in ranks.iter_mut().zip(meeting(self.devices)?) {
                rank.norm = Some(Norm::Memory(Mutex::new(meeting), boards.clone()));
            }
        }
        self.aim(&mut ranks)?;
        if cluster.is_none() {
            self.open_windows(&mut ranks);
        }
        Ok(ranks)
    }

    /// Members of an exchange know where blocks and scratch of the others lie.
    fn open_windows(&self, ranks: &mut [Rank]) {
        let memory: Vec<Slice<u8>> = ranks.iter().map(|rank| rank.memory.all()).collect();
        for rank in ranks {
            let all = self.world.group(rank.gpu).map(|gpu| memory[self.world.index(gpu)]).collect();
            let window = Window { own: memory[self.world.index(rank.gpu)], all };
            if let Some(member) = rank.member.get_mut().unwrap_or_else(PoisonError::into_inner) {
                member.open(vec![window]);
            }
        }
    }

    /// What is between the one rank of this process and those of others.
    fn to_processes(&self, cluster: &Cluster, gpu: Gpu, stages: &BTreeMap<u32, Stage>) -> Result<Between> {
        let device = &self.devices[0];
        let others = stages.keys().flat_map(|&stage| REGIONS.map(|region| self.members_of(gpu, stage, region)));
        let mut partners: Vec<usize> = others.flatten().map(|other| self.world.index(other)).collect();
        partners.sort_unstable();
        partners.dedup();
        partners.retain(|&partner| partner != self.world.index(gpu));
        let Network { links, group, sync, norm } = Network::new(cluster, device, self.plan, self.world, &partners)?;

        let stream = Stream::new(device, Priority::Low)?;
        let needed = stages.iter().flat_map(|(&stage, held)| {
            REGIONS.map(|region| {
                let members = self.members_of(gpu, stage, region).len();
                sync::staging(region, held.store.region(region).len(), members)
            })
        });
        let staging = Arc::new(Memory::of::<f32>(device, needed.max().unwrap_or_default())?);
        let way = || Way::Network(Arc::clone(&sync), Arc::clone(&staging));
        let mut syncs = BTreeMap::new();
        for (&stage, held) in stages {
            let members = self.with_stage(gpu, stage);
            let members = members.map(|(region, members, mine)| (region, self.processes(members), mine));
            let sharded = self.is_sharded(stage);
            syncs.insert(stage, Sync::new(device, &stream, &held.store, members, way(), sharded)?);
        }
        let readers = table::readers(self.plan, self.shape);
        let copies = self.copies(&readers);
        let table = copies
            .iter()
            .position(|&member| member == gpu)
            .map(|mine| Table::new(device, &stream, (&readers, stages), (self.processes(copies.clone()), mine), way()));
        let member = match (&self.shape.model.moe, group) {
            (None, _) => None,
            (Some(moe), Some(group)) => {
                let (experts, top_k) = (moe.experts as usize, moe.top_k as usize);
                Some(exchange::member(group, experts, self.tokens(), top_k, self.shape.hidden())?)
            }
            (Some(moe), None) => {
                let devices = [Arc::clone(device)];
                exchange::group(&devices, moe.experts as usize, self.tokens(), moe.top_k as usize)?.pop()
            }
        };
        let norm = Norm::Network(Mutex::new(norm));
        Ok(Between {
            syncs: vec![syncs],
            tables: vec![table.transpose()?],
            members: vec![member],
            links: vec![links],
            norms: vec![Some(norm)],
        })
    }

    /// Whether the optimizer's work on a stage is shared.
    fn is_sharded(&self, stage: u32) -> bool {
        let gathers = |item: &crate::plan::Item| item.0 == Task::GatherParams(stage);
        self.plan.ranks.iter().flat_map(|rank| &rank.items).any(gathers)
    }

    /// Tokens of a micro-batch.
    fn tokens(&self) -> usize {
        self.plan.origin.micro_batch_size as usize * self.shape.sequence
    }

    /// By stage: values of the message that its F makes. Behind an MTP module there is one hidden state more.
    fn messages(&self) -> Vec<usize> {
        let mut states = 1;
        let stages = self.plan.stages.iter().map(|stage| {
            states += stage.units.iter().filter(|unit| matches!(unit, Unit::Mtp(_))).count();
            states * self.tokens() * self.shape.hidden()
        });
        stages.collect()
    }

    fn sizes(&self, gpu: Gpu) -> Sizes {
        let local = self.world.experts_at(self.world.place(gpu));
        let (experts, top_k) =
            self.shape.model.moe.as_ref().map_or((0, 0), |moe| (moe.experts as usize, moe.top_k as usize));
        let tokens = self.tokens();
        let capacity = exchange::most_rows(self.world.ep as usize, experts, tokens, top_k);
        let places = self.world.ep as usize;
        Sizes { tokens, capacity, local_experts: local.len(), first_expert: local.start, places, experts, top_k }
    }

    fn stages(&self, gpu: Gpu, device: &Arc<Device>) -> Result<BTreeMap<u32, Stage>> {
        let stream = Stream::new(device, Priority::Low)?;
        let mut stages = BTreeMap::new();
        for stage in self.plan.layout.stages_of(gpu.rank) {
            let of = &self.plan.stages[stage as usize];
            let (units, forms) = (&of.units, forms::Forms::of(self.plan, stage));
            // A whole layer has all else in it.
            let recompute = of.recompute.and(Recompute::NOTHING);
            let experts = self.world.experts_at(self.world.place(gpu));
            let mut initial = StageParameters::<f32>::zeros(self.shape, units, &experts);
            initialise(&mut initial, "", self.seed, self.shape.policy.master());
            let members = REGIONS.map(|region| self.members_of(gpu, stage, region).len());
            let store = Store::new(device, &stream, &initial, members)?;
            stages.insert(stage, Stage::new(self.shape, units, (self.sizes(gpu), forms, recompute), store)?);
        }
        Ok(stages)
    }

    /// The GPUs that have the same parameters of a region; of a table that one stage alone reads, none.
    fn members_of(&self, gpu: Gpu, stage: u32, region: Region) -> Vec<Gpu> {
        if region == Region::Table {
            let readers = table::readers(self.plan, self.shape);
            return if readers.contains(&stage) { self.copies(&readers) } else { Vec::new() };
        }
        let holders = self.world.holders(&self.plan.layout.holders(stage)).into_iter();
        let same = |other: &Gpu| !region.is_of_experts() || self.world.place(*other) == self.world.place(gpu);
        holders.filter(same).collect()
    }

    /// The GPUs that have a stage of these.
    fn copies(&self, readers: &[u32]) -> Vec<Gpu> {
        let has = |gpu: &Gpu| self.plan.layout.stages_of(gpu.rank).iter().any(|stage| readers.contains(stage));
        self.world.gpus().filter(has).collect()
    }

    /// Of each region that is reduced with its stage: its members, and the number of a GPU among them.
    fn with_stage(&self, gpu: Gpu, stage: u32) -> impl Iterator<Item = (Region, Vec<Gpu>, usize)> {
        REGIONS.into_iter().filter(|&region| region != Region::Table).map(move |region| {
            let members = self.members_of(gpu, stage, region);
            let mine = members.iter().position(|&member| member == gpu).unwrap_or_default();
            (region, members, mine)
        })
    }

    fn processes(&self, members: Vec<Gpu>) -> sync::Members {
        sync::Members::Network(members.into_iter().map(|member| self.world.index(member)).collect())
    }

    /// By GPU: its copies of the table, if several stages read it.
    fn tables(&self, gpus: &[Gpu], stages: &[BTreeMap<u32, Stage>]) -> Result<Vec<Option<Table>>> {
        let mut tables: Vec<Option<Table>> = gpus.iter().map(|_| None).collect();
        let readers = table::readers(self.plan, self.shape);
        let copies: Vec<usize> = self.copies(&readers).into_iter().map(|gpu| self.world.index(gpu)).collect();
        let devices: Vec<Arc<Device>> = copies.iter().map(|&index| Arc::clone(&self.devices[index])).collect();
        let peers: Vec<Peer> =
            copies.iter().filter_map(|&index| table::first(&readers, &stages[index])).map(Peer::of).collect();
        for (mine, (&index, meeting)) in copies.iter().zip(meeting(&devices)?).enumerate() {
            let device = &self.devices[index];
            let stream = Stream::new(device, Priority::Low)?;
            let (members, way) = ((sync::Members::Memory(peers.clone()), mine), Way::Memory(Mutex::new(meeting)));
            tables[index] = Some(Table::new(device, &stream, (&readers, &stages[index]), members, way)?);
        }
        Ok(tables)
    }

    /// By GPU and stage.
    fn syncs(&self, gpus: &[Gpu], stages: &[BTreeMap<u32, Stage>]) -> Result<Vec<BTreeMap<u32, Sync>>> {
        let mut syncs: Vec<BTreeMap<u32, Sync>> = gpus.iter().map(|_| BTreeMap::new()).collect();
        for stage in 0..self.plan.layout.stages {
            let holders = self.world.holders(&self.plan.layout.holders(stage));
            let devices: Vec<Arc<Device>> =
                holders.iter().map(|&gpu| Arc::clone(&self.devices[self.world.index(gpu)])).collect();
            let sharded = self.is_sharded(stage);
            for (&gpu, meeting) in holders.iter().zip(meeting(&devices)?) {
                let index = self.world.index(gpu);
                let store = |gpu: Gpu| stages[self.world.index(gpu)].get(&stage).map(|stage| &stage.store);
                let Some(own) = store(gpu) else { continue };
                let peers = self.with_stage(gpu, stage);
                let peers = peers.map(|(region, members, mine)| {
                    (region, sync::Members::Memory(members.into_iter().filter_map(store).map(Peer::of).collect()), mine)
                });
                let device = &self.devices[index];
                let stream = Stream::new(device, Priority::Low)?;
                let way = Way::Memory(Mutex::new(meeting));
                syncs[index].insert(stage, Sync::new(device, &stream, own, peers, way, sharded)?);
            }
        }
        Ok(syncs)
    }

    /// By GPU: its place in the exchange of its group.
    fn members(&self, gpus: &[Gpu]) -> Result<Vec<Option<exchange::Member>>> {
        let mut members: Vec<Option<exchange::Member>> = gpus.iter().map(|_| None).collect();
        let Some(moe) = &self.shape.model.moe else { return Ok(members) };
        for &first in gpus.iter().filter(|&&gpu| self.world.place(gpu) == 0) {
            let group: Vec<usize> = self.world.group(first).map(|gpu| self.world.index(gpu)).collect();
            let devices: Vec<Arc<Device>> = group.iter().map(|&index| Arc::clone(&self.devices[index])).collect();
            let made = exchange::group(&devices, moe.experts as usize, self.tokens(), moe.top_k as usize)?;
            for (index, member) in group.into_iter().zip(made) {
                members[index] = Some(member);
            }
        }
        Ok(members)
    }

    /// By GPU: links to and from the other ranks of its replica that it exchanges messages with.
    fn links(&self, gpus: &[Gpu]) -> Result<Vec<Links>> {
        let mut links: Vec<Links> = gpus.iter().map(|_| Links::default()).collect();
        for &gpu in gpus {
            for peer in network::receivers(self.plan, self.world.ranks, gpu.rank) {
                let (from, to) = (self.world.index(gpu), self.world.index(Gpu { rank: peer, ..gpu }));
                let (sender, receiver) = link(&self.devices[from], &self.devices[to])?;
                links[from].0.insert(peer, Mutex::new(sender));
                links[to].1.insert(gpu.rank, Mutex::new(receiver));
            }
        }
        Ok(links)
    }

    /// Sends know where the receive that they meet puts things, if it is of this process: the k-th to a rank meets the k-th there.
    fn aim(&self, ranks: &mut [Rank]) -> Result<()> {
        for index in 0..ranks.len() {
            let gpu = ranks[index].gpu;
            let mut sent: BTreeMap<u32, usize> = BTreeMap::new();
            for (item, of) in self.plan.ranks[gpu.rank as usize].items.iter().enumerate() {
                let Some((message, peer, true)) = Message::of(of.0) else { continue };
                let count = sent.entry(peer).or_default();
                let meets = self.plan.ranks.get(peer as usize).and_then(|rank| {
                    let mut receives = rank.items.iter().enumerate().filter(|(_, item)| {
                        Message::of(item.0).is_some_and(|(_, from, sent)| !sent && from == gpu.rank)
                    });
                    receives.nth(*count)
                });
                *count += 1;
                let unmet = || Error::new(format!("{} meets no receive", of.0));
                let (at, receive) = meets.ok_or_else(unmet)?;
                if Message::of(receive.0).is_none_or(|(theirs, _, _)| theirs != message) {
                    return Err(Error::new(format!("{} meets {}", of.0, receive.0)));
                }
                let there = Gpu { rank: peer, ..gpu };
                if let Some(other) = ranks.iter().find(|rank| rank.gpu == there) {
                    let value = other.uses[at].written.first().ok_or_else(unmet)?;
                    ranks[index].targets[item] = other.slot(value).cast();
                }
            }
        }
        Ok(())
    }
}
