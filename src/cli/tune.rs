//! `dualweave tune`: what a job's ops take on this computer's GPUs, over SM budgets; or what a trace says that they take.
//!
//! The ops are those of the plans that the compiler makes of the job, without rewrites and with them, run one after the other. What the
//! profile changes may make it choose ops that were not measured; so it compiles again with what is known, until it chooses no new ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::measure::{Bench, before_cuda};
use super::{Verdict, components, output};
use crate::error::{Error, Result};
use crate::ir::{Phase, ProgramOp, Work};
use crate::job::profile::{Point, Profile, ProfiledOp, VERSION};
use crate::job::sms::CommunicationSms;
use crate::job::{self, Job, Overrides};
use crate::machine::Machine;
use crate::passes;
use crate::passes::overlap::cyclic::middle_layer;
use crate::passes::unit_work::unit_work;
use crate::plan::Plan;
use crate::runtime::cuda::executor::Spread;
use crate::sim::{simulate, time_program};
use crate::units::Nanos;
use crate::view::table;

/// SMs of exchanges that are tried by default; computation gets the others, and once all.
const COMMUNICATION_SMS: [u32; 8] = [4, 8, 12, 16, 20, 24, 32, 48];
/// Steps in front of those that are timed.
const WARM_UP: u32 = 2;
/// Plans that are measured at most: the plain one, the one that is compiled without a profile, and those that profiles lead to.
const ROUNDS: usize = 4;

/// Arguments of `tune`.
#[derive(clap::Args)]
pub struct Args {
    /// The job: a RON file with model, cluster and training.
    job: PathBuf,
    /// Where the profile goes; `-` is standard output.
    #[arg(short, long, visible_alias = "out", value_name = "PROFILE", default_value = "profile.ron")]
    output: PathBuf,
    /// Measure nothing, and take what a layer with experts took from this file: lines `component,phase,ms`, as `import --format kineto`
    /// writes them. Exchanges had the job's number of SMs, computation the others, and what they lost to each other is in the times.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sms", "budgets", "steps", "gpus"])]
    components: Option<PathBuf>,
    /// Also run the job's plan with each number of SMs for exchanges, and show what its pairs and steps take.
    #[arg(long)]
    sms: bool,
    /// Numbers of SMs for exchanges.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = COMMUNICATION_SMS,
          value_parser = clap::value_parser!(u32).range(1..))]
    budgets: Vec<u32>,
    /// Steps that are timed, for each number of SMs.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// GPUs to use, the first ones. By default all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    gpus: Option<u32>,
    /// Print the times as JSON on standard output, instead of tables.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Measures and writes.
///
/// # Errors
/// If the job cannot be compiled or run here, or the profile cannot be written.
pub fn run(args: &Args) -> Result<Verdict> {
    if output::is_stdout(&args.output) && args.json {
        return Err(Error::new("the profile and the times of --json cannot both go to standard output")
            .help("name a file for the profile with `-o`"));
    }
    output::keep_apart(&args.job, &args.output)?;
    let loaded = job::load(&args.job, &args.overrides)?;
    for note in &loaded.notes {
        output::note(format!("note: {note}"));
    }
    let mut job = loaded.job.clone();
    if job.training.imbalance > 1.0 {
        return Err(loaded.locate(
            Error::new("what is measured has the loads that its tokens make, not the job's `imbalance`")
                .help("measure with `--imbalance 1`; a profile goes with any imbalance")
                .field("training.imbalance"),
        ));
    }
    if let Some(file) = &args.components {
        output::keep_apart(file, &args.output)?;
        let profile = of_components(&job, file)?;
        output::write(&args.output, &profile.to_ron()?)?;
        tell(args, &profile, &modelled(&job), &[])?;
        return Ok(Verdict::Yes);
    }
    before_cuda(false);
    let total = job.cluster.gpu.sms;
    let mut budgets: Vec<u32> = args.budgets.iter().copied().filter(|&sms| sms < total).collect();
    budgets.sort_unstable();
    budgets.dedup();
    let modelled = modelled(&job);
    let mut times = Times::default();
    let mut profile = None;
    for round in 0..ROUNDS {
        let mut as_asked = job.clone();
        if round == 0 {
            as_asked.training.without_rewrites = vec!["all".to_owned()];
        }
        let plan = passes::compile(&as_asked).map_err(|error| loaded.locate(error))?.plan;
        if round > 0 && works(&plan).all(|(work, _)| times.of.contains_key(work)) {
            break;
        }
        let gpu = measure(plan, &budgets, args, &mut times)?;
        if gpu.1 != total {
            return Err(Error::new(format!("this is a {} with {} SMs, the job's GPU has {total}", gpu.0, gpu.1))
                .help("name the GPU that is measured in the job's cluster"));
        }
        let measured = times.profile(gpu, &job);
        if round > 0 {
            job.cluster.gpu.measured.profile = Some(measured.clone());
        }
        profile = Some(measured);
    }
    let profile = profile.ok_or_else(|| Error::new("the job has no ops"))?;
    output::write(&args.output, &profile.to_ron()?)?;
    job.cluster.gpu.measured.profile = Some(profile.clone());
    let sweep = if args.sms { sweep(&job, &budgets, args)? } else { Vec::new() };
    tell(args, &profile, &modelled, &sweep)?;
    Ok(Verdict::Yes)
}

