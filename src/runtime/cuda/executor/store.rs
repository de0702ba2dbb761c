//! The parameters of a stage on one GPU, with all that is as large: gradients, moments, and a copy in bf16 that products read; and of
//! what products read in FP8, copies in that, as it is and transposed.
//!
//! Each of these is one array with the same places. It has regions by what happens to them at the end of a step: they are reduced over
//! other GPUs, or decay or not. Each region is as long as a multiple of what its members share it by.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ir::Unit;
use crate::runtime::cuda::ops::grouped::Experts;
use crate::runtime::cuda::ops::quantise::{self, Weights};
use crate::runtime::cuda::{Bf16, Device, Memory, Slice, Stream};
use crate::runtime::host::executor::{StageParameters, is_expert};
use crate::runtime::host::parameters::{Parameters as _, Role};
use crate::runtime::host::unit;

/// What happens to parameters at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// The embedding's table where several stages read it, each its copy. It lies first, so at the same place in all of them.
    Table,
    /// Matrices that every GPU has which holds the stage: they decay.
    Weights,
    /// Gains and biases: they do not.
    Vectors,
    /// Matrices of routed experts, which only GPUs at the same place of their groups have.
    Experts,
    /// Their biases.
    ExpertVectors,
    /// Balancing biases; among the gradients, loads.
    Balance,
}

/// All regions, in the order of their places.
pub const REGIONS: [Region; 6] =
    [Region::Table, Region::Weights, Region::Vectors, Region::Experts, Region::ExpertVectors, Region::Balance];

/// Elements that a tensor's place is a multiple of: 256 bytes of bf16.
const UNIT: usize = 128;

/// Where a tensor lies in each of the arrays.
#[derive(Clone, Debug)]
pub struct Place {
    start: usize,
    rows: usize,
    columns: usize,
}

impl Place {
    /// Its elements.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.rows * self.columns
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }
}

/// The parameters of a stage.
pub struct Store {
    places: BTreeMap<String, Place>,
    regions: [Range<usize>; REGIONS.len()],
    parameters: Memory,
    gradients: Memory,
    moments: [Memory; 2],
    copy: Memory,
    device: Arc<Device>,
    /// What is read in FP8: in bf16, and where it is put.
    quantised: Vec<(Experts<Bf16>, Weights)>,
    quantised_memory: Vec<Memory>,
}

/// A matrix that products read: outputs × inputs.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// In bf16.
    pub values: Slice<Bf16>,
    /// Is added to.
    pub gradient: Slice<f32>,
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
}

/// A gain, a bias, or a table of which rows are looked up.
#[derive(Clone, Copy, Debug)]
pub struct Vector {
    /// In fp32.
    pub values: Slice<f32>,
    /// Is added to.
    pub gradient: Slice<f32>,
}

impl Region {
    /// Whether only GPUs at the same place of their groups have it.
    pub fn is_of_experts(self) -> bool {
        matches!(self, Self::Experts | Self::ExpertVectors)
    }

    /// Whether its parameters decay.
    pub fn decays(self) -> bool {
        matches!(self, Self::Table | Self::Weights | Self::Experts)
    }
}

/// Which region a tensor belongs to.
fn region(name: &str, role: Role, table_is_shared: bool) -> Region {
    match role {
        Role::Weight if table_is_shared && name == unit::name(Unit::Embedding) => Region::Table,
        Role::Balance => Region::Balance,
        Role::Gain | Role::Bias if is_expert(name) => Region::ExpertVectors,
        Role::Gain | Role::Bias => Region::Vectors,
        Role::Weight if is_expert(name) => Region::Experts,
        Role::Weight => Region::Weights,
    }
}

impl Store {
    /// With the values of `initial`. `members`: GPUs that share each region's work, by region; of the table none, if no other stage reads it.
    ///
    /// # Errors
    /// If the GPU has not so much memory.
    pub fn new(
        device: &Arc<Device>,
        stream: &Stream,
        initial: &StageParameters<f32>,
        members: [usize; REGIONS.len()],
    ) -> Result<Self> {
        let tensors = initial.tensors("");
        let mut places = BTreeMap::new();
        let mut regions = [const { 0..0 }; REGIONS.len()];
        let table_is_shared = members[Region::Table as usize] > 0;
        let mut next = 0;
        for (number, of) in REGIONS.into_iter().enumerate() {
            let start = next;
            for (name, tensor) in
                tensors.iter().filter(|(name, tensor)| region(name, tensor.role, table_is_shared) == of)
            {
                let (rows, columns) = (tensor.values.rows(), tensor.values.columns());
                places.insert(name.clone(), Place { start: next, rows, columns });
                next += (rows * columns).next_multiple_of(UNIT);
            }
            next = start + (next - start).next_multiple_of(UNIT * members[number].max(1));
            regions[number] = start..next;
        }
        let array = || Memory::of::<f32>(device, next);
        let store = Self {
            places,
            regions,
            parameters: array()?,
            gradients: array()?,
            moments: [array()?, array()?],
            copy: Memory::of::<Bf16>(device, next)?,
            device: Arc::clone(device),
            quantised: Vec::new(),
            quantised_memory: Vec::new(),
        };
        let mut values = vec![0.0f32; next];
        for (name, tensor) in &tensors {
            values[store.places[name].range()].copy_from_slice(tensor.values.values());
        }
        store.set_parameters(stream, &values)?;
        [&store.gradients, &store.moments[0], &store.moments[1]]
            .into_iter()
            .try_for_each(|memory| memory.all::<u8>().fill_bytes(stream, 0))?;
        Ok(store)
    }

