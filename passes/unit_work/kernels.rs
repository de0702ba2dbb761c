//! Kernels of matrix products and of element-wise passes over memory.

use crate::ir::{Component, Kernel, Phase, Rate, Work};
use crate::job::arithmetic::{Cut, Linear};
use crate::job::model::Dtype;
use crate::units::{Bytes, Flops};

use super::UnitOp;

/// The kernels of a component in the three phases, on one GPU, each in the order in which one op would run them all.
#[derive(Default)]
pub struct Kernels {
    pub f: Vec<Entry>,
    pub i: Vec<Entry>,
    pub w: Vec<Entry>,
}

/// A kernel of a component, and which finer op it can go to.
#[derive(Clone, Copy)]
pub struct Entry {
    pub kernel: Kernel,
    /// Of the shared expert.
    pub shared: bool,
    /// Makes again for I what F computed and did not keep.
    pub again: bool,
}

impl Kernels {
    /// With those of what F does after this: I does it before, in reverse.
    pub fn then(self, next: Self) -> Self {
        Self { f: [self.f, next.f].concat(), i: [next.i, self.i].concat(), w: [self.w, next.w].concat() }
    }

    /// With those of what stands beside this and runs after it in every phase.
    pub fn beside(self, other: Self) -> Self {
        Self { f: [self.f, other.f].concat(), i: [self.i, other.i].concat(), w: [self.w, other.w].concat() }
    }

    /// As kernels of the shared expert.
    pub fn shared(mut self) -> Self {
        self.f.iter_mut().chain(&mut self.i).chain(&mut self.w).for_each(|entry| entry.shared = true);
        self
    }

    /// The list of one phase.
    pub fn of(self, phase: Phase) -> Vec<Entry> {
        match phase {
            Phase::F => self.f,
            Phase::I => self.i,
            Phase::W => self.w,
        }
    }
}

/// Kernels that stay with their component's main op.
pub fn main(kernels: impl IntoIterator<Item = Kernel>) -> Vec<Entry> {
    kernels.into_iter().map(|kernel| Entry { kernel, shared: false, again: false }).collect()
}

/// Kernels that compute again what F did not keep.
pub fn again(kernels: impl IntoIterator<Item = Kernel>) -> Vec<Entry> {
    kernels.into_iter().map(|kernel| Entry { kernel, shared: false, again: true }).collect()
}

/// A product's kernels in the three phases, on one GPU.
pub struct Product {
    pub f: Vec<Kernel>,
    pub i: Vec<Kernel>,
    pub w: Vec<Kernel>,
}

/// How a product runs.
#[derive(Clone, Copy)]
pub struct Setting {
    /// Rows of its input on this GPU.
    pub rows: u64,
    /// Format of its inputs.
    pub dtype: Dtype,
    /// Format of the gradient accumulator.
    pub gradients: Dtype,
    /// Tensor-parallel GPUs that share the matrix.
    pub tp: u64,
    /// Matrices of this shape on this GPU among which the rows are divided (experts), or 1.
    pub copies: u64,
}

/// The kernels of one product. FP8 inputs are quantised first: the input in F, the output gradient in I (W uses both).
/// W adds to the accumulator, so it reads and writes it.
pub fn product(linear: &Linear, setting: Setting) -> Product {
    let (inputs, outputs, rows) = cut(linear, setting);
    let weights = inputs.saturating_mul(outputs).saturating_mul(setting.copies);
    let flops = 2u64.saturating_mul(rows).saturating_mul(inputs).saturating_mul(outputs);
    let gemm = |depth: u64, bytes: u64| Kernel {
        rate: Rate::Gemm { dtype: setting.dtype, depth: u32::try_from(depth).unwrap_or(u32::MAX) },
        flops: Flops(flops),
        bytes: Bytes(bytes),
        launches: 1,
    };
    let (x, y) = (rows.saturating_mul(inputs), rows.saturating_mul(outputs));
    let dtype = setting.dtype;
    let read_weights = dtype.bytes(weights);
    let mut f = quantise(x, dtype);
    f.push(gemm(inputs, sum(&[dtype.bytes(x), read_weights, Dtype::Bf16.bytes(y)])));
    let mut i = quantise(y, dtype);
    i.push(gemm(outputs, sum(&[dtype.bytes(y), read_weights, Dtype::Bf16.bytes(x)])));
    let accumulate = setting.gradients.bytes(weights).saturating_mul(2);
    // Some experts get no row when there are fewer rows than experts; a product with a row is at least one deep.
    let w = vec![gemm((rows / setting.copies.max(1)).max(1), sum(&[dtype.bytes(x), dtype.bytes(y), accumulate]))];
    Product { f, i, w }
}

/// (inputs, outputs, rows) on one GPU.
fn cut(linear: &Linear, setting: Setting) -> (u64, u64, u64) {
    let tp = setting.tp;
    match linear.cut {
        Cut::Outputs => (linear.inputs, linear.outputs.div_ceil(tp), setting.rows),
        Cut::Inputs => (linear.inputs.div_ceil(tp), linear.outputs, setting.rows),
        Cut::Whole => (linear.inputs, linear.outputs, setting.rows.div_ceil(tp)),
    }
}

/// (length of an input row, of an output row, rows) that this GPU has, for counting what is saved.
pub fn local_shape(linear: &Linear, rows: u64, tp: u64) -> (u64, u64, u64) {
    cut(linear, Setting { rows, dtype: Dtype::Bf16, gradients: Dtype::Fp32, tp, copies: 1 })
}

/// Parameters of the matrix on one GPU.
pub fn local_parameters(linear: &Linear, tp: u64) -> u64 {
    let (inputs, outputs, _) = local_shape(linear, 1, tp);
    inputs * outputs + if linear.bias { outputs } else { 0 }
}

/// One pass over memory.
pub fn memory(bytes: u64) -> Kernel {
    Kernel { rate: Rate::Memory, flops: Flops::ZERO, bytes: Bytes(bytes), launches: 1 }
}

/// Reading `values` in bf16 and writing them in `dtype`, if that is another format.
fn quantise(values: u64, dtype: Dtype) -> Vec<Kernel> {
    match dtype {
        Dtype::Fp8 => vec![memory(sum(&[Dtype::Bf16.bytes(values), dtype.bytes(values)]))],
        _ => Vec::new(),
    }
}

/// A compute op.
pub fn compute(component: Component, kernels: Vec<Kernel>) -> UnitOp {
    UnitOp { component, work: Work::Compute(kernels) }
}

/// A compute op that does everything in a list.
pub fn compute_all(component: Component, entries: Vec<Entry>) -> UnitOp {
    compute(component, entries.into_iter().map(|entry| entry.kernel).collect())
}

/// A collective over the tensor-parallel GPUs of a node that moves `values` bf16 numbers in all; nothing for one GPU.
pub fn tensor_collective(component: Component, values: u64, tp: u64) -> Option<UnitOp> {
    let bytes = Dtype::Bf16.bytes(values) / tp.max(1) * (tp - 1);
    (tp > 1).then_some(UnitOp { component, work: Work::over_nvlink(Bytes(bytes)) })
}

fn sum(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |all, &part| all.saturating_add(part))
}
