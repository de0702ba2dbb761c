//! Multi-head and grouped-query attention.

use super::product::{Input, Product};
use super::{Context, Sizes};
use crate::error::Result;
use crate::job::model::MultiHead as Dims;
use crate::runtime::cuda::core_attention::CoreAttention;
use crate::runtime::cuda::executor::blocks::{Block, Packer, Spot};
use crate::runtime::cuda::executor::store::{Store, Vector};
use crate::runtime::cuda::ops::attention::{Core, Strided};
use crate::runtime::cuda::ops::quantise::Groups;
use crate::runtime::cuda::ops::rope::{self, Direction, Heads};
use crate::runtime::cuda::ops::{bias, element, norm};
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// Parameters, and where values lie.
pub struct MultiHead {
    core: CoreAttention,
    qkv: Product,
    qkv_bias: Option<Vector>,
    head_norms: Option<HeadNorms>,
    sinks: Option<Vector>,
    output: Product,
    output_bias: Option<Vector>,
    /// tokens × (q, k, v); rotated in place where heads have no norm.
    qkv_values: Spot<Bf16>,
    /// tokens × heads · width.
    o: Input,
    /// sequences × heads × tokens of a sequence.
    log_sums: Spot<f32>,
    d_qkv: Spot<Bf16>,
    d_o: Spot<Bf16>,
    /// Forward, and for the gradient.
    core_scratch: [Spot<u8>; 2],
    bias_scratch: Spot<f32>,
}

/// Norms of each head of q and of k (Qwen3).
struct HeadNorms {
    gains: [Vector; 2],
    /// As they come from the projection: tokens × heads · width.
    raw: [Spot<Bf16>; 2],
    /// Normed and rotated.
    turned: [Spot<Bf16>; 2],
    /// Gradients of both, of k in the place of q.
    gradients: [Spot<Bf16>; 2],
    scratch: Spot<f32>,
}

impl MultiHead {
    /// `name` is what stands in front of its tensors, `number` that of the layer.
    pub fn new(
        shape: &Shape,
        dims: &Dims,
        (name, number): (&str, u32),
        sizes: Sizes,
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let tokens = sizes.tokens;
        let width = dims.head_dim as usize;
        let (heads, kv_heads) = (dims.heads as usize, dims.kv_heads() as usize);
        let window = dims.window.as_ref().filter(|window| window.layers.contains(number));
        let core = Core {
            heads,
            kv_heads,
            qk_dim: width,
            value_dim: width,
            sequence: shape.sequence,
            window: window.map(|window| window.size as usize),
        };
        let of = |part: &str| format!("{name}.{part}");
        let all = (heads + 2 * kv_heads) * width;
        let widest = all.max(shape.hidden());
        let mut head_norms = || -> Result<HeadNorms> {
            let mut pair = |block| [heads, kv_heads].map(|heads| packer.take(block, tokens * heads * width));
            let (raw, turned) = (pair(Block::UntilI), pair(Block::UntilI));
            let [first, _] = pair(Block::Backward);
            let [second, _] = pair(Block::Backward);
            Ok(HeadNorms {
                gains: [store.vector(&of("q_norm.gain"))?, store.vector(&of("k_norm.gain"))?],
                raw,
                turned,
                gradients: [first, second],
                scratch: packer.take(Block::Backward, norm::gain_gradient_scratch(tokens * heads, width)),
            })
        };
        let out = shape.policy.attention_output();
        let head_norms = dims.qk_norm.then(&mut head_norms).transpose()?;
        let sinks = store.vector_if_any(&of("sinks"));
        let inputs = if head_norms.is_some() { [heads * width, kv_heads * width, all] } else { [all; 3] };
        let core = CoreAttention::new(store.device(), core, tokens, (inputs, [all; 3]), sinks.is_some())?;
        Ok(Self {
            qkv: Product::of_tokens(shape.policy.products(), &of("qkv.weight"), tokens, store, packer)?,
            qkv_bias: store.vector_if_any(&of("qkv.bias")),
            head_norms,
            sinks,
            output: Product::of_tokens(out, &of("output.weight"), tokens, store, packer)?,
            output_bias: store.vector_if_any(&of("output.bias")),
            qkv_values: packer.take(Block::UntilI, tokens * all),
            o: Input::new(packer, Some(out), (tokens, heads * width), Block::UntilI, false),
            log_sums: packer.take(Block::UntilI, tokens * heads),
            d_qkv: packer.take(Block::FromI, tokens * all),
            d_o: packer.take(Block::Backward, tokens * heads * width),
            core_scratch: [
                packer.take(Block::Forward, core.forward_scratch()),
                packer.take(Block::Backward, core.gradient_scratch()),
            ],
            bias_scratch: packer.take(Block::Weights, bias::gradient_scratch(tokens, widest)),
            core,
        })
    }

    /// See [`super::attention::Attention::forward`].
    pub fn forward(&self, context: &Context, normed: &Input, y: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let qkv = blocks.at(self.qkv_values);
        let all = Groups::one(context.tokens);
        self.qkv.forward(context, normed, all, qkv, false)?;
        if let Some(added) = self.qkv_bias {
            bias::add(stream, sms, qkv, added.values)?;
        }
        if let Some(norms) = &self.head_norms {
            for part in 0..2 {
                let (raw, turned) = (blocks.at(norms.raw[part]), blocks.at(norms.turned[part]));
                let columns = self.columns(part);
                let row = columns.len();
                let from = (qkv.part(columns.start..qkv.len()), self.qkv.outputs);
                element::copy_columns(stream, sms, from, (raw, row), context.tokens, row)?;
                let gain = norms.gains[part].values;
                norm::forward(stream, sms, (raw, gain.len()), gain, turned, context.epsilon())?;
            }
        }
        self.turn(context, self.turned(context, qkv), Direction::Forward)?;
        let (o, log_sums, scratch) = (self.o.values(blocks), blocks.at(self.log_sums), blocks.at(self.core_scratch[0]));
        self.core.forward(stream, sms, self.core_inputs(context, qkv), self.sinks(), o, log_sums, scratch)?;
        self.o.complete(context, all)?;
        self.output.forward(context, &self.o, all, y, true)?;
        match self.output_bias {
            Some(added) => bias::add(stream, sms, y, added.values),
            None => Ok(()),
        }
    }

