//! The attention op of a layer: norm, attention, residual; where there are experts also the second norm and the router.

use super::layer::{Layer, moe};
use crate::runtime::host::layers::router::{self, Routing, RoutingGradient};
use crate::runtime::host::layers::{attention, rmsnorm};
use crate::runtime::host::precision::{Tiles, round};
use crate::runtime::host::{Matrix, Real, Shape};

/// What the attention op makes.
#[derive(Clone, Debug)]
pub struct AttentionOutput<T> {
    /// The residual stream behind it: tokens × hidden.
    pub stream: Matrix<T>,
    /// Where there are experts: what they read.
    pub routed: Option<Routed<T>>,
}

/// What dispatch and the shared expert read.
#[derive(Clone, Debug)]
pub struct Routed<T> {
    /// The normed stream.
    pub tokens: Matrix<T>,
    /// Where each token goes.
    pub routing: Routing<T>,
}

/// The gradient of [`AttentionOutput`].
#[derive(Clone, Debug)]
pub struct AttentionGradient<T> {
    /// By the stream: what combine or the dense MLP passes on.
    pub stream: Matrix<T>,
    /// By what the experts read.
    pub routed: Option<RoutedGradient<T>>,
}

/// The gradient of [`Routed`].
#[derive(Clone, Debug)]
pub struct RoutedGradient<T> {
    /// By the normed stream: of dispatch and of the shared expert together.
    pub tokens: Matrix<T>,
    /// By the weights: of combine and of the shared expert.
    pub routing: RoutingGradient<T>,
}

/// What the gradient needs.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    norm: rmsnorm::Saved<T>,
    attention: attention::Saved<T>,
    router: Option<(rmsnorm::Saved<T>, router::Saved<T>)>,
}

/// What the weight gradient needs.
#[derive(Clone, Debug)]
pub struct ForWeights<T> {
    norm: rmsnorm::ForWeights<T>,
    attention: attention::ForWeights<T>,
    router: Option<(rmsnorm::ForWeights<T>, router::ForWeights<T>)>,
}

impl<T: Real> Layer<T> {
    /// F of the attention op. `x`: tokens × hidden; `number` is that of the layer.
    pub fn attention_forward(&self, shape: &Shape, number: u32, x: Matrix<T>) -> (AttentionOutput<T>, Saved<T>) {
        let (epsilon, format) = (shape.norm_epsilon, shape.policy.stream());
        let mut stream = x.clone();
        let (normed, norm) = self.attention_norm.forward(epsilon, format, x);
        let (attended, attention) = self.attention.forward(shape, number, &normed);
        stream.add(&attended);
        round(&mut stream, format, Tiles::Rows);
        let Some(router) = &self.router else {
            return (AttentionOutput { stream, routed: None }, Saved { norm, attention, router: None });
        };
        let (tokens, router_norm) = self.mlp_norm.forward(epsilon, format, stream.clone());
        let (routing, saved) = router.forward(shape, moe(shape), &tokens);
        let output = AttentionOutput { stream, routed: Some(Routed { tokens, routing }) };
        (output, Saved { norm, attention, router: Some((router_norm, saved)) })
    }

    /// I of the attention op: the gradient of `x`.
    pub fn attention_input_gradient(
        &self,
        shape: &Shape,
        number: u32,
        saved: Saved<T>,
        gradient: AttentionGradient<T>,
    ) -> (Matrix<T>, ForWeights<T>) {
        let format = shape.policy.stream();
        let AttentionGradient { stream: mut dx, routed } = gradient;
        let router = match (&self.router, saved.router, routed) {
            (Some(router), Some((saved_norm, saved)), Some(mut routed)) => {
                let (d_tokens, needed) = router.input_gradient(shape, saved, &routed.routing);
                routed.tokens.add(&d_tokens);
                let (d_stream, norm) = self.mlp_norm.input_gradient(format, saved_norm, &routed.tokens);
                dx.add(&d_stream);
                round(&mut dx, format, Tiles::Rows);
                Some((norm, needed))
            }
            _ => None,
        };
        let (d_normed, attention) = self.attention.input_gradient(shape, number, saved.attention, &dx);
        let (d_stream, norm) = self.attention_norm.input_gradient(format, saved.norm, &d_normed);
        dx.add(&d_stream);
        round(&mut dx, format, Tiles::Rows);
        (dx, ForWeights { norm, attention, router })
    }

    /// W of the attention op: adds to the gradients, which `self` has the place of. The gradients of norms and router were
    /// made in I.
    pub fn accumulate_attention(&mut self, shape: &Shape, needed: &ForWeights<T>) {
        let format = shape.policy.gradients();
        self.attention.accumulate(shape, &needed.attention);
        self.attention_norm.accumulate(format, &needed.norm);
        if let (Some(router), Some((norm, needed))) = (&mut self.router, &needed.router) {
            router.accumulate(shape, needed);
            self.mlp_norm.accumulate(format, norm);
        }
    }
}
