//! Multi-head latent attention (DeepSeek-V2 report, section 2.1).

use super::product::{Input, Product};
use super::{Context, Sizes};
use crate::error::Result;
use crate::ir::Recompute;
use crate::job::model::Mla as Dims;
use crate::runtime::cuda::core_attention::CoreAttention;
use crate::runtime::cuda::executor::blocks::{Block, Packer, Spot};
use crate::runtime::cuda::executor::store::{Store, Vector};
use crate::runtime::cuda::ops::attention::{Core, Strided};
use crate::runtime::cuda::ops::quantise::Groups;
use crate::runtime::cuda::ops::rope::{self, Direction, Heads};
use crate::runtime::cuda::ops::{latent, norm};
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// Parameters, and where values lie.
pub struct Latent {
    core: CoreAttention,
    dims: latent::Dims,
    query: Option<Query>,
    q_up: Product,
    kv_down: Product,
    kv_norm: Vector,
    kv_up: Product,
    output: Product,
    /// tokens × (latent of k and v, rotated part of k).
    down: Spot<Bf16>,
    kv_normed: Input,
    /// tokens × heads · (k without position, v): only until k and v are spread.
    kv: Spot<Bf16>,
    q: Spot<Bf16>,
    k: Spot<Bf16>,
    v: Spot<Bf16>,
    o: Input,
    log_sums: Spot<f32>,
    d_o: Spot<Bf16>,
    d_q: Spot<Bf16>,
    d_k: Spot<Bf16>,
    d_v: Spot<Bf16>,
    d_kv: Spot<Bf16>,
    d_kv_normed: Spot<Bf16>,
    d_down: Spot<Bf16>,
    /// Forward, and for the gradient.
    core_scratch: [Spot<u8>; 2],
    gain_scratch: Spot<f32>,
}

/// The latent of the query, where it has one.
struct Query {
    down: Product,
    norm: Vector,
    latent: Spot<Bf16>,
    normed: Input,
    d_latent: Spot<Bf16>,
    d_normed: Spot<Bf16>,
}

impl Latent {
    /// `name` is what stands in front of its tensors.
    pub fn new(
        shape: &Shape,
        dims: &Dims,
        name: &str,
        sizes: Sizes,
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let tokens = sizes.tokens;
        let heads = dims.heads as usize;
        let (nope, rope) = (dims.nope_dim as usize, dims.rope_dim as usize);
        let (value, kv_rank) = (dims.value_dim as usize, dims.kv_rank as usize);
        let qk = nope + rope;
        let core =
            Core { heads, kv_heads: heads, qk_dim: qk, value_dim: value, sequence: shape.sequence, window: None };
        let strides = [qk, qk, value].map(|width| heads * width);
        let core = CoreAttention::new(store.device(), core, tokens, (strides, strides), false)?;
        let of = |part: &str| format!("{name}.{part}");
        let (kv_norm, query_norm) = (store.vector(&of("kv_norm.gain"))?, store.vector(&of("q_norm.gain")));
        let (formats, out) = (shape.policy.products(), shape.policy.attention_output());
        let mut product =
            |formats, part: &str, packer: &mut Packer| Product::of_tokens(formats, &of(part), tokens, store, packer);
        let query = match dims.q_rank {
            None => None,
            Some(rank) => {
                let rank = rank as usize;
                Some(Query {
                    down: product(formats, "q_down.weight", packer)?,
                    norm: query_norm?,
                    latent: packer.take(Block::UntilI, tokens * rank),
                    normed: Input::new(
                        packer,
                        Some(formats),
                        (tokens, rank),
                        Block::Forward,
                        packer.recompute().mla_up,
                    ),
                    d_latent: packer.take(Block::FromI, tokens * rank),
                    d_normed: packer.take(Block::Backward, tokens * rank),
                })
            }
        };
        let Recompute { mla_up: up_again, layer, .. } = packer.recompute();
        let widest = dims.q_rank.unwrap_or(0).max(dims.kv_rank) as usize;
        Ok(Self {
            query,
            q_up: product(formats, "q_up.weight", packer)?,
            kv_down: product(formats, "kv_down.weight", packer)?,
            kv_norm,
            kv_up: product(formats, "kv_up.weight", packer)?,
            output: product(out, "output.weight", packer)?,
            down: packer.take(Block::UntilI, tokens * (kv_rank + rope)),
            kv_normed: Input::new(packer, Some(formats), (tokens, kv_rank), Block::Forward, up_again),
            kv: packer.take(Block::Forward, tokens * heads * (nope + value)),
            q: packer.take_if(layer || up_again && dims.q_rank.is_some(), Block::UntilI, tokens * heads * qk),
            k: packer.take_if(layer || up_again, Block::UntilI, tokens * heads * qk),
            v: packer.take_if(layer || up_again, Block::UntilI, tokens * heads * value),
            o: Input::new(packer, Some(out), (tokens, heads * value), Block::UntilI, false),
            log_sums: packer.take(Block::UntilI, tokens * heads),
            d_o: packer.take(Block::Backward, tokens * heads * value),
            d_q: packer.take(Block::FromI, tokens * heads * qk),
            d_k: packer.take(Block::Backward, tokens * heads * qk),
            d_v: packer.take(Block::Backward, tokens * heads * value),
            d_kv: packer.take(Block::FromI, tokens * heads * (nope + value)),
            d_kv_normed: packer.take(Block::Backward, tokens * kv_rank),
            d_down: packer.take(Block::FromI, tokens * (kv_rank + rope)),
            core_scratch: [
                packer.take(Block::Forward, core.forward_scratch()),
                packer.take(Block::Backward, core.gradient_scratch()),
            ],
            gain_scratch: packer.take(Block::Backward, norm::gain_gradient_scratch(tokens, widest)),
            dims: latent::Dims { heads, nope, rope, value },
            core,
        })
    }