    /// See [`super::attention::Attention::input_gradient`].
    pub fn input_gradient(&self, context: &Context, dy: Slice<Bf16>, d_normed: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (qkv, d_qkv, d_o) = (blocks.at(self.qkv_values), blocks.at(self.d_qkv), blocks.at(self.d_o));
        let all = Groups::one(context.tokens);
        self.output.input_gradient(context, dy, all, d_o, false)?;
        let (inputs, gradients) = (self.core_inputs(context, qkv), self.parts(d_qkv));
        let (results, scratch) =
            ((self.o.values(blocks), d_o, blocks.at(self.log_sums)), blocks.at(self.core_scratch[1]));
        let d_sinks = self.sinks.map_or(Slice::none(), |sinks| sinks.gradient);
        self.core.input_gradient(stream, sms, inputs, self.sinks(), results, gradients, d_sinks, scratch)?;
        self.turn(context, [(d_qkv, 0), (d_qkv, self.columns(1).start)], Direction::Back)?;
        if let Some(norms) = &self.head_norms {
            let [first, second] = norms.gradients.map(|spot| blocks.at(spot));
            for part in 0..2 {
                let raw = blocks.at(norms.raw[part]);
                let (dy, dx) = (first.part(0..raw.len()), second.part(0..raw.len()));
                let columns = self.columns(part);
                let (row, place) = (columns.len(), (d_qkv.part(columns.start..d_qkv.len()), self.qkv.outputs));
                element::copy_columns(stream, sms, place, (dy, row), context.tokens, row)?;
                let (gain, epsilon) = (norms.gains[part], context.epsilon());
                let width = gain.values.len();
                let scratch = blocks.at(norms.scratch);
                norm::gain_gradient(stream, sms, (raw, width), dy, gain.gradient, scratch, epsilon)?;
                norm::input_gradient(stream, sms, (raw, width), gain.values, dy, (dx, width), None, epsilon)?;
                element::copy_columns(stream, sms, (dx, row), place, context.tokens, row)?;
            }
        }
        self.qkv.input_gradient(context, d_qkv, all, d_normed, false)
    }

    /// See [`super::attention::Attention::accumulate`].
    pub fn accumulate(&self, context: &Context, normed: &Input, dy: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (d_qkv, scratch) = (blocks.at(self.d_qkv), blocks.at(self.bias_scratch));
        let all = Groups::one(context.tokens);
        self.output.accumulate(context, &self.o, dy, all)?;
        self.qkv.accumulate(context, normed, d_qkv, all)?;
        for (added, gradient) in [(self.qkv_bias, d_qkv), (self.output_bias, dy)] {
            if let Some(added) = added {
                bias::gradient(stream, sms, gradient, added.gradient, scratch)?;
            }
        }
        Ok(())
    }

    fn sinks(&self) -> Slice<f32> {
        self.sinks.map_or(Slice::none(), |sinks| sinks.values)
    }

    /// Columns of q, k and v in the projection's result.
    fn columns(&self, part: usize) -> std::ops::Range<usize> {
        let &Core { heads, kv_heads, qk_dim, .. } = self.core.dimensions();
        let ends = [0, heads, heads + kv_heads, heads + 2 * kv_heads].map(|heads| heads * qk_dim);
        ends[part]..ends[part + 1]
    }

    /// q, k and v in a matrix that has them side by side.
    fn parts(&self, all: Slice<Bf16>) -> [Strided; 3] {
        [0, 1, 2]
            .map(|part| Strided { values: all.part(self.columns(part).start..all.len()), stride: self.qkv.outputs })
    }

    /// What the core reads.
    fn core_inputs(&self, context: &Context, qkv: Slice<Bf16>) -> [Strided; 3] {
        let [q, k, v] = self.parts(qkv);
        match &self.head_norms {
            None => [q, k, v],
            Some(norms) => {
                let turned = |part: usize| Strided {
                    values: context.blocks.at(norms.turned[part]),
                    stride: self.columns(part).len(),
                };
                [turned(0), turned(1), v]
            }
        }
    }

    /// Where q and k are turned: the matrix, and the first column of their heads in it.
    fn turned(&self, context: &Context, qkv: Slice<Bf16>) -> [(Slice<Bf16>, usize); 2] {
        match &self.head_norms {
            None => [(qkv, 0), (qkv, self.columns(1).start)],
            Some(norms) => norms.turned.map(|spot| (context.blocks.at(spot), 0)),
        }
    }

    fn turn(&self, context: &Context, qk: [(Slice<Bf16>, usize); 2], direction: Direction) -> Result<()> {
        let &Core { heads, kv_heads, qk_dim, sequence, .. } = self.core.dimensions();
        for ((x, first), heads) in qk.into_iter().zip([heads, kv_heads]) {
            let row_stride = x.len() / context.tokens;
            let heads = Heads { row_stride, first, heads, head_stride: qk_dim, offset: 0, width: qk_dim };
            let base = context.shape.rope_base as f32;
            rope::turn(context.stream, context.sms, x, heads, sequence, base, direction)?;
        }
        Ok(())
    }
}
