//! A product in cuBLASLt's terms: column-major, D = op(A) · op(B) + β · D.

use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::sys::{
    cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulMatrixScale_t as Mode,
    cublasLtMatmulPreferenceAttributes_t as Wish,
};
use cudarc::cublaslt::{result, sys};

use super::cublas;
use crate::error::{Error, Result};
use crate::runtime::cuda::{Memory, Stream};

/// What numbers a matrix has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Number {
    /// bf16.
    Bf16,
    /// fp32.
    F32,
    /// e4m3 with scales.
    Fp8(Scales),
}

/// Which values share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scales {
    /// 128 along the depth.
    Tiles,
    /// 128 along the depth, of 128 rows.
    Blocks,
}

/// A factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Operand {
    pub number: Number,
    /// Elements from one of its columns to the next.
    pub stride: usize,
    pub transposed: bool,
}

/// All that the choice of an algorithm depends on. Addresses do not matter: all are only known to be multiples of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Problem {
    /// Rows of D.
    pub m: usize,
    /// Columns of D.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    pub left: Operand,
    pub right: Operand,
    /// D's numbers, and elements from one of its columns to the next.
    pub out: (Number, usize),
    /// SMs to use; 0: all.
    pub sms: i32,
}

/// Where the matrices of a product are.
pub(super) struct Launch {
    pub left: u64,
    pub right: u64,
    pub out: u64,
    /// Of A and B, if they are FP8.
    pub scales: Option<(u64, u64)>,
    /// Adds to what is there.
    pub add: bool,
}

/// How a product is made: its description, and the algorithm that cuBLASLt chose.
pub(super) struct Found {
    description: Description,
    left: Layout,
    right: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Operand {
    pub(super) fn bf16(stride: usize, transposed: bool) -> Self {
        Self { number: Number::Bf16, stride, transposed }
    }

    /// As it is stored: `extent` is its m or n.
    fn layout(self, extent: usize, k: usize, left: bool) -> Result<Layout> {
        // A is m × k and B k × n, if they are not transposed.
        let (rows, columns) = if left == self.transposed { (k, extent) } else { (extent, k) };
        Layout::new(self.number, rows, columns, self.stride)
    }
}

impl Problem {
    /// Asks cuBLASLt for an algorithm.
    pub(super) fn find(
        &self,
        handle: sys::cublasLtHandle_t,
        workspace: usize,
        scales: Option<(u64, u64)>,
    ) -> Result<Found> {
        let description = Description::new()?;
        description.set_scales(scales)?;
        // cuBLAS' `CUBLAS_OP_T` and `CUBLAS_OP_N`.
        let operation = |operand: Operand| i32::from(operand.transposed);
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, operation(self.left))?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, operation(self.right))?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, self.sms)?;
        let modes = [
            (self.left.number, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE),
            (self.right.number, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE),
        ];
        for (number, attribute) in modes {
            if let Number::Fp8(scales) = number {
                let mode = match scales {
                    Scales::Tiles => Mode::CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F,
                    Scales::Blocks => Mode::CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F,
                };
                description.set(attribute, mode)?;
            }
        }
        let left = self.left.layout(self.m, self.k, true)?;
        let right = self.right.layout(self.n, self.k, false)?;
        let out = Layout::new(self.out.0, self.m, self.n, self.out.1)?;
        let wishes = Wishes::new()?;
        wishes.set(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace as u64)?;
        // Where a sum is split, its parts are kept and added in fp32.
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        wishes.set(Wish::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction)?;
        for matrix in [
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            wishes.set(matrix, 16u32)?;
        }
        // SAFETY: all of them were made above, and are alive.
        let chosen = unsafe {
            result::get_matmul_algo_heuristic(handle, description.0, left.0, right.0, out.0, out.0, wishes.0)
        };
        let chosen = chosen.map_err(|error| Error::new(format!("cuBLASLt has no algorithm for {self:?}: {error}")))?;
        Ok(Found { description, left, right, out, algorithm: chosen.algo })
    }
}

impl Found {
    /// Launches it.
    pub(super) fn launch(
        &self,
        handle: sys::cublasLtHandle_t,
        workspace: &Memory,
        stream: &Stream,
        launch: Launch,
    ) -> Result<()> {
        self.description.set_scales(launch.scales)?;
        let (alpha, beta) = (1f32, if launch.add { 1f32 } else { 0f32 });
        let out = launch.out as *mut c_void;
        let room = workspace.all::<u8>();
        // SAFETY: descriptors are alive; whoever asked for the product has checked that matrices are as long as they say, and keeps
        // them until it has ended; the workspace is of this stream alone.
        let launched = unsafe {
            result::matmul(
                handle,
                self.description.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                launch.left as *const c_void,
                self.left.0,
                launch.right as *const c_void,
                self.right.0,
                out,
                self.out.0,
                out,
                self.out.0,
                &raw const self.algorithm,
                room.address() as *mut c_void,
                room.len(),
                stream.raw().cast(),
            )
        };
        cublas("launching a product", launched)
    }
}

/// Says what is multiplied how.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self> {
        let sum = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        Ok(Self(cublas("describing a product", result::create_matmul_desc(sum, sys::cudaDataType::CUDA_R_32F))?))
    }

    /// Where the scales of A and B are, if they have any.
    fn set_scales(&self, scales: Option<(u64, u64)>) -> Result<()> {
        let Some((left, right)) = scales else { return Ok(()) };
        self.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, left)?;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, right)
    }

    /// `value` is of the attribute's type.
    fn set<V>(&self, attribute: Attribute, value: V) -> Result<()> {
        // SAFETY: the description is alive; the value is copied during the call.
        let set = unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, ptr::from_ref(&value).cast(), size_of::<V>())
        };
        cublas(&format!("setting {attribute:?}"), set)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Says how a matrix is stored.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(number: Number, rows: usize, columns: usize, stride: usize) -> Result<Self> {
        let number = match number {
            Number::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Number::F32 => sys::cudaDataType::CUDA_R_32F,
            Number::Fp8(_) => sys::cudaDataType::CUDA_R_8F_E4M3,
        };
        let layout = result::create_matrix_layout(number, rows as u64, columns as u64, stride as i64);
        Ok(Self(cublas("describing a matrix", layout)?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm must be content with.
struct Wishes(sys::cublasLtMatmulPreference_t);

impl Wishes {
    fn new() -> Result<Self> {
        Ok(Self(cublas("asking for an algorithm", result::create_matmul_pref())?))
    }

    /// `value` is of the attribute's type.
    fn set<V>(&self, wish: Wish, value: V) -> Result<()> {
        // SAFETY: as for descriptions.
        let set =
            unsafe { result::set_matmul_pref_attribute(self.0, wish, ptr::from_ref(&value).cast(), size_of::<V>()) };
        cublas(&format!("setting {wish:?}"), set)
    }
}

impl Drop for Wishes {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