    /// See [`super::attention::Attention::forward`].
    pub fn forward(&self, context: &Context, normed: &Input, y: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let all = Groups::one(context.tokens);
        match &self.query {
            Some(query) => query.down.forward(context, normed, all, blocks.at(query.latent), false)?,
            None => {
                let q = blocks.at(self.q);
                self.q_up.forward(context, normed, all, q, false)?;
                self.turn_queries(context, q, Direction::Forward)?;
            }
        }
        let down = blocks.at(self.down);
        self.kv_down.forward(context, normed, all, down, false)?;
        self.turn_shared(context, down, Direction::Forward)?;
        self.up_again(context)?;

        let (o, log_sums, scratch) = (self.o.values(blocks), blocks.at(self.log_sums), blocks.at(self.core_scratch[0]));
        let inputs = self.strided([self.q, self.k, self.v].map(|spot| blocks.at(spot)));
        self.core.forward(stream, sms, inputs, Slice::none(), o, log_sums, scratch)?;
        self.o.complete(context, all)?;
        self.output.forward(context, &self.o, all, y, true)
    }

    /// q, k and v from the latents; q only where it has one.
    pub fn up_again(&self, context: &Context) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (q, k, v) = (blocks.at(self.q), blocks.at(self.k), blocks.at(self.v));
        let (all, epsilon) = (Groups::one(context.tokens), context.epsilon());
        if let Some(query) = &self.query {
            let (latent, gain) = (blocks.at(query.latent), query.norm.values);
            norm::forward(stream, sms, (latent, gain.len()), gain, query.normed.values(blocks), epsilon)?;
            query.normed.complete(context, all)?;
            self.q_up.forward(context, &query.normed, all, q, false)?;
            self.turn_queries(context, q, Direction::Forward)?;
        }
        let (down, kv) = (blocks.at(self.down), blocks.at(self.kv));
        let (gain, stride) = (self.kv_norm.values, self.kv_down.outputs);
        norm::forward(stream, sms, (down, stride), gain, self.kv_normed.values(blocks), epsilon)?;
        self.kv_normed.complete(context, all)?;
        self.kv_up.forward(context, &self.kv_normed, all, kv, false)?;
        latent::spread(stream, sms, kv, (down, stride, gain.len()), k, v, self.dims)
    }

    /// See [`super::attention::Attention::input_gradient`].
    pub fn input_gradient(&self, context: &Context, dy: Slice<Bf16>, d_normed: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let epsilon = context.epsilon();
        let (d_o, d_q, d_k, d_v) = (blocks.at(self.d_o), blocks.at(self.d_q), blocks.at(self.d_k), blocks.at(self.d_v));
        let all = Groups::one(context.tokens);
        self.output.input_gradient(context, dy, all, d_o, false)?;
        let inputs = self.strided([blocks.at(self.q), blocks.at(self.k), blocks.at(self.v)]);
        let gradients = self.strided([d_q, d_k, d_v]);
        let (results, scratch) =
            ((self.o.values(blocks), d_o, blocks.at(self.log_sums)), blocks.at(self.core_scratch[1]));
        let none = Slice::none();
        self.core.input_gradient(stream, sms, inputs, none, results, gradients, none, scratch)?;

        let (d_kv, d_down, d_kv_normed) = (blocks.at(self.d_kv), blocks.at(self.d_down), blocks.at(self.d_kv_normed));
        let (gain, stride) = (self.kv_norm, self.kv_down.outputs);
        let rank = gain.values.len();
        latent::gather(stream, sms, d_kv, (d_down, stride, rank), d_k, d_v, self.dims)?;
        self.kv_up.input_gradient(context, d_kv, all, d_kv_normed, false)?;
        let (down, gain_scratch) = (blocks.at(self.down), blocks.at(self.gain_scratch));
        norm::gain_gradient(stream, sms, (down, stride), d_kv_normed, gain.gradient, gain_scratch, epsilon)?;
        norm::input_gradient(stream, sms, (down, stride), gain.values, d_kv_normed, (d_down, stride), None, epsilon)?;
        self.turn_shared(context, d_down, Direction::Back)?;
        self.kv_down.input_gradient(context, d_down, all, d_normed, false)?;

        self.turn_queries(context, d_q, Direction::Back)?;
        let Some(query) = &self.query else { return self.q_up.input_gradient(context, d_q, all, d_normed, true) };
        let (latent, d_latent, d_query) =
            (blocks.at(query.latent), blocks.at(query.d_latent), blocks.at(query.d_normed));
        self.q_up.input_gradient(context, d_q, all, d_query, false)?;
        let gain = query.norm;
        let width = gain.values.len();
        norm::gain_gradient(stream, sms, (latent, width), d_query, gain.gradient, gain_scratch, epsilon)?;
        norm::input_gradient(stream, sms, (latent, width), gain.values, d_query, (d_latent, width), None, epsilon)?;
        query.down.input_gradient(context, d_latent, all, d_normed, true)
    }

    /// See [`super::attention::Attention::accumulate`].
    pub fn accumulate(&self, context: &Context, normed: &Input, dy: Slice<Bf16>) -> Result<()> {
        let (blocks, all) = (context.blocks, Groups::one(context.tokens));
        self.output.accumulate(context, &self.o, dy, all)?;
        self.kv_up.accumulate(context, &self.kv_normed, blocks.at(self.d_kv), all)?;
        self.kv_down.accumulate(context, normed, blocks.at(self.d_down), all)?;
        match &self.query {
            Some(query) => {
                self.q_up.accumulate(context, &query.normed, blocks.at(self.d_q), all)?;
                query.down.accumulate(context, normed, blocks.at(query.d_latent), all)
            }
            None => self.q_up.accumulate(context, normed, blocks.at(self.d_q), all),
        }
    }

    fn strided(&self, [q, k, v]: [Slice<Bf16>; 3]) -> [Strided; 3] {
        let &Core { heads, qk_dim, value_dim, .. } = self.core.dimensions();
        let of = |values, width: usize| Strided { values, stride: heads * width };
        [of(q, qk_dim), of(k, qk_dim), of(v, value_dim)]
    }

    /// Each head's columns with position.
    fn turn_queries(&self, context: &Context, q: Slice<Bf16>, direction: Direction) -> Result<()> {
        let latent::Dims { heads, nope, rope, .. } = self.dims;
        let width = nope + rope;
        let heads = Heads { row_stride: heads * width, first: 0, heads, head_stride: width, offset: nope, width: rope };
        self.turn(context, q, heads, direction)
    }

    /// The part of k that all heads share.
    fn turn_shared(&self, context: &Context, down: Slice<Bf16>, direction: Direction) -> Result<()> {
        let (row_stride, first, rope) = (self.kv_down.outputs, self.kv_norm.values.len(), self.dims.rope);
        self.turn(
            context,
            down,
            Heads { row_stride, first, heads: 1, head_stride: rope, offset: 0, width: rope },
            direction,
        )
    }

    fn turn(&self, context: &Context, x: Slice<Bf16>, heads: Heads, direction: Direction) -> Result<()> {
        let (base, sequence) = (context.shape.rope_base as f32, self.core.dimensions().sequence);
        rope::turn(context.stream, context.sms, x, heads, sequence, base, direction)
    }
}
