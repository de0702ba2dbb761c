//! Which of a layer's equal programs are worth scheduling: those that load the busiest engine least.
//!
//! A pair of layers is to be fast, and so are a forward and a backward by themselves, where no other micro-batch hides the
//! exchanges. So a few programs are extracted for the pair, best bound first, and one for each side alone; `overlap` orders them
//! all, and keeps for each chunk program the form in which it is shortest.

use super::analysis::{Layer, Load};
use super::extract::{Extraction, Graph, LeafCost, Limits, Node, extract};
use super::forms::{Alternative, Alternatives, Form};
use super::language::{Leaf, LeafPhase};
use super::saturate::{self, saturate};
use crate::error::Result;
use crate::ir::{Phase, Stream, Unit, Work};
use crate::job::Job;
use crate::machine::Machine;
use crate::passes::solver;
use crate::passes::split::{FormOp, UnitForm};
use crate::passes::unit_work::Again;
use crate::passes::unit_work::pieces::{self, Piece};
use crate::units::{Bytes, Nanos};

/// Nodes of the solver for each program. On the examples more found nothing better, only more proof.
const SOLVER_NODES: u64 = 30;

/// How many programs are extracted for the pair.
const PAIR_FORMS: usize = 3;

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
}

/// A program that was extracted.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its ops.
    pub form: UnitForm,
    /// What is not as in one op after the other over flat exchanges, in words.
    pub words: Vec<String>,
}

impl Asked<'_> {
    /// The programs to schedule, which differ in their ops, the best for the pair first. None for a unit without experts, and
    /// where tensor parallelism cuts layers, whose collectives are not in the language.
    ///
    /// # Errors
    /// If a rule that is to be left out does not exist.
    pub fn choose(&self, options: &saturate::Options) -> Result<Vec<Choice>> {
        if self.job.training.tp > 1 || !self.has_experts() {
            return Ok(Vec::new());
        }
        let load = |leaf: &Leaf| self.load(leaf);
        let saturated = saturate(self.layer(), &load, options)?;
        let alternatives = Alternatives::new(&saturated);
        let limits = Limits { solver: solver::Limits { nodes: SOLVER_NODES }, ..Limits::default() };
        let graph = self.graph(&alternatives, &alternatives.roots);
        let mut pairs: Vec<Extraction> = Vec::new();
        while pairs.len() < PAIR_FORMS {
            let Ok(found) = extract(&graph, &limits, &pairs) else { break };
            pairs.push(found);
        }
        let alone = alternatives.roots.map(|root| extract(&self.graph(&alternatives, &[root]), &limits, &[]));
        let chosen = pairs.iter().map(|pair| pair.chosen.clone());
        let chosen = chosen.chain(match &alone {
            [Ok(f), Ok(b)] => Some(f.chosen.iter().zip(&b.chosen).map(|(f, b)| f.or(*b)).collect()),
            _ => None,
        });
        let mut choices: Vec<Choice> = Vec::new();
        for chosen in chosen {
            let Some(choice) = alternatives.form(&chosen).and_then(|form| self.choice(form)) else { continue };
            if choices.iter().all(|known| known.form != choice.form) {
                choices.push(choice);
            }
        }
        Ok(choices)
    }

    fn has_experts(&self) -> bool {
        match self.unit {
            Unit::Moe(_) => true,
            Unit::Mtp(_) => self.job.model.mtp_is_moe(),
            Unit::Embedding | Unit::Dense(_) | Unit::Head => false,
        }
    }

    fn layer(&self) -> Layer {
        let (job, training) = (self.job, &self.job.training);
        Layer {
            shared: job.model.moe.as_ref().is_some_and(|moe| moe.shared_width > 0),
            exchanges: training.ep > 1,
            spans_nodes: training.ep > job.cluster.gpus_per_node,
            fp8: training.fp8_exchanges,
        }
    }

    /// What an op costs; `None` if there is no such op.
    fn load(&self, leaf: &Leaf) -> Option<Load> {
        // What is stored is the job's to say.
        if leaf.loaded {
            return None;
        }
        if leaf.phase == LeafPhase::B {
            let half = |phase| self.load(&Leaf { phase, ..*leaf });
            let (input, weight) = (half(LeafPhase::I)?, half(LeafPhase::W)?);
            return Some(Load { compute: input.compute + weight.compute, ..input });
        }
        Some(match self.work(leaf)? {
            Work::Exchange { nvlink, network } => Load { nvlink, network, ..Load::default() },
            Work::Copy { nvlink } => Load { nvlink, ..Load::default() },
            work @ Work::Compute(_) => Load { compute: self.time(&work), ..Load::default() },
        })
    }

    fn work(&self, leaf: &Leaf) -> Option<Work> {
        pieces::work(self.job, self.unit, Again::of(self.job), &piece(leaf)?)
    }

    fn time(&self, work: &Work) -> Nanos {
        self.machine.duration(work, self.machine.sms_of(work, self.comm_sms))
    }

    fn graph(&self, alternatives: &Alternatives, roots: &[usize]) -> Graph {
        let cost = |leaf: &Leaf| -> LeafCost {
            let (engine, time) = match leaf.phase {
                LeafPhase::B => (Stream::Compute, self.load(leaf).unwrap_or_default().compute),
                _ => match self.work(leaf) {
                    Some(work) if work.is_exchange() => (Stream::Comm, self.time(&work)),
                    Some(work) => (Stream::Compute, self.time(&work)),
                    None => (Stream::Compute, Nanos::ZERO),
                },
            };
            LeafCost { engine, time, held: Bytes::ZERO }
        };
        let node = |alternative: &Alternative| match alternative {
            Alternative::Leaf(leaf) => Node::Leaf(cost(leaf)),
            Alternative::Seq(parts) => Node::Seq(parts.clone()),
            Alternative::Par(parts) => Node::Par(parts.clone()),
        };
        let classes = alternatives.classes.iter().map(|class| class.iter().map(node).collect());
        Graph { classes: classes.collect(), roots: roots.to_vec() }
    }

    /// The form with the work of its ops; `None` if it has an op that there is not.
    fn choice(&self, form: Form) -> Option<Choice> {
        let ops = |ops: &[super::forms::FormOp]| -> Option<Vec<FormOp>> {
            let op = |op: &super::forms::FormOp| {
                let Leaf { component, step, tokens, .. } = op.leaf;
                Some(FormOp { component, step, tokens, work: self.work(&op.leaf)?, needs: op.needs.clone() })
            };
            ops.iter().map(op).collect()
        };
        let exchanges = form.f.iter().chain(&form.i).filter_map(|op| piece(&op.leaf));
        let buffers = exchanges.map(|piece| pieces::exchange_buffer(self.job, self.unit, &piece));
        let exchange_buffer = buffers.max().unwrap_or_default();
        let form_of_unit = UnitForm { f: ops(&form.f)?, i: ops(&form.i)?, w: ops(&form.w)?, exchange_buffer };
        Some(Choice { form: form_of_unit, words: form.rewrites })
    }
}

/// What a leaf does. `None` for both phases of a backward in one.
fn piece(leaf: &Leaf) -> Option<Piece> {
    let phase = match leaf.phase {
        LeafPhase::F => Phase::F,
        LeafPhase::I => Phase::I,
        LeafPhase::W => Phase::W,
        LeafPhase::B => return None,
    };
    Some(Piece {
        component: leaf.component,
        phase,
        step: leaf.step,
        tokens: leaf.tokens,
        exchange: leaf.exchange,
        without_shared: leaf.without_shared,
        without_again: leaf.without_again,
    })
}
