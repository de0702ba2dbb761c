//! How many SMs exchanges get: what the hardware can give, and which numbers are worth compiling for.

use super::cyclic::{CyclicProblem, Limits, search};
use crate::job::Job;
use crate::machine::Machine;

/// SMs for exchanges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What each of them has, to begin with.
    pub sms: u32,
    /// What the exchanges of a component and phase may have instead, each kind its own; empty: all keep `sms`.
    pub offered: Vec<u32>,
}

impl Budget {
    /// The same for all.
    pub fn fixed(sms: u32) -> Self {
        Self { sms, offered: Vec::new() }
    }
}

/// What people give: DeepSeek-V3's 20 SMs (report, section 3.2.2).
const USUAL: u32 = 20;

/// How many numbers are compiled for, of those that the layer pair's steady state prefers.
const WORTH_COMPILING: usize = 4;

/// Numbers of SMs that communication may have on this GPU: even, in its steps, up to half of it.
pub fn offered(job: &Job) -> Vec<u32> {
    let gpu = &job.cluster.gpu;
    let step = if gpu.sm_step.is_multiple_of(2) { gpu.sm_step } else { gpu.sm_step.saturating_mul(2) };
    let numbers: Vec<u32> = (1..).map(|n| n * step.max(2)).take_while(|&sms| sms <= gpu.sms / 2).collect();
    // A GPU of few SMs in large steps can still give a pair.
    if numbers.is_empty() { vec![2] } else { numbers }
}

/// Of the numbers on offer those with the shortest steady state of a layer pair, the best first, and, since programs without
/// a pair hide less, the usual 20 SMs; where no layer has experts, a few from small to large.
pub fn promising(job: &Job, machine: &Machine) -> Vec<u32> {
    let numbers = offered(job);
    let period = |sms: u32| {
        let problem = CyclicProblem::of_job(job, machine, sms)?;
        let found = search(&problem, &[], Limits::default())?;
        Some(if problem.is_slowed() { problem.slowed_period(&found) } else { found.period })
    };
    let mut known: Vec<_> = numbers.iter().filter_map(|&sms| Some((period(sms)?, sms))).collect();
    if known.is_empty() {
        let apart = numbers.len().div_ceil(WORTH_COMPILING);
        return numbers.into_iter().step_by(apart).collect();
    }
    known.sort_unstable();
    let mut promising: Vec<u32> = known.into_iter().take(WORTH_COMPILING).map(|(_, sms)| sms).collect();
    if numbers.contains(&USUAL) && !promising.contains(&USUAL) {
        promising.push(USUAL);
    }
    promising
}
