//! The attention core by own kernels: scores, softmax and weighted sums of heads, causal within each sequence. They take every
//! core; where cuDNN takes it too, [`crate::runtime::cuda::core_attention`] prefers that.

use super::{count, looping};
use crate::error::{Error, Result};
use crate::runtime::cuda::kernel::{Argument, arguments};
use crate::runtime::cuda::{Bf16, Slice, Stream};

/// Dimensions of the core.
#[derive(Clone, Copy, Debug)]
pub struct Core {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads that stand together.
    pub kv_heads: usize,
    /// Width of a head's q and k: a multiple of 8, at most 256.
    pub qk_dim: usize,
    /// Width of a head's v: a multiple of 8, at most 256.
    pub value_dim: usize,
    /// Tokens of a sequence: each attends to itself and to those before it.
    pub sequence: usize,
    /// Tokens that a query sees, itself included; `None`: all.
    pub window: Option<usize>,
}

/// Rows that are parts of wider ones: q, k and v often stand in one matrix.
#[derive(Clone, Copy, Debug)]
pub struct Strided {
    /// From the first row's start on; 16-byte aligned.
    pub values: Slice<Bf16>,
    /// Values from one row to the next: a multiple of 8. The heads of a row stand one behind the other from its start.
    pub stride: usize,
}

/// Three kernels, compiled for heads of certain widths; smaller heads are padded with zeros.
#[derive(Debug)]
struct Instance {
    qk: usize,
    value: usize,
    forward: Tiling,
    keys: Tiling,
    queries: Tiling,
}

/// How a kernel divides its work: as in `attention.cu`.
#[derive(Debug)]
struct Tiling {
    kernel: &'static str,
    /// Rows that a block owns: queries, or keys.
    rows: usize,
    warps: u32,
    /// Blocks for which an SM has registers.
    per_sm: u32,
    /// Bytes of shared memory of a block.
    shared: u32,
}

impl Instance {
    /// `forward`, `keys` and `queries`: warps, blocks that an SM has registers for, and rows of the other side that are fetched at a
    /// time. A warp owns 16 rows, or, forward, so many that there are 128.
    const fn of(
        (qk, value): (usize, usize),
        [forward, keys, queries]: [&'static str; 3],
        of_forward: (u32, u32, u32),
        of_keys: (u32, u32, u32),
        of_queries: (u32, u32, u32),
    ) -> Self {
        // Bytes of one row of both.
        let both = 2 * (qk + value) as u32;
        let (warps, per_sm, other) = of_forward;
        // Queries, keys and values; the results take the place of the queries.
        let shared = FORWARD_ROWS * 2 * qk as u32 + other * both;
        let forward = Tiling { kernel: forward, rows: FORWARD_ROWS as usize, warps, per_sm, shared };
        let (warps, per_sm, other) = of_keys;
        // Keys and values; two places for queries, their gradients, and two numbers for each of them.
        let shared = 16 * warps * both + 2 * other * (both + 8);
        let keys = Tiling { kernel: keys, rows: 16 * warps as usize, warps, per_sm, shared };
        let (warps, per_sm, other) = of_queries;
        // Queries and their gradients; two places for keys and values.
        let shared = 16 * warps * both + 2 * other * both;
        let queries = Tiling { kernel: queries, rows: 16 * warps as usize, warps, per_sm, shared };
        Self { qk, value, forward, keys, queries }
    }
}

/// Queries of a block of a forward kernel.
const FORWARD_ROWS: u32 = 128;

/// By width: the first one that is wide enough is taken.
static INSTANCES: [Instance; 5] = [
    Instance::of(
        (32, 32),
        ["attention_forward_32_32", "attention_keys_32_32", "attention_queries_32_32"],
        (4, 3, 64),
        (4, 3, 64),
        (4, 3, 64),
    ),
    Instance::of(
        (64, 64),
        ["attention_forward_64_64", "attention_keys_64_64", "attention_queries_64_64"],
        (4, 2, 64),
        (4, 2, 64),
        (4, 3, 64),
    ),
    Instance::of(
        (128, 128),
        ["attention_forward_128_128", "attention_keys_128_128", "attention_queries_128_128"],
        (4, 2, 64),
        (8, 1, 64),
        (8, 1, 64),
    ),
    Instance::of(
        (192, 128),
        ["attention_forward_192_128", "attention_keys_192_128", "attention_queries_192_128"],
        (4, 2, 64),
        (8, 1, 32),
        (8, 1, 64),
    ),
    Instance::of(
        (256, 256),
        ["attention_forward_256_256", "attention_keys_256_256", "attention_queries_256_256"],
        (8, 1, 64),
        (4, 1, 32),
        (4, 1, 32),
    ),
];

/// Bytes of the L2 cache that heads which are worked on at a time may fill: well within the 40 MB of an A100, or the 25 MB that one half
/// of an H100's has.
const CACHED: usize = 16 << 20;

/// Threads of the kernels that only read and sum.
const THREADS: u32 = 256;

impl Core {
    /// # Panics
    /// If the dimensions are none that the kernels have.
    fn instance(&self) -> &'static Instance {
        let Self { heads, kv_heads, qk_dim, value_dim, sequence, window } = *self;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads share {kv_heads}");
        assert!(qk_dim.is_multiple_of(8) && value_dim.is_multiple_of(8), "whole 16 bytes: {qk_dim}, {value_dim}");
        assert!(heads * qk_dim * value_dim * sequence > 0 && window != Some(0), "nothing to attend to: {self:?}");
        let wide_enough = INSTANCES.iter().find(|instance| instance.qk >= qk_dim && instance.value >= value_dim);
        wide_enough.unwrap_or_else(|| panic!("heads are at most 256 wide: {qk_dim}, {value_dim}"))
    }

