//! Which of a layer's equal programs are worth scheduling.
//!
//! A few programs are extracted whose busiest engine and longest chain take least ([`extract`]): no schedule of a layer pair
//! beats that, but not every program can be scheduled as well as it promises. So from them, and from simpler ones, a local
//! search goes on through the e-graph and compares programs by how long whole chunks take in a simple order
//! ([`overlap::glance`]). A pair is to be fast, and so are a forward and a backward by themselves, where no other micro-batch
//! hides the exchanges: each has a search of its own. `overlap` orders what comes out of them, and keeps for each chunk program
//! the form in which it is shortest.

use std::collections::BTreeMap;

use super::costs::Costs;
use super::extract::{Choice as Chosen, Extraction, Graph, Limits, cheapest, extract, improve};
use super::forms::{Alternative, Alternatives, Form};
use super::language::{Carrier, Leaf, Payload, Route};
use super::saturate::{self, saturate};
use crate::error::Result;
use crate::ir::{ProgramKind, Recompute, Step, Unit};
use crate::job::Job;
use crate::machine::Machine;
use crate::passes::split::{self, UnitForm};
use crate::passes::unit_work::{UnitWork, unit_work};
use crate::passes::{overlap, solver};
use crate::units::Nanos;

/// Nodes of the solver for each program. On the examples more found nothing better, only more proof.
const SOLVER_NODES: u64 = 30;

/// How many programs are extracted for the pair.
const PAIR_FORMS: usize = 3;

/// Programs that a local search may look at from one start. On the examples it ends by itself after at most 300.
const CHANGES: u64 = 1_000;

/// What one program has and another has not: local searches also start from programs without each of these, since they must not
/// get stuck with what only looked good where they began.
const TRAITS: [fn(&Leaf) -> bool; 6] = [
    |leaf| !leaf.tokens.is_all(),
    |leaf| leaf.step == Step::Again,
    |leaf| leaf.step == Step::Shared,
    |leaf| leaf.exchange.route == Route::Flat,
    |leaf| leaf.exchange.payload == Payload::Fp8,
    |leaf| leaf.exchange.carrier == Carrier::CopyEngine,
];

/// A layer with the SMs that its exchanges get.
pub struct Asked<'a> {
    /// The job.
    pub job: &'a Job,
    /// Its machine.
    pub machine: &'a Machine,
    /// SMs of an exchange; computation has the others.
    pub comm_sms: u32,
    /// A layer with experts.
    pub unit: Unit,
    /// What it computes again. A whole layer that is made again is no part of what rules see: its ops come before those of the backward.
    pub recompute: Recompute,
    /// How many such layers a chunk has.
    pub layers: u32,
}

/// The programs of a layer that are worth scheduling.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    /// They differ in their ops. The first is the one extracted for the pair.
    pub choices: Vec<Choice>,
    /// Of no program that the rules reach do busiest engine and longest chain take less, in a pair of such layers.
    pub bound: Nanos,
}

/// A program that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its ops.
    pub form: UnitForm,
    /// What its busiest engine or its longest chain takes in a pair of such layers, with nothing in its way.
    pub least: Nanos,
    /// What is not as in one op after the other over flat exchanges, in words.
    pub words: Vec<String>,
}

impl Asked<'_> {
    /// The programs to schedule. None for a unit without experts, and where tensor parallelism cuts layers.
    ///
    /// # Errors
    /// If a rule that is to be left out does not exist.
    pub fn choose(&self, options: &saturate::Options) -> Result<Choices> {
        let costs = Costs::new(self);
        let Some(layer) = costs.layer() else { return Ok(Choices::default()) };
        let load = |leaf: &Leaf| costs.load(leaf);
        let alternatives = Alternatives::new(&saturate(layer, &load, options)?);
        let graph = costs.graph(&alternatives, &alternatives.roots);
        let work = unit_work(self.job, self.unit, self.recompute);
        let space = Space { asked: self, costs: &costs, alternatives, graph, work };
        let extracted = space.extracted();
        let bound = extracted.first().map_or(Nanos::ZERO, |best| best.bound);
        let alone = space.alone();
        let apart: Vec<Extraction> = alone.iter().cloned().chain(space.cheapest(|_| true)).collect();
        let mut together: Vec<Extraction> = extracted.iter().chain(&apart).cloned().collect();
        for has in TRAITS {
            together.extend(space.cheapest(|leaf| !has(leaf)));
        }
        let found = [ProgramKind::FB, ProgramKind::F, ProgramKind::B, ProgramKind::I]
            .into_iter()
            .flat_map(|kind| space.climb(kind, if kind == ProgramKind::FB { &together } else { &apart }));
        let mut choices: Vec<Choice> = Vec::new();
        for found in extracted.iter().cloned().chain(alone.clone()).chain(found) {
            let Some(choice) = space.choice(&found) else { continue };
            if choices.iter().all(|known| known.form != choice.form) {
                choices.push(choice);
            }
        }
        Ok(Choices { choices, bound })
    }
}

