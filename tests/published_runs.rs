//! Published training runs against the simulator, one of each kind. All of them: `cargo bench --bench published_runs`.

#[path = "common/published.rs"]
mod published;

use std::fmt::Write as _;

/// Nothing is fitted to any of them. What the machine model's constants come from: `src/machine`.
#[test]
fn one_of_each() {
    let all = published::runs();
    let mut text = String::from("run: tokens/s per GPU published, simulated, error; time of the ranks\n");
    let kinds = [
        "DeepSeek-V3 pretraining",
        "LLAMA3_70B DGX-H100 25.11",
        "Mixtral-8x22B strong scaling MCore 256",
        "Qwen3-235B H100 seq16384",
        "Qwen3-235B H100 TP2EP32PP8 DeepEP",
    ];
    for name in kinds {
        let run = all.iter().find(|run| run.name == name).unwrap_or_else(|| panic!("{name} is not in the table"));
        let outcome = run.outcome();
        let error = outcome.error();
        let [busy, exposed, bubble] = outcome.shares.map(|share| (100.0 * share).round());
        let (published, simulated) = (outcome.published, outcome.simulated);
        let _ = writeln!(
            text,
            "{name}: {published:.0}, {simulated:.0}, {:+.1} %; {busy} % computing, {exposed} % exposed, {bubble} % idle",
            100.0 * error
        );
        if name.starts_with("DeepSeek-V3") {
            assert!(error.abs() < 0.1, "{text}");
        }
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("published_runs", text));
    // Every row is either counted or says why it is not.
    assert!(all.iter().all(|run| run.is_job() || !run.left_out.is_empty()));
}
