//! What a link carries, as a function of the SMs that drive it.

use serde::{Deserialize, Serialize};

use super::curve::at;
use crate::job::cluster::Link;
use crate::units::{Bytes, Nanos};

/// NVLink rate of one SM: 45.8 GB/s, peer writes by a one-CTA kernel between two H100s, measured (two CTAs: 91.1).
pub const NVLINK_PER_SM_GB_S: f64 = 45.8;
/// Network rate of one SM: DeepEP v2 publishes 61 GB/s with 6 SMs (SM90, ConnectX-7, 4 nodes of 8). That counts copies for
/// all nodes that a token visits, also its own, to which nothing is sent: of four nodes, three quarters go over the network.
pub const NETWORK_PER_SM_GB_S: f64 = 61.0 * 0.75 / 6.0 / EXCHANGE_EFFICIENCY;
/// Share of plain writes that dispatch, combine and collectives get through, which have rows to gather, flags to wait for and peers that
/// are late: 0.86, the median of DeepEP's published bandwidths over what the links would carry (10 of 0.77 to 0.91, without the row
/// that [`NETWORK_PER_SM_GB_S`] comes from). The runtime's own dispatch between two H100s reaches 0.88 of plain writes
/// (`docs/measurements/h100_kernels.txt`).
pub const EXCHANGE_EFFICIENCY: f64 = 0.86;
/// Rate of copies by copy engine over NVLink, as a multiple of what all SMs drive: 391.4 GB/s, both ways at once, against 367,
/// both measured on two H100 (`docs/measurements/h100x2_overlap.csv`, `tests/data/machine/h100x2_link_bandwidth.csv`).
pub const NVLINK_COPY: f64 = 391.4 / 367.0;
/// A contiguous message over the network leaves by the network card, whoever started it: at the link's rate.
pub const NETWORK_COPY: f64 = 1.0;

/// A link as one GPU sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LinkModel {
    /// Time of an empty message.
    pub latency: Nanos,
    /// What the link carries in one direction, bytes/s.
    pub byte_s: f64,
    /// What one SM drives, bytes/s, where nothing was measured.
    pub per_sm_byte_s: f64,
    /// Measured (SMs, bytes/s), ascending in both; replaces the two rates where not empty.
    pub measured: Vec<(u32, f64)>,
    /// What contiguous pieces get that go without SMs, by copy engine or network card, bytes/s.
    pub copy_byte_s: f64,
}

impl LinkModel {
    /// From a job's link; `per_sm_gb_s` where the job gives none, and `copy` times what all SMs drive where it gives no rate
    /// for copies.
    pub fn new(link: &Link, per_sm_gb_s: f64, copy: f64) -> Self {
        let most = link.measured.last().map_or(link.gb_s, |&(_, gb_s)| gb_s);
        Self {
            latency: Nanos::from_secs(link.latency_us / 1e6),
            byte_s: link.gb_s * 1e9,
            per_sm_byte_s: link.per_sm_gb_s.unwrap_or(per_sm_gb_s) * 1e9,
            measured: link.measured.iter().map(|&(sms, gb_s)| (sms, gb_s * 1e9)).collect(),
            copy_byte_s: link.copy_gb_s.unwrap_or(most * copy) * 1e9,
        }
    }

    /// Bytes/s that `sms` SMs write. Measured points are joined by straight lines, from (0, 0), and stay flat after the last.
    pub fn rate(&self, sms: u32) -> f64 {
        self.rate_driven(f64::from(sms))
    }

    /// The same with a part of an SM: what slowed SMs drive is what fewer would.
    pub(super) fn rate_driven(&self, sms: f64) -> f64 {
        match self.measured.is_empty() {
            true => self.byte_s.min(sms * self.per_sm_byte_s),
            false => at(&self.measured, sms),
        }
    }

    /// How long an exchange of `bytes` takes with `sms` SMs; nothing if there is nothing to send, else at least a nanosecond, so that
    /// times alone say that what was sent comes before what was received.
    pub fn duration(&self, bytes: Bytes, sms: u32) -> Nanos {
        self.exchange_at(bytes, self.rate(sms))
    }

    /// How long an exchange takes where plain writes run at `byte_s` bytes/s.
    pub(super) fn exchange_at(&self, bytes: Bytes, byte_s: f64) -> Nanos {
        self.duration_at(bytes, byte_s * EXCHANGE_EFFICIENCY)
    }

    /// How long plain writes at `byte_s` bytes/s take.
    pub(super) fn duration_at(&self, bytes: Bytes, byte_s: f64) -> Nanos {
        if bytes == Bytes::ZERO {
            return Nanos::ZERO;
        }
        (self.latency + Nanos::from_secs(bytes.as_f64() / byte_s)).max(Nanos(1))
    }
}
