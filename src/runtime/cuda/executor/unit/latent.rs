//! Multi-head latent attention (DeepSeek-V2 report, section 2.1).

use super::{Context, Sizes};
use crate::error::Result;
use crate::job::model::Mla as Dims;
use crate::runtime::cuda::executor::blocks::{Block, Packer, Spot};
use crate::runtime::cuda::executor::store::{Matrix, Store, Vector};
use crate::runtime::cuda::ops::attention::{self, Core, Strided};
use crate::runtime::cuda::ops::rope::{self, Direction, Heads};
use crate::runtime::cuda::ops::{latent, norm};
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// Parameters, and where values lie.
pub struct Latent {
    core: Core,
    dims: latent::Dims,
    query: Option<Query>,
    q_up: Matrix,
    kv_down: Matrix,
    kv_norm: Vector,
    kv_up: Matrix,
    output: Matrix,
    /// tokens × (latent of k and v, rotated part of k).
    down: Spot<Bf16>,
    kv_normed: Spot<Bf16>,
    /// tokens × heads · (k without position, v): only until k and v are spread.
    kv: Spot<Bf16>,
    q: Spot<Bf16>,
    k: Spot<Bf16>,
    v: Spot<Bf16>,
    o: Spot<Bf16>,
    log_sums: Spot<f32>,
    d_o: Spot<Bf16>,
    d_q: Spot<Bf16>,
    d_k: Spot<Bf16>,
    d_v: Spot<Bf16>,
    d_kv: Spot<Bf16>,
    d_kv_normed: Spot<Bf16>,
    d_down: Spot<Bf16>,
    core_scratch: Spot<f32>,
    gain_scratch: Spot<f32>,
}

