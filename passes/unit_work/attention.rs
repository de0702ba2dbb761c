//! The attention of a layer: norm, projections, core. Residual additions are fused into the norms.

use std::collections::BTreeMap;

use super::kernels::{self, Product, Setting, compute, local_shape, memory, product, tensor_collective};
use super::{Part, Rest, Sizes, UnitOp, UnitParameters};
use crate::ir::{Component, Held, Kernel, Rate};
use crate::job::Job;
use crate::job::arithmetic::{AttentionShape, Linear};
use crate::job::model::Dtype;
use crate::units::{Bytes, Flops};

pub(super) fn attention(job: &Job, layer: u32) -> Part {
    let sizes = Sizes::new(job);
    let shape = job.model.attention_shape();
    let setting = setting(job, sizes.tokens);
    let recompute = job.training.recompute;

    let mut f = vec![norm(&sizes)];
    let mut i = Vec::new();
    let mut w = Vec::new();
    for linear in shape.down.iter().chain(&shape.up) {
        f.extend(product(linear, setting).f);
    }
    f.push(memory(rotate(&shape, &sizes)));
    f.push(core(job, layer, &shape, &sizes, Rate::AttentionForward));
    f.extend(product(&shape.output, setting).f);

    // Backwards, in reverse, after what is computed again.
    if recompute.norms {
        i.push(norm(&sizes));
    }
    if recompute.mla_up {
        shape.up.iter().for_each(|linear| i.extend(product(linear, setting).f));
        i.push(memory(rotate(&shape, &sizes)));
    }
    let mut backward = |linear: &Linear| {
        let Product { i: input, w: weight, .. } = product(linear, setting);
        i.extend(input);
        w.extend(weight);
    };
    backward(&shape.output);
    let before: Vec<&Linear> = shape.down.iter().chain(&shape.up).rev().collect();
    // The core stands between the output projection and the others; only the sum of times matters here, not the order.
    before.into_iter().for_each(&mut backward);
    i.push(core(job, layer, &shape, &sizes, Rate::AttentionBackward));
    i.push(memory(rotate(&shape, &sizes)));
    i.push(norm(&sizes));

    let component = Component::Attention;
    // Sequence parallelism: gather the tokens, compute a share of the heads, reduce back to a share of the tokens. The
    // backward pass gathers the output gradient and, for W, the saved input.
    let values = sizes.tokens * sizes.hidden;
    let wrap = |op: UnitOp, gathers: u64| -> Vec<UnitOp> {
        let gather = tensor_collective(component, gathers * values, sizes.tp);
        gather.into_iter().chain([op]).chain(tensor_collective(component, values, sizes.tp)).collect()
    };
    Part {
        f: wrap(compute(component, f), 1),
        i: wrap(compute(component, i), 2),
        w: vec![compute(component, w)],
        rest: Rest {
            held: held(job, &shape, &sizes),
            exchange_buffer: Bytes(if sizes.tp > 1 { Dtype::Bf16.bytes(2 * values) } else { 0 }),
            parameters: UnitParameters { shared: parameters(&shape, &sizes), expert: 0 },
        },
    }
}

/// How the layer's products run on one GPU.
pub(super) fn setting(job: &Job, rows: u64) -> Setting {
    let precision = &job.model.precision;
    Setting {
        rows,
        dtype: precision.products,
        gradients: precision.gradients,
        tp: u64::from(job.training.tp),
        copies: 1,
    }
}

/// RMSNorm with the residual addition in front: reads and writes the stream.
pub(super) fn norm(sizes: &Sizes) -> Kernel {
    memory(2 * Dtype::Bf16.bytes(sizes.local_tokens * sizes.hidden))
}

/// Bytes of rotary embedding and the norms of q and k: q and k are read and written once.
fn rotate(shape: &AttentionShape, sizes: &Sizes) -> u64 {
    let values = sizes.tokens * (shape.heads + shape.kv_heads) * shape.qk_dim / sizes.tp;
    2 * Dtype::Bf16.bytes(values)
}

