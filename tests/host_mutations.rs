//! What the verifier passes computes the right thing: plans of many kinds, each with one change at random. A changed plan that is
//! still safe is run, in the order of its lists and in random ones, and must give the reference trainer's losses, gradients and
//! parameters. Of those that are refused some are run too, to see how many would have gone wrong.

use std::collections::BTreeMap;

use dualweave::ir::Placement;
use dualweave::job::training::ScheduleKind;
use dualweave::plan::Plan;
use dualweave::runtime::host::adamw::AdamW;
use dualweave::runtime::host::batch::Batch;
use dualweave::runtime::host::executor::{Executor, Gpu, Order};
use dualweave::runtime::host::rate::Rate;
use dualweave::runtime::host::reference::{Model, Step, Trainer};
use dualweave::verify::{Rule, verify};

#[path = "host_executor/cases.rs"]
#[allow(dead_code, reason = "other tests have more kinds of models")]
mod cases;
#[path = "host_mutations/change.rs"]
mod change;
#[path = "common/dice.rs"]
mod dice;
#[path = "host_runtime/shapes.rs"]
#[allow(dead_code, reason = "other tests have more kinds of models")]
mod shapes;

use cases::{Case, Heads, Kind, by_name, close, exact, of_model, scatter};
use change::KINDS;
use dice::Dice;

/// Changes of each kind to each plan.
const CHANGES: usize = 18;
/// Changes that are tried on each plan one upon the other, each kept if the verifier passes the plan with it.
const STEPS: usize = 800;
/// Changes that are kept before it begins with the plan as it was again.
const FAR: usize = 12;
/// Random orders in which what is safe is run, besides that of its lists.
const ORDERS: u64 = 2;
/// Of so many refused plans of a kind one is run.
const SAMPLE: usize = 3;

/// Far enough from 0 that updated parameters show.
fn optimizer() -> AdamW {
    AdamW { learning_rate: Rate::constant(1e-2), ..AdamW::default() }
}

/// A plan, and what a step of it should come to.
struct Base {
    name: String,
    plan: Plan,
    data: Vec<Vec<Batch>>,
    step: Step,
    gradients: Model<f64>,
    parameters: Model<f64>,
}

/// What happened to changed plans of one kind.
#[derive(Clone, Default)]
struct Tally {
    /// Run, and right.
    passed: usize,
    refused: usize,
    /// Refused and run nevertheless: those that went wrong, and those that did not, by the first rule that they break.
    wrong: usize,
    harmless: BTreeMap<Rule, usize>,
    /// The same of those that one rule alone refuses: how many went wrong, and how many did not.
    alone: BTreeMap<Rule, [usize; 2]>,
}

/// What happened to all changes of a plan.
struct Outcome {
    /// By kind, of those of one change.
    tallies: Vec<Tally>,
    /// Plans of several changes that the verifier passed, all of which were run.
    walked: usize,
    /// What should not have happened.
    failures: Vec<String>,
}

impl Base {
    fn new(case: &Case) -> Self {
        let plan = case.plan();
        let shape = exact(&plan);
        let data = case.data(&shape, 0);
        let batches: Vec<Batch> = data.iter().flatten().cloned().collect();
        let mut reference = Trainer::<f64>::new(shape, optimizer(), 0);
        scatter(&mut reference.model);
        let gradients = reference.gradients(&batches).1;
        let step = reference.step(&batches);
        let name = format!("{} of {} ranks, ep {}, dp {}", case.schedule, case.pp, case.ep, case.dp);
        Self { name, plan, data, step, gradients, parameters: reference.model }
    }

    /// Runs a plan that should do the same as this one.
    fn run(&self, plan: &Plan, order: Order) -> Result<(), String> {
        let said = |error: dualweave::error::Error| error.to_string();
        let mut executor = Executor::<f64>::new(plan.clone(), exact(plan), optimizer(), 0).map_err(said)?;
        for rank in 0..plan.layout.ranks {
            for stage in plan.layout.stages_of(rank) {
                for replica in 0..plan.origin.dp {
                    let stage = executor.parameters_mut(Gpu { rank, replica }, stage);
                    scatter(stage.ok_or("a rank has not the stages of the layout")?);
                }
            }
        }
        let step = executor.step(&self.data, order).map_err(said)?;
        let numbers = |step: &Step| [step.losses.as_slice(), &[step.gradient_norm]].concat();
        let (ours, theirs) = (numbers(&step), numbers(&self.step));
        // Not a number is not near either.
        let near = |(ours, theirs): (&f64, &f64)| (ours - theirs).abs() <= 1e-9 * theirs;
        if ours.len() != theirs.len() || !ours.iter().zip(&theirs).all(near) {
            return Err(format!("losses and norm are {ours:?}, not {theirs:?}"));
        }
        close("gradient", &by_name(executor.gradients())?, &of_model(&self.gradients))?;
        close("parameters", &by_name(executor.parameters())?, &of_model(&self.parameters))
    }

