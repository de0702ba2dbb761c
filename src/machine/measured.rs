//! Measured times in place of the model's.
//!
//! What was measured is kept as factors: measured over modelled, by SMs. An op that was measured takes its own. What was not (a part of the
//! tokens, say) takes that of the measured op with the same kinds of kernel and the nearest size, or else that of all measured ops together:
//! otherwise what nobody has measured would look better than what somebody has.

use serde::{Deserialize, Serialize};

use super::Machine;
use crate::ir::{Kernel, Work};
use crate::job::profile::Profile;
use crate::units::Nanos;

/// Factors on modelled times. By default there are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Ascending in work.
    works: Vec<Factors>,
    /// Of what computes and is like none of these.
    computation: Vec<(u32, f64)>,
    /// Of such exchanges.
    exchange: Vec<(u32, f64)>,
}

/// Factors of one work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Factors {
    /// What was measured.
    work: Work,
    /// (SMs, measured over modelled time), ascending; straight lines between, flat outside.
    factors: Vec<(u32, f64)>,
}

impl Measured {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    /// What a profile says about a machine that has no factors yet.
    pub(super) fn new(profile: &Profile, machine: &Machine) -> Self {
        let mut works: Vec<Factors> = Vec::new();
        for op in &profile.ops {
            let modelled = |sms| machine.modelled(&op.work, sms).as_f64();
            let points = op.points.iter().filter(|point| modelled(point.sms) > 0.0);
            let factors: Vec<_> = points.map(|point| (point.sms, point.time.as_f64() / modelled(point.sms))).collect();
            if !factors.is_empty() {
                works.push(Factors { work: op.work.clone(), factors });
            }
        }
        works.sort_by(|one, other| one.work.cmp(&other.work));
        let all = |exchanges: bool| -> Vec<(u32, f64)> {
            let of: Vec<&Factors> = works.iter().filter(|of| of.work.is_exchange() == exchanges).collect();
            let mut sms: Vec<u32> = of.iter().flat_map(|of| of.factors.iter().map(|&(sms, _)| sms)).collect();
            sms.sort_unstable();
            sms.dedup();
            let at = |sms: u32| {
                let (mut measured, mut all) = (0.0, 0.0);
                for of in &of {
                    let modelled = machine.modelled(&of.work, sms).as_f64();
                    measured += modelled * between(&of.factors, sms);
                    all += modelled;
                }
                (all > 0.0).then(|| (sms, measured / all))
            };
            sms.into_iter().filter_map(at).collect()
        };
        let (computation, exchange) = (all(false), all(true));
        Self { works, computation, exchange }
    }

    /// The least factor that any work can take.
    pub fn least(&self) -> f64 {
        let of_works = self.works.iter().flat_map(|of| &of.factors);
        let all = of_works.chain(&self.computation).chain(&self.exchange).map(|&(_, factor)| factor);
        let least = all.fold(f64::INFINITY, f64::min);
        // What is like nothing that was measured takes no factor.
        if self.computation.is_empty() || self.exchange.is_empty() { least.min(1.0) } else { least }
    }

    /// Measured over modelled time.
    pub(super) fn factor(&self, work: &Work, sms: u32) -> f64 {
        if self.works.is_empty() {
            return 1.0;
        }
        if let Ok(at) = self.works.binary_search_by(|of| of.work.cmp(work)) {
            return between(&self.works[at].factors, sms);
        }
        let apart = |of: &&Factors| {
            let (mine, theirs) = (size(work), size(&of.work));
            if mine > theirs { mine / theirs } else { theirs / mine }
        };
        let like = self.works.iter().filter(|of| alike(&of.work, work));
        let nearest = like.min_by(|one, other| apart(one).total_cmp(&apart(other)));
        match nearest {
            Some(of) => between(&of.factors, sms),
            None if work.is_exchange() => between(&self.exchange, sms),
            None => between(&self.computation, sms),
        }
    }
}

/// Whether two works are the same kinds of kernel in one order, or exchanges by the same means.
fn alike(one: &Work, other: &Work) -> bool {
    match (one, other) {
        (Work::Compute(one), Work::Compute(other)) => {
            let rates = |kernels: &[Kernel]| kernels.iter().map(|kernel| kernel.rate).collect::<Vec<_>>();
            rates(one) == rates(other)
        }
        (Work::Exchange { .. }, Work::Exchange { .. }) | (Work::Copy { .. }, Work::Copy { .. }) => true,
        _ => false,
    }
}

/// FLOPs, or bytes where there are none; at least 1.
fn size(work: &Work) -> f64 {
    let bytes = match work {
        Work::Compute(kernels) => kernels.iter().map(|kernel| kernel.bytes.as_f64()).sum(),
        Work::Exchange { nvlink, network, .. } => nvlink.as_f64() + network.as_f64(),
        Work::Copy { nvlink } => nvlink.as_f64(),
    };
    let flops = work.flops().as_f64();
    f64::max(if flops > 0.0 { flops } else { bytes }, 1.0)
}

/// The value at `sms` of straight lines through points, flat outside of them; 1 if there are none.
fn between(points: &[(u32, f64)], sms: u32) -> f64 {
    let after = points.partition_point(|&(at, _)| at < sms);
    match (after.checked_sub(1).map(|before| points[before]), points.get(after)) {
        (Some((from, low)), Some(&(to, high))) => {
            low + (high - low) * (f64::from(sms) - f64::from(from)) / (f64::from(to) - f64::from(from))
        }
        (Some((_, value)), None) | (None, Some(&(_, value))) => value,
        (None, None) => 1.0,
    }
}

/// A time by a factor.
pub(super) fn scaled(time: Nanos, factor: f64) -> Nanos {
    if factor == 1.0 { time } else { Nanos((time.as_f64() * factor).round() as u64) }
}