    fn set_parameters(&self, stream: &Stream, values: &[f32]) -> Result<()> {
        let copy: Vec<Bf16> = values.iter().map(|&value| Bf16::of(value)).collect();
        self.parameters().write(stream, values)?;
        self.copy().write(stream, &copy)
    }

    /// Sets parameters and moments. `of` gives those of a tensor, by name and shape.
    ///
    /// # Errors
    /// Those of `of`, or if the driver refuses.
    pub fn restore(
        &self,
        stream: &Stream,
        mut of: impl FnMut(&str, [usize; 2]) -> Result<[Vec<f32>; 3]>,
    ) -> Result<()> {
        let mut arrays = [0, 1, 2].map(|_| vec![0.0f32; self.parameters().len()]);
        for (name, place) in self.tensors() {
            for (array, values) in arrays.iter_mut().zip(of(name, place.shape())?) {
                array[place.range()].copy_from_slice(&values);
            }
        }
        let [parameters, first, second] = arrays;
        self.set_parameters(stream, &parameters)?;
        self.moments().into_iter().zip([first, second]).try_for_each(|(to, values)| to.write(stream, &values))
    }

    /// The GPU.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The elements of a region.
    pub fn region(&self, of: Region) -> Range<usize> {
        self.regions[of as usize].clone()
    }

    /// All parameters, in fp32.
    pub fn parameters(&self) -> Slice<f32> {
        self.parameters.all()
    }

    /// All gradients.
    pub fn gradients(&self) -> Slice<f32> {
        self.gradients.all()
    }

    /// First and second moments.
    pub fn moments(&self) -> [Slice<f32>; 2] {
        [self.moments[0].all(), self.moments[1].all()]
    }

    /// All parameters in bf16.
    pub fn copy(&self) -> Slice<Bf16> {
        self.copy.all()
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        let [first, second] = &self.moments;
        let arrays = [&self.parameters, &self.gradients, first, second, &self.copy];
        arrays.into_iter().chain(&self.quantised_memory).map(Memory::bytes).sum()
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.places.get(name).ok_or_else(|| Error::new(format!("the stage has no {name}")))
    }

    /// A matrix.
    ///
    /// # Errors
    /// If the stage has none of that name.
    pub fn matrix(&self, name: &str) -> Result<Matrix> {
        let place = self.place(name)?;
        Ok(Matrix {
            values: self.copy().part(place.range()),
            gradient: self.gradients().part(place.range()),
            outputs: place.rows,
            inputs: place.columns,
        })
    }

    /// A vector, or a table.
    ///
    /// # Errors
    /// If the stage has none of that name.
    pub fn vector(&self, name: &str) -> Result<Vector> {
        let range = self.place(name)?.range();
        Ok(Vector { values: self.parameters().part(range.clone()), gradient: self.gradients().part(range) })
    }

    /// The embedding's table, as what looks rows up reads it.
    ///
    /// # Errors
    /// If the stage has none.
    pub fn table(&self) -> Result<Vector> {
        self.vector(&unit::name(Unit::Embedding))
    }

    /// The embedding's table, as a head that is tied to it reads it.
    ///
    /// # Errors
    /// If the stage has none.
    pub fn tied(&self) -> Result<Matrix> {
        self.matrix(&unit::name(Unit::Embedding))
    }

    /// A vector that not every model has.
    pub fn vector_if_any(&self, name: &str) -> Option<Vector> {
        self.vector(name).ok()
    }

    /// The same tensors of neighbouring experts: from the first one's first element to the last one's last, and by how many elements one
    /// stands from the next.
    ///
    /// # Errors
    /// If the stage lacks one of them.
    pub fn group(&self, names: &[String]) -> Result<(Range<usize>, usize)> {
        let places = names.iter().map(|name| self.place(name)).collect::<Result<Vec<_>>>()?;
        let (first, last) = (places.first().copied(), places.last().copied());
        let (first, last) = first.zip(last).ok_or_else(|| Error::new("a GPU without experts"))?;
        let size = last.rows * last.columns;
        let stride = places.get(1).map_or(size, |second| second.start - first.start);
        let even = places.windows(2).all(|pair| pair[1].start - pair[0].start == stride);
        if !even {
            return Err(Error::new("experts of different sizes"));
        }
        Ok((first.start..last.start + size, stride))
    }

    /// Matrices in FP8: made by [`Self::quantise`] from what they are then in bf16.
    ///
    /// # Errors
    /// If the GPU has not so much memory.
    pub fn quantised(&mut self, values: Experts<Bf16>, (inputs, outputs): (usize, usize)) -> Result<Weights> {
        let memory = Memory::new(&self.device, Weights::bytes(values.count, outputs, inputs))?;
        let weights = Weights::at(memory.all(), values.count, outputs, inputs);
        self.quantised.push((values, weights));
        self.quantised_memory.push(memory);
        Ok(weights)
    }

    /// Brings what is read in FP8 up to date.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn quantise(&self, stream: &Stream) -> Result<()> {
        self.quantised.iter().try_for_each(|(values, to)| quantise::blocks(stream, self.device.sms, *values, to))
    }

    /// Every tensor's name, and where it lies in the arrays.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Place)> {
        self.places.iter().map(|(name, place)| (name.as_str(), place))
    }
}
