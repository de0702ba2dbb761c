//! Disturbed steps: against formulas where there are some, and an undisturbed step where nothing disturbs it.

#[path = "sim/fixture.rs"]
mod fixture;
#[path = "host_runtime/shapes.rs"]
#[allow(dead_code, reason = "other tests have more kinds of models")]
mod shapes;

use std::path::Path;
use std::process::{Command, Output};

use dualweave::ir::{Component, Phase, Placement, ProgramKind};
use dualweave::job::training::ScheduleKind;
use dualweave::job::{Overrides, load};
use dualweave::passes::compile;
use dualweave::plan::Task::{F, RecvAct, SendAct, Update};
use dualweave::plan::{Plan, Task};
use dualweave::sim::jitter::{Disturbances, Disturbed, SlowGpus, disturb};
use dualweave::sim::simulate;
use dualweave::units::Nanos;
use fixture::{compute, exchange, op, plain, plan};

fn jitter(cv: f64, samples: u32) -> Disturbances {
    Disturbances { jitter: Some(cv), samples, ..Disturbances::default() }
}

fn slow_gpus(share: f64, factor: f64) -> Disturbances {
    Disturbances { slow_gpus: Some(SlowGpus { share, factor }), samples: 4000, ..Disturbances::default() }
}

fn steps(plan: &Plan, disturbances: &Disturbances) -> Disturbed {
    disturb(plan, disturbances, &[], 2).unwrap_or_else(|error| panic!("{error:?}"))
}

/// One rank with so many forwards of a millisecond, one after the other; `dp` replicas.
fn series(forwards: u32, dp: u32) -> Plan {
    let items: Vec<(Task, &[u32])> = (0..forwards).map(|m| (F(0, m), &[][..])).collect();
    let mut plan = plan(Placement::Linear, forwards, &[&items]);
    plan.programs[0] = plain(ProgramKind::F, Phase::F, 1_000_000);
    plan.origin.dp = dp;
    plan
}

fn near(found: Nanos, expected: f64, share: f64) {
    assert!((found.as_f64() / expected - 1.0).abs() < share, "{found:?}, not {expected}");
}

/// Natural logarithm's standard deviation of a factor with this coefficient of variation.
fn sigma(cv: f64) -> f64 {
    (1.0 + cv * cv).ln().sqrt()
}

#[test]
fn what_nothing_disturbs_takes_as_long_as_ever() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tiny/job.ron");
    for schedule in ScheduleKind::PUBLISHED {
        for ep in [1, 2] {
            let overrides = Overrides { schedule: Some(schedule), ep: Some(ep), ..Overrides::default() };
            let plan = compile(&load(&path, &overrides).expect("the example").job).expect("a plan").plan;
            let step = simulate(&plan).expect("it runs").step;
            for nothing in [jitter(0.0, 10), slow_gpus(0.0, 2.0), slow_gpus(1.0, 1.0)] {
                let found = steps(&plan, &nothing);
                assert_eq!([found.undisturbed, found.mean, found.median, found.p99], [step; 4], "{schedule}");
                assert_eq!(found.deviation, Nanos::ZERO);
            }
            let disturbed = steps(&plan, &jitter(0.1, 100));
            assert!(disturbed.undisturbed == step && disturbed.mean > step && disturbed.p95 >= disturbed.median);
        }
    }
}

/// Ops in a row: means and variances add up.
#[test]
fn a_series_has_the_mean_and_the_variance_of_a_sum() {
    for (forwards, cv) in [(1, 0.3), (16, 0.2), (64, 0.05)] {
        let found = steps(&series(forwards, 1), &jitter(cv, 20_000));
        let n = f64::from(forwards);
        assert_eq!((found.peers, found.pipelines, found.drawn), (1, 1, 20_000));
        near(found.mean, n * 1e6, 4.0 * cv / (n * 20_000.0).sqrt() + 1e-4);
        near(found.deviation, n.sqrt() * cv * 1e6, 0.03);
        // A sum of many is nearly normal.
        if forwards > 1 {
            near(found.p95, n * 1e6 + 1.645 * n.sqrt() * cv * 1e6, 0.1 * cv);
        }
    }
}

