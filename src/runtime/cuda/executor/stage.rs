//! A stage on one GPU: its parameters, and the ops of its units.

use super::blocks::{Block, Packer};
use super::store::Store;
use super::unit::{Context, Exchange, Sizes, UnitOps};
use crate::error::{Error, Result};
use crate::ir::{Component, Phase, ProgramOp, Step, Unit};
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// A stage.
pub struct Stage {
    /// Its parameters.
    pub store: Store,
    units: Vec<UnitOps>,
    bytes: Packer,
}

/// What a chunk reads and makes, besides what its blocks hold.
#[derive(Clone, Copy)]
pub struct Ends {
    /// The message that F reads; none where the stage has the embedding.
    pub input: Slice<Bf16>,
    /// The message that F makes; none where the stage has the head.
    pub output: Slice<Bf16>,
    /// The message that I reads.
    pub output_gradient: Slice<Bf16>,
    /// The message that I makes.
    pub input_gradient: Slice<Bf16>,
    /// Tokens of the micro-batch.
    pub tokens: Slice<u32>,
    /// The tokens that follow them.
    pub targets: Slice<u32>,
    /// Where the sum of the losses goes: one number.
    pub loss: Slice<f32>,
    /// One over the tokens of the step.
    pub scale: f32,
}

impl Stage {
    /// With the parameters in `store`.
    ///
    /// # Errors
    /// If the model has something that this runtime has not.
    pub fn new(shape: &Shape, units: &[Unit], sizes: Sizes, store: Store) -> Result<Self> {
        let mut bytes = Packer::default();
        let units = units.iter().map(|&unit| UnitOps::new(shape, unit, sizes, &store, &mut bytes));
        let units = units.collect::<Result<Vec<_>>>()?;
        Ok(Self { store, units, bytes })
    }

    /// Bytes of a block of its chunks.
    pub fn bytes(&self, block: Block) -> usize {
        self.bytes.bytes(block)
    }

    /// In front of the first op of F.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn begin_forward(&self, context: &Context, ends: &Ends) -> Result<()> {
        match self.units.first().and_then(|unit| unit.input(context.blocks)) {
            Some(input) => input.copy_from(context.stream, ends.input),
            None => Ok(()),
        }
    }

    /// Behind the last op of F.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn end_forward(&self, context: &Context, ends: &Ends) -> Result<()> {
        match self.units.last() {
            Some(UnitOps::Layer(layer)) => layer.complete(context, ends.output),
            _ => Ok(()),
        }
    }

    /// In front of the first op of I.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn begin_backward(&self, context: &Context, ends: &Ends) -> Result<()> {
        match self.units.last().and_then(|unit| unit.output_gradient(context.blocks)) {
            Some(gradient) => gradient.copy_from(context.stream, ends.output_gradient),
            None => Ok(()),
        }
    }

    /// Launches an op of a program. `exchange`: the exchange, if the op takes part in it: an exchange does, and where one GPU has all experts,
    /// so does their MLP.
    ///
    /// # Errors
    /// If it is no op of this stage, or the driver refuses.
    pub fn launch(
        &self,
        context: &Context,
        ends: &Ends,
        op: &ProgramOp,
        with_shared: bool,
        exchange: Option<&mut Exchange>,
    ) -> Result<()> {
        match op.step {
            // Everything is kept.
            Step::Again => return Ok(()),
            Step::Quantise | Step::Pack => return Err(super::unit::absent("exchanges in another form than the job's")),
            Step::Main | Step::Shared => {}
        }
        if !op.tokens.is_all() {
            return Err(super::unit::absent("layers that are cut along their tokens"));
        }
        let number = op.unit as usize;
        let unit = self.units.get(number).ok_or_else(|| unknown(op))?;
        match (unit, op.component) {
            (UnitOps::Embedding(embedding), Component::Embedding) => match op.phase {
                Phase::F => embedding.forward(context, ends.tokens, self.output_of(context, number, ends)),
                Phase::I => Ok(()),
                Phase::W => embedding.accumulate(context, ends.tokens),
            },
            (UnitOps::Head(head), Component::Head) => match op.phase {
                Phase::F => {
                    self.complete(context, number)?;
                    head.forward(context, ends.targets, ends.scale, ends.loss)
                }
                Phase::I => head.input_gradient(context, self.gradient_before(context, number, ends)),
                Phase::W => head.accumulate(context),
            },
            (UnitOps::Layer(layer), Component::Attention) => match op.phase {
                Phase::F => {
                    self.complete(context, number)?;
                    layer.attention_forward(context)
                }
                Phase::I => layer.attention_input_gradient(context, self.gradient_before(context, number, ends)),
                Phase::W => layer.accumulate_attention(context),
            },
            (UnitOps::Layer(layer), Component::Mlp) => {
                let shared = with_shared || op.step == Step::Shared;
                let main = op.step == Step::Main;
                match op.phase {
                    Phase::F => {
                        if main {
                            layer.mlp_forward(context, exchange, self.output_of(context, number, ends))?;
                        }
                        if shared { layer.shared_forward(context) } else { Ok(()) }
                    }
                    Phase::I => {
                        if shared {
                            layer.shared_input_gradient(context)?;
                        }
                        if main { layer.mlp_input_gradient(context, exchange) } else { Ok(()) }
                    }
                    Phase::W => {
                        if main {
                            layer.accumulate_mlp(context)?;
                        }
                        if shared { layer.accumulate_shared(context) } else { Ok(()) }
                    }
                }
            }
            (UnitOps::Layer(layer), Component::Dispatch | Component::Combine) => {
                let exchange = exchange.ok_or_else(|| unknown(op))?;
                match (op.component, op.phase) {
                    (Component::Dispatch, Phase::F) => layer.dispatch(context, exchange),
                    (Component::Combine, Phase::F) => layer.combine(context, exchange),
                    (Component::Combine, Phase::I) => layer.combine_gradient(context, exchange),
                    (Component::Dispatch, Phase::I) => layer.dispatch_gradient(context, exchange),
                    _ => Err(unknown(op)),
                }
            }
            _ => Err(unknown(op)),
        }
    }

    /// Where a unit's output goes.
    fn output_of(&self, context: &Context, number: usize, ends: &Ends) -> Slice<Bf16> {
        self.units.get(number + 1).and_then(|next| next.input(context.blocks)).unwrap_or(ends.output)
    }

    /// Where the gradient of a unit's input goes.
    fn gradient_before(&self, context: &Context, number: usize, ends: &Ends) -> Slice<Bf16> {
        let before = number.checked_sub(1).and_then(|before| self.units.get(before));
        before.and_then(|before| before.output_gradient(context.blocks)).unwrap_or(ends.input_gradient)
    }

    /// The unit in front leaves its result where this one reads it.
    fn complete(&self, context: &Context, number: usize) -> Result<()> {
        match (number.checked_sub(1).map(|before| &self.units[before]), self.units[number].input(context.blocks)) {
            (Some(UnitOps::Layer(layer)), Some(input)) => layer.complete(context, input),
            _ => Ok(()),
        }
    }
}

fn unknown(op: &ProgramOp) -> Error {
    Error::new(format!("{} is no op of unit {}", op.what(), op.unit))
}
