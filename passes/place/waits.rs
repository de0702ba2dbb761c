//! Leaves only the waits that the streams do not give by themselves.

use crate::plan::{Item, rank_streams};

/// Removes from each item's `after` what its stream, or another wait, implies: an event is recorded and waited for only
/// where it orders something. Waits are left ascending.
pub fn prune(items: &mut [Item]) {
    let streams = rank_streams(items);
    let stream_of = |item: &Item| streams.binary_search(&item.0.stream()).unwrap_or(0);
    // ended[item][stream]: how far that stream has certainly come when the item ends, as the index after the last ended.
    let mut ended: Vec<Vec<u32>> = Vec::with_capacity(items.len());
    let mut last: Vec<Option<usize>> = vec![None; streams.len()];
    for at in 0..items.len() {
        let mine = stream_of(&items[at]);
        let mut known = last[mine].map_or_else(|| vec![0; streams.len()], |before| ended[before].clone());
        let mut wanted = std::mem::take(&mut items[at].1);
        // Later items first: what they waited for need not be waited for again.
        wanted.sort_unstable_by(|a, b| b.cmp(a));
        let mut kept: Vec<u32> = Vec::new();
        for wait in wanted {
            if wait < known[stream_of(&items[wait as usize])] {
                continue;
            }
            kept.push(wait);
            for (known, &other) in known.iter_mut().zip(&ended[wait as usize]) {
                *known = (*known).max(other);
            }
        }
        kept.reverse();
        items[at].1 = kept;
        known[mine] = at as u32 + 1;
        ended.push(known);
        last[mine] = Some(at);
    }
}