    /// In the order of the lists, and in random ones.
    fn run_in_orders(&self, plan: &Plan, orders: u64, seed: u64) -> Result<(), String> {
        self.run(plan, Order::List).map_err(|error| format!("in order: {error}"))?;
        (0..orders).try_for_each(|order| {
            let seed = seed.wrapping_add(order);
            self.run(plan, Order::Random(seed)).map_err(|error| format!("in random order {seed}: {error}"))
        })
    }

    /// All changes to this plan.
    fn change(&self, seed: u64) -> Outcome {
        let mut failures = Vec::new();
        let report = verify(&self.plan);
        if !report.is_safe() {
            failures.push(format!("{}: refused as it is: {}", self.name, report.violations[0]));
        }
        if let Err(error) = self.run_in_orders(&self.plan, ORDERS, seed) {
            failures.push(format!("{}: wrong as it is: {error}", self.name));
        }
        let mut tallies = vec![Tally::default(); KINDS.len()];
        if !failures.is_empty() {
            return Outcome { tallies, walked: 0, failures };
        }
        let mut dice = Dice(seed);
        for (tally, (kind, change)) in tallies.iter_mut().zip(KINDS) {
            for round in 0..CHANGES {
                let Some((plan, words)) = changed(&self.plan, *change, &mut dice) else { break };
                let place = || format!("{}, {kind}: {words}", self.name);
                let seed = dice.below(usize::MAX) as u64;
                let report = verify(&plan);
                if report.is_safe() {
                    tally.passed += 1;
                    if let Err(error) = self.run_in_orders(&plan, ORDERS, seed) {
                        failures.push(format!("{}: the verifier passes it, but {error}", place()));
                    }
                    continue;
                }
                tally.refused += 1;
                if round % SAMPLE == 0 {
                    let ended = self.run_in_orders(&plan, ORDERS, seed);
                    if let (Some((&rule, _)), 1) = (report.counts.first_key_value(), report.counts.len()) {
                        tally.alone.entry(rule).or_default()[usize::from(ended.is_ok())] += 1;
                    }
                    match ended {
                        Ok(()) => *tally.harmless.entry(report.violations[0].rule).or_default() += 1,
                        Err(error) if error.contains("panicked") => failures.push(format!("{}: {error}", place())),
                        Err(_) => tally.wrong += 1,
                    }
                }
            }
        }
        let walked = self.walk(&mut dice, &mut failures);
        Outcome { tallies, walked, failures }
    }

    /// Changes one upon the other, as long as the verifier passes them: so plans come far away from any compiler's. Gives how many
    /// were run.
    fn walk(&self, dice: &mut Dice, failures: &mut Vec<String>) -> usize {
        let (mut plan, mut words, mut run) = (self.plan.clone(), Vec::new(), 0);
        for _ in 0..STEPS {
            let (kind, change) = KINDS[dice.below(KINDS.len())];
            let Some((next, word)) = changed(&plan, change, dice) else { continue };
            let seed = dice.below(usize::MAX) as u64;
            if !verify(&next).is_safe() {
                continue;
            }
            words.push(format!("{kind}: {word}"));
            run += 1;
            let ended = self.run_in_orders(&next, 1, seed);
            if let Err(error) = &ended {
                failures.push(format!("{}, {words:#?}: the verifier passes it, but {error}", self.name));
            }
            plan = next;
            if ended.is_err() || words.len() == FAR {
                plan = self.plan.clone();
                words.clear();
            }
        }
        run
    }
}

/// A plan with one change, and what that is; none if nothing of the kind can be changed in it.
fn changed(plan: &Plan, change: change::Change, dice: &mut Dice) -> Option<(Plan, String)> {
    /// Changes that are tried until one makes a difference.
    const TRIES: usize = 64;
    (0..TRIES).find_map(|_| {
        let mut other = plan.clone();
        let words = change(&mut other, dice)?;
        (other != *plan).then_some((other, words))
    })
}

