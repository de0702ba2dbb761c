//! A decoder layer.

use super::attention::Attention;
use super::experts::Experts;
use super::gate::Gate;
use super::mlp::Mlp;
use super::product::Input;
use super::{Context, Exchange, Parts, Sizes};
use crate::error::{Error, Result};
use crate::ir::{Phase, Recompute};
use crate::runtime::cuda::executor::blocks::{Block, Packer, Spot};
use crate::runtime::cuda::executor::forms::Forms;
use crate::runtime::cuda::executor::store::{Store, Vector};
use crate::runtime::cuda::ops::norm;
use crate::runtime::cuda::ops::quantise::Groups;
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// Parameters, and where values lie: each tokens × hidden.
pub struct LayerUnit {
    attention_norm: Vector,
    attention: Attention,
    mlp_norm: Vector,
    last: Last,
    recompute: Recompute,
    x: Spot<Bf16>,
    /// What the attention reads.
    normed: Input,
    /// The residual stream behind the attention.
    stream: Spot<Bf16>,
    /// What router, experts or the dense MLP read.
    tokens: Input,
    dy: Spot<Bf16>,
    d_stream: Spot<Bf16>,
    d_normed: Spot<Bf16>,
    d_tokens: Spot<Bf16>,
    gain_scratch: Spot<f32>,
}

/// What comes last in a layer.
enum Last {
    Dense(Box<Mlp>),
    Experts { routed: Box<Experts>, shared: Option<Box<Shared>> },
}

/// The shared expert.
struct Shared {
    mlp: Mlp,
    gate: Option<Gate>,
    output: Spot<Bf16>,
    d_tokens: Spot<Bf16>,
}

impl LayerUnit {
    /// `name` is what stands in front of its tensors.
    pub fn new(
        shape: &Shape,
        (name, number, with_experts): (&str, u32, bool),
        (sizes, forms, unit): (Sizes, &Forms, usize),
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let of = |part: &str| format!("{name}.{part}");
        let hidden = shape.hidden();
        let stream = sizes.tokens * hidden;
        let formats = shape.policy.mlp();
        // Routers and their gradients read tokens in bf16.
        let (mut read, mut kept) = (Some(formats.gate_up), Block::Forward);
        let last = match shape.model.moe.as_ref().filter(|_| with_experts) {
            None => Last::Dense(Box::new(Mlp::new(formats, (&of("mlp"), None), sizes, store, packer)?)),
            Some(moe) => {
                let routed = Box::new(Experts::new(shape, moe, name, (sizes, forms, unit), store, packer)?);
                let mut shared = || -> Result<Box<Shared>> {
                    let gate = || Gate::new(&of("router.shared_gate.weight"), sizes, store, packer);
                    let gate = moe.shared_gate.then(gate).transpose()?;
                    let weights = gate.as_ref().map(Gate::weights);
                    Ok(Box::new(Shared {
                        mlp: Mlp::new(formats, (&of("mlp.shared"), weights), sizes, store, packer)?,
                        gate,
                        output: packer.take_once(Block::Forward, stream),
                        d_tokens: packer.take(Block::Backward, stream),
                    }))
                };
                let shared = (moe.shared_width > 0).then(&mut shared).transpose()?;
                (read, kept) = (read.filter(|_| shared.is_some()), Block::UntilW);
                Last::Experts { routed, shared }
            }
        };
        let recompute = packer.recompute();
        Ok(Self {
            recompute,
            attention_norm: store.vector(&of("attention_norm.gain"))?,
            attention: Attention::new(shape, (&of("attention"), number), sizes, store, packer)?,
            mlp_norm: store.vector(&of("mlp_norm.gain"))?,
            last,
            x: packer.take_once(Block::UntilI, stream),
            normed: Input::new(
                packer,
                Some(shape.policy.products()),
                (sizes.tokens, hidden),
                Block::Forward,
                recompute.norms,
            ),
            stream: packer.take(Block::UntilI, stream),
            tokens: Input::new(packer, read, (sizes.tokens, hidden), kept, recompute.norms),
            dy: packer.take(Block::FromI, stream),
            d_stream: packer.take(Block::FromI, stream),
            d_normed: packer.take(Block::Backward, stream),
            d_tokens: packer.take(Block::Backward, stream),
            gain_scratch: packer.take(Block::Backward, norm::gain_gradient_scratch(sizes.tokens, hidden)),
        })
    }

