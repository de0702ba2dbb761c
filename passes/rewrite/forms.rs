//! From the e-graph to what chooses from it, and from what was chosen to ops.
//!
//! [`Alternatives`] is the e-graph as an AND-OR graph of plain numbers. A choice of one alternative per class gives a
//! [`Form`]: the ops of the layer and what each of them needs, which is the order that `seq` and `par` give. Weight gradients
//! are taken out of that order: a chunk keeps them in a list of their own, where each needs the input gradients that it
//! reads from and nothing else, so a term that puts them late binds nobody.

use std::collections::{BTreeMap, BTreeSet};

use egg::{Id, Language};

use super::analysis::Layer;
use super::effects::leaf_effects;
use super::language::{Carrier, Chunk, Leaf, LeafPhase, Payload, Route};
use super::saturate::Saturated;
use crate::ir::{Component, Step};

/// A node of a class: one way to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alternative {
    /// An op.
    Leaf(Leaf),
    /// Classes, one after the other.
    Seq(Vec<usize>),
    /// Classes, in any order.
    Par(Vec<usize>),
}

/// The programs of a layer, without ops that there are not and what cannot do without them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternatives {
    /// Equal programs.
    pub classes: Vec<Vec<Alternative>>,
    /// Class of the forward and class of the backward. One that is empty has no program.
    pub roots: [usize; 2],
    layer: Layer,
}

/// An op of a form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FormOp {
    /// What it is.
    pub leaf: Leaf,
    /// Ops that must have ended before it starts, none of which another one implies. They stand earlier in the list.
    pub needs: Vec<u32>,
}

/// A layer's ops.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Form {
    /// Forward.
    pub f: Vec<FormOp>,
    /// Backward for the input.
    pub i: Vec<FormOp>,
    /// Weight gradients. They need ops of `i`.
    pub w: Vec<FormOp>,
    /// What is not as in the plain program, in words.
    pub rewrites: Vec<String>,
}

impl Alternatives {
    /// Of a saturated e-graph. Its ops are those whose load is known.
    pub fn new(saturated: &Saturated) -> Self {
        let programs = &saturated.programs;
        let possible = |node: &Chunk| match node {
            Chunk::Leaf(leaf) => programs.analysis.load(leaf).is_some(),
            Chunk::Seq(parts) | Chunk::Par(parts) => parts.iter().all(|&part| programs[part].data.least.is_some()),
        };
        let nodes = |class: Id| programs[class].iter().filter(move |node| possible(node));
        let roots = [saturated.forward, saturated.backward].map(|root| programs.find(root));
        let mut reached: BTreeSet<Id> = BTreeSet::new();
        let mut open = roots.to_vec();
        while let Some(class) = open.pop() {
            if reached.insert(class) {
                open.extend(nodes(class).flat_map(|node| node.children()).map(|&child| programs.find(child)));
            }
        }
        let known: BTreeMap<Id, usize> = reached.iter().enumerate().map(|(index, &class)| (class, index)).collect();
        let indices = |ids: &[Id]| ids.iter().map(|&id| known[&programs.find(id)]).collect();
        let alternative = |node: &Chunk| match node {
            Chunk::Leaf(leaf) => Alternative::Leaf(*leaf),
            Chunk::Seq(parts) => Alternative::Seq(indices(parts)),
            Chunk::Par(parts) => Alternative::Par(indices(parts)),
        };
        Self {
            classes: reached.iter().map(|&class| nodes(class).map(alternative).collect()).collect(),
            roots: roots.map(|root| known[&root]),
            layer: programs.analysis.layer,
        }
    }

    /// The ops of what was chosen: for each class that is needed, which of its nodes. `None` if a choice is missing, names
    /// no node, or leads back to itself.
    pub fn form(&self, chosen: &[Option<usize>]) -> Option<Form> {
        let [forward, backward] = self.roots;
        let (f, i) = (self.ops(forward, chosen)?, self.ops(backward, chosen)?);
        let weight_gradients = |ops: &Ordered| -> Vec<usize> {
            (0..ops.leaves.len()).filter(|&op| ops.leaves[op].phase == LeafPhase::W).collect()
        };
        let weights = weight_gradients(&i);
        let inputs: Vec<usize> = (0..i.leaves.len()).filter(|op| !weights.contains(op)).collect();
        let all: Vec<usize> = (0..f.leaves.len()).collect();
        let gives = |input: usize, weight: usize| {
            let [input, weight] = [input, weight].map(|op| leaf_effects(&i.leaves[op], self.layer));
            !input.independent(&weight)
        };
        Some(Form {
            f: f.listed(&all, &all, |_, _| true),
            i: i.listed(&inputs, &inputs, |_, _| true),
            w: i.listed(&weights, &inputs, gives),
            rewrites: [in_words(&f), in_words(&i)].concat(),
        })
    }

    fn ops(&self, root: usize, chosen: &[Option<usize>]) -> Option<Ordered> {
        let mut ops = Ordered::default();
        self.append(root, chosen, self.classes.len(), &BTreeSet::new(), &mut ops)?;
        Some(ops)
    }

