//! Published training runs against the simulator, one of each kind. All of them: `cargo bench --bench published_runs`.

#[path = "common/published.rs"]
mod published;

use std::fmt::Write as _;

/// Nothing is fitted to any of them. What the machine model's constants come from: `src/machine`.
#[test]
fn one_of_each() {
    let all = published::runs();
    let mut text = String::from("run: tokens/s per GPU published, simulated, error; time of the ranks; a layer\n");
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
            "{name}: {published:.0}, {simulated:.0}, {:+.1} %; {busy} % computing, {exposed} % exposed, {bubble} % idle; \
             GPU {:.1} ms, host {}",
            100.0 * error,
            outcome.layer_ms,
            outcome.host_ms.map_or("not measured".to_owned(), |host| format!("{host:.1} ms")),
        );
        assert_eq!(outcome.is_limited_by_host(), name.ends_with("TP2EP32PP8 DeepEP"), "{text}");
        if name.starts_with("DeepSeek-V3") {
            assert!(error.abs() < 0.1, "{text}");
        }
    }
    snapshot("published_runs", &text);
    // Every row is either counted or says why it is not.
    assert!(all.iter().all(|run| run.is_job() || !run.left_out.is_empty()));
}

/// Layers of Megatron-Core that were timed on an H200: what the simulator says of their kernels, and that with few experts to a GPU the host,
/// which it does not have, takes longer.
#[test]
fn layers_of_megatron() {
    let mut text = String::from("layer, 4096 tokens: GPU simulated, measured, ratio; host, ms\n");
    let layers = published::megatron_layers();
    let (few, many): (Vec<_>, Vec<_>) = layers.iter().partition(|layer| layer.tokens == published::MegatronLayer::FEW);
    assert_eq!((few.len(), many.len()), (6, 6));
    for (host, layer) in few.iter().zip(&many) {
        assert_eq!(host.name, layer.name);
        let (simulated, measured) = (layer.simulated(), layer.busy);
        let ratio = simulated / measured;
        let _ = writeln!(text, "{}: {simulated:.2}, {measured:.2}, {ratio:.2}; {:.1}", layer.name, host.steady);
        assert!((0.85..1.0).contains(&ratio), "{text}");
    }
    snapshot("published_layers_of_megatron", &text);
}

fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}