/// The programs of a layer.
struct Space<'a> {
    asked: &'a Asked<'a>,
    costs: &'a Costs<'a>,
    alternatives: Alternatives,
    /// Of forward and backward together.
    graph: Graph,
    work: UnitWork,
}

impl Space<'_> {
    /// For the pair, the best first.
    fn extracted(&self) -> Vec<Extraction> {
        let mut pairs: Vec<Extraction> = Vec::new();
        while pairs.len() < PAIR_FORMS {
            let Ok(found) = extract(&self.graph, &limits(), &pairs) else { break };
            pairs.push(found);
        }
        pairs
    }

    /// The best forward and the best backward, each by itself.
    fn alone(&self) -> Option<Extraction> {
        let sides = self.alternatives.roots.map(|root| {
            let graph = self.costs.graph(&self.alternatives, &[root]);
            extract(&graph, &limits(), &[]).ok()
        });
        let [Some(forward), Some(backward)] = sides else { return None };
        self.graph.replay(&completed(&forward.chosen, &backward.chosen))
    }

    /// The cheapest programs of which all ops are `allowed`, by each price.
    fn cheapest(&self, allowed: impl Fn(&Leaf) -> bool) -> Vec<Extraction> {
        let allowed = |class: usize, node: usize| match &self.alternatives.classes[class][node] {
            Alternative::Leaf(leaf) => allowed(leaf),
            Alternative::Seq(_) | Alternative::Par(_) => true,
        };
        cheapest(&self.graph, &allowed).iter().filter_map(|chosen| self.graph.replay(chosen)).collect()
    }

    /// From each start, the program in which chunk programs of a kind are shortest that exchanging one node after the other
    /// leads to.
    fn climb(&self, kind: ProgramKind, starts: &[Extraction]) -> Vec<Extraction> {
        let Asked { job, machine, comm_sms, unit, layers, .. } = *self.asked;
        let mut known: BTreeMap<Form, Option<Nanos>> = BTreeMap::new();
        let mut length = |found: &Extraction| {
            let form = self.alternatives.form(&found.chosen)?;
            if let Some(&length) = known.get(&form) {
                return length;
            }
            let length = self.unit_form(&form).map(|form| {
                let chunk = split::repeated(job, unit, &self.work, &form, layers);
                overlap::glance(kind, &chunk, machine, comm_sms)
            });
            known.insert(form, length);
            length
        };
        // What a program does not need, a change of it may.
        let others = cheapest(&self.graph, &|_, _| true).into_iter().next().unwrap_or_default();
        let mut ends: Vec<Extraction> = Vec::new();
        for (at, start) in starts.iter().enumerate() {
            if starts[..at].iter().any(|before| before.chosen == start.chosen) {
                continue;
            }
            let start = completed(&start.chosen, &others);
            ends.extend(improve(&self.graph, start, CHANGES, |found| Some((length(found)?, found.key()))));
        }
        ends
    }

    fn unit_form(&self, form: &Form) -> Option<UnitForm> {
        Some(self.costs.unit_form(form)?.after(&self.work.again))
    }

    fn choice(&self, found: &Extraction) -> Option<Choice> {
        let form = self.alternatives.form(&found.chosen)?;
        Some(Choice { form: self.unit_form(&form)?, least: found.time(), words: form.rewrites })
    }
}

fn limits() -> Limits {
    Limits { solver: solver::Limits { nodes: SOLVER_NODES }, ..Limits::default() }
}

/// A choice, and where it has none the other.
fn completed(chosen: &Chosen, others: &Chosen) -> Chosen {
    chosen.iter().zip(others).map(|(chosen, other)| chosen.or(*other)).collect()
}
