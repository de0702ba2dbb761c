//! The router and the routed experts of a layer, with what goes out to them and comes back.

use super::product::{Input, Product};
use super::{Context, Exchange, Sizes, absent};
use crate::error::Result;
use crate::job::model::{Dtype, Moe};
use crate::runtime::cuda::exchange::Routed;
use crate::runtime::cuda::executor::blocks::{Block, Blocks, Packer, Spot};
use crate::runtime::cuda::executor::store::{Matrix, Store, Vector};
use crate::runtime::cuda::ops::exchange::{self, Returned};
use crate::runtime::cuda::ops::quantise::{self, Groups};
use crate::runtime::cuda::ops::router::{self, Rule};
use crate::runtime::cuda::ops::swiglu;
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// Parameters, and where values lie.
pub struct Experts {
    rule: Rule,
    hidden: usize,
    /// Rows of routed tokens that there is room for.
    capacity: usize,
    router: Matrix,
    balance: Option<Vector>,
    gate_up: Product,
    down: Product,
    /// Width between the matrices.
    width: usize,
    /// tokens × experts.
    scores: Spot<f32>,
    d_logits: Spot<Bf16>,
    routing: Routing,
    /// Where exchanges that send tokens and gradients to experts do so in FP8: what is sent, in F and in I.
    sent: Option<[Spot<Bf16>; 2]>,
    /// capacity × hidden, and so on: rows of routed tokens, by expert.
    arrived: Input,
    inner: Spot<Bf16>,
    active: Input,
    results: Spot<Bf16>,
    /// tokens · top-k × hidden.
    returned: Spot<Bf16>,
    d_results: Spot<Bf16>,
    d_active: Spot<Bf16>,
    d_inner: Spot<Bf16>,
    d_arrived: Spot<Bf16>,
    d_returned: Spot<Bf16>,
    d_row_weights: Spot<f32>,
    d_weights: Spot<f32>,
}

/// Where [`Routed`] lies.
struct Routing {
    experts: Spot<u32>,
    weights: Spot<f32>,
    rows: Spot<u32>,
    offsets: Spot<u32>,
    sources: Spot<u32>,
    row_weights: Spot<f32>,
}

impl Experts {
    /// `name` is what stands in front of the layer's tensors.
    pub fn new(
        shape: &Shape,
        moe: &Moe,
        name: &str,
        sizes: Sizes,
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let Sizes { tokens, capacity, local_experts, first_expert } = sizes;
        let of = |part: &str| format!("{name}.{part}");
        if store.vector_if_any(&of("router.logits.bias")).is_some() {
            return Err(absent("routers with biases"));
        }
        if moe.shared_gate {
            return Err(absent("gates of shared experts"));
        }
        let expert = |number: u32, part: &str| of(&format!("mlp.experts.{number}.{part}"));
        if store.vector_if_any(&expert(first_expert, "gate_up.bias")).is_some() {
            return Err(absent("experts with biases"));
        }
        let formats = shape.policy.expert();
        let names = |part: &str| -> Vec<String> {
            let numbers = first_expert..first_expert + local_experts as u32;
            numbers.map(|number| expert(number, part)).collect()
        };
        let gate_up = Product::of_experts(formats.gate_up, &names("gate_up.weight"), capacity, store, packer)?;
        let down = Product::of_experts(formats.down, &names("down.weight"), capacity, store, packer)?;
        let width = down.inputs;
        let (hidden, experts, top_k) = (shape.hidden(), moe.experts as usize, moe.top_k as usize);
        let sent = tokens * top_k;
        Ok(Self {
            rule: Rule {
                experts,
                groups: moe.groups as usize,
                topk_groups: moe.topk_groups as usize,
                top_k,
                scoring: shape.routing.scoring,
                normalised: shape.routing.normalised,
                factor: shape.routing.factor as f32,
            },
            hidden,
            capacity,
            router: store.matrix(&of("router.logits.weight"))?,
            balance: store.vector_if_any(&of("router.balance")),
            gate_up,
            down,
            width,
            scores: packer.take(Block::UntilI, tokens * experts),
            d_logits: packer.take(Block::FromI, tokens * experts),
            routing: Routing {
                experts: packer.take(Block::UntilI, sent),
                weights: packer.take(Block::UntilI, sent),
                rows: packer.take(Block::UntilI, sent),
                offsets: packer.take(Block::UntilW, local_experts + 1),
                sources: packer.take(Block::UntilI, capacity),
                row_weights: packer.take(Block::UntilI, capacity),
            },
            sent: (shape.policy.dispatch() == Some(Dtype::Fp8))
                .then(|| [Block::Forward, Block::Backward].map(|block| packer.take(block, tokens * hidden))),
            arrived: Input::new(packer, Some(formats.gate_up), (capacity, hidden), Block::Forward),
            inner: packer.take(Block::UntilI, capacity * 2 * width),
            active: Input::new(packer, Some(formats.down), (capacity, width), Block::Forward),
            results: packer.take(Block::Forward, capacity * hidden),
            returned: packer.take(Block::Forward, sent * hidden),
            d_results: packer.take(Block::FromI, capacity * hidden),
            d_active: packer.take(Block::Backward, capacity * width),
            d_inner: packer.take(Block::FromI, capacity * 2 * width),
            d_arrived: packer.take(Block::Backward, capacity * hidden),
            d_returned: packer.take(Block::Backward, sent * hidden),
            d_row_weights: packer.take(Block::Backward, capacity),
            d_weights: packer.take(Block::Backward, sent),
        })
    }

