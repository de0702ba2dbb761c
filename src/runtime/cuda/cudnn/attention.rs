//! The attention core as a graph of cuDNN's, causal, and its gradient. cuDNN has fused kernels for these graphs, which it knows by
//! their operations; they are those that NVIDIA's cudnn-frontend 1.18 makes of its `sdpa` and of `sdpa_backward` with
//! `use_deterministic_algorithm`.
//!
//! In that form of the gradient dq is a product of its own, of all gradients of scores, which cuDNN keeps in the workspace, in bf16: 2
//! bytes for each query and key of each head, rounded up to 64 queries and 128 keys. In the other form, which needs no such room, parts
//! of dq are added up by atomics, in an order that nothing fixes: two runs differ in their bits. On an H200, 128 heads of 192 and 128,
//! 4096 tokens, the one takes 4.71 ms and the other 4.21 (`docs/measurements/h200_attention.txt`).

use cudarc::cudnn::sys::{
    cudnnDataType_t as Number, cudnnPointwiseMode_t as Pointwise, cudnnReduceTensorOp_t as Reduction,
};

use super::descriptor::Pointer;
use super::graph::{Form, Graph, Plan, Tensor};
use super::library::{Api, Handle, Refusal};

/// All that a plan depends on. Heads of a token stand one behind the other; strides are in values, from one token to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Sequences, one behind the other.
    pub sequences: usize,
    /// Tokens of each.
    pub sequence: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head's q and k.
    pub qk: usize,
    /// Width of a head's v.
    pub value: usize,
    /// Strides of q, k and v.
    pub inputs: [usize; 3],
    /// Stride of o, and of its gradient.
    pub output: usize,
    /// Strides of the gradients of q, k and v; `None`: forward.
    pub gradients: Option<[usize; 3]>,
}

/// Where tensors lie on the device.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// q, k and v.
    pub inputs: [u64; 3],
    /// The result: is written forward, and read for the gradient; as are `log_sums`.
    pub output: u64,
    /// Logarithms of the softmax's sums: sequences × heads × tokens of a sequence, fp32.
    pub log_sums: u64,
    /// Of the gradient.
    pub gradient: Option<GradientPlaces>,
    /// As many bytes as the plan needs.
    pub workspace: u64,
}

/// Where what only the gradient has lies.
#[derive(Clone, Copy, Debug)]
pub struct GradientPlaces {
    /// The gradient of the result.
    pub d_output: u64,
    /// Room for a number for each head and token, fp32.
    pub dots: u64,
    /// What is written: the gradients of q, k and v.
    pub gradients: [u64; 3],
}

/// A plan of the core, or of its gradient.
pub struct Attention {
    plan: Plan,
    tensors: Tensors,
    /// 1/sqrt(qk).
    scale: f32,
}

/// The tensors that each launch says the places of.
struct Tensors {
    inputs: [Tensor; 3],
    output: Tensor,
    log_sums: Tensor,
    /// What scores are multiplied with.
    scale: Tensor,
    /// The score of a key that a query does not see.
    unseen: Tensor,
    gradient: Option<GradientTensors>,
}

struct GradientTensors {
    d_output: Tensor,
    dots: Tensor,
    gradients: [Tensor; 3],
    /// 1: what dots are multiplied with, where there is no dropout.
    one: Tensor,
}

impl Problem {
    /// Rows of some heads, of all tokens.
    fn rows(&self, heads: usize, width: usize, stride: usize) -> Form {
        let [sequences, heads, sequence, width, stride] =
            [self.sequences, heads, self.sequence, width, stride].map(|number| number as i64);
        Form {
            extents: [sequences, heads, sequence, width],
            strides: [sequence * stride, width, stride, 1],
            number: Number::CUDNN_DATA_BFLOAT16,
        }
    }

    /// q, k and v, or their gradients.
    fn of_inputs(&self, [q, k, v]: [usize; 3]) -> [Form; 3] {
        [
            self.rows(self.heads, self.qk, q),
            self.rows(self.kv_heads, self.qk, k),
            self.rows(self.kv_heads, self.value, v),
        ]
    }

    /// A number for each head and query, or one for each of its keys too.
    fn of_queries(&self, columns: usize) -> Form {
        let extents = [self.sequences, self.heads, self.sequence, columns].map(|number| number as i64);
        Form::packed(extents, Number::CUDNN_DATA_FLOAT)
    }

    /// Describes it.
    fn graph(&self, api: &'static Api) -> Result<(Graph, Tensors), Refusal> {
        let mut graph = Graph::new(api);
        let tensors = match self.gradients {
            None => self.forward(&mut graph)?,
            Some(strides) => self.gradient(&mut graph, strides)?,
        };
        Ok((graph, tensors))
    }

