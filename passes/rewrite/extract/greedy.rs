//! A good extraction without a solver: the cheapest of every class by several prices, then one change after the other.

use super::{Choice, Extraction, Graph, LeafCost, Node, Task};
use crate::ir::Stream;
use crate::units::Nanos;

/// What the cheapest is cheapest in, as if no two classes shared anything.
#[derive(Clone, Copy)]
enum Price {
    Load(Stream),
    Both,
    Chain,
}

const PRICES: [Price; 4] = [Price::Both, Price::Chain, Price::Load(Stream::Compute), Price::Load(Stream::Comm)];

/// The best allowed extraction that is found; `None` if there is none, or exclusions hide it.
pub(super) fn choose(task: &Task) -> Option<Extraction> {
    let changes = task.limits.changes / PRICES.len() as u64;
    let mut best: Option<Extraction> = None;
    for start in cheapest(task.graph, &|_, _| true) {
        let found = improve(task.graph, start, changes, |found| Some(rank(task, found)));
        let found = found.filter(|found| !task.excluded(found));
        if let Some(found) = found.filter(|found| best.as_ref().is_none_or(|best| found.key() < best.key())) {
            best = Some(found);
        }
    }
    best
}

/// By each price, the cheapest of the nodes (class and node) that are `allowed`, for every class that has one.
pub fn cheapest(graph: &Graph, allowed: &dyn Fn(usize, usize) -> bool) -> Vec<Choice> {
    PRICES.map(|price| cheapest_by(graph, price, allowed)).into()
}

/// The cheapest node of every class (Knuth's generalisation of Dijkstra's algorithm): classes are settled in the order of their
/// price, each by children that are settled, so that no class is chosen for itself.
fn cheapest_by(graph: &Graph, price: Price, allowed: &dyn Fn(usize, usize) -> bool) -> Choice {
    let mut settled: Vec<Option<u64>> = vec![None; graph.classes.len()];
    let mut choice = vec![None; graph.classes.len()];
    loop {
        let open = graph.classes.iter().enumerate().filter(|(class, _)| settled[*class].is_none());
        let nodes = open.flat_map(|(class, nodes)| nodes.iter().enumerate().map(move |(at, node)| (class, at, node)));
        let priced = nodes
            .filter(|&(class, at, _)| allowed(class, at))
            .filter_map(|(class, at, node)| Some((price.of_node(node, &settled)?, class, at)));
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
type Rank = (bool, (Nanos, Nanos));

fn rank(task: &Task, found: &Extraction) -> Rank {
    (task.excluded(found), found.key())
}

/// From a choice with a node for every class, takes another node for one class at a time as long as that lowers the rank, or
/// until so many changes were tried. `None` if the choice is no extraction or has no rank; what has none is not taken.
pub fn improve<R: Ord>(
    graph: &Graph,
    mut choice: Choice,
    changes: u64,
    mut rank: impl FnMut(&Extraction) -> Option<R>,
) -> Option<Extraction> {
    let mut best = graph.replay(&choice)?;
    let mut best_rank = rank(&best)?;
    let mut left = changes;
    let mut moved = true;
    while std::mem::take(&mut moved) {
        for class in 0..graph.classes.len() {
            let Some(current) = best.chosen[class] else { continue };
            for node in (0..graph.classes[class].len()).filter(|&node| node != current) {
                if left == 0 {
                    return Some(best);
                }
                left -= 1;
                let before = choice[class].replace(node);
                match graph.replay(&choice).and_then(|found| Some((rank(&found)?, found))) {
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
