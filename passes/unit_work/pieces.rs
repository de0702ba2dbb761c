//! The work of ops finer than those of [`super::unit_work`]: the shared expert by itself, recomputation by itself, parts of
//! the tokens, exchanges in other forms and the kernels in front of them. They are taken from the same lists of kernels and
//! the same formulas, so pieces that make up an op also make up its work.
//!
//! Where tensor parallelism cuts layers there are only the whole pieces, and an attention or dense MLP is its kernels without
//! the collectives around them.

pub use super::exchange::{Carrier, ExchangeForm, Payload, Route};
use super::kernels::Entry;
use super::{Layer, Sizes, attention, exchange, mlp};
use crate::ir::{Component, Kernel, Phase, Recompute, Step, Tokens, Unit, Work};
use crate::job::Job;
use crate::units::Bytes;

/// An op of a layer, as fine as rewrites make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Piece {
    /// Which component.
    pub component: Component,
    /// In which phase.
    pub phase: Phase,
    /// Which part of its work.
    pub step: Step,
    /// On which tokens.
    pub tokens: Tokens,
    /// Of dispatch and combine: how. A quantise op does not look at it; a pack op looks at the payload.
    pub exchange: ExchangeForm,
    /// Of an MLP's main op and of its recomputation: what the shared expert does is left out, for it has an op of its own,
    /// with its recomputation in it.
    pub without_shared: bool,
    /// Of main ops and shared experts in I: what is computed again is left out, for another op does it.
    pub without_again: bool,
}

impl Piece {
    /// All that a component does in a phase: one op of [`super::unit_work`].
    pub fn whole(component: Component, phase: Phase) -> Self {
        Self {
            component,
            phase,
            step: Step::Main,
            tokens: Tokens::ALL,
            exchange: ExchangeForm::default(),
            without_shared: false,
            without_again: false,
        }
    }

    /// Whether a list's kernel is part of it.
    fn has(&self, entry: &Entry) -> bool {
        match self.step {
            Step::Main => !(self.without_shared && entry.shared || self.without_again && entry.again),
            Step::Shared => entry.shared && !(self.without_again && entry.again),
            Step::Again => entry.again && !(self.without_shared && entry.shared),
            Step::Quantise | Step::Pack => false,
        }
    }
}

/// The work of `piece`, where layers compute `recompute` again; a whole layer does so in ops of its own, [`super::UnitWork::again`], which are no
/// pieces. `None` if there is no such piece: no shared expert,
/// nothing computed again, all experts on one GPU, a copy engine over the network, FP8 where it is sent already, tokens that
/// do not divide into so many parts (of attention: whole sequences), a weight gradient of an exchange; or where the unit is
/// an end of the model.
///
/// Parts of the tokens: FLOPs add up to the whole's. Each part reads all weights, and adds to the whole accumulator in W,
/// where its products are less deep.
pub fn work(job: &Job, unit: Unit, recompute: Recompute, piece: &Piece) -> Option<Work> {
    let layer = Layer::of(job, unit)?;
    if job.training.tp > 1 && *piece != Piece::whole(piece.component, piece.phase) {
        return None;
    }
    let sizes = sizes(job, piece)?;
    let entries = match piece.component {
        Component::Embedding | Component::Head => return None,
        Component::Dispatch | Component::Combine => {
            let (moe, which) = (layer.moe?, (piece.component, piece.phase));
            return match piece.step {
                Step::Main => exchange::exchange(job, moe, &sizes, which, piece.exchange),
                Step::Quantise => exchange::quantise(job, moe, &sizes, which),
                Step::Pack => exchange::pack(job, moe, &sizes, which, piece.exchange),
                Step::Shared | Step::Again => None,
            };
        }
        Component::Attention => attention::kernels(job, &layer, &sizes, recompute.within_layer()),
        Component::Mlp => mlp::kernels(job, &layer, &sizes, recompute.within_layer()),
    }
    .of(piece.phase);
    let kernels: Vec<Kernel> = entries.iter().filter(|entry| piece.has(entry)).map(|entry| entry.kernel).collect();
    (!kernels.is_empty()).then_some(Work::Compute(kernels))
}

/// Of an exchange: what is sent and received together, in memory while it runs; for a copy engine from its pack op on. Zero
/// for every other piece.
pub fn exchange_buffer(job: &Job, unit: Unit, piece: &Piece) -> Bytes {
    let buffer = || {
        let (layer, sizes) = (Layer::of(job, unit)?, sizes(job, piece)?);
        exchange::buffer(job, layer.moe?, &sizes, (piece.component, piece.phase), piece.exchange)
    };
    if piece.step == Step::Main { buffer().unwrap_or_default() } else { Bytes::ZERO }
}

/// Sizes of a part of the tokens. `None` if they do not divide so.
fn sizes(job: &Job, piece: &Piece) -> Option<Sizes> {
    let Tokens { part, parts } = piece.tokens;
    let tokens = job.training.micro_batch_tokens();
    let divided = match piece.component {
        // A token attends to those before it, so only whole sequences are apart.
        Component::Attention => u64::from(job.training.micro_batch_size),
        _ => tokens,
    };
    (part < parts && divided.is_multiple_of(u64::from(parts))).then(|| Sizes::of_tokens(job, tokens / u64::from(parts)))
}
