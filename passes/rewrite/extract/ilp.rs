//! Extraction as an integer linear program.
//!
//! A binary per node says that it is chosen. A root's class, and a class that a chosen node has as child, chooses one node; no
//! other class does. Where classes lead back to themselves, levels that rise from parent to child forbid circles. Times are
//! shares of the time of an extraction that is known, which is 1: nothing slower is looked for, so no class's chain is longer
//! than 1 either, and that is the constant that switches off the rows of nodes that are not chosen. A node that is its
//! children's only parent needs no such row: not chosen, they have no chain.

use super::bound::{Least, shortest_chain};
use super::{Extraction, Failure, Graph, Node, Task};
use crate::ir::Stream;
use crate::passes::solver::{ACCURACY, Model, Outcome, Term, Values, Var};
use crate::units::Nanos;

/// Some extraction that is allowed.
pub(super) fn any(task: &Task, least: &Least) -> Result<Extraction, Failure> {
    let Some(choice) = Choice::of(task, least, None) else { return Err(Failure::Impossible) };
    match choice.model.minimise(&[], task.limits.solver) {
        Outcome::Optimal(values) | Outcome::Feasible(values) => {
            task.allowed(&choice.read(&values)).ok_or(Failure::NotFound)
        }
        Outcome::Infeasible => Err(Failure::Impossible),
        Outcome::Unknown => Err(Failure::NotFound),
    }
}

/// The extraction with the least time, at least as good as one that is known, and a time that none is below (zero if the
/// solver proved nothing).
pub(super) fn fastest(task: &Task, least: &Least, known: &Extraction) -> (Extraction, Nanos) {
    let Some(timed) = Timed::of(task, least, known.time()) else { return (known.clone(), Nanos::ZERO) };
    let objective = [(1.0, timed.time)];
    let (values, proved) = match timed.choice.model.minimise(&objective, task.limits.solver) {
        Outcome::Optimal(values) => {
            let proved = round_up(task.graph, (values.of(timed.time) - ACCURACY) * known.time().as_f64());
            (values, proved)
        }
        Outcome::Feasible(values) => (values, Nanos::ZERO),
        // What is known is feasible: to deny it is trouble with numbers.
        Outcome::Infeasible | Outcome::Unknown => return (known.clone(), Nanos::ZERO),
    };
    let found = task.allowed(&timed.choice.read(&values)).filter(|found| found.key() < known.key());
    (found.unwrap_or_else(|| known.clone()), proved)
}

/// Of the extractions that take no longer than one that is known, the one with the least sum of loads and chains.
pub(super) fn lightest(task: &Task, least: &Least, known: Extraction) -> Extraction {
    if known.time() == Nanos::ZERO {
        return known;
    }
    let Some(timed) = Timed::of(task, least, known.time()) else { return known };
    let loads = timed.choice.loads(known.time()).into_iter().flatten();
    let chains = task.graph.roots.iter().map(|&root| (1.0, timed.chain[root]));
    let objective: Vec<Term> = loads.chain(chains).collect();
    match timed.choice.model.minimise(&objective, task.limits.solver) {
        Outcome::Optimal(values) | Outcome::Feasible(values) => {
            let found = task.allowed(&timed.choice.read(&values));
            found.filter(|found| found.key() < known.key()).unwrap_or(known)
        }
        Outcome::Infeasible | Outcome::Unknown => known,
    }
}

/// A time that the solver knows to be at least so long, as a whole multiple of what all times are multiples of.
fn round_up(graph: &Graph, least: f64) -> Nanos {
    let leaves = graph.classes.iter().flatten().filter_map(|node| match node {
        Node::Leaf(cost) => Some(cost.time.0),
        _ => None,
    });
    let unit = leaves.fold(0, gcd).max(1);
    Nanos((least.max(0.0).ceil() as u64).div_ceil(unit).saturating_mul(unit))
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Which extractions there are.
struct Choice<'a> {
    graph: &'a Graph,
    model: Model,
    /// Per class and node; `None` for what no extraction worth looking at has.
    vars: Vec<Vec<Option<Var>>>,
}

impl<'a> Choice<'a> {
    /// Those that are allowed, and take no longer than `most`. `None` if it is plain that there are none.
    fn of(task: &Task<'a>, least: &Least, most: Option<Nanos>) -> Option<Self> {
        let graph = task.graph;
        let useful = useful(task, least, most)?;
        let mut model = Model::default();
        let mut binary = |useful: &bool| useful.then(|| model.binary());
        let vars = useful.iter().map(|nodes| nodes.iter().map(&mut binary).collect()).collect();
        let mut choice = Self { graph, model, vars };
        choice.needs();
        choice.no_circles();
        for leaves in &task.without {
            choice.exclude(leaves);
        }
        Some(choice)
    }

