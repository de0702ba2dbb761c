//! Products of rows with weights: in bf16, or in FP8 as [`crate::runtime::host::layers::linear`] emulates it. In FP8 the input is quantised along
//! its rows in F and kept so; the gradient of the output along its rows in I; and in W the kept input once more, and the gradient from
//! bf16, along the tokens. Weights are quantised at the begin of a step.
//!
//! Dense products in FP8 are cuBLASLt's where it takes their shape, and otherwise those for experts with one expert.

use super::{Context, absent};
use crate::error::{Error, Result};
use crate::job::model::Dtype;
use crate::runtime::cuda::executor::blocks::{Block, Blocks, Packer, Spot};
use crate::runtime::cuda::executor::store::{Matrix, Store};
use crate::runtime::cuda::ops::grouped::{self, Experts};
use crate::runtime::cuda::ops::grouped_fp8;
use crate::runtime::cuda::ops::quantise::{self, Groups, Scale, Source, Weights, columns_of, tile_scales};
use crate::runtime::cuda::product::Tiled;
use crate::runtime::cuda::{Bf16, Fp8, Slice};
use crate::runtime::host::precision::ProductFormats;

/// Where an FP8 matrix with scales of 1 × 128 lies.
#[derive(Clone, Copy)]
pub struct Tiles {
    values: Spot<Fp8>,
    scales: Spot<f32>,
}

impl Tiles {
    /// See [`Packer::take`].
    pub fn take(packer: &mut Packer, block: Block, rows: usize, depth: usize) -> Self {
        Self { values: packer.take(block, rows * depth), scales: packer.take(block, tile_scales(rows, depth)) }
    }

    /// See [`Packer::take_if`].
    fn take_if(again: bool, packer: &mut Packer, block: Block, (rows, depth): (usize, usize)) -> Self {
        let scales = tile_scales(rows, depth);
        Self { values: packer.take_if(again, block, rows * depth), scales: packer.take_if(again, block, scales) }
    }

    /// See [`Packer::take_once`].
    pub fn take_once(packer: &mut Packer, block: Block, rows: usize, depth: usize) -> Self {
        Self::take_if(false, packer, block, (rows, depth))
    }

    /// Where they are.
    pub fn at(self, blocks: &Blocks) -> Tiled {
        Tiled { values: blocks.at(self.values), scales: blocks.at(self.scales) }
    }
}

/// What products read: rows × width.
#[derive(Clone, Copy)]
pub struct Input {
    values: Spot<Bf16>,
    fp8: Option<(Tiles, Scale)>,
    width: usize,
}

impl Input {
    /// `formats`: of the products that read it, if any do. `kept`: where its values in bf16 are, if those products are in FP8; `again`: it is
    /// computed again in the backward.
    pub fn new(
        packer: &mut Packer,
        formats: Option<ProductFormats>,
        (rows, width): (usize, usize),
        kept: Block,
        again: bool,
    ) -> Self {
        let again = again || packer.recompute().layer;
        let Some(formats) = formats.filter(in_fp8) else {
            return Self { values: packer.take_if(again, Block::UntilW, rows * width), fp8: None, width };
        };
        let tiles = Tiles::take_if(again, packer, Block::UntilW, (rows, width));
        Self { values: packer.take_if(again, kept, rows * width), fp8: Some((tiles, formats.activations)), width }
    }

    /// What always comes as products in FP8 read it.
    pub fn arriving(packer: &mut Packer, formats: ProductFormats, (rows, width): (usize, usize)) -> Self {
        let tiles = Tiles::take(packer, Block::UntilW, rows, width);
        Self { values: packer.take_once(Block::Forward, 0), fp8: Some((tiles, formats.activations)), width }
    }

    /// In FP8, if products read it so.
    pub fn tiles(&self, blocks: &Blocks) -> Option<Tiled> {
        self.fp8.map(|(tiles, _)| tiles.at(blocks))
    }

    /// In bf16.
    pub fn values(&self, blocks: &Blocks) -> Slice<Bf16> {
        blocks.at(self.values)
    }

    /// When the values are there, before any product.
    pub fn complete(&self, context: &Context, groups: Groups) -> Result<()> {
        let Some((tiles, scale)) = self.fp8 else { return Ok(()) };
        let &Context { stream, sms, blocks, .. } = context;
        quantise::rows(stream, sms, self.values(blocks), tiles.at(blocks), self.width, groups.rows(), scale)
    }
}

