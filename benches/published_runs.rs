//! Published training runs against the simulator: `docs/published-runs.md` is made of what this prints.
//!
//!     cargo bench --bench published_runs

#[path = "../tests/common/published.rs"]
mod published;

fn main() {
    println!("| run | tokens/s per GPU, published | simulated | error | computing | exposed | idle | |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut errors = Vec::new();
    for run in published::runs() {
        if !run.is_job() {
            println!("| {} | | | | | | | {} |", run.name, run.left_out);
            continue;
        }
        let outcome = run.outcome();
        let [busy, exposed, bubble] = outcome.shares.map(|share| 100.0 * share);
        println!(
            "| {} | {:.0} | {:.0} | {:+.1} % | {busy:.0} % | {exposed:.0} % | {bubble:.0} % | {} |",
            run.name,
            outcome.published,
            outcome.simulated,
            100.0 * outcome.error(),
            run.left_out
        );
        if run.left_out.is_empty() {
            errors.push(outcome.error().abs());
        }
    }
    errors.sort_by(f64::total_cmp);
    let middle = errors.len() / 2;
    let median =
        if errors.len().is_multiple_of(2) { (errors[middle - 1] + errors[middle]) / 2.0 } else { errors[middle] };
    println!("\n{} rows counted, median error {:.1} %.", errors.len(), 100.0 * median);
}