    /// Appends a class after the ops `entry`; returns the ops after which what follows it may start. `depth`: how many
    /// classes may still be inside each other.
    fn append(
        &self,
        class: usize,
        chosen: &[Option<usize>],
        depth: usize,
        entry: &BTreeSet<usize>,
        ops: &mut Ordered,
    ) -> Option<BTreeSet<usize>> {
        let inside = depth.checked_sub(1)?;
        match self.classes.get(class)?.get((*chosen.get(class)?)?)? {
            Alternative::Leaf(leaf) => Some(ops.add(*leaf, entry)),
            Alternative::Seq(parts) => {
                let mut last = entry.clone();
                for &part in parts {
                    last = self.append(part, chosen, inside, &last, ops)?;
                }
                Some(last)
            }
            Alternative::Par(parts) => {
                let mut last = BTreeSet::new();
                for &part in parts {
                    last.extend(self.append(part, chosen, inside, entry, ops)?);
                }
                Some(last)
            }
        }
    }
}

impl Alternative {
    /// The classes that it needs, all of them.
    pub fn parts(&self) -> &[usize] {
        match self {
            Self::Leaf(_) => &[],
            Self::Seq(parts) | Self::Par(parts) => parts,
        }
    }
}

/// Ops of a program, in one of the orders that it allows.
#[derive(Default)]
struct Ordered {
    leaves: Vec<Leaf>,
    /// For each op, all that come before it in every order.
    before: Vec<BTreeSet<usize>>,
}

impl Ordered {
    /// Adds an op after `entry`. A backward is its two phases.
    fn add(&mut self, leaf: Leaf, entry: &BTreeSet<usize>) -> BTreeSet<usize> {
        if leaf.phase == LeafPhase::B {
            let input = self.add(Leaf { phase: LeafPhase::I, ..leaf }, entry);
            return self.add(Leaf { phase: LeafPhase::W, ..leaf }, &input);
        }
        let before = entry.iter().flat_map(|&op| self.before[op].iter().copied().chain([op])).collect();
        self.leaves.push(leaf);
        self.before.push(before);
        BTreeSet::from([self.leaves.len() - 1])
    }

    /// The ops `listed`, needing those of `needed` that come before them and for which `binds` holds.
    fn listed(&self, listed: &[usize], needed: &[usize], binds: impl Fn(usize, usize) -> bool) -> Vec<FormOp> {
        let needs = |op: usize| -> Vec<u32> {
            let binding = |other: &usize| self.before[op].contains(other) && binds(*other, op);
            let all: Vec<usize> = needed.iter().copied().filter(binding).collect();
            let implied = |one: usize| all.iter().any(|&other| self.before[other].contains(&one));
            (0..).zip(needed).filter(|(_, one)| all.contains(one) && !implied(**one)).map(|(index, _)| index).collect()
        };
        listed.iter().map(|&op| FormOp { leaf: self.leaves[op], needs: needs(op) }).collect()
    }

    /// The components of main ops that may run at the same time as an op, weight gradients aside.
    fn beside(&self, op: usize) -> Vec<&'static str> {
        let mut found = Vec::new();
        for (other, leaf) in self.leaves.iter().enumerate() {
            let ordered = self.before[other].contains(&op) || self.before[op].contains(&other) || other == op;
            let name = name(leaf.component);
            if !ordered && leaf.step == Step::Main && leaf.phase != LeafPhase::W && !found.contains(&name) {
                found.push(name);
            }
        }
        found
    }
}

/// What differs from the plain program.
fn in_words(ops: &Ordered) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut say = |text: String| {
        if !words.contains(&text) {
            words.push(text);
        }
    };
    for (op, leaf) in ops.leaves.iter().enumerate() {
        let (phase, component) = (format!("{:?}", leaf.phase), name(leaf.component));
        let place = match ops.beside(op) {
            beside if beside.is_empty() => "is an op of its own".to_owned(),
            beside => format!("runs beside {}", joined(&beside)),
        };
        match leaf.step {
            Step::Shared if leaf.phase == LeafPhase::W => {
                say(format!("{phase}: the shared expert is an op of its own"))
            }
            Step::Shared => say(format!("{phase}: the shared expert {place}")),
            Step::Again => say(format!("{phase}: recomputation for {component} {place}")),
            Step::Main | Step::Quantise | Step::Pack => {}
        }
        if leaf.step == Step::Main && leaf.exchange.route == Route::TwoHop {
            say(format!("{phase}: {component} goes over the network once per node, then over NVLink"));
        }
        if leaf.step == Step::Main && leaf.exchange.payload == Payload::Fp8 {
            say(format!("{phase}: {component} sends FP8"));
        }
        if leaf.step == Step::Main && leaf.exchange.carrier == Carrier::CopyEngine {
            say(format!("{phase}: {component} is done by copy engines"));
        }
        if leaf.tokens.parts > 1 {
            let cut = |other: &&Leaf| other.tokens.parts > 1 && other.phase == leaf.phase && other.step == Step::Main;
            let mut names: Vec<&str> = Vec::new();
            for name in ops.leaves.iter().filter(cut).map(|leaf| name(leaf.component)) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            say(format!("{phase}: {} in {} parts of the tokens", joined(&names), leaf.tokens.parts));
        }
    }
    words
}

fn name(component: Component) -> &'static str {
    match component {
        Component::Embedding => "embedding",
        Component::Attention => "attention",
        Component::Dispatch => "dispatch",
        Component::Mlp => "experts",
        Component::Combine => "combine",
        Component::Head => "head",
    }
}

/// `a, b and c`.
fn joined(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
