//! What the e-graph knows of each class: the values that its programs read and write, and the least that they load engines.
//!
//! Two programs are equal only if they read and write the same values; merging two classes asserts it. A value that passes
//! between two ops of a program and nobody else reads (an op's payload quantised in front of an exchange, what I hands to
//! W) is not seen from outside. Every op occurs once in a program, so a value that is hidden in one class is not one that
//! another class of the same program touches: [`Effects::independent`] need not look inside.

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
    /// Activations held from F to I beyond what the layer holds anyway.
    pub held: Bytes,
}

/// What an op costs; `None` if there is no such op.
pub type LeafLoad<'a> = &'a dyn Fn(&Leaf) -> Option<Load>;

/// The e-graph's analysis: the layer, and what its ops cost.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// The layer.
    pub layer: Layer,
    /// Its ops.
    pub load: LeafLoad<'a>,
}

/// What is known of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The values that its programs read and write.
    pub effects: Effects,
    /// For each engine, no program of the class loads it less; an op that there is not counts nothing.
    pub least: Load,
}

impl Load {
    pub(super) fn sum(self, other: Self) -> Self {
        Self {
            compute: self.compute + other.compute,
            nvlink: self.nvlink + other.nvlink,
            network: self.network + other.network,
            held: self.held + other.held,
        }
    }

    /// The smaller of each.
    fn least(self, other: Self) -> Self {
        Self {
            compute: self.compute.min(other.compute),
            nvlink: self.nvlink.min(other.nvlink),
            network: self.network.min(other.network),
            held: self.held.min(other.held),
        }
    }
}

impl Analysis<Chunk> for Facts<'_> {
    type Data = Known;

    fn make(programs: &mut Programs, node: &Chunk, _: Id) -> Known {
        let parts = || node.children().iter().map(|&id| &programs[id].data);
        let least = parts().fold(Load::default(), |sum, part| sum.sum(part.least));
        match node {
            Chunk::Leaf(leaf) => {
                let Facts { layer, load } = programs.analysis;
                Known { effects: leaf_effects(leaf, layer), least: load(leaf).unwrap_or_default() }
            }
            Chunk::Seq(_) => Known { effects: Effects::one_after_the_other(parts().map(|part| &part.effects)), least },
            Chunk::Par(_) => Known { effects: Effects::side_by_side(parts().map(|part| &part.effects)), least },
        }
    }

    fn merge(&mut self, a: &mut Known, b: Known) -> DidMerge {
        assert_eq!(a.effects, b.effects, "a rule made two programs equal that do not read and write the same");
        let least = a.least.least(b.least);
        let did = DidMerge(least != a.least, least != b.least);
        a.least = least;
        did
    }
}
