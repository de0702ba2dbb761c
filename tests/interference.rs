//! What overlapped ops lose to each other: the model against what was measured on two H100, and what must hold whatever the
//! numbers are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use dualweave::ir::{Kernel, Rate, Work};
use dualweave::job::cluster::{Cluster, MeasuredInterference};
use dualweave::job::model::Dtype;
use dualweave::job::{Overrides, load};
use dualweave::machine::{BF16_GEMM_DEPTH, EXCHANGE_EFFICIENCY, Interference, Machine};
use dualweave::units::{Bytes, Flops, Nanos};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const TABLE: &str = "tests/data/machine/h100x2_overlap.csv";
const SMS: u32 = 132;
/// A microsecond of latency is nothing to a second: what is sent is so much that rates can be read off.
const SENT: Bytes = Bytes(100_000_000_000);

/// H100 SXM as it is in the examples.
fn cluster() -> Cluster {
    static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| {
        load(Path::new("examples/mixtral-8x7b/job.ron"), &Overrides::default()).expect("an example").job.cluster
    });
    CLUSTER.clone()
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// A row of the table, its fields by name.
type Row = BTreeMap<String, String>;

/// The rows of the table, and FLOPs and bytes of each computation, which its head gives.
fn table() -> (Vec<Row>, BTreeMap<String, (Flops, Bytes)>) {
    let text = fs::read_to_string(TABLE).unwrap_or_else(|error| panic!("{TABLE}: {error}"));
    let mut sizes = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains(" GFLOP, ")) {
        let (name, size) = line.trim_start_matches("# ").split_once(": ").expect("a name and a size");
        let words: Vec<&str> = size.split(' ').collect();
        let (flops, bytes) = (number(words[0]) * 1e9, number(words[2]) * 1e6);
        sizes.insert(name.to_owned(), (Flops(flops as u64), Bytes(bytes as u64)));
    }
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let names: Vec<&str> = lines.next().expect("a heading").split(',').collect();
    let row = |line: &str| names.iter().map(|&name| name.to_owned()).zip(line.split(',').map(str::to_owned)).collect();
    (lines.map(row).collect(), sizes)
}

/// The computation called `name` in the table, as one kernel of no launch time.
fn kernel(name: &str, (flops, bytes): (Flops, Bytes)) -> Kernel {
    let rate = match name.split('_').next().expect("a word") {
        "gemm" => Rate::Gemm { dtype: Dtype::Bf16, depth: 4096 },
        "fp8" => Rate::Gemm { dtype: Dtype::Fp8, depth: 4096 },
        "attention" if name.ends_with("forward") => Rate::AttentionForward { length: 4096 },
        "attention" => Rate::AttentionBackward { length: 4096 },
        "add" | "copy" => Rate::Memory,
        other => panic!("{other} is not known"),
    };
    Kernel { rate, flops, bytes, launches: 0 }
}

/// The measured card: rates of peer writes and copies with nothing beside, both ways at once, are the table's own, so that
/// only interference is compared.
fn measured_card(rows: &[Row]) -> Machine {
    let mut cluster = cluster();
    let alone = |comm: &str, ctas: &str| {
        let row = rows.iter().find(|row| row["comm"] == comm && row["ctas"] == ctas && row["direction"] == "both");
        number(&row.expect("a row")["comm_alone_gb_s"])
    };
    // 20 CTAs were slower than 16.
    // The exchange of the table is plain writes.
    let writes = |ctas: u32| alone("kernel", &ctas.to_string()) / EXCHANGE_EFFICIENCY;
    cluster.nvlink.measured = [4, 8, 16, 24, 32].map(|ctas| (ctas, writes(ctas))).to_vec();
    cluster.nvlink.copy_gb_s = Some(alone("engine", ""));
    cluster.check().expect("a sound cluster");
    Machine::new(&cluster, None)
}

