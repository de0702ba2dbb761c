//! The rewrite rules. Each looks at one node of the e-graph and gives terms that are equal to it; `README.md` beside this
//! file has a table of them and says how to write one.
//!
//! Rules only go from the plain program outwards: an e-graph keeps what it started from, so no rule has to lead back.
//! What a rule makes is used only if all its ops exist (`Facts::load` knows).

use egg::{Applier, Id, Language, PatternAst, Rewrite, SearchMatches, Searcher, Subst, Symbol, Var};

use super::analysis::Facts;
use super::effects::includes_shared;
use super::language::{Carrier, Chunk, FLAT, Leaf, LeafPhase, Payload, Programs, Route, Term};
use crate::ir::{Component, Step, Tokens};

/// A rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What options and reports call it.
    pub name: &'static str,
    /// Terms equal to a node.
    find: fn(&Programs, &Chunk) -> Vec<Term>,
}

/// Every rule, in the order in which they are tried.
pub const RULES: [Rule; 12] = [
    Rule { name: "split-backward", find: split_backward },
    Rule { name: "flatten", find: flatten },
    Rule { name: "defer-weight-gradient", find: defer_weight_gradient },
    Rule { name: "float-weight-gradient", find: float_weight_gradient },
    Rule { name: "shared-beside", find: shared_beside },
    Rule { name: "float-shared", find: float_shared },
    Rule { name: "two-hop", find: two_hop },
    Rule { name: "fp8-payload", find: fp8_payload },
    Rule { name: "copy-engine", find: copy_engine },
    Rule { name: "split-tokens", find: split_tokens },
    Rule { name: "recompute", find: recompute },
    Rule { name: "float-recompute", find: float_recompute },
];

impl Rule {
    /// As egg has them.
    pub fn rewrite<'a>(self) -> Result<Rewrite<Chunk, Facts<'a>>, String> {
        Rewrite::new(self.name, self, self)
    }

    /// What it makes of a node, but for programs with ops that there are not.
    fn terms(&self, programs: &Programs, node: &Chunk) -> Vec<Term> {
        let exists = |leaf: &Leaf| programs.analysis.load(leaf).is_some();
        let mut terms = (self.find)(programs, node);
        terms.retain(|term| term.leaves().iter().all(exists));
        terms
    }
}

/// A class in which some node can be rewritten.
impl<'a> Searcher<Chunk, Facts<'a>> for Rule {
    fn search_eclass_with_limit(
        &self,
        programs: &Programs<'a>,
        class: Id,
        limit: usize,
    ) -> Option<SearchMatches<'_, Chunk>> {
        let found = limit > 0 && programs[class].iter().any(|node| !self.terms(programs, node).is_empty());
        found.then(|| SearchMatches { eclass: class, substs: vec![Subst::default()], ast: None })
    }

    fn vars(&self) -> Vec<Var> {
        Vec::new()
    }
}

/// Rewrites every node of the class.
impl<'a> Applier<Chunk, Facts<'a>> for Rule {
    fn apply_one(
        &self,
        programs: &mut Programs<'a>,
        class: Id,
        _: &Subst,
        _: Option<&PatternAst<Chunk>>,
        _: Symbol,
    ) -> Vec<Id> {
        let nodes: Vec<Chunk> = programs[class].iter().cloned().collect();
        let terms: Vec<Term> = nodes.iter().flat_map(|node| self.terms(programs, node)).collect();
        let mut changed = Vec::new();
        for term in terms {
            let id = term.add_to(programs);
            if programs.union(class, id) {
                changed.push(id);
            }
        }
        changed
    }
}

/// A backward is its input gradient, then its weight gradient.
fn split_backward(_: &Programs, node: &Chunk) -> Vec<Term> {
    match node {
        Chunk::Leaf(leaf) if leaf.phase == LeafPhase::B => {
            let half = |phase| Term::Leaf(Leaf { phase, ..*leaf });
            vec![Term::Seq(vec![half(LeafPhase::I), half(LeafPhase::W)])]
        }
        _ => Vec::new(),
    }
}

/// A split backward among other ops is two of them.
fn flatten(programs: &Programs, node: &Chunk) -> Vec<Term> {
    let Chunk::Seq(parts) = node else { return Vec::new() };
    let mut found = Vec::new();
    for (at, &part) in parts.iter().enumerate() {
        for inner in sequences(programs, part) {
            if inner.last().is_some_and(|&last| is_weight_gradient(programs, last)) {
                found.push(replaced(parts, at, at + 1, inner.iter().map(|&id| Term::Is(id))));
            }
        }
    }
    found
}

