//! Each rule: where it leads, that both sides give the same numbers, and where it must not lead.

use std::collections::BTreeSet;

use super::{Layer, ROUTED_ONLY, SPREAD, reaches, results, rounded, saturated_from, term};
use crate::passes::rewrite::rules::RULES;

/// From one term to another, by these rules.
struct Leads {
    rules: &'static [&'static str],
    layer: Layer,
    from: &'static str,
    to: &'static str,
}

const FP8: Layer = Layer { fp8: true, ..SPREAD };

const LEADS: &[Leads] = &[
    Leads { rules: &["split-backward"], layer: SPREAD, from: "mlp.B", to: "(seq mlp.I mlp.W)" },
    Leads { rules: &["split-backward"], layer: SPREAD, from: "attention.B", to: "(seq attention.I attention.W)" },
    Leads {
        rules: &["split-backward", "flatten"],
        layer: SPREAD,
        from: "(seq combine.I mlp.B dispatch.I)",
        to: "(seq combine.I mlp.I mlp.W dispatch.I)",
    },
    Leads {
        rules: &["defer-weight-gradient"],
        layer: SPREAD,
        from: "(seq mlp.I mlp.W dispatch.I attention.I)",
        to: "(seq mlp.I dispatch.I attention.I mlp.W)",
    },
    Leads {
        rules: &["float-weight-gradient"],
        layer: SPREAD,
        from: "(seq combine.I mlp.I mlp.W dispatch.I attention.I attention.W)",
        to: "(seq combine.I mlp.I (par mlp.W (seq dispatch.I attention.I attention.W)))",
    },
    Leads { rules: &["shared-beside"], layer: SPREAD, from: "mlp.F", to: "(par mlp.F.shared mlp.F.no-shared)" },
    Leads { rules: &["shared-beside"], layer: SPREAD, from: "mlp.I", to: "(par mlp.I.shared mlp.I.no-shared)" },
    Leads { rules: &["shared-beside"], layer: SPREAD, from: "mlp.W", to: "(par mlp.W.shared mlp.W.no-shared)" },
    Leads {
        rules: &["shared-beside", "float-shared"],
        layer: SPREAD,
        from: "(seq attention.F dispatch.F mlp.F combine.F)",
        to: "(seq attention.F (par mlp.F.shared (seq dispatch.F mlp.F.no-shared combine.F)))",
    },
    Leads {
        rules: &["shared-beside", "float-shared"],
        layer: SPREAD,
        from: "(seq combine.I mlp.I dispatch.I attention.I)",
        to: "(seq (par mlp.I.shared (seq combine.I mlp.I.no-shared dispatch.I)) attention.I)",
    },
    Leads { rules: &["two-hop"], layer: SPREAD, from: "dispatch.F", to: "dispatch.F.two-hop" },
    Leads { rules: &["two-hop"], layer: SPREAD, from: "combine.F", to: "combine.F.two-hop" },
    Leads { rules: &["two-hop"], layer: SPREAD, from: "combine.I.1/2", to: "combine.I.two-hop.1/2" },
    Leads { rules: &["two-hop"], layer: SPREAD, from: "dispatch.I", to: "dispatch.I.two-hop" },
    Leads { rules: &["fp8-payload"], layer: FP8, from: "dispatch.F", to: "(seq dispatch.F.quantise dispatch.F.fp8)" },
    Leads { rules: &["fp8-payload"], layer: FP8, from: "combine.F", to: "(seq combine.F.quantise combine.F.fp8)" },
    Leads {
        rules: &["fp8-payload", "two-hop"],
        layer: FP8,
        from: "dispatch.I",
        to: "(seq dispatch.I.quantise dispatch.I.two-hop.fp8)",
    },
    Leads {
        rules: &["copy-engine"],
        layer: ROUTED_ONLY,
        from: "dispatch.F",
        to: "(seq dispatch.F.pack dispatch.F.copy)",
    },
    Leads { rules: &["copy-engine"], layer: ROUTED_ONLY, from: "combine.F", to: "(seq combine.F.pack combine.F.copy)" },
    Leads { rules: &["copy-engine"], layer: ROUTED_ONLY, from: "combine.I", to: "(seq combine.I.pack combine.I.copy)" },
    Leads {
        rules: &["copy-engine", "fp8-payload"],
        layer: Layer { fp8: true, ..ROUTED_ONLY },
        from: "dispatch.I",
        to: "(seq dispatch.I.quantise (seq dispatch.I.pack.fp8 dispatch.I.fp8.copy))",
    },
    Leads {
        rules: &["split-tokens"],
        layer: ROUTED_ONLY,
        from: "(seq attention.F dispatch.F mlp.F combine.F)",
        to: "(seq attention.F (par (seq dispatch.F.0/2 mlp.F.0/2 combine.F.0/2) (seq dispatch.F.1/2 mlp.F.1/2 combine.F.1/2)))",
    },
    Leads {
        rules: &["split-tokens"],
        layer: SPREAD,
        from: "(seq combine.I mlp.I.no-shared dispatch.I)",
        to: "(par (seq combine.I.0/2 mlp.I.no-shared.0/2 dispatch.I.0/2) (seq combine.I.1/2 mlp.I.no-shared.1/2 dispatch.I.1/2))",
    },
    Leads { rules: &["recompute"], layer: ROUTED_ONLY, from: "mlp.I", to: "(seq mlp.I.again mlp.I.no-again)" },
    Leads {
        rules: &["recompute"],
        layer: SPREAD,
        from: "attention.I",
        to: "(seq attention.I.again attention.I.no-again)",
    },
    Leads {
        rules: &["recompute"],
        layer: SPREAD,
        from: "mlp.I.no-shared.1/2",
        to: "(seq mlp.I.again.no-shared.1/2 mlp.I.no-shared.no-again.1/2)",
    },
    Leads {
        rules: &["recompute", "float-recompute"],
        layer: SPREAD,
        from: "(seq combine.I mlp.I.no-shared dispatch.I attention.I)",
        to: "(seq (par combine.I mlp.I.again.no-shared) mlp.I.no-shared.no-again (par dispatch.I attention.I.again) attention.I.no-again)",
    },
];