/// Computation and exchange, both ways and in pieces long enough that launches do not count, beside each other. A product
/// that was told its SMs is compared with itself on these SMs. Element-wise kernels cannot be told, and here the model has
/// them on all SMs, where they were. Two kinds of rows have no counterpart in a plan and are left out: products that were not
/// told, and attention beside a kernel; with no SMs left free, the exchange's CTAs shared SMs with each other.
///
/// The other GPU only exchanged, so beside adds and copies it sent more than it received; the model has both alike.
#[test]
fn the_model_against_the_measured_rows() {
    let (rows, sizes) = table();
    let machine = measured_card(&rows);
    let mut text = String::from(
        "computation            beside       time with / without: model measured   exchange GB/s: model measured\n",
    );
    let (mut compute_errors, mut exchange_errors) = (Vec::new(), Vec::new());
    for row in &rows {
        let name = &row["compute"];
        let told = !row["told_sms"].is_empty();
        let element_wise = ["add", "copy"].contains(&name.as_str());
        let long = row["comm"] == "kernel" && row["piece_ms"] == "20" && (told || element_wise);
        if !(long || row["comm"] == "engine") || row["direction"] != "both" || name.starts_with("zeros") {
            continue; // Zeros are there to tell power from the rest; no training computes with them.
        }
        let (other, ctas) = match row["comm"].as_str() {
            "engine" => (Work::Copy { nvlink: SENT }, 0),
            _ => (Work::over_nvlink(SENT), number(&row["ctas"]) as u32),
        };
        let work = Work::Compute(vec![kernel(name, sizes[name])]);
        let sms = if told { SMS - ctas } else { SMS };
        let beside = machine.duration_beside(&work, sms, &other, ctas);
        let slower = beside.secs() / machine.duration(&work, sms).secs();
        let gb_s = SENT.as_f64() / machine.duration_beside(&other, ctas, &work, sms).secs() / 1e9;
        let measured_slower = number(&row["compute_beside_ms"]) / number(&row["compute_alone_ms"]);
        let measured_gb_s = number(&row["comm_beside_gb_s"]);
        let beside = format!("{} {}", row["comm"], row["ctas"]);
        let _ = writeln!(
            text,
            "{name:<22} {beside:<12} {slower:26.2} {measured_slower:8.2} {gb_s:22.0} {measured_gb_s:8.0}"
        );
        compute_errors.push(slower / measured_slower - 1.0);
        exchange_errors.push(gb_s / measured_gb_s - 1.0);
    }
    for (what, errors) in [("computation", &mut compute_errors), ("exchange", &mut exchange_errors)] {
        errors.sort_by(f64::total_cmp);
        let (least, most) = (errors[0] * 100.0, errors[errors.len() - 1] * 100.0);
        let median = errors[errors.len() / 2] * 100.0;
        let mean = errors.iter().map(|error| error.abs()).sum::<f64>() / errors.len() as f64 * 100.0;
        let count = errors.len();
        let _ = writeln!(
            text,
            "{what}: {count} rows, model over measured {least:+.1} to {most:+.1} %, median {median:+.1}, mean of sizes {mean:.1}"
        );
        assert!(mean < 8.0 && median.abs() < 3.0, "{text}");
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("interference__model_against_measured", text));
}