/// The machine without a profile.
fn modelled(job: &Job) -> Machine {
    let mut plain = job.cluster.clone();
    plain.gpu.measured.profile = None;
    Machine::new(&plain, None)
}

/// Says what was written.
fn tell(args: &Args, profile: &Profile, modelled: &Machine, sweep: &[Swept]) -> Result<()> {
    if args.json {
        return output::print(&output::to_json(&Told { profile, sweep })?);
    }
    let width = output::talk_width();
    output::note(op_table(profile, modelled, width));
    if !sweep.is_empty() {
        output::note(sweep_table(sweep, width));
    }
    if !output::is_stdout(&args.output) {
        output::note(format!("Wrote {}.", args.output.display()));
    }
    Ok(())
}

/// The profile of a file of components: the ops of the job's middle layer with experts, in the plain form.
fn of_components(job: &Job, file: &Path) -> Result<Profile> {
    let durations = components::read(file)?;
    let no_experts = || Error::new("the model has no layer with experts, of which components are").field("model.moe");
    let unit = middle_layer(job).ok_or_else(no_experts)?;
    let sms = job.training.communication_sms.fixed().ok_or_else(|| {
        Error::new("the job leaves open how many SMs exchanges have, and the trace had some number")
            .field("training.communication_sms")
            .help("give that number, say with `--communication-sms 20`")
    })?;
    let machine = modelled(job);
    let work = unit_work(job, unit, job.training.recompute);
    // Exchanges that send as much are one work.
    let mut times: BTreeMap<&Work, (Vec<String>, Vec<Nanos>)> = BTreeMap::new();
    for (&(component, phase), &time) in &durations {
        let of_phase = match phase {
            Phase::F => &work.f,
            Phase::I => &work.i,
            Phase::W => &work.w,
        };
        let of: Vec<&Work> = of_phase.iter().filter(|op| op.component == component).map(|op| &op.work).collect();
        let op = format!("{component:?} {phase:?}");
        match of[..] {
            _ if time == Nanos::ZERO => {}
            [work] => {
                let (ops, taken) = times.entry(work).or_default();
                ops.push(op);
                taken.push(time);
            }
            [] => {
                return Err(Error::new(format!(
                    "the trace has times for {op}, which a layer of the job does not have"
                ))
                .help("name the job that was traced"));
            }
            _ => {
                return Err(Error::new(format!(
                    "{op} is {} ops of the job, and one time does not say what each takes",
                    of.len()
                ))
                .help("tensor parallelism has collectives around its ops: take a trace without it"));
            }
        }
    }
    let mut ops = Vec::new();
    for (work, (of, times)) in times {
        let (least, most) =
            times.iter().fold((times[0], times[0]), |(least, most), &time| (least.min(time), most.max(time)));
        let time = Nanos(times.iter().sum::<Nanos>().0 / times.len() as u64);
        let point = Point { sms: machine.sms_of(work, sms), time, quartiles: (least, most), runs: times.len() as u32 };
        ops.push(ProfiledOp { op: of.join(" and "), work: work.clone(), points: vec![point] });
    }
    let (gpu, sms) = (job.cluster.gpu.name.clone(), job.cluster.gpu.sms);
    Ok(Profile { version: VERSION, gpu, sms, model: job.model.name.clone(), overlapped: true, ops })
}

