//! A layer whose tokens and experts are spread over two ranks computes what one place computes, to the bit where sums have
//! one order.

#[path = "host_runtime/shapes.rs"]
mod shapes;

use std::ops::Range;

use dualweave::job::model::Precision;
use dualweave::runtime::host::layers::permutation::{ExpertRows, counts, divide, merge};
use dualweave::runtime::host::layers::router::RoutingGradient;
use dualweave::runtime::host::parameters::Parameters;
use dualweave::runtime::host::precision::Policy;
use dualweave::runtime::host::unit::attention::{self, AttentionGradient, AttentionOutput, Routed, RoutedGradient};
use dualweave::runtime::host::unit::exchange::{self, CombineSaved};
use dualweave::runtime::host::unit::layer::all_experts;
use dualweave::runtime::host::unit::{Layer, Mlp, mlp};
use dualweave::runtime::host::{Matrix, Shape};

/// The layer of the tested shapes that has experts on every rank.
const NUMBER: u32 = 1;
/// Sequences, of which the first rank has one and the second two.
const SEQUENCES: [Range<usize>; 2] = [0..1, 1..3];

/// The layer with some of its experts.
fn part(layer: &Layer<f32>, held: &Range<u32>) -> Layer<f32> {
    let mut part = layer.clone();
    match &mut part.mlp {
        Mlp::Experts(experts) => experts.experts.retain(|expert, _| held.contains(expert)),
        Mlp::Dense(_) => panic!("the layer has experts"),
    }
    part
}

fn noise(name: &str, rows: usize, columns: usize) -> Matrix<f32> {
    Matrix::new(rows, columns, shapes::noise(name, rows * columns)).cast()
}

/// What a rank keeps of its tokens between F and I.
struct Kept {
    attention: attention::Saved<f32>,
    routed: Routed<f32>,
    combine: CombineSaved<f32>,
    shared: Option<mlp::SharedSaved<f32>>,
    /// Rows that it sent to each rank's experts.
    sent: Vec<std::collections::BTreeMap<u32, usize>>,
}

/// Sends rows to the ranks that hold their experts, has `work` done there, and brings the results back: by rank, all rows.
fn exchanged(
    sent: &[Vec<ExpertRows<f32>>],
    counted: &[Vec<std::collections::BTreeMap<u32, usize>>],
    mut work: impl FnMut(usize, ExpertRows<f32>) -> ExpertRows<f32>,
) -> Vec<ExpertRows<f32>> {
    let mut back: Vec<ExpertRows<f32>> = vec![ExpertRows::new(); sent.len()];
    for holder in 0..sent.len() {
        let arrived: Vec<_> = sent.iter().map(|to| to[holder].clone()).collect();
        let results = work(holder, merge(&arrived));
        let by_rank: Vec<_> = counted.iter().map(|to| to[holder].clone()).collect();
        back.iter_mut().zip(divide(&results, &by_rank)).for_each(|(all, part)| all.extend(part));
    }
    back
}

