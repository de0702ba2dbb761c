//! Uneven loads of experts: what the fullest GPU computes, sends and holds; and that plans for it are safe and compute the same.

use std::path::Path;
use std::process::{Command, Output};

use dualweave::ir::{Component, Phase, Recompute, Unit, Work};
use dualweave::job::{Job, Overrides, load};
use dualweave::passes::unit_work::pieces::{self, ExchangeForm, Piece, Route};
use dualweave::passes::unit_work::{UnitWork, unit_work};
use dualweave::units::Bytes;

fn example(name: &str, imbalance: f64) -> Job {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).join("job.ron");
    let overrides = Overrides { imbalance: Some(imbalance), ..Overrides::default() };
    load(&path, &overrides).expect("the example").job
}

/// A layer of DeepSeek-V3, nothing computed again.
fn layer(job: &Job) -> UnitWork {
    unit_work(job, Unit::Moe(10), Recompute::NOTHING)
}

fn sent(job: &Job, component: Component, route: Route) -> [f64; 2] {
    let exchange = ExchangeForm { route, ..ExchangeForm::default() };
    match pieces::work(job, Unit::Moe(10), Recompute::NOTHING, &Piece { exchange, ..Piece::whole(component, Phase::F) })
    {
        Some(Work::Exchange { nvlink, network, .. }) => [nvlink.as_f64(), network.as_f64()],
        other => panic!("{other:?}"),
    }
}

/// FLOPs of a layer's MLP in all phases.
fn flops(work: &UnitWork) -> f64 {
    let ops = work.f.iter().chain(&work.i).chain(&work.w).filter(|op| op.component == Component::Mlp);
    ops.map(|op| op.work.flops().as_f64()).sum()
}

#[test]
fn even_loads_are_the_mean() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deepseek-v3/job.ron");
    let job = load(&path, &Overrides::default()).expect("the example").job;
    assert_eq!(layer(&example("deepseek-v3", 1.0)), layer(&job));
    assert!(!job.to_ron().contains("imbalance") && example("deepseek-v3", 1.5).to_ron().contains("imbalance: 1.5"));
}

/// DeepSeek-V3: 8 of 256 experts for each token, and a shared one as wide.
#[test]
fn the_fullest_computes_and_holds_more_of_the_routed_experts() {
    let even = layer(&example("deepseek-v3", 1.0));
    for factor in [1.25, 2.0, 5.5] {
        let job = example("deepseek-v3", factor);
        let full = layer(&job);
        let expected = (8.0 * factor + 1.0) / 9.0;
        assert!((flops(&full) / flops(&even) - expected).abs() < 1e-6);
        assert_eq!(full.parameters, even.parameters);
        let attention = |work: &UnitWork| {
            let ops = work.f.iter().filter(|op| op.component == Component::Attention).cloned().collect::<Vec<_>>();
            (ops, work.held.f_to_i.get(&Component::Attention).copied())
        };
        assert_eq!(attention(&full), attention(&even));
        // Inputs of routed experts are kept in FP8 as they came, 8 rows a token; the shared expert's is the router's.
        let until_w = |work: &UnitWork| work.held.f_to_w[&Component::Mlp].as_f64();
        let row = until_w(&full) - until_w(&even);
        let one_more = until_w(&layer(&example("deepseek-v3", 2.0))) - until_w(&even);
        assert!((row / one_more - (factor - 1.0)).abs() < 1e-3);
        // The buffer has a row for each copy that arrives.
        let more = full.exchange_buffer.as_f64() - even.exchange_buffer.as_f64();
        assert!(more >= (factor - 1.0) * 8.0 * 4096.0 * 2.0 * 7168.0, "{more}");
    }
}

