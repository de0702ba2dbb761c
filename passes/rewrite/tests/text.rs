//! Terms as text.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use super::term;
use crate::ir::{Component, Step, Tokens};
use crate::passes::rewrite::language::{Carrier, ExchangeForm, Leaf, LeafPhase, Payload, Route, Term};

fn leaf() -> impl Strategy<Value = Leaf> {
    let component =
        prop::sample::select(vec![Component::Attention, Component::Dispatch, Component::Mlp, Component::Combine]);
    let phase = prop::sample::select(vec![LeafPhase::F, LeafPhase::B, LeafPhase::I, LeafPhase::W]);
    let step = prop::sample::select(vec![Step::Main, Step::Shared, Step::Again, Step::Quantise, Step::Pack]);
    let tokens = prop::sample::select(vec![(0, 1), (0, 2), (1, 2), (3, 4)]);
    let what = (component, phase, step, tokens, 0u16..3);
    (what, any::<[bool; 5]>()).prop_map(|((component, phase, step, (part, parts), site), flags)| {
        let [two_hop, fp8, copy, without_shared, without_again] = flags;
        let exchange = ExchangeForm {
            route: if two_hop { Route::TwoHop } else { Route::Flat },
            payload: if fp8 { Payload::Fp8 } else { Payload::AsGiven },
            carrier: if copy { Carrier::CopyEngine } else { Carrier::Sms },
        };
        Leaf { component, phase, step, tokens: Tokens { part, parts }, site, exchange, without_shared, without_again }
    })
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, rng_seed: RngSeed::Fixed(0), ..Config::default() })]

    #[test]
    fn an_op_is_read_as_it_is_written(leaf in leaf()) {
        prop_assert_eq!(leaf.to_string().parse::<Leaf>(), Ok(leaf));
    }
}

#[test]
fn what_is_no_op_is_refused() {
    for text in ["", "mlp", "mlp.X", "head.F", "mlp.F.quick", "mlp.F.1/1", "mlp.F.0/3", "mlp.F.0/0", "mlp.F@70000"] {
        assert!(text.parse::<Leaf>().is_err(), "{text}");
    }
    for text in ["(seq mlp.F)", "(par)", "(mlp.F mlp.W)"] {
        assert!(text.parse::<egg::RecExpr<crate::passes::rewrite::language::Chunk>>().is_err(), "{text}");
    }
}

#[test]
fn terms_are_flat_and_the_order_in_par_is_none() {
    let written = |term: &Term| term.expression().unwrap().to_string();
    let nested = Term::Seq(vec![
        term("(seq attention.F dispatch.F)"),
        Term::Par(vec![Term::Seq(vec![term("mlp.F")]), term("(par combine.F mlp.W)")]),
    ]);
    assert_eq!(written(&nested), "(seq attention.F dispatch.F (par mlp.F combine.F mlp.W))");
    assert!(super::reaches(super::SPREAD, &[], "(par mlp.F combine.F)", "(par combine.F mlp.F)"));
    assert!(!super::reaches(super::SPREAD, &[], "(seq mlp.F combine.F)", "(seq combine.F mlp.F)"));
}
