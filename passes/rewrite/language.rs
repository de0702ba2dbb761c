//! The terms that are rewritten: `seq` and `par` over the ops of one layer, in text as s-expressions.
//!
//! `(seq a b c)` runs its parts one after the other, `(par a b)` in any order or at once. Both have any number of parts.
//! The constructors flatten (`seq` in `seq`, `par` in `par`) and leave out what has one part only, and `par` sorts its
//! parts, so no rule has to say that these are associative or commutative.

use std::fmt;
use std::str::FromStr;

use egg::{EGraph, FromOp, Id, Language, RecExpr};

use super::analysis::Facts;
use crate::ir::{Component, Step, Tokens};
pub use crate::passes::unit_work::pieces::{Carrier, ExchangeForm, Payload, Route};

/// How exchanges are in the plain program: each copy straight to the GPU that wants it.
pub const FLAT: ExchangeForm = ExchangeForm { route: Route::Flat, payload: Payload::AsGiven, carrier: Carrier::Sms };

/// The e-graph of a layer's programs.
pub type Programs<'a> = EGraph<Chunk, Facts<'a>>;

/// Most parts that tokens are cut into here; numbers of parts divide it.
pub const FINEST: u32 = 4;

/// A node of a program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chunk {
    /// One after the other.
    Seq(Box<[Id]>),
    /// In any order, or at once. Sorted.
    Par(Box<[Id]>),
    /// An op.
    Leaf(Leaf),
}

/// An op of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leaf {
    /// Which component.
    pub component: Component,
    /// Which part of training.
    pub phase: LeafPhase,
    /// Which part of the component's work.
    pub step: Step,
    /// On which tokens.
    pub tokens: Tokens,
    /// Which layer, or which occurrence of it: an e-graph makes equal terms one, and two layers' exchanges are not one.
    pub site: u16,
    /// Of exchanges and of packing: how.
    pub exchange: ExchangeForm,
    /// Of an MLP's main op and its recomputation: the shared expert is an op of its own.
    pub without_shared: bool,
    /// Of a main op in I: what is computed again is an op of its own.
    pub without_again: bool,
}

/// A phase, or the two of a backward in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeafPhase {
    /// Forward.
    F,
    /// Backward for input and weights.
    B,
    /// Backward for the input.
    I,
    /// Weight gradient.
    W,
}

impl Leaf {
    /// All that a component does in a phase.
    pub fn whole(component: Component, phase: LeafPhase, site: u16) -> Self {
        Self {
            component,
            phase,
            step: Step::Main,
            tokens: Tokens::ALL,
            site,
            exchange: FLAT,
            without_shared: false,
            without_again: false,
        }
    }

    /// Whether it is an all-to-all.
    pub fn is_exchange(&self) -> bool {
        matches!(self.component, Component::Dispatch | Component::Combine) && self.step == Step::Main
    }
}

/// A program that is being put together; its parts may be classes that the e-graph has already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// A class.
    Is(Id),
    /// An op.
    Leaf(Leaf),
    /// One after the other.
    Seq(Vec<Term>),
    /// In any order.
    Par(Vec<Term>),
}

impl Term {
    /// The ops that it names.
    pub fn leaves(&self) -> Vec<Leaf> {
        match self {
            Self::Is(_) => Vec::new(),
            Self::Leaf(leaf) => vec![*leaf],
            Self::Seq(parts) | Self::Par(parts) => parts.iter().flat_map(Self::leaves).collect(),
        }
    }

    /// Adds it to an e-graph.
    pub fn add_to(&self, programs: &mut Programs) -> Id {
        self.build(&mut |node| programs.add(node))
    }

    /// As an expression of its own; `None` if it has a part that is a class.
    pub fn expression(&self) -> Option<RecExpr<Chunk>> {
        if self.has_class() {
            return None;
        }
        let mut expression = RecExpr::default();
        self.build(&mut |node| expression.add(node));
        Some(expression)
    }

    fn has_class(&self) -> bool {
        match self {
            Self::Is(_) => true,
            Self::Leaf(_) => false,
            Self::Seq(parts) | Self::Par(parts) => parts.iter().any(Self::has_class),
        }
    }

    fn build(&self, add: &mut dyn FnMut(Chunk) -> Id) -> Id {
        let parts = match self {
            Self::Is(id) => return *id,
            Self::Leaf(leaf) => return add(Chunk::Leaf(*leaf)),
            Self::Seq(_) | Self::Par(_) => self.parts(),
        };
        let ids: Vec<Id> = parts.iter().map(|part| part.build(add)).collect();
        match (ids.as_slice(), self) {
            (&[one], _) => one,
            (_, Self::Par(_)) => add(Chunk::par(ids)),
            _ => add(Chunk::Seq(ids.into())),
        }
    }

    /// Its parts, with those of the same kind opened.
    fn parts(&self) -> Vec<&Self> {
        match self {
            Self::Is(_) | Self::Leaf(_) => vec![self],
            Self::Seq(parts) => parts
                .iter()
                .flat_map(|part| if matches!(part, Self::Seq(_)) { part.parts() } else { vec![part] })
                .collect(),
            Self::Par(parts) => parts
                .iter()
                .flat_map(|part| if matches!(part, Self::Par(_)) { part.parts() } else { vec![part] })
                .collect(),
        }
    }
}

