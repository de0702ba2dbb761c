//! Rules in numbers: what they make equal is equal in every order, and where they must not be used the numbers differ.

mod forms;
mod orders;
mod programs;
mod rules;
mod text;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use egg::RecExpr;

use super::analysis::{Layer, Load};
use super::effects::{Effects, leaf_effects};
use super::language::{Chunk, Leaf, LeafPhase, Payload, Term};
use super::rules::RULES;
use super::saturate::{Options, Saturated, saturate_from};
use orders::{Dice, Partial};
use world::{Exchanged, World};

/// Experts on several nodes, with a shared expert.
const SPREAD: Layer = Layer { shared: true, exchanges: true, spans_nodes: true, fp8: false };
/// Experts within a node, without a shared expert.
const ROUTED_ONLY: Layer = Layer { shared: false, exchanges: true, spans_nodes: false, fp8: false };

/// Every layer that there can be.
fn layers() -> impl Iterator<Item = Layer> {
    let flag = || [false, true].into_iter();
    let spread = flag().flat_map(move |exchanges| flag().map(move |spans_nodes| (exchanges, spans_nodes)));
    let spread = spread.filter(|(exchanges, spans_nodes)| *exchanges || !*spans_nodes);
    spread.flat_map(move |(exchanges, spans_nodes)| {
        flag().flat_map(move |shared| flag().map(move |fp8| Layer { shared, exchanges, spans_nodes, fp8 }))
    })
}

/// Every op is there and costs nothing.
fn anything(_: &Leaf) -> Option<Load> {
    Some(Load::default())
}

/// The term of a text.
fn term(text: &str) -> Term {
    let expression: RecExpr<Chunk> = text.parse().unwrap();
    let nodes = expression.as_ref();
    fn at(nodes: &[Chunk], index: usize) -> Term {
        let parts = |ids: &[egg::Id]| ids.iter().map(|&id| at(nodes, id.into())).collect();
        match &nodes[index] {
            Chunk::Leaf(leaf) => Term::Leaf(*leaf),
            Chunk::Seq(ids) => Term::Seq(parts(ids)),
            Chunk::Par(ids) => Term::Par(parts(ids)),
        }
    }
    at(nodes, nodes.len() - 1)
}

/// The graph of `from` after these rules.
fn saturated_from<'a>(layer: Layer, rules: &[&str], from: &Term) -> Saturated<'a> {
    let off = RULES.iter().map(|rule| rule.name).filter(|name| !rules.contains(name)).map(str::to_owned).collect();
    saturate_from(layer, &anything, &Options { off, ..Options::default() }, [from, from]).unwrap()
}

/// Whether these rules lead from one term to the other.
fn reaches(layer: Layer, rules: &[&str], from: &str, to: &str) -> bool {
    let saturated = saturated_from(layer, rules, &term(from));
    let to: RecExpr<Chunk> = to.parse().unwrap();
    saturated.programs.lookup_expr(&to) == Some(saturated.forward)
}

/// The exchanges that a program does in FP8.
fn rounded(leaves: &[Leaf]) -> BTreeSet<Exchanged> {
    let fp8 = leaves.iter().filter(|leaf| leaf.is_exchange() && leaf.exchange.payload == Payload::Fp8);
    fp8.flat_map(|leaf| world::tokens(leaf).map(|token| (leaf.component, leaf.phase, token))).collect()
}

/// A world in which a term can run. Every value is there, from an earlier run of the whole layer, and none is what an op of
/// the term would make of the others, so that an op which comes too early is noticed.
fn prepared(layer: Layer, term: &Term, rounded: BTreeSet<Exchanged>) -> World {
    let leaves = term.leaves();
    let sites: BTreeSet<u16> = leaves.iter().map(|leaf| leaf.site).collect();
    let mut before = Vec::new();
    for &site in &sites {
        let [forward, backward] = super::saturate::plain(layer, site);
        before.extend(forward.leaves());
        let input = |leaf: Leaf| Leaf { phase: LeafPhase::I, ..leaf };
        before.extend(backward.leaves().into_iter().map(input));
    }
    World::new(layer, &sites.into_iter().collect::<Vec<_>>(), rounded).run(&before).unwrap().stale()
}

/// What a term reads and writes, seen from outside.
fn effects(layer: Layer, term: &Term) -> Effects {
    let of = |parts: &[Term]| parts.iter().map(|part| effects(layer, part)).collect::<Vec<_>>();
    match term {
        Term::Is(_) => panic!("a class has no ops of its own"),
        Term::Leaf(leaf) => leaf_effects(leaf, layer),
        Term::Seq(parts) => Effects::one_after_the_other(of(parts).iter()),
        Term::Par(parts) => Effects::side_by_side(of(parts).iter()),
    }
}

/// Values with their numbers.
type Seen = BTreeMap<(super::effects::Value, u32), BTreeMap<(usize, usize, usize), Vec<i64>>>;

/// What a term leaves, in every order that it allows (or very many of them). Different results are an error, and so is
/// an op that reads what is not there.
fn results(layer: Layer, term: &Term, rounded: &BTreeSet<Exchanged>) -> Result<Seen, String> {
    let world = prepared(layer, term, rounded.clone());
    let partial = Partial::of(term);
    let effects = effects(layer, term);
    let mut first: Option<Seen> = None;
    for order in partial.orders(2_000, &mut Dice::new(1)) {
        let leaves: Vec<Leaf> = order.iter().map(|&op| partial.leaves[op]).collect();
        let seen = world.clone().run(&leaves)?.left(&effects);
        match &first {
            Some(first) if *first != seen => return Err(format!("another result in the order {leaves:?}")),
            Some(_) => {}
            None => first = Some(seen),
        }
    }
    first.ok_or_else(|| "no order".to_owned())
}