    /// Nodes that may be chosen: class, node and variable.
    fn nodes(&self) -> impl Iterator<Item = (usize, &'a Node, Var)> {
        let graph = self.graph;
        self.vars.iter().enumerate().flat_map(move |(class, vars)| {
            let nodes = vars.iter().zip(&graph.classes[class]);
            nodes.filter_map(move |(var, node)| Some((class, node, (*var)?)))
        })
    }

    fn leaves(&self) -> impl Iterator<Item = (Var, &'a super::LeafCost)> {
        self.nodes().filter_map(|(_, node, var)| match node {
            Node::Leaf(cost) => Some((var, cost)),
            _ => None,
        })
    }

    /// Per class, the nodes that have it as a child.
    fn parents(&self) -> Vec<Vec<Var>> {
        let mut parents = vec![Vec::new(); self.graph.classes.len()];
        for (_, node, var) in self.nodes() {
            for &child in node.children() {
                if !parents[child].contains(&var) {
                    parents[child].push(var);
                }
            }
        }
        parents
    }

    /// A class that is needed chooses one node, any other none.
    fn needs(&mut self) {
        for (class, parents) in self.parents().iter().enumerate() {
            let own: Vec<Term> = self.vars[class].iter().flatten().map(|&var| (1.0, var)).collect();
            let less = |parents: &[Var]| {
                own.iter().copied().chain(parents.iter().map(|&parent| (-1.0, parent)).collect::<Vec<_>>())
            };
            if own.is_empty() {
                continue;
            }
            match parents.as_slice() {
                _ if self.graph.roots.contains(&class) => self.model.exactly(own, 1.0),
                [parent] => self.model.exactly(less(&[*parent]), 0.0),
                parents => {
                    for &parent in parents {
                        self.model.at_least(less(&[parent]), 0.0);
                    }
                    self.model.at_most(less(parents), 0.0);
                    self.model.at_most(own, 1.0);
                }
            }
        }
    }

    /// No class is chosen for itself. Levels are shares of the classes that lead to each other; from parent to child they rise
    /// by one class.
    fn no_circles(&mut self) {
        let reach = self.graph.reach();
        let circle =
            |class: usize| (0..reach.len()).filter(|&other| reach[class][other] && reach[other][class]).count();
        let sizes: Vec<usize> = (0..reach.len()).map(circle).collect();
        let level: Vec<Option<Var>> =
            sizes.iter().map(|&size| (size > 1).then(|| self.model.real(0.0, 1.0 - 1.0 / size as f64))).collect();
        for (class, node, var) in self.nodes().collect::<Vec<_>>() {
            for &child in node.children().iter().filter(|&&child| reach[child][class]) {
                if let (Some(above), Some(below)) = (level[class], level[child]) {
                    let step = 1.0 / sizes[class] as f64;
                    self.model.at_most([(1.0, above), (-1.0, below), (1.0, var)], 1.0 - step);
                }
            }
        }
    }

    /// Some leaf is not among these, or one of these is not there.
    fn exclude(&mut self, leaves: &[(usize, usize)]) {
        // One of them cannot be chosen any more.
        if leaves.iter().any(|&(class, node)| self.vars[class][node].is_none()) {
            return;
        }
        let old: Vec<Var> = leaves.iter().filter_map(|&(class, node)| self.vars[class][node]).collect();
        let count = old.len() as f64;
        let sign = |var: Var| if old.contains(&var) { -1.0 } else { 1.0 };
        let terms: Vec<Term> = self.leaves().map(|(var, _)| (sign(var), var)).collect();
        self.model.at_least(terms, 1.0 - count);
    }

    /// The leaves of each engine, in shares of a time.
    fn loads(&self, whole: Nanos) -> [Vec<Term>; 2] {
        [Stream::Compute, Stream::Comm].map(|engine| {
            let own = self.leaves().filter(|(_, cost)| cost.engine == engine);
            own.map(|(var, cost)| (cost.time.as_f64() / whole.as_f64(), var)).collect()
        })
    }

    /// The choices of a solution.
    fn read(&self, values: &Values) -> Vec<Option<usize>> {
        let chosen = |vars: &Vec<Option<Var>>| vars.iter().position(|var| var.is_some_and(|var| values.is_one(var)));
        self.vars.iter().map(chosen).collect()
    }
}

