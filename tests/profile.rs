//! Profiles: what `tune` measures, in place of what the machine model says.

#[path = "common/profiles.rs"]
mod profiles;

use std::path::Path;

use dualweave::ir::{Kernel, Rate, Work};
use dualweave::job::profile::{Point, Profile, ProfiledOp, VERSION};
use dualweave::job::{Job, Overrides, load};
use dualweave::machine::Machine;
use dualweave::passes::compile;
use dualweave::plan::Plan;
use dualweave::sim::simulate;
use dualweave::units::{Bytes, Nanos};

use profiles::by_factor;

fn tiny() -> Job {
    load(Path::new("examples/tiny/job.ron"), &Overrides::default()).expect("the example").job
}

fn with(job: &Job, profile: Profile) -> Job {
    let mut job = job.clone();
    job.cluster.gpu.measured.profile = Some(profile);
    job
}

#[test]
fn what_was_measured_takes_what_was_measured() {
    let job = tiny();
    let plan = compile(&job).expect("a plan").plan;
    let factor = |work: &Work, sms: u32| if work.is_exchange() { 3.0 } else { 1.0 + f64::from(sms) / 132.0 };
    let profile = by_factor(&plan, factor, &[66, 100, 132]);
    let measured = Machine::new(&with(&job, profile.clone()).cluster, None);
    for op in &profile.ops {
        for point in &op.points {
            assert!(measured.duration(&op.work, point.sms).0.abs_diff(point.time.0) <= 1, "{} {point:?}", op.op);
        }
        let model = plan.machine.duration(&op.work, 83).as_f64();
        let expected = model * if op.work.is_exchange() { 3.0 } else { 1.0 + 83.0 / 132.0 };
        let found = measured.duration(&op.work, 83).as_f64();
        assert!((found - expected).abs() <= 2.0, "{}: {found} between points, {expected}", op.op);
        // Fewer SMs than were measured: the model's share of the nearest.
        let low = plan.machine.duration(&op.work, 20).as_f64() * if op.work.is_exchange() { 3.0 } else { 1.5 };
        assert!((measured.duration(&op.work, 20).as_f64() - low).abs() <= 2.0, "{}", op.op);
    }
}

#[test]
fn what_was_not_measured_takes_what_is_most_like_it() {
    let kernel =
        |rate, flops, bytes| Kernel { rate, flops: dualweave::units::Flops(flops), bytes: Bytes(bytes), launches: 1 };
    let products = |flops: u64| Work::Compute(vec![kernel(Rate::AttentionForward { length: 4096 }, flops, 1 << 20)]);
    let copies = |bytes: u64| Work::Compute(vec![kernel(Rate::Memory, 0, bytes)]);
    let job = tiny();
    let plain = Machine::new(&job.cluster, None);
    let measured = |works: &[(Work, f64)]| {
        let op = |(work, factor): &(Work, f64)| {
            let time = Nanos((plain.duration(work, 132).as_f64() * factor).round() as u64);
            let points = vec![Point { sms: 132, time, quartiles: (time, time), runs: 1 }];
            ProfiledOp { op: "op".to_owned(), work: work.clone(), points }
        };
        let ops = works.iter().map(op).collect();
        let profile = Profile {
            version: VERSION,
            gpu: "H100".to_owned(),
            sms: 132,
            model: "m".to_owned(),
            overlapped: false,
            ops,
        };
        Machine::new(&with(&job, profile).cluster, None)
    };
    let machine = measured(&[(products(1 << 40), 2.0), (products(1 << 36), 4.0), (copies(1 << 30), 1.5)]);
    let factor = |work: &Work, sms| machine.duration(work, sms).as_f64() / plain.duration(work, sms).as_f64();
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
    near(factor(&products(1 << 39), 132), 2.0);
    near(factor(&products(1 << 35), 50), 4.0);
    near(factor(&copies(1 << 20), 132), 1.5);
    // Of another kind: between the smallest and the largest factor, as the time of all that was measured.
    let other = Work::Compute(vec![kernel(Rate::AttentionBackward { length: 4096 }, 1 << 38, 1 << 20)]);
    let time = |work: &Work| plain.duration(work, 132).as_f64();
    let all = [products(1 << 40), products(1 << 36), copies(1 << 30)].map(|work| time(&work));
    let mean = (2.0 * all[0] + 4.0 * all[1] + 1.5 * all[2]) / all.iter().sum::<f64>();
    near(factor(&other, 132), mean);
    // No exchange was measured.
    let exchange = Work::over_nvlink(Bytes(1 << 24));
    assert_eq!(machine.duration(&exchange, 20), plain.duration(&exchange, 20));
    // Beside each other both keep what they lose.
    let beside = machine.duration_beside(&products(1 << 40), 112, &exchange, 20).as_f64();
    near(beside / plain.duration_beside(&products(1 << 40), 112, &exchange, 20).as_f64(), 2.0);
}

