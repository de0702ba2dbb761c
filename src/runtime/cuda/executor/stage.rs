//! A stage on one GPU: its parameters, and the ops of its units.

use super::blocks::{Block, Packer};
use super::forms::Forms;
use super::store::Store;
use super::unit::{Context, Exchange, LayerUnit, Parts, Sizes, States, UnitOps};
use crate::error::{Error, Result};
use crate::ir::{Component, Phase, ProgramOp, Recompute, Step, Tokens, Unit};
use crate::runtime::cuda::{Bf16, Slice};
use crate::runtime::host::Shape;

/// A stage.
pub struct Stage {
    /// Its parameters.
    pub store: Store,
    units: Vec<UnitOps>,
    forms: Forms,
    bytes: Packer,
}

/// What the launch of an op depends on, besides the op and where values lie.
pub struct Launch {
    /// The program that it is in.
    pub program: u32,
    /// It does the shared expert's work too.
    pub with_shared: bool,
    /// Tokens of which other ops compute again what it reads; it does so by itself for the others.
    pub again_apart: Vec<Tokens>,
}

/// What a chunk reads and makes, besides what its blocks hold. Messages are hidden states, one behind the other, or their gradients.
pub struct Ends {
    /// The message that F reads; none where the stage has the embedding.
    pub input: Slice<Bf16>,
    /// The message that F makes; none where the stage has the head.
    pub output: Slice<Bf16>,
    /// The message that I reads.
    pub output_gradient: Slice<Bf16>,
    /// The message that I makes.
    pub input_gradient: Slice<Bf16>,
    /// Tokens of the micro-batch; those that follow them, which the model predicts; and so on up to what the last MTP module predicts.
    pub ahead: Vec<Slice<u32>>,
    /// Where the sums of the losses go: the model's, and each module's.
    pub losses: Slice<f32>,
    /// One over the tokens of the step.
    pub scale: f32,
}

impl Stage {
    /// With the parameters in `store`.
    ///
    /// # Errors
    /// If the model has something that this runtime has not.
    pub fn new(
        shape: &Shape,
        units: &[Unit],
        (sizes, forms, recompute): (Sizes, Forms, Recompute),
        mut store: Store,
    ) -> Result<Self> {
        let mut bytes = Packer::new(recompute, forms.apart());
        let units = units
            .iter()
            .enumerate()
            .map(|(number, &unit)| UnitOps::new(shape, (unit, number), (sizes, &forms), &mut store, &mut bytes));
        let units = units.collect::<Result<Vec<_>>>()?;
        Ok(Self { store, units, forms, bytes })
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
        match self.units.first() {
            Some(unit) => copy(context, &unit.input(context.blocks), ends.input),
            None => Ok(()),
        }
    }

