//! Parameters: named tensors in a fixed order, and their initial values.
//!
//! The gradients of parameters are a value of the same type. A name says where a tensor stands (`layers.3.attention.norm`);
//! it does not depend on how the model is spread over ranks.

use std::collections::BTreeMap;

use super::precision::{self, Format, Tiles};
use super::random::Random;
use super::real::Real;
use super::tensor::Matrix;

/// What a tensor is for: how it starts, and how it is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A matrix: starts random, decays.
    Weight,
    /// Of a norm: starts as ones.
    Gain,
    /// Added to something: starts as zeros.
    Bias,
    /// The router's bias for balance, set by [`super::layers::router::balance`], not by gradients. Its place among the
    /// gradients has the load of each expert, in tokens.
    Balance,
}

/// A tensor with its role; or its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T> {
    /// What it is for.
    pub role: Role,
    /// Its values.
    pub values: Matrix<T>,
}

impl<T: Real> Tensor<T> {
    /// A weight matrix, zero for now: `outputs × inputs`.
    pub fn weight(outputs: usize, inputs: usize) -> Self {
        Self { role: Role::Weight, values: Matrix::zeros(outputs, inputs) }
    }

    /// A vector, zero for now.
    pub fn vector(role: Role, width: usize) -> Self {
        Self { role, values: Matrix::zeros(1, width) }
    }

    /// Adds to a gradient, which is kept in `format`.
    pub fn accumulate(&mut self, gradient: &Matrix<T>, format: Format) {
        self.values.add(gradient);
        precision::round(&mut self.values, format, Tiles::Rows);
    }
}

/// A tree of tensors that are visited in a fixed order.
pub trait Parameters<T> {
    /// Visits each tensor with its name; `name` is what stands in front.
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(String, &'a Tensor<T>));
    /// The same, to change them.
    fn each_mut<'a>(&'a mut self, name: &str, visit: &mut dyn FnMut(String, &'a mut Tensor<T>));

    /// All tensors with their names.
    fn tensors<'a>(&'a self, name: &str) -> Vec<(String, &'a Tensor<T>)>
    where
        T: 'a,
    {
        let mut all = Vec::new();
        self.each(name, &mut |name, tensor| all.push((name, tensor)));
        all
    }

    /// All tensors with their names, to change them.
    fn tensors_mut<'a>(&'a mut self, name: &str) -> Vec<(String, &'a mut Tensor<T>)>
    where
        T: 'a,
    {
        let mut all = Vec::new();
        self.each_mut(name, &mut |name, tensor| all.push((name, tensor)));
        all
    }
}

/// A name below another.
pub fn below(name: &str, part: &str) -> String {
    if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") }
}

impl<T> Parameters<T> for Tensor<T> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(String, &'a Self)) {
        visit(name.to_owned(), self);
    }

    fn each_mut<'a>(&'a mut self, name: &str, visit: &mut dyn FnMut(String, &'a mut Self)) {
        visit(name.to_owned(), self);
    }
}

impl<T, P: Parameters<T>> Parameters<T> for Option<P> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(String, &'a Tensor<T>)) {
        self.iter().for_each(|part| part.each(name, visit));
    }

    fn each_mut<'a>(&'a mut self, name: &str, visit: &mut dyn FnMut(String, &'a mut Tensor<T>)) {
        self.iter_mut().for_each(|part| part.each_mut(name, visit));
    }
}

impl<T, P: Parameters<T>> Parameters<T> for Vec<P> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(String, &'a Tensor<T>)) {
        self.iter().enumerate().for_each(|(index, part)| part.each(&below(name, &index.to_string()), visit));
    }

    fn each_mut<'a>(&'a mut self, name: &str, visit: &mut dyn FnMut(String, &'a mut Tensor<T>)) {
        self.iter_mut().enumerate().for_each(|(index, part)| part.each_mut(&below(name, &index.to_string()), visit));
    }
}

/// By number, of which a rank may have only some.
impl<T, P: Parameters<T>> Parameters<T> for BTreeMap<u32, P> {
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(String, &'a Tensor<T>)) {
        self.iter().for_each(|(number, part)| part.each(&below(name, &number.to_string()), visit));
    }

    fn each_mut<'a>(&'a mut self, name: &str, visit: &mut dyn FnMut(String, &'a mut Tensor<T>)) {
        self.iter_mut().for_each(|(number, part)| part.each_mut(&below(name, &number.to_string()), visit));
    }
}

