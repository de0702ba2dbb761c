//! All rules together, on every kind of layer.

use std::collections::BTreeSet;

use super::orders::{Dice, Partial};
use super::{anything, effects, layers, prepared, rounded};
use crate::passes::rewrite::analysis::{Layer, Load};
use crate::passes::rewrite::forms::{Alternative, Alternatives};
use crate::passes::rewrite::language::{Leaf, LeafPhase, Term};
use crate::passes::rewrite::saturate::{Options, Stopped, plain, saturate};
use crate::units::{Bytes, Nanos};

fn alternatives(layer: Layer) -> Alternatives {
    Alternatives::new(&saturate(layer, &anything, &Options::default()).unwrap())
}

/// A random alternative of every class.
fn random_choice(programs: &Alternatives, dice: &mut Dice) -> Vec<Option<usize>> {
    programs.classes.iter().map(|class| (!class.is_empty()).then(|| dice.below(class.len()))).collect()
}

fn chosen_term(programs: &Alternatives, chosen: &[Option<usize>], class: usize) -> Term {
    let parts = |parts: &[usize]| parts.iter().map(|&part| chosen_term(programs, chosen, part)).collect();
    match &programs.classes[class][chosen[class].unwrap()] {
        Alternative::Leaf(leaf) => Term::Leaf(*leaf),
        Alternative::Seq(of) => Term::Seq(parts(of)),
        Alternative::Par(of) => Term::Par(parts(of)),
    }
}

#[test]
fn saturation_ends_by_itself_and_soon() {
    for layer in layers() {
        let saturated = saturate(layer, &anything, &Options::default()).unwrap();
        assert_eq!(saturated.stopped, Stopped::Saturated, "{layer:?}");
        assert!(saturated.nodes() < 1_000 && saturated.iterations < 15, "{layer:?}: {}", saturated.nodes());
    }
}

#[test]
fn limits_are_kept_and_what_is_there_is_right() {
    let layer = Layer { shared: true, exchanges: true, spans_nodes: true, fp8: true };
    let options = Options { iterations: 2, ..Options::default() };
    let saturated = saturate(layer, &anything, &options).unwrap();
    assert_eq!((saturated.stopped, saturated.iterations), (Stopped::Limit, 2));
    let options = Options { nodes: 20, ..Options::default() };
    assert_eq!(saturate(layer, &anything, &options).unwrap().stopped, Stopped::Limit);
}

#[test]
fn an_unknown_rule_is_an_error_that_names_the_known_ones() {
    let layer = Layer { shared: true, exchanges: true, spans_nodes: true, fp8: true };
    let options = Options { off: BTreeSet::from(["two-hops".to_owned()]), ..Options::default() };
    let Err(error) = saturate(layer, &anything, &options) else { panic!("accepted") };
    assert!(error.message().contains("two-hops") && error.help_text().is_some_and(|help| help.contains("two-hop,")));
}

#[test]
fn the_same_graph_every_time() {
    for layer in layers() {
        assert_eq!(alternatives(layer), alternatives(layer));
    }
}

#[test]
fn no_program_is_part_of_itself() {
    fn depth(programs: &Alternatives, class: usize, known: &mut Vec<Option<usize>>, open: &mut Vec<usize>) -> usize {
        assert!(!open.contains(&class), "class {class} contains itself");
        if let Some(depth) = known[class] {
            return depth;
        }
        open.push(class);
        let parts: Vec<usize> = programs.classes[class].iter().flat_map(Alternative::parts).copied().collect();
        let deepest = parts.into_iter().map(|part| 1 + depth(programs, part, known, open)).max().unwrap_or(0);
        open.pop();
        known[class] = Some(deepest);
        deepest
    }
    for layer in layers() {
        let programs = alternatives(layer);
        for root in programs.roots {
            assert!(depth(&programs, root, &mut vec![None; programs.classes.len()], &mut Vec::new()) > 0);
        }
    }
}

/// Programs at random, and the ops that forms make of them: the numbers of the plain program in every order that is tried.
#[test]
fn every_program_gives_the_numbers_of_the_plain_one() {
    let mut dice = Dice::new(2);
    for layer in layers() {
        let [forward, backward] = plain(layer, 0);
        let programs = alternatives(layer);
        let mut seen_terms = BTreeSet::new();
        for _ in 0..20 {
            let chosen = random_choice(&programs, &mut dice);
            let [f, b] = programs.roots.map(|root| chosen_term(&programs, &chosen, root));
            let both = Term::Seq(vec![f, b]);
            let fp8 = rounded(&both.leaves());
            let visible = effects(layer, &both);
            let start = prepared(layer, &both, fp8);
            let expected = start.clone().run(&[forward.leaves(), backward.leaves()].concat()).unwrap().left(&visible);

            let partial = Partial::of(&both);
            let form = programs.form(&chosen).unwrap();
            let (f, b) = (Partial::of_form(&form.f, &[]), Partial::of_form(&form.i, &form.w));
            for _ in 0..4 {
                let order = partial.random_order(&mut dice);
                let leaves: Vec<Leaf> = order.iter().map(|&op| partial.leaves[op]).collect();
                assert_eq!(start.clone().run(&leaves).unwrap().left(&visible), expected, "{leaves:?}");
                let ops = |of: &Partial, dice: &mut Dice| -> Vec<Leaf> {
                    of.random_order(dice).iter().map(|&op| of.leaves[op]).collect()
                };
                let leaves: Vec<Leaf> = [ops(&f, &mut dice), ops(&b, &mut dice)].concat();
                assert_eq!(start.clone().run(&leaves).unwrap().left(&visible), expected, "{leaves:?}");
            }
            seen_terms.insert(format!("{both:?}"));
        }
        assert!(!layer.exchanges || seen_terms.len() > 10, "samples are too much alike");
    }
}