    /// Behind the last op of F.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn end_forward(&self, context: &Context, program: u32, ends: &Ends) -> Result<()> {
        match self.units.last().and_then(UnitOps::layer) {
            Some(layer) => {
                let parts = self.all(program, Phase::F, self.units.len() - 1);
                layer.complete(context, &parts, last(&context.states(ends.output)))
            }
            None => Ok(()),
        }
    }

    /// In front of the first op of I.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn begin_backward(&self, context: &Context, ends: &Ends) -> Result<()> {
        match self.units.last() {
            Some(unit) => copy(context, &unit.output_gradient(context.blocks), ends.output_gradient),
            None => Ok(()),
        }
    }

    /// Launches an op of a program. `exchange`: of the GPU, where there are experts.
    ///
    /// # Errors
    /// If it is no op of this stage, or the driver refuses.
    pub fn launch(
        &self,
        context: &Context,
        ends: &Ends,
        op: &ProgramOp,
        launch: &Launch,
        exchange: Option<&mut Exchange>,
    ) -> Result<()> {
        let (number, program) = (op.unit as usize, launch.program);
        let unit = self.units.get(number).ok_or_else(|| unknown(op))?;
        match (unit, op.component) {
            (UnitOps::Embedding(embedding), Component::Embedding) => {
                let tokens = ends.ahead.first().copied().ok_or_else(|| unknown(op))?;
                match op.phase {
                    Phase::F => embedding.forward(context, tokens, last(&self.output_of(context, number, ends))),
                    Phase::I => Ok(()),
                    Phase::W => embedding.accumulate(context, tokens),
                }
            }
            (UnitOps::Head(head), Component::Head) => match op.phase {
                Phase::F => {
                    self.complete(context, program, number)?;
                    head.forward(context, ends.ahead.get(1..).unwrap_or_default(), ends.scale, ends.losses)
                }
                Phase::I => head.input_gradient(context, &self.gradient_before(context, number, ends)),
                Phase::W => head.accumulate(context),
            },
            (unit, component) => {
                let layer = unit.layer().ok_or_else(|| unknown(op))?;
                match component {
                    Component::Attention => self.attention(context, (unit, layer), op, launch, ends),
                    Component::Mlp => {
                        let output = last(&self.output_of(context, number, ends));
                        self.mlp(context, layer, op, launch, exchange, output)
                    }
                    Component::Dispatch | Component::Combine => {
                        self.exchange(context, layer, op, program, exchange.ok_or_else(|| unknown(op))?)
                    }
                    Component::Embedding | Component::Head => Err(unknown(op)),
                }
            }
        }
    }

    fn attention(
        &self,
        context: &Context,
        (unit, layer): (&UnitOps, &LayerUnit),
        op: &ProgramOp,
        launch: &Launch,
        ends: &Ends,
    ) -> Result<()> {
        let (number, program) = (op.unit as usize, launch.program);
        let module = match unit {
            UnitOps::Mtp(module) => Some((module, ends.ahead.get(module.ahead()).copied().ok_or_else(|| unknown(op))?)),
            _ => None,
        };
        match (op.phase, op.step) {
            (Phase::I, Step::Again) => unit.attention_again(context),
            (Phase::F, _) => {
                self.complete(context, program, number)?;
                if let Some((module, tokens)) = module {
                    module.input_forward(context, tokens, &self.output_of(context, number, ends))?;
                }
                layer.attention_forward(context)
            }
            (Phase::I, _) => {
                if launch.again_apart.is_empty() {
                    unit.attention_again(context)?;
                }
                let (parts, before) =
                    (self.all(program, Phase::I, number), self.gradient_before(context, number, ends));
                let Some((module, _)) = module else {
                    return layer.attention_input_gradient(context, &parts, last(&before));
                };
                layer.attention_input_gradient(context, &parts, module.layer_gradient(context))?;
                module.input_gradient(context, &before)
            }
            (Phase::W, _) => {
                if let Some((module, tokens)) = module {
                    module.accumulate_input(context, tokens)?;
                }
                layer.accumulate_attention(context)
            }
        }
    }

    fn mlp(
        &self,
        context: &Context,
        layer: &LayerUnit,
        op: &ProgramOp,
        launch: &Launch,
        exchange: Option<&mut Exchange>,
        output: Slice<Bf16>,
    ) -> Result<()> {
        let parts = self.parts(launch.program, op);
        let (main, shared) = (op.step == Step::Main, launch.with_shared || op.step == Step::Shared);
        match op.phase {
            Phase::F => {
                if main && layer.has_experts() {
                    layer.experts_forward(context, exchange.ok_or_else(|| unknown(op))?, &parts)?;
                } else if main {
                    layer.dense_forward(context, output)?;
                }
                if shared { layer.shared_forward(context) } else { Ok(()) }
            }
            Phase::I if op.step == Step::Again => layer.mlp_again(context, exchange, &parts),
            Phase::I => {
                if shared {
                    layer.shared_input_gradient(context)?;
                }
                if !main {
                    return Ok(());
                }
                let mut exchange = exchange;
                for range in self.forms.left(op, &launch.again_apart) {
                    layer.mlp_again(context, exchange.as_deref_mut(), &Parts { range, ways: &[] })?;
                }
                if !layer.has_experts() {
                    return layer.dense_input_gradient(context);
                }
                layer.experts_input_gradient(context, exchange.ok_or_else(|| unknown(op))?, &parts)
            }
            Phase::W => {
                if main {
                    layer.accumulate_mlp(context, &parts)?;
                }
                if shared { layer.accumulate_shared(context) } else { Ok(()) }
            }
        }
    }

    fn exchange(
        &self,
        context: &Context,
        layer: &LayerUnit,
        op: &ProgramOp,
        program: u32,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let parts = self.parts(program, op);
        let dispatch = op.component == Component::Dispatch;
        // To the experts.
        let there = dispatch == (op.phase == Phase::F);
        match (op.step, op.phase, dispatch) {
            (Step::Quantise, Phase::F | Phase::I, _) => layer.quantise(context, (there, op.phase), &parts),
            (Step::Pack, Phase::F | Phase::I, _) => layer.pack(context, exchange, (there, op.phase), &parts),
            (Step::Main, Phase::F, true) => layer.dispatch(context, exchange, &parts),
            (Step::Again, Phase::I, true) => layer.dispatch_again(context, exchange, &parts),
            (Step::Main, Phase::F, false) => layer.combine(context, exchange, &parts),
            (Step::Main, Phase::I, false) => layer.combine_gradient(context, exchange, &parts),
            (Step::Main, Phase::I, true) => layer.dispatch_gradient(context, exchange, &parts),
            _ => Err(unknown(op)),
        }
    }

    /// The parts that an op works on. What is computed again goes as the job says.
    fn parts(&self, program: u32, op: &ProgramOp) -> Parts<'_> {
        let again = op.step == Step::Again;
        let ways = if again { &[][..] } else { self.forms.ways(program, op.phase, op.unit as usize) };
        Parts { range: self.forms.parts_of(op), ways }
    }

    /// All parts of a unit.
    fn all(&self, program: u32, phase: Phase, number: usize) -> Parts<'_> {
        Parts { range: 0..self.forms.parts(number), ways: self.forms.ways(program, phase, number) }
    }

    /// Where a unit's output goes.
    fn output_of(&self, context: &Context, number: usize, ends: &Ends) -> States {
        let next = self.units.get(number + 1).map(|next| next.input(context.blocks));
        next.unwrap_or_else(|| context.states(ends.output))
    }

    /// Where the gradient of a unit's input goes.
    fn gradient_before(&self, context: &Context, number: usize, ends: &Ends) -> States {
        let before = number.checked_sub(1).and_then(|before| self.units.get(before));
        let before = before.map(|before| before.output_gradient(context.blocks));
        before.unwrap_or_else(|| context.states(ends.input_gradient))
    }

    /// The unit in front leaves its result where this one reads it.
    fn complete(&self, context: &Context, program: u32, number: usize) -> Result<()> {
        let before = number.checked_sub(1).and_then(|before| Some((before, self.units.get(before)?.layer()?)));
        let Some((before, layer)) = before else { return Ok(()) };
        let input = last(&self.units[number].input(context.blocks));
        layer.complete(context, &self.all(program, Phase::F, before), input)
    }
}

/// The state that a layer reads or makes: what stands in front of it is handed on.
fn last(states: &States) -> Slice<Bf16> {
    states.last().copied().unwrap_or(Slice::none())
}

/// Copies a message to where its states are read.
fn copy(context: &Context, to: &States, message: Slice<Bf16>) -> Result<()> {
    let from = context.states(message);
    if from.len() != to.len() && !to.is_empty() {
        return Err(Error::new(format!("a message has {} hidden states where {} are read", from.len(), to.len())));
    }
    to.iter().zip(from).try_for_each(|(to, from)| to.copy_from(context.stream, from))
}

fn unknown(op: &ProgramOp) -> Error {
    Error::new(format!("{} is no op of unit {}", op.what(), op.unit))
}
