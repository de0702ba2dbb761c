//! The attention core of a layer, by what is fastest here: cuDNN ([`super::cudnn`]) on Hopper, where it is there and has a plan for the
//! core; else own kernels ([`super::ops::attention`]), which take every core.
//!
//! Own kernels have what has sinks, or a window that is shorter than the sequence. Both write the same: which one made a result does
//! not matter for its gradient. Neither's bits depend on the SMs that an op may use; own kernels keep to them, cuDNN's take what there is.

use std::sync::Arc;

use super::cudnn::attention::{Attention, GradientPlaces, Places, Problem};
use super::ops::attention::{self, Core, Strided};
use super::{Bf16, Device, Slice, Stream};
use crate::error::Result;

/// Bytes that the gradients of scores may take at a time, which cuDNN keeps: as many heads as that is enough for are worked on
/// together. It is what 64 heads of 4096 tokens take; of 128 such heads, 64 at a time are as fast as all, 32 take 6 % longer, and 16 take
/// 20 % longer (`docs/measurements/h200_attention.txt`).
const KEPT: usize = 2 << 30;

/// The core of a layer.
pub struct CoreAttention {
    core: Core,
    tokens: usize,
    by_library: Option<ByLibrary>,
}

/// Strides of q, k and v: values from one token's to the next one's.
pub type Strides = [usize; 3];

/// cuDNN's plans.
struct ByLibrary {
    inputs: Strides,
    gradients: Strides,
    forward: Option<Arc<Attention>>,
    gradient: Option<(Arc<Attention>, Part)>,
    /// Outlives the plans.
    device: Arc<Device>,
}

/// What of the core is worked on together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    sequences: usize,
    kv_heads: usize,
}

impl Part {
    /// As much as may be kept, in equal parts: several sequences with all heads, or some heads of one; `None` if not even one key/value
    /// head may, or parts would not begin at whole 16 bytes of fp32.
    fn of(core: &Core, sequences: usize, kept: usize) -> Option<Self> {
        let sharing = core.heads / core.kv_heads;
        // In whole tiles of cuDNN's.
        let each = size_of::<Bf16>() * core.sequence.next_multiple_of(64) * core.sequence.next_multiple_of(128);
        let fit = kept / (each * sharing);
        let divisor = |of: usize, most: usize, numbers: usize| {
            let equal = |&part: &usize| of.is_multiple_of(part) && (part == of || (part * numbers).is_multiple_of(4));
            (1..=most.min(of)).rev().find(equal)
        };
        if fit >= core.kv_heads {
            let sequences = divisor(sequences, fit / core.kv_heads, core.heads * core.sequence)?;
            return Some(Self { sequences, kv_heads: core.kv_heads });
        }
        Some(Self { sequences: 1, kv_heads: divisor(core.kv_heads, fit, sharing * core.sequence)? })
    }

    /// First sequence and key/value head of each part.
    fn starts(self, core: &Core, sequences: usize) -> impl Iterator<Item = (usize, usize)> {
        let heads = core.kv_heads;
        let of_heads = move |sequence| (0..heads).step_by(self.kv_heads).map(move |head| (sequence, head));
        (0..sequences).step_by(self.sequences).flat_map(of_heads)
    }
}

impl CoreAttention {
    /// For so many tokens, whole sequences. `inputs`, `gradients`: strides of q, k and v, and of their gradients. `sinks`: there are
    /// some.
    ///
    /// # Errors
    /// If cuDNN is there and fails.
    pub fn new(
        device: &Arc<Device>,
        core: Core,
        tokens: usize,
        (inputs, gradients): (Strides, Strides),
        sinks: bool,
    ) -> Result<Self> {
        let plain = !sinks && core.window.is_none_or(|window| window >= core.sequence);
        // A sequence of one token is nothing that cuDNN takes.
        let by_library = match device.cudnn() {
            Some(_) if plain && core.sequence > 1 && tokens > 0 => {
                Some(ByLibrary::new(device, &core, tokens / core.sequence, inputs, gradients)?)
            }
            _ => None,
        };
        Ok(Self { core, tokens, by_library })
    }

    /// The same by own kernels alone.
    pub fn by_own_kernels(core: Core, tokens: usize) -> Self {
        Self { core, tokens, by_library: None }
    }

    /// Heads, widths and tokens of a sequence.
    pub fn dimensions(&self) -> &Core {
        &self.core
    }

    /// Whether cuDNN makes the result, and its gradient.
    pub fn is_by_library(&self) -> (bool, bool) {
        self.by_library
            .as_ref()
            .map_or((false, false), |library| (library.forward.is_some(), library.gradient.is_some()))
    }

