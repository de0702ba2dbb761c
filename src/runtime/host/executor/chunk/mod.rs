//! What a chunk holds on one GPU between ops, and the ops.
//!
//! Every op takes what it reads out of the place where another op put it; if it is not there, the plan (or its order) is wrong,
//! and the op says what is missing. So what the plan frees is freed: what F keeps is gone behind I, what I hands on behind W.

mod cell;
mod layer;

pub use layer::Parcels;

use std::ops::Range;

use super::Run;
use super::rows::ByExpert;
use super::stage::StageParameters;
use crate::ir::{Component, Phase, ProgramOp, Step, Tokens, Unit};
use crate::runtime::host::batch::Batch;
use crate::runtime::host::layers::{head, mtp};
use crate::runtime::host::unit::ends::{self, EmbeddingForWeights, InputForWeights};
use crate::runtime::host::unit::{Layer, UnitParameters};
use crate::runtime::host::{Matrix, Real, Shape};
use crate::runtime::world::World;
use cell::Cell;
use layer::LayerState;

/// Hidden states: the model's, and each MTP module's so far. Each is tokens × hidden. The same of their gradients.
pub type States<T> = Vec<Matrix<T>>;

/// What an op reads besides its chunk.
pub struct Context<'a, T> {
    /// Of the model.
    pub shape: &'a Shape,
    /// All GPUs.
    pub world: &'a World,
    /// Place of this GPU among those that share experts.
    pub place: u32,
    /// Tokens of a micro-batch of one replica.
    pub tokens: u32,
    /// Tokens of the step, of all replicas.
    pub step_tokens: usize,
    /// Parameters of the chunk's stage.
    pub parameters: &'a StageParameters<T>,
}

/// A chunk on one GPU.
pub struct Chunk<'a, T> {
    batch: &'a Batch,
    units: Vec<(Unit, UnitState<T>)>,
    input: Cell<States<T>>,
    input_gradient: Cell<States<T>>,
    /// Summed over the tokens: the model's loss and each module's, where the chunk has the head.
    losses: Option<Vec<f64>>,
}

enum UnitState<T> {
    Embedding { output: Cell<Matrix<T>>, gradient: Cell<Matrix<T>> },
    Layer(Box<LayerUnit<T>>),
    Head { saved: Cell<Vec<head::Saved<T>>>, handed: Cell<Vec<head::ForWeights<T>>> },
}

/// A decoder layer, or an MTP module.
struct LayerUnit<T> {
    layer: LayerState<T>,
    /// Of a module: the states that it hands on, and what its input keeps.
    passed: Cell<States<T>>,
    passed_gradient: Cell<States<T>>,
    input: Cell<mtp::Saved<T>>,
    input_handed: Cell<InputForWeights<T>>,
}

impl<'a, T: Real> Chunk<'a, T> {
    /// In front of its forward.
    pub fn new(units: &[Unit], batch: &'a Batch) -> Self {
        let state = |&unit: &Unit| {
            let state = match unit {
                Unit::Embedding => UnitState::Embedding {
                    output: Cell::new("the embedding of the tokens"),
                    gradient: Cell::new("the gradient of the embedding"),
                },
                Unit::Dense(_) | Unit::Moe(_) | Unit::Mtp(_) => UnitState::Layer(Box::new(LayerUnit {
                    layer: LayerState::new(),
                    passed: Cell::new("the hidden states in front of the layer"),
                    passed_gradient: Cell::new("the gradients of the hidden states in front of the layer"),
                    input: Cell::new("what the module's input kept"),
                    input_handed: Cell::new("what the module's input hands on"),
                })),
                Unit::Head => UnitState::Head {
                    saved: Cell::new("what the head kept"),
                    handed: Cell::new("what the head's backward hands on"),
                },
            };
            (unit, state)
        };
        Self {
            batch,
            units: units.iter().map(state).collect(),
            input: Cell::new("the activation of the stage before"),
            input_gradient: Cell::new("the gradient of the stage's input"),
            losses: None,
        }
    }

    /// The activation of the stage before has come.
    pub fn put_input(&mut self, states: States<T>) -> Run<()> {
        self.input.put(states)
    }

    /// The activation for the stage behind: the end of F.
    pub fn take_output(&mut self, context: &Context<T>) -> Run<States<T>> {
        self.output_of(context, self.units.len())
    }

