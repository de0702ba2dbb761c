//! Routers, against the host's, whose product is with the identity: its input is the logits.

#[path = "../host_runtime/shapes.rs"]
mod shapes;

use dualweave::job::Model;
use dualweave::job::model::{Attention, Moe};
use dualweave::runtime::cuda::Slice;
use dualweave::runtime::cuda::ops::router::{Rule, forward, input_gradient, loads};
use dualweave::runtime::host::layers::router::{Router, Routing, RoutingGradient, Saved};
use dualweave::runtime::host::shape::{RoutingRule, Scoring};
use dualweave::runtime::host::{Matrix, Shape};

use crate::gpu::{BF16, Gpu, Random, assert_close, gpu};

/// Rounding of f32 in a few operations, the exponential among them.
const F32: f64 = 1e-6;

/// The host's router of a rule.
struct Host {
    shape: Shape,
    moe: Moe,
    router: Router<f64>,
}

impl Host {
    /// With biases of logits and for the choice.
    fn new(rule: &Rule, [added, bias]: [Option<&[f64]>; 2]) -> Self {
        let moe = Moe {
            experts: rule.experts as u32,
            top_k: rule.top_k as u32,
            groups: rule.groups as u32,
            topk_groups: rule.topk_groups as u32,
            router_bias: added.is_some(),
            balance_bias: bias.is_some(),
            ..shapes::experts()
        };
        let model = Model {
            hidden: moe.experts,
            moe: Some(moe.clone()),
            ..shapes::base(Attention::Mha(shapes::heads(2, None)))
        };
        let routing =
            RoutingRule { scoring: rule.scoring, normalised: rule.normalised, factor: f64::from(rule.factor) };
        let shape = shapes::shape(model, routing);
        let mut router = Router::new(&shape, &moe);
        for expert in 0..rule.experts {
            router.logits.weight.values.row_mut(expert)[expert] = 1.0;
        }
        for (tensor, bias) in [(&mut router.logits.bias, added), (&mut router.balance, bias)] {
            if let (Some(tensor), Some(bias)) = (tensor, bias) {
                tensor.values.values_mut().copy_from_slice(bias);
            }
        }
        Self { shape, moe, router }
    }

    fn forward(&self, logits: &[f64]) -> (Routing<f64>, Saved<f64>) {
        let experts = self.moe.experts as usize;
        let x = Matrix::new(logits.len() / experts, experts, logits.to_vec());
        self.router.forward(&self.shape, &self.moe, &x)
    }
}

/// Numbers for the GPU and the host.
type Numbers = (Vec<f32>, Vec<f64>);

/// Forward and gradient of one batch, twice, with different numbers of SMs.
fn check(gpu: &mut Gpu, rule: &Rule, biases: [Option<Numbers>; 2], logits: Numbers, what: &str) {
    let tokens = logits.0.len() / rule.experts;
    let mut random = Random::new(9);
    let (d_weights, exact_d_weights) = random.f32(tokens * rule.top_k, 0.0, 1.0);
    let host = Host::new(rule, [0, 1].map(|which| biases[which].as_ref().map(|(_, exact)| exact.as_slice())));
    let (routing, saved) = host.forward(&logits.1);
    let gradient = RoutingGradient { weights: Matrix::new(tokens, rule.top_k, exact_d_weights), shared: None };
    let (d_logits, _) = host.router.input_gradient(&host.shape, saved, &gradient);

    let biases = biases.map(|bias| bias.map_or(Slice::none(), |(bias, _)| gpu.given(&bias)));
    let given_d_weights = gpu.given(&d_weights);
    let mut before = None;
    for sms in [3, 132] {
        let scores = gpu.given(&logits.0);
        let (experts, weights) = (gpu.poisoned(tokens * rule.top_k), gpu.poisoned(tokens * rule.top_k));
        forward(&gpu.stream, sms, rule, scores, biases, (experts, weights)).expect("launched");
        let d = gpu.poisoned(tokens * rule.experts);
        input_gradient(&gpu.stream, sms, rule, (scores, experts), given_d_weights, d).expect("launched");

        assert_eq!(experts.read(&gpu.stream).expect("experts"), routing.experts, "{what}: the host's experts");
        assert_close(&format!("{what}: weights"), &gpu.numbers(weights), routing.weights.values(), F32);
        assert_close(&format!("{what}: gradient"), &gpu.floats(d), d_logits.values(), BF16);
        let bits = (scores.read(&gpu.stream).expect("scores"), weights.read(&gpu.stream), d.read(&gpu.stream));
        let bits = (bits.0, bits.1.expect("weights"), bits.2.expect("gradients"));
        assert!(before.is_none_or(|before| before == bits), "{what}: the same bits with {sms} SMs");
        before = Some(bits);
    }
}

