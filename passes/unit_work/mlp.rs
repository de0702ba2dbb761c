//! The MLP of a layer: dense, or router, dispatch, experts and combine.

use std::collections::BTreeMap;

use super::attention::{End, extend_attention, kept_input, local_values, norm, setting};
use super::kernels::{self, Setting, compute, memory, product, tensor_collective};
use super::routing::{self, Copies};
use super::{Part, Rest, Sizes, UnitOp, UnitParameters, UnitWork};
use crate::ir::{Component, Held, Kernel, Work};
use crate::job::Job;
use crate::job::arithmetic::{Cut, Linear, SwigluShape};
use crate::job::model::{Dtype, Moe};
use crate::units::Bytes;

/// The dense MLP with its norm.
pub(super) fn dense(job: &Job) -> Part {
    let sizes = Sizes::new(job);
    let shape = job.model.dense_shape();
    let recompute = job.training.recompute;
    let products = job.model.precision.products;
    let swiglu = swiglu_kernels(&shape, setting(job, sizes.tokens), recompute.swiglu);

    let f = [vec![norm(&sizes)], swiglu.f].concat();
    let mut i = [swiglu.i, vec![norm(&sizes)]].concat();
    if recompute.norms {
        i.insert(0, norm(&sizes));
    }

    let stream = sizes.local_tokens * sizes.hidden;
    let rows = sizes.tokens;
    let inner = rows.saturating_mul(shape.width().div_ceil(sizes.tp));
    let input = kept_input(&sizes, products, true, recompute.norms);
    let held = HeldSwiglu::new(products, inner, input, recompute.swiglu)
        .and_gradients(products.bytes(2 * inner) + products.bytes(local_values(&shape.down, &sizes).1))
        .held(Dtype::Bf16.bytes(stream));

    let values = sizes.tokens * sizes.hidden;
    let component = Component::Mlp;
    let wrap = |op: UnitOp, gathers: u64| -> Vec<UnitOp> {
        let gather = tensor_collective(component, gathers * values, sizes.tp);
        gather.into_iter().chain([op]).chain(tensor_collective(component, values, sizes.tp)).collect()
    };
    Part {
        f: wrap(compute(component, f), 1),
        i: wrap(compute(component, i), 2),
        w: vec![compute(component, swiglu.w)],
        rest: Rest {
            held,
            exchange_buffer: Bytes(if sizes.tp > 1 { Dtype::Bf16.bytes(2 * values) } else { 0 }),
            parameters: UnitParameters { shared: swiglu_parameters(&shape, sizes.tp) + sizes.hidden, expert: 0 },
        },
    }
}