/// Per class and node, whether an extraction that is allowed, and takes no longer than `most`, may have it. `None` if a root has
/// none left.
fn useful(task: &Task, least: &Least, most: Option<Nanos>) -> Option<Vec<Vec<bool>>> {
    let graph = task.graph;
    let fits = |class: usize, node: &Node| {
        let chain = shortest_chain(node, &least.chain);
        let fast = chain.is_some_and(|chain| most.is_none_or(|most| chain <= most.0));
        fast && !node.children().contains(&class)
    };
    let nodes = |(class, nodes): (usize, &Vec<Node>)| nodes.iter().map(|node| fits(class, node)).collect();
    let mut useful: Vec<Vec<bool>> = graph.classes.iter().enumerate().map(nodes).collect();
    // Without those whose children have nothing left, until all have.
    loop {
        let live: Vec<bool> = useful.iter().map(|nodes| nodes.contains(&true)).collect();
        let mut moved = false;
        for (nodes, useful) in graph.classes.iter().zip(&mut useful) {
            for (node, useful) in nodes.iter().zip(useful) {
                if *useful && !node.children().iter().all(|&child| live[child]) {
                    *useful = false;
                    moved = true;
                }
            }
        }
        if !moved {
            break;
        }
    }
    // And without those that nothing useful leads to.
    let mut reached = vec![false; graph.classes.len()];
    let mut open = graph.roots.clone();
    while let Some(class) = open.pop() {
        if !std::mem::replace(&mut reached[class], true) {
            let nodes = graph.classes[class].iter().zip(&useful[class]).filter(|(_, useful)| **useful);
            open.extend(nodes.flat_map(|(node, _)| node.children()));
        }
    }
    for (useful, reached) in useful.iter_mut().zip(reached) {
        useful.iter_mut().for_each(|node| *node &= reached);
    }
    graph.roots.iter().all(|&root| useful[root].contains(&true)).then_some(useful)
}

/// Which extractions there are, and what they take.
struct Timed<'a> {
    choice: Choice<'a>,
    /// Of the busiest engine, and of the longest chain, as a share of the time that is known.
    time: Var,
    /// Per class, of its chain.
    chain: Vec<Var>,
}

impl<'a> Timed<'a> {
    fn of(task: &Task<'a>, least: &Least, most: Nanos) -> Option<Self> {
        let mut choice = Choice::of(task, least, Some(most))?;
        let floor = (least.time.as_f64() / most.as_f64() - ACCURACY).clamp(0.0, 1.0);
        let time = choice.model.real(floor, 1.0);
        let chain: Vec<Var> = task.graph.classes.iter().map(|_| choice.model.real(0.0, 1.0)).collect();
        for load in choice.loads(most) {
            choice.model.at_most(load.into_iter().chain([(-1.0, time)]), 0.0);
        }
        for &root in &task.graph.roots {
            choice.model.at_most([(1.0, chain[root]), (-1.0, time)], 0.0);
        }
        let mut timed = Self { choice, time, chain };
        timed.chains(most);
        Some(timed)
    }

    /// A class's chain is at least that of the node that it chooses.
    fn chains(&mut self, most: Nanos) {
        let parents = self.choice.parents();
        let roots = &self.choice.graph.roots;
        let only = |child: usize| parents[child].len() == 1 && !roots.contains(&child);
        let nodes: Vec<(usize, &Node, Var)> = self.choice.nodes().collect();
        // What can be added up, since all but one of a class's nodes contribute nothing.
        let mut base: Vec<Vec<Term>> = self.chain.iter().map(|&chain| vec![(-1.0, chain)]).collect();
        for &(class, node, var) in &nodes {
            match node {
                Node::Leaf(cost) => base[class].push((cost.time.as_f64() / most.as_f64(), var)),
                Node::Seq(children) if children.iter().all(|&child| only(child)) => {
                    base[class].extend(children.iter().map(|&child| (1.0, self.chain[child])));
                }
                _ => {}
            }
        }
        for &(class, node, var) in &nodes {
            // Sums of chains of which each must be no longer than the class's own.
            let parts: Vec<Vec<usize>> = match node {
                Node::Leaf(_) => continue,
                Node::Seq(children) if children.iter().all(|&child| only(child)) => continue,
                Node::Seq(children) => vec![children.clone()],
                Node::Par(children) => children.iter().map(|&child| vec![child]).collect(),
            };
            for part in parts {
                let off = part.iter().filter(|&&child| !only(child)).count() as f64;
                let chains = part.iter().map(|&child| (1.0, self.chain[child]));
                let terms = base[class].iter().copied().chain(chains).chain([(off, var)]);
                self.choice.model.at_most(terms.collect::<Vec<_>>(), off);
            }
        }
        for base in base.into_iter().filter(|base| base.len() > 1) {
            self.choice.model.at_most(base, 0.0);
        }
    }
}
