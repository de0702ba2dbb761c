//! Profiles that say something known.

use dualweave::ir::Work;
use dualweave::job::profile::{Point, Profile, ProfiledOp, VERSION};
use dualweave::plan::Plan;
use dualweave::units::Nanos;

/// A profile in which every op of a plan takes `factor` of what the model says, with some numbers of SMs.
pub fn by_factor(plan: &Plan, factor: impl Fn(&Work, u32) -> f64, sms: &[u32]) -> Profile {
    let mut ops: Vec<ProfiledOp> = Vec::new();
    for op in plan.programs.iter().flat_map(|program| &program.ops) {
        if ops.iter().any(|other| other.work == op.work) {
            continue;
        }
        let point = |&sms: &u32| {
            let time = plan.machine.duration(&op.work, sms).as_f64() * factor(&op.work, sms);
            let time = Nanos(time.round().max(1.0) as u64);
            Point { sms, time, quartiles: (time, time), runs: 9 }
        };
        ops.push(ProfiledOp { op: op.what(), work: op.work.clone(), points: sms.iter().map(point).collect() });
    }
    Profile { version: VERSION, gpu: "H100 SXM".to_owned(), sms: 132, model: "tiny".to_owned(), overlapped: false, ops }
}