/// The core's kernel. Backward counts 2.5 times the forward's FLOPs: five products against two.
fn core(job: &Job, layer: u32, shape: &AttentionShape, sizes: &Sizes, rate: Rate) -> Kernel {
    let sequences = u64::from(job.training.micro_batch_size);
    let forward = job.model.core_flops(layer, u64::from(job.training.sequence)).saturating_mul(sequences) / sizes.tp;
    let (flops, passes) = match rate {
        Rate::AttentionBackward => (forward.saturating_mul(5) / 2, 2),
        _ => (forward, 1),
    };
    let values = core_inputs(shape, sizes) + core_output(shape, sizes);
    Kernel { rate, flops: Flops(flops), bytes: Bytes(passes * Dtype::Bf16.bytes(values)), launches: 1 }
}

/// Values of q, k and v on this GPU.
fn core_inputs(shape: &AttentionShape, sizes: &Sizes) -> u64 {
    let q = shape.heads * shape.qk_dim;
    let kv = shape.kv_heads * (shape.qk_dim + shape.value_dim);
    sizes.tokens * (q + kv) / sizes.tp
}

/// Values of the core's output on this GPU.
fn core_output(shape: &AttentionShape, sizes: &Sizes) -> u64 {
    sizes.tokens * shape.heads * shape.value_dim / sizes.tp
}

/// What a micro-batch holds. The layer's input (for the norm), q, k, v and the log-sum-exp (fp32, per head) until I; inputs
/// of the products until W; their output gradients from I to W. The core's output is kept once, in the core's format: I
/// needs it so, and W quantises it again. Recomputed norms keep no output; recomputed up-projections keep neither q, k, v
/// nor their normed inputs.
fn held(job: &Job, shape: &AttentionShape, sizes: &Sizes) -> Held {
    let precision = &job.model.precision;
    let recompute = job.training.recompute;
    let core = precision.attention_core;
    let products = precision.products;

    let mut until_i = Dtype::Bf16.bytes(sizes.local_tokens * sizes.hidden);
    until_i += 4 * sizes.tokens * shape.heads / sizes.tp;
    if !recompute.mla_up || shape.up.is_empty() {
        until_i += core.bytes(core_inputs(shape, sizes));
    }
    // The latents in front of the inner norms.
    if !shape.up.is_empty() {
        let latents: u64 = shape.down.iter().map(|linear| local_values(linear, sizes).1).sum();
        until_i += Dtype::Bf16.bytes(latents);
    }

    let mut until_w = core.bytes(core_output(shape, sizes));
    if !recompute.norms {
        // The normed stream, kept as each GPU's share of the tokens.
        until_w += products.bytes(sizes.local_tokens * sizes.hidden);
        until_w += shape.up.iter().map(|linear| products.bytes(local_values(linear, sizes).0)).sum::<u64>();
    }
    // What was computed again in I is an input of W all the same, from I on.
    let mut from_i = 0;
    if recompute.norms {
        from_i += products.bytes(sizes.local_tokens * sizes.hidden);
        from_i += shape.up.iter().map(|linear| products.bytes(local_values(linear, sizes).0)).sum::<u64>();
    }
    from_i += shape.linears().map(|linear| products.bytes(local_values(linear, sizes).1)).sum::<u64>();

    let entry = |bytes| BTreeMap::from([(Component::Attention, Bytes(bytes))]);
    Held { f_to_i: entry(until_i), f_to_w: entry(until_w), i_to_w: entry(from_i) }
}

/// (input values, output values) of a product on this GPU.
pub(super) fn local_values(linear: &Linear, sizes: &Sizes) -> (u64, u64) {
    let (inputs, outputs, rows) = local_shape(linear, sizes.tokens, sizes.tp);
    (rows.saturating_mul(inputs), rows.saturating_mul(outputs))
}

fn parameters(shape: &AttentionShape, sizes: &Sizes) -> u64 {
    let products: u64 = shape.linears().map(|linear| kernels::local_parameters(linear, sizes.tp)).sum();
    products + shape.inner_norms + shape.sinks.div_ceil(sizes.tp) + sizes.hidden
}
