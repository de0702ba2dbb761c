//! The router and the routed experts of a layer, with what goes out to them and comes back.
//!
//! Between dispatch and combine tokens may be cut into parts; each has its own rows at the experts, so that a part can be worked on while
//! another one is on its way. Rows of a part are ordered by expert, place and token.
//!
//! The routing is kept from F to I even where all else of the layer is computed again: combine's backward reads nothing else, and so waits
//! for nothing that is, and sums in another order could choose other experts.

use super::expert_biases::ExpertBiases;
use super::passage::{Passage, Returns, Target};
use super::product::{Gradient, Input, Product, Tiles, in_fp8};
use super::{Context, Exchange, Parts, Sizes};
use crate::error::Result;
use crate::ir::Phase;
use crate::job::model::{Dtype, Moe};
use crate::runtime::cuda::exchange::Routed;
use crate::runtime::cuda::executor::blocks::{Block, Blocks, Packer, Spot};
use crate::runtime::cuda::executor::forms::{Form, Forms, Ways};
use crate::runtime::cuda::executor::store::{Matrix, Store, Vector};
use crate::runtime::cuda::ops::quantise::Groups;
use crate::runtime::cuda::ops::router::{self, Rule};
use crate::runtime::cuda::ops::{bias, swiglu};
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// Parameters, and where values lie.
pub struct Experts {
    rule: Rule,
    /// GPUs that share the experts.
    places: usize,
    router: Matrix,
    router_bias: Option<Vector>,
    bias_scratch: Spot<f32>,
    balance: Option<Vector>,
    gate_up: Product,
    down: Product,
    biases: Option<ExpertBiases>,
    /// Width between the matrices.
    width: usize,
    /// tokens × experts.
    scores: Spot<f32>,
    d_logits: Spot<Bf16>,
    /// tokens × top-k.
    experts: Spot<u32>,
    weights: Spot<f32>,
    rows: Spot<u32>,
    d_weights: Spot<f32>,
    /// In F and in I.
    returned: [Returns; 2],
    parts: Vec<Part>,
}

/// Where the values of a part of the tokens lie.
struct Part {
    /// To the experts and back, in F and in I.
    passages: [Passage; 2],
    /// Rows of routed tokens that there is room for.
    capacity: usize,
    offsets: Spot<u32>,
    sources: Spot<u32>,
    row_weights: Spot<f32>,
    /// capacity × hidden, and so on: rows of routed tokens, by expert.
    arrived: Input,
    inner: Spot<Bf16>,
    active: Input,
    results: Spot<Bf16>,
    /// In FP8 where it comes so and is read so.
    d_results: DResults,
    d_active: Spot<Bf16>,
    d_inner: Spot<Bf16>,
    d_arrived: Spot<Bf16>,
    d_row_weights: Spot<f32>,
}

/// Where the gradients of the experts' results lie: capacity × hidden.
#[derive(Clone, Copy)]
enum DResults {
    Values(Spot<Bf16>),
    Quantised(Tiles),
}

impl DResults {
    /// As combine's backward brings it.
    fn target(self, blocks: &Blocks) -> Target {
        match self {
            Self::Values(spot) => Target::Bf16(blocks.at(spot)),
            Self::Quantised(tiles) => Target::Fp8(tiles.at(blocks)),
        }
    }

    /// As products read it.
    fn gradient(self, blocks: &Blocks) -> Gradient {
        match self {
            Self::Values(spot) => Gradient::Values(blocks.at(spot)),
            Self::Quantised(tiles) => Gradient::Quantised(tiles.at(blocks)),
        }
    }
}