/// Dispatch, experts (routed and shared) and combine. The router is [`add_router`].
pub(super) fn experts(job: &Job, moe: &Moe) -> Part {
    let sizes = Sizes::new(job);
    let precision = &job.model.precision;
    let products = precision.products;
    let recompute = job.training.recompute;
    let ep = u64::from(job.training.ep);
    let local_experts = u64::from(moe.experts).div_ceil(ep);
    // Every GPU sends its tokens to top_k experts and gets as many copies, on average.
    let rows = sizes.local_tokens.saturating_mul(u64::from(moe.top_k));

    let routed = job.model.expert_shape(moe);
    let grouped = Setting { tp: 1, copies: local_experts, ..setting(job, rows) };
    let kernels = swiglu_kernels(&routed, grouped, recompute.swiglu);
    // Copies of a token are laid out by expert and gathered back: one pass each.
    let permute = memory(2 * Dtype::Bf16.bytes(rows.saturating_mul(sizes.hidden)));
    let mut f = [vec![permute], kernels.f, vec![permute]].concat();
    let mut i = [vec![permute], kernels.i, vec![permute]].concat();
    let mut w = kernels.w;
    let mut shared_inner = 0;
    let mut shared = 0;
    if moe.shared_width > 0 {
        // Not cut by tensor parallelism: each GPU runs it on its own tokens, beside the routed experts.
        let shape = job.model.shared_shape(moe);
        let kernels = swiglu_kernels(&shape, Setting { tp: 1, ..setting(job, sizes.local_tokens) }, recompute.swiglu);
        f.extend(kernels.f);
        i.extend(kernels.i);
        w.extend(kernels.w);
        shared_inner = sizes.local_tokens * shape.width();
        shared = swiglu_parameters(&shape, 1);
    }

    let copies = routing::copies(moe, job.training.ep, job.cluster.gpus_per_node);
    let exchange = |component, dtype| UnitOp { component, work: all_to_all(&sizes, copies, dtype) };
    let mlp = |kernels| compute(Component::Mlp, kernels);

    let inner = rows.saturating_mul(routed.width()).saturating_add(shared_inner);
    // Inputs of the routed experts arrive by dispatch and are kept as they came.
    let arrived = products.bytes(rows.saturating_mul(sizes.hidden));
    let sent = rows.saturating_add(if shared > 0 { sizes.local_tokens } else { 0 });
    let held = HeldSwiglu::new(products, inner, [0, arrived, 0], recompute.swiglu)
        .and_gradients(products.bytes(2 * inner) + products.bytes(sent.saturating_mul(sizes.hidden)))
        .held(0);

    // The backward of combine sends output gradients to the experts, as dispatch sends tokens; the backward of dispatch
    // brings input gradients back, as combine brings outputs. Experts that are all on this GPU need no exchange.
    let mut f = vec![mlp(f)];
    let mut i = vec![mlp(i)];
    let mut buffer = Bytes::ZERO;
    if ep > 1 {
        f.insert(0, exchange(Component::Dispatch, precision.dispatch));
        f.push(exchange(Component::Combine, precision.combine));
        i.insert(0, exchange(Component::Combine, precision.dispatch));
        i.push(exchange(Component::Dispatch, precision.combine));
        buffer = exchange_buffer(&sizes, copies, rows, precision.dispatch, precision.combine);
    }
    Part {
        f,
        i,
        w: vec![mlp(w)],
        rest: Rest {
            held,
            exchange_buffer: buffer,
            parameters: UnitParameters { shared, expert: local_experts * routed.parameters() },
        },
    }
}

/// Adds the second norm and the router to the attention ops of a MoE layer. The router's weight gradient is part of its
/// I op: it is tiny, and needs nothing that I does not have.
pub(super) fn add_router(job: &Job, moe: &Moe, work: &mut UnitWork) {
    let sizes = Sizes::new(job);
    let precision = &job.model.precision;
    let recompute = job.training.recompute;
    let experts = u64::from(moe.experts);
    // The shared expert's gate is one more output.
    let outputs = experts + u64::from(moe.shared_gate);
    let linear = Linear { inputs: sizes.hidden, outputs, bias: moe.router_bias, cut: Cut::Whole };
    let router = product(&linear, Setting { dtype: precision.router, ..setting(job, sizes.tokens) });
    let scores = memory(2 * Dtype::Fp32.bytes(sizes.local_tokens * experts));

    let f: Vec<Kernel> = [vec![norm(&sizes)], router.f, vec![scores]].concat();
    let again = if recompute.norms { vec![norm(&sizes)] } else { Vec::new() };
    let i: Vec<Kernel> = [again, vec![scores], router.i, router.w, vec![norm(&sizes)]].concat();
    extend_attention(&mut work.f, f, End::Back);
    extend_attention(&mut work.i, i, End::Front);

    // The stream in front of the norm; router scores and choices; the normed stream for the router (and shared expert).
    let stream = Dtype::Bf16.bytes(sizes.local_tokens * sizes.hidden);
    let routing = Dtype::Fp32.bytes(sizes.local_tokens * experts) + 8 * sizes.local_tokens * u64::from(moe.top_k);
    add(&mut work.held.f_to_i, stream + routing);
    let normed = precision.products.bytes(sizes.local_tokens * sizes.hidden);
    let until_w = if recompute.norms { &mut work.held.i_to_w } else { &mut work.held.f_to_w };
    add(until_w, normed);
    work.parameters.shared += job.model.router_parameters(moe) + sizes.hidden;
}

