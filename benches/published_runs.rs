//! Published training runs against the simulator: `docs/published-runs.md` is made of what this prints.
//!
//!     cargo bench --bench published_runs

#[path = "../tests/common/published.rs"]
mod published;

use published::{MegatronLayer, Outcome, megatron_layers};

fn main() {
    println!(
        "| run | tokens/s per GPU, published | simulated | error | computing | exposed | idle | a layer: GPU | host | |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut outcomes = Vec::new();
    for run in published::runs() {
        if !run.is_job() {
            println!("| {} | | | | | | | | | | {} |", run.name, run.left_out);
            continue;
        }
        let outcome = run.outcome();
        let [busy, exposed, bubble] = outcome.shares.map(|share| 100.0 * share);
        println!(
            "| {} | {:.0} | {:.0} | {:+.1} % | {:.0} | {busy:.0} % | {exposed:.0} % | {bubble:.0} % | {:.1} ms | {} | {} |",
            run.name,
            outcome.published,
            outcome.simulated,
            100.0 * outcome.error(),
            outcome.gpu,
            outcome.layer_ms,
            outcome.host_ms.map_or(String::new(), |host| format!("{host:.1} ms")),
            run.left_out
        );
        if run.left_out.is_empty() {
            outcomes.push(outcome);
        }
    }
    let (host, gpu): (Vec<_>, Vec<_>) = outcomes.iter().partition(|outcome| outcome.is_limited_by_host());
    let all: Vec<&Outcome> = outcomes.iter().collect();
    for (rows, which) in [(gpu, "limited by the GPU"), (host, "limited by the host"), (all, "in all")] {
        println!("\n{} rows {which}, median error {:.1} %.", rows.len(), 100.0 * median(&rows));
    }
    println!("\n| layer of Megatron-Core, ms | tokens | kernels, simulated | measured | with the host, measured |");
    println!("|---|---|---|---|---|");
    for layer in megatron_layers() {
        let MegatronLayer { name, tokens, busy, steady, .. } = &layer;
        println!("| {name} | {tokens} | {:.2} | {busy:.2} | {steady:.1} |", layer.simulated());
    }
}

fn median(outcomes: &[&Outcome]) -> f64 {
    let mut errors: Vec<f64> = outcomes.iter().map(|outcome| outcome.error().abs()).collect();
    errors.sort_by(f64::total_cmp);
    let middle = errors.len() / 2;
    match errors.len() {
        0 => 0.0,
        count if count.is_multiple_of(2) => (errors[middle - 1] + errors[middle]) / 2.0,
        _ => errors[middle],
    }
}