    /// Where each of the tokens goes.
    pub fn route(&self, context: &Context, tokens: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let scores = blocks.at(self.scores);
        context.product(tokens, self.router, scores, false)?;
        let bias = self.balance.map_or(Slice::none(), |bias| bias.values);
        let routed = self.routed(blocks);
        router::forward(stream, sms, &self.rule, scores, bias, (routed.experts, routed.weights))
    }

    /// F of dispatch.
    pub fn dispatch(&self, context: &Context, exchange: &mut Exchange, tokens: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (tokens, arrived) = (self.sent(context, 0, tokens)?, self.arrived.values(blocks));
        exchange.member.dispatch(
            (stream, exchange.watch),
            sms,
            tokens,
            self.hidden,
            0..context.tokens,
            &self.routed(blocks),
            arrived,
        )
    }

    /// F of the experts.
    pub fn forward(&self, context: &Context) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (groups, weights) = (self.groups(blocks), blocks.at(self.routing.row_weights));
        let (inner, active) = (blocks.at(self.inner), self.active.values(blocks));
        self.arrived.complete(context, groups)?;
        self.gate_up.forward(context, &self.arrived, groups, inner, false)?;
        swiglu::forward(stream, sms, inner, weights, active, self.width, groups.rows())?;
        self.active.complete(context, groups)?;
        self.down.forward(context, &self.active, groups, blocks.at(self.results), false)
    }

    /// F of combine, but for the sum.
    pub fn combine(&self, context: &Context, exchange: &mut Exchange) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (results, returned) = (blocks.at(self.results), blocks.at(self.returned));
        exchange.member.combine((stream, exchange.watch), sms, results, self.hidden, &self.routed(blocks), returned)
    }

    /// `y` = the residual stream with all that came back, and the shared expert's result.
    pub fn sum(&self, context: &Context, stream: Slice<Bf16>, shared: Slice<Bf16>, y: Slice<Bf16>) -> Result<()> {
        let returned = context.blocks.at(self.returned);
        exchange::sum(
            context.stream,
            context.sms,
            (Returned::ByToken(returned), self.rule.top_k),
            self.hidden,
            [stream, shared],
            y,
        )
    }

    /// I of combine.
    pub fn combine_gradient(&self, context: &Context, exchange: &mut Exchange, dy: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (dy, d_results) = (self.sent(context, 1, dy)?, blocks.at(self.d_results));
        exchange.member.combine_gradient(
            (stream, exchange.watch),
            sms,
            dy,
            self.hidden,
            0..context.tokens,
            &self.routed(blocks),
            d_results,
        )
    }

    /// I of the experts.
    pub fn input_gradient(&self, context: &Context) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (groups, weights) = (self.groups(blocks), blocks.at(self.routing.row_weights));
        let (d_active, d_inner) = (blocks.at(self.d_active), blocks.at(self.d_inner));
        self.down.input_gradient(context, blocks.at(self.d_results), groups, d_active, false)?;
        let (inner, d_weights) = (blocks.at(self.inner), blocks.at(self.d_row_weights));
        let (width, rows) = (self.width, groups.rows());
        swiglu::input_gradient(stream, sms, inner, weights, d_active, d_inner, d_weights, width, rows)?;
        self.gate_up.input_gradient(context, d_inner, groups, blocks.at(self.d_arrived), false)
    }

    /// I of dispatch, but for the sum.
    pub fn dispatch_gradient(&self, context: &Context, exchange: &mut Exchange) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (d_arrived, d_row_weights) = (blocks.at(self.d_arrived), blocks.at(self.d_row_weights));
        let (d_returned, d_weights) = (blocks.at(self.d_returned), blocks.at(self.d_weights));
        let routed = self.routed(blocks);
        exchange.member.dispatch_gradient(
            (stream, exchange.watch),
            sms,
            (d_arrived, d_row_weights),
            self.hidden,
            &routed,
            (d_returned, d_weights),
        )
    }

    /// The gradient of the tokens: what came back, what the shared expert adds, and what the router does. Loads are counted.
    pub fn tokens_gradient(&self, context: &Context, shared: Slice<Bf16>, d_tokens: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (d_returned, d_weights) = (blocks.at(self.d_returned), blocks.at(self.d_weights));
        exchange::sum(
            stream,
            sms,
            (Returned::ByToken(d_returned), self.rule.top_k),
            self.hidden,
            [shared, Slice::none()],
            d_tokens,
        )?;
        let (scores, experts, d_logits) =
            (blocks.at(self.scores), blocks.at(self.routing.experts), blocks.at(self.d_logits));
        router::input_gradient(stream, sms, &self.rule, (scores, experts), d_weights, d_logits)?;
        if let Some(balance) = self.balance {
            router::loads(stream, experts, balance.gradient)?;
        }
        context.product_input(d_logits, self.router, d_tokens, true)
    }

    /// W of the router.
    pub fn accumulate_router(&self, context: &Context, tokens: Slice<Bf16>) -> Result<()> {
        context.product_weight(tokens, context.blocks.at(self.d_logits), self.router)
    }

    /// W of the experts.
    pub fn accumulate(&self, context: &Context) -> Result<()> {
        let (blocks, groups) = (context.blocks, self.groups(context.blocks));
        self.down.accumulate(context, &self.active, blocks.at(self.d_results), groups)?;
        self.gate_up.accumulate(context, &self.arrived, blocks.at(self.d_inner), groups)
    }

    fn routed(&self, blocks: &Blocks) -> Routed {
        let of = &self.routing;
        Routed {
            experts: blocks.at(of.experts),
            weights: blocks.at(of.weights),
            rows: blocks.at(of.rows),
            offsets: blocks.at(of.offsets),
            sources: blocks.at(of.sources),
            row_weights: blocks.at(of.row_weights),
        }
    }

    /// Rows that the experts have.
    fn groups(&self, blocks: &Blocks) -> Groups {
        Groups { most: self.capacity, offsets: blocks.at(self.routing.offsets) }
    }

    /// What of rows is sent to experts, in F (0) or in I (1): themselves, or rounded to FP8. They travel as bf16, so as many bytes.
    fn sent(&self, context: &Context, phase: usize, rows: Slice<Bf16>) -> Result<Slice<Bf16>> {
        let Some(spots) = self.sent else { return Ok(rows) };
        let sent = context.blocks.at(spots[phase]);
        quantise::round_rows(context.stream, context.sms, rows, sent, self.hidden)?;
        Ok(sent)
    }
}
