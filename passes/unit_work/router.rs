//! The second norm and the router of a layer with experts: part of its attention ops.

use std::collections::BTreeMap;

use super::attention::{norm, setting};
use super::kernels::{Kernels, Setting, again, main, memory, product};
use super::{Rest, Sizes, UnitParameters};
use crate::ir::{Component, Held, Recompute};
use crate::job::Job;
use crate::job::arithmetic::{Cut, Linear};
use crate::job::model::{Dtype, Moe};
use crate::units::Bytes;

/// The kernels. The router's weight gradient is part of I: it is tiny, and needs nothing that I does not have.
pub(super) fn kernels(job: &Job, moe: &Moe, sizes: &Sizes, recompute: Recompute) -> Kernels {
    let precision = &job.model.precision;
    let experts = u64::from(moe.experts);
    // The shared expert's gate is one more output.
    let outputs = experts + u64::from(moe.shared_gate);
    let linear = Linear { inputs: sizes.hidden, outputs, bias: moe.router_bias, cut: Cut::Whole };
    let router = product(&linear, Setting { dtype: precision.router, ..setting(job, sizes.tokens) });
    let scores = memory(2 * Dtype::Fp32.bytes(sizes.local_tokens * experts));

    let f = [vec![norm(sizes)], router.f, vec![scores]].concat();
    let repeated = recompute.norms.then(|| norm(sizes));
    let i = [vec![scores], router.i, router.w, vec![norm(sizes)]].concat();
    Kernels { f: main(f), i: [again(repeated), main(i)].concat(), w: Vec::new() }
}

/// Memory and parameters. A micro-batch holds the stream in front of the norm; router scores and choices; the normed stream
/// for the router (and shared expert).
pub(super) fn rest(job: &Job, moe: &Moe, sizes: &Sizes, recompute: Recompute) -> Rest {
    let experts = u64::from(moe.experts);
    let stream = Dtype::Bf16.bytes(sizes.local_tokens * sizes.hidden);
    let routing = Dtype::Fp32.bytes(sizes.local_tokens * experts) + 8 * sizes.local_tokens * u64::from(moe.top_k);
    let normed = job.model.precision.products.bytes(sizes.local_tokens * sizes.hidden);
    let entry = |bytes| BTreeMap::from([(Component::Attention, Bytes(bytes))]);
    let mut held = Held { f_to_i: entry(stream + routing), ..Held::default() };
    *(if recompute.norms { &mut held.i_to_w } else { &mut held.f_to_w }) = entry(normed);
    Rest {
        held,
        parameters: UnitParameters {
            shared: job.model.router_parameters(moe) + sizes.hidden,
            ..UnitParameters::default()
        },
        ..Rest::default()
    }
}
