//! Networks with levels above the nodes: what an exchange, a message and a reduction send over which, and how long it takes.

use std::path::Path;

use dualweave::ir::{Component, Phase, Recompute, Unit, Work};
use dualweave::job::cluster::Pods;
use dualweave::job::sms::CommunicationSms;
use dualweave::job::{Job, Overrides, load};
use dualweave::machine::{EXCHANGE_EFFICIENCY, Hop, Machine};
use dualweave::passes::compile;
use dualweave::passes::search::exact::Outcome;
use dualweave::passes::unit_work::pieces::{self, ExchangeForm, Piece, Route};
use dualweave::units::{Bytes, Nanos};

fn example(name: &str) -> Job {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).join("job.ron");
    load(&path, &Overrides::default()).expect("the example").job
}

/// DeepSeek-V3 in pods of so many nodes: 128 GPUs of a rank, experts over 64, 8 on a node.
fn in_pods(nodes: u32, oversubscription: f64) -> Job {
    let mut job = example("deepseek-v3");
    job.cluster.pods = Some(Pods { nodes, oversubscription });
    job.check().unwrap_or_else(|error| panic!("{error:?}"));
    job
}

fn machine(job: &Job) -> Machine {
    Machine::new(&job.cluster, None)
}

/// Bytes of a dispatch: over NVLink, over the network, between pods.
fn dispatch(job: &Job, route: Route) -> [u64; 3] {
    let exchange = ExchangeForm { route, ..ExchangeForm::default() };
    let piece = Piece { exchange, ..Piece::whole(Component::Dispatch, Phase::F) };
    match pieces::work(job, Unit::Moe(10), Recompute::NOTHING, &piece) {
        Some(Work::Exchange { nvlink, network, uplink }) => [nvlink.0, network.0, uplink.0],
        other => panic!("{other:?}"),
    }
}

/// Experts over 8 nodes. Of the 7 other nodes that a GPU sends to, as many are in other pods as are not in its own.
#[test]
fn an_exchange_leaves_its_pod_for_the_nodes_that_are_not_in_it() {
    let plain = dispatch(&example("deepseek-v3"), Route::TwoHop);
    for (nodes, leaving) in [(8, 0.0), (32, 0.0), (4, 4.0 / 7.0), (2, 6.0 / 7.0), (1, 1.0), (256, 0.0), (300, 0.0)] {
        for route in [Route::TwoHop, Route::Flat] {
            let job = in_pods(nodes, 4.0);
            let [nvlink, network, uplink] = dispatch(&job, route);
            assert!(uplink.abs_diff((network as f64 * leaving).round() as u64) <= 1, "pods of {nodes}: {uplink}");
            assert_eq!([nvlink, network, 0], dispatch(&example("deepseek-v3"), route));
        }
    }
    // In pods of 12 nodes the second group of 8 nodes has 4 in the first pod, whose first group is whole: of 12 nodes 4 send 4/7. Where the last
    // pod has only 4 nodes, half of a group, all of them do.
    for (all, share) in [(264, 4.0 / 7.0 / 3.0), (256, 4.0 / 7.0)] {
        let mut job = in_pods(12, 4.0);
        job.cluster.nodes = all;
        let [_, network, uplink] = dispatch(&job, Route::TwoHop);
        assert!(uplink.abs_diff((network as f64 * share).round() as u64) <= 1, "{all} nodes: {uplink} of {network}");
    }
    assert_eq!(plain[2], 0);
}

#[test]
fn the_slowest_link_decides_how_long_an_exchange_takes() {
    let [nvlink, network, uplink] = dispatch(&in_pods(4, 1.0), Route::TwoHop).map(Bytes);
    let work = Work::Exchange { nvlink, network, uplink };
    let time = |oversubscription: f64| machine(&in_pods(4, oversubscription)).duration(&work, 20);
    let alone = machine(&example("deepseek-v3")).duration(&work, 20);
    assert_eq!(time(1.0), alone);
    // 4/7 of the bytes at a quarter of the rate, over 10 µs of latency: 50 GB/s are an H800's.
    for oversubscription in [2.0, 4.0, 8.0] {
        let rate = 50e9 / oversubscription * EXCHANGE_EFFICIENCY;
        let expected = Nanos(10_000) + Nanos::from_secs(uplink.as_f64() / rate);
        assert_eq!(time(oversubscription), expected.max(alone));
        let beside = machine(&in_pods(4, oversubscription));
        let product = Work::Compute(vec![]);
        assert!(beside.duration_beside(&work, 20, &product, 112) >= expected);
    }
    assert!(time(4.0) > alone);
}

/// GPU i of a rank sends to GPU i of the next, 128 GPUs further.
#[test]
fn messages_between_ranks_share_the_uplinks_of_those_that_cross() {
    let bytes = Bytes(500_000_000);
    let alone = Nanos(10_000 + 10_000_000);
    let crossing = |nodes: u32, (r, q): (u32, u32)| match machine(&in_pods(nodes, 4.0)).hop(128, r, q) {
        Hop::Network { crossing, over_nvlink: false } => crossing,
        other => panic!("{other:?}"),
    };
    let time = |nodes: u32, (r, q): (u32, u32)| {
        let machine = machine(&in_pods(nodes, 4.0));
        machine.transfer(bytes, machine.hop(128, r, q))
    };
    // A pod is a rank: all cross. Two ranks: those of every second boundary, half of the pod's GPUs. Four: a quarter.
    for (nodes, ranks, share) in [
        (16, (0, 1), 1.0),
        (16, (3, 2), 1.0),
        (32, (0, 1), 0.0),
        (32, (1, 2), 0.5),
        (64, (3, 4), 0.25),
        (64, (2, 3), 0.0),
        // Of 24 nodes the second rank has the last 8; its peers are in the next pod.
        (24, (0, 1), 8.0 / 24.0),
    ] {
        assert_eq!(crossing(nodes, ranks), share, "{nodes} {ranks:?}");
        let expected = Nanos(10_000 + (4.0 * share * 10_000_000.0) as u64);
        assert_eq!(time(nodes, ranks), expected.max(alone), "{nodes} {ranks:?}");
    }
    assert_eq!(machine(&example("tiny")).hop(2, 0, 3), Hop::Node);
}

