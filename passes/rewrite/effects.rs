//! The values of one layer, and which of them each op reads and writes: from this, and nothing else, rules know what may
//! change places.
//!
//! Part by part of the tokens: a value is a kind of tensor and the tokens that it covers. Weights are read by everybody and
//! written by nobody while a layer's programs run, so they are not here; accumulators of weight gradients are.

use std::collections::BTreeMap;

use super::analysis::Layer;
use super::language::{Carrier, FINEST, Leaf, LeafPhase, Payload};
use crate::ir::{Component, Step, Tokens};

/// A tensor of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value {
    /// Which.
    pub kind: Kind,
    /// Of which layer.
    pub site: u16,
}

/// The tensors of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The residual stream that enters.
    Input,
    /// What attention made: the stream after it, its norm, and where each token goes.
    Attended,
    /// Tokens at their experts.
    Arrived,
    /// What the experts made of them.
    ExpertOutput,
    /// The same, back at the tokens.
    Returned,
    /// What the shared expert made.
    SharedOutput,
    /// Gradient of what leaves the layer.
    OutputGradient,
    /// Gradient of `ExpertOutput`.
    ExpertGradient,
    /// Gradient of `Arrived`.
    ArrivedGradient,
    /// The same, back at the tokens.
    ReturnedGradient,
    /// The shared expert's share of the gradient of `Attended`.
    SharedGradient,
    /// Gradient of `Input`.
    InputGradient,
    /// What F keeps for I and W.
    Kept(Part),
    /// What I keeps for W.
    Handed(Part),
    /// Accumulator of a weight gradient.
    WeightGradient(Part),
    /// What is computed again for I.
    Again(Part),
    /// The payload of an exchange as its quantise op leaves it. An exchange is named by component and phase.
    Quantised(Component, LeafPhase),
    /// The payload of an exchange as its pack op leaves it.
    Packed(Component, LeafPhase),
}

/// What has weights of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Attention with norms and router.
    Attention,
    /// Routed experts; in a dense layer its MLP.
    Experts,
    /// The shared expert.
    Shared,
}

impl Kind {
    /// Whether only ops of the same component and phase (or its W) read it, so that outside of them it is not seen.
    fn is_temporary(self) -> bool {
        matches!(self, Self::Handed(_) | Self::Again(_) | Self::Quantised(..) | Self::Packed(..))
    }
}

/// Values, each with the tokens it covers: bit `n` for the `n`-th of [`FINEST`] equal parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<Value, u8>);

impl Values {
    fn add(&mut self, value: Value, tokens: u8) {
        if tokens != 0 {
            *self.0.entry(value).or_default() |= tokens;
        }
    }

    fn tokens_of(&self, value: &Value) -> u8 {
        self.0.get(value).copied().unwrap_or(0)
    }

    fn meet(&self, other: &Self) -> bool {
        self.0.iter().any(|(value, tokens)| tokens & other.tokens_of(value) != 0)
    }

    /// Every value with every part of the tokens that it covers.
    pub fn iter(&self) -> impl Iterator<Item = (Value, u32)> + '_ {
        self.0
            .iter()
            .flat_map(|(&value, &tokens)| (0..FINEST).filter(move |n| tokens >> n & 1 == 1).map(move |n| (value, n)))
    }
}

/// What a program does to values, seen from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Those that must be there before it.
    pub reads: Values,
    /// Those that it leaves or changes.
    pub writes: Values,
    /// Whether it exchanges anything.
    pub exchanges: bool,
}

impl Effects {
    /// Whether two programs may change places, or run at once: neither writes what the other reads or writes.
    pub fn independent(&self, other: &Self) -> bool {
        !self.writes.meet(&other.reads) && !self.reads.meet(&other.writes) && !self.writes.meet(&other.writes)
    }

    /// Of programs in this order. What a part reads and an earlier one wrote is not read from outside; if nothing else
    /// can read it, it is not left behind either.
    pub fn one_after_the_other<'a>(parts: impl Iterator<Item = &'a Self>) -> Self {
        let mut all = Self::default();
        let mut used = Values::default();
        for part in parts {
            all.exchanges |= part.exchanges;
            for (&value, &tokens) in &part.reads.0 {
                let written = all.writes.tokens_of(&value) & tokens;
                if value.kind.is_temporary() {
                    used.add(value, written);
                }
                all.reads.add(value, tokens & !written);
            }
            part.writes.0.iter().for_each(|(&value, &tokens)| all.writes.add(value, tokens));
        }
        for (value, tokens) in used.0 {
            all.writes.0.entry(value).and_modify(|left| *left &= !tokens);
        }
        all.writes.0.retain(|_, tokens| *tokens != 0);
        all
    }

    /// Of programs in any order.
    pub fn side_by_side<'a>(parts: impl Iterator<Item = &'a Self>) -> Self {
        let mut all = Self::default();
        for part in parts {
            all.exchanges |= part.exchanges;
            part.reads.0.iter().for_each(|(&value, &tokens)| all.reads.add(value, tokens));
            part.writes.0.iter().for_each(|(&value, &tokens)| all.writes.add(value, tokens));
        }
        all
    }
}

