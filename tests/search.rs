//! What a search prunes by: no bound is above what a plan of the configuration takes.

use std::path::Path;

use dualweave::ir::{Action, Layout};
use dualweave::job::cluster::Pods;
use dualweave::job::sms::CommunicationSms;
use dualweave::job::training::ScheduleKind;
use dualweave::job::{Job, Overrides, load};
use dualweave::machine::Machine;
use dualweave::passes::pipeline::{generate, precondition};
use dualweave::passes::search::Configuration;
use dualweave::passes::search::bound::{Shape, Table, least_held};
use dualweave::passes::search::closer::Known;
use dualweave::passes::search::exact::Outcome;
use dualweave::passes::search::space::{Setting, Space};
use dualweave::passes::{compile, rewrite};

fn example(name: &str) -> Job {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).join("job.ron");
    load(&path, &Overrides::default()).expect("the example").job
}

/// Numbers that look random and are the same every time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Compares both bounds with `count` plans of the job's space, of pipelines that are quick to compile; gives how near the closer bound came at best.
fn compare(job: &Job, gpus: u64, count: usize, seed: u64) -> f64 {
    let machine = Machine::new(&job.cluster, job.training.memory_limit_gb);
    let space = Space::new(job, gpus, &Configuration::of(job, 20), &[]);
    let mut numbers = Numbers(seed);
    let (mut compared, mut nearest) = (0, 0.0_f64);
    while compared < count {
        let split = &space.splits[numbers.below(space.splits.len())];
        if split.pp * split.micro_batches > 64 {
            continue;
        }
        let setting = &space.settings[numbers.below(space.settings.len())];
        if !split.takes(setting) {
            continue;
        }
        let schedule = split.schedules[numbers.below(split.schedules.len())];
        let at = numbers.below(space.sms.len());
        let configuration = split.with(schedule, setting, space.sms[at]);
        assert!(space.contains(&configuration));
        let changed = configuration.apply(job);
        changed.check().unwrap_or_else(|error| panic!("{configuration}: {error:?}"));
        let compiled = compile(&changed).unwrap_or_else(|error| panic!("{configuration}: {error:?}"));
        let outcome = Outcome::of(&compiled).expect("it runs");

        let table = Table::new(job, &machine, setting, &space.sms);
        let shape = Shape::new(job, split, schedule.0);
        let (step, memory) = (table.step(&shape, at), table.memory(&shape));
        let look = Known::new(job, &machine, &[configuration], 1).look(&configuration).expect("a look");
        let look = look.expect("a timetable");
        for (name, step, memory) in [("table", step, memory), ("look", look.bound, look.memory)] {
            assert!(step <= outcome.step, "{name} of {configuration}: step {step} of {}", outcome.step);
            assert!(memory <= outcome.need, "{name} of {configuration}: memory {memory} of {}", outcome.need);
        }
        nearest = nearest.max(look.bound.as_f64() / outcome.step.as_f64());
        compared += 1;
    }
    nearest
}

#[test]
fn bounds_are_below_plans_of_a_small_job() {
    let tiny = example("tiny");
    let nearest = compare(&tiny, 8, 40, 0x9E37_79B9_7F4A_7C15);
    assert!(nearest > 0.95, "{nearest}");
    let mut plain = tiny.clone();
    plain.training.without_rewrites = vec![rewrite::ALL.to_owned()];
    plain.training.sharded_optimizer = false;
    compare(&plain, 8, 25, 0xD1B5_4A32_D192_ED03);
    // FP8 payloads, slow links that are never hidden, and no launches.
    let mut slow = tiny;
    slow.training.fp8_exchanges = true;
    slow.training.communication_sms = CommunicationSms::Best;
    slow.cluster.nvlink.gb_s = 3.0;
    slow.cluster.gpus_per_node = 4;
    slow.cluster.nodes = 2;
    slow.cluster.network.gb_s = 1.0;
    slow.cluster.gpu.measured.launch_us = Some(0.0);
    compare(&slow, 8, 25, 0xA076_1D64_78BD_642F);
    // The same with two pods, rails, and experts that are not evenly loaded, as far as there are GPUs for it.
    slow.cluster.pods = Some(Pods { nodes: 1, oversubscription: 6.0 });
    slow.cluster.rails = true;
    slow.training.imbalance = 1.7;
    compare(&slow, 8, 25, 0xE703_7ED1_A0B4_28DB);
}

