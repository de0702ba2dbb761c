//! The first sieve of `dualweave search`: configurations bounded per second on one core. Tables of settings are part of it.

use std::path::Path;

use divan::Bencher;
use divan::counter::ItemsCount;
use dualweave::job::{Job, Overrides, load};
use dualweave::machine::Machine;
use dualweave::passes::search::Configuration;
use dualweave::passes::search::bound::{Shape, Table};
use dualweave::passes::search::closer::Known;
use dualweave::passes::search::space::{Setting, Space};

fn main() {
    divan::main();
}

fn deepseek_v3() -> Job {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deepseek-v3/job.ron");
    load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{error:?}")).job
}

/// Every configuration of one setting in sixteen on so many GPUs, the tables made as well.
#[divan::bench(args = [2048, 16_384], sample_count = 3)]
fn bounds(bencher: Bencher, gpus: u64) {
    let job = deepseek_v3();
    let machine = Machine::new(&job.cluster, None);
    let space = Space::new(&job, gpus, &Configuration::of(&job, 20), &[]);
    let settings: Vec<&Setting> = space.settings.iter().step_by(16).collect();
    let schedules = |setting: &Setting| -> usize {
        space.splits.iter().filter(|split| split.takes(setting)).map(|split| split.schedules.len()).sum()
    };
    let count: usize = settings.iter().map(|setting| schedules(setting)).sum::<usize>() * space.sms.len();
    bencher.counter(ItemsCount::new(count)).bench(|| {
        let mut least = u64::MAX;
        for setting in &settings {
            let table = Table::new(&job, &machine, setting, &space.sms);
            for split in space.splits.iter().filter(|split| split.takes(setting)) {
                for &(kind, _) in &split.schedules {
                    let shape = Shape::new(&job, split, kind);
                    let fits = table.memory(&shape) <= machine.memory;
                    for sms in 0..space.sms.len() {
                        least = least.min(if fits { table.step(&shape, sms).0 } else { u64::MAX });
                    }
                }
            }
        }
        divan::black_box(least)
    });
}

/// A closer look at the published configuration.
#[divan::bench(sample_count = 20)]
fn look(bencher: Bencher) {
    let job = deepseek_v3();
    let machine = Machine::new(&job.cluster, None);
    let own = Configuration::of(&job, 20);
    let known = Known::new(&job, &machine, &[own], 1);
    bencher.counter(ItemsCount::new(1_usize)).bench(|| known.look(divan::black_box(&own)));
}