fn cases() -> Vec<Case> {
    use ScheduleKind::{Auto, DualPipe, DualPipeV, GPipe, Interleaved, OneFOneB, ZbH1, ZbV};
    let small = Kind { heads: Heads::Multi, modules: 0, tied: false, dense_first: true, shared: true, balanced: false };
    let rich = Kind { heads: Heads::Latent, modules: 1, tied: true, dense_first: false, shared: true, balanced: true };
    let case = |schedule, pp, micro_batches, (ep, dp), kind, rewritten, sharded| Case {
        schedule,
        placement: None,
        pp,
        ep,
        dp,
        micro_batches,
        sequences: 1,
        kind,
        rewritten,
        sharded,
        seed: 11,
    };
    vec![
        case(OneFOneB, 1, 2, (2, 2), rich, false, true),
        case(OneFOneB, 2, 3, (1, 1), small, false, false),
        case(GPipe, 3, 2, (1, 2), small, false, true),
        case(Interleaved, 2, 2, (2, 2), small, false, false),
        case(ZbH1, 3, 4, (1, 1), rich, false, true),
        case(ZbV, 2, 5, (2, 2), small, false, true),
        case(DualPipe, 2, 4, (2, 2), rich, false, false),
        case(DualPipe, 4, 8, (1, 1), small, false, true),
        case(DualPipeV, 2, 5, (1, 1), rich, false, false),
        case(Auto, 2, 4, (2, 2), small, false, true),
        case(Auto, 3, 3, (1, 1), small, true, false),
        case(DualPipe, 2, 4, (2, 2), small, true, true),
        case(ZbV, 2, 4, (2, 2), rich, true, false),
        Case { placement: Some(Placement::V), ..case(Auto, 4, 5, (1, 1), small, false, false) },
    ]
}

#[test]
fn what_the_verifier_passes_computes_the_right_thing() {
    let results: Vec<Outcome> = std::thread::scope(|scope| {
        let cases = cases();
        let threads: Vec<_> =
            (0..).zip(cases).map(|(number, case)| scope.spawn(move || Base::new(&case).change(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut all = Tally::default();
    let (mut sampled, mut by_rule) = (0, BTreeMap::new());
    println!("{:<26}{:>8}{:>8}{:>8}{:>8}{:>10}", "change", "passed", "refused", "run", "wrong", "harmless");
    for (number, (kind, _)) in KINDS.iter().enumerate() {
        let tallies = || results.iter().map(|outcome| &outcome.tallies[number]);
        let sum = |of: fn(&Tally) -> usize| tallies().map(of).sum::<usize>();
        let harmless: usize = tallies().flat_map(|tally| tally.harmless.values()).sum();
        let (passed, refused, wrong) =
            (sum(|tally| tally.passed), sum(|tally| tally.refused), sum(|tally| tally.wrong));
        println!("{kind:<26}{passed:>8}{refused:>8}{:>8}{wrong:>8}{harmless:>10}", wrong + harmless);
        (all.passed, all.refused, all.wrong) = (all.passed + passed, all.refused + refused, all.wrong + wrong);
        sampled += wrong + harmless;
        for (rule, count) in tallies().flat_map(|tally| &tally.harmless) {
            *by_rule.entry((*rule, *kind)).or_insert(0) += count;
        }
    }
    let harmless: usize = by_rule.values().sum();
    println!("{:<26}{:>8}{:>8}{sampled:>8}{:>8}{harmless:>10}", "all", all.passed, all.refused, all.wrong);
    let walked: usize = results.iter().map(|outcome| outcome.walked).sum();
    println!("\n{walked} plans of up to {FAR} changes, all safe, were run\n\nharmless, though refused by");
    for ((rule, kind), count) in &by_rule {
        println!("  {:<20}{kind:<26}{count:>4}", rule.name());
    }
    let mut alone: BTreeMap<Rule, [usize; 2]> = BTreeMap::new();
    for (rule, counts) in results.iter().flat_map(|outcome| &outcome.tallies).flat_map(|tally| &tally.alone) {
        alone.entry(*rule).or_default().iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    println!("\n{:<26}{:>8}{:>10}", "refused by one rule alone", "wrong", "harmless");
    for rule in Rule::ALL {
        let [wrong, harmless] = alone.get(&rule).copied().unwrap_or_default();
        println!("{:<26}{wrong:>8}{harmless:>10}", rule.name());
        // A verifier without the rule would fail this test. Here are no SMs, though, and no memory that could be too small.
        let seen = !matches!(rule, Rule::Sms | Rule::Memory);
        assert!(!seen || wrong > 0, "no plan goes wrong that only {rule} refuses");
    }
    let failures: Vec<&String> = results.iter().flat_map(|outcome| &outcome.failures).collect();
    assert!(
        failures.is_empty(),
        "{} failures, of which the first are {:#?}",
        failures.len(),
        &failures[..failures.len().min(40)]
    );
    assert!(all.passed + all.refused >= 10_000);
}
