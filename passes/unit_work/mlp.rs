//! The MLP of a layer: dense, or experts with dispatch and combine around them.

use std::collections::BTreeMap;

use super::attention::{kept_input, local_values, norm, setting};
use super::exchange::{self, ExchangeForm};
use super::kernels::{self, Kernels, Setting, compute, compute_all, main, memory, product, tensor_collective};
use super::{Layer, Part, Rest, Sizes, UnitOp, UnitParameters, imbalance};
use crate::ir::{Component, Held, Kernel, Phase, Recompute};
use crate::job::Job;
use crate::job::arithmetic::SwigluShape;
use crate::job::model::{Dtype, Moe};
use crate::units::Bytes;

/// The kernels of a layer's MLP ops.
pub(super) fn kernels(job: &Job, layer: &Layer, sizes: &Sizes, recompute: Recompute) -> Kernels {
    match layer.moe {
        Some(moe) => expert_kernels(job, moe, sizes, recompute),
        None => dense_kernels(job, sizes, recompute),
    }
}

/// The dense MLP with its norm.
pub(super) fn dense(job: &Job, recompute: Recompute) -> Part {
    let sizes = Sizes::new(job);
    let shape = job.model.dense_shape();
    let products = job.model.precision.products;
    let Kernels { f, i, w } = dense_kernels(job, &sizes, recompute);

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
        f: wrap(compute_all(component, f), 1),
        i: wrap(compute_all(component, i), 2),
        w: vec![compute_all(component, w)],
        rest: Rest {
            held,
            exchange_buffer: Bytes(if sizes.tp > 1 { Dtype::Bf16.bytes(2 * values) } else { 0 }),
            parameters: UnitParameters { shared: swiglu_parameters(&shape, sizes.tp) + sizes.hidden, expert: 0 },
        },
    }
}

/// What the backward repeats of a layer's MLP where the whole layer is computed again: dispatch, and the MLP up to what goes into its last
/// product. The outputs of that product and of combine are read by no gradient.
pub(super) fn again(job: &Job, layer: &Layer) -> Vec<UnitOp> {
    let sizes = Sizes::new(job);
    let Some(moe) = layer.moe else {
        let inner = inner_kernels(&job.model.dense_shape(), setting(job, sizes.tokens));
        let gather = tensor_collective(Component::Mlp, sizes.tokens * sizes.hidden, sizes.tp);
        let mlp = compute(Component::Mlp, [vec![norm(&sizes)], inner].concat());
        return gather.into_iter().chain([mlp]).collect();
    };
    let mut kernels = vec![permute(job, moe, &sizes)];
    kernels.extend(inner_kernels(&job.model.expert_shape(moe), grouped(job, moe, &sizes)));
    if moe.shared_width > 0 {
        kernels.extend(inner_kernels(&job.model.shared_shape(moe), alone(job, &sizes)));
    }
    let dispatch = exchange::exchange(job, moe, &sizes, (Component::Dispatch, Phase::F), ExchangeForm::default());
    let dispatch = dispatch.map(|work| UnitOp { component: Component::Dispatch, work });
    dispatch.into_iter().chain([compute(Component::Mlp, kernels)]).collect()
}

fn dense_kernels(job: &Job, sizes: &Sizes, recompute: Recompute) -> Kernels {
    let Kernels { f, i, w } = swiglu_kernels(&job.model.dense_shape(), setting(job, sizes.tokens), recompute.swiglu);
    let repeated = recompute.norms.then(|| norm(sizes));
    Kernels { f: [main([norm(sizes)]), f].concat(), i: [kernels::again(repeated), i, main([norm(sizes)])].concat(), w }
}

/// Dispatch, experts (routed and shared) and combine.
pub(super) fn experts(job: &Job, moe: &Moe, recompute: Recompute) -> Part {
    let sizes = Sizes::new(job);
    let products = job.model.precision.products;
    let routed = job.model.expert_shape(moe);
    let rows = routed_rows(job, moe, &sizes);
    let shared = shared_sizes(job, moe, &sizes);

    let inner = rows.saturating_mul(routed.width()).saturating_add(shared.inner);
    // Inputs of the routed experts arrive by dispatch and are kept as they came.
    let arrived = products.bytes(rows.saturating_mul(sizes.hidden));
    let sent = rows.saturating_add(shared.rows);
    let held = HeldSwiglu::new(products, inner, [0, arrived, 0], recompute.swiglu)
        .and_gradients(products.bytes(2 * inner) + products.bytes(sent.saturating_mul(sizes.hidden)))
        .held(0);

    let Kernels { f, i, w } = expert_kernels(job, moe, &sizes, recompute);
    let mlp = |entries| Some(compute_all(Component::Mlp, entries));
    let form = ExchangeForm::default();
    let exchange = |component, phase| {
        exchange::exchange(job, moe, &sizes, (component, phase), form).map(|work| UnitOp { component, work })
    };
    let (dispatch, combine) = (Component::Dispatch, Component::Combine);
    let buffers = [dispatch, combine].map(|component| exchange::buffer(job, moe, &sizes, (component, Phase::F), form));
    Part {
        f: [exchange(dispatch, Phase::F), mlp(f), exchange(combine, Phase::F)].into_iter().flatten().collect(),
        i: [exchange(combine, Phase::I), mlp(i), exchange(dispatch, Phase::I)].into_iter().flatten().collect(),
        w: mlp(w).into_iter().collect(),
        rest: Rest {
            held,
            // Backwards the same two payloads go the other way round.
            exchange_buffer: buffers.into_iter().flatten().max().unwrap_or_default(),
            parameters: UnitParameters {
                shared: shared.parameters,
                expert: local_experts(job, moe) * routed.parameters(),
            },
        },
    }
}