/// What goes over each link, where it is known: with even loads, and where all tokens go to one GPU's experts.
#[test]
fn links_carry_what_the_fullest_receives() {
    let even = example("deepseek-v3", 1.0);
    // As many experts on a GPU as a token has: all can go to one GPU.
    let mut all = even.clone();
    all.training.ep = 32;
    all.training.imbalance = 32.0;
    all.check().expect("one GPU gets everything");
    let token = [(Component::Dispatch, 7168.0 + 4.0 * 56.0), (Component::Combine, 2.0 * 7168.0)];
    for (component, bytes) in token {
        let tokens = 4096.0 * bytes;
        // Two hops: every GPU of the 3 other nodes sends all its tokens to the GPU with its place there; which send those of all four nodes
        // over NVLink, but for the eighth that the fullest got itself.
        let [nvlink, network] = sent(&all, component, Route::TwoHop);
        assert!((network / tokens - 3.0).abs() < 1e-6, "{}", network / tokens);
        assert!((nvlink / tokens - 4.0 * 7.0).abs() < 1e-6, "{}", nvlink / tokens);
        // Flat: the 24 GPUs of other nodes over the network, the 7 others over NVLink.
        let [nvlink, network] = sent(&all, component, Route::Flat);
        assert!((network / tokens - 24.0).abs() < 1e-6 && (nvlink / tokens - 7.0).abs() < 1e-6);
    }
    // In between it only grows; over NVLink as the load does, over the network less, since a node has other GPUs too.
    let mut before = [1.0; 2];
    let base = sent(&even, Component::Dispatch, Route::TwoHop);
    for factor in [1.1, 1.5, 2.0, 4.0, 16.0, 32.0] {
        let [nvlink, network] = sent(&example("deepseek-v3", factor), Component::Dispatch, Route::TwoHop);
        let now = [nvlink / base[0], network / base[1]];
        assert!(now[0] >= before[0] && now[1] >= before[1] && now[1] <= now[0], "{factor}: {now:?}");
        assert!((now[0] - factor).abs() < 1e-6 || now[0] < factor);
        if factor <= 2.0 {
            // The 7 other GPUs of the node have (64 - X) / 63 of the mean.
            let node = (factor + 7.0 * (64.0 - factor) / 63.0) / 8.0;
            assert!((now[0] - factor).abs() < 1e-6 && (now[1] - node).abs() < 1e-6, "{factor}: {now:?}");
        }
        before = now;
    }
}

#[test]
fn fewer_gpus_can_get_less_more() {
    let mut job = example("deepseek-v3", 24.0);
    job.training.ep = 8;
    job.limit_imbalance();
    assert_eq!(job.training.imbalance, 8.0);
    job.training.ep = 1;
    job.limit_imbalance();
    job.check().expect("a job");
    assert_eq!((job.training.imbalance, layer(&job).exchange_buffer), (1.0, Bytes::ZERO));
}

fn command(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dualweave"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("it runs")
}

fn done(arguments: &[&str]) -> String {
    let output = command(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// It is a prediction: the plan is safe, and trains as any other.
#[test]
fn plans_for_uneven_loads_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let (even, uneven) = (path("even.ron"), path("uneven.ron"));
    let tiny = ["compile", "examples/tiny/job.ron", "--sequence", "64"];
    done(&[&tiny[..], &["-o", &even]].concat());
    done(&[&tiny[..], &["--imbalance", "2", "-o", &uneven]].concat());
    done(&["verify", &uneven]);
    done(&["run", &uneven, "--steps", "1", "--check"]);
    let number = |plan: &str, key: &str| {
        let told: serde_json::Value = serde_json::from_str(&done(&["simulate", plan, "--json"])).expect("JSON");
        told[key].as_u64().expect("a number")
    };
    assert!(number(&uneven, "step_ns") > number(&even, "step_ns"));
    assert!(done(&["simulate", &uneven]).contains("experts of the fullest GPU have 2 × the mean of tokens"));
    assert!(!done(&["simulate", &even]).contains("the mean of tokens"));
    let output = command(&["tune", "examples/tiny/job.ron", "--imbalance", "2", "-o", &path("profile.ron")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--imbalance 1"));
}
