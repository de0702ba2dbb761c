//! How much a computation and an exchange that run at the same time slow each other, beyond sharing the SMs.
//!
//! Five causes, each a term of its own: both use HBM; tensor-core kernels also lose L2 and power; the SMs of an exchange wait
//! longer for their loads; a full link carries less; a copy engine's reads wait for HBM. Each is scaled by how much the other
//! side uses, so a slow link or a small exchange slows nobody much. Constants are measured
//! (`docs/measurements/h100x2_overlap.csv`). Not here: the wait of an exchange for SMs that a kernel does not
//! leave free (a plan gives both sides SMs of their own), and that two computations or two exchanges slow each other.

use serde::{Deserialize, Serialize};

use super::Machine;
use super::measured::scaled;
use crate::ir::{Kernel, Work};
use crate::job::cluster::MeasuredInterference;
use crate::units::{Bytes, Nanos};

/// What overlapped ops lose to each other. Shares from 0; all zero: nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Interference {
    /// HBM traffic that a kernel beside loses for each byte that an exchange reads or writes.
    pub hbm: f64,
    /// Longer arithmetic of tensor-core kernels, for the share of HBM bandwidth that an exchange reads and writes: 0.1 makes
    /// products 2 % longer beside an exchange that uses 20 % of HBM. The cause is L2 and power, which go with the bytes, not
    /// with the share of the link: so the term also holds for links of other speeds.
    pub tensor: f64,
    /// Share of an exchange's SMs that is lost, because loads take longer, beside computation that leaves HBM alone.
    pub sms: f64,
    /// The same beside computation that takes all of HBM; in between in proportion to its HBM traffic.
    pub sms_hbm: f64,
    /// Share of NVLink's rate that SMs cannot reach beside computation, however many they are.
    pub link: f64,
    /// Share of a copy engine's rate that is lost beside computation that takes all of HBM; less in proportion.
    pub copy_hbm: f64,
}

impl Interference {
    /// Ops slow nobody: for measured durations, which have it in them, and for tests.
    pub const NONE: Self = Self { hbm: 0.0, tensor: 0.0, sms: 0.0, sms_hbm: 0.0, link: 0.0, copy_hbm: 0.0 };

    /// Measured on two H100 SXM. All numbers are medians; `tests/interference.rs` shows how far single rows are off.
    ///
    /// - `hbm`: large adds and copies beside peer writes and a copy engine, both ways and one way, lose 1.06 to 1.34 bytes
    ///   for each byte, of the data sheet's 3350 GB/s.
    /// - `tensor`: bf16 and FP8 products told to leave the exchange its SMs, and fused attention beside a copy engine:
    ///   -0.2 to 1.3. Small products that live in L2 lose most; the largest gain (power holds them back, and fewer SMs save
    ///   some). NVLink full both ways by copy engine is 27 % of what passes get of HBM: products take 8 % longer. The same products
    ///   of zeros, which draw less power, lose half of that: so about half is power.
    /// - `sms`: peer writes by 4 and 8 CTAs beside products, which take 10 to 20 % of HBM, run like 0.74 times as many alone.
    /// - `sms_hbm`: by 8 to 32 CTAs beside adds and copies, like 0.23 times as many. Nothing keeps such kernels off the SMs
    ///   of the exchange, so this has in it that SMs were shared.
    /// - `link`: 16 and more CTAs beside products, both ways: 317 GB/s of 351.
    /// - `copy_hbm`: 0.76 of its rate beside adds and copies, 0.93 to 1.00 beside tensor-core kernels.
    pub const H100: Self = Self { hbm: 1.21, tensor: 0.31, sms: 0.19, sms_hbm: 0.77, link: 0.10, copy_hbm: 0.25 };

    /// [`Self::H100`] with what a job measured in its place, one by one.
    pub fn new(measured: &MeasuredInterference) -> Self {
        Self {
            hbm: measured.hbm.unwrap_or(Self::H100.hbm),
            tensor: measured.tensor.unwrap_or(Self::H100.tensor),
            sms: measured.sms.unwrap_or(Self::H100.sms),
            sms_hbm: measured.sms_hbm.unwrap_or(Self::H100.sms_hbm),
            link: measured.link.unwrap_or(Self::H100.link),
            copy_hbm: measured.copy_hbm.unwrap_or(Self::H100.copy_hbm),
        }
    }
}

