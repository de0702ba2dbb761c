//! What a layer of a chunk holds between ops, and what each op does to it.
//!
//! The forward of a layer with experts ends where its output is read: only there the shared expert, which may run at any time
//! between the attentions, must be done. Likewise the backward joins in the attention's.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Context;
use super::cell::Cell;
use crate::runtime::host::executor::Run;
use crate::runtime::host::executor::rows::{ByExpert, Pieces, Source, merge, named, only, sourced, unnamed};
use crate::runtime::host::layers::router::{Routing, RoutingGradient};
use crate::runtime::host::layers::swiglu;
use crate::runtime::host::unit::attention::{self, AttentionGradient, AttentionOutput, RoutedGradient};
use crate::runtime::host::unit::exchange::{self, CombineSaved};
use crate::runtime::host::unit::layer::{Layer, Mlp};
use crate::runtime::host::unit::mlp::{DenseForWeights, DenseSaved, SharedForWeights, SharedGradient, SharedSaved};
use crate::runtime::host::{Matrix, Real};

/// Rows on their way to the GPUs of a group, or from them: by place.
pub type Parcels<T> = Vec<ByExpert<Matrix<T>>>;

/// A layer of one chunk.
pub struct LayerState<T> {
    // Made in F, read in F.
    stream: Cell<Matrix<T>>,
    tokens: Cell<Matrix<T>>,
    arrived: Pieces<Matrix<T>>,
    results: Pieces<Matrix<T>>,
    returned: Pieces<Matrix<T>>,
    shared_output: Cell<Matrix<T>>,
    output: Cell<Matrix<T>>,
    // Made in F, read in I.
    attention: Cell<attention::Saved<T>>,
    routing: Cell<Routing<T>>,
    dense: Cell<DenseSaved<T>>,
    experts: Pieces<swiglu::Saved<T>>,
    shared: Cell<SharedSaved<T>>,
    combine: Cell<CombineSaved<T>>,
    // Made in I, read in I.
    gradient: Cell<Matrix<T>>,
    stream_gradient: Cell<Matrix<T>>,
    arrived_gradient: Pieces<Matrix<T>>,
    results_gradient: Pieces<Matrix<T>>,
    returned_gradient: Pieces<Matrix<T>>,
    shared_gradient: Cell<SharedGradient<T>>,
    // Made in I, read in W.
    attention_handed: Cell<attention::ForWeights<T>>,
    dense_handed: Cell<DenseForWeights<T>>,
    experts_handed: Pieces<swiglu::ForWeights<T>>,
    shared_handed: Cell<SharedForWeights<T>>,
}

impl<T: Real> LayerState<T> {
    /// In front of the forward.
    pub fn new() -> Self {
        Self {
            stream: Cell::new("the residual stream behind the attention"),
            tokens: Cell::new("the tokens that the attention routed"),
            arrived: Pieces::new("the rows that dispatch brings"),
            results: Pieces::new("the experts' results"),
            returned: Pieces::new("the rows that combine brings back"),
            shared_output: Cell::new("the shared expert's result"),
            output: Cell::new("the result of the MLP"),
            attention: Cell::new("what the attention kept"),
            routing: Cell::new("the routing of the tokens"),
            dense: Cell::new("what the MLP kept"),
            experts: Pieces::new("what the experts kept"),
            shared: Cell::new("what the shared expert kept"),
            combine: Cell::new("what combine kept"),
            gradient: Cell::new("the gradient of the layer's output"),
            stream_gradient: Cell::new("the gradient of the residual stream"),
            arrived_gradient: Pieces::new("the gradients that combine's backward brings"),
            results_gradient: Pieces::new("the gradients of the experts' rows"),
            returned_gradient: Pieces::new("the gradients that dispatch's backward brings back"),
            shared_gradient: Cell::new("the shared expert's input gradient"),
            attention_handed: Cell::new("what the attention's backward hands on"),
            dense_handed: Cell::new("what the MLP's backward hands on"),
            experts_handed: Pieces::new("what the experts' backward hands on"),
            shared_handed: Cell::new("what the shared expert's backward hands on"),
        }
    }

