//! Rule `read-before-write`: nothing starts before what it reads has been written.
//!
//! Asked is what the rank orders by itself (streams and `after`). What no item of the rank writes at all is left to
//! `completeness` where the rank should have computed it, and reported here where it should have been received.

use std::collections::BTreeMap;
use std::fmt;

use crate::ir::ChunkId;
use crate::plan::Task;

use super::rank::{Deed, Rank, after, before, deeds};
use super::report::{Report, Rule, Violation};

/// Checks one rank.
pub fn check(rank: &Rank, report: &mut Report) {
    // All weight gradients run on one stream, so the last one of a stage stands for all.
    let mut last_weight_gradient = BTreeMap::new();
    for (index, item) in rank.items.iter().enumerate() {
        for (_, chunk) in deeds(item.0).filter(|&(deed, _)| deed == Deed::W) {
            last_weight_gradient.insert(chunk.stage, index);
        }
    }
    let mut reads = Reads { rank, report };
    for (index, item) in rank.items.iter().enumerate() {
        let first = |deed, stage, micro_batch| rank.find(deed, ChunkId::new(stage, micro_batch));
        match item.0 {
            Task::SendAct(s, m, _) => reads.check(index, first(Deed::F, s, m), &Value::Activation(m)),
            Task::SendGrad(s, m, _) => reads.check(index, first(Deed::I, s, m), &Value::Gradient(m)),
            Task::ReduceGrads(s) => {
                reads.check(index, last_weight_gradient.get(&s).copied(), &Value::WeightGradients(s));
            }
            Task::Update(s) => reads.check(index, first(Deed::ReduceGrads, s, 0), &Value::ReducedGradients(s)),
            Task::GatherParams(s) => reads.check(index, first(Deed::Update, s, 0), &Value::Parameters(s)),
            _ => {}
        }
        for (deed, chunk) in deeds(item.0).filter(|&(_, chunk)| rank.runs(chunk)) {
            reads.compute(index, deed, chunk);
        }
    }
}

struct Reads<'a, 'p> {
    rank: &'a Rank<'p>,
    report: &'a mut Report,
}

impl Reads<'_, '_> {
    /// What the part of a compute item that concerns `chunk` reads.
    fn compute(&mut self, index: usize, deed: Deed, chunk: ChunkId) {
        let micro_batch = chunk.micro_batch;
        match deed {
            Deed::F => {
                if let Some(before) = before(chunk) {
                    self.neighbour(index, before, (Deed::F, Deed::RecvAct), &Value::Activation(micro_batch));
                }
            }
            Deed::I => {
                self.check(index, self.rank.find(Deed::F, chunk), &Value::StoredByForward(micro_batch));
                if let Some(after) = after(self.rank.layout(), chunk) {
                    self.neighbour(index, after, (Deed::I, Deed::RecvGrad), &Value::Gradient(micro_batch));
                }
            }
            Deed::W => {
                // In a full backward both are the same item: `program-order` sees to that.
                let backward = self.rank.find(Deed::I, chunk);
                if backward != Some(index) {
                    self.check(index, backward, &Value::StoredByBackward(micro_batch));
                }
            }
            Deed::RecvAct | Deed::RecvGrad | Deed::ReduceGrads | Deed::Update => {}
        }
    }

    /// What comes from the chunk one stage before or after: made on this rank, or received.
    fn neighbour(&mut self, index: usize, chunk: ChunkId, (made, received): (Deed, Deed), value: &Value) {
        if self.rank.runs(chunk) {
            return self.check(index, self.rank.find(made, chunk), value);
        }
        let receive = self.rank.find(received, chunk);
        if receive.is_none() {
            let (rank, from) = (self.rank, self.rank.layout().rank_of(chunk));
            self.report.add(Rule::ReadBeforeWrite, || {
                let message = format!(
                    "reads {value}, but the rank has no {received:?}({},{}) from rank {from}",
                    chunk.stage, chunk.micro_batch
                );
                Violation::item(Rule::ReadBeforeWrite, rank.plan, rank.number, index, message)
            });
        }
        self.check(index, receive, value);
    }

    /// Reports item `index` if `writer` has not ended before it starts.
    fn check(&mut self, index: usize, writer: Option<usize>, value: &Value) {
        let rank = self.rank;
        let Some(writer) = writer.filter(|&writer| !rank.ended_before(writer, index)) else { return };
        self.report.add(Rule::ReadBeforeWrite, || {
            let message = format!("reads {value} before {} has ended", rank.name(writer));
            Violation::item(Rule::ReadBeforeWrite, rank.plan, rank.number, index, message)
        });
    }
}

/// What is read; the number is a micro-batch or a stage.
enum Value {
    Activation(u32),
    Gradient(u32),
    StoredByForward(u32),
    StoredByBackward(u32),
    WeightGradients(u32),
    ReducedGradients(u32),
    Parameters(u32),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Activation(m) => write!(f, "the activation of micro-batch {m}"),
            Self::Gradient(m) => write!(f, "the gradient of micro-batch {m}"),
            Self::StoredByForward(m) => write!(f, "what the forward of micro-batch {m} stored"),
            Self::StoredByBackward(m) => write!(f, "what the backward of micro-batch {m} stored"),
            Self::WeightGradients(s) => write!(f, "the weight gradients of stage {s}"),
            Self::ReducedGradients(s) => write!(f, "the reduced gradients of stage {s}"),
            Self::Parameters(s) => write!(f, "the updated parameters of stage {s}"),
        }
    }
}