impl Experts {
    /// `name` is what stands in front of the layer's tensors.
    pub fn new(
        shape: &Shape,
        moe: &Moe,
        name: &str,
        (sizes, forms, unit): (Sizes, &Forms, usize),
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let Sizes { tokens, local_experts, first_expert, .. } = sizes;
        let of = |part: &str| format!("{name}.{part}");
        let expert = |number: u32, part: &str| of(&format!("mlp.experts.{number}.{part}"));
        let formats = shape.policy.expert();
        let names = |part: &str| -> Vec<String> {
            let numbers = first_expert..first_expert + local_experts as u32;
            numbers.map(|number| expert(number, part)).collect()
        };
        // Parts are equal, and so is their room.
        let cut = forms.parts(unit);
        let capacity = sizes.capacity / cut;
        let narrow = shape.policy.dispatch() == Some(Dtype::Fp8);
        let router_bias = store.vector_if_any(&of("router.logits.bias"));
        let biases = moe.expert_bias.then(|| ExpertBiases::new(names, store)).transpose()?;
        // What the job sends in FP8 is never there in bf16, if products alone read it, and in FP8.
        let (x_comes, dy_comes) =
            (narrow && in_fp8(&formats.gate_up), narrow && in_fp8(&formats.down) && biases.is_none());
        let (gate_up, down) = (names("gate_up.weight"), names("down.weight"));
        let gate_up = Product::of_experts(formats.gate_up, &gate_up, (capacity, false), store, packer)?;
        let down = Product::of_experts(formats.down, &down, (capacity, dy_comes), store, packer)?;
        let width = down.inputs;
        let (hidden, experts, top_k) = (shape.hidden(), moe.experts as usize, moe.top_k as usize);
        let entries = tokens * top_k;
        let swiglu_again = packer.recompute().swiglu;
        let part = |number: usize, packer: &mut Packer| {
            let range = number * tokens / cut..(number + 1) * tokens / cut;
            let way = |phase, comes, packer: &mut Packer| {
                let rows = if comes { 0 } else { capacity };
                Passage::new(sizes, (forms, unit), phase, (range.clone(), capacity, rows), (hidden, narrow), packer)
            };
            Part {
                passages: [way(Phase::F, x_comes, packer), way(Phase::I, dy_comes, packer)],
                capacity,
                offsets: packer.take_once(Block::UntilW, local_experts + 1),
                sources: packer.take_once(Block::UntilI, capacity),
                row_weights: packer.take_once(Block::UntilI, capacity),
                arrived: match x_comes {
                    true => Input::arriving(packer, formats.gate_up, (capacity, hidden)),
                    false => Input::new(packer, Some(formats.gate_up), (capacity, hidden), Block::Forward, false),
                },
                inner: packer.take(Block::UntilI, capacity * 2 * width),
                active: Input::new(packer, Some(formats.down), (capacity, width), Block::Forward, swiglu_again),
                results: packer.take_once(Block::Forward, capacity * hidden),
                d_results: match dy_comes {
                    true => DResults::Quantised(Tiles::take(packer, Block::FromI, capacity, hidden)),
                    false => DResults::Values(packer.take(Block::FromI, capacity * hidden)),
                },
                d_active: packer.take(Block::Backward, capacity * width),
                d_inner: packer.take(Block::FromI, capacity * 2 * width),
                d_arrived: packer.take(Block::Backward, capacity * hidden),
                d_row_weights: packer.take(Block::Backward, capacity),
            }
        };
        Ok(Self {
            parts: (0..cut).map(|number| part(number, packer)).collect(),
            rule: Rule {
                experts,
                groups: moe.groups as usize,
                topk_groups: moe.topk_groups as usize,
                top_k,
                scoring: shape.routing.scoring,
                normalised: shape.routing.normalised,
                factor: shape.routing.factor as f32,
            },
            places: sizes.places,
            router: store.matrix(&of("router.logits.weight"))?,
            bias_scratch: packer
                .take(Block::Weights, router_bias.map_or(0, |_| bias::gradient_scratch(tokens, experts))),
            router_bias,
            balance: store.vector_if_any(&of("router.balance")),
            gate_up,
            down,
            biases,
            width,
            scores: packer.take_once(Block::UntilI, tokens * experts),
            d_logits: packer.take(Block::FromI, tokens * experts),
            experts: packer.take_once(Block::UntilI, entries),
            weights: packer.take_once(Block::UntilI, entries),
            rows: packer.take_once(Block::UntilI, entries),
            d_weights: packer.take(Block::Backward, entries),
            returned: [Phase::F, Phase::I].map(|phase| Returns::new(sizes, (forms, unit), phase, hidden, packer)),
        })
    }