/// What was measured: names and, by SMs, times.
#[derive(Default)]
struct Times {
    of: BTreeMap<Work, (String, BTreeMap<u32, Vec<Nanos>>)>,
}

impl Times {
    fn profile(&self, (gpu, sms): (String, u32), job: &Job) -> Profile {
        let ops = self.of.iter().filter_map(|(work, (op, by_sms))| {
            let point = |(&sms, times): (&u32, &Vec<Nanos>)| {
                let Spread { median, quartiles, runs } = Spread::of(times)?;
                // Half a microsecond is what events resolve; nothing takes no time.
                Some(Point { sms, time: median.max(Nanos(1)), quartiles, runs })
            };
            let points: Vec<Point> = by_sms.iter().filter_map(point).collect();
            (!points.is_empty()).then(|| ProfiledOp { op: op.clone(), work: work.clone(), points })
        });
        let mut ops: Vec<ProfiledOp> = ops.collect();
        ops.sort_by(|one, other| (&one.op, &one.work).cmp(&(&other.op, &other.work)));
        Profile { version: VERSION, gpu, sms, model: job.model.name.clone(), overlapped: false, ops }
    }
}

/// All works of a plan's programs, and what ops they are.
fn works(plan: &Plan) -> impl Iterator<Item = (&Work, String)> {
    plan.programs.iter().flat_map(|program| &program.ops).map(|op| (&op.work, op.what()))
}

/// Lets every op of a program wait for the one before it.
fn one_after_the_other(plan: &mut Plan) {
    for program in &mut plan.programs {
        // On one stream the order of the list is enough.
        let streams: Vec<_> = program.ops.iter().map(ProgramOp::stream).collect();
        for (at, op) in program.ops.iter_mut().enumerate() {
            let before = at.checked_sub(1).filter(|&before| streams[before] != streams[at]);
            op.waits = before.map(|before| before as u32).into_iter().collect();
        }
    }
    plan.seal();
}

/// Runs a plan, one op after the other, with each number of SMs; adds what ops took. Returns the GPU, and its SMs.
fn measure(mut plan: Plan, budgets: &[u32], args: &Args, times: &mut Times) -> Result<(String, u32)> {
    one_after_the_other(&mut plan);
    let programs = plan.programs.clone();
    let mut bench = Bench::new(plan, args.gpus)?;
    if let Some(warning) = bench.warning() {
        output::note(warning);
    }
    let gpu = bench.gpu()?;
    let most = budgets.iter().copied().max().unwrap_or(1);
    // Computation with all SMs first.
    for budget in [None].into_iter().chain(budgets.iter().copied().map(Some)) {
        let sms = |work: &Work| match work {
            Work::Compute(_) => gpu.1 - budget.unwrap_or(0).min(gpu.1 - 1),
            Work::Exchange { .. } => budget.unwrap_or(most),
            Work::Copy { .. } => 0,
        };
        bench.executor().give_sms(|op| sms(&op.work));
        let timings = bench.time(WARM_UP, args.steps)?.timings;
        for ((program, op), taken) in timings.ops {
            let op = &programs[program as usize].ops[op as usize];
            if budget.is_none() && matches!(op.work, Work::Exchange { .. }) {
                continue;
            }
            let (_, by_sms) = times.of.entry(op.work.clone()).or_insert_with(|| (op.what(), BTreeMap::new()));
            by_sms.entry(sms(&op.work)).or_default().extend(taken);
        }
    }
    Ok(gpu)
}

/// What a plan took with a number of SMs for exchanges.
#[derive(Serialize)]
struct Swept {
    communication_sms: u32,
    /// Of pairs FB, the mean of all that run; none where the schedule has no pairs.
    pair_ns: Option<Both>,
    step_ns: Both,
}

/// What the model with the profile says, and what was measured: a median.
#[derive(Clone, Copy, Serialize)]
struct Both {
    predicted: Nanos,
    measured: Nanos,
}

#[derive(Serialize)]
struct Told<'a> {
    profile: &'a Profile,
    #[serde(skip_serializing_if = "<[Swept]>::is_empty")]
    sweep: &'a [Swept],
}

