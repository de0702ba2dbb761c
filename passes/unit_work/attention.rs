//! The attention of a layer: norm, projections, core. Residual additions are fused into the norms.

use std::collections::BTreeMap;

use super::kernels::{
    self, Kernels, Product, Setting, again, compute_all, local_shape, main, memory, product, tensor_collective,
};
use super::{Layer, Part, Rest, Sizes, UnitOp, UnitParameters, ends, router};
use crate::ir::{Component, Held, Kernel, Rate, Recompute};
use crate::job::Job;
use crate::job::arithmetic::{AttentionShape, Cut, Linear};
use crate::job::model::Dtype;
use crate::units::{Bytes, Flops};

/// The attention ops of a layer: with the projection in front in an MTP module, with the router where there are experts.
pub(super) fn attention(job: &Job, layer: &Layer, recompute: Recompute) -> Part {
    let sizes = Sizes::new(job);
    let shape = shape(job, &sizes);
    let Kernels { f, i, w } = kernels(job, layer, &sizes, recompute);

    let component = Component::Attention;
    // Sequence parallelism: gather the tokens, compute a share of the heads, reduce back to a share of the tokens. What is
    // gathered is the stream or, behind matrices that are not cut, their (narrower) results. The backward pass gathers the
    // output gradient and, for W, the stream once more, and reduces what was gathered.
    let values = sizes.tokens * sizes.hidden;
    let stream = if gathers_stream(&shape) { values } else { 0 };
    let latents: u64 = shape.down.iter().filter(|linear| linear.cut == Cut::Whole).map(|linear| linear.outputs).sum();
    let gathered = stream + sizes.tokens * latents;
    let wrap = |op: UnitOp, gathered: u64, reduced: u64| -> Vec<UnitOp> {
        let gather = tensor_collective(component, gathered, sizes.tp);
        gather.into_iter().chain([op]).chain(tensor_collective(component, reduced, sizes.tp)).collect()
    };
    let mut rest = Rest {
        held: held(job, &shape, &sizes, recompute),
        exchange_buffer: Bytes(if sizes.tp > 1 { Dtype::Bf16.bytes(2 * values) } else { 0 }),
        parameters: UnitParameters { shared: parameters(&shape, &sizes), expert: 0 },
    };
    if let Some(moe) = layer.moe {
        rest.add(router::rest(job, moe, &sizes, recompute));
    }
    if layer.mtp {
        rest.add(ends::projection_rest(job, &sizes));
    }
    Part {
        f: wrap(compute_all(component, f), gathered, values),
        i: wrap(compute_all(component, i), values + stream, gathered),
        w: vec![compute_all(component, w)],
        rest,
    }
}

/// The kernels of the attention ops. The router runs at the end, so that dispatch is an exchange and nothing else.
pub(super) fn kernels(job: &Job, layer: &Layer, sizes: &Sizes, recompute: Recompute) -> Kernels {
    let projection = if layer.mtp { ends::projection_kernels(job, sizes) } else { Kernels::default() };
    let router = layer.moe.map_or_else(Kernels::default, |moe| router::kernels(job, moe, sizes, recompute));
    projection.then(own_kernels(job, layer.number, sizes, recompute)).then(router)
}

fn own_kernels(job: &Job, layer: u32, sizes: &Sizes, recompute: Recompute) -> Kernels {
    let shape = shape(job, sizes);
    let setting = setting(job, sizes.tokens);

    let mut f = vec![norm(sizes)];
    for linear in shape.down.iter().chain(&shape.up) {
        f.extend(product(linear, setting).f);
    }
    f.push(memory(rotate(&shape, sizes)));
    f.push(core(job, layer, &shape, sizes, Pass::Forward));
    f.extend(product(&shape.output, setting).f);

    // Backwards, in reverse, after what is computed again.
    let mut repeated = Vec::new();
    if recompute.norms {
        repeated.push(norm(sizes));
    }
    if recompute.mla_up {
        shape.up.iter().for_each(|linear| repeated.extend(product(linear, setting).f));
        repeated.push(memory(rotate(&shape, sizes)));
    }
    let mut i = Vec::new();
    let mut w = Vec::new();
    let mut backward = |linear: &Linear| {
        let Product { i: input, w: weight, .. } = product(linear, setting);
        i.extend(input);
        w.extend(weight);
    };
    backward(&shape.output);
    let before: Vec<&Linear> = shape.down.iter().chain(&shape.up).rev().collect();
    // The core stands between the output projection and the others; only the sum of times matters here, not the order.
    before.into_iter().for_each(&mut backward);
    i.push(core(job, layer, &shape, sizes, Pass::Backward));
    i.push(memory(rotate(&shape, sizes)));
    i.push(norm(sizes));
    Kernels { f: main(f), i: [again(repeated), main(i)].concat(), w: main(w) }
}