    /// Where each of the tokens goes.
    pub fn route(&self, context: &Context, tokens: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let scores = blocks.at(self.scores);
        context.product(tokens, self.router, scores, false)?;
        let biases = [self.router_bias, self.balance].map(|bias| bias.map_or(Slice::none(), |bias| bias.values));
        router::forward(stream, sms, &self.rule, scores, biases, (blocks.at(self.experts), blocks.at(self.weights)))
    }

    /// In front of an exchange: its payload quantised. Dispatch sends `sent` in F, combine in I: all tokens × hidden.
    pub fn quantise(
        &self,
        context: &Context,
        (there, phase): (bool, Phase),
        parts: &Parts,
        sent: Slice<Bf16>,
    ) -> Result<()> {
        self.each(parts).try_for_each(|(part, ways)| {
            let passage = part.passage(phase);
            match there {
                true => passage.quantise(context, sent),
                false => {
                    let (rows, routed) = (part.made(context.blocks, phase).0, self.routed(context.blocks, part));
                    passage.quantise_back(context, ways.back, rows, &routed)
                }
            }
        })
    }

    /// In front of an exchange by copy engines: its payload packed. `sent` as in [`Self::quantise`].
    pub fn pack(
        &self,
        context: &Context,
        exchange: &Exchange,
        (there, phase): (bool, Phase),
        parts: &Parts,
        sent: Slice<Bf16>,
    ) -> Result<()> {
        self.each(parts).try_for_each(|(part, ways)| {
            let passage = part.passage(phase);
            match there {
                true => passage.pack(context, ways.there, sent),
                false => {
                    let (made, routed) = (part.made(context.blocks, phase), self.routed(context.blocks, part));
                    passage.pack_back(context, exchange, ways.back, made, &routed)
                }
            }
        })
    }

    /// Dispatch. `tokens`: all; `first`: in F, and not once more for the backward, where it is known where rows go.
    pub fn dispatch(
        &self,
        context: &Context,
        exchange: &mut Exchange,
        parts: &Parts,
        (tokens, first): (Slice<Bf16>, bool),
    ) -> Result<()> {
        self.each(parts).try_for_each(|(part, ways)| {
            let (routed, target) = (self.routed(context.blocks, part), part.target(context.blocks, ways.there));
            part.passages[0].send(context, exchange, (ways.there, first), tokens, &routed, target)
        })
    }

    /// F of the experts. `tokens`: what this GPU has sent, all.
    pub fn forward(&self, context: &Context, exchange: &Exchange, parts: &Parts, tokens: Slice<Bf16>) -> Result<()> {
        self.each(parts).try_for_each(|(part, ways)| {
            self.up_to_last(context, exchange, (part, ways, true), tokens)?;
            let (groups, results) = (part.groups(context.blocks), context.blocks.at(part.results));
            self.down.forward(context, &part.active, groups, results, false)?;
            let weights = context.blocks.at(part.row_weights);
            self.biases.as_ref().map_or(Ok(()), |biases| biases.add_results(context, results, weights, groups))
        })
    }

    /// F of the experts without the last product: what the backward reads.
    pub fn again(&self, context: &Context, exchange: &Exchange, parts: &Parts, tokens: Slice<Bf16>) -> Result<()> {
        self.each(parts).try_for_each(|(part, ways)| self.up_to_last(context, exchange, (part, ways, false), tokens))
    }

    /// What the last products read, from what is between the products.
    pub fn active_again(&self, context: &Context, parts: &Parts) -> Result<()> {
        self.each(parts).try_for_each(|(part, _)| self.activate(context, part))
    }