#[test]
fn rules_lead_where_they_should() {
    for Leads { rules, layer, from, to } in LEADS {
        assert!(reaches(*layer, rules, from, to), "{rules:?} do not lead from {from} to {to}");
        for rule in *rules {
            let others: Vec<&str> = rules.iter().copied().filter(|other| other != rule).collect();
            assert!(!reaches(*layer, &others, from, to), "{from} to {to} does not need {rule}");
        }
    }
    let tested: BTreeSet<&str> = LEADS.iter().flat_map(|leads| leads.rules.iter().copied()).collect();
    assert_eq!(tested, RULES.iter().map(|rule| rule.name).collect());
}

#[test]
fn both_sides_give_the_same_in_every_order() {
    for Leads { layer, from, to, .. } in LEADS {
        let (from, to) = (term(from), term(to));
        let fp8 = rounded(&to.leaves());
        assert_eq!(results(*layer, &from, &fp8).unwrap(), results(*layer, &to, &fp8).unwrap(), "{to:?}");
    }
}

/// A term that no rule may lead to, and whether the numbers say so too (else there is just no such op).
struct Wrong {
    layer: Layer,
    from: &'static str,
    to: &'static str,
    differs: bool,
}

const WRONG: &[Wrong] = &[
    // A weight gradient beside the op that makes what it reads, or one that writes over it.
    Wrong { layer: SPREAD, from: "(seq mlp.I mlp.W)", to: "(par mlp.I mlp.W)", differs: true },
    Wrong { layer: SPREAD, from: "(seq mlp.W mlp.F)", to: "(par mlp.W mlp.F)", differs: true },
    Wrong {
        layer: SPREAD,
        from: "(seq attention.W dispatch.F mlp.F attention.F)",
        to: "(par attention.W (seq dispatch.F mlp.F attention.F))",
        differs: true,
    },
    Wrong { layer: SPREAD, from: "(seq mlp.W mlp.I)", to: "(seq mlp.I mlp.W)", differs: true },
    // Two additions to one accumulator: floating-point sums depend on their order, if not these integers.
    Wrong { layer: SPREAD, from: "(seq mlp.B mlp.B)", to: "(seq mlp.I (par mlp.W mlp.B))", differs: false },
    // The shared expert before what it reads, or after what reads it.
    Wrong {
        layer: SPREAD,
        from: "(seq attention.F mlp.F)",
        to: "(par mlp.F.shared (seq attention.F mlp.F.no-shared))",
        differs: true,
    },
    Wrong {
        layer: SPREAD,
        from: "(seq mlp.I attention.I)",
        to: "(par mlp.I.shared (seq mlp.I.no-shared attention.I))",
        differs: true,
    },
    // Exchanges in forms that there are not.
    Wrong { layer: ROUTED_ONLY, from: "dispatch.F", to: "dispatch.F.two-hop", differs: false },
    Wrong { layer: SPREAD, from: "dispatch.F", to: "(seq dispatch.F.quantise dispatch.F.fp8)", differs: true },
    Wrong { layer: SPREAD, from: "dispatch.F", to: "(seq dispatch.F.pack dispatch.F.copy)", differs: false },
    Wrong {
        layer: ROUTED_ONLY,
        from: "dispatch.F",
        to: "(seq dispatch.F.pack (seq dispatch.F.pack dispatch.F.copy))",
        differs: false,
    },
    // Halves of tokens: attention looks at earlier ones, W adds up all, a chain is of one layer and in its order.
    Wrong {
        layer: ROUTED_ONLY,
        from: "(seq attention.F dispatch.F mlp.F)",
        to: "(par (seq attention.F.0/2 dispatch.F.0/2 mlp.F.0/2) (seq attention.F.1/2 dispatch.F.1/2 mlp.F.1/2))",
        differs: true,
    },
    Wrong {
        layer: ROUTED_ONLY,
        from: "(seq combine.F mlp.F dispatch.F)",
        to: "(par (seq combine.F.0/2 mlp.F.0/2 dispatch.F.0/2) (seq combine.F.1/2 mlp.F.1/2 dispatch.F.1/2))",
        differs: false,
    },
    Wrong {
        layer: ROUTED_ONLY,
        from: "(seq combine.I mlp.W dispatch.I)",
        to: "(par (seq combine.I.0/2 mlp.W.0/2 dispatch.I.0/2) (seq combine.I.1/2 mlp.W.1/2 dispatch.I.1/2))",
        differs: false,
    },
    Wrong {
        layer: ROUTED_ONLY,
        from: "(seq dispatch.F@1 mlp.F@2 combine.F@1)",
        to: "(par (seq dispatch.F.0/2@1 mlp.F.0/2@2 combine.F.0/2@1) (seq dispatch.F.1/2@1 mlp.F.1/2@2 combine.F.1/2@1))",
        differs: false,
    },
    Wrong {
        layer: SPREAD,
        from: "(seq dispatch.F mlp.F combine.F)",
        to: "(par (seq dispatch.F.0/2 mlp.F.0/2 combine.F.0/2) (seq dispatch.F.1/2 mlp.F.1/2 combine.F.1/2))",
        differs: false,
    },
    // Recomputation from what a forward has just written over; with the shared expert's inside.
    Wrong {
        layer: ROUTED_ONLY,
        from: "(seq (par combine.I mlp.F) mlp.I mlp.W)",
        to: "(seq (par (par combine.I mlp.F) mlp.I.again) mlp.I.no-again mlp.W)",
        differs: true,
    },
    Wrong { layer: SPREAD, from: "mlp.I", to: "(seq mlp.I.again mlp.I.no-again)", differs: false },
    // Beside what is no exchange it would gain nothing.
    Wrong {
        layer: SPREAD,
        from: "(seq attention.F@1 attention.I)",
        to: "(seq (par attention.F@1 attention.I.again) attention.I.no-again)",
        differs: false,
    },
    Wrong { layer: ROUTED_ONLY, from: "mlp.F", to: "(seq mlp.F.again mlp.F.no-again)", differs: false },
];