    /// Bytes of scratch of [`CoreAttention::forward`].
    pub fn forward_scratch(&self) -> usize {
        self.by_library.as_ref().and_then(|library| library.forward.as_ref()).map_or(0, |plan| plan.workspace())
    }

    /// Bytes of scratch of [`CoreAttention::input_gradient`].
    pub fn gradient_scratch(&self) -> usize {
        let kept = self.by_library.as_ref().and_then(|library| library.gradient.as_ref());
        self.dots() + kept.map_or(0, |(plan, _)| plan.workspace())
    }

    /// Bytes of a number for each head and token, in whole 256 of them.
    fn dots(&self) -> usize {
        (size_of::<f32>() * attention::gradient_scratch(&self.core, self.tokens)).next_multiple_of(256)
    }

    /// As [`attention::forward`]; q, k and v have the strides that it was made for. `scratch`: [`CoreAttention::forward_scratch`].
    ///
    /// # Errors
    /// If the driver or cuDNN refuses.
    ///
    /// # Panics
    /// If lengths do not fit each other.
    #[allow(clippy::too_many_arguments)] // what it reads and writes
    pub fn forward(
        &self,
        stream: &Stream,
        sms: u32,
        inputs: [Strided; 3],
        sinks: Slice<f32>,
        o: Slice<Bf16>,
        log_sums: Slice<f32>,
        scratch: Slice<u8>,
    ) -> Result<()> {
        let [q, k, v] = inputs;
        let (core, library) = (&self.core, self.by_library.as_ref());
        let Some((library, plan)) = library.and_then(|library| Some((library, library.forward.as_ref()?))) else {
            return attention::forward(stream, sms, core, q, k, v, sinks, o, log_sums);
        };
        self.check(inputs, library.inputs, o, log_sums);
        assert!(sinks.is_empty() && scratch.len() >= plan.workspace(), "no sinks, and room for what cuDNN keeps");
        let places = Places {
            inputs: inputs.map(|rows| rows.values.address()),
            output: o.address(),
            log_sums: log_sums.address(),
            gradient: None,
            workspace: scratch.address(),
        };
        library.launch(stream, plan, &places)
    }

    /// As [`attention::input_gradient`]; q, k and v, and their gradients, have the strides that it was made for. `scratch`:
    /// [`CoreAttention::gradient_scratch`], from a multiple of 256 bytes on.
    ///
    /// # Errors
    /// If the driver or cuDNN refuses.
    ///
    /// # Panics
    /// If lengths do not fit each other.
    #[allow(clippy::too_many_arguments)] // what it reads and writes
    pub fn input_gradient(
        &self,
        stream: &Stream,
        sms: u32,
        inputs: [Strided; 3],
        sinks: Slice<f32>,
        (o, d_o, log_sums): (Slice<Bf16>, Slice<Bf16>, Slice<f32>),
        gradients: [Strided; 3],
        d_sinks: Slice<f32>,
        scratch: Slice<u8>,
    ) -> Result<()> {
        let (core, library) = (&self.core, self.by_library.as_ref());
        let (dots, kept) = (scratch.part(0..self.dots()).cast::<f32>(), scratch.part(self.dots()..scratch.len()));
        let Some((library, (plan, part))) = library.and_then(|library| Some((library, library.gradient.as_ref()?)))
        else {
            let ([q, k, v], [d_q, d_k, d_v]) = (inputs, gradients);
            return attention::input_gradient(
                stream, sms, core, q, k, v, sinks, o, d_o, log_sums, d_q, d_k, d_v, d_sinks, dots,
            );
        };
        self.check(inputs, library.inputs, o, log_sums);
        self.check(gradients, library.gradients, d_o, log_sums);
        assert!(sinks.is_empty() && kept.len() >= plan.workspace(), "no sinks, and room for what cuDNN keeps");
        let sharing = core.heads / core.kv_heads;
        for (sequence, kv_head) in part.starts(core, self.tokens / core.sequence) {
            let head = kv_head * sharing;
            // Where the heads of the first token of the part are.
            let at = |values: Slice<Bf16>, stride: usize, column: usize| {
                values.address() + (size_of::<Bf16>() * (sequence * core.sequence * stride + column)) as u64
            };
            let of_inputs = |[q, k, v]: [Strided; 3]| {
                [
                    at(q.values, q.stride, head * core.qk_dim),
                    at(k.values, k.stride, kv_head * core.qk_dim),
                    at(v.values, v.stride, kv_head * core.value_dim),
                ]
            };
            let of_output = |values| at(values, core.heads * core.value_dim, head * core.value_dim);
            let number = (sequence * core.heads + head) * core.sequence;
            let of_numbers = |numbers: Slice<f32>| numbers.part(number..numbers.len()).address();
            let places = Places {
                inputs: of_inputs(inputs),
                output: of_output(o),
                log_sums: of_numbers(log_sums),
                gradient: Some(GradientPlaces {
                    d_output: of_output(d_o),
                    dots: of_numbers(dots),
                    gradients: of_inputs(gradients),
                }),
                workspace: kept.address(),
            };
            library.launch(stream, plan, &places)?;
        }
        Ok(())
    }

