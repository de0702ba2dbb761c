//! Dense matrix products, by cuBLASLt: of bf16, and of FP8 with DeepSeek-V3's scales; sums in fp32.
//!
//! A layer's weights W are `outputs × inputs`, its rows x `rows × inputs`, all row-major. cuBLASLt thinks in columns: what is row-major
//! here is its transpose there, so every product is asked for transposed (D = op(A) · op(B), of m × n with depth k):
//!
//! | product | as cuBLASLt's | A | B | m | n | k |
//! |---|---|---|---|---|---|---|
//! | y = x · Wᵀ | yᵀ = W · xᵀ | W, transposed | x | outputs | rows | inputs |
//! | dx = dy · W | dxᵀ = Wᵀ · dyᵀ | W | dy | inputs | rows | outputs |
//! | dW = dyᵀ · x | dWᵀ = xᵀ · dy | x | dy, transposed | inputs | outputs | rows |
//!
//! FP8 operands must both lie along the depth (A transposed, B not), so that the gradients take transposed copies.
//!
//! Which algorithm makes a product is cuBLASLt's guess for its shape and SM budget, asked for once; nothing is timed. So the same
//! product with the same budget gives the same bits; with another budget it may be split otherwise, and then does not.

mod problem;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};

use self::problem::{Found, Launch, Number, Operand, Problem, Scales};
use super::libraries::Library;
use super::{Bf16, Device, Element, Fp8, Memory, Slice, Stream};
use crate::error::{Error, Result};

/// What algorithms may use between their kernels, bytes: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Values that share a scale, along each dimension that they do.
pub const SCALED: usize = 128;

/// The first cuBLASLt that has scales for every 128 values.
const FIRST_WITH_SCALES: usize = 120_900;

/// Numbers that products are written in.
pub trait Output: Element {
    #[doc(hidden)]
    const NUMBER: Number;
}
impl Output for Bf16 {
    const NUMBER: Number = Number::Bf16;
}
impl Output for f32 {
    const NUMBER: Number = Number::F32;
}

/// Rows that may stand apart: a slice, or a slice and how many elements there are from one row to the next.
#[derive(Clone, Copy, Debug)]
pub struct Strided<E> {
    values: Slice<E>,
    /// `None`: rows follow one another.
    stride: Option<usize>,
}

impl<E> From<Slice<E>> for Strided<E> {
    fn from(values: Slice<E>) -> Self {
        Self { values, stride: None }
    }
}
impl<E> From<(Slice<E>, usize)> for Strided<E> {
    fn from((values, stride): (Slice<E>, usize)) -> Self {
        Self { values, stride: Some(stride) }
    }
}

/// An e4m3 matrix, rows × depth, with a scale for every 128 values of a row.
#[derive(Clone, Copy, Debug)]
pub struct Tiled {
    /// Row-major; the depth is a multiple of 16.
    pub values: Slice<Fp8>,
    /// What values are multiplied by: those 128 · b to 128 · b + 127 of row r by `scales[b · rows + r]`, so `⌈depth / 128⌉ × rows`
    /// numbers. The number of rows is a multiple of 4.
    pub scales: Slice<f32>,
}

/// An e4m3 matrix, rows × depth, with a scale for every block of 128 × 128.
#[derive(Clone, Copy, Debug)]
pub struct Blocked {
    /// Row-major; the depth is a multiple of 16.
    pub values: Slice<Fp8>,
    /// What values are multiplied by: in row r at depth d by `scales[⌊r / 128⌋ · blocks_apart(depth) + ⌊d / 128⌋]`.
    pub scales: Slice<f32>,
}

impl Tiled {
    /// How many scales a matrix has.
    pub fn scales(rows: usize, depth: usize) -> usize {
        depth.div_ceil(SCALED) * rows
    }
}

impl Blocked {
    /// From a block's scale to that of the block below it: the number of blocks beside each other, rounded up to a multiple of 4.
    pub fn blocks_apart(depth: usize) -> usize {
        depth.div_ceil(SCALED).next_multiple_of(4)
    }

    /// How many scales a matrix has, with those between rows of blocks that nobody reads.
    pub fn scales(rows: usize, depth: usize) -> usize {
        rows.div_ceil(SCALED) * Self::blocks_apart(depth)
    }
}