#[test]
fn bounds_are_below_plans_of_published_models() {
    for (name, gpus, layers, seed) in
        [("deepseek-v3", 64, 12, 11), ("mixtral-8x7b", 16, 8, 12), ("qwen3-30b-a3b", 32, 12, 13)]
    {
        let mut job = example(name);
        job.model.layers = layers;
        job.training.dp = 4;
        job.training.ep = 4;
        job.training.pp = 4;
        job.training.micro_batches = 16;
        compare(&job, gpus, 4, seed);
        job.cluster.pods = Some(Pods { nodes: 1, oversubscription: 4.0 });
        job.training.imbalance = 1.4;
        compare(&job, gpus, 2, seed + 100);
    }
}

/// What `least_held` says is what generated timetables hold, or less.
#[test]
fn schedules_hold_what_is_said() {
    for kind in ScheduleKind::PUBLISHED {
        let turns = if kind == ScheduleKind::Interleaved { 2 } else { 1 };
        for ranks in 1..=12 {
            for micro_batches in 1..=4 * ranks + 2 {
                if precondition(kind, ranks, turns, micro_batches).is_err() {
                    continue;
                }
                let layout = Layout::new(kind.placement().expect("published"), ranks, turns, micro_batches);
                let timetable = generate(kind, &layout).expect("a timetable");
                for (rank, actions) in (0..).zip(&timetable.ranks) {
                    let stages = layout.stages_of(rank);
                    let moments = held(&stages, actions);
                    let each = moments.iter().filter_map(|moment| moment.iter().min()).max().expect("an action");
                    let said = least_held(kind, ranks, micro_batches, rank);
                    assert!(said <= *each, "{kind} {ranks} {micro_batches}: rank {rank} holds {each}, not {said}");
                }
            }
        }
    }
}

/// The chunks that are held of each of these stages, while each action runs.
fn held(stages: &[u32], actions: &[Action]) -> Vec<Vec<u32>> {
    let mut now = vec![0_u32; stages.len()];
    let at = |stage: u32| stages.iter().position(|own| *own == stage).expect("a stage of the rank");
    let moment = |action: &Action| {
        if let Action::F(c) | Action::FB(c, _) = *action {
            now[at(c.stage)] += 1;
        }
        let moment = now.clone();
        // From I on only a part is held.
        if let Action::I(c) | Action::B(c) | Action::FB(_, c) = *action {
            now[at(c.stage)] -= 1;
        }
        moment
    };
    actions.iter().map(moment).collect()
}

#[test]
fn the_space_has_the_job() {
    for name in ["tiny", "deepseek-v3", "mixtral-8x7b", "qwen3-30b-a3b"] {
        let job = example(name);
        let gpus = u64::from(job.training.pp * job.training.dp * job.training.tp);
        let space = Space::new(&job, gpus, &Configuration::of(&job, 20), &[]);
        let own = Configuration::of(&job, 20);
        assert!(space.contains(&own), "{name}: {own}");
        assert_eq!(own.apply(&job).training.step_tokens(), job.training.step_tokens());
        assert!(space.splits.iter().all(|split| {
            u64::from(split.dp) * u64::from(split.micro_batches) * u64::from(split.micro_batch_size) == space.sequences
        }));
        assert_eq!(Setting::of(&own).apply(&job).training.pp, job.training.pp);
        // Uneven loads take nothing out of it.
        let mut uneven = job.clone();
        uneven.training.imbalance = 1.5;
        assert_eq!(Space::new(&uneven, gpus, &own, &[]).count(), space.count());
    }
}