#[test]
fn an_op_is_asked_for_once() {
    let layer = Layer { shared: true, exchanges: true, spans_nodes: true, fp8: true };
    let asked = std::cell::RefCell::new(Vec::new());
    let load = |leaf: &Leaf| {
        asked.borrow_mut().push(*leaf);
        Some(Load::default())
    };
    Alternatives::new(&saturate(layer, &load, &Options::default()).unwrap());
    let different: BTreeSet<Leaf> = asked.borrow().iter().copied().collect();
    assert_eq!(asked.borrow().len(), different.len());
}

#[test]
fn every_rule_can_be_left_out() {
    let layer = Layer { shared: true, exchanges: true, spans_nodes: true, fp8: true };
    for rule in crate::passes::rewrite::rules::RULES {
        let options = Options { off: BTreeSet::from([rule.name.to_owned()]), ..Options::default() };
        let without = saturate(layer, &anything, &options).unwrap();
        let with = saturate(layer, &anything, &Options::default()).unwrap();
        assert_eq!(without.nodes() < with.nodes(), rule.name != "copy-engine", "{}", rule.name);
    }
}

/// Ops that there are not: nothing that needs them is left, and rules do not make them.
#[test]
fn programs_without_ops_that_there_are_not() {
    let layer = Layer { shared: true, exchanges: true, spans_nodes: true, fp8: true };
    let whole = |leaf: &Leaf| (leaf.tokens.is_all() && leaf.phase != LeafPhase::B).then(Load::default);
    let programs = Alternatives::new(&saturate(layer, &whole, &Options::default()).unwrap());
    let leaves = programs.classes.iter().flatten().filter_map(|node| match node {
        Alternative::Leaf(leaf) => Some(*leaf),
        _ => None,
    });
    assert!(leaves.clone().count() > 10 && leaves.clone().all(|leaf| whole(&leaf).is_some()));
    assert!(programs.roots.iter().all(|&root| !programs.classes[root].is_empty()));

    let no_attention = |leaf: &Leaf| (leaf.component != crate::ir::Component::Attention).then(Load::default);
    let saturated = saturate(layer, &no_attention, &Options::default()).unwrap();
    assert_eq!(saturated.least(), None);
    let programs = Alternatives::new(&saturated);
    assert!(programs.roots.iter().all(|&root| programs.classes[root].is_empty()));
    assert_eq!(programs.form(&vec![Some(0); programs.classes.len()]), None);
}

/// For each engine the least of any program: what random programs cost is never below, and the bound is met by one.
#[test]
fn least_loads_are_bounds() {
    let layer = Layer { shared: true, exchanges: true, spans_nodes: true, fp8: true };
    let load = |leaf: &Leaf| {
        let parts = u64::from(leaf.tokens.parts);
        let narrow = if leaf.exchange.payload == Default::default() { 2 } else { 1 };
        let bytes = |flat: u64, two_hop: u64| {
            Bytes(narrow * if leaf.exchange.route == Default::default() { flat } else { two_hop } / parts)
        };
        Some(match leaf.is_exchange() {
            true => Load { nvlink: bytes(40, 100), network: bytes(160, 80), ..Load::default() },
            false if leaf.phase == LeafPhase::B => Load { compute: Nanos(250), ..Load::default() },
            false => Load { compute: Nanos(100 / parts + 10), ..Load::default() },
        })
    };
    let saturated = saturate(layer, &load, &Options::default()).unwrap();
    let least = saturated.least().unwrap();
    let programs = Alternatives::new(&saturated);
    let mut dice = Dice::new(3);
    for _ in 0..200 {
        let form = programs.form(&random_choice(&programs, &mut dice)).unwrap();
        let ops = form.f.iter().chain(&form.i).map(|op| load(&op.leaf).unwrap());
        let (nvlink, network) = ops.fold((Bytes(0), Bytes(0)), |sum, load| (sum.0 + load.nvlink, sum.1 + load.network));
        assert!(nvlink >= least.nvlink && network >= least.network);
    }
    // Four exchanges: FP8, flat for NVLink, by two hops for the network. A half's bytes are half of them.
    assert_eq!((least.nvlink, least.network), (Bytes(4 * 40), Bytes(4 * 80)));
}