    /// The gradient of the stage behind has come.
    pub fn put_output_gradient(&mut self, states: States<T>) -> Run<()> {
        self.put_gradient(self.units.len(), states)
    }

    /// The gradient for the stage before: the end of I.
    pub fn take_input_gradient(&mut self) -> Run<States<T>> {
        self.input_gradient.take()
    }

    /// The losses, once F of the head has run.
    pub fn take_losses(&mut self) -> Option<Vec<f64>> {
        self.losses.take()
    }

    /// What nothing has read, if there is something: at its end a chunk holds nothing.
    pub fn left(&self) -> Option<&'static str> {
        let units = self.units.iter().filter_map(|(_, state)| match state {
            UnitState::Embedding { output, gradient } => output.left().or(gradient.left()),
            UnitState::Layer(unit) => (unit.layer.left())
                .or(unit.passed.left())
                .or(unit.passed_gradient.left())
                .or(unit.input.left())
                .or(unit.input_handed.left()),
            UnitState::Head { saved, handed } => saved.left().or(handed.left()),
        });
        units.chain(self.input.left()).chain(self.input_gradient.left()).next()
    }

    /// Runs an op that computes. `with_shared`: whether the main op of an MLP does the shared expert's work too. Weight
    /// gradients are added to `gradients`.
    pub fn compute(
        &mut self,
        context: &Context<T>,
        op: &ProgramOp,
        with_shared: bool,
        gradients: &mut StageParameters<T>,
    ) -> Run<()> {
        match op.step {
            // Everything is kept, and exchanges round what they send.
            Step::Again | Step::Quantise | Step::Pack => return Ok(()),
            Step::Main | Step::Shared => {}
        }
        let tokens = self.tokens(op)?;
        match op.phase {
            Phase::F => self.forward(context, op, with_shared, tokens),
            Phase::I => self.backward(context, op, with_shared, tokens),
            Phase::W => self.accumulate(context, op, with_shared, tokens, gradients),
        }
    }

    /// What an exchange sends to each GPU of the group.
    pub fn send(&mut self, context: &Context<T>, op: &ProgramOp) -> Run<Parcels<T>> {
        let tokens = self.tokens(op)?;
        if context.world.ep == 1 {
            return Err("exchanges rows, though every GPU has all experts".to_owned());
        }
        let layer = &mut self.layer(op)?.layer;
        if op.step == Step::Again {
            // It meets the others' all the same; what it would bring is kept.
            return Ok((0..context.world.ep).map(|_| ByExpert::new()).collect());
        }
        match (op.component, op.phase) {
            (Component::Dispatch, Phase::F) => layer.dispatch(context, &tokens),
            (Component::Combine, Phase::F) => layer.combine(context, tokens),
            (Component::Combine, Phase::I) => layer.combine_gradient(context, &tokens),
            (Component::Dispatch, Phase::I) => layer.dispatch_gradient(context, tokens),
            _ => Err(unknown()),
        }
    }

    /// Takes what an exchange brought from each GPU of the group.
    pub fn receive(&mut self, op: &ProgramOp, from: Parcels<T>) -> Run<()> {
        let tokens = self.tokens(op)?;
        let layer = &mut self.layer(op)?.layer;
        if op.step == Step::Again {
            return Ok(());
        }
        match (op.component, op.phase) {
            (Component::Dispatch, Phase::F) => layer.dispatched(tokens, from),
            (Component::Combine, Phase::F) => layer.combined(tokens, from),
            (Component::Combine, Phase::I) => layer.combine_gradient_done(tokens, from),
            (Component::Dispatch, Phase::I) => layer.dispatch_gradient_done(tokens, from),
            _ => Err(unknown()),
        }
    }

    fn forward(&mut self, context: &Context<T>, op: &ProgramOp, with_shared: bool, tokens: Range<u32>) -> Run<()> {
        let number = op.unit as usize;
        let parameters = context.parameters.unit(number).ok_or_else(unknown)?;
        if matches!(op.component, Component::Mlp) {
            let (layer, unit) = (layer_of(parameters)?, self.layer(op)?);
            if op.step == Step::Main {
                unit.layer.mlp_forward(context, layer, tokens)?;
            }
            if with_shared || op.step == Step::Shared {
                unit.layer.shared_forward(context, layer)?;
            }
            return Ok(());
        }
        if let (Component::Embedding, UnitParameters::Embedding(table)) = (op.component, parameters) {
            let rows = ends::embedding_forward(context.shape, table, self.batch);
            let Some((_, UnitState::Embedding { output, .. })) = self.units.get_mut(number) else {
                return Err(unknown());
            };
            return output.put(rows);
        }
        let (shape, batch) = (context.shape, self.batch);
        let mut states = self.output_of(context, number)?;
        match (op.component, parameters, self.units.get_mut(number)) {
            (Component::Attention, parameters, Some((unit, UnitState::Layer(state)))) => {
                let mut x = states.pop().ok_or_else(unknown)?;
                if let (Unit::Mtp(module), UnitParameters::Mtp(mtp)) = (*unit, parameters) {
                    states.push(x.clone());
                    let table = context.parameters.table().ok_or_else(unknown)?;
                    let (input, saved) = mtp.input_forward(shape, module, table, batch, x);
                    state.input.put(saved)?;
                    x = input;
                }
                state.passed.put(states)?;
                state.layer.attention_forward(context, layer_of(parameters)?, layer_number(shape, *unit), x)
            }
            (Component::Head, UnitParameters::Head(head), Some((_, UnitState::Head { saved, .. }))) => {
                if states.len() != shape.losses() {
                    return Err(format!("reads {} hidden states, not {}", states.len(), shape.losses()));
                }
                let table = context.parameters.table();
                let (losses, kept) = head.forward(shape, table, batch, context.step_tokens, states);
                self.losses = Some(losses);
                saved.put(kept)
            }
            _ => Err(unknown()),
        }
    }

    /// What comes out of the units in front of `number`: the input of that unit, or of the stage behind.
    fn output_of(&mut self, context: &Context<T>, number: usize) -> Run<States<T>> {
        let Some(before) = number.checked_sub(1) else { return self.input.take() };
        match self.units.get_mut(before) {
            Some((_, UnitState::Embedding { output, .. })) => Ok(vec![output.take()?]),
            Some((_, UnitState::Layer(unit))) => {
                let parameters = context.parameters.unit(before).ok_or_else(unknown)?;
                let y = unit.layer.output(context, layer_of(parameters)?)?;
                let mut states = unit.passed.take()?;
                states.push(y);
                Ok(states)
            }
            Some((_, UnitState::Head { .. })) | None => Err(unknown()),
        }
    }

    fn backward(&mut self, context: &Context<T>, op: &ProgramOp, with_shared: bool, tokens: Range<u32>) -> Run<()> {
        let number = op.unit as usize;
        let parameters = context.parameters.unit(number).ok_or_else(unknown)?;
        let (shape, batch) = (context.shape, self.batch);
        let states = match (op.component, parameters, self.units.get_mut(number)) {
            (Component::Mlp, parameters, Some((_, UnitState::Layer(unit)))) => {
                let layer = layer_of(parameters)?;
                // The shared expert reads the gradient that a dense MLP takes; a layer has one of them.
                if with_shared || op.step == Step::Shared {
                    unit.layer.shared_input_gradient(context, layer)?;
                }
                if op.step == Step::Main {
                    unit.layer.mlp_input_gradient(context, layer, tokens)?;
                }
                return Ok(());
            }
            (Component::Attention, parameters, Some((unit, UnitState::Layer(state)))) => {
                let layer = layer_of(parameters)?;
                let mut dx = state.layer.attention_input_gradient(context, layer, layer_number(shape, *unit))?;
                let mut states = state.passed_gradient.take()?;
                if let (Unit::Mtp(module), UnitParameters::Mtp(mtp)) = (*unit, parameters) {
                    let (d_hidden, handed) = mtp.input_gradient(shape, module, batch, state.input.take()?, &dx);
                    state.input_handed.put(handed)?;
                    // The head, or a module behind, reads the hidden state too.
                    dx = states.pop().ok_or_else(unknown)?;
                    dx.add(&d_hidden);
                }
                states.push(dx);
                states
            }
            (Component::Head, UnitParameters::Head(head), Some((_, UnitState::Head { saved, handed }))) => {
                let (states, needed) = head.input_gradient(shape, context.parameters.table(), saved.take()?);
                handed.put(needed)?;
                states
            }
            _ => return Err(unknown()),
        };
        self.put_gradient(number, states)
    }

    /// The gradient of what comes out of the units in front of `number`.
    fn put_gradient(&mut self, number: usize, mut states: States<T>) -> Run<()> {
        let Some(before) = number.checked_sub(1) else { return self.input_gradient.put(states) };
        let last = states.pop().ok_or_else(unknown)?;
        match self.units.get_mut(before) {
            Some((_, UnitState::Embedding { gradient, .. })) => gradient.put(last),
            Some((_, UnitState::Layer(unit))) => {
                unit.passed_gradient.put(states)?;
                unit.layer.output_gradient(last)
            }
            Some((_, UnitState::Head { .. })) | None => Err(unknown()),
        }
    }

    fn accumulate(
        &mut self,
        context: &Context<T>,
        op: &ProgramOp,
        with_shared: bool,
        tokens: Range<u32>,
        gradients: &mut StageParameters<T>,
    ) -> Run<()> {
        let (number, shape) = (op.unit as usize, context.shape);
        let (parameters, table) = gradients.unit_and_table(number);
        match (op.component, parameters, self.units.get_mut(number)) {
            (
                Component::Embedding,
                Some(UnitParameters::Embedding(table)),
                Some((_, UnitState::Embedding { gradient, .. })),
            ) => {
                EmbeddingForWeights::new(self.batch, gradient.take()?).accumulate(shape, table);
                Ok(())
            }
            (Component::Attention, Some(parameters), Some((_, UnitState::Layer(state)))) => {
                if let (UnitParameters::Mtp(module), Some(table)) = (&mut *parameters, table) {
                    module.accumulate_input(shape, &state.input_handed.take()?, table);
                }
                state.layer.accumulate_attention(context, layer_of_mut(parameters)?)
            }
            (Component::Mlp, Some(parameters), Some((_, UnitState::Layer(state)))) => {
                let gradients = layer_of_mut(parameters)?;
                if op.step == Step::Main {
                    state.layer.accumulate_mlp(context, gradients, tokens)?;
                }
                if with_shared || op.step == Step::Shared {
                    state.layer.accumulate_shared(context, gradients)?;
                }
                Ok(())
            }
            (Component::Head, Some(UnitParameters::Head(head)), Some((_, UnitState::Head { handed, .. }))) => {
                head.accumulate(shape, &handed.take()?, table);
                Ok(())
            }
            _ => Err(unknown()),
        }
    }

    /// The tokens that an op works on, by number. All but experts and their exchanges work on all.
    fn tokens(&self, op: &ProgramOp) -> Run<Range<u32>> {
        let Tokens { part, parts } = op.tokens;
        if parts == 0 || part >= parts {
            return Err(format!("works on part {part} of {parts}"));
        }
        let experts = match self.units.get(op.unit as usize) {
            Some((Unit::Moe(_) | Unit::Mtp(_), _)) => {
                op.step == Step::Main
                    && matches!(op.component, Component::Dispatch | Component::Mlp | Component::Combine)
            }
            _ => false,
        };
        if !op.tokens.is_all() && !experts {
            return Err("works on a part of the tokens, which only experts and their exchanges can here".to_owned());
        }
        let all = self.batch.tokens() as u64;
        let bound = |part: u64| (all * part / u64::from(parts)) as u32;
        Ok(bound(u64::from(part))..bound(u64::from(part) + 1))
    }

    fn layer(&mut self, op: &ProgramOp) -> Run<&mut LayerUnit<T>> {
        match self.units.get_mut(op.unit as usize) {
            Some((_, UnitState::Layer(unit))) => Ok(unit),
            _ => Err(unknown()),
        }
    }
}

/// The layer of a unit that is one.
fn layer_of<T>(parameters: &UnitParameters<T>) -> Run<&Layer<T>> {
    match parameters {
        UnitParameters::Layer(layer) => Ok(layer),
        UnitParameters::Mtp(module) => Ok(&module.layer),
        UnitParameters::Embedding(_) | UnitParameters::Head(_) => Err(unknown()),
    }
}

fn layer_of_mut<T>(parameters: &mut UnitParameters<T>) -> Run<&mut Layer<T>> {
    match parameters {
        UnitParameters::Layer(layer) => Ok(layer),
        UnitParameters::Mtp(module) => Ok(&mut module.layer),
        UnitParameters::Embedding(_) | UnitParameters::Head(_) => Err(unknown()),
    }
}

fn layer_number(shape: &Shape, unit: Unit) -> u32 {
    match unit {
        Unit::Dense(number) | Unit::Moe(number) => number,
        Unit::Mtp(_) | Unit::Embedding | Unit::Head => shape.mtp_layer(),
    }
}

fn unknown() -> String {
    "is no op of this unit".to_owned()
}
