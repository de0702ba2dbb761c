//! Forms of programs chosen by hand.

use super::{ROUTED_ONLY, SPREAD, anything, term};
use crate::passes::rewrite::analysis::Layer;
use crate::passes::rewrite::forms::{Alternative, Alternatives, Form, FormOp};
use crate::passes::rewrite::language::Term;
use crate::passes::rewrite::saturate::{Options, saturate};

/// Chooses the nodes that make up `term`, if the class has it.
fn choose(programs: &Alternatives, class: usize, term: &Term, chosen: &mut Vec<Option<usize>>) -> bool {
    for (index, node) in programs.classes[class].iter().enumerate() {
        let mut with = chosen.clone();
        with[class] = Some(index);
        let found = match (node, term) {
            (Alternative::Leaf(leaf), Term::Leaf(wanted)) => leaf == wanted,
            (Alternative::Seq(parts), Term::Seq(terms)) => {
                parts.len() == terms.len()
                    && parts.iter().zip(terms).all(|(&part, term)| choose(programs, part, term, &mut with))
            }
            (Alternative::Par(parts), Term::Par(terms)) => {
                let mut used = vec![false; terms.len()];
                parts.len() == terms.len()
                    && parts.iter().all(|&part| {
                        let free = (0..terms.len()).find(|&n| !used[n] && choose(programs, part, &terms[n], &mut with));
                        free.map(|n| used[n] = true).is_some()
                    })
            }
            _ => false,
        };
        if found {
            *chosen = with;
            return true;
        }
    }
    false
}

fn form(layer: Layer, forward: &str, backward: &str) -> Form {
    let programs = Alternatives::new(&saturate(layer, &anything, &Options::default()).unwrap());
    let mut chosen = vec![None; programs.classes.len()];
    for (root, text) in programs.roots.into_iter().zip([forward, backward]) {
        assert!(choose(&programs, root, &term(text), &mut chosen), "{text} is not reached");
    }
    programs.form(&chosen).unwrap()
}

/// One op a line, with what it needs.
fn written(ops: &[FormOp]) -> Vec<String> {
    ops.iter().map(|op| format!("{} {:?}", op.leaf, op.needs)).collect()
}

#[test]
fn the_plain_program() {
    let plain =
        form(SPREAD, "(seq attention.F dispatch.F mlp.F combine.F)", "(seq combine.I mlp.B dispatch.I attention.B)");
    assert_eq!(written(&plain.f), ["attention.F []", "dispatch.F [0]", "mlp.F [1]", "combine.F [2]"]);
    assert_eq!(written(&plain.i), ["combine.I []", "mlp.I [0]", "dispatch.I [1]", "attention.I [2]"]);
    assert_eq!(written(&plain.w), ["mlp.W [1]", "attention.W [3]"]);
    assert!(plain.rewrites.is_empty());
}

#[test]
fn a_shared_expert_beside_the_routed_ones() {
    let form = form(
        SPREAD,
        "(seq attention.F (par mlp.F.shared (seq dispatch.F.two-hop mlp.F.no-shared combine.F)))",
        "(seq (par mlp.I.shared (seq combine.I mlp.I.no-shared dispatch.I)) \
         (par (par mlp.W.shared mlp.W.no-shared) (seq attention.I attention.W)))",
    );
    let at = |wanted: &str| form.f.iter().position(|op| op.leaf.to_string() == wanted).unwrap();
    assert_eq!(form.f[at("mlp.F.shared")].needs, [0]);
    assert_eq!(form.f[at("dispatch.F.two-hop")].needs, [0]);
    assert_eq!(form.f[at("combine.F")].needs, [at("mlp.F.no-shared") as u32]);
    let at = |wanted: &str| form.i.iter().position(|op| op.leaf.to_string() == wanted).unwrap() as u32;
    let mut last = vec![at("mlp.I.shared"), at("dispatch.I")];
    last.sort();
    assert_eq!(form.i[at("attention.I") as usize].needs, last);
    let mut w = written(&form.w);
    w.sort();
    // Each needs its own part's input gradient and no other, although the term puts them after both.
    let mut expected = vec![
        format!("attention.W [{}]", at("attention.I")),
        format!("mlp.W.no-shared [{}]", at("mlp.I.no-shared")),
        format!("mlp.W.shared [{}]", at("mlp.I.shared")),
    ];
    expected.sort();
    assert_eq!(w, expected);
    assert_eq!(
        form.rewrites,
        [
            "F: the shared expert runs beside dispatch, experts and combine",
            "F: dispatch goes over the network once per node, then over NVLink",
            "I: the shared expert runs beside combine, experts and dispatch",
            "W: the shared expert is an op of its own",
        ]
    );
}