/// `tolerance`: of sums that the ranks make apart.
fn two_ranks_are_one(shape: &Shape, tolerance: f32) {
    let layer = shapes::single(shape).layers.swap_remove(NUMBER as usize);
    let tokens = SEQUENCES.map(|range| range.start * shape.sequence..range.end * shape.sequence);
    let all = tokens[1].end;
    let (x, dy) = (noise("x", all, shape.hidden()), noise("dy", all, shape.hidden()));
    let experts = all_experts(shape);
    let held = [0..experts.end / 2, experts.end / 2..experts.end];
    let parts = held.clone().map(|held| part(&layer, &held));

    // F.
    let mut kept = Vec::new();
    let mut streams = Vec::new();
    let mut sent = Vec::new();
    for (rank, tokens) in tokens.iter().enumerate() {
        let (AttentionOutput { stream, routed }, attention) =
            parts[rank].attention_forward(shape, NUMBER, x.rows_of(tokens.clone()));
        let routed = routed.expect("a router");
        let rows: Vec<_> =
            held.iter().map(|held| exchange::dispatch(shape, &routed.tokens, &routed.routing, held.clone())).collect();
        kept.push((attention, routed));
        streams.push(stream);
        sent.push(rows);
    }
    let counted: Vec<Vec<_>> = sent.iter().map(|rows| rows.iter().map(counts).collect()).collect();
    let mut saved_experts = Vec::new();
    let results = exchanged(&sent, &counted, |holder, rows| {
        let (results, saved) = parts[holder].experts_forward(shape, rows);
        saved_experts.push(saved);
        results
    });
    let mut outputs = Vec::new();
    let mut keep = Vec::new();
    for (((attention, routed), stream), (rows, sent)) in
        kept.into_iter().zip(streams).zip(results.into_iter().zip(&counted))
    {
        let (shared_output, shared) = layer.shared_forward(shape, &routed.tokens, &routed.routing).unzip();
        let (y, combine) = exchange::combine(shape, rows, &routed.routing, shared_output.as_ref(), stream);
        outputs.push(y);
        keep.push(Kept { attention, routed, combine, shared, sent: sent.clone() });
    }
    let (y, saved) = layer.forward(shape, NUMBER, x);
    assert!(Matrix::below(&outputs.iter().collect::<Vec<_>>()) == y, "F");

    // I.
    let mut weights = Vec::new();
    let mut sent = Vec::new();
    for (kept, tokens) in keep.iter().zip(&tokens) {
        let dy = dy.rows_of(tokens.clone());
        let routing = &kept.routed.routing;
        let by_holder = held.iter().map(|held| exchange::combine_input_gradient(shape, routing, &dy, held.clone()));
        sent.push(by_holder.collect());
        weights.push(exchange::combine_routing_gradient(&kept.combine, routing, &dy));
    }
    let counted: Vec<_> = keep.iter().map(|kept| kept.sent.clone()).collect();
    let mut saved_experts = saved_experts.into_iter();
    let mut expert_weights = Vec::new();
    let results = exchanged(&sent, &counted, |holder, rows| {
        let saved = saved_experts.next().expect("as many as in F");
        let (results, needed) = parts[holder].experts_input_gradient(shape, saved, &rows);
        expert_weights.push(needed);
        results
    });
    let mut inputs = Vec::new();
    let mut own_weights = Vec::new();
    for (((kept, tokens), rows), weights) in keep.into_iter().zip(&tokens).zip(results).zip(weights) {
        let stream = dy.rows_of(tokens.clone());
        let mut d_tokens = exchange::dispatch_input_gradient(shape, rows, &kept.routed.routing);
        let shared =
            kept.shared.and_then(|saved| layer.shared_input_gradient(shape, saved, &kept.routed.routing, &stream));
        let (gradient, shared) = shared.unzip();
        let gate = gradient.and_then(|gradient| {
            d_tokens.add(&gradient.tokens);
            gradient.gate
        });
        let routed = RoutedGradient { tokens: d_tokens, routing: RoutingGradient { weights, shared: gate } };
        let gradient = AttentionGradient { stream, routed: Some(routed) };
        let (dx, attention) = layer.attention_input_gradient(shape, NUMBER, kept.attention, gradient);
        inputs.push(dx);
        own_weights.push((attention, shared));
    }
    let (dx, needed) = layer.input_gradient(shape, NUMBER, saved, dy);
    assert!(Matrix::below(&inputs.iter().collect::<Vec<_>>()) == dx, "I");

    // W, long after, and last first.
    let zeros = |held: &Range<u32>| Layer::<f32>::new(shape, true, held.clone());
    let mut gradients = held.each_ref().map(zeros);
    for (rank, needed) in expert_weights.iter().enumerate().rev() {
        gradients[rank].accumulate_experts(shape, needed);
    }
    for (rank, (attention, shared)) in own_weights.iter().enumerate().rev() {
        gradients[rank].accumulate_attention(shape, attention);
        if let Some(shared) = shared {
            gradients[rank].accumulate_shared(shape, shared);
        }
    }
    let mut at_once = zeros(&experts);
    at_once.accumulate(shape, &needed);
    for (name, whole) in at_once.tensors("") {
        let own = gradients.iter().flat_map(|gradients| gradients.tensors("").into_iter());
        let own: Vec<_> = own.filter(|(other, _)| *other == name).map(|(_, tensor)| &tensor.values).collect();
        if let [one] = own[..] {
            assert!(*one == whole.values, "W of {name}, which one rank has");
            continue;
        }
        // Both ranks have it, and their sums are added up.
        let mut sum = own[0].clone();
        sum.add(own[1]);
        let norm = |matrix: &Matrix<f32>| matrix.values().iter().map(|value| value * value).sum::<f32>().sqrt();
        let size = norm(&sum);
        sum.values_mut().iter_mut().zip(whole.values.values()).for_each(|(sum, whole)| *sum -= whole);
        assert!(norm(&sum) <= tolerance * size, "W of {name}");
    }
}

#[test]
fn with_a_gated_shared_expert() {
    two_ranks_are_one(&shapes::grouped_query(), 1e-6);
}

#[test]
fn with_groups_and_a_shared_expert() {
    two_ranks_are_one(&shapes::latent(), 1e-6);
}

#[test]
fn without_a_shared_expert() {
    two_ranks_are_one(&shapes::latent_tied(), 1e-6);
}

#[test]
fn in_eight_bits() {
    let policy = Policy::of(&Precision::default());
    // Tokens are quantised in other tiles where a rank sums over its own only.
    two_ranks_are_one(&Shape { policy, ..shapes::latent() }, 0.1);
}