/// The shape of the attention, all GPUs together. Where more of them than there are key/value heads share it, each has a
/// whole one: heads are repeated.
fn shape(job: &Job, sizes: &Sizes) -> AttentionShape {
    let mut shape = job.model.attention_shape();
    let repeated = sizes.tp.saturating_sub(shape.kv_heads);
    if repeated > 0 {
        // Only grouped-query attention has fewer than `tp`, which divides the heads; its q, k and v are one product.
        let width = shape.qk_dim + shape.value_dim;
        shape.down.iter_mut().for_each(|linear| linear.outputs += repeated * width);
        shape.kv_heads = sizes.tp;
    }
    shape
}

/// Whether a projection is cut and reads the stream, so that every GPU needs all tokens of it.
fn gathers_stream(shape: &AttentionShape) -> bool {
    shape.down.iter().any(|linear| linear.cut == Cut::Outputs)
}

/// Bytes of a normed stream that is kept for the weight gradient of the product that reads it: from F to I, from F to W,
/// from I to W. `gathered`: the product needs all tokens; kept is a GPU's share, which I gathers. `again`: the norm is
/// recomputed.
pub(super) fn kept_input(sizes: &Sizes, dtype: Dtype, gathered: bool, again: bool) -> [u64; 3] {
    let share = dtype.bytes(sizes.local_tokens * sizes.hidden);
    let read = if gathered { dtype.bytes(sizes.tokens * sizes.hidden) } else { share };
    match (again, gathered && sizes.tp > 1) {
        (true, _) => [0, 0, read],
        (false, true) => [share, 0, read],
        (false, false) => [0, share, 0],
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

/// Which way the core runs.
enum Pass {
    Forward,
    Backward,
}

/// The core's kernel. Backward counts 2.5 times the forward's FLOPs: five products against two.
fn core(job: &Job, layer: u32, shape: &AttentionShape, sizes: &Sizes, pass: Pass) -> Kernel {
    let sequences = sizes.tokens / u64::from(job.training.sequence).max(1);
    let forward = job.model.core_flops(layer, u64::from(job.training.sequence)).saturating_mul(sequences) / sizes.tp;
    let keys = job.model.attended_keys(layer, u64::from(job.training.sequence));
    let length = u32::try_from(keys).unwrap_or(u32::MAX);
    let (rate, flops, passes) = match pass {
        Pass::Forward => (Rate::AttentionForward { length }, forward, 1),
        Pass::Backward => (Rate::AttentionBackward { length }, forward.saturating_mul(5) / 2, 2),
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
fn held(job: &Job, shape: &AttentionShape, sizes: &Sizes, recompute: Recompute) -> Held {
    let precision = &job.model.precision;
    let core = precision.attention_core;
    let products = precision.products;

    let mut until_i = Dtype::Bf16.bytes(sizes.local_tokens * sizes.hidden);
    until_i += 4 * sizes.tokens * shape.heads / sizes.tp;
    if !recompute.mla_up || shape.up.is_empty() {
        until_i += core.bytes(core_inputs(shape, sizes));
    }
    // The latents in front of the inner norms. A direct q projection makes no latent but q, which was counted above,
    // unless the core's inputs are made again from what is kept here.
    if !shape.up.is_empty() {
        let kept = shape.down.iter().filter(|linear| recompute.mla_up || linear.cut == Cut::Whole);
        until_i += Dtype::Bf16.bytes(kept.map(|linear| local_values(linear, sizes).1).sum());
    }

    let mut until_w = core.bytes(core_output(shape, sizes));
    let [kept_for_i, kept, mut from_i] = kept_input(sizes, products, gathers_stream(shape), recompute.norms);
    until_i += kept_for_i;
    until_w += kept;
    // Normed latents are kept as gathered. What is computed again in I is an input of W all the same, from I on.
    let normed = shape.up.iter().map(|linear| products.bytes(local_values(linear, sizes).0)).sum::<u64>();
    *(if recompute.norms { &mut from_i } else { &mut until_w }) += normed;
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