impl Chunk {
    /// The parts in any order.
    pub fn par(mut parts: Vec<Id>) -> Self {
        parts.sort_unstable();
        Self::Par(parts.into())
    }
}

impl Language for Chunk {
    type Discriminant = std::mem::Discriminant<Self>;

    fn discriminant(&self) -> Self::Discriminant {
        std::mem::discriminant(self)
    }

    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Seq(a), Self::Seq(b)) | (Self::Par(a), Self::Par(b)) => a.len() == b.len(),
            (Self::Leaf(a), Self::Leaf(b)) => a == b,
            _ => false,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            Self::Seq(parts) | Self::Par(parts) => parts,
            Self::Leaf(_) => &[],
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            Self::Seq(parts) | Self::Par(parts) => parts,
            Self::Leaf(_) => &mut [],
        }
    }

    /// Classes get new ids when they become one; `par` stays sorted all the same.
    fn update_children<F: FnMut(Id) -> Id>(&mut self, mut f: F) {
        self.children_mut().iter_mut().for_each(|id| *id = f(*id));
        if let Self::Par(parts) = self {
            parts.sort_unstable();
        }
    }
}

/// What is not a node of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSuchNode(String);

impl fmt::Display for NoSuchNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no part of a program", self.0)
    }
}

impl std::error::Error for NoSuchNode {}

impl FromOp for Chunk {
    type Error = NoSuchNode;

    fn from_op(op: &str, children: Vec<Id>) -> Result<Self, NoSuchNode> {
        match (op, children.len()) {
            ("seq", 2..) => Ok(Self::Seq(children.into())),
            ("par", 2..) => Ok(Self::par(children)),
            (_, 0) => op.parse().map(Self::Leaf),
            _ => Err(NoSuchNode(op.to_owned())),
        }
    }
}

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seq(_) => f.write_str("seq"),
            Self::Par(_) => f.write_str("par"),
            Self::Leaf(leaf) => leaf.fmt(f),
        }
    }
}

const COMPONENTS: [(&str, Component); 4] = [
    ("attention", Component::Attention),
    ("dispatch", Component::Dispatch),
    ("mlp", Component::Mlp),
    ("combine", Component::Combine),
];
const PHASES: [(&str, LeafPhase); 4] =
    [("F", LeafPhase::F), ("B", LeafPhase::B), ("I", LeafPhase::I), ("W", LeafPhase::W)];
const STEPS: [(&str, Step); 4] =
    [("shared", Step::Shared), ("again", Step::Again), ("quantise", Step::Quantise), ("pack", Step::Pack)];

fn by_name<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

fn name_of<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> Option<&'static str> {
    table.iter().find(|(_, known)| known == value).map(|(name, _)| *name)
}

/// `mlp.I.no-shared.0/2@3`: component, phase, then what is not as usual: step, form, tokens, site.
impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let component = name_of(&COMPONENTS, &self.component).unwrap_or("other");
        let phase = name_of(&PHASES, &self.phase).unwrap_or("");
        write!(f, "{component}.{phase}")?;
        let flags = [
            (name_of(&STEPS, &self.step).unwrap_or(""), self.step != Step::Main),
            ("two-hop", self.exchange.route == Route::TwoHop),
            ("fp8", self.exchange.payload == Payload::Fp8),
            ("copy", self.exchange.carrier == Carrier::CopyEngine),
            ("no-shared", self.without_shared),
            ("no-again", self.without_again),
        ];
        for (name, _) in flags.iter().filter(|(_, set)| *set) {
            write!(f, ".{name}")?;
        }
        if !self.tokens.is_all() {
            write!(f, ".{}/{}", self.tokens.part, self.tokens.parts)?;
        }
        if self.site != 0 {
            write!(f, "@{}", self.site)?;
        }
        Ok(())
    }
}

impl FromStr for Leaf {
    type Err = NoSuchNode;

    fn from_str(text: &str) -> Result<Self, NoSuchNode> {
        parse_leaf(text).ok_or_else(|| NoSuchNode(text.to_owned()))
    }
}

fn parse_leaf(text: &str) -> Option<Leaf> {
    let (text, site) = match text.split_once('@') {
        Some((text, site)) => (text, site.parse().ok()?),
        None => (text, 0),
    };
    let mut words = text.split('.');
    let component = by_name(&COMPONENTS, words.next()?)?;
    let phase = by_name(&PHASES, words.next()?)?;
    let mut leaf = Leaf::whole(component, phase, site);
    for word in words {
        match word {
            "two-hop" => leaf.exchange.route = Route::TwoHop,
            "fp8" => leaf.exchange.payload = Payload::Fp8,
            "copy" => leaf.exchange.carrier = Carrier::CopyEngine,
            "no-shared" => leaf.without_shared = true,
            "no-again" => leaf.without_again = true,
            _ => match (by_name(&STEPS, word), word.split_once('/')) {
                (Some(step), _) => leaf.step = step,
                (None, Some((part, parts))) => leaf.tokens = tokens(part.parse().ok()?, parts.parse().ok()?)?,
                (None, None) => return None,
            },
        }
    }
    Some(leaf)
}

/// Parts that [`FINEST`] allows.
fn tokens(part: u32, parts: u32) -> Option<Tokens> {
    (parts > 0 && part < parts && FINEST.is_multiple_of(parts)).then_some(Tokens { part, parts })
}
