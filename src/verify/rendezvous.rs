//! Rules `unmatched-transfer` and `collective-order`: who meets whom. What was matched is handed to `deadlock`.

use std::collections::BTreeMap;

use crate::ir::ChunkId;
use crate::plan::{Plan, Task};

use super::meeting::Meeting;
use super::rank::{after, before};
use super::report::{Report, Rule, Violation};

/// An item of the plan: rank and index.
pub type At = (u32, usize);

/// A message: which value of which chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Message {
    Act(u32, u32),
    Grad(u32, u32),
}

/// One end of a channel: items and the messages that they carry, in order.
#[derive(Default)]
struct End {
    items: Vec<usize>,
    messages: Vec<Message>,
}

impl End {
    /// Reports and drops what is transferred again. A message has one channel, so all its repetitions are in this list.
    fn drop_repeated(&mut self, plan: &Plan, rank: u32, report: &mut Report) {
        let mut order: Vec<usize> = (0..self.messages.len()).collect();
        order.sort_by_key(|&at| self.messages[at]);
        let again = order.windows(2).filter(|pair| self.messages[pair[0]] == self.messages[pair[1]]);
        let mut again: Vec<usize> = again.map(|pair| pair[1]).collect();
        again.sort_unstable();
        for &at in &again {
            report.add(Rule::UnmatchedTransfer, || {
                let message = "repeats a transfer that the rank has made already".to_owned();
                Violation::item(Rule::UnmatchedTransfer, plan, rank, self.items[at], message)
            });
        }
        let keep = |at: usize| again.binary_search(&at).is_err();
        self.items = (0..).zip(&self.items).filter(|&(at, _)| keep(at)).map(|(_, &item)| item).collect();
        self.messages = (0..).zip(&self.messages).filter(|&(at, _)| keep(at)).map(|(_, &message)| message).collect();
    }
}

/// Checks all transfers. Gives the pairs that meet: the n-th send of a channel and its n-th receive, those without a
/// partner left out.
pub fn transfers(plan: &Plan, report: &mut Report) -> Vec<(At, At)> {
    // By (from, to): sends, receives.
    let mut channels: BTreeMap<(u32, u32), (End, End)> = BTreeMap::new();
    for (number, rank) in (0..).zip(&plan.ranks) {
        for (index, item) in rank.items.iter().enumerate() {
            let Some(Transfer { send, message, peer }) = Transfer::of(item.0) else { continue };
            let (from, to) = if send { (number, peer) } else { (peer, number) };
            if let Some(wrong) = misdirected(plan, message, from, to) {
                report.add(Rule::UnmatchedTransfer, || {
                    Violation::item(Rule::UnmatchedTransfer, plan, number, index, wrong)
                });
                continue;
            }
            let channel = channels.entry((from, to)).or_default();
            let end = if send { &mut channel.0 } else { &mut channel.1 };
            end.items.push(index);
            end.messages.push(message);
        }
    }
    let mut met = Vec::new();
    for ((from, to), (sends, receives)) in &mut channels {
        sends.drop_repeated(plan, *from, report);
        receives.drop_repeated(plan, *to, report);
        let (sends, receives) = (&*sends, &*receives);
        let meeting = Meeting::new(&sends.messages, &receives.messages);
        for (number, end, alone, other) in [
            (*from, sends, &meeting.only_left, format!("rank {to} never receives it")),
            (*to, receives, &meeting.only_right, format!("rank {from} never sends it")),
        ] {
            for &at in alone {
                report.add(Rule::UnmatchedTransfer, || {
                    Violation::item(Rule::UnmatchedTransfer, plan, number, end.items[at], other.clone())
                });
            }
        }
        if let Some((send, receive)) = meeting.first_swap(&sends.messages, &receives.messages) {
            let (send, receive) = (sends.items[send], receives.items[receive]);
            report.add(Rule::UnmatchedTransfer, || {
                let task = |rank: u32, item: usize| plan.ranks[rank as usize].items[item].0;
                let message = format!(
                    "meets {} (rank {from}, item {send}): the two ranks do not transfer in the same order",
                    task(*from, send)
                );
                Violation::item(Rule::UnmatchedTransfer, plan, *to, receive, message)
            });
        }
        met.extend(meeting.met.iter().map(|&(a, b)| ((*from, sends.items[a]), (*to, receives.items[b]))));
    }
    met
}

