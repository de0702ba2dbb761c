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
    /// The same as the simulator has it, which knows no host.
    pub gpu: f64,
    /// The same with the host's time, where that was measured: of [`Outcome::gpu`] and what the host can launch the slower.
    pub simulated: f64,
    /// Shares of the ranks' time: computing, waiting for communication, idle.
    pub shares: [f64; 3],
    /// What a GPU is busy with for one layer and micro-batch, forward and backward, exposed communication included, in milliseconds: a
    /// rank's time without what it idles, over its layers and micro-batches. So it has the head's and the optimizer's share in it.
    pub layer_ms: f64,
    /// What Megatron's host took to launch such a layer, if that was measured: [`megatron_layers`].
    pub host_ms: Option<f64>,
}

impl Outcome {
    /// Simulated over published speed, less one.
    pub fn error(&self) -> f64 {
        self.simulated / self.published - 1.0
    }

    /// Whether the host decides how fast it is.
    pub fn is_limited_by_host(&self) -> bool {
        self.simulated < self.gpu
    }
}

/// A layer of Megatron-Core as it was timed on one GPU: a row of `docs/measurements/h200_megatron_layers.csv`. All times in milliseconds.
pub struct MegatronLayer {
    /// Which model's, and how many experts the GPU has.
    pub name: String,
    hidden: u32,
    heads: u32,
    kv_heads: u32,
    experts: u32,
    top_k: u32,
    width: u32,
    shared: u32,
    qk_norm: bool,
    /// Tokens of the micro-batch.
    pub tokens: u32,
    /// Forward and backward, one after the other: the slower of host and GPU.
    pub steady: f64,
    /// Of these the time in which a kernel runs.
    pub busy: f64,
}

/// All that were timed.
pub fn megatron_layers() -> Vec<MegatronLayer> {
    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/measurements/h200_megatron_layers.csv");
    let text = fs::read_to_string(table).expect("the table");
    let rows = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    rows.map(|line| {
        let (name, numbers) = line.strip_prefix('"').and_then(|rest| rest.split_once("\",")).expect("a name, quoted");
        let numbers: Vec<f64> = numbers.split(',').map(|number| number.parse().expect("a number")).collect();
        let [hidden, heads, kv_heads, experts, top_k, width, shared, qk_norm, tokens] =
            [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|at: usize| numbers[at] as u32);
        let (steady, busy, qk_norm) = (numbers[11], numbers[12], qk_norm == 1);
        let name = name.to_owned();
        MegatronLayer { name, hidden, heads, kv_heads, experts, top_k, width, shared, qk_norm, tokens, steady, busy }
    })
    .collect()
}

impl MegatronLayer {
    /// Few enough tokens for the GPU to have next to nothing to do: then `steady` is the host's time.
    pub const FEW: u32 = 128;

    /// What the simulator says that the GPU takes for it.
    pub fn simulated(&self) -> f64 {
        let layers = 4;
        let mlp = match self.experts {
            0 => format!("dense_width: {}", self.width),
            experts => format!(
                "moe: (experts: {experts}, top_k: {}, width: {}, shared_width: {}, layers: All)",
                self.top_k, self.width, self.shared
            ),
        };
        let job = parse(&format!(
            "(model: (name: \"layer\", layers: {layers}, hidden: {}, vocabulary: 64,
                      attention: Gqa(heads: {}, kv_heads: {}, head_dim: 128, qk_norm: {}), {mlp},
                      precision: (products: Bf16, dispatch: Bf16)),
              cluster: (
                  name: \"one H200\",
                  gpu: (name: \"H200\", sms: 132, memory_gb: 141, bf16_tflops: 989, hbm_gb_s: 4800),
                  gpus_per_node: 1, nodes: 1, nvlink: (gb_s: 367, latency_us: 2), network: (gb_s: 50, latency_us: 10),
              ),
              training: (
                  pp: 1, dp: 1, ep: 1, micro_batches: 1, sequence: {}, schedule: OneFOneB, overlap: Serial,
                  without_rewrites: [\"all\"],
              ))",
            self.hidden, self.heads, self.kv_heads, self.qk_norm, self.tokens
        ));
        let simulation = simulate(&compile(&job).expect("a plan").plan).expect("times");
        simulation.pipeline.millis() / f64::from(layers)
    }

    /// Whether it is a layer of the job's model, with at least as many experts as a GPU of the job has.
    fn is_of(&self, job: &Job) -> bool {
        let (experts, width) = match &job.model.moe {
            Some(moe) => (moe.experts / job.training.ep, moe.width),
            None => (0, job.model.dense_width.expect("a dense model")),
        };
        (self.hidden, self.width) == (job.model.hidden, width) && self.experts >= experts
    }
}

/// A job that is given as text.
fn parse(text: &str) -> Job {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("job.ron");
    fs::write(&path, text).expect("a file");
    load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{text}: {error}")).job
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
        parse(&text)
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
        let shares = shares(&simulation);
        let training = &job.training;
        let layers = f64::from(job.model.layers) / f64::from(training.pp);
        let passes = f64::from(training.micro_batches) * layers;
        let layer_ms = simulation.step.millis() * (shares[0] + shares[1]) / passes;
        let hosts =
            megatron_layers().into_iter().filter(|layer| layer.tokens == MegatronLayer::FEW && layer.is_of(&job));
        let host_ms = hosts.map(|layer| layer.steady).min_by(f64::total_cmp);
        // A rank's host launches all its layers for each micro-batch; until the first comes to the last rank, those in front have launched
        // one of their chunks each. What comes behind the pipeline is as simulated.
        let chunks = f64::from(training.stages_per_rank());
        let launches = passes + layers * f64::from(training.pp - 1) / chunks;
        let behind = simulation.step.secs() - simulation.pipeline.secs();
        let launched = host_ms.map_or(0.0, |host| host / 1e3 * launches + behind);
        let speed = |step: f64| tokens / step / gpus;
        let step = simulation.step.secs();
        Outcome { published, gpu: speed(step), simulated: speed(step.max(launched)), shares, layer_ms, host_ms }
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