    /// Query heads that share a key/value head.
    fn sharing(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Key/value heads, of all sequences, that are worked on at a time when `streamed` heads' rows are read for each.
    fn fitting(&self, streamed: usize) -> usize {
        (CACHED / (size_of::<Bf16>() * streamed * self.sequence * (self.qk_dim + self.value_dim))).max(1)
    }

    /// # Panics
    /// If the rows do not hold `heads` of `width` for all tokens.
    pub(crate) fn check(name: &str, Strided { values, stride }: Strided, tokens: usize, heads: usize, width: usize) {
        assert!(stride >= heads * width && stride.is_multiple_of(8), "{name}: {stride} values for {heads} × {width}");
        assert!(values.address().is_multiple_of(16), "{name}: rows start at whole 16 bytes");
        let read = tokens.saturating_sub(1) * stride + heads * width;
        assert!(tokens == 0 || values.len() >= read, "{name}: {} values, not {read}", values.len());
    }

    /// Tokens of `o`.
    ///
    /// # Panics
    /// If they are not whole sequences.
    pub(crate) fn tokens(&self, o: Slice<Bf16>) -> usize {
        let width = self.heads * self.value_dim;
        let tokens = o.len() / width;
        assert!(o.len() == tokens * width && tokens.is_multiple_of(self.sequence), "o: {tokens} tokens");
        assert!(o.address().is_multiple_of(16), "o starts at whole 16 bytes");
        tokens
    }

    /// What ends the arguments of every kernel that has an [`Instance`].
    fn arguments(&self, tokens: usize, together: usize) -> [Argument; 9] {
        let dimensions = [self.heads, self.kv_heads, self.qk_dim, self.value_dim, self.sequence, tokens].map(count);
        let [heads, kv_heads, qk, value, sequence, tokens] = dimensions.map(Argument::from);
        let window = self.window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX));
        let scale = 1.0 / (self.qk_dim as f32).sqrt();
        [heads, kv_heads, qk, value, sequence, tokens, window.into(), count(together).into(), scale.into()]
    }
}

impl Tiling {
    /// Launches the kernel for `heads` of each sequence, of which `together` are worked on at a time.
    ///
    /// # Errors
    /// If a block needs more shared memory than the GPU has, or the driver refuses.
    ///
    /// # Safety
    /// As [`Kernel::launch`](crate::runtime::cuda::kernel::Kernel::launch); the arguments are `own` and those of the core.
    unsafe fn launch(
        &self,
        (stream, sms): (&Stream, u32),
        (core, tokens): (&Core, usize),
        (heads, together): (usize, usize),
        own: &[Argument],
    ) -> Result<()> {
        let device = stream.device();
        if self.shared > device.shared_memory {
            return Err(Error::new(format!(
                "a block of {} needs {} bytes of shared memory; {} has {}",
                self.kernel, self.shared, device.name, device.shared_memory
            )));
        }
        let heads = heads * (tokens / core.sequence);
        // The driver takes 1 KiB of an SM's shared memory for itself, for each block.
        let fit = (device.shared_memory + 1024) / (self.shared + 1024);
        let work = heads * core.sequence.div_ceil(self.rows);
        let grid = looping(work, sms, self.per_sm.min(fit), 32 * self.warps).shared(self.shared);
        let arguments = &mut [own, &core.arguments(tokens, together.clamp(1, heads.max(1)))].concat();
        // SAFETY: the caller's promise.
        unsafe { device.kernel(self.kernel).launch(stream, grid, arguments) }
    }
}

