//! What a link carries, as a function of the SMs that drive it.

use serde::{Deserialize, Serialize};

use super::curve::at;
use crate::job::cluster::Link;
use crate::units::{Bytes, Nanos};

/// NVLink rate of one SM: 45.8 GB/s, peer writes by a one-CTA kernel between two H100s, measured (two CTAs: 91.1).
pub const NVLINK_PER_SM_GB_S: f64 = 45.8;
/// Network rate of one SM: DeepEP v2 publishes 61 GB/s with 6 SMs (SM90, ConnectX-7, 4 nodes of 8). That counts copies for
/// all nodes that a token visits, also its own, to which nothing is sent: of four nodes, three quarters go over the network.
pub const NETWORK_PER_SM_GB_S: f64 = 61.0 * 0.75 / 6.0;

/// A link as one GPU sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
}

impl LinkModel {
    /// From a job's link; `per_sm_gb_s` where the job gives none.
    pub fn new(link: &Link, per_sm_gb_s: f64) -> Self {
        Self {
            latency: Nanos::from_secs(link.latency_us / 1e6),
            byte_s: link.gb_s * 1e9,
            per_sm_byte_s: link.per_sm_gb_s.unwrap_or(per_sm_gb_s) * 1e9,
            measured: link.measured.iter().map(|&(sms, gb_s)| (sms, gb_s * 1e9)).collect(),
        }
    }

    /// Bytes/s with `sms` SMs. Measured points are joined by straight lines, from (0, 0), and stay flat after the last.
    pub fn rate(&self, sms: u32) -> f64 {
        match self.measured.is_empty() {
            true => self.byte_s.min(f64::from(sms) * self.per_sm_byte_s),
            false => at(&self.measured, sms),
        }
    }

    /// How long `bytes` take with `sms` SMs; nothing if there is nothing to send, else at least a nanosecond, so that times
    /// alone say that what was sent comes before what was received.
    pub fn duration(&self, bytes: Bytes, sms: u32) -> Nanos {
        if bytes == Bytes::ZERO {
            return Nanos::ZERO;
        }
        (self.latency + Nanos::from_secs(bytes.as_f64() / self.rate(sms))).max(Nanos(1))
    }
}
