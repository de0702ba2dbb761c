//! The attention of a layer, of whichever kind the model has.

use super::latent::{self, Latent};
use super::multi_head::{self, MultiHead};
use crate::job::model;
use crate::runtime::host::parameters::{Parameters, Tensor};
use crate::runtime::host::{Matrix, Real, Shape};

/// Parameters of the projections and of what stands between them.
#[derive(Clone, Debug, PartialEq)]
pub enum Attention<T> {
    /// Multi-head or grouped-query.
    MultiHead(Box<MultiHead<T>>),
    /// Multi-head latent.
    Latent(Box<Latent<T>>),
}

/// What the gradient needs.
#[derive(Clone, Debug)]
pub enum Saved<T> {
    /// Of the same kind of attention.
    MultiHead(multi_head::Saved<T>),
    /// Of the same kind of attention.
    Latent(latent::Saved<T>),
}

/// What the weight gradient needs.
#[derive(Clone, Debug)]
pub enum ForWeights<T> {
    /// Of the same kind of attention.
    MultiHead(multi_head::ForWeights<T>),
    /// Of the same kind of attention.
    Latent(latent::ForWeights<T>),
}

impl<T: Real> Attention<T> {
    /// All zero.
    pub fn new(shape: &Shape) -> Self {
        match &shape.model.attention {
            model::Attention::Mha(dims) | model::Attention::Gqa(dims) => {
                Self::MultiHead(Box::new(MultiHead::new(shape, dims)))
            }
            model::Attention::Mla(dims) => Self::Latent(Box::new(Latent::new(shape, dims))),
        }
    }

    /// `x`: normed stream; `layer` sets the window.
    ///
    /// # Panics
    /// If the parameters are those of another shape; so do the other two.
    pub fn forward(&self, shape: &Shape, layer: u32, x: &Matrix<T>) -> (Matrix<T>, Saved<T>) {
        match (self, &shape.model.attention) {
            (Self::MultiHead(parameters), model::Attention::Mha(dims) | model::Attention::Gqa(dims)) => {
                let (y, saved) = parameters.forward(shape, dims, layer, x);
                (y, Saved::MultiHead(saved))
            }
            (Self::Latent(parameters), model::Attention::Mla(dims)) => {
                let (y, saved) = parameters.forward(shape, dims, x);
                (y, Saved::Latent(saved))
            }
            _ => unreachable!("{OTHER_KIND}"),
        }
    }

    /// From the gradient of the result to that of `x`.
    pub fn input_gradient(
        &self,
        shape: &Shape,
        layer: u32,
        saved: Saved<T>,
        dy: &Matrix<T>,
    ) -> (Matrix<T>, ForWeights<T>) {
        match (self, &shape.model.attention, saved) {
            (
                Self::MultiHead(parameters),
                model::Attention::Mha(dims) | model::Attention::Gqa(dims),
                Saved::MultiHead(saved),
            ) => {
                let (dx, needed) = parameters.input_gradient(shape, dims, layer, saved, dy);
                (dx, ForWeights::MultiHead(needed))
            }
            (Self::Latent(parameters), model::Attention::Mla(dims), Saved::Latent(saved)) => {
                let (dx, needed) = parameters.input_gradient(shape, dims, saved, dy);
                (dx, ForWeights::Latent(needed))
            }
            _ => unreachable!("{OTHER_KIND}"),
        }
    }

    /// Adds to the gradients, which `self` has the place of.
    pub fn accumulate(&mut self, shape: &Shape, needed: &ForWeights<T>) {
        match (self, needed) {
            (Self::MultiHead(gradients), ForWeights::MultiHead(needed)) => gradients.accumulate(shape, needed),
            (Self::Latent(gradients), ForWeights::Latent(needed)) => gradients.accumulate(shape, needed),
            _ => unreachable!("{OTHER_KIND}"),
        }
    }
}

const OTHER_KIND: &str = "parameters, and what was saved, are of the shape's kind of attention";

impl<T> Parameters<T> for Attention<T> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(String, &'a Tensor<T>)) {
        match self {
            Self::MultiHead(parameters) => parameters.each(name, visit),
            Self::Latent(parameters) => parameters.each(name, visit),
        }
    }

    fn each_mut<'a>(&'a mut self, name: &str, visit: &mut dyn FnMut(String, &'a mut Tensor<T>)) {
        match self {
            Self::MultiHead(parameters) => parameters.each_mut(name, visit),
            Self::Latent(parameters) => parameters.each_mut(name, visit),
        }
    }
}
