//! Dispatch and combine: what one GPU sends in each, in every form that they can take, and the kernels in front of them.
//!
//! The backward of combine sends output gradients to the experts, as dispatch sends tokens; the backward of dispatch brings
//! input gradients back and adds up those of a token, as combine does with outputs.

use super::Sizes;
use super::imbalance::Overload;
use super::kernels::memory;
use super::mlp::routed_rows;
use super::routing::{self, Copies};
use crate::ir::{Component, Phase, Work};
use crate::job::Job;
use crate::job::model::{Dtype, Moe};
use crate::machine::network::groups_crossing;
use crate::units::Bytes;

/// How an exchange is done. The default is how [`super::unit_work`] has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeForm {
    /// Which way copies go.
    pub route: Route,
    /// Format in which they go.
    pub payload: Payload,
    /// What moves them.
    pub carrier: Carrier,
}

/// Which way the copies of a token go. Within a node both are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// Each straight to the GPU that wants it.
    Flat,
    /// Once per node over the network, then by NVLink.
    #[default]
    TwoHop,
}

/// Format in which an exchange sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payload {
    /// The job's: `precision.dispatch`, or `precision.combine`.
    #[default]
    AsGiven,
    /// FP8, where the job's is another one, after a quantise op.
    Fp8,
}

/// What moves the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// A kernel that drives the links.
    #[default]
    Sms,
    /// A copy engine, where everything stays within a node, after a pack op.
    CopyEngine,
}

/// The exchange of a component in a phase. `None` where there is none: nothing is sent where all experts are on this GPU, a
/// copy engine does not reach other nodes, and FP8 is no change where the job sends it already.
pub(super) fn exchange(
    job: &Job,
    moe: &Moe,
    sizes: &Sizes,
    (component, phase): (Component, Phase),
    form: ExchangeForm,
) -> Option<Work> {
    let dtype = payload(job, direction(component, phase)?, form.payload)?;
    let (copies, uplink) = (sent_copies(job, moe, form.route)?, uplink_copies(job, moe, form.route));
    let (nvlink, network) = (sent(sizes, copies.nvlink, dtype), sent(sizes, copies.network, dtype));
    match form.carrier {
        Carrier::Sms => Some(Work::Exchange { nvlink, network, uplink: sent(sizes, uplink, dtype) }),
        Carrier::CopyEngine => (copies.network == 0.0).then_some(Work::Copy { nvlink }),
    }
}

/// Sent and received together in an exchange: what is staged to be sent, over the network or packed for a copy engine, and
/// one copy per token and GPU that arrives, at most one per expert of a token. `None` as [`exchange`].
pub(super) fn buffer(
    job: &Job,
    moe: &Moe,
    sizes: &Sizes,
    (component, phase): (Component, Phase),
    form: ExchangeForm,
) -> Option<Bytes> {
    exchange(job, moe, sizes, (component, phase), form)?;
    let dtype = payload(job, direction(component, phase)?, form.payload)?;
    let copies = sent_copies(job, moe, form.route)?;
    let staged = match form.carrier {
        Carrier::Sms => copies.network,
        Carrier::CopyEngine => copies.nvlink,
    };
    let staged = (sizes.local_tokens as f64 * staged).ceil() as u64;
    let rows = routed_rows(job, moe, sizes);
    Some(Bytes(dtype.bytes(sizes.hidden).saturating_mul(staged.saturating_add(rows))))
}

/// Quantises what an exchange will send in FP8: reads it in bf16, in which kernels leave their results, and writes it with
/// its scales. Towards the experts that is each token once, however many copies go out. Back from them it is what this
/// GPU's experts made for tokens of other GPUs, once per token; it is as much as a flat exchange sends. Whoever receives
/// reads FP8 in the pass that it makes anyway (permutation, or sum), so there is no op to undo it.
pub(super) fn quantise(job: &Job, moe: &Moe, sizes: &Sizes, (component, phase): (Component, Phase)) -> Option<Work> {
    let direction = direction(component, phase)?;
    let dtype = payload(job, direction, Payload::Fp8)?;
    let for_others = made_for_others(job, moe)?;
    let copies = match direction {
        Direction::ToExperts => 1.0,
        Direction::FromExperts => for_others,
    };
    let bytes = sent(sizes, copies, Dtype::Bf16) + sent(sizes, copies, dtype);
    Some(Work::Compute(vec![memory(bytes.0)]))
}