    /// What nothing has read, if there is something.
    pub fn left(&self) -> Option<&'static str> {
        let cells = [
            self.stream.left(),
            self.tokens.left(),
            self.shared_output.left(),
            self.output.left(),
            self.attention.left(),
            self.routing.left(),
            self.dense.left(),
            self.shared.left(),
            self.combine.left(),
            self.gradient.left(),
            self.stream_gradient.left(),
            self.shared_gradient.left(),
            self.attention_handed.left(),
            self.dense_handed.left(),
            self.shared_handed.left(),
        ];
        let rows = [&self.arrived, &self.results, &self.returned, &self.arrived_gradient, &self.results_gradient]
            .map(Pieces::left);
        let others = [self.returned_gradient.left(), self.experts.left(), self.experts_handed.left()];
        cells.into_iter().chain(rows).chain(others).flatten().next()
    }

    /// F of the attention. `number`: that of the layer.
    pub fn attention_forward(&mut self, context: &Context<T>, layer: &Layer<T>, number: u32, x: Matrix<T>) -> Run<()> {
        let (AttentionOutput { stream, routed }, saved) = layer.attention_forward(context.shape, number, x);
        self.stream.put(stream)?;
        self.attention.put(saved)?;
        if let Some(routed) = routed {
            self.tokens.put(routed.tokens)?;
            self.routing.put(routed.routing)?;
        }
        Ok(())
    }

    /// What dispatch sends, in F.
    pub fn dispatch(&self, context: &Context<T>, tokens: &Range<u32>) -> Run<Parcels<T>> {
        let here = tokens.start as usize..tokens.end as usize;
        let (x, routing) = (self.tokens.get()?.rows_of(here.clone()), self.routing.get()?.rows_of(here));
        let to = |place| {
            let rows = exchange::dispatch(context.shape, &x, &routing, context.world.experts_at(place));
            sourced(rows, &routing, context.place, tokens.start)
        };
        Ok((0..context.world.ep).map(to).collect())
    }

    /// What dispatch has brought, in F.
    pub fn dispatched(&mut self, tokens: Range<u32>, from: Parcels<T>) -> Run<()> {
        self.arrived.put(tokens, merge(from))
    }

    /// F of the MLP, or of the routed experts.
    pub fn mlp_forward(&mut self, context: &Context<T>, layer: &Layer<T>, tokens: Range<u32>) -> Run<()> {
        if let Mlp::Dense(_) = layer.mlp {
            let (y, saved) = layer.dense_forward(context.shape, self.stream.take()?);
            self.output.put(y)?;
            return self.dense.put(saved);
        }
        let rows = match context.world.ep {
            1 => merge(self.dispatch(context, &tokens)?),
            _ => self.arrived.take(tokens.clone())?,
        };
        let (rows, sources) = unnamed(rows);
        let (results, saved) = layer.experts_forward(context.shape, rows);
        self.experts.put(tokens.clone(), named(saved, &sources))?;
        let made = if context.world.ep == 1 { &mut self.returned } else { &mut self.results };
        made.put(tokens, named(results, &sources))
    }

    /// F of the shared expert.
    pub fn shared_forward(&mut self, context: &Context<T>, layer: &Layer<T>) -> Run<()> {
        if !has_shared(layer) {
            return Ok(());
        }
        let made = layer.shared_forward(context.shape, self.tokens.get()?, self.routing.get()?);
        if let Some((y, saved)) = made {
            self.shared_output.put(y)?;
            self.shared.put(saved)?;
        }
        Ok(())
    }

    /// What combine sends, in F.
    pub fn combine(&mut self, context: &Context<T>, tokens: Range<u32>) -> Run<Parcels<T>> {
        Ok(back(context, &self.results.take(tokens)?))
    }

    /// What combine has brought back, in F.
    pub fn combined(&mut self, tokens: Range<u32>, from: Parcels<T>) -> Run<()> {
        self.returned.put(tokens, merge(from))
    }

    /// The end of F: the residual stream with all that the MLP adds.
    pub fn output(&mut self, context: &Context<T>, layer: &Layer<T>) -> Run<Matrix<T>> {
        let Mlp::Experts(experts) = &layer.mlp else { return self.output.take() };
        let rows = unnamed(self.returned.take(0..context.tokens)?).0;
        let shared = experts.shared.as_ref().map(|_| self.shared_output.take()).transpose()?;
        self.tokens.take()?;
        let (routing, stream) = (self.routing.get()?, self.stream.take()?);
        let (y, saved) = exchange::combine(context.shape, rows, routing, shared.as_ref(), stream);
        self.combine.put(saved)?;
        Ok(y)
    }

    /// The gradient of the output has come.
    pub fn output_gradient(&mut self, gradient: Matrix<T>) -> Run<()> {
        self.gradient.put(gradient)
    }

    /// What combine sends, in I.
    pub fn combine_gradient(&self, context: &Context<T>, tokens: &Range<u32>) -> Run<Parcels<T>> {
        let here = tokens.start as usize..tokens.end as usize;
        let (dy, routing) = (self.gradient.get()?.rows_of(here.clone()), self.routing.get()?.rows_of(here));
        let to = |place| {
            let rows = exchange::combine_input_gradient(context.shape, &routing, &dy, context.world.experts_at(place));
            sourced(rows, &routing, context.place, tokens.start)
        };
        Ok((0..context.world.ep).map(to).collect())
    }

    /// What combine has brought, in I.
    pub fn combine_gradient_done(&mut self, tokens: Range<u32>, from: Parcels<T>) -> Run<()> {
        self.arrived_gradient.put(tokens, merge(from))
    }

    /// I of the MLP, or of the routed experts.
    pub fn mlp_input_gradient(&mut self, context: &Context<T>, layer: &Layer<T>, tokens: Range<u32>) -> Run<()> {
        if let Mlp::Dense(_) = layer.mlp {
            let (dx, handed) = layer.dense_input_gradient(context.shape, self.dense.take()?, self.gradient.take()?);
            self.stream_gradient.put(dx)?;
            return self.dense_handed.put(handed);
        }
        let rows = match context.world.ep {
            1 => merge(self.combine_gradient(context, &tokens)?),
            _ => self.arrived_gradient.take(tokens.clone())?,
        };
        let (rows, sources) = unnamed(rows);
        let (saved, kept): (_, BTreeMap<u32, Vec<Source>>) = unnamed(self.experts.take(tokens.clone())?);
        if sources != kept {
            return Err("gets gradients of other rows than the experts had".to_owned());
        }
        let (results, handed) = layer.experts_input_gradient(context.shape, saved, &rows);
        self.experts_handed.put(tokens.clone(), named(handed, &sources))?;
        let made = if context.world.ep == 1 { &mut self.returned_gradient } else { &mut self.results_gradient };
        made.put(tokens, named(results, &sources))
    }

    /// I of the shared expert.
    pub fn shared_input_gradient(&mut self, context: &Context<T>, layer: &Layer<T>) -> Run<()> {
        if !has_shared(layer) {
            return Ok(());
        }
        let saved = self.shared.take()?;
        let made = layer.shared_input_gradient(context.shape, saved, self.routing.get()?, self.gradient.get()?);
        if let Some((gradient, handed)) = made {
            self.shared_gradient.put(gradient)?;
            self.shared_handed.put(handed)?;
        }
        Ok(())
    }

    /// What dispatch sends, in I.
    pub fn dispatch_gradient(&mut self, context: &Context<T>, tokens: Range<u32>) -> Run<Parcels<T>> {
        Ok(back(context, &self.results_gradient.take(tokens)?))
    }

    /// What dispatch has brought back, in I.
    pub fn dispatch_gradient_done(&mut self, tokens: Range<u32>, from: Parcels<T>) -> Run<()> {
        self.returned_gradient.put(tokens, merge(from))
    }

    /// I of the attention: the gradient of the layer's input.
    pub fn attention_input_gradient(&mut self, context: &Context<T>, layer: &Layer<T>, number: u32) -> Run<Matrix<T>> {
        let shape = context.shape;
        let gradient = match layer.mlp {
            Mlp::Dense(_) => AttentionGradient { stream: self.stream_gradient.take()?, routed: None },
            Mlp::Experts(_) => {
                let rows = unnamed(self.returned_gradient.take(0..context.tokens)?).0;
                let (dy, routing) = (self.gradient.take()?, self.routing.take()?);
                let mut tokens = exchange::dispatch_input_gradient(shape, rows, &routing);
                let weights = exchange::combine_routing_gradient(&self.combine.take()?, &routing, &dy);
                let mut gate = None;
                if has_shared(layer) {
                    let shared = self.shared_gradient.take()?;
                    tokens.add(&shared.tokens);
                    gate = shared.gate;
                }
                let routed = RoutedGradient { tokens, routing: RoutingGradient { weights, shared: gate } };
                AttentionGradient { stream: dy, routed: Some(routed) }
            }
        };
        let (dx, handed) = layer.attention_input_gradient(shape, number, self.attention.take()?, gradient);
        self.attention_handed.put(handed)?;
        Ok(dx)
    }

    /// W of the attention: adds to `gradients`.
    pub fn accumulate_attention(&mut self, context: &Context<T>, gradients: &mut Layer<T>) -> Run<()> {
        gradients.accumulate_attention(context.shape, &self.attention_handed.take()?);
        Ok(())
    }

    /// W of the MLP, or of the routed experts.
    pub fn accumulate_mlp(&mut self, context: &Context<T>, gradients: &mut Layer<T>, tokens: Range<u32>) -> Run<()> {
        match gradients.mlp {
            Mlp::Dense(_) => gradients.accumulate_dense(context.shape, &self.dense_handed.take()?),
            Mlp::Experts(_) => {
                gradients.accumulate_experts(context.shape, &unnamed(self.experts_handed.take(tokens)?).0);
            }
        }
        Ok(())
    }

    /// W of the shared expert.
    pub fn accumulate_shared(&mut self, context: &Context<T>, gradients: &mut Layer<T>) -> Run<()> {
        if has_shared(gradients) {
            gradients.accumulate_shared(context.shape, &self.shared_handed.take()?);
        }
        Ok(())
    }
}

fn has_shared<T>(layer: &Layer<T>) -> bool {
    matches!(&layer.mlp, Mlp::Experts(experts) if experts.shared.is_some())
}

/// Each row to the GPU that has its token.
fn back<T: Real>(context: &Context<T>, rows: &ByExpert<Matrix<T>>) -> Parcels<T> {
    (0..context.world.ep).map(|place| only(rows, |(from, _)| from == place)).collect()
}
