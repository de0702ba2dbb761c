//! Forms of exchanges, and the kernels in front of them.

use dualweave::ir::{Component, Phase, Rate, Step, Work};
use dualweave::job::Job;
use dualweave::job::model::Dtype;
use dualweave::passes::unit_work::pieces::{Carrier, ExchangeForm, Payload, Piece, Route, exchange_buffer};
use dualweave::passes::unit_work::routing::{copies, flat_copies};
use dualweave::units::Bytes;

use super::{example, kernels, moe_unit, part, work};

pub const FLAT: ExchangeForm = ExchangeForm { route: Route::Flat, payload: Payload::AsGiven, carrier: Carrier::Sms };
const FP8: ExchangeForm = ExchangeForm { route: Route::TwoHop, payload: Payload::Fp8, carrier: Carrier::Sms };
const COPY: ExchangeForm =
    ExchangeForm { route: Route::TwoHop, payload: Payload::AsGiven, carrier: Carrier::CopyEngine };
/// Exchanges towards the experts, then those that come back.
const EXCHANGES: [(Component, Phase); 4] = [
    (Component::Dispatch, Phase::F),
    (Component::Combine, Phase::I),
    (Component::Combine, Phase::F),
    (Component::Dispatch, Phase::I),
];

fn in_form((component, phase): (Component, Phase), step: Step, exchange: ExchangeForm) -> Piece {
    Piece { step, exchange, ..Piece::whole(component, phase) }
}

/// Bytes over NVLink, and over the network.
pub fn sent(work: &Work) -> (u64, u64) {
    match work {
        Work::Exchange { nvlink, network, .. } => (nvlink.0, network.0),
        Work::Copy { nvlink } => (nvlink.0, 0),
        Work::Compute(_) => panic!("an exchange wanted"),
    }
}

#[test]
fn a_flat_exchange_sends_more_over_the_network() {
    let job = example("deepseek-v3");
    let (unit, moe) = (moe_unit(&job), job.model.moe.as_ref().expect("experts"));
    let copies = flat_copies(moe, 64, 8);
    for (at, exchange) in EXCHANGES.into_iter().enumerate() {
        // FP8 with a scale for each 128 values to the experts, bf16 back.
        let token = if at < 2 { 7168.0 + 4.0 * 56.0 } else { 2.0 * 7168.0 };
        let bytes = |copies: f64| (4096.0 * copies * token).round() as u64;
        let flat = work(&job, unit, &in_form(exchange, Step::Main, FLAT)).expect("an exchange");
        assert_eq!(sent(&flat), (bytes(copies.nvlink), bytes(copies.network)), "{exchange:?}");
        let two_hop = sent(&work(&job, unit, &in_form(exchange, Step::Main, ExchangeForm::default())).expect("it"));
        assert!(sent(&flat).1 > two_hop.1 && sent(&flat).0 < two_hop.0, "{exchange:?}");
    }
}

#[test]
fn an_fp8_payload_wants_another_format_and_a_gpu_that_has_it() {
    let mut job = example("deepseek-v3");
    let unit = moe_unit(&job);
    for exchange in EXCHANGES {
        let main = |job: &Job, form| work(job, unit, &in_form(exchange, Step::Main, form));
        let quantise = |job: &Job| work(job, unit, &in_form(exchange, Step::Quantise, FP8));
        // DeepSeek sends FP8 to the experts, and bf16 back.
        job.model.precision.dispatch = Dtype::Fp8;
        let towards = exchange == EXCHANGES[0] || exchange == EXCHANGES[1];
        assert_eq!(main(&job, FP8).is_some(), !towards, "{exchange:?}");
        assert_eq!(quantise(&job).is_some(), !towards, "{exchange:?}");

        job.model.precision.dispatch = Dtype::Bf16;
        let (given, fp8) = (main(&job, ExchangeForm::default()).expect("it"), main(&job, FP8).expect("it"));
        let share = |fp8: u64, given: u64| fp8 as f64 / given as f64 - 7392.0 / 14336.0;
        assert!(share(sent(&fp8).0, sent(&given).0).abs() < 1e-6 && share(sent(&fp8).1, sent(&given).1).abs() < 1e-6);

        // Tokens are quantised once each; what comes back, once for each of the GPUs that it goes to.
        let copies = flat_copies(job.model.moe.as_ref().expect("experts"), 64, 8);
        let rows = if towards { 4096.0 } else { 4096.0 * (copies.nvlink + copies.network) };
        let [kernel] = kernels(&quantise(&job))[..] else { panic!("one kernel wanted") };
        assert_eq!((kernel.rate, kernel.launches), (Rate::Memory, 1));
        assert!((kernel.bytes.as_f64() - rows * (14336.0 + 7392.0)).abs() <= 1.0, "{exchange:?}");

        let mut older = job.clone();
        older.cluster.gpu.fp8_tflops = None;
        assert_eq!((main(&older, FP8), quantise(&older)), (None, None));
    }
}