#[test]
fn a_plan_keeps_what_was_measured() {
    let job = tiny();
    let plan = compile(&job).expect("a plan").plan;
    assert!(plan.machine.measured.is_empty());
    let profile = by_factor(&plan, |_, _| 2.0, &[132]);
    let slower = compile(&with(&job, profile)).expect("a plan").plan;
    assert!(!slower.machine.measured.is_empty());
    let text = slower.to_ron();
    let read = Plan::from_ron("plan", &text).expect("the plan");
    assert_eq!(read, slower);
    let (before, after) = (simulate(&plan).expect("times").pipeline, simulate(&read).expect("times").pipeline);
    let ratio = after.as_f64() / before.as_f64();
    assert!((1.8..2.05).contains(&ratio), "{before} and {after}");
}

#[test]
fn a_profile_is_read_back_and_a_wrong_one_is_refused() {
    let plan = compile(&tiny()).expect("a plan").plan;
    let profile = by_factor(&plan, |_, _| 1.25, &[100, 132]);
    let text = profile.to_ron().expect("a text");
    assert_eq!(Profile::from_ron("p.ron", &text).expect("the profile"), profile);
    let refused = |change: &dyn Fn(&mut Profile), what: &str| {
        let mut wrong = profile.clone();
        change(&mut wrong);
        let error = Profile::from_ron("p.ron", &wrong.to_ron().expect("a text")).expect_err("a refusal").to_string();
        assert!(error.contains(what) && error.contains("p.ron"), "{error}");
    };
    refused(&|profile| profile.version = 9, "version 9");
    refused(&|profile| profile.ops[1].points.clear(), "no times");
    refused(&|profile| profile.ops[0].points.reverse(), "do not ascend");
    refused(&|profile| profile.ops[0].points[1].sms = 133, "133 of 132 SMs");
    refused(&|profile| profile.ops[0].points[0].time = Nanos::ZERO, "takes 0");
    refused(&|profile| profile.ops.push(profile.ops[0].clone()), "twice");
    let half = &text[..text.len() / 2];
    assert!(Profile::from_ron("p.ron", half).is_err());
}

#[test]
fn the_command_line_takes_a_profile() {
    let plan = compile(&tiny()).expect("a plan").plan;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("profile.ron");
    let mut profile = by_factor(&plan, |_, _| 2.0, &[132]);
    let write = |profile: &Profile| std::fs::write(&path, profile.to_ron().expect("a text")).expect("a file");
    let overrides = Overrides { profile: Some(path.clone()), ..Overrides::default() };
    write(&profile);
    let loaded = load(Path::new("examples/tiny/job.ron"), &overrides).expect("the job");
    assert!(!loaded.notes.iter().any(|note| note.contains("measured on")), "{:?}", loaded.notes);
    assert_eq!(loaded.job.cluster.gpu.measured.profile.as_ref(), Some(&profile));
    profile.gpu = "NVIDIA H200".to_owned();
    write(&profile);
    let loaded = load(Path::new("examples/tiny/job.ron"), &overrides).expect("the job");
    assert!(loaded.notes.iter().any(|note| note.contains("NVIDIA H200")), "{:?}", loaded.notes);
    profile.sms = 144;
    write(&profile);
    let error = load(Path::new("examples/tiny/job.ron"), &overrides).expect_err("a refusal").to_string();
    assert!(error.contains("144 SMs"), "{error}");
    std::fs::remove_file(&path).expect("removed");
    let error = load(Path::new("examples/tiny/job.ron"), &overrides).expect_err("a refusal").to_string();
    assert!(error.contains("cannot be read"), "{error}");
}
