//! Which items of different ranks meet: sends with receives, and the collectives of a stage's holders.

use std::collections::BTreeMap;

use super::references::refuse;
use crate::error::Result;
use crate::plan::{Plan, Task};
use crate::units::{Bytes, Nanos};

/// An item of a rank: (rank, index in its list).
pub type ItemId = (u32, u32);

/// Items that start and end together.
pub(super) struct Meeting {
    /// In the order of ranks; for a transfer the sender first.
    pub members: Vec<ItemId>,
    /// From the moment in which all are there.
    pub duration: Nanos,
}

/// A message from one rank to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The `Send` item.
    pub send: ItemId,
    /// The `Recv` item that it meets.
    pub receive: ItemId,
    /// Bytes of one GPU.
    pub bytes: Bytes,
}

/// Matches the k-th send from one rank to another with the k-th receive there.
///
/// # Errors
/// If one of the two is missing, or they are not of the same message. The plan's references must have been checked.
pub fn match_transfers(plan: &Plan) -> Result<Vec<Transfer>> {
    // By (sender, receiver): the sends, and the receives, in list order.
    let mut channels: BTreeMap<(u32, u32), [Vec<ItemId>; 2]> = BTreeMap::new();
    for (id, task) in items(plan) {
        match task {
            Task::SendAct(.., to) | Task::SendGrad(.., to) => channels.entry((id.0, to)).or_default()[0].push(id),
            Task::RecvAct(.., from) | Task::RecvGrad(.., from) => channels.entry((from, id.0)).or_default()[1].push(id),
            _ => {}
        }
    }
    let mut transfers = Vec::new();
    for ((from, to), [sends, receives]) in &channels {
        for k in 0..sends.len().max(receives.len()) {
            let (send, receive) = match (sends.get(k), receives.get(k)) {
                (Some(&send), Some(&receive)) => (send, receive),
                (Some(&send), None) => {
                    return Err(refuse_item(
                        plan,
                        send,
                        format_args!("never received: rank {to} has {k} receives from it"),
                    ));
                }
                (None, Some(&receive)) => {
                    return Err(refuse_item(
                        plan,
                        receive,
                        format_args!("never sent: rank {from} has {k} sends to it"),
                    ));
                }
                (None, None) => break,
            };
            let bytes = match (task(plan, send), task(plan, receive)) {
                (Task::SendAct(s, m, _), Task::RecvAct(t, n, _)) if (s, m) == (t, n) => plan.stages[s as usize].output,
                (Task::SendGrad(s, m, _), Task::RecvGrad(t, n, _)) if (s, m) == (t, n) => plan.stages[s as usize].input,
                (_, other) => {
                    let what =
                        format_args!("meets another message, {other} (rank {to}, item {})", receive.1).to_string();
                    return Err(refuse_item(plan, send, what)
                        .help("the k-th send from one rank to another meets the k-th receive there"));
                }
            };
            transfers.push(Transfer { send, receive, bytes });
        }
    }
    Ok(transfers)
}

/// All meetings of a plan, with their durations. Collectives run with all SMs: nothing else is left to run.
pub(super) fn meetings(plan: &Plan, transfers: &[Transfer]) -> Result<Vec<Meeting>> {
    let machine = &plan.machine;
    let gpus_per_rank = u64::from(plan.origin.dp) * u64::from(plan.origin.tp);
    let mut all: Vec<Meeting> = transfers
        .iter()
        .map(|transfer| {
            let hop = machine.hop(gpus_per_rank, transfer.send.0, transfer.receive.0);
            Meeting { members: vec![transfer.send, transfer.receive], duration: machine.transfer(transfer.bytes, hop) }
        })
        .collect();

    // By stage: the reductions and the gatherings of each holder, in list order.
    let mut collectives: BTreeMap<(u32, bool), BTreeMap<u32, Vec<ItemId>>> = BTreeMap::new();
    for (id, task) in items(plan) {
        let (Task::ReduceGrads(stage) | Task::GatherParams(stage)) = task else { continue };
        if !plan.layout.holders(stage).contains(&id.0) {
            return Err(refuse_item(plan, id, "the rank does not hold the stage"));
        }
        let key = (stage, matches!(task, Task::GatherParams(_)));
        collectives.entry(key).or_default().entry(id.0).or_default().push(id);
    }
    for ((stage, gather), of_rank) in &collectives {
        let holders = plan.layout.holders(*stage);
        let calls = |rank: &u32| of_rank.get(rank).map_or(&[][..], Vec::as_slice);
        let most = holders.iter().map(|rank| calls(rank).len()).max().unwrap_or(0);
        let plan_stage = &plan.stages[*stage as usize];
        let duration = machine.duration(if *gather { &plan_stage.gather } else { &plan_stage.reduce }, machine.sms);
        for k in 0..most {
            let members: Vec<ItemId> = holders.iter().filter_map(|rank| calls(rank).get(k).copied()).collect();
            if let Some(absent) = holders.iter().find(|rank| calls(rank).len() <= k) {
                return Err(refuse_item(
                    plan,
                    members[0],
                    format_args!("rank {absent}, which holds the stage, does not join"),
                ));
            }
            all.push(Meeting { members, duration });
        }
    }
    Ok(all)
}

fn items(plan: &Plan) -> impl Iterator<Item = (ItemId, Task)> + '_ {
    let lists = (0..).zip(&plan.ranks);
    lists.flat_map(|(rank, list)| (0..).zip(&list.items).map(move |(item, entry)| ((rank, item), entry.0)))
}

fn task(plan: &Plan, (rank, item): ItemId) -> Task {
    plan.ranks[rank as usize].items[item as usize].0
}

fn refuse_item(plan: &Plan, id: ItemId, what: impl std::fmt::Display) -> crate::Error {
    refuse(id.0 as usize, id.1 as usize, task(plan, id), what)
}
