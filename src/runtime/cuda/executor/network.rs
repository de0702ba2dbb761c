//! What is between the rank of this process and those of others: NCCL's communicators. Each is for one stream of its members: a link for
//! each ordered pair of ranks that messages go between, one for the exchange of an expert-parallel group, one for gradients and
//! parameters, and one for the norm of all gradients.
//!
//! All processes make theirs in the same order, one after the other, so that nobody waits in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::runtime::cluster::Cluster;
use crate::runtime::cuda::nccl::{Communicator, UniqueId, unique_id};
use crate::runtime::cuda::signals::{Receiver, Sender};
use crate::runtime::cuda::stream::Priority;
use crate::runtime::cuda::watch::Watch;
use crate::runtime::cuda::{Device, Stream};
use crate::runtime::messages::Message;
use crate::runtime::world::{Gpu, World};

/// SMs for the messages between two ranks. As many moved 142 GB/s over NVLink in a kernel of ours (`docs/measurements`); what NCCL moves
/// with them was not measured.
const LINK_SMS: u32 = 4;
/// SMs for gradients and parameters, beside which little else runs.
const SYNC_SMS: u32 = 16;
/// SMs for a number of each process.
const NORM_SMS: u32 = 1;

/// Links by rank at the other end.
pub type Links = (BTreeMap<u32, Mutex<Sender>>, BTreeMap<u32, Mutex<Receiver>>);

/// The communicators of a process.
pub struct Network {
    /// To other ranks of its replica, and from them.
    pub links: Links,
    /// Of the group that shares experts.
    pub group: Option<Communicator>,
    /// Members are processes, by number.
    pub sync: Arc<Mutex<Communicator>>,
    /// As `sync`.
    pub norm: Communicator,
}

/// What a communicator is for.
enum Purpose {
    Link(Gpu, Gpu),
    Group(Gpu),
    Sync,
    Norm,
}

/// The ranks that one sends messages to, in its replica.
pub fn receivers(plan: &Plan, ranks: u32, rank: u32) -> BTreeSet<u32> {
    let items = &plan.ranks[rank as usize].items;
    let sent = items.iter().filter_map(|item| Message::of(item.0).filter(|&(_, _, sent)| sent));
    sent.map(|(_, peer, _)| peer).filter(|&peer| peer < ranks).collect()
}

impl Network {
    /// Meets the other processes. `partners`: the processes that this one has parameters in common with.
    ///
    /// # Errors
    /// If two processes have the same GPU, NCCL is missing or refuses, or a process fails or is late.
    pub fn new(
        cluster: &Cluster,
        device: &Arc<Device>,
        plan: &Plan,
        world: &World,
        partners: &[usize],
    ) -> Result<Self> {
        const WHO: &str = "start";
        own_gpus(cluster, device)?;
        let me = cluster.seat().process as usize;
        let purposes = purposes(plan, world);
        let ids = identifiers(cluster, &purposes)?;
        let watch = Watch::with_alarm(cluster.limit(), Some(Arc::clone(cluster.alarm())));
        let stream = Stream::new(device, Priority::High)?;
        let gpus: Vec<Gpu> = world.gpus().collect();
        let (mut links, mut group, mut sync, mut norm) = (Links::default(), None, None, None);
        for ((purpose, members), id) in purposes.iter().zip(ids) {
            let Some(member) = members.iter().position(|&process| process == me) else { continue };
            let place = (member, members.len());
            let make = |sms: u32, what: String| {
                watch.at(WHO, || format!("NCCL's communicator for {what}"));
                Communicator::new(device, id, place, sms, what, &watch)
            };
            let others: Vec<usize> = (0..members.len()).filter(|&other| other != member).collect();
            match *purpose {
                Purpose::Link(from, to) => {
                    let mut made = make(LINK_SMS, format!("messages from {from} to {to}"))?;
                    if gpus[me] == from {
                        made.connect(&stream, (&others, &[]), false, &watch)?;
                        links.0.insert(to.rank, Mutex::new(Sender::to_process(made)));
                    } else {
                        made.connect(&stream, (&[], &others), false, &watch)?;
                        links.1.insert(from.rank, Mutex::new(Receiver::from_process(made)));
                    }
                }
                Purpose::Group(first) => {
                    let what = format!("the exchange of experts of the group of {first}");
                    let mut made = make(exchange_sms(plan), what)?;
                    made.connect(&stream, (&others, &others), false, &watch)?;
                    group = Some(made);
                }
                Purpose::Sync => {
                    let mut made = make(SYNC_SMS, "gradients and parameters".to_owned())?;
                    made.connect(&stream, (partners, partners), false, &watch)?;
                    sync = Some(made);
                }
                Purpose::Norm => {
                    let mut made = make(NORM_SMS, "the norm of the gradients".to_owned())?;
                    made.connect(&stream, (&[], &[]), true, &watch)?;
                    norm = Some(made);
                }
            }
        }
        watch.done(WHO);
        let absent = || Error::new("a process that is no member of all");
        let (sync, norm) = (sync.ok_or_else(absent)?, norm.ok_or_else(absent)?);
        Ok(Self { links, group, sync: Arc::new(Mutex::new(sync)), norm })
    }
}