fn sweep(job: &Job, budgets: &[u32], args: &Args) -> Result<Vec<Swept>> {
    let mut swept = Vec::new();
    for &sms in budgets {
        let mut job = job.clone();
        job.training.communication_sms = CommunicationSms::Fixed(sms);
        let plan = passes::compile(&job)?.plan;
        let step = simulate(&plan)?.step;
        let mut bench = Bench::new(plan.clone(), args.gpus)?;
        let timings = bench.time(WARM_UP, args.steps)?.timings;
        let (mut pairs, mut both) = (0, Both { predicted: Nanos::ZERO, measured: Nanos::ZERO });
        for pair in &plan.pairs {
            let taken = timings.programs.get(&pair.program).map(Vec::as_slice).unwrap_or_default();
            if let Some(spread) = Spread::of(taken) {
                let runs = taken.len() as u64;
                let predicted = time_program(&plan.programs[pair.program as usize], &plan.machine).total;
                (both.predicted, both.measured) =
                    (both.predicted + predicted * runs, both.measured + spread.median * runs);
                pairs += runs;
            }
        }
        let mean = |sum: Nanos| Nanos(sum.0 / pairs.max(1));
        let pair_ns = (pairs > 0).then(|| Both { predicted: mean(both.predicted), measured: mean(both.measured) });
        let measured = Spread::of(&timings.steps).map_or(Nanos::ZERO, |spread| spread.median);
        swept.push(Swept { communication_sms: sms, pair_ns, step_ns: Both { predicted: step, measured } });
    }
    Ok(swept)
}

fn op_table(profile: &Profile, modelled: &Machine, width: usize) -> String {
    let mut table = table::new(&["op", "SMs", "time", "quartiles", "model", "time / model"], width);
    for op in &profile.ops {
        for point in &op.points {
            let model = modelled.duration(&op.work, point.sms);
            table.add_row([
                op.op.clone(),
                point.sms.to_string(),
                point.time.to_string(),
                format!("{} to {}", point.quartiles.0, point.quartiles.1),
                model.to_string(),
                format!("{:.2}", point.time.as_f64() / model.as_f64().max(1.0)),
            ]);
        }
    }
    table::finish(&mut table, &[1, 2, 3, 4, 5]);
    format!("{} on {}: ops, one after the other\n{table}", profile.model, profile.gpu)
}

fn sweep_table(sweep: &[Swept], width: usize) -> String {
    let mut table =
        table::new(&["SMs of exchanges", "pair, measured", "predicted", "step, measured", "predicted"], width);
    for of in sweep {
        let pair =
            |part: fn(&Both) -> Nanos| of.pair_ns.as_ref().map_or("–".to_owned(), |both| part(both).to_string());
        table.add_row([
            of.communication_sms.to_string(),
            pair(|both| both.measured),
            pair(|both| both.predicted),
            of.step_ns.measured.to_string(),
            of.step_ns.predicted.to_string(),
        ]);
    }
    table::finish(&mut table, &[0, 1, 2, 3, 4]);
    let best = |time: fn(&Swept) -> Nanos| sweep.iter().min_by_key(|of| (time(of), of.communication_sms));
    let chosen = best(|of| of.step_ns.measured).map_or_else(String::new, |of| {
        let predicted = best(|of| of.step_ns.predicted).map_or(0, |of| of.communication_sms);
        format!(
            "\nThe shortest step has {} SMs for exchanges; the shortest predicted one {predicted}.",
            of.communication_sms
        )
    });
    format!("{table}{chosen}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::load;
    use crate::job::training::ScheduleKind;
    use crate::verify::verify;

    #[test]
    fn ops_one_after_the_other_are_still_a_safe_plan() {
        let mut job = load("examples/tiny/job.ron".as_ref(), &Overrides::default()).expect("the example").job;
        for schedule in [ScheduleKind::OneFOneB, ScheduleKind::ZbH1, ScheduleKind::DualPipe] {
            job.training.schedule = schedule;
            let mut plan = passes::compile(&job).expect("a plan").plan;
            let beside = |plan: &Plan| {
                let timings = plan.programs.iter().map(|program| time_program(program, &plan.machine));
                timings.filter(|timing| timing.busy + timing.communication > timing.total).count()
            };
            assert!(beside(&plan) > 0, "{schedule}: something runs beside something");
            one_after_the_other(&mut plan);
            assert_eq!(beside(&plan), 0, "{schedule}");
            assert!(verify(&plan).violations.is_empty(), "{schedule}");
        }
    }
}