/// The slowest of n: its distribution function is the n-th power of one's. The normal quantiles at p^(1/n) are tabulated.
#[test]
fn a_step_ends_with_the_slowest_replica() {
    let cv = 0.1;
    for (dp, quantiles) in [
        (1, [0.0, 1.644_853_6, 2.326_347_9]),
        (10, [1.498_767_3, 2.567_875_4, 3.088_890_1]),
        (100, [2.462_037_8, 3.283_407_5, 3.717_760_6]),
    ] {
        let samples = if dp > 10 { 4000 } else { 20_000 };
        let found = steps(&series(1, dp), &jitter(cv, samples));
        assert_eq!((found.pipelines, found.drawn), (u64::from(dp), u64::from(samples * dp)));
        for (found, quantile) in [found.median, found.p95, found.p99].into_iter().zip(quantiles) {
            near(found, 1e6 * (quantile * sigma(cv) - sigma(cv).powi(2) / 2.0).exp(), 0.015);
        }
    }
    // More replicas than draws are no more than they say.
    let many = disturb(&series(1, 1_000_000), &jitter(cv, 1), &[], 2).expect("enough items");
    assert!(many.drawn >= many.pipelines && many.p99 > Nanos(1_400_000), "{many:?}");
    let too_many = series(100, 1 << 20);
    let error = disturb(&too_many, &jitter(cv, 1), &[], 2).expect_err("a hundred million items");
    assert!(error.message().contains("1048576 pipelines") && error.help_text().is_none(), "{error:?}");
    let error = disturb(&series(3000, 90_000), &jitter(cv, 1), &[], 2).expect_err("too many at once");
    assert!(error.help_text().is_some_and(|help| help.contains("--samples 90000")), "{error:?}");
}

/// GPUs that meet in an exchange wait for the slowest of them: its mean by adding up the distribution.
#[test]
fn peers_wait_for_the_slowest() {
    let (cv, peers) = (0.2, 8);
    let mut meeting = series(1, peers);
    meeting.origin.ep = peers;
    meeting.programs[0].ops = vec![
        op(Component::Attention, Phase::F, compute(1_000_000), &[]),
        op(Component::Dispatch, Phase::F, exchange(500_000), &[0]),
    ];
    let alone = simulate(&meeting).expect("it runs").step.as_f64() - 1e6;
    let found = steps(&meeting, &jitter(cv, 20_000));
    assert_eq!((found.peers, found.pipelines), (u64::from(peers), 1));
    // E[max] = ∫ (1 - P(one is below)^n), by the trapezoid rule; P from the error function's series.
    let sigma = sigma(cv);
    let below = |factor: f64| normal((factor.ln() + sigma * sigma / 2.0) / sigma);
    let step = 1e-4;
    let mean: f64 = (0..40_000).map(|at| step * (1.0 - below((f64::from(at) + 0.5) * step).powi(8))).sum();
    assert!(mean > 1.2, "{mean}");
    near(found.mean, mean * 1e6 + alone, 0.003);
}