#[test]
fn a_copy_engine_stays_within_the_node() {
    let mut job = example("deepseek-v3");
    let unit = moe_unit(&job);
    for exchange in EXCHANGES {
        let of = |job: &Job, step, form| work(job, unit, &in_form(exchange, step, form));
        job.training.ep = 64;
        assert_eq!((of(&job, Step::Main, COPY), of(&job, Step::Pack, COPY)), (None, None), "{exchange:?}");

        job.training.ep = 8;
        let kernel = sent(&of(&job, Step::Main, ExchangeForm::default()).expect("it"));
        assert_eq!(kernel.1, 0);
        assert_eq!(of(&job, Step::Main, COPY), Some(Work::Copy { nvlink: Bytes(kernel.0) }));
        assert_eq!(of(&job, Step::Main, FLAT), of(&job, Step::Main, ExchangeForm::default()), "one node, one way");
        // What is sent is read and written; what comes back is added up as well: read, and the sums read and written.
        let bytes: Vec<u64> = kernels(&of(&job, Step::Pack, COPY)).iter().map(|kernel| kernel.bytes.0).collect();
        let towards = exchange == EXCHANGES[0] || exchange == EXCHANGES[1];
        let mut wanted = if towards { vec![] } else { vec![kernel.0 + 2 * 2 * 4096 * 7168] };
        wanted.push(2 * kernel.0);
        wanted.sort_unstable();
        assert_eq!(bytes, wanted, "{exchange:?}");

        // Packing FP8 moves fewer bytes.
        job.model.precision.dispatch = Dtype::Bf16;
        let both = ExchangeForm { payload: Payload::Fp8, ..COPY };
        let packed = |form| kernels(&of(&job, Step::Pack, form)).iter().map(|kernel| kernel.bytes.0).sum::<u64>();
        assert!(packed(both) < packed(COPY));
        job.model.precision.dispatch = Dtype::Fp8;

        job.training.ep = 1;
        for step in [Step::Main, Step::Quantise, Step::Pack] {
            for form in [ExchangeForm::default(), FLAT, FP8, COPY] {
                assert_eq!(of(&job, step, form), None, "all experts are here");
            }
        }
    }
}

#[test]
fn buffers_of_exchanges_by_hand() {
    let mut job = example("deepseek-v3");
    let unit = moe_unit(&job);
    let moe = job.model.moe.clone().expect("experts");
    let of = |job: &Job, step, form, parts| {
        exchange_buffer(job, unit, &part(in_form((Component::Combine, Phase::F), step, form), 0, parts)).0
    };
    let rows = |tokens: u64, copies: f64| (tokens as f64 * copies).ceil() as u64 + 8 * tokens;
    let (two_hop, flat) = (copies(&moe, 64, 8), flat_copies(&moe, 64, 8));
    assert_eq!(of(&job, Step::Main, ExchangeForm::default(), 1), 14336 * rows(4096, two_hop.network));
    assert_eq!(of(&job, Step::Main, ExchangeForm::default(), 2), 14336 * rows(2048, two_hop.network));
    assert_eq!(of(&job, Step::Main, FLAT, 1), 14336 * rows(4096, flat.network));
    assert_eq!(of(&job, Step::Main, FP8, 1), 7392 * rows(4096, two_hop.network));
    assert_eq!(of(&job, Step::Main, COPY, 1), 0, "no copy engine over the network");
    assert_eq!(of(&job, Step::Quantise, FP8, 1), 0);
    job.training.ep = 8;
    assert_eq!(of(&job, Step::Main, ExchangeForm::default(), 1), 14336 * rows(4096, 0.0));
    assert_eq!(of(&job, Step::Main, COPY, 1), 14336 * rows(4096, flat_copies(&moe, 8, 8).nvlink), "packed");
}