fn all_rules() -> Vec<&'static str> {
    RULES.iter().map(|rule| rule.name).collect()
}

#[test]
fn rules_do_not_lead_where_they_must_not() {
    for Wrong { layer, from, to, differs } in WRONG {
        assert!(!reaches(*layer, &all_rules(), from, to), "{from} became {to}");
        let none = BTreeSet::new();
        if *differs {
            let [right, wrong] = [from, to].map(|text| results(*layer, &term(text), &none));
            let right = right.unwrap_or_else(|error| panic!("{from}: {error}"));
            assert!(wrong.as_ref() != Ok(&right), "{from} and {to} are equal after all");
        }
    }
}

#[test]
fn forms_of_an_exchange_are_all_and_once() {
    let leaves = |layer, from| {
        let saturated = saturated_from(layer, &all_rules(), &term(from));
        let nodes = saturated.programs.classes().flat_map(|class| class.iter());
        nodes.filter(|node| matches!(node, super::Chunk::Leaf(_))).map(ToString::to_string).collect::<BTreeSet<_>>()
    };
    let within = Layer { fp8: true, ..ROUTED_ONLY };
    let expected = ["dispatch.F", "dispatch.F.quantise", "dispatch.F.fp8", "dispatch.F.pack", "dispatch.F.copy"];
    let expected = expected.into_iter().chain(["dispatch.F.pack.fp8", "dispatch.F.fp8.copy"]).map(str::to_owned);
    assert_eq!(leaves(within, "dispatch.F"), expected.collect());
    let expected =
        ["dispatch.F", "dispatch.F.two-hop", "dispatch.F.quantise", "dispatch.F.fp8", "dispatch.F.two-hop.fp8"];
    assert_eq!(leaves(FP8, "dispatch.F"), expected.map(str::to_owned).into());
}