/// What an op of `layer` reads and writes.
pub fn leaf_effects(leaf: &Leaf, layer: Layer) -> Effects {
    let (reads, writes) = match leaf.step {
        Step::Quantise => (exchanged(leaf).0, vec![Kind::Quantised(leaf.component, leaf.phase)]),
        Step::Pack => (payload(leaf), vec![Kind::Packed(leaf.component, leaf.phase)]),
        Step::Again => (vec![Kind::Kept(main_part(leaf))], vec![Kind::Again(main_part(leaf))]),
        Step::Shared => computed(leaf, layer, Part::Shared),
        Step::Main if leaf.is_exchange() => {
            let reads = match leaf.exchange.carrier {
                Carrier::Sms => payload(leaf),
                Carrier::CopyEngine => vec![Kind::Packed(leaf.component, leaf.phase)],
            };
            (reads, exchanged(leaf).1)
        }
        Step::Main => {
            let (mut reads, mut writes) = computed(leaf, layer, main_part(leaf));
            if leaf.without_again {
                reads.push(Kind::Again(main_part(leaf)));
            }
            if includes_shared(leaf, layer) {
                let shared = computed(leaf, layer, Part::Shared);
                reads.extend(shared.0);
                writes.extend(shared.1);
            }
            (reads, writes)
        }
    };
    let tokens = mask(leaf.tokens);
    let mut effects = Effects { exchanges: leaf.is_exchange(), ..Effects::default() };
    reads.into_iter().for_each(|kind| effects.reads.add(Value { kind, site: leaf.site }, tokens));
    writes.into_iter().for_each(|kind| effects.writes.add(Value { kind, site: leaf.site }, tokens));
    effects
}

/// Whether an MLP's main op does the shared expert's work too.
pub fn includes_shared(leaf: &Leaf, layer: Layer) -> bool {
    layer.shared && leaf.component == Component::Mlp && leaf.step == Step::Main && !leaf.without_shared
}

/// Of a component that computes: whose weights its main op has.
fn main_part(leaf: &Leaf) -> Part {
    if leaf.component == Component::Attention { Part::Attention } else { Part::Experts }
}

/// What an exchange takes, as nobody has changed its format, and what it brings.
fn exchanged(leaf: &Leaf) -> (Vec<Kind>, Vec<Kind>) {
    let (from, to) = match (leaf.component, leaf.phase) {
        (Component::Dispatch, LeafPhase::F) => (Kind::Attended, Kind::Arrived),
        (Component::Combine, LeafPhase::F) => (Kind::ExpertOutput, Kind::Returned),
        (Component::Combine, _) => (Kind::OutputGradient, Kind::ExpertGradient),
        _ => (Kind::ArrivedGradient, Kind::ReturnedGradient),
    };
    (vec![from], vec![to])
}

/// What is sent, or packed before it is sent.
fn payload(leaf: &Leaf) -> Vec<Kind> {
    match leaf.exchange.payload {
        Payload::AsGiven => exchanged(leaf).0,
        Payload::Fp8 => vec![Kind::Quantised(leaf.component, leaf.phase)],
    }
}

/// What the computation of `part` reads and writes. Weight gradients are added to what is there, so they are read too.
fn computed(leaf: &Leaf, layer: Layer, part: Part) -> (Vec<Kind>, Vec<Kind>) {
    let (input, output) = match part {
        Part::Attention => (Kind::Input, Kind::Attended),
        Part::Experts if layer.exchanges => (Kind::Arrived, Kind::ExpertOutput),
        Part::Experts => (Kind::Attended, Kind::Returned),
        Part::Shared => (Kind::Attended, Kind::SharedOutput),
    };
    let (gradients, result) = match part {
        Part::Attention => {
            let mut gradients = vec![Kind::OutputGradient, Kind::ReturnedGradient];
            gradients.extend(layer.shared.then_some(Kind::SharedGradient));
            (gradients, Kind::InputGradient)
        }
        Part::Experts if layer.exchanges => (vec![Kind::ExpertGradient], Kind::ArrivedGradient),
        Part::Experts => (vec![Kind::OutputGradient], Kind::ReturnedGradient),
        Part::Shared => (vec![Kind::OutputGradient], Kind::SharedGradient),
    };
    let (kept, handed, weights) = (Kind::Kept(part), Kind::Handed(part), Kind::WeightGradient(part));
    match leaf.phase {
        LeafPhase::F => (vec![input], vec![output, kept]),
        LeafPhase::I => ([gradients, vec![kept]].concat(), vec![result, handed]),
        LeafPhase::W => (vec![kept, handed, weights], vec![weights]),
        LeafPhase::B => ([gradients, vec![kept, weights]].concat(), vec![result, weights]),
    }
}

/// The tokens as bits, one for each of [`FINEST`] parts.
fn mask(tokens: Tokens) -> u8 {
    (0..FINEST).filter(|&part| tokens.meet(Tokens { part, parts: FINEST })).fold(0, |mask, part| mask | 1 << part)
}
