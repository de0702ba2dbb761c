//! Biases of routed experts (gpt-oss): of what goes into SwiGLU, and of the results. As the router's weight of a row is multiplied in in front of
//! the last product, the bias of the results is multiplied with it by itself.

use super::Context;
use crate::error::Result;
use crate::runtime::cuda::executor::store::Store;
use crate::runtime::cuda::ops::expert_bias;
use crate::runtime::cuda::ops::grouped::Experts;
use crate::runtime::cuda::ops::quantise::Groups;
use crate::runtime::cuda::{Bf16, Slice};

/// Of both products.
pub struct ExpertBiases {
    gate_up: Bias,
    down: Bias,
}

/// Of one product, for each expert.
struct Bias {
    values: Experts<f32>,
    gradients: Experts<f32>,
    width: usize,
}

impl ExpertBiases {
    /// `names`: of the experts' tensors that end so.
    ///
    /// # Errors
    /// If the stage lacks one of them.
    pub fn new(names: impl Fn(&str) -> Vec<String>, store: &Store) -> Result<Self> {
        let bias = |names: &[String]| -> Result<Bias> {
            let (range, stride) = store.group(names)?;
            let (count, width) = (names.len(), store.vector(&names[0])?.values.len());
            let values = Experts { first: store.parameters().part(range.clone()), stride, count };
            Ok(Bias { values, gradients: Experts { first: store.gradients().part(range), stride, count }, width })
        };
        Ok(Self { gate_up: bias(&names("gate_up.bias"))?, down: bias(&names("down.bias"))? })
    }

    /// F: what goes into SwiGLU.
    pub fn add_inner(&self, context: &Context, inner: Slice<Bf16>, groups: Groups) -> Result<()> {
        let Bias { values, width, .. } = self.gate_up;
        expert_bias::add(context.stream, context.sms, inner, (values, Slice::none()), groups.offsets, width)
    }

    /// F: the results. `weights`: of the rows.
    pub fn add_results(
        &self,
        context: &Context,
        results: Slice<Bf16>,
        weights: Slice<f32>,
        groups: Groups,
    ) -> Result<()> {
        let Bias { values, width, .. } = self.down;
        expert_bias::add(context.stream, context.sms, results, (values, weights), groups.offsets, width)
    }

    /// I: adds to the gradients of the biases, and to those of the rows' weights what they get by the bias of the results.
    pub fn gradients(
        &self,
        context: &Context,
        d_inner: Slice<Bf16>,
        (d_results, weights, d_weights): (Slice<Bf16>, Slice<f32>, Slice<f32>),
        groups: Groups,
    ) -> Result<()> {
        let (stream, sms, offsets) = (context.stream, context.sms, groups.offsets);
        let Self { gate_up, down } = self;
        expert_bias::weights_gradient(stream, sms, d_results, (down.values, d_weights), offsets, down.width)?;
        expert_bias::gradient(stream, sms, (d_results, weights), down.gradients, offsets, down.width)?;
        expert_bias::gradient(stream, sms, (d_inner, Slice::none()), gate_up.gradients, offsets, gate_up.width)
    }
}