/// The shared expert on one GPU; all zero if there is none.
#[derive(Default)]
struct SharedSizes {
    rows: u64,
    /// Values between its projections.
    inner: u64,
    parameters: u64,
}

fn shared_sizes(job: &Job, moe: &Moe, sizes: &Sizes) -> SharedSizes {
    if moe.shared_width == 0 {
        return SharedSizes::default();
    }
    let shape = job.model.shared_shape(moe);
    let rows = sizes.local_tokens;
    SharedSizes { rows, inner: rows * shape.width(), parameters: swiglu_parameters(&shape, 1) }
}

fn expert_kernels(job: &Job, moe: &Moe, sizes: &Sizes, recompute: Recompute) -> Kernels {
    let Kernels { f, i, w } = swiglu_kernels(&job.model.expert_shape(moe), grouped(job, moe, sizes), recompute.swiglu);
    let permute = || main([permute(job, moe, sizes)]);
    let routed = Kernels { f: [permute(), f, permute()].concat(), i: [permute(), i, permute()].concat(), w };
    if moe.shared_width == 0 {
        return routed;
    }
    routed.beside(swiglu_kernels(&job.model.shared_shape(moe), alone(job, sizes), recompute.swiglu).shared())
}

/// How the routed experts' products run.
fn grouped(job: &Job, moe: &Moe, sizes: &Sizes) -> Setting {
    Setting { tp: 1, copies: local_experts(job, moe), ..setting(job, routed_rows(job, moe, sizes)) }
}

/// How the shared expert's products run. Not cut by tensor parallelism: each GPU runs it on its own tokens, beside the routed experts.
fn alone(job: &Job, sizes: &Sizes) -> Setting {
    Setting { tp: 1, ..setting(job, sizes.local_tokens) }
}

/// Copies of a token are laid out by expert and gathered back: one pass each.
fn permute(job: &Job, moe: &Moe, sizes: &Sizes) -> Kernel {
    memory(2 * Dtype::Bf16.bytes(routed_rows(job, moe, sizes).saturating_mul(sizes.hidden)))
}

/// Routed experts on one GPU.
fn local_experts(job: &Job, moe: &Moe) -> u64 {
    u64::from(moe.experts).div_ceil(u64::from(job.training.ep))
}

/// Rows that the routed experts of one GPU work on: every GPU sends its tokens to `top_k` experts and gets as many copies,
/// on average.
pub(super) fn routed_rows(job: &Job, moe: &Moe, sizes: &Sizes) -> u64 {
    imbalance::rows(job, sizes.local_tokens.saturating_mul(u64::from(moe.top_k)))
}

/// Gate and up projection, activation, down projection.
fn swiglu_kernels(shape: &SwigluShape, setting: Setting, recompute: bool) -> Kernels {
    let (up, down) = (product(&shape.gate_up, setting), product(&shape.down, setting));
    let inner = setting.rows.saturating_mul(shape.width().div_ceil(setting.tp));
    let activation = activation(inner);
    // Reads gate, up and the gradient, and writes two gradients.
    let activation_gradient = memory(Dtype::Bf16.bytes(5 * inner));
    Kernels {
        f: main([up.f, vec![activation], down.f].concat()),
        i: [kernels::again(recompute.then_some(activation)), main([down.i, vec![activation_gradient], up.i].concat())]
            .concat(),
        w: main([down.w, up.w].concat()),
    }
}

/// Gate and up projection and activation: what makes the inputs of all gradients.
fn inner_kernels(shape: &SwigluShape, setting: Setting) -> Vec<Kernel> {
    let inner = setting.rows.saturating_mul(shape.width().div_ceil(setting.tp));
    [product(&shape.gate_up, setting).f, vec![activation(inner)]].concat()
}

/// Reads gate and up and writes their product.
fn activation(inner: u64) -> Kernel {
    memory(Dtype::Bf16.bytes(3 * inner))
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