/// A weight gradient changes places with what comes next.
fn defer_weight_gradient(programs: &Programs, node: &Chunk) -> Vec<Term> {
    let Chunk::Seq(parts) = node else { return Vec::new() };
    let movable = |at: usize| {
        let (weight, next) = (parts[at], parts[at + 1]);
        is_weight_gradient(programs, weight)
            && !is_weight_gradient(programs, next)
            && independent(programs, weight, next)
    };
    let swapped = |at: usize| replaced(parts, at, at + 2, [parts[at + 1], parts[at]].map(Term::Is));
    (0..parts.len().saturating_sub(1)).filter(|&at| movable(at)).map(swapped).collect()
}

/// A weight gradient runs beside all that follows and does not touch what it touches.
fn float_weight_gradient(programs: &Programs, node: &Chunk) -> Vec<Term> {
    let Chunk::Seq(parts) = node else { return Vec::new() };
    let mut found = Vec::new();
    for (at, &weight) in parts.iter().enumerate().filter(|(_, part)| is_weight_gradient(programs, **part)) {
        let after = parts[at + 1..].iter().take_while(|&&next| independent(programs, weight, next)).count();
        if after > 0 {
            let end = at + 1 + after;
            let beside = Term::Par(vec![Term::Is(weight), sequence(&parts[at + 1..end])]);
            found.push(replaced(parts, at, end, [beside]));
        }
    }
    found
}

/// The shared expert is an op of its own.
fn shared_beside(programs: &Programs, node: &Chunk) -> Vec<Term> {
    match node {
        Chunk::Leaf(leaf)
            if includes_shared(leaf, programs.analysis.layer) && leaf.phase != LeafPhase::B && !leaf.without_again =>
        {
            let shared = Leaf { step: Step::Shared, ..*leaf };
            vec![Term::Par(vec![Term::Leaf(shared), Term::Leaf(Leaf { without_shared: true, ..*leaf })])]
        }
        _ => Vec::new(),
    }
}

/// The shared expert runs beside all around it that neither makes what it reads nor reads what it makes.
fn float_shared(programs: &Programs, node: &Chunk) -> Vec<Term> {
    let Chunk::Seq(parts) = node else { return Vec::new() };
    let mut found = Vec::new();
    for (at, &part) in parts.iter().enumerate() {
        for beside in programs[part].iter() {
            let Chunk::Par(members) = beside else { continue };
            for &shared in members.iter().filter(|member| is_shared(programs, **member)) {
                let free = |other: &&Id| independent(programs, shared, **other);
                let start = at - parts[..at].iter().rev().take_while(free).count();
                let end = at + 1 + parts[at + 1..].iter().take_while(free).count();
                if end - start > 1 {
                    let rest = members.iter().filter(|member| **member != shared).map(|&id| Term::Is(id)).collect();
                    let others = replaced(&parts[start..end], at - start, at - start + 1, [Term::Par(rest)]);
                    found.push(replaced(parts, start, end, [Term::Par(vec![Term::Is(shared), others])]));
                }
            }
        }
    }
    found
}

/// An exchange goes over the network once per node, and from there over NVLink.
fn two_hop(programs: &Programs, node: &Chunk) -> Vec<Term> {
    match plain_exchange(node) {
        Some(leaf) if programs.analysis.layer.spans_nodes && leaf.exchange.route == Route::Flat => {
            let mut leaf = leaf;
            leaf.exchange.route = Route::TwoHop;
            vec![Term::Leaf(leaf)]
        }
        _ => Vec::new(),
    }
}

/// An exchange sends FP8.
fn fp8_payload(programs: &Programs, node: &Chunk) -> Vec<Term> {
    match plain_exchange(node) {
        Some(leaf) if programs.analysis.layer.fp8 && leaf.exchange.payload == Payload::AsGiven => {
            let quantise = Leaf { step: Step::Quantise, exchange: FLAT, ..leaf };
            let mut narrow = leaf;
            narrow.exchange.payload = Payload::Fp8;
            vec![Term::Seq(vec![Term::Leaf(quantise), Term::Leaf(narrow)])]
        }
        _ => Vec::new(),
    }
}

/// An exchange within a node is done by a copy engine.
fn copy_engine(programs: &Programs, node: &Chunk) -> Vec<Term> {
    match plain_exchange(node) {
        Some(leaf) if !programs.analysis.layer.spans_nodes => {
            let pack = Leaf { step: Step::Pack, ..leaf };
            let mut copy = leaf;
            copy.exchange.carrier = Carrier::CopyEngine;
            vec![Term::Seq(vec![Term::Leaf(pack), Term::Leaf(copy)])]
        }
        _ => Vec::new(),
    }
}

/// The way to the experts and back, in two halves of the tokens.
fn split_tokens(programs: &Programs, node: &Chunk) -> Vec<Term> {
    let Chunk::Seq(parts) = node else { return Vec::new() };
    let mut found = Vec::new();
    for (at, window) in parts.windows(3).enumerate() {
        if let Some(chain) = experts_chain(programs, window) {
            let half = |part| {
                let leaf = |leaf: Leaf| Term::Leaf(Leaf { tokens: Tokens { part, parts: 2 }, ..leaf });
                Term::Seq(chain.map(leaf).to_vec())
            };
            found.push(replaced(parts, at, at + 3, [Term::Par(vec![half(0), half(1)])]));
        }
    }
    found
}

