//! How many slots each ring of a rank needs.

use super::messages::{Message, Messages, receive_positions};
use super::{Input, ring};
use crate::plan::{Ring, RingOf};
use crate::units::{Bytes, Nanos};

/// The rings of `rank`, each with the fewest slots that never make the replayed timetable wait. Where actions take no time
/// at all, moments alone do not say which comes first: the order of the rank's list must find a free slot too.
pub fn rings(input: &Input, messages: &Messages, rank: u32) -> Vec<Ring> {
    let mut rings = Vec::new();
    let spans = &input.replay.spans;
    for (&(from, to), channel) in &messages.channels {
        let bytes = channel.iter().map(|message| message_bytes(input, message.gradient, message.chunk.stage)).max();
        let bytes = bytes.unwrap_or_default();
        let maker = |k: usize| spans[from as usize][channel[k].maker];
        let hop = |message: &Message| {
            let stage = message.chunk.stage;
            input.problem.hop(if message.gradient { stage - 1 } else { stage }, message.chunk.micro_batch)
        };
        let reader = |k: usize| spans[to as usize][channel[k].reader];
        if to == rank {
            // Taken when the transfer can start, free when its reader has ended.
            let taken: Vec<Nanos> = (0..channel.len()).map(|k| maker(k).end).collect();
            let freed: Vec<Nanos> = (0..channel.len()).map(|k| reader(k).end).collect();
            let readers: Vec<usize> = channel.iter().map(|message| message.reader).collect();
            let in_order = slots(&receive_positions(channel), &readers, true);
            rings.push(ring(RingOf::Inbox(from), slots(&taken, &freed, false).max(in_order), bytes));
        }
        if from == rank {
            // Taken when its maker starts, free when the transfer has ended.
            let taken: Vec<Nanos> = (0..channel.len()).map(|k| maker(k).start).collect();
            let freed: Vec<Nanos> = (0..channel.len()).map(|k| maker(k).end + hop(&channel[k])).collect();
            let makers: Vec<usize> = channel.iter().map(|message| message.maker).collect();
            let in_order = slots(&makers, &makers, true);
            rings.push(ring(RingOf::Outbox(to), slots(&taken, &freed, false).max(in_order), bytes));
        }
    }
    for (&(_, gradient, stage), handoffs) in messages.handoffs.iter().filter(|((at, ..), _)| *at == rank) {
        let taken: Vec<usize> = handoffs.iter().map(|message| message.maker).collect();
        let freed: Vec<usize> = handoffs.iter().map(|message| message.reader).collect();
        let of = if gradient { RingOf::HandoffGrad(stage) } else { RingOf::HandoffAct(stage) };
        rings.push(ring(of, slots(&taken, &freed, true), message_bytes(input, gradient, stage)));
    }
    rings.sort_by_key(|ring| ring.of);
    rings
}

/// Bytes of the activation that a stage sends on, or of the gradient that it sends back.
fn message_bytes(input: &Input, gradient: bool, stage: u32) -> Bytes {
    let stage = &input.stages[stage as usize];
    if gradient { stage.input } else { stage.output }
}

/// The fewest slots with which the k-th value finds its slot free: `freed[k - slots] <= taken[k]` for every k, or `<`
/// where `strictly` (both are actions of one rank, and one action cannot free a slot for itself). `taken` ascends.
fn slots<T: Ord>(taken: &[T], freed: &[T], strictly: bool) -> usize {
    let needed = freed.iter().enumerate().map(|(k, end)| {
        let first_free = taken.partition_point(|start| if strictly { start <= end } else { start < end });
        first_free.saturating_sub(k)
    });
    needed.max().unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::slots;

    proptest::proptest! {
        /// Against trying every number of slots.
        #[test]
        fn fewest_slots(mut taken in proptest::collection::vec(0u32..30, 1..12), lengths in proptest::collection::vec(0u32..15, 12)) {
            taken.sort_unstable();
            let freed: Vec<u32> = taken.iter().zip(&lengths).map(|(start, length)| start + length).collect();
            for strictly in [false, true] {
                let works = |n: usize| (n..taken.len()).all(|k| if strictly { freed[k - n] < taken[k] } else { freed[k - n] <= taken[k] });
                let fewest = (1..=taken.len()).find(|&n| works(n)).unwrap();
                proptest::prop_assert_eq!(slots(&taken, &freed, strictly), fewest);
            }
        }
    }
}