    /// Where its input lies.
    pub fn input(&self) -> Spot<Bf16> {
        self.x
    }

    /// Where the gradient of its output is put.
    pub fn output_gradient(&self) -> Spot<Bf16> {
        self.dy
    }

    /// F of the attention; with experts also of the router.
    pub fn attention_forward(&self, context: &Context) -> Result<()> {
        self.stream_forward(context)?;
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => {
                let tokens = self.tokens.values(context.blocks);
                routed.route(context, tokens)?;
                self.gate().map_or(Ok(()), |gate| gate.forward(context, tokens))
            }
        }
    }

    /// The residual stream behind the attention, and with experts what they read.
    fn stream_forward(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        let (x, stream) = (blocks.at(self.x), blocks.at(self.stream));
        self.attention_norm(context)?;
        stream.copy_from(context.stream, x)?;
        self.attention.forward(context, &self.normed, stream)?;
        if self.has_experts() { self.mlp_norm(context) } else { Ok(()) }
    }

    /// What of the attention's work the backward does again: not the routing.
    pub fn attention_again(&self, context: &Context) -> Result<()> {
        let Recompute { norms, mla_up, layer, .. } = self.recompute;
        if layer {
            return self.stream_forward(context);
        }
        if norms {
            self.attention_norm(context)?;
            // A shared expert's backward may come before, and makes them by itself.
            if matches!(self.last, Last::Experts { shared: None, .. }) {
                self.mlp_norm(context)?;
            }
        }
        if mla_up { self.attention.up_again(context) } else { Ok(()) }
    }

    /// The payload of an exchange quantised. `there`: of one to the experts.
    pub fn quantise(&self, context: &Context, (there, phase): (bool, Phase), parts: &Parts) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => routed.quantise(context, (there, phase), parts, self.sent(context, phase)),
        }
    }

    /// The payload of an exchange by copy engines packed. `there` as in [`Self::quantise`].
    pub fn pack(
        &self,
        context: &Context,
        exchange: &Exchange,
        (there, phase): (bool, Phase),
        parts: &Parts,
    ) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => {
                routed.pack(context, exchange, (there, phase), parts, self.sent(context, phase))
            }
        }
    }

    /// What goes to the experts in a phase.
    fn sent(&self, context: &Context, phase: Phase) -> Slice<Bf16> {
        match phase {
            Phase::F => self.tokens.values(context.blocks),
            Phase::I | Phase::W => context.blocks.at(self.dy),
        }
    }

    /// F of dispatch.
    pub fn dispatch(&self, context: &Context, exchange: &mut Exchange, parts: &Parts) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => {
                routed.dispatch(context, exchange, parts, (self.tokens.values(context.blocks), true))
            }
        }
    }

    /// Dispatch once more, for the backward.
    pub fn dispatch_again(&self, context: &Context, exchange: &mut Exchange, parts: &Parts) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => {
                routed.dispatch(context, exchange, parts, (self.tokens.values(context.blocks), false))
            }
        }
    }

    /// F of the dense MLP, whose result with the residual goes to `y`.
    pub fn dense_forward(&self, context: &Context, y: Slice<Bf16>) -> Result<()> {
        let Last::Dense(mlp) = &self.last else { return Ok(()) };
        self.mlp_norm(context)?;
        self.tokens.complete(context, Groups::one(context.tokens))?;
        y.copy_from(context.stream, context.blocks.at(self.stream))?;
        mlp.forward(context, &self.tokens, y, true)
    }

    /// F of the routed experts, where one GPU has all of them with dispatch and combine.
    pub fn experts_forward(&self, context: &Context, exchange: &mut Exchange, parts: &Parts) -> Result<()> {
        let Last::Experts { routed, .. } = &self.last else { return Ok(()) };
        let tokens = self.tokens.values(context.blocks);
        if !exchange.alone {
            return routed.forward(context, exchange, parts, tokens);
        }
        routed.dispatch(context, exchange, parts, (tokens, true))?;
        routed.forward(context, exchange, parts, tokens)?;
        routed.combine(context, exchange, parts)
    }

    /// F of the shared expert, if there is one.
    pub fn shared_forward(&self, context: &Context) -> Result<()> {
        match &self.last {
            Last::Experts { shared: Some(shared), .. } => {
                self.tokens.complete(context, Groups::one(context.tokens))?;
                shared.mlp.forward(context, &self.tokens, context.blocks.at(shared.output), false)
            }
            Last::Dense(_) | Last::Experts { shared: None, .. } => Ok(()),
        }
    }

    /// What of the MLP's work the backward does again, without the shared expert's, but where the whole layer is done again.
    pub fn mlp_again(&self, context: &Context, exchange: Option<&mut Exchange>, parts: &Parts) -> Result<()> {
        let Recompute { norms, swiglu, layer, .. } = self.recompute;
        let all = Groups::one(context.tokens);
        match &self.last {
            Last::Dense(mlp) => {
                if norms || layer {
                    self.mlp_norm(context)?;
                    self.tokens.complete(context, all)?;
                }
                match (layer, swiglu) {
                    (true, _) => mlp.again(context, &self.tokens),
                    (false, true) => mlp.active_again(context),
                    (false, false) => Ok(()),
                }
            }
            Last::Experts { routed, .. } if !layer => {
                if swiglu {
                    routed.active_again(context, parts)
                } else {
                    Ok(())
                }
            }
            Last::Experts { routed, shared } => {
                let tokens = self.tokens.values(context.blocks);
                let exchange = exchange.ok_or_else(|| Error::new("computes experts again without an exchange"))?;
                if exchange.alone {
                    routed.dispatch(context, exchange, parts, (tokens, false))?;
                }
                routed.again(context, exchange, parts, tokens)?;
                // All tokens of the shared expert go with the first part.
                let Some(shared) = shared.as_ref().filter(|_| parts.range.start == 0) else { return Ok(()) };
                self.tokens.complete(context, all)?;
                shared.mlp.again(context, &self.tokens)
            }
        }
    }

    /// F of combine, but for the sum.
    pub fn combine(&self, context: &Context, exchange: &mut Exchange, parts: &Parts) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => routed.combine(context, exchange, parts),
        }
    }

    /// The end of F, where its result is read: with experts, their sum goes to `y`. `parts`: all.
    pub fn complete(&self, context: &Context, parts: &Parts, y: Slice<Bf16>) -> Result<()> {
        let Last::Experts { routed, shared } = &self.last else { return Ok(()) };
        let blocks = context.blocks;
        let shared = shared.as_ref().map_or(Slice::none(), |shared| blocks.at(shared.output));
        routed.sum(context, parts, blocks.at(self.stream), shared, y)
    }

    /// I of combine.
    pub fn combine_gradient(&self, context: &Context, exchange: &mut Exchange, parts: &Parts) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => {
                routed.combine_gradient(context, exchange, parts, context.blocks.at(self.dy))
            }
        }
    }

    /// I of the dense MLP and its norm.
    pub fn dense_input_gradient(&self, context: &Context) -> Result<()> {
        let Last::Dense(mlp) = &self.last else { return Ok(()) };
        let blocks = context.blocks;
        mlp.input_gradient(context, blocks.at(self.dy), blocks.at(self.d_tokens))?;
        self.mlp_norm_gradient(context)
    }

    /// I of the routed experts, where one GPU has all of them with combine and dispatch.
    pub fn experts_input_gradient(&self, context: &Context, exchange: &mut Exchange, parts: &Parts) -> Result<()> {
        let Last::Experts { routed, .. } = &self.last else { return Ok(()) };
        let dy = context.blocks.at(self.dy);
        if !exchange.alone {
            return routed.input_gradient(context, exchange, parts, dy);
        }
        routed.combine_gradient(context, exchange, parts, dy)?;
        routed.input_gradient(context, exchange, parts, dy)?;
        routed.dispatch_gradient(context, exchange, parts)
    }

    /// I of the shared expert, if there is one, with what of its work is done again.
    pub fn shared_input_gradient(&self, context: &Context) -> Result<()> {
        let Last::Experts { shared: Some(shared), .. } = &self.last else { return Ok(()) };
        let (blocks, Recompute { norms, swiglu, .. }) = (context.blocks, self.recompute);
        if norms {
            self.mlp_norm(context)?;
            self.tokens.complete(context, Groups::one(context.tokens))?;
        }
        if swiglu {
            shared.mlp.active_again(context)?;
        }
        shared.mlp.input_gradient(context, blocks.at(self.dy), blocks.at(shared.d_tokens))
    }

    /// I of dispatch, but for the sum.
    pub fn dispatch_gradient(&self, context: &Context, exchange: &mut Exchange, parts: &Parts) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => routed.dispatch_gradient(context, exchange, parts),
        }
    }

    /// I of the attention, with experts also of the router: the gradient of the layer's input. `parts`: all.
    pub fn attention_input_gradient(&self, context: &Context, parts: &Parts, dx: Slice<Bf16>) -> Result<()> {
        let blocks = context.blocks;
        if let Last::Experts { routed, shared } = &self.last {
            let shared = shared.as_ref().map_or(Slice::none(), |shared| blocks.at(shared.d_tokens));
            routed.tokens_gradient(context, parts, shared, blocks.at(self.d_tokens))?;
            if let Some(gate) = self.gate() {
                gate.input_gradient(context, blocks.at(self.d_tokens))?;
            }
            self.mlp_norm_gradient(context)?;
        }
        let (d_stream, d_normed) = (blocks.at(self.d_stream), blocks.at(self.d_normed));
        self.attention.input_gradient(context, d_stream, d_normed)?;
        self.norm_gradient(context, self.attention_norm, blocks.at(self.x), d_normed, d_stream, dx)
    }

    /// W of the attention and of the router.
    pub fn accumulate_attention(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        self.attention.accumulate(context, &self.normed, blocks.at(self.d_stream))?;
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => {
                let tokens = self.tokens.values(blocks);
                routed.accumulate_router(context, tokens)?;
                self.gate().map_or(Ok(()), |gate| gate.accumulate(context, tokens))
            }
        }
    }

    /// W of the dense MLP, or of the routed experts.
    pub fn accumulate_mlp(&self, context: &Context, parts: &Parts) -> Result<()> {
        let blocks = context.blocks;
        match &self.last {
            Last::Dense(mlp) => mlp.accumulate(context, &self.tokens, blocks.at(self.dy)),
            Last::Experts { routed, .. } => routed.accumulate(context, parts),
        }
    }

    /// W of the shared expert, if there is one.
    pub fn accumulate_shared(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        match &self.last {
            Last::Experts { shared: Some(shared), .. } => {
                shared.mlp.accumulate(context, &self.tokens, blocks.at(self.dy))
            }
            Last::Dense(_) | Last::Experts { shared: None, .. } => Ok(()),
        }
    }

    /// Whether it has experts.
    pub fn has_experts(&self) -> bool {
        matches!(self.last, Last::Experts { .. })
    }

    /// Of the shared expert.
    fn gate(&self) -> Option<&Gate> {
        match &self.last {
            Last::Experts { shared: Some(shared), .. } => shared.gate.as_ref(),
            Last::Dense(_) | Last::Experts { shared: None, .. } => None,
        }
    }

    /// What the attention reads.
    fn attention_norm(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        self.norm(context, self.attention_norm, blocks.at(self.x), self.normed.values(blocks))?;
        self.normed.complete(context, Groups::one(context.tokens))
    }

    /// What the MLP reads, in bf16.
    fn mlp_norm(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        self.norm(context, self.mlp_norm, blocks.at(self.stream), self.tokens.values(blocks))
    }

    fn norm(&self, context: &Context, gain: Vector, x: Slice<Bf16>, y: Slice<Bf16>) -> Result<()> {
        norm::forward(context.stream, context.sms, (x, gain.values.len()), gain.values, y, context.epsilon())
    }

    /// From the gradient of what the norm in front of the MLP made to that of the stream behind the attention.
    fn mlp_norm_gradient(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        let (d_tokens, dy) = (blocks.at(self.d_tokens), blocks.at(self.dy));
        self.norm_gradient(context, self.mlp_norm, blocks.at(self.stream), d_tokens, dy, blocks.at(self.d_stream))
    }

    /// `dx = residual +` the gradient of a norm's input; that of its gain is added up.
    fn norm_gradient(
        &self,
        context: &Context,
        gain: Vector,
        x: Slice<Bf16>,
        dy: Slice<Bf16>,
        residual: Slice<Bf16>,
        dx: Slice<Bf16>,
    ) -> Result<()> {
        let (stream, sms, epsilon) = (context.stream, context.sms, context.epsilon());
        let (width, scratch) = (gain.values.len(), context.blocks.at(self.gain_scratch));
        norm::gain_gradient(stream, sms, (x, width), dy, gain.gradient, scratch, epsilon)?;
        norm::input_gradient(stream, sms, (x, width), gain.values, dy, (dx, width), Some(residual), epsilon)
    }
}
