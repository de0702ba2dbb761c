//! Graphs of cuDNN's: operations on tensors, and the plan that an engine makes of all of them together.
//!
//! Tensors have four dimensions: sequences, heads, rows, columns. Those between operations are virtual: they have a shape, and never
//! lie in memory.

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Attribute, cudnnBackendDescriptorType_t as Kind,
    cudnnBackendHeurMode_t as Heuristic, cudnnDataType_t as Number, cudnnPointwiseMode_t as Pointwise,
    cudnnReduceTensorOp_t as Reduction,
};

use super::descriptor::{Descriptor, Of, Pointer};
use super::library::{Api, Handle, Refusal};

/// Bytes that addresses of tensors are multiples of.
const ALIGNMENT: i64 = 16;

/// Ways to run a graph that are asked for; the first one that can be had is taken.
const CHOICES: usize = 8;

/// A tensor of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor(usize);

impl Tensor {
    /// cuDNN's number for it.
    fn id(self) -> i64 {
        self.0 as i64 + 1
    }
}

/// Extents and strides in elements, and what numbers it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub extents: [i64; 4],
    pub strides: [i64; 4],
    pub number: Number,
}

impl Form {
    /// Without gaps.
    pub fn packed(extents: [i64; 4], number: Number) -> Self {
        let [_, heads, rows, columns] = extents;
        Self { extents, strides: [heads * rows * columns, rows * columns, columns, 1], number }
    }

    /// Rows become columns, without being moved.
    #[must_use]
    pub fn transposed(mut self) -> Self {
        self.extents.swap(2, 3);
        self.strides.swap(2, 3);
        self
    }

    /// Of other numbers.
    #[must_use]
    pub fn of(self, number: Number) -> Self {
        Self { number, ..self }
    }
}

/// Operations, as they are added.
pub struct Graph {
    api: &'static Api,
    tensors: Vec<(Descriptor, Form)>,
    operations: Vec<Descriptor>,
    /// What operations refer to.
    parts: Vec<Descriptor>,
}

/// How a graph is run.
pub struct Plan {
    api: &'static Api,
    plan: Descriptor,
    /// Bytes of memory that it needs beside its tensors.
    pub workspace: usize,
    /// What it was made from, since cuDNN does not say that it keeps copies.
    _engine: Descriptor,
    _graph: (Descriptor, Graph),
}

impl Graph {
    /// Without operations.
    pub fn new(api: &'static Api) -> Self {
        Self { api, tensors: Vec::new(), operations: Vec::new(), parts: Vec::new() }
    }

    /// What lies in memory, at an address that each launch gives.
    pub fn tensor(&mut self, form: Form) -> Result<Tensor, Refusal> {
        self.add(form, &[])
    }

    /// A number in fp32 that each launch gives, on the host.
    pub fn scalar(&mut self) -> Result<Tensor, Refusal> {
        let form = Form::packed([1; 4], Number::CUDNN_DATA_FLOAT);
        self.add(form, &[Attribute::CUDNN_ATTR_TENSOR_IS_BY_VALUE])
    }

    /// What is between two operations.
    pub fn between(&mut self, form: Form) -> Result<Tensor, Refusal> {
        self.add(form, &[Attribute::CUDNN_ATTR_TENSOR_IS_VIRTUAL])
    }

