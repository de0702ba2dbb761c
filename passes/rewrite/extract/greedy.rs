//! A good extraction without a solver: the cheapest of every class by several prices, then one change after the other.

use super::{Extraction, Graph, LeafCost, Node, Task};
use crate::ir::Stream;
use crate::units::{Bytes, Nanos};

/// What the cheapest is cheapest in, as if no two classes shared anything.
#[derive(Clone, Copy)]
enum Price {
    Load(Stream),
    Both,
    Chain,
    Held,
}

const PRICES: [Price; 5] =
    [Price::Both, Price::Chain, Price::Load(Stream::Compute), Price::Load(Stream::Comm), Price::Held];

/// The best allowed extraction that is found; `None` if there is none, or memory limit and exclusions hide it.
pub(super) fn choose(task: &Task) -> Option<Extraction> {
    let mut changes = task.limits.changes;
    let mut best: Option<Extraction> = None;
    for price in PRICES {
        let found = improve(task, cheapest(task.graph, price), &mut changes);
        let found = found.filter(|found| task.excess(found) == Bytes::ZERO && !task.excluded(found));
        if let Some(found) = found.filter(|found| best.as_ref().is_none_or(|best| found.key() < best.key())) {
            best = Some(found);
        }
    }
    best
}

/// The cheapest node of every class (Knuth's generalisation of Dijkstra's algorithm): classes are settled in the order of their
/// price, each by children that are settled, so that no class is chosen for itself.
fn cheapest(graph: &Graph, price: Price) -> Vec<Option<usize>> {
    let mut settled: Vec<Option<u64>> = vec![None; graph.classes.len()];
    let mut choice = vec![None; graph.classes.len()];
    loop {
        let open = graph.classes.iter().enumerate().filter(|(class, _)| settled[*class].is_none());
        let nodes = open.flat_map(|(class, nodes)| nodes.iter().enumerate().map(move |(at, node)| (class, at, node)));
        let priced = nodes.filter_map(|(class, at, node)| Some((price.of_node(node, &settled)?, class, at)));
        let Some((cost, class, at)) = priced.min() else { return choice };
        settled[class] = Some(cost);
        choice[class] = Some(at);
    }
}

impl Price {
    fn of_leaf(self, cost: &LeafCost) -> u64 {
        match self {
            Price::Load(engine) if engine != cost.engine => 0,
            Price::Load(_) | Price::Both | Price::Chain => cost.time.0,
            Price::Held => cost.held.0,
        }
    }

    fn of_node(self, node: &Node, settled: &[Option<u64>]) -> Option<u64> {
        let mut prices = node.children().iter().map(|&child| settled[child]);
        match (self, node) {
            (_, Node::Leaf(cost)) => Some(self.of_leaf(cost)),
            (Price::Chain, Node::Par(_)) => prices.try_fold(0, |most: u64, price| Some(most.max(price?))),
            _ => prices.try_fold(0, |sum: u64, price| Some(sum.saturating_add(price?))),
        }
    }
}

/// What a change must lower: first it must be allowed, then fast, then light.
type Rank = (bool, Bytes, (Nanos, Nanos));

fn rank(task: &Task, found: &Extraction) -> Rank {
    (task.excluded(found), task.excess(found), found.key())
}

/// Takes another node for one class at a time, the best of each class, until nothing is better or the changes are used up.
fn improve(task: &Task, mut choice: Vec<Option<usize>>, changes: &mut u64) -> Option<Extraction> {
    let graph = task.graph;
    let mut best = graph.replay(&choice)?;
    let mut best_rank = rank(task, &best);
    let mut moved = true;
    while std::mem::take(&mut moved) {
        for class in 0..graph.classes.len() {
            let Some(current) = best.chosen[class] else { continue };
            for node in (0..graph.classes[class].len()).filter(|&node| node != current) {
                if *changes == 0 {
                    return Some(best);
                }
                *changes -= 1;
                let before = choice[class].replace(node);
                match graph.replay(&choice).map(|found| (rank(task, &found), found)) {
                    Some((rank, found)) if rank < best_rank => {
                        (best_rank, best) = (rank, found);
                        moved = true;
                    }
                    _ => choice[class] = before,
                }
            }
        }
    }
    Some(best)
}
