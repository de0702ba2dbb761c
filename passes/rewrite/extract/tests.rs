//! Against trying every choice of every class, on small random graphs.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use super::*;

fn leaf(engine: Stream, time: u64) -> Node {
    Node::Leaf(LeafCost { engine, time: Nanos(time) })
}

/// Time and sum of a set of choices, by definition and not by the pass's own replay: `None` if a class needs itself.
struct Tried {
    time: u64,
    sum: u64,
    leaves: Vec<(usize, usize)>,
}

fn tried(graph: &Graph, choice: &[usize]) -> Option<Tried> {
    fn chain(
        graph: &Graph,
        choice: &[usize],
        class: usize,
        above: &[usize],
        used: &mut BTreeSet<usize>,
    ) -> Option<u64> {
        if above.contains(&class) {
            return None;
        }
        used.insert(class);
        let above = [above, &[class]].concat();
        let mut child = |&child: &usize| chain(graph, choice, child, &above, used);
        match &graph.classes[class][choice[class]] {
            Node::Leaf(cost) => Some(cost.time.0),
            Node::Seq(children) => children.iter().map(&mut child).sum(),
            Node::Par(children) => children.iter().map(&mut child).try_fold(0, |most, chain| Some(most.max(chain?))),
        }
    }
    let mut used = BTreeSet::new();
    let chains: Option<Vec<u64>> = graph.roots.iter().map(|&root| chain(graph, choice, root, &[], &mut used)).collect();
    let chains = chains?;
    let (mut load, mut leaves) = ([0, 0], Vec::new());
    for class in used {
        if let Node::Leaf(cost) = &graph.classes[class][choice[class]] {
            load[cost.engine as usize] += cost.time.0;
            leaves.push((class, choice[class]));
        }
    }
    let all = || chains.iter().chain(&load).copied();
    Some(Tried { time: all().max().unwrap_or(0), sum: all().sum(), leaves })
}

/// For every set of leaves that an extraction has, the best time and sum, fastest first.
fn every(graph: &Graph) -> Vec<(u64, u64)> {
    let mut best: BTreeMap<Vec<(usize, usize)>, (u64, u64)> = BTreeMap::new();
    let mut choice = vec![0; graph.classes.len()];
    loop {
        if let Some(Tried { time, sum, leaves }) = tried(graph, &choice) {
            let known = best.entry(leaves).or_insert((time, sum));
            *known = (*known).min((time, sum));
        }
        // The next in the order of counting.
        let Some(class) = (0..choice.len()).find(|&class| choice[class] + 1 < graph.classes[class].len()) else {
            break;
        };
        choice[..class].fill(0);
        choice[class] += 1;
    }
    let mut all: Vec<(u64, u64)> = best.into_values().collect();
    all.sort_unstable();
    all
}

/// Two to seven classes of one to three nodes; children are later classes, or with `circles` any.
fn graphs(circles: bool, times: std::ops::Range<u64>) -> impl Strategy<Value = Graph> {
    let node = (0u8..5, times, prop::collection::vec(0usize..100, 1..4), any::<bool>());
    let class = prop::collection::vec(node, 1..4);
    (prop::collection::vec(class, 2..8), any::<bool>()).prop_map(move |(classes, two_roots)| {
        let count = classes.len();
        let children = |class: usize, drawn: &[usize]| {
            let (first, range) = if circles { (0, count) } else { (class + 1, count - class - 1) };
            let mut children: Vec<usize> = drawn.iter().map(|&drawn| first + drawn % range.max(1)).collect();
            children.retain(|&child| child < count);
            children
        };
        let build = |class: usize, (kind, time, drawn, comm): &(u8, u64, Vec<usize>, bool)| {
            let children = children(class, drawn);
            match kind {
                0 | 1 if !children.is_empty() => Node::Seq(children),
                2 if !children.is_empty() => Node::Par(children),
                _ => leaf(if *comm { Stream::Comm } else { Stream::Compute }, *time),
            }
        };
        let nodes = |(class, nodes): (usize, &Vec<_>)| nodes.iter().map(|node| build(class, node)).collect();
        let roots = if two_roots { vec![0, 1] } else { vec![0] };
        Graph { classes: classes.iter().enumerate().map(nodes).collect(), roots }
    })
}