    /// o = softmax(mask(q · kᵀ · scale)) · v.
    fn forward(&self, graph: &mut Graph) -> Result<Tensors, Refusal> {
        let [q, k, v] = self.of_inputs(self.inputs);
        let [q, k, v] = [graph.tensor(q)?, graph.tensor(k.transposed())?, graph.tensor(v)?];
        let output = graph.tensor(self.rows(self.heads, self.value, self.output))?;
        let log_sums = graph.tensor(self.of_queries(1))?;
        let [scale, unseen] = [graph.scalar()?, graph.scalar()?];

        let scores = self.scores(graph, (q, k), scale)?;
        let scores = mask(graph, scores, unseen)?;
        let [most, sum] = [graph.between(self.of_queries(1))?, graph.between(self.of_queries(1))?];
        graph.reduce(Reduction::CUDNN_REDUCE_TENSOR_MAX, scores, most)?;
        let less = graph.map(Pointwise::CUDNN_POINTWISE_SUB, &[scores, most])?;
        let exponentials = graph.map(Pointwise::CUDNN_POINTWISE_EXP, &[less])?;
        graph.reduce(Reduction::CUDNN_REDUCE_TENSOR_ADD, exponentials, sum)?;
        let logarithm = graph.map(Pointwise::CUDNN_POINTWISE_LOG, &[sum])?;
        graph.pointwise(Pointwise::CUDNN_POINTWISE_ADD, &[most, logarithm], log_sums)?;
        let weights = graph.between(self.of_queries(self.sequence).of(Number::CUDNN_DATA_BFLOAT16))?;
        graph.pointwise(Pointwise::CUDNN_POINTWISE_DIV, &[exponentials, sum], weights)?;
        graph.product(weights, v, output)?;
        Ok(Tensors { inputs: [q, k, v], output, log_sums, scale, unseen, gradient: None })
    }

    /// With weights P, their gradient dP = do · vᵀ and dots D = rowsum(do · o): dv = Pᵀ · do, dS = P ∘ (dP − D) · scale, dk = dSᵀ · q,
    /// dq = dS · k.
    fn gradient(&self, graph: &mut Graph, strides: [usize; 3]) -> Result<Tensors, Refusal> {
        let [q_form, k_form, v_form] = self.of_inputs(self.inputs);
        let [q, k, v] = [graph.tensor(q_form)?, graph.tensor(k_form.transposed())?, graph.tensor(v_form.transposed())?];
        let of_output = self.rows(self.heads, self.value, self.output);
        let [output, d_output] = [graph.tensor(of_output)?, graph.tensor(of_output)?];
        let [log_sums, dots] = [graph.tensor(self.of_queries(1))?, graph.tensor(self.of_queries(1))?];
        let [d_q, d_k, d_v] = self.of_inputs(strides);
        let [d_q, d_k, d_v] = [graph.tensor(d_q)?, graph.tensor(d_k)?, graph.tensor(d_v)?];
        let [scale, unseen, one] = [graph.scalar()?, graph.scalar()?, graph.scalar()?];

        let terms = graph.between(Form::packed(of_output.extents, Number::CUDNN_DATA_FLOAT))?;
        graph.pointwise(Pointwise::CUDNN_POINTWISE_MUL, &[d_output, output], terms)?;
        let sums = graph.between(self.of_queries(1))?;
        graph.reduce(Reduction::CUDNN_REDUCE_TENSOR_ADD, terms, sums)?;
        graph.pointwise(Pointwise::CUDNN_POINTWISE_MUL, &[sums, one], dots)?;

        let scores = self.scores(graph, (q, k), scale)?;
        let less = graph.map(Pointwise::CUDNN_POINTWISE_SUB, &[scores, log_sums])?;
        let less = mask(graph, less, unseen)?;
        let weights = graph.map(Pointwise::CUDNN_POINTWISE_EXP, &[less])?;
        let turned = self.of_queries(self.sequence).of(Number::CUDNN_DATA_BFLOAT16).transposed();
        let weights_turned = graph.view(weights, turned)?;
        self.sum_over_sharing(graph, (weights_turned, d_output), d_v)?;

        let d_weights = graph.between(self.of_queries(self.sequence))?;
        graph.product(d_output, v, d_weights)?;
        let d_scores = graph.map(Pointwise::CUDNN_POINTWISE_SUB, &[d_weights, dots])?;
        let d_scores = graph.map(Pointwise::CUDNN_POINTWISE_MUL, &[d_scores, weights])?;
        let d_scores = graph.map(Pointwise::CUDNN_POINTWISE_MUL, &[d_scores, scale])?;
        let d_scores_turned = graph.view(d_scores, turned)?;
        self.sum_over_sharing(graph, (d_scores_turned, q), d_k)?;
        // As cudnn-frontend has it: k as it was, in the numbers of what is between operations.
        let k_rows = graph.view(k, k_form.of(Number::CUDNN_DATA_FLOAT))?;
        graph.product(d_scores, k_rows, d_q)?;
        let gradient = Some(GradientTensors { d_output, dots, gradients: [d_q, d_k, d_v], one });
        Ok(Tensors { inputs: [q, k, v], output, log_sums, scale, unseen, gradient })
    }