    /// # Panics
    /// If rows are not as long as they must be, or have other strides.
    fn check(&self, rows: [Strided; 3], strides: Strides, o: Slice<Bf16>, log_sums: Slice<f32>) {
        let Self { core, tokens, .. } = self;
        assert_eq!(rows.map(|rows| rows.stride), strides, "strides that it was made for");
        let widths = [(core.heads, core.qk_dim), (core.kv_heads, core.qk_dim), (core.kv_heads, core.value_dim)];
        for ((name, rows), (heads, width)) in ["q", "k", "v"].into_iter().zip(rows).zip(widths) {
            Core::check(name, rows, *tokens, heads, width);
        }
        assert_eq!((core.tokens(o), log_sums.len()), (*tokens, core.heads * tokens), "a result for each token");
        assert!(log_sums.address().is_multiple_of(16), "log sums start at whole 16 bytes");
    }
}

impl ByLibrary {
    fn new(device: &Arc<Device>, core: &Core, sequences: usize, inputs: Strides, gradients: Strides) -> Result<Self> {
        device.bind()?;
        let find = |problem| device.cudnn().map_or(Ok(None), |cudnn| cudnn.attention(&problem));
        let forward = Problem {
            sequences,
            sequence: core.sequence,
            heads: core.heads,
            kv_heads: core.kv_heads,
            qk: core.qk_dim,
            value: core.value_dim,
            inputs,
            output: core.heads * core.value_dim,
            gradients: None,
        };
        let gradient = match Part::of(core, sequences, KEPT) {
            None => None,
            Some(part) => {
                let Part { sequences, kv_heads } = part;
                let heads = core.heads / core.kv_heads * kv_heads;
                let of_part = Problem { sequences, heads, kv_heads, gradients: Some(gradients), ..forward };
                find(of_part)?.map(|plan| (plan, part))
            }
        };
        Ok(Self { inputs, gradients, forward: find(forward)?, gradient, device: Arc::clone(device) })
    }

    /// Launches a plan of these.
    fn launch(&self, stream: &Stream, plan: &Attention, places: &Places) -> Result<()> {
        let cudnn = self.device.cudnn().expect("plans are made by the GPU's cuDNN");
        // SAFETY: who calls has checked that all tensors are as long as the plan's problem says, with its strides, and that there is room
        // for its workspace; as for every op, they stay until it has ended.
        unsafe { cudnn.launch(stream, plan, places) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(heads: usize, kv_heads: usize, sequence: usize) -> Core {
        Core { heads, kv_heads, qk_dim: 192, value_dim: 128, sequence, window: None }
    }

    #[test]
    fn parts_are_equal_and_fit() {
        let part = |heads, kv_heads, sequence, sequences| {
            Part::of(&core(heads, kv_heads, sequence), sequences, KEPT).map(|part| (part.sequences, part.kv_heads))
        };
        assert_eq!(part(128, 128, 4096, 1), Some((1, 64)));
        assert_eq!(part(64, 8, 4096, 2), Some((1, 8)));
        assert_eq!(part(64, 8, 8192, 1), Some((1, 2)));
        assert_eq!(part(16, 2, 4097, 6), Some((3, 2)), "a tile more of queries, and one of keys");
        assert_eq!(part(12, 12, 16_384, 1), Some((1, 4)));
        assert_eq!(part(32, 1, 8192, 1), None, "one key/value head is 4 GiB");
        assert_eq!(
            (part(10, 10, 10_001, 1), part(3, 3, 20_001, 1)),
            (Some((1, 10)), None),
            "parts would not be aligned"
        );
        // A part's room, by the definition.
        for (heads, kv_heads, sequence, sequences) in [(128, 16, 1000, 7), (96, 96, 3000, 2), (8, 8, 20_000, 3)] {
            let core = core(heads, kv_heads, sequence);
            let part = Part::of(&core, sequences, KEPT).expect("fits");
            assert!(2 * sequence * sequence * part.sequences * part.kv_heads * (heads / kv_heads) <= KEPT);
            let starts: Vec<_> = part.starts(&core, sequences).collect();
            assert_eq!(starts.len() * part.sequences * part.kv_heads, sequences * kv_heads);
            assert!(starts.is_sorted() && starts[0] == (0, 0));
        }
    }
}
