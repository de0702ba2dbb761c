//! A decoder layer.

use super::attention::Attention;
use super::experts::Experts;
use super::mlp::Mlp;
use super::{Context, Exchange, Sizes};
use crate::error::Result;
use crate::runtime::cuda::executor::blocks::{Block, Packer, Spot};
use crate::runtime::cuda::executor::store::{Store, Vector};
use crate::runtime::cuda::ops::norm;
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// Parameters, and where values lie: each tokens × hidden.
pub struct LayerUnit {
    attention_norm: Vector,
    attention: Attention,
    mlp_norm: Vector,
    last: Last,
    x: Spot<Bf16>,
    /// What the attention reads.
    normed: Spot<Bf16>,
    /// The residual stream behind the attention.
    stream: Spot<Bf16>,
    /// What router, experts or the dense MLP read.
    tokens: Spot<Bf16>,
    dy: Spot<Bf16>,
    d_stream: Spot<Bf16>,
    d_normed: Spot<Bf16>,
    d_tokens: Spot<Bf16>,
    gain_scratch: Spot<f32>,
}

/// What comes last in a layer.
enum Last {
    Dense(Mlp),
    Experts { routed: Box<Experts>, shared: Option<Shared> },
}

/// The shared expert.
struct Shared {
    mlp: Mlp,
    output: Spot<Bf16>,
    d_tokens: Spot<Bf16>,
}

impl LayerUnit {
    /// `name` is what stands in front of its tensors.
    pub fn new(
        shape: &Shape,
        (name, number, with_experts): (&str, u32, bool),
        sizes: Sizes,
        store: &Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let of = |part: &str| format!("{name}.{part}");
        let hidden = shape.hidden();
        let stream = sizes.tokens * hidden;
        let last = match shape.model.moe.as_ref().filter(|_| with_experts) {
            None => Last::Dense(Mlp::new(&of("mlp"), sizes, store, packer)?),
            Some(moe) => {
                let routed = Box::new(Experts::new(shape, moe, name, sizes, store, packer)?);
                let mut shared = || -> Result<Shared> {
                    Ok(Shared {
                        mlp: Mlp::new(&of("mlp.shared"), sizes, store, packer)?,
                        output: packer.take(Block::Forward, stream),
                        d_tokens: packer.take(Block::Backward, stream),
                    })
                };
                let shared = (moe.shared_width > 0).then(&mut shared).transpose()?;
                Last::Experts { routed, shared }
            }
        };
        Ok(Self {
            attention_norm: store.vector(&of("attention_norm.gain"))?,
            attention: Attention::new(shape, (&of("attention"), number), sizes, store, packer)?,
            mlp_norm: store.vector(&of("mlp_norm.gain"))?,
            last,
            x: packer.take(Block::UntilI, stream),
            normed: packer.take(Block::UntilW, stream),
            stream: packer.take(Block::UntilI, stream),
            tokens: packer.take(Block::UntilW, stream),
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
        let blocks = context.blocks;
        let (x, normed, stream) = (blocks.at(self.x), blocks.at(self.normed), blocks.at(self.stream));
        self.norm(context, self.attention_norm, x, normed)?;
        stream.copy_from(context.stream, x)?;
        self.attention.forward(context, normed, stream)?;
        let Last::Experts { routed, .. } = &self.last else { return Ok(()) };
        let tokens = blocks.at(self.tokens);
        self.norm(context, self.mlp_norm, stream, tokens)?;
        routed.route(context, tokens)
    }

    /// F of dispatch.
    pub fn dispatch(&self, context: &Context, exchange: &mut Exchange) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => routed.dispatch(context, exchange, context.blocks.at(self.tokens)),
        }
    }

    /// F of the dense MLP, whose result with the residual goes to `y`; or of the routed experts. Where one GPU has all of them, `exchange`
    /// is given: then dispatch and combine are part of it.
    pub fn mlp_forward(&self, context: &Context, exchange: Option<&mut Exchange>, y: Slice<Bf16>) -> Result<()> {
        match &self.last {
            Last::Dense(mlp) => {
                let (stream, tokens) = (context.blocks.at(self.stream), context.blocks.at(self.tokens));
                self.norm(context, self.mlp_norm, stream, tokens)?;
                y.copy_from(context.stream, stream)?;
                mlp.forward(context, tokens, y, true)
            }
            Last::Experts { routed, .. } => match exchange {
                None => routed.forward(context),
                Some(exchange) => {
                    routed.dispatch(context, exchange, context.blocks.at(self.tokens))?;
                    routed.forward(context)?;
                    routed.combine(context, exchange)
                }
            },
        }
    }