/// The gradient of what a product makes: rows × outputs.
#[derive(Clone, Copy)]
pub enum Gradient {
    /// In bf16. Products in FP8 quantise it.
    Values(Slice<Bf16>),
    /// As products in FP8 read it.
    Quantised(Tiled),
}

impl From<Slice<Bf16>> for Gradient {
    fn from(values: Slice<Bf16>) -> Self {
        Self::Values(values)
    }
}

/// A matrix, or one of each expert.
pub struct Product {
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    of: Of,
    fp8: Option<InFp8>,
}

enum Of {
    Tokens(Matrix),
    Experts { values: Experts<Bf16>, gradients: Experts<f32> },
}

/// What a product in FP8 has besides.
struct InFp8 {
    weights: Weights,
    formats: ProductFormats,
    /// The gradient of the output, for that of the input.
    dy: Tiles,
    /// Transposed, for that of the weights.
    xt: Tiles,
    dyt: Tiles,
}

/// Whether a product reads FP8.
pub fn in_fp8(formats: &ProductFormats) -> bool {
    formats.inputs == Some(Dtype::Fp8)
}

/// Cannot be: only products in FP8 are given gradients in FP8.
fn in_bf16() -> Error {
    Error::new("a product in bf16 has a gradient in FP8")
}

impl Product {
    /// That every token is multiplied with.
    ///
    /// # Errors
    /// If the stage has no such matrix, or FP8 does not go with its widths.
    pub fn of_tokens(
        formats: ProductFormats,
        name: &str,
        tokens: usize,
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let matrix = store.matrix(name)?;
        let Matrix { outputs, inputs, values, .. } = matrix;
        let values = Experts { first: values, stride: values.len(), count: 1 };
        let fp8 = InFp8::new(formats, values, (inputs, outputs), (tokens, None, tokens), store, packer)?;
        Ok(Self { outputs, inputs, of: Of::Tokens(matrix), fp8 })
    }