impl Machine {
    /// How long `work` with `sms` SMs takes if `other` with `other_sms` ran beside it all the time; never less than
    /// [`Self::duration`]. One of the two must be a computation and the other an exchange; two of a kind are said to take
    /// their plain duration, since no plan runs them beside each other.
    pub fn duration_beside(&self, work: &Work, sms: u32, other: &Work, other_sms: u32) -> Nanos {
        let plain = self.modelled(work, sms);
        let beside = match (work, other) {
            (Work::Compute(kernels), Work::Exchange { .. } | Work::Copy { .. }) => {
                // How much the exchange is slowed in turn follows from what the computation uses when alone.
                let use_of_hbm = self.hbm_use_of_exchange(other, other_sms, self.hbm_use_of_kernels(kernels, sms));
                kernels.iter().map(|kernel| self.kernel_beside(kernel, sms, use_of_hbm)).sum()
            }
            (Work::Exchange { .. } | Work::Copy { .. }, Work::Compute(kernels)) => {
                self.exchange_beside(work, sms, self.hbm_use_of_kernels(kernels, other_sms))
            }
            _ => plain,
        };
        scaled(beside.max(plain), self.measured.factor(work, sms))
    }

    /// Like [`Self::kernel`], beside an exchange that uses the share `use_of_hbm` of HBM's bandwidth.
    fn kernel_beside(&self, kernel: &Kernel, sms: u32, use_of_hbm: f64) -> Nanos {
        let loss = &self.interference;
        let arithmetic = self.arithmetic_secs(kernel, sms) * (1.0 + loss.tensor * use_of_hbm);
        // Where both want more than there is, each gets at least its half.
        let left = (1.0 - loss.hbm * use_of_hbm).max(0.5);
        let traffic = kernel.bytes.as_f64() / (self.hbm_byte_s * left);
        Nanos::from_secs(arithmetic.max(traffic)) + self.launch * u64::from(kernel.launches)
    }

    /// How long an exchange takes beside computation that uses the share `use_of_hbm` of HBM's bandwidth.
    fn exchange_beside(&self, work: &Work, sms: u32, use_of_hbm: f64) -> Nanos {
        let loss = &self.interference;
        // A plan from elsewhere may say more than all is lost.
        let left = |loss: f64| (1.0 - loss).max(0.0);
        match work {
            Work::Compute(_) => self.modelled(work, sms),
            Work::Exchange { nvlink, network, uplink } => {
                let driving = f64::from(sms) * left(loss.sms + (loss.sms_hbm - loss.sms) * use_of_hbm);
                let most = self.nvlink.rate(u32::MAX) * left(loss.link);
                let over_nvlink = self.nvlink.exchange_at(*nvlink, self.nvlink.rate_driven(driving).min(most));
                // A network card is far from full use of HBM, so only the SMs that feed it count.
                let over_network = self.network.exchange_at(*network, self.network.rate_driven(driving));
                over_nvlink.max(over_network).max(self.over_uplinks(*uplink))
            }
            Work::Copy { nvlink } => {
                self.nvlink.duration_at(*nvlink, self.nvlink.copy_byte_s * left(loss.copy_hbm * use_of_hbm))
            }
        }
    }

    /// Share of HBM's bandwidth that kernels take with nothing beside them: their traffic over their time.
    fn hbm_use_of_kernels(&self, kernels: &[Kernel], sms: u32) -> f64 {
        let bytes: Bytes = kernels.iter().map(|kernel| kernel.bytes).sum();
        let time: Nanos = kernels.iter().map(|kernel| self.kernel(kernel, sms)).sum();
        self.hbm_use(bytes, time)
    }

    /// Share of HBM's bandwidth that an exchange takes, slowed by computation that takes the share `beside`. It reads what it
    /// sends and writes what it receives, which is as much.
    fn hbm_use_of_exchange(&self, work: &Work, sms: u32, beside: f64) -> f64 {
        let sent = match work {
            Work::Compute(_) => Bytes::ZERO,
            Work::Exchange { nvlink, network, .. } => *nvlink + *network,
            Work::Copy { nvlink } => *nvlink,
        };
        self.hbm_use(sent * 2, self.exchange_beside(work, sms, beside))
    }

    fn hbm_use(&self, bytes: Bytes, time: Nanos) -> f64 {
        match bytes == Bytes::ZERO || time == Nanos::ZERO {
            true => 0.0,
            false => (bytes.as_f64() / (time.secs() * self.hbm_byte_s)).min(1.0),
        }
    }
}
