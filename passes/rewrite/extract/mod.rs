//! Choosing one program out of a graph of equal ones, so that its busiest engine and its longest chain take least.
//!
//! No schedule of a program is shorter than the load of an engine, nor than a chain of ops that wait for each other. Both are
//! known before any order is, so the choice is an integer program, and its least value bounds whatever is scheduled later. A
//! greedy choice, improved step by step, comes first: the solver is asked for something better only, and where it gives up,
//! that choice stands. Everything returned is computed from the chosen nodes, never read off the solver.

mod bound;
mod greedy;
mod ilp;
#[cfg(test)]
mod tests;

pub use greedy::{cheapest, improve};

use crate::ir::Stream;
use crate::passes::solver;
use crate::units::Nanos;

/// Equal programs, shared wherever they agree: an AND-OR graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// Of each class of equal programs, the nodes: any of them will do. Classes may lead back to themselves.
    pub classes: Vec<Vec<Node>>,
    /// Classes that are all needed.
    pub roots: Vec<usize>,
}

/// One way to do what its class does. Children are classes, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// An op.
    Leaf(LeafCost),
    /// One after the other.
    Seq(Vec<usize>),
    /// Beside each other.
    Par(Vec<usize>),
}

/// What an op costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafCost {
    /// The engine that it occupies.
    pub engine: Stream,
    /// For how long.
    pub time: Nanos,
}

/// How much may be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Changes that the greedy choice may try.
    pub changes: u64,
    /// For each question to the solver.
    pub solver: solver::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self { changes: 20_000, solver: solver::Limits { nodes: 2_000 } }
    }
}

/// For each class, which of its nodes; none where it has none, or is not needed.
pub type Choice = Vec<Option<usize>>;

/// A program: one node for every class that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extraction {
    /// Of each class, the node chosen; `None` where the program does not need the class.
    pub chosen: Choice,
    /// No extraction that was asked for takes less, as far as was proved: at most [`Extraction::time`].
    pub bound: Nanos,
    /// Time that each engine is occupied, by [`Stream`]. A class that is needed twice is run once.
    pub load: [Nanos; 2],
    /// Of each root, the time that its ops take with nothing in their way. A class that a `Seq` reaches twice counts twice.
    pub chains: Vec<Nanos>,
}

/// Why there is no extraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is none: a root has no finite program, or all were excluded.
    Impossible,
    /// The limits ended the search before one was found.
    NotFound,
}

/// The extraction with the least time, and of those with the least sum of loads and chains, that differs from each of
/// `without` in at least one leaf.
///
/// # Errors
/// If there is none, or none was found.
///
/// # Panics
/// If a child or a root is no class of the graph, or `without` has nodes that the graph has not.
pub fn extract(graph: &Graph, limits: &Limits, without: &[Extraction]) -> Result<Extraction, Failure> {
    let least = bound::Least::of(graph).ok_or(Failure::Impossible)?;
    let task = Task { graph, limits, without: without.iter().map(|earlier| earlier.leaves(graph)).collect() };
    let mut best = match greedy::choose(&task) {
        Some(found) => found,
        None => ilp::any(&task, &least)?,
    };
    let mut bound = least.time.min(best.time());
    if best.time() > least.time {
        let (found, proved) = ilp::fastest(&task, &least, &best);
        best = found;
        bound = bound.max(proved);
    }
    best = ilp::lightest(&task, &least, best);
    // What the solver proved may be off by what it is trusted to.
    best.bound = bound.min(best.time());
    Ok(best)
}

impl Extraction {
    /// The least that any schedule of it takes: its busiest engine, or its longest chain.
    pub fn time(&self) -> Nanos {
        self.chains.iter().chain(&self.load).copied().max().unwrap_or(Nanos::ZERO)
    }

    /// Whether nothing that was asked for takes less. Solvers are trusted to a part in a million of the time, and a bound that
    /// only they prove lies below it by as much.
    pub fn proved(&self) -> bool {
        self.time().saturating_sub(self.bound).as_f64() <= 2.0 * solver::ACCURACY * self.time().as_f64()
    }

    /// All loads and chains together.
    fn sum(&self) -> Nanos {
        self.chains.iter().chain(&self.load).sum()
    }