/// Bytes that a stage's reduction sends over the network, and between pods.
fn reduction(job: &Job) -> [f64; 2] {
    let mut plain = job.clone();
    plain.training.without_rewrites = vec!["all".to_owned()];
    plain.training.micro_batches = 32;
    match compile(&plain).expect("a plan").plan.stages[1].reduce {
        Work::Exchange { network, uplink, .. } => [network.as_f64(), uplink.as_f64()],
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn reductions_go_around_rings_that_leave_each_pod_once() {
    // One rank holds a stage of ZB-V, 16 nodes: in pods of a rank nothing leaves; in pods of 4 nodes one of 4 members of a ring of
    // shared parameters does, and experts, whose replicas are 8 nodes apart, all do.
    let with = |nodes| {
        let mut job = in_pods(nodes, 4.0);
        job.training.schedule = dualweave::job::training::ScheduleKind::OneFOneB;
        job
    };
    let [network, none] = reduction(&with(16));
    assert_eq!(none, 0.0);
    let [same, uplink] = reduction(&with(4));
    assert_eq!(same, network);
    let mut no_replicas = with(4);
    no_replicas.training.ep = 128;
    no_replicas.check().expect("two experts on each");
    // Without replicas of experts all that is sent is of shared parameters.
    let [shared, of_shared] = reduction(&no_replicas);
    assert!((of_shared / shared - 0.25).abs() < 1e-6, "{of_shared} of {shared}");
    let experts = network - shared;
    assert!((uplink - shared / 4.0 - experts).abs() < 4.0, "{uplink} of {shared} and {experts}");
}

/// On rails a flat exchange hops over NVLink first, for 7 of 8 GPUs that it goes to; DeepSeek's two hops stay on their rails as they are.
#[test]
fn what_crosses_rails_hops_over_nvlink() {
    let mut job = example("deepseek-v3");
    let (flat, two_hop) = (dispatch(&job, Route::Flat), dispatch(&job, Route::TwoHop));
    job.cluster.rails = true;
    assert_eq!(dispatch(&job, Route::TwoHop), two_hop);
    let on_rails = dispatch(&job, Route::Flat);
    assert_eq!(on_rails[1..], flat[1..]);
    let added = on_rails[0] - flat[0];
    assert!(added.abs_diff((flat[1] as f64 * 7.0 / 8.0).round() as u64) <= 1, "{added} of {}", flat[1]);

    // Ranks of 12 GPUs on nodes of 8: peers of neighbours are on other rails, of every second rank on the same.
    let rails = machine(&job);
    let over_nvlink = |hop: Hop| matches!(hop, Hop::Network { over_nvlink: true, .. });
    assert!(over_nvlink(rails.hop(12, 0, 1)) && over_nvlink(rails.hop(12, 3, 2)) && !over_nvlink(rails.hop(12, 0, 2)));
    assert!(!over_nvlink(machine(&example("deepseek-v3")).hop(12, 0, 1)));
    // NVLink is the slower of the two where it is made so.
    job.cluster.nvlink.copy_gb_s = Some(5.0);
    let slow = machine(&job);
    assert_eq!(slow.transfer(Bytes(5_000_000), slow.hop(12, 0, 1)), Nanos(2_000 + 1_000_000));
    assert_eq!(slow.transfer(Bytes(5_000_000), slow.hop(12, 0, 2)), Nanos(10_000 + 100_000));
}

/// A whole plan: with no oversubscription it is the plan without pods; with more it is never faster.
#[test]
fn plans_get_slower_with_oversubscription() {
    let mut job = example("tiny");
    (job.cluster.gpus_per_node, job.cluster.nodes) = (1, 8);
    job.cluster.network.gb_s = 1.0;
    job.training.communication_sms = CommunicationSms::Fixed(8);
    job.training.without_rewrites = vec!["all".to_owned()];
    let step = |pods: Option<Pods>| {
        let job = Job { cluster: dualweave::job::Cluster { pods, ..job.cluster.clone() }, ..job.clone() };
        job.check().expect("a job");
        let compiled = compile(&job).expect("a plan");
        assert!(dualweave::verify::verify(&compiled.plan).is_safe());
        Outcome::of(&compiled).expect("it runs").step
    };
    let flat = step(None);
    for nodes in [1, 2, 4] {
        let mut before = step(Some(Pods { nodes, oversubscription: 1.0 }));
        assert_eq!(before, flat);
        for oversubscription in [2.0, 4.0, 16.0] {
            let now = step(Some(Pods { nodes, oversubscription }));
            assert!(now >= before, "{nodes} {oversubscription}: {now} {before}");
            before = now;
        }
        assert!(before > flat, "{nodes}");
    }
}
