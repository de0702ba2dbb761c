//! The end of a step on one GPU: gradients reduced over the GPUs that hold the same parameters, the optimizer's step, and, where
//! its work is divided among them, updated parameters gathered.
//!
//! Two things are not items of a plan, and happen in front of the first `Update`: the norm of all gradients together, and the sum
//! of the gradients of the embedding's table over all stages that read it. So an `Update` waits until all stages are reduced.

use std::sync::Arc;

use super::fabric::{Reduced, Total};
use super::stage::{Part, StageParameters, is_expert};
use crate::error::Result;
use crate::runtime::host::adamw::{AdamW, State, square_sum};
use crate::runtime::host::parameters::{Parameters as _, Role};
use crate::runtime::host::{Matrix, Real, Shape};
use crate::runtime::world::{Gpu, World};

/// A stage on one GPU, from step to step.
pub struct HeldStage<T> {
    /// Its parameters.
    pub parameters: StageParameters<T>,
    /// The gradients of the last step, reduced but not clipped.
    pub gradients: StageParameters<T>,
    /// The optimizer's state of the tensors that this GPU updates.
    pub state: State<T>,
    /// All GPUs that hold the stage.
    pub members: Vec<Gpu>,
    /// The place of this GPU among them.
    pub place: usize,
    /// By tensor: the place of the GPU that updates it.
    owners: Vec<usize>,
    /// By tensor: whether this GPU does.
    updated_here: Vec<bool>,
    /// By tensor: whether its gradient's square is this GPU's to count.
    counted_here: Vec<bool>,
}

impl<T: Real> HeldStage<T> {
    /// With these parameters. `sharded`: each tensor is updated by one of the GPUs that hold it, in turns.
    pub fn new(mut parameters: StageParameters<T>, world: &World, members: Vec<Gpu>, gpu: Gpu, sharded: bool) -> Self {
        let place = members.iter().position(|&member| member == gpu).unwrap_or_default();
        let table = parameters.table();
        let (mut owners, mut counted_here) = (Vec::new(), Vec::new());
        for (number, (name, tensor)) in parameters.tensors("").into_iter().enumerate() {
            // Of a routed expert only the GPUs at the same place of their groups.
            let holds = |member: &Gpu| !is_expert(&name) || world.place(*member) == world.place(gpu);
            let holders: Vec<usize> =
                (0..).zip(&members).filter(|(_, member)| holds(member)).map(|(at, _)| at).collect();
            owners.push(if sharded { holders[number % holders.len()] } else { place });
            counted_here
                .push(holders.first() == Some(&place) && !table.is_some_and(|table| std::ptr::eq(table, tensor)));
        }
        let updated_here: Vec<bool> = owners.iter().map(|&owner| owner == place).collect();
        let state = State::new(&Part { all: &mut parameters, chosen: &updated_here });
        let gradients = StageParameters::default();
        Self { parameters, gradients, state, members, place, owners, updated_here, counted_here }
    }

    /// Replaces the gradients by the sums of what all members brought, in the members' order. `zeros`: of their shape.
    pub fn reduce(&mut self, shape: &Shape, zeros: StageParameters<T>, all: &[Arc<StageParameters<T>>]) {
        self.gradients = zeros;
        for member in all {
            let sums = self.gradients.tensors_mut("").into_iter();
            for ((name, sum), (theirs, gradient)) in sums.zip(member.tensors("")) {
                // What differs is of other experts: those of a GPU at another place of its group.
                if name == theirs {
                    // Loads of experts are counts, which are not rounded.
                    let format = shape.policy.gradients().filter(|_| sum.role != Role::Balance);
                    sum.accumulate(&gradient.values, format);
                }
            }
        }
    }

    /// The part of the model's reduced gradients that this GPU hands in. Each is handed in once: those of all replicas by the
    /// first member, those of experts by the members of the first group.
    pub fn part(&mut self, world: &World) -> Option<Reduced<T>> {
        if self.place >= world.ep as usize {
            return None;
        }
        let table = self.gradients.table().filter(|_| self.place == 0).cloned();
        let squares = square_sum(&Part { all: &mut self.gradients, chosen: &self.counted_here });
        Some(Reduced { squares, table })
    }

    /// Takes the optimizer's step.
    pub fn update(&mut self, shape: &Shape, optimizer: &AdamW, total: &Total<T>) {
        if let (Some(gradient), Some(sum)) = (self.gradients.table_mut(), &total.table) {
            gradient.values = sum.values.clone();
        }
        let chosen = &self.updated_here;
        let mut parameters = Part { all: &mut self.parameters, chosen };
        let gradients = Part { all: &mut self.gradients, chosen };
        optimizer.step(&shape.policy, &mut parameters, &gradients, &mut self.state, total.squares);
    }

    /// By tensor, its name and parameters; and its moments, if this GPU updates it.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Matrix<T>, Option<&[Matrix<T>; 2]>)> {
        let mut moments = self.state.moments().iter();
        let tensors = self.parameters.tensors("").into_iter().zip(&self.updated_here);
        tensors.map(move |((name, tensor), &here)| (name, &tensor.values, here.then(|| moments.next()).flatten()))
    }

    /// Puts the stage back to where it was after some steps. `of` gives a tensor's parameters and moments.
    ///
    /// # Errors
    /// Those of `of`.
    pub fn restore(
        &mut self,
        steps: u32,
        mut of: impl FnMut(&str, &Matrix<T>) -> Result<[Matrix<T>; 3]>,
    ) -> Result<()> {
        let mut moments = Vec::new();
        for ((name, tensor), &here) in self.parameters.tensors_mut("").into_iter().zip(&self.updated_here) {
            let [values, first, second] = of(&name, &tensor.values)?;
            tensor.values = values;
            moments.extend(here.then_some([first, second]));
        }
        self.state.restore(steps, moments);
        Ok(())
    }

    /// Takes each tensor from the member that has updated it.
    pub fn gather(&mut self, all: &[Arc<StageParameters<T>>]) {
        let members: Vec<_> = all.iter().map(|member| member.tensors("")).collect();
        for (number, (_, tensor)) in self.parameters.tensors_mut("").into_iter().enumerate() {
            let owner = self.owners[number];
            if owner != self.place {
                tensor.values = members[owner][number].1.values.clone();
            }
        }
    }
}
