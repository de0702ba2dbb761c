//! The steady state of a layer pair over a grid of machines and models: the search against orders made by hand. The summary
//! is a snapshot; `docs/overlap.md` quotes it.

use std::fmt::Write as _;
use std::path::Path;

use dualweave::ir::Stream;
use dualweave::job::model::Dtype;
use dualweave::job::sms::CommunicationSms;
use dualweave::job::training::PairOrder;
use dualweave::job::{Job, Overrides, load};
use dualweave::machine::Machine;
use dualweave::passes::overlap::cyclic::CyclicProblem;
use dualweave::passes::overlap::report::steady;
use dualweave::units::Nanos;

/// One place of the grid: DeepSeek-V3's layer with another machine, payload, or routing.
struct Cell {
    name: String,
    sms: u32,
    job: Job,
}

fn grid() -> Vec<Cell> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deepseek-v3/job.ron");
    let base = load(&path, &Overrides::default()).expect("the example").job;
    let mut cells = Vec::new();
    for ep in [8, 16, 32, 64] {
        for network in [12.5, 25.0, 50.0, 100.0] {
            for (payload, dispatch) in [("bf16", Dtype::Bf16), ("fp8", Dtype::Fp8)] {
                for top_k in [2, 4, 6, 8] {
                    for sms in [10, 20] {
                        let mut job = base.clone();
                        job.training.ep = ep;
                        job.training.communication_sms = CommunicationSms::Fixed(sms);
                        job.cluster.network.gb_s = network;
                        // What one SM drives grows with the card.
                        job.cluster.network.per_sm_gb_s = Some(network / 8.0);
                        job.model.precision.dispatch = dispatch;
                        let moe = job.model.moe.as_mut().expect("experts");
                        moe.top_k = top_k;
                        job.check().expect("a job that makes sense");
                        let name = format!("ep {ep}, {network} GB/s, {payload}, top-{top_k}, {sms} SMs");
                        cells.push(Cell { name, sms, job });
                    }
                }
            }
        }
    }
    cells
}

/// Median and largest of some shares, in percent.
fn summary(mut gains: Vec<f64>) -> String {
    gains.sort_by(f64::total_cmp);
    let percent = |gain: f64| 100.0 * gain;
    let positive = gains.iter().filter(|gain| **gain > 1e-9).count();
    format!(
        "median {:.2} %, best {:.2} %, strictly better in {positive} of {}",
        percent(gains[gains.len() / 2]),
        percent(gains[gains.len() - 1]),
        gains.len()
    )
}

/// Layers of a chunk.
const LAYERS: [u64; 4] = [1, 2, 3, 4];

/// Cells that were not proved to be optimal, with how far they are over their bound.
#[derive(Default)]
struct Proofs {
    proved: usize,
    others: String,
}

impl Proofs {
    fn count(&mut self, name: &str, value: Nanos, bound: Nanos, proved: bool) {
        match proved {
            true => self.proved += 1,
            false => {
                let over = value.as_f64() / bound.as_f64() - 1.0;
                let _ = writeln!(self.others, "  {name}: {:.2} % over the bound", 100.0 * over);
            }
        }
    }
}

#[test]
fn search_is_never_worse_than_by_hand() {
    let cells = grid();
    assert!(cells.len() >= 200, "{}", cells.len());
    let by_hand = [PairOrder::Serial, PairOrder::DeepSeek, PairOrder::Megatron];
    let gain = |mine: Nanos, theirs: Nanos| theirs.as_f64() / mine.as_f64() - 1.0;
    let mut period_gains = vec![Vec::new(); by_hand.len()];
    let mut span_gains = vec![vec![Vec::new(); LAYERS.len()]; by_hand.len()];
    let (mut periods, mut spans) = (Proofs::default(), LAYERS.map(|_| Proofs::default()));
    for cell in &cells {
        let job = &cell.job;
        let machine = Machine::new(&job.cluster, None);
        let problem = CyclicProblem::of_job(job, &machine, cell.sms).expect("experts");
        for (layers, spans) in LAYERS.into_iter().zip(&mut spans) {
            let found = steady(&problem, PairOrder::Search, layers).expect("a schedule");
            let name = format!("{}, {layers} layers", cell.name);
            // So many layers take at least so many times what the busier engine has to do.
            let load = problem.load(Stream::Compute).max(problem.load(Stream::Comm));
            assert!(found.span >= load * layers && found.span_bound >= load * layers, "{name}");
            spans.count(&name, found.span, found.span_bound, found.span_proved());
            let schedule = &found.schedule;
            if layers == 1 {
                assert!(schedule.period >= problem.bound(), "{name}");
                periods.count(&cell.name, schedule.period, schedule.bound, schedule.proved());
            }
            for (at, &order) in by_hand.iter().enumerate() {
                let other = steady(&problem, order, layers).expect("orders by hand fit");
                assert!(schedule.period <= other.schedule.period, "{name}: {}", order.name());
                assert!(found.span <= other.span, "{name}: {}", order.name());
                if layers == 1 {
                    period_gains[at].push(gain(schedule.period, other.schedule.period));
                }
                span_gains[at][layers as usize - 1].push(gain(found.span, other.span));
            }
        }
    }
    let mut text = format!("{} cells\nperiod: {} optimal and proved\n", cells.len(), periods.proved);
    for (layers, spans) in LAYERS.into_iter().zip(&spans) {
        let _ = writeln!(text, "span of {layers} layers: {} optimal and proved", spans.proved);
    }
    for ((order, periods), spans) in by_hand.iter().zip(period_gains).zip(span_gains) {
        let _ = writeln!(text, "against {}, period: {}", order.name(), summary(periods));
        for (layers, gains) in LAYERS.into_iter().zip(spans) {
            let _ = writeln!(text, "against {}, span of {layers} layers: {}", order.name(), summary(gains));
        }
    }
    let _ = writeln!(text, "not proved:\n{}", periods.others);
    spans.iter().for_each(|spans| text.push_str(&spans.others));
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.bind(|| insta::assert_snapshot!("overlap_grid", text));
}
