//! Profiles (`--profile`), and what the machine model makes of them.

use std::path::Path;

use dualweave::Error;
use dualweave::job::profile::Profile;
use dualweave::job::{Overrides, load};
use dualweave::machine::Machine;

use crate::edits::edited;
use crate::guard::{Answer, try_all};
use crate::made_profiles::by_factor;

#[test]
fn profiles() {
    let job = load(Path::new("examples/tiny/job.ron"), &Overrides::default()).expect("the example").job;
    let plan = dualweave::passes::compile(&job).expect("the example compiles").plan;
    let mut small = by_factor(&plan, |_, _| 1.5, &[100, 132]);
    small.ops.truncate(4);
    let measured = std::fs::read("docs/measurements/h200_deepseek_layer_profile.ron").expect("the measurement");
    let bases = [small.to_ron().expect("a text").into_bytes(), measured];
    let works: Vec<_> = plan.programs.iter().flat_map(|program| &program.ops).collect();
    let answer = |bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else { return Answer::Refused(Error::new("not text")) };
        let profile = match Profile::from_ron("profile.ron", text) {
            Ok(profile) => profile,
            Err(error) => return Answer::Refused(error),
        };
        if let Err(error) = profile.suits(&job.cluster) {
            return Answer::Unusable(error);
        }
        let mut cluster = job.cluster.clone();
        cluster.gpu.measured.profile = Some(profile);
        let machine = Machine::new(&cluster, None);
        for (one, other) in works.iter().zip(works.iter().skip(1)) {
            let alone = machine.duration(&one.work, one.sms);
            assert!(machine.duration_beside(&one.work, one.sms, &other.work, other.sms) >= alone);
        }
        Answer::Used
    };
    let tally = try_all("profiles", 10_000, |dice| edited(&bases, dice), |bytes, _| answer(bytes));
    assert!(tally.refused > 1_000 && tally.used > 1_000, "{tally}");
}
