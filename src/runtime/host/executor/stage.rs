//! The parameters of a stage on one GPU, or their gradients.

use std::ops::Range;

use crate::ir::Unit;
use crate::runtime::host::layers::embedding;
use crate::runtime::host::parameters::{Parameters, Tensor};
use crate::runtime::host::unit::{self, UnitParameters};
use crate::runtime::host::{Real, Shape};

/// Parameters, or gradients, of a stage, with the experts that the GPU has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageParameters<T> {
    /// Its units, in order.
    units: Vec<(Unit, UnitParameters<T>)>,
    /// The embedding's table, where the stage reads it and has no embedding: a copy.
    table: Option<Tensor<T>>,
}

impl<T: Real> StageParameters<T> {
    /// All zero.
    pub fn zeros(shape: &Shape, units: &[Unit], experts: &Range<u32>) -> Self {
        let table = reads_table(shape, units) && !units.contains(&Unit::Embedding);
        Self {
            units: units.iter().map(|&unit| (unit, UnitParameters::new(shape, unit, experts.clone()))).collect(),
            table: table.then(|| embedding::table(shape)),
        }
    }

    /// A unit, if there is one of that number.
    pub fn unit(&self, number: usize) -> Option<&UnitParameters<T>> {
        self.units.get(number).map(|(_, unit)| unit)
    }

    /// The embedding's table, if the stage reads it.
    pub fn table(&self) -> Option<&Tensor<T>> {
        match (&self.table, self.units.first()) {
            (Some(table), _) | (None, Some((_, UnitParameters::Embedding(table)))) => Some(table),
            _ => None,
        }
    }

    /// The table, to be changed.
    pub fn table_mut(&mut self) -> Option<&mut Tensor<T>> {
        match (&mut self.table, self.units.first_mut()) {
            (Some(table), _) | (None, Some((_, UnitParameters::Embedding(table)))) => Some(table),
            _ => None,
        }
    }

    /// A unit behind the embedding, and the table, to be changed.
    pub fn unit_and_table(&mut self, number: usize) -> (Option<&mut UnitParameters<T>>, Option<&mut Tensor<T>>) {
        let at = number.min(self.units.len());
        let (before, from) = self.units.split_at_mut(at);
        let table = match (&mut self.table, before.first_mut()) {
            (Some(table), _) | (None, Some((_, UnitParameters::Embedding(table)))) => Some(table),
            _ => None,
        };
        (from.first_mut().map(|(_, unit)| unit), table)
    }
}

/// Whether a stage of these units reads the embedding's table.
pub fn reads_table(shape: &Shape, units: &[Unit]) -> bool {
    units.iter().any(|unit| match unit {
        Unit::Embedding | Unit::Mtp(_) => true,
        Unit::Head => shape.model.tied_embedding,
        Unit::Dense(_) | Unit::Moe(_) => false,
    })
}

impl<T> Parameters<T> for StageParameters<T> {
    fn each<'a>(&'a self, _: &str, visit: &mut dyn FnMut(String, &'a Tensor<T>)) {
        self.units.iter().for_each(|(unit, parameters)| parameters.each(&unit::name(*unit), visit));
        self.table.each(&unit::name(Unit::Embedding), visit);
    }

    fn each_mut<'a>(&'a mut self, _: &str, visit: &mut dyn FnMut(String, &'a mut Tensor<T>)) {
        self.units.iter_mut().for_each(|(unit, parameters)| parameters.each_mut(&unit::name(*unit), visit));
        self.table.each_mut(&unit::name(Unit::Embedding), visit);
    }
}

/// Whether a tensor is of a routed expert: held by the GPUs at one place of their groups, not by all.
pub fn is_expert(name: &str) -> bool {
    name.contains(".experts.")
}

/// Some of the tensors of a stage.
pub struct Part<'a, T> {
    /// All of them.
    pub all: &'a mut StageParameters<T>,
    /// By tensor, in their order, whether it belongs to the part.
    pub chosen: &'a [bool],
}

impl<T> Parameters<T> for Part<'_, T> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(String, &'a Tensor<T>)) {
        let mut chosen = self.chosen.iter();
        self.all.each(name, &mut |name, tensor| {
            if chosen.next() == Some(&true) {
                visit(name, tensor);
            }
        });
    }

    fn each_mut<'a>(&'a mut self, name: &str, visit: &mut dyn FnMut(String, &'a mut Tensor<T>)) {
        let mut chosen = self.chosen.iter();
        self.all.each_mut(name, &mut |name, tensor| {
            if chosen.next() == Some(&true) {
                visit(name, tensor);
            }
        });
    }
}