    /// F of the shared expert, if there is one.
    pub fn shared_forward(&self, context: &Context) -> Result<()> {
        match &self.last {
            Last::Experts { shared: Some(shared), .. } => {
                let blocks = context.blocks;
                shared.mlp.forward(context, blocks.at(self.tokens), blocks.at(shared.output), false)
            }
            Last::Dense(_) | Last::Experts { shared: None, .. } => Ok(()),
        }
    }

    /// F of combine, but for the sum.
    pub fn combine(&self, context: &Context, exchange: &mut Exchange) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => routed.combine(context, exchange),
        }
    }

    /// The end of F, where its result is read: with experts, their sum goes to `y`.
    pub fn complete(&self, context: &Context, y: Slice<Bf16>) -> Result<()> {
        let Last::Experts { routed, shared } = &self.last else { return Ok(()) };
        let blocks = context.blocks;
        let shared = shared.as_ref().map_or(Slice::none(), |shared| blocks.at(shared.output));
        routed.sum(context, blocks.at(self.stream), shared, y)
    }

    /// I of combine.
    pub fn combine_gradient(&self, context: &Context, exchange: &mut Exchange) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => routed.combine_gradient(context, exchange, context.blocks.at(self.dy)),
        }
    }

    /// I of the dense MLP and its norm, or of the routed experts; `exchange` as in F.
    pub fn mlp_input_gradient(&self, context: &Context, exchange: Option<&mut Exchange>) -> Result<()> {
        let blocks = context.blocks;
        match &self.last {
            Last::Dense(mlp) => {
                let (dy, d_tokens) = (blocks.at(self.dy), blocks.at(self.d_tokens));
                mlp.input_gradient(context, dy, d_tokens)?;
                self.mlp_norm_gradient(context)
            }
            Last::Experts { routed, .. } => match exchange {
                None => routed.input_gradient(context),
                Some(exchange) => {
                    routed.combine_gradient(context, exchange, blocks.at(self.dy))?;
                    routed.input_gradient(context)?;
                    routed.dispatch_gradient(context, exchange)
                }
            },
        }
    }

    /// I of the shared expert, if there is one.
    pub fn shared_input_gradient(&self, context: &Context) -> Result<()> {
        match &self.last {
            Last::Experts { shared: Some(shared), .. } => {
                let blocks = context.blocks;
                shared.mlp.input_gradient(context, blocks.at(self.dy), blocks.at(shared.d_tokens))
            }
            Last::Dense(_) | Last::Experts { shared: None, .. } => Ok(()),
        }
    }

    /// I of dispatch, but for the sum.
    pub fn dispatch_gradient(&self, context: &Context, exchange: &mut Exchange) -> Result<()> {
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => routed.dispatch_gradient(context, exchange),
        }
    }

    /// I of the attention, with experts also of the router: the gradient of the layer's input.
    pub fn attention_input_gradient(&self, context: &Context, dx: Slice<Bf16>) -> Result<()> {
        let blocks = context.blocks;
        if let Last::Experts { routed, shared } = &self.last {
            let shared = shared.as_ref().map_or(Slice::none(), |shared| blocks.at(shared.d_tokens));
            routed.tokens_gradient(context, shared, blocks.at(self.d_tokens))?;
            self.mlp_norm_gradient(context)?;
        }
        let (d_stream, d_normed) = (blocks.at(self.d_stream), blocks.at(self.d_normed));
        self.attention.input_gradient(context, d_stream, d_normed)?;
        self.norm_gradient(context, self.attention_norm, blocks.at(self.x), d_normed, d_stream, dx)
    }

    /// W of the attention and of the router.
    pub fn accumulate_attention(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        self.attention.accumulate(context, blocks.at(self.normed), blocks.at(self.d_stream))?;
        match &self.last {
            Last::Dense(_) => Ok(()),
            Last::Experts { routed, .. } => routed.accumulate_router(context, blocks.at(self.tokens)),
        }
    }

    /// W of the dense MLP, or of the routed experts.
    pub fn accumulate_mlp(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        match &self.last {
            Last::Dense(mlp) => mlp.accumulate(context, blocks.at(self.tokens), blocks.at(self.dy)),
            Last::Experts { routed, .. } => routed.accumulate(context),
        }
    }

    /// W of the shared expert, if there is one.
    pub fn accumulate_shared(&self, context: &Context) -> Result<()> {
        let blocks = context.blocks;
        match &self.last {
            Last::Experts { shared: Some(shared), .. } => {
                shared.mlp.accumulate(context, blocks.at(self.tokens), blocks.at(self.dy))
            }
            Last::Dense(_) | Last::Experts { shared: None, .. } => Ok(()),
        }
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