const PLAIN: Rule =
    Rule { experts: 8, groups: 1, topk_groups: 1, top_k: 2, scoring: Scoring::Softmax, normalised: true, factor: 1.0 };

/// DeepSeek-V3's.
const GROUPED: Rule = Rule {
    experts: 256,
    groups: 8,
    topk_groups: 4,
    top_k: 8,
    scoring: Scoring::Sigmoid,
    normalised: true,
    factor: 2.5,
};

#[test]
fn chooses_weighs_and_differentiates_as_the_host() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(2);
    let softmax = Scoring::Softmax;
    let rules = [
        (1, PLAIN, false),
        (65, PLAIN, true),
        (
            130,
            Rule { experts: 160, groups: 8, topk_groups: 3, top_k: 6, normalised: false, factor: 16.0, ..PLAIN },
            false,
        ),
        (77, Rule { experts: 33, top_k: 5, ..PLAIN }, false),
        (300, GROUPED, true),
        (64, Rule { scoring: softmax, ..GROUPED }, true),
        (64, Rule { normalised: false, ..GROUPED }, false),
        (19, Rule { experts: 1024, groups: 1, topk_groups: 1, top_k: 16, ..GROUPED }, true),
        (19, Rule { experts: 1024, groups: 1024, topk_groups: 40, top_k: 16, ..GROUPED }, false),
        (5, Rule { experts: 4, groups: 2, topk_groups: 1, top_k: 2, ..GROUPED }, true),
        (5, Rule { experts: 16, groups: 1, topk_groups: 1, top_k: 16, scoring: softmax, ..GROUPED }, false),
    ];
    for (index, (tokens, rule, biased)) in rules.into_iter().enumerate() {
        let logits = random.f32(tokens * rule.experts, 0.0, 1.5);
        let bias = biased.then(|| random.f32(rule.experts, 0.0, 0.2));
        let what = format!("{index}: {tokens} tokens, {} experts", rule.experts);
        check(&mut gpu, &rule, [None, bias.clone()], logits.clone(), &what);
        let added = Some(random.f32(rule.experts, 0.0, 1.0));
        check(&mut gpu, &rule, [added, bias], logits, &format!("{what}, with a bias of logits"));
    }
}

/// Of equal scores the first is chosen, and of equal groups.
#[test]
fn ties_go_to_the_lower_index() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(3);
    for rule in [PLAIN, GROUPED, Rule { scoring: Scoring::Softmax, ..GROUPED }] {
        let logits: Vec<f32> = (0..100 * rule.experts).map(|_| (random.bits() % 4) as f32 / 2.0).collect();
        let exact = logits.iter().map(|&logit| f64::from(logit)).collect();
        check(&mut gpu, &rule, [None, None], (logits, exact), &format!("ties of {} experts", rule.experts));
    }
}

#[test]
fn loads_are_added_up() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(4);
    for (entries, experts) in [(1, 1), (5000, 256), (33, 1024)] {
        let chosen: Vec<u32> = (0..entries).map(|_| (random.bits() % experts) as u32).collect();
        let mut expected = vec![3.0; experts as usize];
        chosen.iter().for_each(|&expert| expected[expert as usize] += 2.0);
        let (chosen, sums) = (gpu.given(&chosen), gpu.given(&vec![3.0f32; experts as usize]));
        loads(&gpu.stream, chosen, sums).expect("launched");
        loads(&gpu.stream, chosen, sums).expect("launched");
        assert_eq!(sums.read(&gpu.stream).expect("loads"), expected);
    }
}