    fn add(&mut self, form: Form, flags: &[Attribute]) -> Result<Tensor, Refusal> {
        let tensor = Tensor(self.tensors.len());
        let made = Descriptor::new(self.api, Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
        made.set(Attribute::CUDNN_ATTR_TENSOR_DATA_TYPE, form.number)?;
        made.set_all(Attribute::CUDNN_ATTR_TENSOR_DIMENSIONS, &form.extents)?;
        made.set_all(Attribute::CUDNN_ATTR_TENSOR_STRIDES, &form.strides)?;
        made.set(Attribute::CUDNN_ATTR_TENSOR_UNIQUE_ID, tensor.id())?;
        made.set(Attribute::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, ALIGNMENT)?;
        for &flag in flags {
            made.set(flag, true)?;
        }
        self.tensors.push((made.finalize()?, form));
        Ok(tensor)
    }

    /// Its extents, strides and numbers.
    pub fn form(&self, tensor: Tensor) -> Form {
        self.tensors[tensor.0].1
    }

    /// `c = a · b`, each head of each sequence for itself; a head of `b` serves several of `a` that stand together if it has fewer.
    pub fn product(&mut self, a: Tensor, b: Tensor, c: Tensor) -> Result<(), Refusal> {
        let sums = Descriptor::new(self.api, Kind::CUDNN_BACKEND_MATMUL_DESCRIPTOR)?;
        sums.set(Attribute::CUDNN_ATTR_MATMUL_COMP_TYPE, Number::CUDNN_DATA_FLOAT)?;
        let tensors = [
            (Attribute::CUDNN_ATTR_OPERATION_MATMUL_ADESC, a),
            (Attribute::CUDNN_ATTR_OPERATION_MATMUL_BDESC, b),
            (Attribute::CUDNN_ATTR_OPERATION_MATMUL_CDESC, c),
        ];
        let sums = (Attribute::CUDNN_ATTR_OPERATION_MATMUL_DESC, sums.finalize()?);
        self.operation(Kind::CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, &tensors, Some(sums))
    }

    /// `y = f(x)`, `f(x, b)` or `f(x, b, t)`, element by element; `b` and `t` are repeated along extents of 1.
    pub fn pointwise(&mut self, mode: Pointwise, inputs: &[Tensor], y: Tensor) -> Result<(), Refusal> {
        let mode = self.mode(mode)?.finalize()?;
        let names = [
            Attribute::CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
            Attribute::CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
            Attribute::CUDNN_ATTR_OPERATION_POINTWISE_TDESC,
        ];
        let mut tensors: Vec<_> = names.into_iter().zip(inputs.iter().copied()).collect();
        tensors.push((Attribute::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y));
        let mode = (Attribute::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, mode);
        self.operation(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, &tensors, Some(mode))
    }

    /// `f` of some tensors, as large as the first one, in fp32.
    pub fn map(&mut self, mode: Pointwise, inputs: &[Tensor]) -> Result<Tensor, Refusal> {
        let y = self.between(self.form(inputs[0]).of(Number::CUDNN_DATA_FLOAT))?;
        self.pointwise(mode, inputs, y)?;
        Ok(y)
    }

    /// The index along a dimension of each element of a tensor.
    pub fn index(&mut self, x: Tensor, dimension: i64) -> Result<Tensor, Refusal> {
        let y = self.between(self.form(x).of(Number::CUDNN_DATA_INT32))?;
        let mode = self.mode(Pointwise::CUDNN_POINTWISE_GEN_INDEX)?;
        mode.set(Attribute::CUDNN_ATTR_POINTWISE_AXIS, dimension)?;
        let tensors = [
            (Attribute::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x),
            (Attribute::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y),
        ];
        let mode = (Attribute::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, mode.finalize()?);
        self.operation(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, &tensors, Some(mode))?;
        Ok(y)
    }

    fn mode(&self, mode: Pointwise) -> Result<Descriptor, Refusal> {
        let made = Descriptor::new(self.api, Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
        made.set(Attribute::CUDNN_ATTR_POINTWISE_MODE, mode)?;
        made.set(Attribute::CUDNN_ATTR_POINTWISE_MATH_PREC, Number::CUDNN_DATA_FLOAT)?;
        Ok(made)
    }

    /// Sums, or greatest values, along the dimensions in which `y` has an extent of 1, or a part of x's.
    pub fn reduce(&mut self, of: Reduction, x: Tensor, y: Tensor) -> Result<(), Refusal> {
        let made = Descriptor::new(self.api, Kind::CUDNN_BACKEND_REDUCTION_DESCRIPTOR)?;
        made.set(Attribute::CUDNN_ATTR_REDUCTION_COMP_TYPE, Number::CUDNN_DATA_FLOAT)?;
        made.set(Attribute::CUDNN_ATTR_REDUCTION_OPERATOR, of)?;
        let tensors = [
            (Attribute::CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x),
            (Attribute::CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y),
        ];
        let made = (Attribute::CUDNN_ATTR_OPERATION_REDUCTION_DESC, made.finalize()?);
        self.operation(Kind::CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, &tensors, Some(made))
    }

    /// The same elements in another form.
    pub fn view(&mut self, x: Tensor, form: Form) -> Result<Tensor, Refusal> {
        let y = self.between(form)?;
        let tensors =
            [(Attribute::CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x), (Attribute::CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y)];
        self.operation(Kind::CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, &tensors, None)?;
        Ok(y)
    }

    fn operation(
        &mut self,
        kind: Kind,
        tensors: &[(Attribute, Tensor)],
        part: Option<(Attribute, Descriptor)>,
    ) -> Result<(), Refusal> {
        let operation = Descriptor::new(self.api, kind)?;
        if let Some((attribute, part)) = part {
            operation.set(attribute, part.reference())?;
            self.parts.push(part);
        }
        for &(attribute, tensor) in tensors {
            operation.set(attribute, self.tensors[tensor.0].0.reference())?;
        }
        self.operations.push(operation.finalize()?);
        Ok(())
    }

    /// The first plan of those that cuDNN's heuristics propose which can be had.
    ///
    /// # Errors
    /// If cuDNN has none ([`Refusal::is_unsupported`]), or fails.
    pub fn plan(self, handle: Handle) -> Result<Plan, Refusal> {
        let api = self.api;
        let graph = Descriptor::new(api, Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        let operations: Vec<_> = self.operations.iter().map(Descriptor::reference).collect();
        graph.set_all(Attribute::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operations)?;
        graph.set(Attribute::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, Of(handle))?;
        let graph = graph.finalize()?;
        let mut refused = Refusal::of_nothing();
        for mode in [Heuristic::CUDNN_HEUR_MODE_A, Heuristic::CUDNN_HEUR_MODE_FALLBACK] {
            for engine in self.engines(&graph, mode)? {
                let plan = Descriptor::new(api, Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
                plan.set(Attribute::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engine.reference())?;
                match plan.finalize() {
                    Ok(plan) => {
                        let bytes = plan.number(Attribute::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
                        let workspace = usize::try_from(bytes).unwrap_or_default();
                        return Ok(Plan { api, plan, workspace, _engine: engine, _graph: (graph, self) });
                    }
                    Err(refusal) if refusal.is_unsupported() => refused = refusal,
                    Err(refusal) => return Err(refusal),
                }
            }
        }
        Err(refused)
    }

    /// What a kind of heuristics proposes, best first.
    fn engines(&self, graph: &Descriptor, mode: Heuristic) -> Result<Vec<Descriptor>, Refusal> {
        let heuristic = Descriptor::new(self.api, Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
        heuristic.set(Attribute::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph.reference())?;
        heuristic.set(Attribute::CUDNN_ATTR_ENGINEHEUR_MODE, mode)?;
        let proposed = heuristic.finalize().and_then(|heuristic| {
            let kind = Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR;
            heuristic.descriptors(Attribute::CUDNN_ATTR_ENGINEHEUR_RESULTS, kind, CHOICES)
        });
        match proposed {
            Err(refusal) if refusal.is_unsupported() => Ok(Vec::new()),
            proposed => proposed,
        }
    }
}

impl Plan {
    /// Launches it on the handle's stream. `values`: where each tensor lies that is not between operations, or the host's number.
    ///
    /// # Errors
    /// If cuDNN refuses.
    ///
    /// # Safety
    /// Tensors lie where they are said to, as long and with such strides as the graph was told, and [`Plan::workspace`] bytes at
    /// `workspace`, until the launch has ended; numbers on the host until this returns. No other thread uses the handle.
    pub unsafe fn launch(&self, handle: Handle, values: &[(Tensor, Pointer)], workspace: u64) -> Result<(), Refusal> {
        let pack = Descriptor::new(self.api, Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        let (ids, addresses): (Vec<_>, Vec<_>) = values.iter().map(|&(tensor, at)| (tensor.id(), at)).unzip();
        pack.set_all(Attribute::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &ids)?;
        pack.set_all(Attribute::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &addresses)?;
        pack.set(Attribute::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, Pointer::to(workspace))?;
        let pack = pack.finalize()?;
        // SAFETY: all three are alive; the rest is the caller's promise.
        let launched = unsafe { (self.api.execute)(handle, self.plan.raw(), pack.raw()) };
        self.api.check("launching", launched)
    }
}
