//! What no extraction is below, in whole numbers and without a solver.
//!
//! The cheapest program of a class is the cheapest of its nodes, and a node costs what its children cost. Children may share
//! ops, which run once: so of children only those are added up that have no op in common. Chains have no such discount.

use super::{Graph, LeafCost, Node};
use crate::ir::Stream;
use crate::units::Nanos;

/// Least values over all extractions.
pub(super) struct Least {
    /// Of [`super::Extraction::time`].
    pub(super) time: Nanos,
    /// Per class the shortest chain; `None` if it has no finite program.
    pub(super) chain: Vec<Option<u64>>,
}

impl Least {
    /// `None` if a root has no finite program.
    pub(super) fn of(graph: &Graph) -> Option<Self> {
        let chain = fixpoint(graph, shortest_chain);
        let chains = graph.roots.iter().map(|&root| chain[root]).collect::<Option<Vec<u64>>>()?;
        let chains = chains.into_iter().max().unwrap_or(0);
        let apart = Apart::of(graph);
        let on = |engine: Stream, cost: &LeafCost| if cost.engine == engine { cost.time.0 } else { 0 };
        let compute = apart.least(graph, |cost| on(Stream::Compute, cost))?;
        let comm = apart.least(graph, |cost| on(Stream::Comm, cost))?;
        // The busier of two engines has at least half of what both have.
        let half = apart.least(graph, |cost| cost.time.0)?.div_ceil(2);
        Some(Self { time: Nanos(chains.max(compute).max(comm).max(half)), chain })
    }
}

/// The shortest chain of a node by those of its children.
pub(super) fn shortest_chain(node: &Node, chain: &[Option<u64>]) -> Option<u64> {
    match node {
        Node::Leaf(cost) => Some(cost.time.0),
        Node::Seq(children) => children.iter().try_fold(0u64, |sum, &child| Some(sum.saturating_add(chain[child]?))),
        Node::Par(children) => children.iter().try_fold(0u64, |most, &child| Some(most.max(chain[child]?))),
    }
}

/// The least values that satisfy every node: from nothing known, lowered until no node lowers any.
fn fixpoint(graph: &Graph, value: impl Fn(&Node, &[Option<u64>]) -> Option<u64>) -> Vec<Option<u64>> {
    let mut values: Vec<Option<u64>> = vec![None; graph.classes.len()];
    loop {
        let mut moved = false;
        for (class, nodes) in graph.classes.iter().enumerate() {
            let least = nodes.iter().filter_map(|node| value(node, &values)).min();
            if let Some(least) = least.filter(|&least| values[class].is_none_or(|known| least < known)) {
                values[class] = Some(least);
                moved = true;
            }
        }
        if !moved {
            return values;
        }
    }
}

/// Which classes can have no op in common.
struct Apart {
    /// Per class, the classes with leaves that it can come to.
    leaves: Vec<Vec<bool>>,
}

impl Apart {
    fn of(graph: &Graph) -> Self {
        let mut leaves = graph.reach();
        for (class, nodes) in graph.classes.iter().enumerate() {
            if !nodes.iter().any(|node| matches!(node, Node::Leaf(_))) {
                leaves.iter_mut().for_each(|reached| reached[class] = false);
            }
        }
        Self { leaves }
    }

    /// The first classes of a list of which no two have an op in common.
    fn disjoint<'a>(&self, classes: &'a [usize]) -> Vec<&'a usize> {
        let mut covered = vec![false; self.leaves.len()];
        let mut free = |class: &usize| {
            let own = &self.leaves[*class];
            let free = !own.iter().zip(&covered).any(|(own, covered)| *own && *covered);
            if free {
                covered.iter_mut().zip(own).for_each(|(covered, own)| *covered |= own);
            }
            free
        };
        classes.iter().filter(|class| free(class)).collect()
    }

    /// At least so much is needed for all of these classes together.
    fn together(&self, classes: &[usize], values: &[Option<u64>]) -> Option<u64> {
        let each = classes.iter().try_fold(0u64, |most, &class| Some(most.max(values[class]?)))?;
        let sum = self.disjoint(classes).into_iter().filter_map(|&class| values[class]).fold(0, u64::saturating_add);
        Some(each.max(sum))
    }

    /// The least sum over the leaves of an extraction, or something below it.
    fn least(&self, graph: &Graph, cost: impl Fn(&LeafCost) -> u64) -> Option<u64> {
        let values = fixpoint(graph, |node, values| match node {
            Node::Leaf(leaf) => Some(cost(leaf)),
            Node::Seq(children) | Node::Par(children) => self.together(children, values),
        });
        self.together(&graph.roots, &values)
    }
}
