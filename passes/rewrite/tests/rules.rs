use crate::passes::rewrite::analysis::{Layer, Load};
use crate::passes::rewrite::saturate::{Options, saturate};

#[test]
fn sizes() {
    for shared in [false, true] {
        for spans_nodes in [false, true] {
            let layer = Layer { shared, exchanges: true, spans_nodes, fp8: true };
            let saturated = saturate(layer, &|_| Some(Load::default()), &Options::default()).unwrap();
            println!("{layer:?} {:?} {} {} {}", saturated.stopped, saturated.iterations, saturated.nodes(), saturated.classes());
        }
    }
}