/// All communicators, with their members' processes, in the order in which they are made.
fn purposes(plan: &Plan, world: &World) -> Vec<(Purpose, Vec<usize>)> {
    let mut purposes = Vec::new();
    for gpu in world.gpus() {
        for peer in receivers(plan, world.ranks, gpu.rank) {
            let to = Gpu { rank: peer, ..gpu };
            purposes.push((Purpose::Link(gpu, to), vec![world.index(gpu), world.index(to)]));
        }
    }
    if world.ep > 1 {
        for first in world.gpus().filter(|&gpu| world.place(gpu) == 0) {
            purposes.push((Purpose::Group(first), world.group(first).map(|gpu| world.index(gpu)).collect()));
        }
    }
    let all: Vec<usize> = (0..world.count()).collect();
    purposes.extend([(Purpose::Sync, all.clone()), (Purpose::Norm, all)]);
    purposes
}

/// The SMs that the plan's exchanges may take at most.
fn exchange_sms(plan: &Plan) -> u32 {
    let ops = plan.programs.iter().flat_map(|program| &program.ops);
    ops.filter(|op| op.work.is_exchange()).map(|op| op.sms).max().unwrap_or(1)
}

/// Of each communicator: its first member makes it, and all are told.
fn identifiers(cluster: &Cluster, purposes: &[(Purpose, Vec<usize>)]) -> Result<Vec<UniqueId>> {
    let me = cluster.seat().process as usize;
    let mut mine = Vec::new();
    for _ in purposes.iter().filter(|(_, members)| members.first() == Some(&me)) {
        mine.extend(unique_id()?.0);
    }
    let made = cluster.share(mine, "the making of NCCL's identifiers")?;
    let mut rest: Vec<&[u8]> = made.iter().map(Vec::as_slice).collect();
    let of = |(_, members): &(Purpose, Vec<usize>)| {
        let from = members.first().and_then(|&first| rest.get_mut(first));
        let split = from.and_then(|from| {
            from.split_first_chunk::<128>().map(|(id, behind)| (*id, std::mem::replace(from, behind)))
        });
        split.map(|(id, _)| UniqueId(id)).ok_or_else(|| Error::new("a process has made too few of NCCL's identifiers"))
    };
    purposes.iter().map(of).collect()
}

/// Each process has a GPU of its own.
fn own_gpus(cluster: &Cluster, device: &Device) -> Result<()> {
    let all = cluster.share(device.uuid()?.to_vec(), "the opening of GPUs")?;
    let same = all
        .iter()
        .enumerate()
        .find_map(|(second, uuid)| Some((all[..second].iter().position(|other| other == uuid)?, second)));
    let Some((first, second)) = same else { return Ok(()) };
    let host = cluster.all().get(second).map_or("", |who| &who.host);
    Err(Error::new(format!("processes {first} and {second} have the same GPU of host {host}"))
        .help("each process needs a GPU of its own: its number there is LOCAL_RANK, or with srun SLURM_LOCALID"))
}