/// Lays out what a copy engine will send as one contiguous piece per receiver: reads and writes every byte that is sent,
/// once. On arrival, tokens need nothing more: the experts' permutation reads them from where they landed. Outputs and input
/// gradients must be added up, which a kernel that drives the links does in passing and a copy engine cannot: the pass that
/// reads what arrived and adds it to the tokens is counted here too, though it runs after the exchange.
pub(super) fn pack(
    job: &Job,
    moe: &Moe,
    sizes: &Sizes,
    (component, phase): (Component, Phase),
    form: ExchangeForm,
) -> Option<Work> {
    let direction = direction(component, phase)?;
    let engine = ExchangeForm { carrier: Carrier::CopyEngine, ..form };
    let Work::Copy { nvlink } = exchange(job, moe, sizes, (component, phase), engine)? else {
        return None;
    };
    // Every GPU has as many tokens; more or fewer are with its experts.
    let of_tokens = sent(sizes, mean_copies(job, moe, form.route)?.nvlink, payload(job, direction, form.payload)?);
    Some(Work::Compute(match direction {
        Direction::ToExperts => vec![memory(of_tokens.0.saturating_mul(2))],
        Direction::FromExperts => {
            // The sum of each token is read and written.
            let sums = sent(sizes, 2.0, Dtype::Bf16);
            vec![memory(nvlink.0.saturating_mul(2)), memory(of_tokens.0.saturating_add(sums.0))]
        }
    }))
}

/// Which way an exchange goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// Copies of tokens or of output gradients.
    ToExperts,
    /// Outputs or input gradients, which are added up where they arrive.
    FromExperts,
}

/// `None`: nothing is sent.
fn direction(component: Component, phase: Phase) -> Option<Direction> {
    match (component, phase) {
        (Component::Dispatch, Phase::F) | (Component::Combine, Phase::I) => Some(Direction::ToExperts),
        (Component::Combine, Phase::F) | (Component::Dispatch, Phase::I) => Some(Direction::FromExperts),
        _ => None,
    }
}

/// Rows per token of this GPU that its experts make for other GPUs' tokens: once per token. `None` if all experts are on this one.
fn made_for_others(job: &Job, moe: &Moe) -> Option<f64> {
    let (ep, per_node) = (job.training.ep, job.cluster.gpus_per_node);
    (ep > 1).then(|| {
        let flat = routing::flat_copies(moe, ep, per_node);
        let overload = Overload::new(job, moe, Route::Flat, None);
        flat.nvlink * overload.nvlink + flat.network * overload.network
    })
}

/// Format of the payload. `None` if FP8 is wanted and the job sends it anyway, or the GPU does not have it.
fn payload(job: &Job, direction: Direction, payload: Payload) -> Option<Dtype> {
    let given = match direction {
        Direction::ToExperts => job.model.precision.dispatch,
        Direction::FromExperts => job.model.precision.combine,
    };
    match payload {
        Payload::AsGiven => Some(given),
        Payload::Fp8 => (given != Dtype::Fp8 && job.cluster.gpu.fp8_tflops.is_some()).then_some(Dtype::Fp8),
    }
}

/// Copies per token that leave a GPU, or arrive at it, whichever is more. `None` if all experts are on this one.
fn sent_copies(job: &Job, moe: &Moe, route: Route) -> Option<Copies> {
    let mean = mean_copies(job, moe, route)?;
    let overload = Overload::new(job, moe, route, None);
    Some(Copies { nvlink: mean.nvlink * overload.nvlink, network: mean.network * overload.network })
}

/// The same where loads are even. On rails a flat route leads over NVLink to the GPU with the receiver's place in its node first, unless
/// that is the sender's own.
fn mean_copies(job: &Job, moe: &Moe, route: Route) -> Option<Copies> {
    let (ep, per_node) = (job.training.ep, job.cluster.gpus_per_node);
    (ep > 1).then(|| match route {
        Route::Flat => {
            let copies = routing::flat_copies(moe, ep, per_node);
            let local = f64::from(per_node.min(ep));
            let to_rails = if job.cluster.rails { copies.network * (local - 1.0) / local } else { 0.0 };
            Copies { nvlink: copies.nvlink + to_rails, ..copies }
        }
        Route::TwoHop => routing::copies(moe, ep, per_node),
    })
}

/// Of the copies that leave a GPU, those that leave its pod: the mean over the GPUs of the pod that sends or receives most.
fn uplink_copies(job: &Job, moe: &Moe, route: Route) -> f64 {
    let (Some(pod), Some(mean)) = (job.cluster.gpus_per_pod(), mean_copies(job, moe, route)) else { return 0.0 };
    let (ep, per_node) = (u64::from(job.training.ep), u64::from(job.cluster.gpus_per_node));
    let crossing = groups_crossing(pod, ep, per_node, job.cluster.gpus());
    mean.network * crossing * Overload::new(job, moe, route, Some(pod)).uplink
}

/// Bytes of so many copies of every token of this GPU.
fn sent(sizes: &Sizes, copies: f64, dtype: Dtype) -> Bytes {
    Bytes((sizes.local_tokens as f64 * copies * dtype.bytes(sizes.hidden) as f64).round() as u64)
}
