//! Published training runs, as jobs: `tests/data/published/runs.csv`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use dualweave::job::{Job, Overrides, load};
use dualweave::passes::compile;
use dualweave::sim::{Simulation, simulate};

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name.
    pub name: String,
    fields: Vec<String>,
    /// Why it is not counted; empty where it is.
    pub left_out: String,
}

/// What the simulator makes of it.
pub struct Outcome {
    /// Tokens per second and GPU, published.
    pub published: f64,
    /// The same, simulated.
    pub simulated: f64,
    /// Shares of the ranks' time: computing, waiting for communication, idle.
    pub shares: [f64; 3],
}

impl Outcome {
    /// Simulated over published speed, less one.
    pub fn error(&self) -> f64 {
        self.simulated / self.published - 1.0
    }
}

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/published");

/// All rows.
pub fn runs() -> Vec<Run> {
    let text = fs::read_to_string(Path::new(FOLDER).join("runs.csv")).expect("the table");
    let rows = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    rows.map(|line| {
        let fields: Vec<String> = line.splitn(18, ',').map(str::to_owned).collect();
        assert_eq!(fields.len(), 18, "{line}");
        Run { name: fields[0].clone(), left_out: fields[17].clone(), fields }
    })
    .collect()
}

impl Run {
    fn number(&self, at: usize) -> Option<u64> {
        (!self.fields[at].is_empty()).then(|| self.fields[at].parse().expect("a number"))
    }

    /// Whether it can be written as a job: the row says enough, and the model has nothing that jobs do not know.
    pub fn is_job(&self) -> bool {
        self.left_out.is_empty() || self.left_out.starts_with("not told:")
    }

    /// The job. What the row leaves open is what is usual: micro-batches of one sequence, nothing computed again, dispatch in bf16.
    pub fn job(&self) -> Job {
        let model = &self.fields[16];
        if model == "deepseek-v3" {
            return published_deepseek();
        }
        let [gpus, tp, pp] = [2, 3, 4].map(|at| self.number(at).expect("said"));
        let (chunks, ep, size) =
            (self.number(5).unwrap_or(1), self.number(7).unwrap_or(1), self.number(8).unwrap_or(1));
        let (batch, sequence) = (self.number(9).expect("said"), self.number(10).expect("said"));
        let dp = gpus / tp / pp;
        let fp8 = self.fields[11].starts_with("FP8");
        let products = if fp8 { "Fp8" } else { "Bf16" };
        let precision = format!("precision: (products: {products}, dispatch: Bf16)");
        let data = Path::new(FOLDER).join(format!("{model}.ron"));
        let model = match fs::read_to_string(&data) {
            Ok(text) => {
                let text = text.lines().filter(|line| !line.starts_with("//")).collect::<String>();
                format!("{}, {precision})", text.strip_suffix(')').expect("a struct"))
            }
            Err(_) => {
                let config = Path::new(FOLDER).join("../hf").join(format!("{model}.config.json"));
                format!("hf(config: {:?}, name: {model:?}, {precision})", config.to_str().expect("a name"))
            }
        };
        // One scale per tensor, as Megatron's FP8 recipes have it by default, not blocks: `docs/measurements/h200_ops.csv`, fitted as the
        // machine model's constants are, 1358 TFLOP/s · depth / (depth + 280).
        let depths = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768].map(f64::from);
        let points = depths.map(|depth| format!("({depth}, {:.0})", 1358.0 * depth / (depth + 280.0)));
        let mut schedule = "OneFOneB".to_owned();
        if pp > 1 && chunks > 1 {
            schedule = format!("Interleaved, stages_per_rank: {chunks}");
        }
        let again = match self.fields[12].as_str() {
            "norm; act" => "norms: true, swiglu: true",
            said if said.contains("layernorm") => "norms: true",
            _ => "",
        };
        let nvlink =
            "(1, 45.8), (2, 91.1), (4, 176.0), (8, 317.3), (12, 331.5), (16, 343.1), (24, 348.0), (132, 367.0)";
        let mut text = String::new();
        let _ = write!(
            text,
            "(model: {model},
             cluster: (
                 name: \"H100\",
                 gpu: (name: \"H100 SXM\", sms: 132, memory_gb: 80, bf16_tflops: 989, fp8_tflops: 1978, hbm_gb_s: 3350,
                       measured: (fp8_gemm_tflops: [{}])),
                 gpus_per_node: 8, nodes: {},
                 nvlink: (gb_s: 367, latency_us: 2, measured: [{nvlink}]),
                 network: (gb_s: 50, latency_us: 10),
             ),
             training: (
                 pp: {pp}, tp: {tp}, dp: {dp}, ep: {ep}, micro_batches: {}, micro_batch_size: {size}, sequence: {sequence},
                 schedule: {schedule}, recompute: ({again}), overlap: Serial, without_rewrites: [\"all\"],
             ))",
            points.join(", "),
            gpus.div_ceil(8),
            batch / dp / size,
        );
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("job.ron");
        fs::write(&path, text).expect("a file");
        load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{}: {error}", self.name)).job
    }

    /// Compiles and simulates it.
    pub fn outcome(&self) -> Outcome {
        let job = self.job();
        let plan = compile(&job).unwrap_or_else(|error| panic!("{}: {error}", self.name)).plan;
        let simulation = simulate(&plan).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let tokens = job.training.step_tokens() as f64;
        let gpus = f64::from(job.training.pp * job.training.tp * job.training.dp);
        let per_token = job.model.training_flops(u64::from(job.training.sequence)).model as f64;
        let published = match [13, 14, 15].map(|at| self.fields[at].parse::<f64>().ok()) {
            [Some(tokens), _, _] => tokens,
            [_, Some(tflops), _] => tflops * 1e12 / per_token,
            [_, _, Some(mfu)] => mfu / 100.0 * 989.5e12 / per_token,
            _ => panic!("{} has no speed", self.name),
        };
        let simulated = tokens / simulation.step.secs() / gpus;
        Outcome { published, simulated, shares: shares(&simulation) }
    }
}

fn shares(simulation: &Simulation) -> [f64; 3] {
    let all = simulation.step.as_f64() * simulation.ranks.len() as f64;
    let sum = |of: fn(&dualweave::sim::RankTiming) -> f64| simulation.ranks.iter().map(of).sum::<f64>() / all;
    [sum(|rank| rank.busy.as_f64()), sum(|rank| rank.exposed.as_f64()), sum(|rank| rank.bubble.as_f64())]
}

/// DeepSeek-V3 as published, with the times of its published trace (`examples/deepseek-v3/spans.csv`) and its order of pairs.
fn published_deepseek() -> Job {
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/deepseek-v3");
    let folder = tempfile::tempdir().expect("a folder");
    let profile = folder.path().join("profile.ron");
    let tune = std::process::Command::new(env!("CARGO_BIN_EXE_dualweave"))
        .arg("tune")
        .arg(example.join("job.ron"))
        .arg("--components")
        .arg(example.join("spans.csv"))
        .arg("-o")
        .arg(&profile)
        .output()
        .expect("the command starts");
    assert!(tune.status.success(), "{}", String::from_utf8_lossy(&tune.stderr));
    let overrides = Overrides { profile: Some(profile), ..Overrides::default() };
    let mut job = load(&example.join("job.ron"), &overrides).expect("the example").job;
    job.training.overlap = dualweave::job::training::PairOrder::DeepSeek;
    job.training.without_rewrites = vec!["all".to_owned()];
    job
}