/// The weighted sums `o` (tokens × heads · value), and the logarithms of the softmax's sums, sinks included (sequences × heads × tokens
/// of a sequence), for the gradient. `q`: heads · qk in each row; `k`, `v`: kv heads · (qk, value). `sinks`: one logit per head that takes
/// part in the softmax and gives nothing, or [`Slice::none`]. The bits do not depend on `sms`.
///
/// # Errors
/// If the driver refuses, or the GPU has too little shared memory for heads of this width.
///
/// # Panics
/// If lengths do not fit each other, or the kernels do not have the dimensions.
#[allow(clippy::too_many_arguments)] // what it reads and writes
pub fn forward(
    stream: &Stream,
    sms: u32,
    core: &Core,
    q: Strided,
    k: Strided,
    v: Strided,
    sinks: Slice<f32>,
    o: Slice<Bf16>,
    log_sums: Slice<f32>,
) -> Result<()> {
    let (instance, tokens) = (core.instance(), core.tokens(o));
    Core::check("q", q, tokens, core.heads, core.qk_dim);
    Core::check("k", k, tokens, core.kv_heads, core.qk_dim);
    Core::check("v", v, tokens, core.kv_heads, core.value_dim);
    assert!(sinks.is_empty() || sinks.len() == core.heads, "a sink for each head, or none");
    assert!(log_sums.len() == gradient_scratch(core, tokens), "a sum for each head and token");
    let [q_stride, k_stride, v_stride] = [q, k, v].map(|rows| count(rows.stride));
    let own = arguments![q.values, q_stride, k.values, k_stride, v.values, v_stride, sinks, o, log_sums];
    let heads = (core.heads, core.fitting(1) * core.sharing());
    // SAFETY: the kernel reads the heads of `tokens` rows of q, k and v and, if there, `heads` sinks, and writes all of `o` and of
    // `log_sums`; the lengths were checked.
    unsafe { instance.forward.launch((stream, sms), (core, tokens), heads, own) }
}

/// Elements of the scratch of [`input_gradient`].
pub fn gradient_scratch(core: &Core, tokens: usize) -> usize {
    core.heads * tokens
}

/// The gradients of what [`forward`] read, from that of its result, `d_o`. Those of the sinks are added to `d_sinks`
/// ([`Slice::none`] if there are none), the others are set; `d_q`, `d_k` and `d_v` may stand in one matrix. The bits do not depend on
/// `sms`.
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // what it reads and writes
pub fn input_gradient(
    stream: &Stream,
    sms: u32,
    core: &Core,
    q: Strided,
    k: Strided,
    v: Strided,
    sinks: Slice<f32>,
    o: Slice<Bf16>,
    d_o: Slice<Bf16>,
    log_sums: Slice<f32>,
    d_q: Strided,
    d_k: Strided,
    d_v: Strided,
    d_sinks: Slice<f32>,
    scratch: Slice<f32>,
) -> Result<()> {
    let (instance, tokens) = (core.instance(), core.tokens(o));
    for (name, of_q, of_k, of_v) in [("inputs", q, k, v), ("gradients", d_q, d_k, d_v)] {
        Core::check(&format!("q of {name}"), of_q, tokens, core.heads, core.qk_dim);
        Core::check(&format!("k of {name}"), of_k, tokens, core.kv_heads, core.qk_dim);
        Core::check(&format!("v of {name}"), of_v, tokens, core.kv_heads, core.value_dim);
    }
    assert!(core.tokens(d_o) == tokens, "a gradient for each result");
    assert!(sinks.len() == d_sinks.len() && (sinks.is_empty() || sinks.len() == core.heads), "a sink for each head");
    let needed = gradient_scratch(core, tokens);
    assert!(log_sums.len() == needed && scratch.len() >= needed, "a sum and a dot for each head and token");
    let dots = scratch.part(0..needed);
    let [heads, value, sequence, rows] = [core.heads, core.value_dim, core.sequence, tokens].map(count);

    // Eight threads for each head of each token.
    let grid = looping((8 * needed).div_ceil(THREADS as usize), sms, 2048 / THREADS, THREADS);
    let kernel = stream.device().kernel("attention_dots");
    // SAFETY: the kernel reads all of `o` and `d_o` and writes all of `dots`; the lengths were checked.
    unsafe { kernel.launch(stream, grid, arguments![o, d_o, dots, heads, value, sequence, rows])? };

    let [q_stride, k_stride, v_stride] = [q, k, v].map(|rows| count(rows.stride));
    let [d_q_stride, d_k_stride, d_v_stride] = [d_q, d_k, d_v].map(|rows| count(rows.stride));
    let read: &[Argument] = arguments![q.values, q_stride, k.values, k_stride, v.values, v_stride, d_o, log_sums, dots];
    let own = [read, arguments![d_k.values, d_k_stride, d_v.values, d_v_stride]].concat();
    let (launch, of) = ((stream, sms), (core, tokens));
    // SAFETY: the kernel reads the heads of `tokens` rows of q, k and v, all of `d_o`, `log_sums` and `dots`, and writes the heads of as
    // many rows of `d_k` and `d_v`; the lengths were checked.
    unsafe { instance.keys.launch(launch, of, (core.kv_heads, core.fitting(core.sharing())), &own)? };
    let own = [read, arguments![d_q.values, d_q_stride]].concat();
    // SAFETY: as above, and it writes the heads of `d_q`.
    unsafe { instance.queries.launch(launch, of, (core.heads, core.fitting(1) * core.sharing()), &own)? };

    if sinks.is_empty() {
        return Ok(());
    }
    let kernel = stream.device().kernel("attention_sinks");
    let grid = looping(core.heads, sms, 2048 / THREADS, THREADS);
    // SAFETY: the kernel reads all of `sinks`, `log_sums` and `dots`, and adds to all of `d_sinks`; the lengths were checked.
    unsafe { kernel.launch(stream, grid, arguments![sinks, log_sums, dots, d_sinks, heads, sequence, rows]) }
}