    /// q · kᵀ · scale.
    fn scores(&self, graph: &mut Graph, (q, k): (Tensor, Tensor), scale: Tensor) -> Result<Tensor, Refusal> {
        let products = graph.between(self.of_queries(self.sequence))?;
        graph.product(q, k, products)?;
        graph.map(Pointwise::CUDNN_POINTWISE_MUL, &[products, scale])
    }

    /// c = a · b, summed over the query heads that share a key/value head.
    fn sum_over_sharing(&self, graph: &mut Graph, (a, b): (Tensor, Tensor), c: Tensor) -> Result<(), Refusal> {
        if self.heads == self.kv_heads {
            return graph.product(a, b, c);
        }
        let [sequences, _, rows, columns] = graph.form(c).extents;
        let extents = [sequences, self.heads as i64, rows, columns];
        let each = graph.between(Form::packed(extents, Number::CUDNN_DATA_BFLOAT16))?;
        graph.product(a, b, each)?;
        graph.reduce(Reduction::CUDNN_REDUCE_TENSOR_ADD, each, c)
    }
}

/// `unseen` in place of the scores of keys behind their query.
fn mask(graph: &mut Graph, scores: Tensor, unseen: Tensor) -> Result<Tensor, Refusal> {
    let [query, key] = [graph.index(scores, 2)?, graph.index(scores, 3)?];
    let seen = graph.between(graph.form(scores).of(Number::CUDNN_DATA_BOOLEAN))?;
    graph.pointwise(Pointwise::CUDNN_POINTWISE_CMP_GE, &[query, key], seen)?;
    graph.map(Pointwise::CUDNN_POINTWISE_BINARY_SELECT, &[scores, unseen, seen])
}

impl Attention {
    /// Makes a plan.
    ///
    /// # Errors
    /// If cuDNN has none for this problem ([`Refusal::is_unsupported`]), or fails.
    pub(super) fn plan(api: &'static Api, handle: Handle, problem: &Problem) -> Result<Self, Refusal> {
        let (graph, tensors) = problem.graph(api)?;
        Ok(Self { plan: graph.plan(handle)?, tensors, scale: 1.0 / (problem.qk as f32).sqrt() })
    }

    /// Bytes that it needs beside its tensors.
    pub fn workspace(&self) -> usize {
        self.plan.workspace
    }

    /// Launches it on the handle's stream.
    ///
    /// # Errors
    /// If cuDNN refuses.
    ///
    /// # Panics
    /// If there are places of a gradient and it is none, or the other way round.
    ///
    /// # Safety
    /// All tensors of the problem are at their places, addresses are multiples of 16, and all stay until the launch has ended. No other
    /// thread uses the handle.
    pub(super) unsafe fn launch(&self, handle: Handle, places: &Places) -> Result<(), Refusal> {
        let Tensors { inputs, output, log_sums, scale, unseen, gradient } = &self.tensors;
        let mut values: Vec<_> = inputs.iter().copied().zip(places.inputs.map(Pointer::to)).collect();
        values.extend([(*output, Pointer::to(places.output)), (*log_sums, Pointer::to(places.log_sums))]);
        values.extend([(*scale, Pointer::of(&self.scale)), (*unseen, Pointer::of(&f32::NEG_INFINITY))]);
        match (gradient, &places.gradient) {
            (None, None) => {}
            (Some(tensors), Some(places)) => {
                values.extend(tensors.gradients.iter().copied().zip(places.gradients.map(Pointer::to)));
                let [d_output, dots] = [places.d_output, places.dots].map(Pointer::to);
                values.extend([(tensors.d_output, d_output), (tensors.dots, dots), (tensors.one, Pointer::of(&1.0))]);
            }
            _ => panic!("places of a gradient are for its plan"),
        }
        // SAFETY: the caller's promise; numbers on the host are of this plan, or constants.
        unsafe { self.plan.launch(handle, &values, places.workspace) }
    }
}
