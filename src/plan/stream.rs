//! Which stream of its rank an item runs on.

use serde::{Deserialize, Serialize};

use super::{Item, Task};

/// A stream of a rank. Items of one stream run one after the other, in list order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StreamId {
    /// Chunk programs (whose exchanges run on a second stream, inside) and the optimizer.
    Compute,
    /// Receives from a rank: one communicator for each ordered pair of ranks.
    From(u32),
    /// Sends to a rank.
    To(u32),
    /// Gradient reduction and parameter gathering.
    Sync,
}

impl Task {
    /// The stream that the item runs on.
    pub fn stream(self) -> StreamId {
        match self {
            Self::F(..) | Self::B(..) | Self::I(..) | Self::W(..) | Self::FB(..) | Self::Update(_) => StreamId::Compute,
            Self::SendAct(.., to) | Self::SendGrad(.., to) => StreamId::To(to),
            Self::RecvAct(.., from) | Self::RecvGrad(.., from) => StreamId::From(from),
            Self::ReduceGrads(_) | Self::GatherParams(_) => StreamId::Sync,
        }
    }
}

/// The streams that a rank's items use, sorted.
pub fn rank_streams(items: &[Item]) -> Vec<StreamId> {
    let mut streams: Vec<StreamId> = items.iter().map(|item| item.0.stream()).collect();
    streams.sort_unstable();
    streams.dedup();
    streams
}