    /// What one extraction is better by.
    pub fn key(&self) -> (Nanos, Nanos) {
        (self.time(), self.sum())
    }

    /// Its leaves, as classes and nodes.
    fn leaves(&self, graph: &Graph) -> Vec<(usize, usize)> {
        let chosen = self.chosen.iter().enumerate().filter_map(|(class, node)| Some((class, (*node)?)));
        chosen.filter(|&(class, node)| matches!(graph.classes[class][node], Node::Leaf(_))).collect()
    }
}

/// What is asked for.
struct Task<'a> {
    graph: &'a Graph,
    limits: &'a Limits,
    /// Leaves of the extractions that are excluded, ascending.
    without: Vec<Vec<(usize, usize)>>,
}

impl Task<'_> {
    fn excluded(&self, found: &Extraction) -> bool {
        !self.without.is_empty() && self.without.contains(&found.leaves(self.graph))
    }

    /// The extraction of some choices, if it is one and allowed.
    fn allowed(&self, choice: &[Option<usize>]) -> Option<Extraction> {
        let found = self.graph.replay(choice)?;
        (!self.excluded(&found)).then_some(found)
    }
}

impl Node {
    fn children(&self) -> &[usize] {
        match self {
            Node::Leaf(_) => &[],
            Node::Seq(children) | Node::Par(children) => children,
        }
    }
}

impl Graph {
    /// The extraction of some choices: what they cost, in whole nanoseconds, with choices that are not needed left
    /// out. `None` if a class is needed without a choice, or for itself. Its bound is still zero.
    pub fn replay(&self, choice: &[Option<usize>]) -> Option<Extraction> {
        let order = self.order(choice)?;
        let mut found = Extraction {
            chosen: vec![None; self.classes.len()],
            bound: Nanos::ZERO,
            load: [Nanos::ZERO; 2],
            chains: Vec::new(),
        };
        let mut chain = vec![Nanos::ZERO; self.classes.len()];
        for class in order {
            let node = choice[class]?;
            found.chosen[class] = Some(node);
            chain[class] = match &self.classes[class][node] {
                Node::Leaf(cost) => {
                    found.load[cost.engine as usize] += cost.time;
                    cost.time
                }
                Node::Seq(children) => children.iter().map(|&child| chain[child]).sum(),
                Node::Par(children) => children.iter().map(|&child| chain[child]).max().unwrap_or(Nanos::ZERO),
            };
        }
        found.chains = self.roots.iter().map(|&root| chain[root]).collect();
        Some(found)
    }

    /// The needed classes, children before those who need them.
    fn order(&self, choice: &[Option<usize>]) -> Option<Vec<usize>> {
        #[derive(Clone, Copy, PartialEq)]
        enum Seen {
            Not,
            Open,
            Done,
        }
        let mut seen = vec![Seen::Not; self.classes.len()];
        let mut order = Vec::new();
        for &root in &self.roots {
            // Classes that are open, each with the number of children that were looked at.
            let mut open = Vec::new();
            let mut next = Some(root);
            loop {
                match next.take() {
                    Some(class) if seen[class] == Seen::Open => return None,
                    Some(class) if seen[class] == Seen::Not => {
                        seen[class] = Seen::Open;
                        open.push((class, 0));
                    }
                    _ => {}
                }
                let Some((class, looked_at)) = open.last_mut() else { break };
                match self.classes[*class][choice[*class]?].children().get(*looked_at) {
                    Some(&child) => {
                        *looked_at += 1;
                        next = Some(child);
                    }
                    None => {
                        seen[*class] = Seen::Done;
                        order.push(*class);
                        open.pop();
                    }
                }
            }
        }
        Some(order)
    }

    /// Per class, whether it can be reached from another: `reach[from][to]`. Every class reaches itself.
    fn reach(&self) -> Vec<Vec<bool>> {
        let from = |start: usize| {
            let mut reached = vec![false; self.classes.len()];
            let mut open = vec![start];
            while let Some(class) = open.pop() {
                if !std::mem::replace(&mut reached[class], true) {
                    open.extend(self.classes[class].iter().flat_map(Node::children).filter(|&&child| !reached[child]));
                }
            }
            reached
        };
        (0..self.classes.len()).map(from).collect()
    }
}