#[test]
fn halves_and_what_is_computed_again() {
    let form = form(
        ROUTED_ONLY,
        "(seq attention.F (par (seq dispatch.F.0/2 mlp.F.0/2 combine.F.0/2) \
         (seq dispatch.F.1/2 mlp.F.1/2 combine.F.1/2)))",
        "(seq (par mlp.I.again combine.I) mlp.I.no-again mlp.W (par dispatch.I attention.I.again) \
         attention.I.no-again attention.W)",
    );
    let needs = |ops: &[FormOp]| ops.iter().map(|op| op.needs.clone()).collect::<Vec<_>>();
    assert_eq!(needs(&form.f), [vec![], vec![0], vec![1], vec![2], vec![0], vec![4], vec![5]]);
    assert_eq!(form.f.iter().filter(|op| op.leaf.tokens.parts == 2).count(), 6);
    assert_eq!(form.i.last().map(|op| op.leaf.to_string()).as_deref(), Some("attention.I.no-again"));
    let mut beside = written(&form.i)[3..5].to_vec();
    beside.sort();
    assert_eq!(beside, ["attention.I.again [2]", "dispatch.I [2]"]);
    assert_eq!(written(&form.i)[2], "mlp.I.no-again [0, 1]");
    assert_eq!(written(&form.i)[5..], ["attention.I.no-again [3, 4]"]);
    assert_eq!(written(&form.w), ["mlp.W [2]", "attention.W [5]"]);
    assert_eq!(
        form.rewrites,
        [
            "F: dispatch, experts and combine in 2 parts of the tokens",
            "I: recomputation for experts runs beside combine",
            "I: recomputation for attention runs beside dispatch",
        ]
    );
}

#[test]
fn exchanges_in_other_forms() {
    let form = form(
        Layer { fp8: true, ..ROUTED_ONLY },
        "(seq attention.F (seq dispatch.F.quantise (seq dispatch.F.pack.fp8 dispatch.F.fp8.copy)) mlp.F combine.F)",
        "(seq combine.I mlp.B dispatch.I attention.B)",
    );
    assert_eq!(form.rewrites, ["F: dispatch sends FP8", "F: dispatch is done by copy engines"]);
}

/// Shared expert beside halves of the tokens, two hops, FP8, recomputation beside the exchanges, weight gradients last.
#[test]
fn everything_at_once() {
    let f = "(seq dispatch.F.two-hop.N/2 mlp.F.no-shared.N/2 (seq combine.F.quantise.N/2 combine.F.fp8.N/2))";
    let i = "(seq (par combine.I.two-hop.N/2 mlp.I.again.no-shared.N/2) mlp.I.no-shared.no-again.N/2 dispatch.I.N/2)";
    let both = |half: &str| format!("(par {} {})", half.replace('N', "0"), half.replace('N', "1"));
    let form = form(
        Layer { fp8: true, ..SPREAD },
        &format!("(seq attention.F (par mlp.F.shared {}))", both(f)),
        &format!(
            "(seq (par (par mlp.I.shared {}) attention.I.again) attention.I.no-again \
             (par (par mlp.W.shared mlp.W.no-shared) attention.W))",
            both(i)
        ),
    );
    assert_eq!((form.f.len(), form.i.len(), form.w.len()), (10, 11, 3));
    assert_eq!(
        form.rewrites,
        [
            "F: the shared expert runs beside dispatch, experts and combine",
            "F: dispatch goes over the network once per node, then over NVLink",
            "F: dispatch, experts and combine in 2 parts of the tokens",
            "F: combine sends FP8",
            "I: recomputation for attention runs beside combine, experts and dispatch",
            "I: the shared expert runs beside combine, experts and dispatch",
            "I: combine goes over the network once per node, then over NVLink",
            "I: combine, experts and dispatch in 2 parts of the tokens",
            "I: recomputation for experts runs beside combine, experts and dispatch",
            "W: the shared expert is an op of its own",
        ]
    );
}

#[test]
fn what_is_no_choice_has_no_form() {
    let programs = Alternatives::new(&saturate(SPREAD, &anything, &Options::default()).unwrap());
    let classes = programs.classes.len();
    for chosen in [vec![None; classes], vec![Some(usize::MAX); classes], Vec::new()] {
        assert_eq!(programs.form(&chosen), None);
    }
    // A graph whose class leads back to itself.
    let mut around = programs;
    (around.classes, around.roots) = (vec![vec![Alternative::Seq(vec![0, 0])]], [0, 0]);
    assert_eq!(around.form(&[Some(0)]), None);
}
