//! What the ops of a job's layer do and cost.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::analysis::{Layer, Load};
use super::choose::Asked;
use super::extract::{Graph, LeafCost, Node};
use super::forms::{self, Alternative, Alternatives, Form};
use super::language::{Leaf, LeafPhase};
use crate::ir::{Phase, Stream, Unit, Work};
use crate::passes::split::{FormOp, UnitForm};
use crate::passes::unit_work::pieces::{self, Piece};
use crate::units::Nanos;

/// The ops of a layer; what they do is worked out once.
pub(super) struct Costs<'a> {
    asked: &'a Asked<'a>,
    known: RefCell<BTreeMap<Leaf, Option<Work>>>,
}

impl<'a> Costs<'a> {
    pub(super) fn new(asked: &'a Asked<'a>) -> Self {
        Self { asked, known: RefCell::default() }
    }

    /// What rules may know of the layer. `None` if it has no experts, or tensor parallelism cuts it, whose collectives are not in
    /// the language.
    pub(super) fn layer(&self) -> Option<Layer> {
        let (job, training) = (self.asked.job, &self.asked.job.training);
        let has_experts = match self.asked.unit {
            Unit::Moe(_) => true,
            Unit::Mtp(_) => job.model.mtp_is_moe(),
            Unit::Embedding | Unit::Dense(_) | Unit::Head => false,
        };
        (has_experts && training.tp == 1).then(|| Layer {
            shared: job.model.moe.as_ref().is_some_and(|moe| moe.shared_width > 0),
            exchanges: training.ep > 1,
            spans_nodes: training.ep > job.cluster.gpus_per_node,
            fp8: training.fp8_exchanges,
        })
    }

    /// What an op costs; `None` if there is no such op.
    pub(super) fn load(&self, leaf: &Leaf) -> Option<Load> {
        if leaf.phase == LeafPhase::B {
            let half = |phase| self.load(&Leaf { phase, ..*leaf });
            let (input, weight) = (half(LeafPhase::I)?, half(LeafPhase::W)?);
            return Some(Load { compute: input.compute + weight.compute, ..input });
        }
        Some(match self.work(leaf)? {
            Work::Exchange { nvlink, network, .. } => Load { nvlink, network, ..Load::default() },
            Work::Copy { nvlink } => Load { nvlink, ..Load::default() },
            work @ Work::Compute(_) => Load { compute: self.time(&work), ..Load::default() },
        })
    }

    /// The programs with what their ops cost.
    pub(super) fn graph(&self, alternatives: &Alternatives, roots: &[usize]) -> Graph {
        let cost = |leaf: &Leaf| -> LeafCost {
            let (engine, time) = match leaf.phase {
                LeafPhase::B => (Stream::Compute, self.load(leaf).unwrap_or_default().compute),
                _ => match self.work(leaf) {
                    Some(work) if work.is_exchange() => (Stream::Comm, self.time(&work)),
                    Some(work) => (Stream::Compute, self.time(&work)),
                    None => (Stream::Compute, Nanos::ZERO),
                },
            };
            LeafCost { engine, time }
        };
        let node = |alternative: &Alternative| match alternative {
            Alternative::Leaf(leaf) => Node::Leaf(cost(leaf)),
            Alternative::Seq(parts) => Node::Seq(parts.clone()),
            Alternative::Par(parts) => Node::Par(parts.clone()),
        };
        let classes = alternatives.classes.iter().map(|class| class.iter().map(node).collect());
        Graph { classes: classes.collect(), roots: roots.to_vec() }
    }

    /// A form with the work of its ops; `None` if it has an op that there is not.
    pub(super) fn unit_form(&self, form: &Form) -> Option<UnitForm> {
        let op = |op: &forms::FormOp| {
            let Leaf { component, step, tokens, .. } = op.leaf;
            Some(FormOp { component, step, tokens, work: self.work(&op.leaf)?, needs: op.needs.clone() })
        };
        let ops = |ops: &[forms::FormOp]| ops.iter().map(op).collect::<Option<Vec<FormOp>>>();
        let exchanges = form.f.iter().chain(&form.i).filter_map(|op| piece(&op.leaf));
        let buffers = exchanges.map(|piece| pieces::exchange_buffer(self.asked.job, self.asked.unit, &piece));
        let exchange_buffer = buffers.max().unwrap_or_default();
        Some(UnitForm { f: ops(&form.f)?, i: ops(&form.i)?, w: ops(&form.w)?, exchange_buffer })
    }

    fn work(&self, leaf: &Leaf) -> Option<Work> {
        let new = || pieces::work(self.asked.job, self.asked.unit, self.asked.recompute, &piece(leaf)?);
        self.known.borrow_mut().entry(*leaf).or_insert_with(new).clone()
    }

    fn time(&self, work: &Work) -> Nanos {
        let machine = self.asked.machine;
        machine.duration(work, machine.sms_of(work, self.asked.comm_sms))
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
