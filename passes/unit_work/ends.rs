//! The two ends of the model — embedding and head — and the projection in front of an MTP module.

use std::collections::BTreeMap;

use super::attention::{kept_input, local_values, norm, setting};
use super::kernels::{Kernels, compute, local_parameters, main, memory, product, tensor_collective};
use super::{Rest, Sizes, UnitParameters, UnitWork};
use crate::ir::{Component, Held};
use crate::job::Job;
use crate::job::arithmetic::{Cut, Linear};
use crate::job::model::Dtype;
use crate::units::Bytes;

/// Token embedding: a look-up; its weight gradient adds to the rows that were used. Rows are cut by tensor parallelism,
/// so each GPU looks up all tokens, and for W gets the gradients of all.
pub(super) fn embedding(job: &Job) -> UnitWork {
    let sizes = Sizes::new(job);
    let dtype = job.model.precision.embedding;
    let values = sizes.tokens * sizes.hidden;
    let component = Component::Embedding;
    let look_up = compute(component, vec![memory(2 * dtype.bytes(values / sizes.tp))]);
    let accumulate =
        memory(dtype.bytes(values / sizes.tp) + 2 * job.model.precision.gradients.bytes(values / sizes.tp));
    let f = [look_up].into_iter().chain(tensor_collective(component, values, sizes.tp)).collect();
    UnitWork {
        f,
        i: tensor_collective(component, values, sizes.tp).into_iter().collect(),
        w: vec![compute(component, vec![accumulate])],
        held: Held {
            // Token numbers, and the gradient that arrives.
            f_to_w: BTreeMap::from([(component, Bytes(4 * sizes.tokens))]),
            i_to_w: BTreeMap::from([(component, Bytes(dtype.bytes(values)))]),
            ..Held::default()
        },
        exchange_buffer: Bytes(if sizes.tp > 1 { Dtype::Bf16.bytes(2 * values) } else { 0 }),
        parameters: UnitParameters { shared: embedding_parameters(job), expert: 0 },
        ..UnitWork::default()
    }
}

/// Rows of the embedding on one GPU.
pub(crate) fn embedding_parameters(job: &Job) -> u64 {
    u64::from(job.model.vocabulary).div_ceil(u64::from(job.training.tp)) * u64::from(job.model.hidden)
}

/// Final norm, output head and cross-entropy, once for the model and once for each MTP module. The logits' gradient is
/// made in F, in place of the logits, and kept until W. With tensor parallelism I gathers the input again, for W.
pub(super) fn head(job: &Job) -> UnitWork {
    let sizes = Sizes::new(job);
    let runs = 1 + u64::from(job.model.mtp_layers);
    let precision = &job.model.precision;
    let component = Component::Head;
    let linear =
        Linear { inputs: sizes.hidden, outputs: u64::from(job.model.vocabulary), bias: false, cut: Cut::Outputs };
    let setting = super::kernels::Setting { dtype: precision.head, ..setting(job, sizes.tokens) };
    let (_, logits) = local_values(&linear, &sizes);
    let stream = sizes.local_tokens * sizes.hidden;

    // Cross-entropy reads the logits twice (maximum and sum, then gradient) and writes the gradient, in fp32.
    let loss = memory(3 * Dtype::Fp32.bytes(logits));
    let kernels = product(&linear, setting);
    let f = [vec![norm(&sizes)], kernels.f, vec![loss]].concat().repeat(runs as usize);
    let i = [kernels.i, vec![norm(&sizes)]].concat().repeat(runs as usize);
    let w = kernels.w.repeat(runs as usize);

    let values = runs * sizes.tokens * sizes.hidden;
    let collective = || tensor_collective(component, values, sizes.tp);
    let [until_i, until_w, from_i] = kept_input(&sizes, precision.head, true, false);
    let entry = |bytes: u64| BTreeMap::from([(component, Bytes(bytes * runs))]);
    UnitWork {
        f: collective().into_iter().chain([compute(component, f)]).collect(),
        i: collective().into_iter().chain([compute(component, i)]).chain(collective()).collect(),
        w: vec![compute(component, w)],
        held: Held {
            f_to_i: entry(until_i + Dtype::Bf16.bytes(stream)),
            f_to_w: entry(until_w + precision.head.bytes(logits)),
            i_to_w: if from_i > 0 { entry(from_i) } else { BTreeMap::new() },
        },
        exchange_buffer: Bytes(if sizes.tp > 1 { Dtype::Bf16.bytes(2 * values) } else { 0 }),
        parameters: UnitParameters { shared: local_parameters(&linear, sizes.tp) + sizes.hidden, expert: 0 },
        ..UnitWork::default()
    }
}

/// The kernels of an MTP module's input, which are part of its attention ops: the embedding of the next token, two norms,
/// and the projection of both hidden states to one (DeepSeek-V3 report, section 2.2).
pub(super) fn projection_kernels(job: &Job, sizes: &Sizes) -> Kernels {
    let kernels = product(&job.model.mtp_projection(), setting(job, sizes.tokens));
    let norms = [norm(sizes), norm(sizes)];
    Kernels {
        f: main(norms.into_iter().chain(kernels.f)),
        i: main(kernels.i.into_iter().chain(norms)),
        w: main(kernels.w),
    }
}

/// Memory and parameters of that input.
pub(super) fn projection_rest(job: &Job, sizes: &Sizes) -> Rest {
    let linear = job.model.mtp_projection();
    let products = job.model.precision.products;
    let (input, output) = local_values(&linear, sizes);
    let entry = |bytes| BTreeMap::from([(Component::Attention, Bytes(bytes))]);
    Rest {
        held: Held {
            f_to_i: entry(Dtype::Bf16.bytes(2 * sizes.local_tokens * sizes.hidden)),
            f_to_w: entry(products.bytes(input)),
            i_to_w: entry(products.bytes(output)),
        },
        parameters: UnitParameters {
            shared: local_parameters(&linear, sizes.tp) + 3 * sizes.hidden,
            ..UnitParameters::default()
        },
        ..Rest::default()
    }
}