fn add(held: &mut BTreeMap<Component, Bytes>, bytes: u64) {
    *held.entry(Component::Attention).or_default() += Bytes(bytes);
}

/// Bytes that one GPU sends in an all-to-all of its tokens.
fn all_to_all(sizes: &Sizes, copies: Copies, dtype: Dtype) -> Work {
    let token = dtype.bytes(sizes.hidden) as f64;
    let send = |copies: f64| Bytes((sizes.local_tokens as f64 * copies * token).round() as u64);
    Work::Exchange { nvlink: send(copies.nvlink), network: send(copies.network) }
}

/// Sent and received together, for the larger of the two payloads: what is sent over the network (once per node), and
/// one copy per token and GPU that arrives.
fn exchange_buffer(sizes: &Sizes, copies: Copies, rows: u64, dispatch: Dtype, combine: Dtype) -> Bytes {
    let token = dispatch.bytes(sizes.hidden).max(combine.bytes(sizes.hidden));
    let staged = (sizes.local_tokens as f64 * copies.network).ceil() as u64;
    Bytes(token.saturating_mul(staged.saturating_add(rows)))
}

struct SwigluKernels {
    f: Vec<Kernel>,
    i: Vec<Kernel>,
    w: Vec<Kernel>,
}

/// Gate and up projection, activation, down projection.
fn swiglu_kernels(shape: &SwigluShape, setting: Setting, recompute: bool) -> SwigluKernels {
    let (up, down) = (product(&shape.gate_up, setting), product(&shape.down, setting));
    let inner = setting.rows.saturating_mul(shape.width().div_ceil(setting.tp));
    // Forward reads gate and up and writes their product; backward reads both and the gradient and writes two gradients.
    let activation = memory(Dtype::Bf16.bytes(3 * inner));
    let activation_gradient = memory(Dtype::Bf16.bytes(5 * inner));
    let again = if recompute { vec![activation] } else { Vec::new() };
    SwigluKernels {
        f: [up.f, vec![activation], down.f].concat(),
        i: [again, down.i, vec![activation_gradient], up.i].concat(),
        w: [down.w, up.w].concat(),
    }
}

fn swiglu_parameters(shape: &SwigluShape, tp: u64) -> u64 {
    kernels::local_parameters(&shape.gate_up, tp) + kernels::local_parameters(&shape.down, tp)
}

/// Memory of a SwiGLU MLP: gate and up until I; inputs of the products until W; output gradients from I to W.
struct HeldSwiglu {
    until_i: u64,
    until_w: u64,
    from_i: u64,
}

impl HeldSwiglu {
    /// `inner`: values between the projections. `input`: bytes of the first product's saved input, as [`kept_input`] has
    /// them. With `inner_again` the second's exists only from I on.
    fn new(products: Dtype, inner: u64, input: [u64; 3], inner_again: bool) -> Self {
        // Where the activation is recomputed its two inputs are cached in the products' format (DeepSeek-V3 report, 3.3.3).
        let cached = if inner_again { products } else { Dtype::Bf16 };
        let [until_i, until_w, from_i] = input;
        let mut held = Self { until_i: until_i + cached.bytes(2 * inner), until_w, from_i };
        *(if inner_again { &mut held.from_i } else { &mut held.until_w }) += products.bytes(inner);
        held
    }

    fn and_gradients(mut self, bytes: u64) -> Self {
        self.from_i += bytes;
        self
    }

    /// With `stream` more bytes until I.
    fn held(self, stream: u64) -> Held {
        let entry = |bytes| BTreeMap::from([(Component::Mlp, Bytes(bytes))]);
        Held { f_to_i: entry(self.until_i + stream), f_to_w: entry(self.until_w), i_to_w: entry(self.from_i) }
    }
}