/// Worked by hand: HBM of 1000 B/s, an exchange of 100 B/s, which reads and writes 200 of them; products on half of the SMs.
#[test]
fn each_term_by_hand() {
    let mut machine = Machine::new(&cluster(), None);
    machine.sm_share = vec![];
    (machine.sms, machine.hbm_byte_s, machine.launch) = (100, 1000.0, Nanos::ZERO);
    // 2000 FLOP/s at the depth of the product below.
    machine.bf16_gemm_flop_s = 2000.0 * (64.0 + BF16_GEMM_DEPTH) / 64.0;
    let link = &mut machine.nvlink;
    (link.latency, link.byte_s, link.per_sm_byte_s, link.copy_byte_s) =
        (Nanos::ZERO, 100.0 / EXCHANGE_EFFICIENCY, 10.0 / EXCHANGE_EFFICIENCY, 100.0);
    link.measured = vec![];
    let copy = Work::Copy { nvlink: Bytes(100) };
    let exchange = Work::over_nvlink(Bytes(100));
    let rate = Rate::Gemm { dtype: Dtype::Bf16, depth: 64 };
    let work = |rate, flops, bytes| {
        Work::Compute(vec![Kernel { rate, flops: Flops(flops), bytes: Bytes(bytes), launches: 1 }])
    };
    let product = work(rate, 1000, 100); // A second on half of the SMs, a tenth of HBM.
    let add = work(Rate::Memory, 1, 1000); // A second, all of HBM.
    let mut with = |interference, (one, sms): (&Work, u32), (other, other_sms): (&Work, u32)| {
        machine.interference = interference;
        machine.duration_beside(one, sms, other, other_sms)
    };
    let secs = Nanos::from_secs;
    let none = Interference::NONE;

    // HBM: 800 B/s are left, or 1.5 times as much is lost and 700 are left. The product has enough.
    assert_eq!(with(Interference { hbm: 1.0, ..none.clone() }, (&add, 50), (&copy, 0)), secs(1.25));
    assert_eq!(with(Interference { hbm: 1.5, ..none.clone() }, (&add, 50), (&exchange, 10)), secs(1.0 / 0.7));
    assert_eq!(with(Interference { hbm: 1.0, ..none.clone() }, (&product, 50), (&copy, 0)), secs(1.0));
    // Never less than half is left.
    assert_eq!(with(Interference { hbm: 9.0, ..none.clone() }, (&add, 50), (&copy, 0)), secs(2.0));
    // Tensor cores: half of the share of HBM, 20 %. With half of the SMs the exchange uses half as much.
    assert_eq!(with(Interference { tensor: 0.5, ..none.clone() }, (&product, 50), (&copy, 0)), secs(1.1));
    assert_eq!(with(Interference { tensor: 0.5, ..none.clone() }, (&product, 50), (&exchange, 5)), secs(1.05));
    assert_eq!(with(Interference { tensor: 0.5, ..none.clone() }, (&add, 50), (&copy, 0)), secs(1.0));
    // SMs: 10 do what 5 would; of 20, 10 are enough. Beside all of HBM none is lost here, a tenth of the way back 5 %.
    let sms = Interference { sms: 0.5, sms_hbm: 0.5, ..none.clone() };
    assert_eq!(with(sms.clone(), (&exchange, 10), (&product, 50)), secs(2.0));
    assert_eq!(with(sms, (&exchange, 20), (&product, 50)), secs(1.0));
    assert_eq!(with(Interference { sms: 0.5, ..none.clone() }, (&exchange, 10), (&add, 50)), secs(1.0));
    assert_eq!(with(Interference { sms: 0.5, ..none.clone() }, (&exchange, 10), (&product, 50)), secs(1.0 / 0.55));
    // The link: a fifth less at most, which few SMs do not feel.
    assert_eq!(with(Interference { link: 0.2, ..none.clone() }, (&exchange, 20), (&product, 50)), secs(1.25));
    assert_eq!(with(Interference { link: 0.2, ..none.clone() }, (&exchange, 5), (&product, 50)), secs(2.0));
    // The copy engine: beside a tenth of HBM a tenth of the loss.
    assert_eq!(with(Interference { copy_hbm: 0.5, ..none.clone() }, (&copy, 0), (&add, 50)), secs(2.0));
    assert_eq!(with(Interference { copy_hbm: 0.5, ..none.clone() }, (&copy, 0), (&product, 50)), secs(1.0 / 0.95));
}

/// A job may say otherwise, term by term, also that nothing is lost.
#[test]
fn a_job_replaces_single_terms() {
    let mut cluster = cluster();
    assert_eq!(Machine::new(&cluster, None).interference, Interference::H100);
    let measured = &mut cluster.gpu.measured.interference;
    measured.tensor = Some(0.0);
    assert_eq!(Machine::new(&cluster, None).interference, Interference { tensor: 0.0, ..Interference::H100 });
    let none = Some(0.0);
    cluster.gpu.measured.interference =
        MeasuredInterference { hbm: none, tensor: none, sms: none, sms_hbm: none, link: none, copy_hbm: none };
    cluster.check().expect("zeros are sensible");
    assert_eq!(Machine::new(&cluster, None).interference, Interference::NONE);
    cluster.nvlink.copy_gb_s = Some(300.0);
    assert_eq!(Machine::new(&cluster, None).nvlink.copy_byte_s, 300e9);
}

fn any_kernel() -> impl Strategy<Value = Kernel> {
    let rates = prop::sample::select(vec![
        Rate::Gemm { dtype: Dtype::Bf16, depth: 4096 },
        Rate::Gemm { dtype: Dtype::Fp8, depth: 2048 },
        Rate::AttentionForward { length: 4096 },
        Rate::AttentionBackward { length: 4096 },
        Rate::Memory,
    ]);
    (rates, 0..10u64.pow(13), 0..10u64.pow(10), 1..4u32).prop_map(|(rate, flops, bytes, launches)| Kernel {
        rate,
        flops: Flops(flops),
        bytes: Bytes(bytes),
        launches,
    })
}