/// Checks the order of collectives. Gives the pairs that meet: the n-th collective of a communicator on its first member,
/// and on each other one.
pub fn collectives(plan: &Plan, report: &mut Report) -> Vec<(At, At)> {
    // Members of each communicator that has several, with each one's collectives in order.
    type Members = BTreeMap<u32, (Vec<usize>, Vec<Task>)>;
    let mut communicators: BTreeMap<Vec<u32>, Members> = BTreeMap::new();
    for (number, rank) in (0..).zip(&plan.ranks) {
        for (index, item) in rank.items.iter().enumerate() {
            let (Task::ReduceGrads(stage) | Task::GatherParams(stage)) = item.0 else { continue };
            let holders = plan.layout.holders(stage);
            // Elsewhere it is `completeness` that has something to say.
            if holders.len() > 1 && holders.contains(&number) {
                let member = communicators.entry(holders).or_default().entry(number).or_default();
                member.0.push(index);
                member.1.push(item.0);
            }
        }
    }
    let mut met = Vec::new();
    for members in communicators.values() {
        let mut members = members.iter();
        let Some((first, (first_items, first_tasks))) = members.next() else { continue };
        for (member, (items, tasks)) in members {
            // One that is missing or doubled is `completeness`'s to report.
            let meeting = Meeting::new(first_tasks, tasks);
            if let Some((at_first, at)) = meeting.first_swap(first_tasks, tasks) {
                report.add(Rule::CollectiveOrder, || {
                    let message = format!(
                        "meets {} (rank {first}, item {}): the two ranks run the collectives of their communicator in different orders",
                        first_tasks[at_first], first_items[at_first]
                    );
                    Violation::item(Rule::CollectiveOrder, plan, *member, items[at], message)
                });
            }
            met.extend(meeting.met.iter().map(|&(a, b)| ((*first, first_items[a]), (*member, items[b]))));
        }
    }
    met
}

/// An item as a transfer.
struct Transfer {
    /// Or a receive.
    send: bool,
    message: Message,
    peer: u32,
}

impl Transfer {
    fn of(task: Task) -> Option<Self> {
        let (send, message, peer) = match task {
            Task::SendAct(s, m, peer) => (true, Message::Act(s, m), peer),
            Task::SendGrad(s, m, peer) => (true, Message::Grad(s, m), peer),
            Task::RecvAct(s, m, peer) => (false, Message::Act(s, m), peer),
            Task::RecvGrad(s, m, peer) => (false, Message::Grad(s, m), peer),
            _ => return None,
        };
        Some(Self { send, message, peer })
    }
}

/// What is wrong with a message between these ranks, if anything: it comes from the rank that runs its chunk, and goes to
/// the rank that runs the next stage (or, for a gradient, the one before).
fn misdirected(plan: &Plan, message: Message, from: u32, to: u32) -> Option<String> {
    let layout = &plan.layout;
    let (chunk, reader, what) = match message {
        Message::Act(s, m) => (ChunkId::new(s, m), after(layout, ChunkId::new(s, m)), "activation"),
        Message::Grad(s, m) => (ChunkId::new(s, m), before(ChunkId::new(s, m)), "gradient"),
    };
    let maker = layout.rank_of(chunk);
    let Some(reader) = reader else { return Some(format!("no stage reads the {what} of stage {}", chunk.stage)) };
    let needs = layout.rank_of(reader);
    match (maker == from, needs == to) {
        (true, true) => None,
        (false, _) => Some(format!("this {what} is made on rank {maker}, not on rank {from}")),
        (true, false) => Some(format!("this {what} is needed on rank {needs}, not on rank {to}")),
    }
}