/// The probability that a standard normal number is below this: the series of its density, term by term.
fn normal(at: f64) -> f64 {
    if at.abs() > 7.0 {
        return if at > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum) = (at, at);
    for odd in (3..200).step_by(2) {
        term *= at * at / f64::from(odd);
        sum += term;
    }
    0.5 + sum * (-at * at / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// Rank 1 gets micro-batches from rank 0, and is as fast.
fn line(micro_batches: u32) -> Plan {
    let after: Vec<Vec<u32>> = (0..2 * micro_batches).map(|at| vec![at]).collect();
    let mut first: Vec<(Task, &[u32])> = Vec::new();
    let mut second: Vec<(Task, &[u32])> = Vec::new();
    for m in 0..micro_batches {
        let before = after[2 * m as usize].as_slice();
        first.extend([(F(0, m), &[][..]), (SendAct(0, m, 1), before)]);
        second.extend([(RecvAct(0, m, 0), &[][..]), (F(1, m), before)]);
    }
    plan(Placement::Linear, micro_batches, &[&first, &second])
}

#[test]
fn a_pipeline_goes_at_the_pace_of_a_slow_rank() {
    let plan = line(20);
    let disturbances = Disturbances { samples: 5, ..Disturbances::default() };
    let step = |slow: &[(u32, f64)]| disturb(&plan, &disturbances, slow, 1).expect("it runs").mean;
    // A forward takes 100, a message 10.
    assert_eq!(step(&[]), Nanos(100 + 10 + 20 * 100));
    assert_eq!(step(&[(1, 3.0)]), Nanos(100 + 10 + 20 * 300));
    assert_eq!(step(&[(0, 3.0)]), Nanos(20 * 300 + 10 + 100));
    assert_eq!(step(&[(0, 3.0), (1, 1.5)]), Nanos(20 * 300 + 10 + 150));
    assert_eq!(step(&[(1, 2.0), (1, 1.5)]), step(&[(1, 3.0)]));
    let error = disturb(&plan, &disturbances, &[(2, 2.0)], 1).expect_err("no such rank");
    assert!(error.message().contains("no rank 2"), "{error:?}");
    // All GPUs slow: all ranks are; the update too, which is computation.
    let with_update = fixture::plan(Placement::Linear, 1, &[&[(F(0, 0), &[]), (Update(0), &[0])]]);
    assert_eq!(steps(&plan, &slow_gpus(1.0, 3.0)).mean, Nanos(300 + 10 + 20 * 300));
    assert_eq!(steps(&with_update, &slow_gpus(1.0, 3.0)).mean, Nanos(3 * 105));
}

/// A rank is slow if one of its peers is, a step if one of its pipelines is.
#[test]
fn slow_gpus_are_as_many_as_is_said() {
    for (dp, ep) in [(1, 1), (6, 1), (6, 6), (6, 3)] {
        let mut plan = series(1, dp);
        plan.origin.ep = ep;
        if ep > 1 {
            plan.programs[0].ops.push(op(Component::Dispatch, Phase::F, exchange(10), &[0]));
        }
        let found = steps(&plan, &slow_gpus(0.02, 2.0));
        let slow = 1.0 - 0.98_f64.powi(dp as i32);
        let tail = found.undisturbed.as_f64() - 1e6;
        near(found.mean, 1e6 * (1.0 + slow) + tail, 4.0 * (slow / 4000.0).sqrt());
        assert_eq!(found.p99 > Nanos(2_000_000), slow > 0.01 && tail > 0.0);
        assert!(found.p99 >= Nanos(2_000_000) && found.median < Nanos(1_100_000), "{found:?}");
    }
}

#[test]
fn draws_depend_on_the_seed_alone() {
    let mut plan = line(30);
    plan.origin.dp = 3;
    let both =
        |seed: u64| Disturbances { slow_gpus: Some(SlowGpus { share: 0.1, factor: 1.5 }), seed, ..jitter(0.1, 200) };
    let one = disturb(&plan, &both(7), &[], 1).expect("it runs");
    for threads in [2, 5] {
        assert_eq!(disturb(&plan, &both(7), &[], threads).expect("it runs"), one);
    }
    assert_ne!(disturb(&plan, &both(8), &[], 1).expect("it runs").mean, one.mean);
}

fn command(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dualweave"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("it runs")
}

#[test]
fn the_command_tells_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = folder.path().join("plan.ron");
    let plan = plan.to_str().expect("a path");
    assert!(command(&["compile", "examples/tiny/job.ron", "-o", plan]).status.success());
    let told = |flags: &[&str]| {
        let output = command(&[&["simulate", plan], flags].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let flags = ["--jitter", "0.05", "--slow-gpus", "0.01=1.1", "--slow-rank", "2=1.02", "--seed", "3"];
    let (text, json) = (told(&flags), told(&[&flags[..], &["--json"]].concat()));
    assert_eq!((&text, &json), (&told(&flags), &told(&[&flags[..], &["--json"]].concat())));
    assert!(text.contains("  disturbed ") && text.contains("mean of 1 000 steps"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let number = |key: &str| json["disturbed"][key].as_u64().expect("a number");
    assert_eq!((number("samples"), number("seed"), number("peers"), number("pipelines")), (1000, 3, 2, 1));
    assert!(number("mean_ns") > json["step_ns"].as_u64().expect("a time"));
    assert!(number("median_ns") <= number("p95_ns") && number("p95_ns") <= number("p99_ns"));
    assert!(!told(&[]).contains("disturbed") && !told(&["--json"]).contains("disturbed"));

    for (flags, expected) in [
        (&["--jitter", "-0.1"][..], "from 0 to 2"),
        (&["--jitter", "nan"], "from 0 to 2"),
        (&["--jitter", "much"], "no number"),
        (&["--slow-gpus", "0.1"], "a share and a factor"),
        (&["--slow-gpus", "1.1=1.1"], "from 0 to 1"),
        (&["--slow-gpus", "0.1=0.5"], "from 1 to 1000"),
        (&["--slow-rank", "1"], "a rank and a factor"),
        (&["--slow-rank", "9=2"], "no rank 9"),
        (&["--slow-rank", "x=2"], "no rank"),
        (&["--seed", "3"], "--jitter"),
        (&["--samples", "10"], "--jitter"),
        (&["--jitter", "0.1", "--samples", "0"], "0"),
    ] {
        let output = command(&[&["simulate", plan], flags].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(output.stdout.is_empty() && said.contains(expected), "{flags:?}: {said}");
    }
}