/// Declares a struct of parameters; each field's name is its part of the tensors' names.
macro_rules! parameters {
    ($(#[$about:meta])* pub struct $name:ident { $($(#[$field_about:meta])* pub $field:ident: $type:ty,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name<T> {
            $($(#[$field_about])* pub $field: $type,)+
        }

        impl<T> $crate::runtime::host::parameters::Parameters<T> for $name<T> {
            fn each<'a>(
                &'a self,
                name: &str,
                visit: &mut dyn FnMut(String, &'a $crate::runtime::host::parameters::Tensor<T>),
            ) {
                $($crate::runtime::host::parameters::Parameters::each(
                    &self.$field,
                    &$crate::runtime::host::parameters::below(name, stringify!($field)),
                    visit,
                );)+
            }

            fn each_mut<'a>(
                &'a mut self,
                name: &str,
                visit: &mut dyn FnMut(String, &'a mut $crate::runtime::host::parameters::Tensor<T>),
            ) {
                $($crate::runtime::host::parameters::Parameters::each_mut(
                    &mut self.$field,
                    &$crate::runtime::host::parameters::below(name, stringify!($field)),
                    visit,
                );)+
            }
        }
    };
}
pub(super) use parameters;

/// Standard deviation of initial weights: usual for models of any size (Brown et al. 2020; Megatron-LM's default).
pub const DEVIATION: f64 = 0.02;

/// Gives parameters their initial values. Each depends on `seed`, the tensor's name and its place in the tensor, and on
/// nothing else: ranks that hold parts of a model together hold what one that has it all would.
pub fn initialise<T: Real, P: Parameters<T> + ?Sized>(parameters: &mut P, name: &str, seed: u64, master: Format) {
    parameters.each_mut(name, &mut |name, tensor| match tensor.role {
        Role::Weight => {
            let random = Random::new(seed, &name);
            in_parts(tensor.values.values_mut(), &|first, values| {
                for (index, value) in (first as u64..).zip(values) {
                    *value = T::of(DEVIATION * random.normal(index));
                }
            });
            precision::round(&mut tensor.values, master, Tiles::Rows);
        }
        Role::Gain => tensor.values.values_mut().fill(T::ONE),
        Role::Bias | Role::Balance => tensor.values.values_mut().fill(T::ZERO),
    });
}

/// Values that a thread of its own is worth it for.
const PART: usize = 1 << 20;

/// Has `fill` see all values: of large models in parts, by as many threads as there are cores. With each part goes its first index.
fn in_parts<T: Send>(values: &mut [T], fill: &(impl Fn(usize, &mut [T]) + Sync)) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let part = values.len().div_ceil(threads).max(PART);
    if values.len() <= part {
        return fill(0, values);
    }
    std::thread::scope(|scope| {
        for (number, values) in values.chunks_mut(part).enumerate() {
            scope.spawn(move || fill(number * part, values));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    parameters! {
        /// Two experts' matrices.
        pub struct Experts {
            /// By number.
            pub experts: BTreeMap<u32, Tensor<T>>,
            /// One for all.
            pub norm: Tensor<T>,
        }
    }

    fn experts(numbers: &[u32]) -> Experts<f32> {
        let experts = numbers.iter().map(|&number| (number, Tensor::weight(3, 5))).collect();
        let mut all = Experts { experts, norm: Tensor::vector(Role::Gain, 5) };
        initialise(&mut all, "layers.1", 7, None);
        all
    }

    #[test]
    fn initial_values_do_not_depend_on_what_else_is_held() {
        let (all, one) = (experts(&[0, 1]), experts(&[1]));
        assert_eq!(all.experts[&1], one.experts[&1]);
        assert_ne!(all.experts[&0], all.experts[&1]);
        assert_eq!(all.norm.values.values(), &[1.0; 5]);
    }

    #[test]
    fn parts_are_the_whole() {
        let mut values = vec![0; 3 * PART + 5];
        in_parts(&mut values, &|first, part| {
            part.iter_mut().enumerate().for_each(|(index, value)| *value = first + index)
        });
        assert!(values.iter().enumerate().all(|(index, &value)| index == value));
    }

    #[test]
    fn names_are_paths_in_a_fixed_order() {
        let all = experts(&[1, 0]);
        let names: Vec<String> = all.tensors("layers.1").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["layers.1.experts.0", "layers.1.experts.1", "layers.1.norm"]);
    }
}