/// The best extractions, one after the other, until there are none or enough.
fn sequence(graph: &Graph, limits: &Limits, most: usize) -> (Vec<Extraction>, Option<Failure>) {
    let mut found = Vec::new();
    while found.len() < most {
        match extract(graph, limits, &found) {
            Ok(next) => found.push(next),
            Err(failure) => return (found, Some(failure)),
        }
    }
    (found, None)
}

/// What is returned is an extraction, costs what it says, and is the best there is; and so are those after it.
/// `changes` is 0 where the solver has to do what the greedy choice would.
fn check(graph: &Graph, changes: u64) -> Result<(), TestCaseError> {
    let limits = Limits { changes, ..Limits::default() };
    let expected = every(graph);
    let (found, failure) = sequence(graph, &limits, 4);
    let keys: Vec<(u64, u64)> = found.iter().map(|found| (found.time().0, found.sum().0)).collect();
    prop_assert_eq!(&keys, &expected[..expected.len().min(4)]);
    prop_assert_eq!(failure, (expected.len() < 4).then_some(Failure::Impossible));
    for found in &found {
        prop_assert_eq!(found.bound, found.time());
        let choice: Vec<usize> = found.chosen.iter().map(|node| node.unwrap_or(0)).collect();
        let again = tried(graph, &choice).expect("no class needs itself");
        prop_assert_eq!((again.time, again.sum), (found.time().0, found.sum().0));
        let needed: Vec<(usize, usize)> = found.leaves(graph);
        prop_assert_eq!(again.leaves, needed);
    }
    Ok(())
}

/// None, or more than are ever tried.
fn changes() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![0, Limits::default().changes])
}

fn config(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(11), failure_persistence: None, ..Config::default() }
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn equals_trying_everything(graph in graphs(false, 0..20), changes in changes()) {
        check(&graph, changes)?;
    }

    #[test]
    fn equals_trying_everything_with_circles(graph in graphs(true, 0..20), changes in changes()) {
        check(&graph, changes)?;
    }

    /// Milliseconds in nanoseconds: right to a part in a million, and never a bound above what is possible.
    #[test]
    fn long_times_are_right_to_a_millionth(graph in graphs(false, 1_000_000..20_000_000)) {
        if let Some(&(time, _)) = every(&graph).first() {
            let found = extract(&graph, &Limits::default(), &[]).expect("there is one");
            prop_assert!(found.bound.0 <= time && time <= found.time().0, "{found:?} {time}");
            prop_assert!(found.proved(), "{found:?}");
            let near = time / 500_000 + 1;
            prop_assert!(found.time().0 - time <= near && time - found.bound.0 <= near, "{found:?} {time}");
        }
    }

    /// Without a single node of branch and bound, what is returned is still allowed, and its bound no lie.
    #[test]
    fn stands_without_the_solver(graph in graphs(true, 0..20)) {
        let limits = Limits { solver: solver::Limits { nodes: 0 }, ..Limits::default() };
        let expected = every(&graph);
        match extract(&graph, &limits, &[]) {
            Ok(found) => {
                let best = expected.first().expect("what was found is possible");
                prop_assert!(found.bound.0 <= best.0 && best.0 <= found.time().0, "{found:?} {best:?}");
            }
            Err(Failure::Impossible) => prop_assert!(expected.is_empty()),
            Err(Failure::NotFound) => {}
        }
    }

    #[test]
    fn the_same_twice(graph in graphs(true, 0..20)) {
        let (first, second) = (sequence(&graph, &Limits::default(), 3), sequence(&graph, &Limits::default(), 3));
        prop_assert_eq!(first, second);
    }
}

