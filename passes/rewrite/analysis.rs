//! What the e-graph knows of each class: the values that its programs read and write, and the least that they load engines.
//!
//! Two programs are equal only if they read and write the same values; merging two classes asserts it. A value that passes
//! between two ops of a program and nobody else reads (an op's payload quantised in front of an exchange, what I hands to
//! W) is not seen from outside. Every op occurs once in a program, so a value that is hidden in one class is not one that
//! another class of the same program touches: [`Effects::independent`] need not look inside.

use std::cell::RefCell;
use std::collections::BTreeMap;

use egg::{Analysis, DidMerge, Id, Language as _};

use super::effects::{Effects, leaf_effects};
use super::language::{Chunk, Leaf, Programs};
use crate::units::{Bytes, Nanos};

/// What rules may know of the layer whose programs are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// It has a shared expert.
    pub shared: bool,
    /// Its experts are on several GPUs.
    pub exchanges: bool,
    /// These GPUs are on several nodes.
    pub spans_nodes: bool,
    /// The job allows exchanges to send FP8 where it asks for more.
    pub fp8: bool,
}

/// What an op, or the cheapest of some programs, costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Time on SMs of computation.
    pub compute: Nanos,
    /// Sent to GPUs of the same node.
    pub nvlink: Bytes,
    /// Sent to other nodes.
    pub network: Bytes,
}

/// What an op costs; `None` if there is no such op.
pub type LeafLoad<'a> = &'a dyn Fn(&Leaf) -> Option<Load>;

/// The e-graph's analysis: the layer, and what its ops cost.
pub struct Facts<'a> {
    /// The layer.
    pub layer: Layer,
    load: LeafLoad<'a>,
    /// Loads that were asked for before.
    known: RefCell<BTreeMap<Leaf, Option<Load>>>,
}

impl<'a> Facts<'a> {
    /// `load` is asked once for each op.
    pub fn new(layer: Layer, load: LeafLoad<'a>) -> Self {
        Self { layer, load, known: RefCell::default() }
    }

    /// What an op costs; `None` if there is no such op.
    pub fn load(&self, leaf: &Leaf) -> Option<Load> {
        *self.known.borrow_mut().entry(*leaf).or_insert_with(|| (self.load)(leaf))
    }
}

/// What is known of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The values that its programs read and write.
    pub effects: Effects,
    /// For each engine, no program of the class loads it less. `None` if all have ops that there are not.
    pub least: Option<Load>,
}

impl Load {
    pub(super) fn sum(self, other: Self) -> Self {
        Self {
            compute: self.compute + other.compute,
            nvlink: self.nvlink + other.nvlink,
            network: self.network + other.network,
        }
    }

    /// The smaller of each.
    fn least(self, other: Self) -> Self {
        Self {
            compute: self.compute.min(other.compute),
            nvlink: self.nvlink.min(other.nvlink),
            network: self.network.min(other.network),
        }
    }
}

impl Analysis<Chunk> for Facts<'_> {
    type Data = Known;

    fn make(programs: &mut Programs, node: &Chunk, _: Id) -> Known {
        let parts = || node.children().iter().map(|&id| &programs[id].data);
        let effects = || parts().map(|part| &part.effects);
        let facts = &programs.analysis;
        match node {
            Chunk::Leaf(leaf) => Known { effects: leaf_effects(leaf, facts.layer), least: facts.load(leaf) },
            Chunk::Seq(_) => Known { effects: Effects::one_after_the_other(effects()), least: total(parts()) },
            Chunk::Par(_) => Known { effects: Effects::side_by_side(effects()), least: total(parts()) },
        }
    }

    fn merge(&mut self, a: &mut Known, b: Known) -> DidMerge {
        assert_eq!(a.effects, b.effects, "a rule made two programs equal that do not read and write the same");
        let least = match (a.least, b.least) {
            (Some(one), Some(other)) => Some(one.least(other)),
            (one, other) => one.or(other),
        };
        let did = DidMerge(least != a.least, least != b.least);
        a.least = least;
        did
    }
}

fn total<'k>(mut parts: impl Iterator<Item = &'k Known>) -> Option<Load> {
    parts.try_fold(Load::default(), |sum, part| Some(sum.sum(part.least?)))
}