/// How cuBLASLt is called: what it needs to work in, and the algorithms that it has found. For one stream: products on two streams at
/// once would write over each other's workspace.
pub struct Products {
    device: Arc<Device>,
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
    found: Mutex<BTreeMap<Problem, Found>>,
}

// SAFETY: cuBLASLt's handle may be used from any thread; descriptors are used under the lock alone.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

impl Products {
    /// Nothing is found yet.
    ///
    /// # Errors
    /// If cuBLASLt is missing or refuses, or the GPU has no room for the workspace.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        Library::CublasLt.require()?;
        let workspace = Memory::new(device, WORKSPACE)?;
        device.bind()?;
        let handle = cublas("starting", result::create_handle())?;
        Ok(Self { device: Arc::clone(device), handle, workspace, found: Mutex::default() })
    }

    /// `y = x · Wᵀ`, or `y += x · Wᵀ` if `add`. `x`: rows × inputs, `w`: outputs × inputs, `y`: rows × outputs.
    ///
    /// # Errors
    /// If rows are not whole 16 bytes, or the driver or cuBLASLt refuses.
    ///
    /// # Panics
    /// If lengths do not fit each other.
    #[allow(clippy::too_many_arguments)] // as many as the product has
    pub fn forward<O: Output>(
        &self,
        stream: &Stream,
        sms: u32,
        x: impl Into<Strided<Bf16>>,
        w: Slice<Bf16>,
        y: impl Into<Strided<O>>,
        (rows, inputs, outputs): (usize, usize, usize),
        add: bool,
    ) -> Result<()> {
        let (x, x_stride) = check("x", x.into(), (rows, inputs))?;
        let (w, w_stride) = check("W", w.into(), (outputs, inputs))?;
        let (y, y_stride) = check("y", y.into(), (rows, outputs))?;
        let problem = Problem {
            m: outputs,
            n: rows,
            k: inputs,
            left: Operand::bf16(w_stride, true),
            right: Operand::bf16(x_stride, false),
            out: (O::NUMBER, y_stride),
            sms: self.target(sms),
        };
        self.run(stream, problem, Launch { left: w, right: x, out: y, scales: None, add })
    }

    /// `dx = dy · W`, or `dx += dy · W` if `add`. `dy`: rows × outputs, `w`: outputs × inputs, `dx`: rows × inputs.
    ///
    /// # Errors
    /// As [`Products::forward`].
    ///
    /// # Panics
    /// If lengths do not fit each other.
    #[allow(clippy::too_many_arguments)] // as many as the product has
    pub fn input_gradient<O: Output>(
        &self,
        stream: &Stream,
        sms: u32,
        dy: impl Into<Strided<Bf16>>,
        w: Slice<Bf16>,
        dx: impl Into<Strided<O>>,
        (rows, inputs, outputs): (usize, usize, usize),
        add: bool,
    ) -> Result<()> {
        let (dy, dy_stride) = check("dy", dy.into(), (rows, outputs))?;
        let (w, w_stride) = check("W", w.into(), (outputs, inputs))?;
        let (dx, dx_stride) = check("dx", dx.into(), (rows, inputs))?;
        let problem = Problem {
            m: inputs,
            n: rows,
            k: outputs,
            left: Operand::bf16(w_stride, false),
            right: Operand::bf16(dy_stride, false),
            out: (O::NUMBER, dx_stride),
            sms: self.target(sms),
        };
        self.run(stream, problem, Launch { left: w, right: dy, out: dx, scales: None, add })
    }

    /// `dW += dyᵀ · x`. `x`: rows × inputs, `dy`: rows × outputs, `dw`: outputs × inputs.
    ///
    /// # Errors
    /// As [`Products::forward`].
    ///
    /// # Panics
    /// If lengths do not fit each other.
    pub fn weight_gradient(
        &self,
        stream: &Stream,
        sms: u32,
        x: impl Into<Strided<Bf16>>,
        dy: impl Into<Strided<Bf16>>,
        dw: Slice<f32>,
        (rows, inputs, outputs): (usize, usize, usize),
    ) -> Result<()> {
        let (x, x_stride) = check("x", x.into(), (rows, inputs))?;
        let (dy, dy_stride) = check("dy", dy.into(), (rows, outputs))?;
        let (dw, dw_stride) = check("dW", dw.into(), (outputs, inputs))?;
        let problem = Problem {
            m: inputs,
            n: outputs,
            k: rows,
            left: Operand::bf16(x_stride, false),
            right: Operand::bf16(dy_stride, true),
            out: (Number::F32, dw_stride),
            sms: self.target(sms),
        };
        self.run(stream, problem, Launch { left: x, right: dy, out: dw, scales: None, add: true })
    }

    /// As [`Products::forward`], of FP8: `x` rows × inputs, `w` outputs × inputs. The number of rows and `outputs` are multiples of 4.
    ///
    /// # Errors
    /// As [`Products::forward`]; or if the GPU is not of compute capability 9.0 or cuBLASLt is older than 12.9.
    ///
    /// # Panics
    /// If lengths do not fit each other.
    #[allow(clippy::too_many_arguments)] // as many as the product has
    pub fn forward_fp8<O: Output>(
        &self,
        stream: &Stream,
        sms: u32,
        x: Tiled,
        w: Blocked,
        y: impl Into<Strided<O>>,
        (rows, inputs, outputs): (usize, usize, usize),
        add: bool,
    ) -> Result<()> {
        let (y, stride) = check("y", y.into(), (rows, outputs))?;
        let left = (w.values, w.scales, Scales::Blocks);
        let right = (x.values, x.scales, Scales::Tiles);
        self.run_fp8(stream, sms, (left, outputs), (right, rows), inputs, (y, O::NUMBER, stride), add)
    }

    /// As [`Products::input_gradient`], of FP8: `dy` rows × outputs, and of the weights the transpose, `wt` inputs × outputs. The
    /// number of rows and `inputs` are multiples of 4.
    ///
    /// # Errors
    /// As [`Products::forward_fp8`].
    ///
    /// # Panics
    /// If lengths do not fit each other.
    #[allow(clippy::too_many_arguments)] // as many as the product has
    pub fn input_gradient_fp8<O: Output>(
        &self,
        stream: &Stream,
        sms: u32,
        dy: Tiled,
        wt: Blocked,
        dx: impl Into<Strided<O>>,
        (rows, inputs, outputs): (usize, usize, usize),
        add: bool,
    ) -> Result<()> {
        self.forward_fp8(stream, sms, dy, wt, dx, (rows, outputs, inputs), add)
    }

    /// As [`Products::weight_gradient`], of FP8: both transposed, with scales along the rows: `xt` inputs × rows, `dyt` outputs ×
    /// rows. The number of rows is a multiple of 16, the widths of 4.
    ///
    /// # Errors
    /// As [`Products::forward_fp8`].
    ///
    /// # Panics
    /// If lengths do not fit each other.
    pub fn weight_gradient_fp8(
        &self,
        stream: &Stream,
        sms: u32,
        xt: Tiled,
        dyt: Tiled,
        dw: Slice<f32>,
        (rows, inputs, outputs): (usize, usize, usize),
    ) -> Result<()> {
        let (dw, stride) = check("dW", dw.into(), (outputs, inputs))?;
        let left = (xt.values, xt.scales, Scales::Tiles);
        let right = (dyt.values, dyt.scales, Scales::Tiles);
        self.run_fp8(stream, sms, (left, inputs), (right, outputs), rows, (dw, Number::F32, stride), true)
    }

    /// A product of two matrices that lie along the depth.
    #[allow(clippy::too_many_arguments)] // as many as the product has
    fn run_fp8(
        &self,
        stream: &Stream,
        sms: u32,
        (left, m): ((Slice<Fp8>, Slice<f32>, Scales), usize),
        (right, n): ((Slice<Fp8>, Slice<f32>, Scales), usize),
        k: usize,
        (out, number, stride): (u64, Number, usize),
        add: bool,
    ) -> Result<()> {
        // SAFETY: asks for a number alone.
        let version = unsafe { sys::cublasLtGetVersion() };
        if self.device.capability != 90 || version < FIRST_WITH_SCALES {
            return Err(Error::new(format!(
                "{} (compute capability {}.{}) with cuBLASLt {version} has no FP8 products with scales for every 128 values",
                self.device.name,
                self.device.capability / 10,
                self.device.capability % 10
            ))
            .help("they need a GPU of compute capability 9.0 and cuBLASLt 12.9; bf16 runs everywhere"));
        }
        if !m.is_multiple_of(4) || !n.is_multiple_of(4) {
            return Err(Error::new(format!(
                "an FP8 product of {m} and {n} rows; cuBLASLt's scales need multiples of 4"
            )));
        }
        let operand = |(values, scales, of): (Slice<Fp8>, Slice<f32>, Scales), rows: usize| -> Result<_> {
            let (values, stride) = check("an FP8 matrix", values.into(), (rows, k))?;
            let needed = match of {
                Scales::Tiles => Tiled::scales(rows, k),
                Scales::Blocks => Blocked::scales(rows, k),
            };
            assert_eq!(scales.len(), needed, "scales of {rows} × {k}");
            aligned("scales", scales.address())?;
            Ok((values, scales.address(), stride, of))
        };
        let ((a, a_scales, a_stride, a_of), (b, b_scales, b_stride, b_of)) = (operand(left, m)?, operand(right, n)?);
        let problem = Problem {
            m,
            n,
            k,
            left: Operand { number: Number::Fp8(a_of), stride: a_stride, transposed: true },
            right: Operand { number: Number::Fp8(b_of), stride: b_stride, transposed: false },
            out: (number, stride),
            sms: self.target(sms),
        };
        self.run(stream, problem, Launch { left: a, right: b, out, scales: Some((a_scales, b_scales)), add })
    }

    /// cuBLASLt's target: 0 is the whole GPU.
    fn target(&self, sms: u32) -> i32 {
        if sms >= self.device.sms { 0 } else { i32::try_from(sms.max(1)).unwrap_or_default() }
    }

    /// Finds how, once, and launches it. Nothing is to be done for no rows: sums of none add nothing.
    fn run(&self, stream: &Stream, problem: Problem, launch: Launch) -> Result<()> {
        if problem.m == 0 || problem.n == 0 || problem.k == 0 {
            debug_assert!(launch.add || problem.k > 0, "widths are not 0");
            return Ok(());
        }
        stream.device().bind()?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let how = match found.entry(problem) {
            Entry::Occupied(how) => how.into_mut(),
            Entry::Vacant(place) => place.insert(problem.find(self.handle, WORKSPACE, launch.scales)?),
        };
        how.launch(self.handle, &self.workspace, stream, launch)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made in `new`, destroyed once.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}