/// Recomputation is an op of its own.
fn recompute(programs: &Programs, node: &Chunk) -> Vec<Term> {
    match node {
        Chunk::Leaf(leaf)
            if leaf.phase == LeafPhase::I
                && leaf.step == Step::Main
                && !leaf.is_exchange()
                && !leaf.without_again
                && !includes_shared(leaf, programs.analysis.layer) =>
        {
            let again = Leaf { step: Step::Again, ..*leaf };
            vec![Term::Seq(vec![Term::Leaf(again), Term::Leaf(Leaf { without_again: true, ..*leaf })])]
        }
        _ => Vec::new(),
    }
}

/// Recomputation reads only what F kept, so it runs beside the exchange in front.
fn float_recompute(programs: &Programs, node: &Chunk) -> Vec<Term> {
    let Chunk::Seq(parts) = node else { return Vec::new() };
    let mut found = Vec::new();
    for (at, pair) in parts.windows(2).enumerate() {
        if !programs[pair[0]].data.effects.exchanges {
            continue;
        }
        for inner in sequences(programs, pair[1]) {
            let Some((&again, rest)) = inner.split_first() else { continue };
            if is_again(programs, again) && independent(programs, pair[0], again) {
                let beside = Term::Par(vec![Term::Is(pair[0]), Term::Is(again)]);
                found.push(replaced(parts, at, at + 2, [beside, sequence(rest)]));
            }
        }
    }
    found
}

/// Exchange, experts and exchange of one layer and phase, on all tokens, if that is what three parts are. With the shared
/// expert's work in it an MLP op is no link of the chain: that work does not wait for the exchange.
fn experts_chain(programs: &Programs, parts: &[Id]) -> Option<[Leaf; 3]> {
    let &[first, second, third] = parts else { return None };
    let plain =
        |leaf: &Leaf| leaf.tokens.is_all() && leaf.step == Step::Main && leaf.exchange == FLAT && !leaf.without_again;
    let op = |class| leaf_of(programs, class, plain);
    let chain = [op(first)?, op(second)?, op(third)?];
    let experts = &chain[1];
    let components = match experts.phase {
        LeafPhase::F => [Component::Dispatch, Component::Mlp, Component::Combine],
        LeafPhase::I => [Component::Combine, Component::Mlp, Component::Dispatch],
        LeafPhase::W | LeafPhase::B => return None,
    };
    let alike = chain.iter().all(|leaf| leaf.phase == experts.phase && leaf.site == experts.site);
    let is_chain = alike && chain.map(|leaf| leaf.component) == components;
    (is_chain && !includes_shared(experts, programs.analysis.layer)).then_some(chain)
}

/// An exchange by SMs.
fn plain_exchange(node: &Chunk) -> Option<Leaf> {
    match node {
        Chunk::Leaf(leaf) if leaf.is_exchange() && leaf.exchange.carrier == Carrier::Sms => Some(*leaf),
        _ => None,
    }
}

fn independent(programs: &Programs, one: Id, other: Id) -> bool {
    programs[one].data.effects.independent(&programs[other].data.effects)
}

fn is_weight_gradient(programs: &Programs, class: Id) -> bool {
    leaf_of(programs, class, |leaf| leaf.phase == LeafPhase::W).is_some()
}

fn is_shared(programs: &Programs, class: Id) -> bool {
    leaf_of(programs, class, |leaf| leaf.step == Step::Shared && leaf.phase != LeafPhase::W).is_some()
}

fn is_again(programs: &Programs, class: Id) -> bool {
    leaf_of(programs, class, |leaf| leaf.step == Step::Again).is_some()
}

fn leaf_of(programs: &Programs, class: Id, wanted: impl Fn(&Leaf) -> bool) -> Option<Leaf> {
    programs[class].iter().find_map(|node| match node {
        Chunk::Leaf(leaf) if wanted(leaf) => Some(*leaf),
        _ => None,
    })
}

/// The sequences in a class.
fn sequences<'g>(programs: &'g Programs, class: Id) -> impl Iterator<Item = &'g [Id]> {
    programs[class].iter().filter(|node| matches!(node, Chunk::Seq(_))).map(Language::children)
}

fn sequence(parts: &[Id]) -> Term {
    Term::Seq(parts.iter().map(|&id| Term::Is(id)).collect())
}

/// The sequence of `parts` with `by` in the place of `start..end`.
fn replaced(parts: &[Id], start: usize, end: usize, by: impl IntoIterator<Item = Term>) -> Term {
    let are = |ids: &[Id]| ids.iter().map(|&id| Term::Is(id)).collect::<Vec<_>>();
    let mut all = are(&parts[..start]);
    all.extend(by);
    all.extend(are(&parts[end..]));
    Term::Seq(all)
}