/// An all-to-all that may go as one, or as two halves, beside an MLP in one piece or two.
fn layer() -> Graph {
    let classes = vec![
        vec![Node::Seq(vec![1, 2]), Node::Par(vec![3, 4])],
        vec![leaf(Stream::Comm, 50)],
        vec![leaf(Stream::Compute, 60)],
        vec![Node::Seq(vec![5, 6])],
        vec![Node::Seq(vec![7, 8])],
        vec![leaf(Stream::Comm, 27)],
        vec![leaf(Stream::Compute, 31)],
        vec![leaf(Stream::Comm, 27)],
        vec![leaf(Stream::Compute, 31)],
    ];
    Graph { classes, roots: vec![0] }
}

#[test]
fn halves_cost_load_and_save_chain() {
    let found = extract(&layer(), &Limits::default(), &[]).expect("there is one");
    assert_eq!((found.load, found.chains.as_slice()), ([Nanos(62), Nanos(54)], [Nanos(58)].as_slice()));
    assert_eq!((found.time(), found.bound), (Nanos(62), Nanos(62)));
    assert_eq!(found.chosen, [Some(1), None, None, Some(0), Some(0), Some(0), Some(0), Some(0), Some(0)]);
}

#[test]
fn a_root_that_only_needs_itself_is_impossible() {
    let graph = Graph { classes: vec![vec![Node::Seq(vec![1])], vec![Node::Seq(vec![0])]], roots: vec![0] };
    assert_eq!(extract(&graph, &Limits::default(), &[]), Err(Failure::Impossible));
    let graph = Graph { classes: vec![Vec::new()], roots: vec![0] };
    assert_eq!(extract(&graph, &Limits::default(), &[]), Err(Failure::Impossible));
}

/// An op that two parts need is run once, and its time counts once.
#[test]
fn what_is_shared_counts_once() {
    let graph = Graph {
        classes: vec![
            vec![Node::Par(vec![1, 2])],
            vec![Node::Seq(vec![3])],
            vec![Node::Seq(vec![3])],
            vec![leaf(Stream::Compute, 7)],
        ],
        roots: vec![0],
    };
    let found = extract(&graph, &Limits::default(), &[]).expect("there is one");
    assert_eq!((found.load, found.bound), ([Nanos(7), Nanos(0)], Nanos(7)));
}

/// A layer forward beside one backward, each component whole, in two halves that cost more together, or as two
/// steps: of the size that a kind of layer has. The default limits are enough to prove the best, and it is not the
/// greedy choice.
#[test]
fn a_layer_pair_is_proved() {
    let components = [(0, 5_310_000), (1, 6_690_000), (0, 4_600_000), (1, 8_680_000)];
    let mut graph = Graph { classes: vec![Vec::new(), Vec::new()], roots: vec![0, 1] };
    for root in 0..2 {
        let mut parts = Vec::new();
        for (at, (comm, time)) in components.into_iter().enumerate() {
            let engine = if comm == 1 { Stream::Comm } else { Stream::Compute };
            let time = time + 370_001 * (root as u64 * 5 + at as u64 * 3 % 7);
            let half = |more| vec![leaf(engine, time / 2 + more)];
            let class = graph.classes.len();
            parts.push(class);
            graph.classes.push(vec![
                leaf(engine, time),
                Node::Par(vec![class + 1, class + 2]),
                Node::Seq(vec![class + 3, class + 4]),
            ]);
            graph.classes.extend([half(110_003), half(90_007)]);
            graph.classes.push(vec![leaf(Stream::Compute, time / 9)]);
            graph.classes.push(vec![leaf(engine, time / 2 + 50_021), leaf(Stream::Comm, time / 3)]);
        }
        graph.classes[root] = vec![Node::Seq(parts)];
    }
    let limits = Limits::default();
    let greedy = greedy::choose(&Task { graph: &graph, limits: &limits, without: Vec::new() }).expect("there is one");
    let found = extract(&graph, &limits, &[]).expect("there is one");
    assert!(found.proved(), "{found:?}");
    assert!(found.time() < greedy.time(), "{found:?} {greedy:?}");
}