/// The latent of the query, where it has one.
struct Query {
    down: Matrix,
    norm: Vector,
    latent: Spot<Bf16>,
    normed: Spot<Bf16>,
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
        store: &Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let tokens = sizes.tokens;
        let heads = dims.heads as usize;
        let (nope, rope) = (dims.nope_dim as usize, dims.rope_dim as usize);
        let (value, kv_rank) = (dims.value_dim as usize, dims.kv_rank as usize);
        let qk = nope + rope;
        let core =
            Core { heads, kv_heads: heads, qk_dim: qk, value_dim: value, sequence: shape.sequence, window: None };
        let of = |part: &str| format!("{name}.{part}");
        let mut query = |rank: u32| -> Result<Query> {
            let mut take = |block| packer.take(block, tokens * rank as usize);
            Ok(Query {
                down: store.matrix(&of("q_down.weight"))?,
                norm: store.vector(&of("q_norm.gain"))?,
                latent: take(Block::UntilI),
                normed: take(Block::UntilW),
                d_latent: take(Block::FromI),
                d_normed: take(Block::Backward),
            })
        };
        let query = dims.q_rank.map(&mut query).transpose()?;
        let widest = dims.q_rank.unwrap_or(0).max(dims.kv_rank) as usize;
        Ok(Self {
            query,
            q_up: store.matrix(&of("q_up.weight"))?,
            kv_down: store.matrix(&of("kv_down.weight"))?,
            kv_norm: store.vector(&of("kv_norm.gain"))?,
            kv_up: store.matrix(&of("kv_up.weight"))?,
            output: store.matrix(&of("output.weight"))?,
            down: packer.take(Block::UntilI, tokens * (kv_rank + rope)),
            kv_normed: packer.take(Block::UntilW, tokens * kv_rank),
            kv: packer.take(Block::Forward, tokens * heads * (nope + value)),
            q: packer.take(Block::UntilI, tokens * heads * qk),
            k: packer.take(Block::UntilI, tokens * heads * qk),
            v: packer.take(Block::UntilI, tokens * heads * value),
            o: packer.take(Block::UntilW, tokens * heads * value),
            log_sums: packer.take(Block::UntilI, tokens * heads),
            d_o: packer.take(Block::Backward, tokens * heads * value),
            d_q: packer.take(Block::FromI, tokens * heads * qk),
            d_k: packer.take(Block::Backward, tokens * heads * qk),
            d_v: packer.take(Block::Backward, tokens * heads * value),
            d_kv: packer.take(Block::FromI, tokens * heads * (nope + value)),
            d_kv_normed: packer.take(Block::Backward, tokens * kv_rank),
            d_down: packer.take(Block::FromI, tokens * (kv_rank + rope)),
            core_scratch: packer.take(Block::Backward, attention::gradient_scratch(&core, tokens)),
            gain_scratch: packer.take(Block::Backward, norm::gain_gradient_scratch(tokens, widest)),
            dims: latent::Dims { heads, nope, rope, value },
            core,
        })
    }

    /// See [`super::attention::Attention::forward`].
    pub fn forward(&self, context: &Context, normed: Slice<Bf16>, y: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (q, k, v) = (blocks.at(self.q), blocks.at(self.k), blocks.at(self.v));
        let queries = match &self.query {
            Some(query) => {
                let (latent, normed_latent) = (blocks.at(query.latent), blocks.at(query.normed));
                context.product(normed, query.down, latent, false)?;
                let gain = query.norm.values;
                norm::forward(stream, sms, (latent, gain.len()), gain, normed_latent, context.epsilon())?;
                normed_latent
            }
            None => normed,
        };
        context.product(queries, self.q_up, q, false)?;
        self.turn_queries(context, q, Direction::Forward)?;

        let (down, kv_normed, kv) = (blocks.at(self.down), blocks.at(self.kv_normed), blocks.at(self.kv));
        context.product(normed, self.kv_down, down, false)?;
        self.turn_shared(context, down, Direction::Forward)?;
        let (gain, stride) = (self.kv_norm.values, self.kv_down.outputs);
        norm::forward(stream, sms, (down, stride), gain, kv_normed, context.epsilon())?;
        context.product(kv_normed, self.kv_up, kv, false)?;
        latent::spread(stream, sms, kv, (down, stride, gain.len()), k, v, self.dims)?;

        let (o, log_sums) = (blocks.at(self.o), blocks.at(self.log_sums));
        let [q, k, v] = self.strided([q, k, v]);
        attention::forward(stream, sms, &self.core, q, k, v, Slice::none(), o, log_sums)?;
        context.product(o, self.output, y, true)
    }

    /// See [`super::attention::Attention::input_gradient`].
    pub fn input_gradient(&self, context: &Context, dy: Slice<Bf16>, d_normed: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let epsilon = context.epsilon();
        let (d_o, d_q, d_k, d_v) = (blocks.at(self.d_o), blocks.at(self.d_q), blocks.at(self.d_k), blocks.at(self.d_v));
        context.product_input(dy, self.output, d_o, false)?;
        let [q, k, v] = self.strided([blocks.at(self.q), blocks.at(self.k), blocks.at(self.v)]);
        let [strided_q, strided_k, strided_v] = self.strided([d_q, d_k, d_v]);
        let (o, log_sums, scratch) = (blocks.at(self.o), blocks.at(self.log_sums), blocks.at(self.core_scratch));
        let none = Slice::none();
        attention::input_gradient(
            stream, sms, &self.core, q, k, v, none, o, d_o, log_sums, strided_q, strided_k, strided_v, none, scratch,
        )?;

        let (d_kv, d_down, d_kv_normed) = (blocks.at(self.d_kv), blocks.at(self.d_down), blocks.at(self.d_kv_normed));
        let (gain, stride) = (self.kv_norm, self.kv_down.outputs);
        let rank = gain.values.len();
        latent::gather(stream, sms, d_kv, (d_down, stride, rank), d_k, d_v, self.dims)?;
        context.product_input(d_kv, self.kv_up, d_kv_normed, false)?;
        let (down, gain_scratch) = (blocks.at(self.down), blocks.at(self.gain_scratch));
        norm::gain_gradient(stream, sms, (down, stride), d_kv_normed, gain.gradient, gain_scratch, epsilon)?;
        norm::input_gradient(stream, sms, (down, stride), gain.values, d_kv_normed, (d_down, stride), None, epsilon)?;
        self.turn_shared(context, d_down, Direction::Back)?;
        context.product_input(d_down, self.kv_down, d_normed, false)?;

        self.turn_queries(context, d_q, Direction::Back)?;
        let Some(query) = &self.query else { return context.product_input(d_q, self.q_up, d_normed, true) };
        let (latent, d_latent, d_query) =
            (blocks.at(query.latent), blocks.at(query.d_latent), blocks.at(query.d_normed));
        context.product_input(d_q, self.q_up, d_query, false)?;
        let gain = query.norm;
        let width = gain.values.len();
        norm::gain_gradient(stream, sms, (latent, width), d_query, gain.gradient, gain_scratch, epsilon)?;
        norm::input_gradient(stream, sms, (latent, width), gain.values, d_query, (d_latent, width), None, epsilon)?;
        context.product_input(d_latent, query.down, d_normed, true)
    }

    /// See [`super::attention::Attention::accumulate`].
    pub fn accumulate(&self, context: &Context, normed: Slice<Bf16>, dy: Slice<Bf16>) -> Result<()> {
        let blocks = context.blocks;
        context.product_weight(blocks.at(self.o), dy, self.output)?;
        context.product_weight(blocks.at(self.kv_normed), blocks.at(self.d_kv), self.kv_up)?;
        context.product_weight(normed, blocks.at(self.d_down), self.kv_down)?;
        match &self.query {
            Some(query) => {
                context.product_weight(blocks.at(query.normed), blocks.at(self.d_q), self.q_up)?;
                context.product_weight(normed, blocks.at(query.d_latent), query.down)
            }
            None => context.product_weight(normed, blocks.at(self.d_q), self.q_up),
        }
    }

    fn strided(&self, [q, k, v]: [Slice<Bf16>; 3]) -> [Strided; 3] {
        let Core { heads, qk_dim, value_dim, .. } = self.core;
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
        let (base, sequence) = (context.shape.rope_base as f32, self.core.sequence);
        rope::turn(context.stream, context.sms, x, heads, sequence, base, direction)
    }
}