fn any_compute() -> impl Strategy<Value = Work> {
    prop::collection::vec(any_kernel(), 0..4).prop_map(Work::Compute)
}

fn any_exchange() -> impl Strategy<Value = Work> {
    let bytes = || prop_oneof![Just(Bytes::ZERO), (1..10u64.pow(10)).prop_map(Bytes)];
    prop_oneof![
        (bytes(), bytes()).prop_map(|(nvlink, network)| Work::Exchange { nvlink, network, uplink: Bytes::ZERO }),
        bytes().prop_map(|nvlink| Work::Copy { nvlink }),
    ]
}

/// The examples' machine with any losses, also beyond what a job may say: plans come from files.
fn any_interference() -> impl Strategy<Value = Interference> {
    let loss = || prop_oneof![Just(0.0), 0.0..1.0f64, Just(1.5)];
    (loss(), loss(), loss(), loss(), loss(), loss()).prop_map(|(hbm, tensor, sms, sms_hbm, link, copy_hbm)| {
        Interference { hbm, tensor, sms, sms_hbm, link, copy_hbm }
    })
}

fn with(interference: Interference) -> Machine {
    Machine { interference, ..Machine::new(&cluster(), None) }
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(23), failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    /// Nothing is faster beside something.
    #[test]
    fn never_faster_than_alone(
        interference in any_interference(), compute in any_compute(), exchange in any_exchange(), sms in 1..SMS,
    ) {
        let machine = with(interference);
        let (one, other) = (SMS - sms, sms);
        prop_assert!(machine.duration_beside(&compute, one, &exchange, other) >= machine.duration(&compute, one));
        prop_assert!(machine.duration_beside(&exchange, other, &compute, one) >= machine.duration(&exchange, other));
    }

    /// Without losses, and where nothing else runs, times are the plain ones; two of a kind are not asked for.
    #[test]
    fn no_losses_no_change(
        interference in any_interference(), compute in any_compute(), exchange in any_exchange(), sms in 1..SMS,
    ) {
        let (one, other) = (SMS - sms, sms);
        let plain = with(Interference::NONE);
        prop_assert_eq!(plain.duration_beside(&compute, one, &exchange, other), plain.duration(&compute, one));
        prop_assert_eq!(plain.duration_beside(&exchange, other, &compute, one), plain.duration(&exchange, other));
        let machine = with(interference);
        let nothing = Work::over_nvlink(Bytes::ZERO);
        prop_assert_eq!(machine.duration_beside(&compute, one, &nothing, other), machine.duration(&compute, one));
        prop_assert_eq!(machine.duration_beside(&nothing, other, &compute, one), Nanos::ZERO);
        prop_assert_eq!(machine.duration_beside(&compute, one, &compute, other), machine.duration(&compute, one));
        prop_assert_eq!(machine.duration_beside(&exchange, one, &exchange, other), machine.duration(&exchange, one));
    }

    /// The more of the link an exchange uses, the longer computation takes; the more of HBM computation uses, the longer
    /// exchanges take.
    #[test]
    fn more_use_more_loss(
        compute in any_compute(), traffic in 1..10u64.pow(10), more in 1..10u64.pow(10), bytes in 1..10u64.pow(10), sms in 1..32u32,
    ) {
        let machine = with(Interference::H100);
        let exchange = Work::over_nvlink(Bytes(bytes));
        let beside = |driving| machine.duration_beside(&compute, 100, &exchange, driving);
        prop_assert!(beside(sms) <= beside(sms + 1), "{} > {}", beside(sms), beside(sms + 1));

        let product = |bytes| {
            let rate = Rate::Gemm { dtype: Dtype::Bf16, depth: 4096 };
            Work::Compute(vec![Kernel { rate, flops: Flops(10u64.pow(12)), bytes: Bytes(bytes), launches: 1 }])
        };
        for other in [exchange.clone(), Work::Copy { nvlink: Bytes(bytes) }] {
            let beside = |traffic| machine.duration_beside(&other, sms, &product(traffic), 100);
            prop_assert!(beside(traffic) <= beside(traffic + more));
        }
    }
}