    /// `first`: in F.
    fn up_to_last(
        &self,
        context: &Context,
        exchange: &Exchange,
        (part, ways, first): (&Part, Ways, bool),
        tokens: Slice<Bf16>,
    ) -> Result<()> {
        let (routed, target) = (self.routed(context.blocks, part), part.target(context.blocks, ways.there));
        let groups = part.groups(context.blocks);
        part.passages[0].receive(context, exchange, (ways.there, first), tokens, &routed, target)?;
        if matches!(target, Target::Bf16(_)) {
            part.arrived.complete(context, groups)?;
        }
        let inner = context.blocks.at(part.inner);
        self.gate_up.forward(context, &part.arrived, groups, inner, false)?;
        if let Some(biases) = &self.biases {
            biases.add_inner(context, inner, groups)?;
        }
        self.activate(context, part)
    }

    fn activate(&self, context: &Context, part: &Part) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (groups, weights) = (part.groups(blocks), blocks.at(part.row_weights));
        let (inner, active) = (blocks.at(part.inner), part.active.values(blocks));
        swiglu::forward(stream, sms, inner, weights, active, self.width, groups.rows())?;
        part.active.complete(context, groups)
    }

    /// F of combine, but for the sum.
    pub fn combine(&self, context: &Context, exchange: &mut Exchange, parts: &Parts) -> Result<()> {
        self.send_back(context, exchange, (Phase::F, parts), Slice::none())
    }

    /// `y` = the residual stream with all that came back, and the shared expert's result.
    pub fn sum(
        &self,
        context: &Context,
        parts: &Parts,
        stream: Slice<Bf16>,
        shared: Slice<Bf16>,
        y: Slice<Bf16>,
    ) -> Result<()> {
        self.each(parts).try_for_each(|(part, ways)| {
            part.passages[0].sum(context, (ways.back, self.places), &self.returned[0], [stream, shared], y)
        })
    }

    /// I of combine. `dy`: all tokens × hidden.
    pub fn combine_gradient(
        &self,
        context: &Context,
        exchange: &mut Exchange,
        parts: &Parts,
        dy: Slice<Bf16>,
    ) -> Result<()> {
        self.each(parts).try_for_each(|(part, ways)| {
            let (routed, target) = (self.routed(context.blocks, part), part.d_results.target(context.blocks));
            part.passages[1].send(context, exchange, (ways.there, false), dy, &routed, target)
        })
    }

    /// I of the experts. `dy`: what this GPU has sent, all.
    pub fn input_gradient(&self, context: &Context, exchange: &Exchange, parts: &Parts, dy: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        self.each(parts).try_for_each(|(part, ways)| {
            let (groups, weights, routed) =
                (part.groups(blocks), blocks.at(part.row_weights), self.routed(blocks, part));
            let (target, d_results) = (part.d_results.target(blocks), part.d_results.gradient(blocks));
            part.passages[1].receive(context, exchange, (ways.there, false), dy, &routed, target)?;
            let (d_active, d_inner) = (blocks.at(part.d_active), blocks.at(part.d_inner));
            self.down.input_gradient(context, d_results, groups, d_active, false)?;
            let (inner, d_weights) = (blocks.at(part.inner), blocks.at(part.d_row_weights));
            let (width, rows) = (self.width, groups.rows());
            swiglu::input_gradient(stream, sms, inner, weights, d_active, d_inner, d_weights, width, rows)?;
            if let (Some(biases), DResults::Values(d_results)) = (&self.biases, part.d_results) {
                biases.gradients(context, d_inner, (blocks.at(d_results), weights, d_weights), groups)?;
            }
            self.gate_up.input_gradient(context, d_inner, groups, blocks.at(part.d_arrived), false)
        })
    }

    /// I of dispatch, but for the sum.
    pub fn dispatch_gradient(&self, context: &Context, exchange: &mut Exchange, parts: &Parts) -> Result<()> {
        self.send_back(context, exchange, (Phase::I, parts), context.blocks.at(self.d_weights))
    }

    fn send_back(
        &self,
        context: &Context,
        exchange: &mut Exchange,
        (phase, parts): (Phase, &Parts),
        numbers: Slice<f32>,
    ) -> Result<()> {
        let returned = &self.returned[usize::from(phase != Phase::F)];
        self.each(parts).try_for_each(|(part, ways)| {
            let (made, routed) = (part.made(context.blocks, phase), self.routed(context.blocks, part));
            part.passage(phase).send_back(context, exchange, ways.back, made, &routed, (returned, numbers))
        })
    }

    /// The gradient of the tokens: what came back, what the shared expert adds, and what the router does. Loads are counted. `parts`: all.
    pub fn tokens_gradient(
        &self,
        context: &Context,
        parts: &Parts,
        shared: Slice<Bf16>,
        d_tokens: Slice<Bf16>,
    ) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let d_weights = blocks.at(self.d_weights);
        for (part, ways) in self.each(parts) {
            let add = [shared, Slice::none()];
            part.passages[1].sum(context, (ways.back, self.places), &self.returned[1], add, d_tokens)?;
            part.passages[1].weights_gradient(context, ways.back, self.places, d_weights)?;
        }
        let (scores, experts, d_logits) = (blocks.at(self.scores), blocks.at(self.experts), blocks.at(self.d_logits));
        router::input_gradient(stream, sms, &self.rule, (scores, experts), d_weights, d_logits)?;
        if let Some(balance) = self.balance {
            router::loads(stream, experts, balance.gradient)?;
        }
        context.product_input(d_logits, self.router, d_tokens, true)
    }

    /// W of the router.
    pub fn accumulate_router(&self, context: &Context, tokens: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (d_logits, scratch) = (blocks.at(self.d_logits), blocks.at(self.bias_scratch));
        context.product_weight(tokens, d_logits, self.router)?;
        match self.router_bias {
            Some(added) => bias::gradient(stream, sms, d_logits, added.gradient, scratch),
            None => Ok(()),
        }
    }

    /// W of the experts.
    pub fn accumulate(&self, context: &Context, parts: &Parts) -> Result<()> {
        let blocks = context.blocks;
        self.each(parts).try_for_each(|(part, _)| {
            let groups = part.groups(blocks);
            self.down.accumulate(context, &part.active, part.d_results.gradient(blocks), groups)?;
            self.gate_up.accumulate(context, &part.arrived, blocks.at(part.d_inner), groups)
        })
    }

    fn each<'a>(&'a self, parts: &'a Parts) -> impl Iterator<Item = (&'a Part, Ways)> {
        parts.range.clone().map(|number| (&self.parts[number], parts.ways.get(number).copied().unwrap_or_default()))
    }

    fn routed(&self, blocks: &Blocks, part: &Part) -> Routed {
        let entries = part.passages[0].entries();
        Routed {
            first: part.passages[0].tokens().start,
            experts: blocks.at(self.experts).part(entries.clone()),
            weights: blocks.at(self.weights).part(entries.clone()),
            rows: blocks.at(self.rows).part(entries),
            offsets: blocks.at(part.offsets),
            sources: blocks.at(part.sources),
            row_weights: blocks.at(part.row_weights),
        }
    }
}

impl Part {
    fn passage(&self, phase: Phase) -> &Passage {
        &self.passages[usize::from(phase != Phase::F)]
    }

    /// Rows that the experts have.
    fn groups(&self, blocks: &Blocks) -> Groups {
        Groups { most: self.capacity, offsets: blocks.at(self.offsets) }
    }

    /// Where what dispatch brings is read: as it is sent, if products read FP8.
    fn target(&self, blocks: &Blocks, form: Form) -> Target {
        match self.arrived.tiles(blocks) {
            Some(tiles) if self.passages[0].is_narrow(form) => Target::Fp8(tiles),
            _ => Target::Bf16(self.arrived.values(blocks)),
        }
    }

    /// What the experts made in a phase, with a number of each row in I.
    fn made(&self, blocks: &Blocks, phase: Phase) -> (Slice<Bf16>, Slice<f32>) {
        match phase {
            Phase::F => (blocks.at(self.results), Slice::none()),
            Phase::I | Phase::W => (blocks.at(self.d_arrived), blocks.at(self.d_row_weights)),
        }
    }
}
