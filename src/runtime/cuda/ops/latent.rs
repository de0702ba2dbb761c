//! k and v of multi-head latent attention.

use super::{PER_SM, THREADS, assert_aligned, count, eights, looping};
use crate::error::Result;
use crate::runtime::cuda::kernel::arguments;
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// Heads, and columns of each: all multiples of 8, of which `rope` is at least 8 and at most 2048.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    /// Heads.
    pub heads: usize,
    /// Columns of k of its own: those without position.
    pub nope: usize,
    /// Columns of k that all heads share: those with.
    pub rope: usize,
    /// Columns of v.
    pub value: usize,
}

/// k (tokens × heads·(nope + rope)) and v (tokens × heads·value) of all heads, from `kv` (tokens × heads·(nope + value)) and the part
/// of k that is shared: `rope` columns of `down` from column `first` on, whose rows stand `down_stride` values apart.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// If lengths do not fit each other, or rows do not begin at multiples of 16 bytes.
pub fn spread(
    stream: &Stream,
    sms: u32,
    kv: Slice<Bf16>,
    (down, down_stride, first): (Slice<Bf16>, usize, usize),
    k: Slice<Bf16>,
    v: Slice<Bf16>,
    dims: Dims,
) -> Result<()> {
    launch(stream, sms, "latent_spread", kv, (down, down_stride, first), k, v, dims)
}

/// The reverse of [`spread`] for gradients: from those of k and v to that of `kv` and that of the shared part, which is the sum over
/// the heads, in fp32. The other columns of `d_down` are left as they are.
///
/// # Errors
/// If the driver refuses.
///
/// # Panics
/// As [`spread`].
pub fn gather(
    stream: &Stream,
    sms: u32,
    d_kv: Slice<Bf16>,
    (d_down, down_stride, first): (Slice<Bf16>, usize, usize),
    d_k: Slice<Bf16>,
    d_v: Slice<Bf16>,
    dims: Dims,
) -> Result<()> {
    launch(stream, sms, "latent_gather", d_kv, (d_down, down_stride, first), d_k, d_v, dims)
}

/// Both kernels have the same parameters.
#[allow(clippy::too_many_arguments)] // as many as theirs, and the name
fn launch(
    stream: &Stream,
    sms: u32,
    name: &str,
    kv: Slice<Bf16>,
    (down, down_stride, first): (Slice<Bf16>, usize, usize),
    k: Slice<Bf16>,
    v: Slice<Bf16>,
    dims: Dims,
) -> Result<()> {
    let Dims { heads, nope, rope, value } = dims;
    let row = heads * (nope + value);
    let tokens = kv.len() / row;
    assert!(kv.len() == tokens * row, "{} values are no rows of {row}", kv.len());
    assert!(k.len() == tokens * heads * (nope + rope), "k of {tokens} tokens: {} values", k.len());
    assert!(v.len() == tokens * heads * value, "v of {tokens} tokens: {} values", v.len());
    assert!(first + rope <= down_stride, "columns {first} to {} of {down_stride}", first + rope);
    assert!(tokens == 0 || down.len() >= (tokens - 1) * down_stride + first + rope, "{tokens} rows in {}", down.len());
    assert!((8..=8 * THREADS as usize).contains(&rope), "{rope} shared columns: not 8 to {}", 8 * THREADS);
    let shared = down.part(first.min(down.len())..down.len());
    assert_aligned(&[kv, shared, k, v]);
    let (down_stride, nope, rope, value) = (eights(down_stride), eights(nope), eights(rope), eights(value));
    let kernel = stream.device().kernel(name);
    // SAFETY: the kernels read and write whole matrices, and `rope` columns of `tokens` rows of the shared part.
    unsafe {
        let arguments = arguments![kv, shared, down_stride, k, v, count(tokens), count(heads), nope, rope, value];
        kernel.launch(stream, looping(tokens, sms, PER_SM, THREADS), arguments)
    }
}