/// Address and stride of a matrix that has the right length.
fn check<E: Element>(what: &str, matrix: Strided<E>, (rows, width): (usize, usize)) -> Result<(u64, usize)> {
    let stride = matrix.stride.unwrap_or(width);
    let needed = if rows == 0 { 0 } else { (rows - 1) * stride + width };
    assert!(width > 0 && stride >= width && matrix.values.len() >= needed, "{what}: {rows} × {width}, {stride} apart");
    if !(width * E::BYTES).is_multiple_of(16) || !(stride * E::BYTES).is_multiple_of(16) {
        return Err(Error::new(format!(
            "{what} has rows of {width} values of {} bytes, {stride} apart; cuBLASLt needs both to be whole 16 bytes",
            E::BYTES
        )));
    }
    aligned(what, matrix.values.address())?;
    Ok((matrix.values.address(), stride))
}

fn aligned(what: &str, address: u64) -> Result<()> {
    if address.is_multiple_of(16) {
        return Ok(());
    }
    Err(Error::new(format!("{what} starts at {address:#x}; cuBLASLt needs a multiple of 16 bytes")))
}

/// Says what cuBLASLt refused, and while doing what.
fn cublas<V>(doing: &str, result: std::result::Result<V, CublasError>) -> Result<V> {
    result.map_err(|error| Error::new(format!("cuBLASLt: {doing}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_lie_as_cublaslt_wants_them() {
        assert_eq!((Tiled::scales(12, 128), Tiled::scales(12, 144)), (12, 24));
        assert_eq!((Blocked::blocks_apart(7168), Blocked::blocks_apart(576)), (56, 8));
        assert_eq!(Blocked::scales(576, 7168), 5 * 56);
    }

    #[test]
    fn rows_that_are_not_whole_16_bytes_are_refused() {
        let nothing = Slice::<Bf16>::none();
        let error = check("x", nothing.into(), (0, 12)).expect_err("24 bytes");
        assert!(error.message().contains("12 values"), "{error:?}");
        assert!(check("x", (nothing, 20).into(), (0, 8)).is_err(), "40 bytes apart");
        assert_eq!(check("x", (nothing, 24).into(), (0, 8)).expect("whole 16 bytes"), (0, 24));
    }
}