    /// Of experts, by name; `capacity`: rows that they have at most. `comes`: the gradient of what it makes comes in FP8, if it is in FP8.
    ///
    /// # Errors
    /// As [`Self::of_tokens`].
    pub fn of_experts(
        formats: ProductFormats,
        names: &[String],
        (capacity, comes): (usize, bool),
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Self> {
        let (range, stride) = store.group(names)?;
        let count = names.len();
        let Matrix { outputs, inputs, .. } = store.matrix(&names[0])?;
        let values = Experts { first: store.copy().part(range.clone()), stride, count };
        let gradients = Experts { first: store.gradients().part(range), stride, count };
        let quantised = if comes { 0 } else { capacity };
        let fp8 = InFp8::new(formats, values, (inputs, outputs), (capacity, Some(count), quantised), store, packer)?;
        Ok(Self { outputs, inputs, of: Of::Experts { values, gradients }, fp8 })
    }

    /// `y = x Wᵀ`, or with `add`, which experts have not, `y += x Wᵀ`.
    pub fn forward(&self, context: &Context, x: &Input, groups: Groups, y: Slice<Bf16>, add: bool) -> Result<()> {
        let &Context { stream, sms, blocks, products, .. } = context;
        let shape = (self.inputs, self.outputs);
        match (&self.of, self.fp8.as_ref().zip(x.fp8)) {
            (Of::Tokens(matrix), None) => context.product(x.values(blocks), *matrix, y, add),
            (Of::Experts { values, .. }, None) => {
                grouped::forward(stream, sms, x.values(blocks), *values, groups.offsets, y, shape)
            }
            (Of::Tokens(_), Some((fp8, (x, _)))) if products.takes_fp8(groups.most) => {
                let shape = (groups.most, self.inputs, self.outputs);
                products.forward_fp8(stream, sms, x.at(blocks), fp8.weights.values, y, shape, add)
            }
            (_, Some((fp8, (x, _)))) => grouped_fp8::forward(stream, sms, x.at(blocks), &fp8.weights, groups, y, add),
        }
    }

    /// `dx = dy W`, or with `add`, which experts have not, `dx += dy W`.
    pub fn input_gradient(
        &self,
        context: &Context,
        dy: impl Into<Gradient>,
        groups: Groups,
        dx: Slice<Bf16>,
        add: bool,
    ) -> Result<()> {
        let &Context { stream, sms, blocks, products, .. } = context;
        let dy = dy.into();
        let Some(fp8) = &self.fp8 else {
            let Gradient::Values(dy) = dy else { return Err(in_bf16()) };
            return match &self.of {
                Of::Tokens(matrix) => context.product_input(dy, *matrix, dx, add),
                Of::Experts { values, .. } => {
                    grouped::input_gradient(stream, sms, dy, *values, groups.offsets, dx, (self.inputs, self.outputs))
                }
            };
        };
        let read = match dy {
            Gradient::Quantised(dy) => dy,
            Gradient::Values(dy) => {
                let read = fp8.dy.at(blocks);
                quantise::rows(stream, sms, dy, read, self.outputs, groups.rows(), fp8.formats.output_gradients)?;
                read
            }
        };
        match &self.of {
            Of::Tokens(_) if products.takes_fp8(groups.most) => {
                let shape = (groups.most, self.inputs, self.outputs);
                products.input_gradient_fp8(stream, sms, read, fp8.weights.transposed, dx, shape, add)
            }
            _ => grouped_fp8::input_gradient(stream, sms, read, &fp8.weights, groups, dx, add),
        }
    }

    /// `dW += dyᵀ x`.
    pub fn accumulate(&self, context: &Context, x: &Input, dy: impl Into<Gradient>, groups: Groups) -> Result<()> {
        let &Context { stream, sms, blocks, products, .. } = context;
        let shape = (self.inputs, self.outputs);
        let dy = dy.into();
        let Some((fp8, (kept, scale))) = self.fp8.as_ref().zip(x.fp8) else {
            let Gradient::Values(dy) = dy else { return Err(in_bf16()) };
            return match &self.of {
                Of::Tokens(matrix) => context.product_weight(x.values(blocks), dy, *matrix),
                Of::Experts { gradients, .. } => {
                    grouped::weight_gradient(stream, sms, x.values(blocks), dy, groups.offsets, *gradients, shape)
                }
            };
        };
        let (xt, dyt) = (fp8.xt.at(blocks), fp8.dyt.at(blocks));
        quantise::columns(stream, sms, Source::Quantised(kept.at(blocks)), xt, self.inputs, groups, scale)?;
        let gradients = fp8.formats.output_gradients;
        let dy = match dy {
            Gradient::Values(dy) => Source::Values(dy),
            Gradient::Quantised(dy) => Source::Quantised(dy),
        };
        quantise::columns(stream, sms, dy, dyt, self.outputs, groups, gradients)?;
        match &self.of {
            Of::Tokens(matrix) if products.takes_fp8(groups.most) && groups.columns() == groups.most => {
                let shape = (groups.most, self.inputs, self.outputs);
                products.weight_gradient_fp8(stream, sms, xt, dyt, matrix.gradient, shape)
            }
            Of::Tokens(matrix) => {
                let dw = Experts { first: matrix.gradient, stride: matrix.gradient.len(), count: 1 };
                grouped_fp8::weight_gradient(stream, sms, xt, dyt, groups, dw, shape)
            }
            Of::Experts { gradients, .. } => {
                grouped_fp8::weight_gradient(stream, sms, xt, dyt, groups, *gradients, shape)
            }
        }
    }
}

impl InFp8 {
    /// None in bf16. `rows`: at most, of how many experts, if they are of experts, and of how many the gradient is quantised here.
    fn new(
        formats: ProductFormats,
        values: Experts<Bf16>,
        (inputs, outputs): (usize, usize),
        (rows, experts, quantised): (usize, Option<usize>, usize),
        store: &mut Store,
        packer: &mut Packer,
    ) -> Result<Option<Self>> {
        if !in_fp8(&formats) {
            return Ok(None);
        }
        if !inputs.is_multiple_of(16) || !outputs.is_multiple_of(16) {
            return Err(absent(&format!("FP8 products from {inputs} to {outputs}: only for multiples of 16")));
        }
        let weights = store.quantised(values, (inputs, outputs))?;
        let columns = columns_of(rows, experts);
        Ok(Some(Self {
            weights,
            formats,
            dy: Tiles::take(packer, Block::Backward, quantised, outputs),
            xt: Tiles::take(packer, Block::Weights, inputs, columns),
            dyt: Tiles::take(packer, Block::Weights, outputs, columns),
        }))
    }
}
